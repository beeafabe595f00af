"""How well the accuracy that subnets inherit from a supernet ranks them: against training each from scratch.

    python benchmarks/rank_fidelity.py fashion-mnist --data DIR --json out.json    # half an hour on one core
    python benchmarks/rank_fidelity.py cifar-10 --data DIR --json out.json         # about as long
    python benchmarks/rank_fidelity.py fashion-mnist --data DIR --quick            # does it run? No result.

24 subnets, the largest and the smallest among them and the others spread evenly over the logarithm of MACs, are trained
one by one with `train_subnet`: same recipe, epochs, images and seed for all. Then Kendall's tau-b between their
validation accuracies and those that they inherit (batch norms calibrated on training images, as always) from supernets
of two recipes, sandwich and progressive shrinking, with three seeds each.

* Both recipes get the same compute: MACs times images of the passes of all subnets, forward and backward as one, the
  forward pass of a frozen teacher as a third (`training_macs`). The epochs of progressive shrinking are set by that.
* All use AdamW. Once-for-All's learning rates for the later phases are relative to a long training with SGD of the
  largest net; with AdamW and a few epochs a phase they would be too low by far, so `PHASE_LEARNING_RATES` stands in.
  The phases' shares of the epochs are the published ones. Nothing was tuned for tau.
* Accuracies are those on validation images, the same ones for all; nobody trains on them. Test images are not used.
* Training from scratch has noise of its own, which bounds tau: four subnets are trained with a second seed too.
  `tau_ceiling` is what a perfect ranking would reach against figures as noisy as that, by simulation.
* `tau_macs` is what ranking by MACs alone reaches: the wider the subnets' spread, the easier for any ranking.

Everything is kept in ``--out``: trainings resume from their checkpoints, and what ``ledger.jsonl`` has is not done
again.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import kendalltau, spearmanr

from hanax._files import write_atomically
from hanax.search_spaces import Arch, SearchSpace, graph_features, mobilenet_v3
from hanax.supernet import (
    Augmentation,
    Evaluator,
    Params,
    Phase,
    Recipe,
    Split,
    keep_compiled_code,
    keep_freed_memory,
    load_images,
    n_steps,
    phases,
    split_validation,
    train_subnet,
    train_supernet,
)
from hanax.supernet._recipe import Options, largest_within, sample_within, smallest_within, steps_per_epoch

PHASE_LEARNING_RATES = (1.0, 0.6, 0.4, 0.4, 0.4, 0.4)
SCRATCH_SEED, REPEATED_SEED = 100, 101
SPLIT_SEED, SUBNET_SEED = 0, 0
TARGET_TAU = 0.6
N_CANDIDATES = 50_000
"""Architectures that the subnets are drawn from, and that mean MACs are taken over."""

PROGRESS_S = 30.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What is compared, on which images.

    Attributes:
        sandwich: Recipe of that supernet, whose compute the other one gets as well.
        scratch: Recipe of every subnet trained from scratch.
    """

    space: SearchSpace
    n_train: int
    n_validation: int
    n_calibration: int
    sandwich: Recipe
    scratch: Recipe
    n_subnets: int = 24
    n_repeated: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)

    @functools.cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The recipes of the supernets by name, at equal compute."""
        progressive = dataclasses.replace(
            self.sandwich, schedule="progressive_shrinking", phase_learning_rates=PHASE_LEARNING_RATES
        )
        target = training_macs(self.sandwich, self.space, self.n_train)
        return {
            "sandwich": self.sandwich,
            "progressive_shrinking": with_compute(progressive, self.space, self.n_train, target),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=list(STUDIES))
    parser.add_argument("--data", type=Path, required=True, help="folder or file with the data set, as published")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument(
        "--out", type=Path, help="folder of checkpoints and the ledger; runs/rank_fidelity/... by default"
    )
    parser.add_argument("--quick", action="store_true", help="few and short trainings")
    arguments = parser.parse_args()
    name = arguments.dataset + ("-quick" if arguments.quick else "")
    folder = arguments.out or Path("runs", "rank_fidelity", name)
    keep_compiled_code()
    keep_freed_memory()
    started = time.perf_counter()
    study = quick(STUDIES[arguments.dataset]()) if arguments.quick else STUDIES[arguments.dataset]()
    data, fingerprint = images(study, arguments.data)
    subnets = spread_subnets(study.space, study.n_subnets)
    ledger = Ledger(folder, settings(study, fingerprint))
    print_plan(study, folder)
    run(study, data, fingerprint, subnets, ledger)
    result = {
        "name": f"rank_fidelity_{name}",
        "wall_s": round(time.perf_counter() - started, 1),
        "versions": {package: importlib.metadata.version(package) for package in ("hanax", "jax", "jaxlib")},
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "settings": ledger.settings,
    } | report(study, subnets, ledger)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_report(result)
    if arguments.quick:
        print("--quick shows that it runs; its figures are no result")


# ---- the studies ------------------------------------------------------------------------------------------------


def study_of(*, image_channels: int, side: int, pad_crop: int, n_validation: int) -> Study:
    recipe = Recipe(
        epochs=10.0, batch_size=128, learning_rate=3e-3, warmup_epochs=1.0, watch_epochs=0.0,
        augmentation=Augmentation(pad_crop=pad_crop, flip=True),
    )  # fmt: skip
    return Study(
        space=small_space(image_channels=image_channels, side=side, stem_width=8, stage_widths=(8, 16, 32)),
        n_train=8_000,
        n_validation=n_validation,
        n_calibration=2_000,
        sandwich=recipe,
        scratch=dataclasses.replace(recipe, epochs=8.0),
    )


STUDIES: dict[str, Callable[[], Study]] = {
    "fashion-mnist": lambda: study_of(image_channels=1, side=28, pad_crop=1, n_validation=10_000),
    "cifar-10": lambda: study_of(image_channels=3, side=32, pad_crop=2, n_validation=5_000),
}


def small_space(*, image_channels: int, side: int, stem_width: int, stage_widths: Sequence[int]) -> SearchSpace:
    """Three narrow stages on maps a quarter and an eighth as wide as the image: size matters, and steps are cheap."""
    return mobilenet_v3(
        resolutions=(side,), n_classes=10, image_channels=image_channels, kernel_sizes=(3, 5, 7),
        expand_ratios=(1, 3, 6), depths=(1, 2, 3), stem_width=stem_width, stem_stride=2, stage_widths=stage_widths,
        stage_strides=(2, 1, 2), stage_activations=("relu", "relu", "hswish"),
        stage_squeeze_excite=(False, False, True), head_width=64, feature_width=64,
    )  # fmt: skip


def quick(study: Study) -> Study:
    """`study` with as little of everything as can run."""
    return dataclasses.replace(
        study,
        n_train=1_280,
        n_validation=1_000,
        n_calibration=500,
        sandwich=dataclasses.replace(study.sandwich, epochs=1.0),
        scratch=dataclasses.replace(study.scratch, epochs=1.0),
        n_subnets=4,
        n_repeated=1,
        seeds=(0,),
    )


def images(study: Study, path: Path) -> tuple[Split, str]:
    """As many training and validation images as `study` asks for, all from the training part, and their fingerprint.

    Every class has as many as the others.

    Raises:
        ValueError: The training part has too few of a class.
    """
    dataset = load_images(path)
    n_wanted = study.n_train + study.n_validation
    per_class = n_wanted // dataset.n_classes
    if (fewest := np.bincount(dataset.y_train).min()) < per_class:
        raise ValueError(f"{path}: {per_class} training images of each class are needed; found {fewest} of one")
    rng = np.random.default_rng(SPLIT_SEED)
    order = rng.permutation(len(dataset.y_train))
    drawn = [order[dataset.y_train[order] == label][:per_class] for label in range(dataset.n_classes)]
    chosen = rng.permutation(np.concatenate(drawn))  # the first training images are those that calibrate
    part = dataclasses.replace(dataset, x_train=dataset.x_train[chosen], y_train=dataset.y_train[chosen])
    return split_validation(part, fraction=study.n_validation / n_wanted, seed=SPLIT_SEED), part.fingerprint


def spread_subnets(space: SearchSpace, n: int) -> list[Arch]:
    """The smallest and the largest architecture, and one of each of ``n - 2`` equal parts of log MACs between them.

    Uniform architectures would nearly all be of middling size. So each candidate has a probability of its own, drawn
    uniformly, with which its options are large.

    Raises:
        ValueError: Nothing was drawn in one of the parts.
    """
    rng = np.random.default_rng(SUBNET_SEED)
    sizes = rng.random((N_CANDIDATES, 1))
    counts = np.array([len(decision.options) for decision in space.decisions])
    codes = np.unique(space.canonical(rng.binomial(counts - 1, sizes).astype(np.int32)), axis=0)
    ends = space.encode([space.smallest, space.largest])
    least, most = macs_of(space, ends)
    macs = macs_of(space, codes)
    part = np.floor((n - 2) * np.log(macs / least) / np.log(most / least))
    chosen = [ends[0]]
    for index in range(n - 2):
        candidates = np.flatnonzero((part == index) & (macs > least) & (macs < most))
        if len(candidates) == 0:
            raise ValueError(f"no architecture between {n - 2} equal parts of log MACs in part {index}; ask for fewer")
        chosen.append(codes[rng.choice(candidates)])
    return space.decode(np.stack([*chosen, ends[1]]))


def macs_of(space: SearchSpace, codes: np.ndarray) -> np.ndarray:
    names, values = graph_features(space, codes)
    macs: np.ndarray = values[:, names.index("macs")]
    return macs


# ---- equal compute ----------------------------------------------------------------------------------------------


def training_macs(recipe: Recipe, space: SearchSpace, n_images: int) -> float:
    """Compute of a training by `recipe`: MACs of one pass of each image that each subnet of each step is trained on.

    A frozen teacher's pass has no way back and counts a third. Random subnets count as much as they do on average.
    """
    return sum(phase.steps * recipe.batch_size * step_macs(space, phase) for phase in phases(recipe, space, n_images))


def step_macs(space: SearchSpace, phase: Phase) -> float:
    """MACs of a step of `phase` for one image, counted as `training_macs` does."""
    largest, smallest = macs_of(
        space, space.encode([largest_within(space, phase.options), smallest_within(space, phase.options)])
    )
    own = 0.0 if phase.draw == "random" else largest
    own += smallest if phase.draw == "sandwich" else 0.0
    own += phase.n_random * mean_macs(space, phase.options)
    teacher = macs_of(space, space.encode([space.largest]))[0] / 3 if phase.teacher == "frozen" else 0.0
    return float(own + teacher)


@functools.cache
def mean_macs(space: SearchSpace, options: Options) -> float:
    return float(macs_of(space, sample_within(space, np.random.default_rng(0), N_CANDIDATES, options)).mean())


def with_compute(recipe: Recipe, space: SearchSpace, n_images: int, target: float) -> Recipe:
    """`recipe` with the fewest epochs that come to `target` MACs."""
    per_epoch = steps_per_epoch(recipe, n_images)

    def of_steps(steps: int) -> Recipe:
        return dataclasses.replace(recipe, epochs=steps / per_epoch)

    most = 10 * n_steps(recipe, n_images)
    steps = bisect.bisect_left(
        range(most), target, lo=len(phases(recipe, space, n_images)),
        key=lambda steps: training_macs(of_steps(steps), space, n_images),
    )  # fmt: skip
    return of_steps(steps)


# ---- trainings --------------------------------------------------------------------------------------------------


class Ledger:
    """Accuracies found so far, a line of ``ledger.jsonl`` each: of subnet number `subnet` after the training `name`."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self._path = folder / "ledger.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._check_settings(folder / "settings.json")
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a crash may have cut the last one short
        write_atomically(self._path, "".join(whole).encode())
        self._accuracies = {(entry["name"], entry["subnet"]): entry["accuracy"] for entry in map(json.loads, whole)}

    def _check_settings(self, path: Path) -> None:
        text = json.dumps(self.settings, indent=1) + "\n"
        if not path.exists():
            write_atomically(path, text.encode())
        elif path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path} has other settings than this run; give another folder with --out, or delete it")

    def add(self, name: str, subnet: int, accuracy: float) -> None:
        self._accuracies[name, subnet] = accuracy
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"name": name, "subnet": subnet, "accuracy": accuracy}) + "\n")

    def accuracy(self, name: str, subnet: int) -> float:
        return float(self._accuracies[name, subnet])

    def missing(self, name: str, subnets: Sequence[int]) -> list[int]:
        """Those of `subnets` whose accuracy after the training `name` is not known yet."""
        return [subnet for subnet in subnets if (name, subnet) not in self._accuracies]

    def seconds(self, name: str, batch_size: int) -> float:
        """Time of the steps of a training, whenever they were made."""
        lines = (self.folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return float(sum(batch_size / json.loads(line)["images_per_s"] for line in lines))


def settings(study: Study, fingerprint: str) -> dict[str, Any]:
    """All that decides the figures."""
    return {
        "data": fingerprint,
        "space": study.space.fingerprint,
        "n_train": study.n_train,
        "n_validation": study.n_validation,
        "n_calibration": study.n_calibration,
        "n_subnets": study.n_subnets,
        "n_repeated": study.n_repeated,
        "seeds": list(study.seeds),
        "scratch": as_json(study.scratch),
        **{name: as_json(recipe) for name, recipe in study.recipes.items()},
    }


def as_json(recipe: Recipe) -> dict[str, Any]:
    """`recipe` as JSON reads it back, with lists for tuples."""
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return fields


def supernet_name(recipe: str, seed: int) -> str:
    return f"{recipe}-seed{seed}"


def scratch_name(seed: int, subnet: int) -> str:
    return f"scratch-seed{seed}-subnet{subnet:02d}"


def repeated_subnets(study: Study) -> list[int]:
    """Those with a second training, spread over all sizes."""
    return [round(index) for index in np.linspace(0, study.n_subnets - 1, study.n_repeated)]


@dataclass(frozen=True)
class Training:
    """A training under the name of its folder, and the numbers of the subnets that are scored after it."""

    name: str
    subnets: Sequence[int]
    train: Callable[[], Params]


def trainings(study: Study, data: Split, fingerprint: str, subnets: Sequence[Arch], folder: Path) -> list[Training]:
    """All trainings of `study`; a training that is there already only loads its weights."""
    planned = []
    for recipe_name, recipe in study.recipes.items():
        for seed in study.seeds:
            name = supernet_name(recipe_name, seed)
            train = functools.partial(
                train_supernet, study.space, data, dataclasses.replace(recipe, seed=seed), folder / name,
                fingerprint=fingerprint, on_progress=Progress(name),
            )  # fmt: skip
            planned.append(Training(name, range(study.n_subnets), train))
    for seed, indices in ((SCRATCH_SEED, range(study.n_subnets)), (REPEATED_SEED, repeated_subnets(study))):
        for index in indices:
            name = scratch_name(seed, index)
            train = functools.partial(
                train_subnet, study.space, subnets[index], data, dataclasses.replace(study.scratch, seed=seed),
                folder / name, fingerprint=fingerprint, on_progress=Progress(name),
            )  # fmt: skip
            planned.append(Training(name, [index], train))
    return planned


def run(study: Study, data: Split, fingerprint: str, subnets: Sequence[Arch], ledger: Ledger) -> None:
    """Every training and accuracy that `ledger` does not have yet."""
    numbers = {arch: number for number, arch in enumerate(subnets)}

    def note(name: str, arch: Arch, accuracy: float) -> None:
        ledger.add(name, numbers[arch], accuracy)

    planned = trainings(study, data, fingerprint, subnets, ledger.folder)
    for done, training in enumerate(planned):
        missing = ledger.missing(training.name, training.subnets)
        if not missing:
            continue
        started = time.perf_counter()
        evaluator = Evaluator(
            study.space, training.train(), data, n_calibration=study.n_calibration, n_validation=study.n_validation
        )
        trained_s = time.perf_counter() - started
        accuracies = evaluator.accuracies(
            [subnets[number] for number in missing],
            functools.partial(note, training.name),
        )
        print(
            f"{done + 1}/{len(planned)} {training.name}: mean accuracy {accuracies.mean():.2%}, training "
            f"{trained_s:.0f} s, scoring {time.perf_counter() - started - trained_s:.0f} s",
            flush=True,
        )


class Progress:
    """Prints the steps of a training now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._printed_at: float | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._printed_at is None:
            self._printed_at = time.monotonic()
        if time.monotonic() - self._printed_at > PROGRESS_S:
            self._printed_at = time.monotonic()
            print(f"  {self._name}: step {done} of {total}", flush=True)


# ---- the figures ------------------------------------------------------------------------------------------------


def report(study: Study, subnets: Sequence[Arch], ledger: Ledger) -> dict[str, Any]:
    """Rows of figures, and what was found for each subnet."""
    everything, repeated = range(study.n_subnets), repeated_subnets(study)
    macs = macs_of(study.space, study.space.encode(subnets))
    scratch = np.array([ledger.accuracy(scratch_name(SCRATCH_SEED, index), index) for index in everything])
    again = np.array([ledger.accuracy(scratch_name(REPEATED_SEED, index), index) for index in repeated])
    inherited = {
        name: np.array(
            [[ledger.accuracy(supernet_name(name, seed), index) for index in everything] for seed in study.seeds]
        )
        for name in study.recipes
    }
    differences = np.abs(again - scratch[repeated])
    rows = [row for name in study.recipes for row in recipe_rows(study, name, inherited[name], scratch, ledger)]
    rows += [
        as_row("tau_macs", [kendall(macs, scratch)], "tau-b"),
        as_row("tau_ceiling", ceiling(scratch, differences), "tau-b"),
        as_row("scratch_accuracy", scratch, "accuracy"),
        as_row("scratch_noise", [differences.mean()], "accuracy", worst=differences.max(), n=len(differences)),
        as_row("scratch_training", [scratch_seconds(study, ledger)], "s"),
    ]
    return {
        "rows": rows,
        "subnets": [
            {
                "options": study.space.options_of(subnets[index]),
                "macs": int(macs[index]),
                "scratch": scratch[index],
                "scratch_again": again[repeated.index(index)] if index in repeated else None,
                **{name: values[:, index].tolist() for name, values in inherited.items()},
            }
            for index in everything
        ],
    }


def recipe_rows(study: Study, name: str, inherited: np.ndarray, scratch: np.ndarray, ledger: Ledger) -> list[Row]:
    """Figures of one recipe; `inherited` has a row per seed and a column per subnet, from smallest to largest."""
    recipe = study.recipes[name]
    seconds = [ledger.seconds(supernet_name(name, seed), recipe.batch_size) for seed in study.seeds]
    gaps = scratch - inherited
    return [
        as_row(f"{name}_tau", [kendall(row, scratch) for row in inherited], "tau-b"),
        as_row(f"{name}_spearman", [float(spearmanr(row, scratch).statistic) for row in inherited], "rho"),
        as_row(f"{name}_inherited_accuracy", inherited.mean(axis=1), "accuracy"),
        as_row(f"{name}_gap_largest", gaps[:, -1], "accuracy", worst=gaps[:, -1].max()),
        as_row(f"{name}_gap_smallest", gaps[:, 0], "accuracy", worst=gaps[:, 0].max()),
        as_row(f"{name}_training", seconds, "s", worst=max(seconds)),
        as_row(f"{name}_compute", [training_macs(recipe, study.space, study.n_train) / 1e12], "T MACs"),
        as_row(f"{name}_epochs", [recipe.epochs], "epochs"),
    ]


def kendall(first: np.ndarray, second: np.ndarray) -> float:
    return float(kendalltau(first, second, variant="b").statistic)


def ceiling(scratch: np.ndarray, differences: np.ndarray) -> list[float]:
    """Tau-b of `scratch` with itself plus the noise of one training, a thousand times.

    Two trainings differ by `differences`; of normal noise of standard deviation s the mean of that is 2 s / sqrt(pi).
    """
    deviation = differences.mean() * np.sqrt(np.pi) / 2
    rng = np.random.default_rng(0)
    return [kendall(scratch, scratch + rng.normal(0.0, deviation, len(scratch))) for _ in range(1000)]


def scratch_seconds(study: Study, ledger: Ledger) -> float:
    names = [scratch_name(SCRATCH_SEED, index) for index in range(study.n_subnets)]
    return sum(ledger.seconds(name, study.scratch.batch_size) for name in names)


def as_row(
    metric: str, values: Sequence[float] | np.ndarray, unit: str, *, worst: float | None = None, n: int | None = None
) -> Row:
    """Median and range of `values`, and the least of them unless something else is the worst."""
    figures = {
        "ours": np.median(values), "spread": np.ptp(values), "worst": np.min(values) if worst is None else worst
    }  # fmt: skip
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    listed = {"values": [float(f"{value:.4g}") for value in values]} if len(values) <= 3 else {}
    return {"metric": metric, "published": None, **rounded, "n": n or len(values), "unit": unit, **listed}


# ---- printing ---------------------------------------------------------------------------------------------------


def print_plan(study: Study, folder: Path) -> None:
    print(f"results so far and checkpoints in {folder}")
    for name, recipe in study.recipes.items():
        compute = training_macs(recipe, study.space, study.n_train)
        steps = n_steps(recipe, study.n_train)
        print(f"{name}: {recipe.epochs:.2f} epochs, {steps} steps, {compute / 1e12:.4g} T MACs")
    smallest, largest = macs_of(study.space, study.space.encode([study.space.smallest, study.space.largest]))
    print(f"{study.n_subnets} subnets of {smallest / 1e6:.3g} to {largest / 1e6:.3g} M MACs", flush=True)


def print_report(result: dict[str, Any]) -> None:
    print(f"\n{result['name']}: {result['machine']}; {result['versions']}; {result['wall_s']:.0f} s in this process")
    print(f"{'M MACs':>8}{'scratch':>9}{'again':>9}{'sandwich':>28}{'progressive shrinking':>28}")
    for subnet in result["subnets"]:
        again = "" if subnet["scratch_again"] is None else f"{subnet['scratch_again']:.4f}"
        seeds = "".join(
            f"{' '.join(f'{accuracy:.4f}' for accuracy in subnet[name]):>28}"
            for name in ("sandwich", "progressive_shrinking")
        )
        print(f"{subnet['macs'] / 1e6:>8.3f}{subnet['scratch']:>9.4f}{again:>9}{seeds}")
    print(f"\n{'':46}{'median':>10}{'range':>10}{'worst':>10}{'n':>6}  each")
    for row in result["rows"]:
        each = " ".join(f"{value:g}" for value in row.get("values", []))
        label = f"{row['metric']} [{row['unit']}]"
        print(f"{label:46}{row['ours']:>10g}{row['spread']:>10g}{row['worst']:>10g}{row['n']:>6}  {each}")
    for row in result["rows"]:
        if row["metric"].endswith("_tau"):
            verdict = "reached" if row["ours"] >= TARGET_TAU else "not reached"
            print(f"{row['metric']} of at least {TARGET_TAU}: {verdict} (median {row['ours']:g})")


if __name__ == "__main__":
    main()
