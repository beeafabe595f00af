"""`hanax reproduce joint-vs-sequential`: architecture and number formats searched together, or one after the other.

Three searches of the same supernet, each with the same number of true evaluations by the same searcher:

* ``joint``: architecture and policy are one genotype, from coarse policies to fine ones.
* ``sequential``: half of the evaluations search architectures, by their accuracy in float32 and their latency in int8;
  the other half search policies for the architectures on the front that was found.
* ``int8``: architectures alone, all in int8.

An accuracy is that of a subnet of a trained quantized-for-all supernet on validation images. Every one is kept in the
cache folder, so that an interrupted reproduction goes on, and ends as it would have.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hanax._files import cache_folder, locked
from hanax.devices import BitFusion, BitFusionTable, code_costs, kernel_precisions, operator_bits
from hanax.experiments._accuracies import AccuracyLedger
from hanax.experiments._quantized_supernet import CIFAR10, quantized_supernet
from hanax.experiments._reproduction import Reproduction, Row
from hanax.search_spaces import (
    INT8,
    Operator,
    Precision,
    SearchSpace,
    architecture_columns,
    float_space,
    fold_precise_blocks,
    format_bits,
    format_options,
    precision_columns,
    unique_rows,
    with_precision,
)
from hanax.searchers import hypervolume, non_dominated

if TYPE_CHECKING:
    from hanax.supernet import Evaluator, Params, Split

Codes = NDArray[np.int32]
Floats = NDArray[np.float64]
Say = Callable[[str], None]

NAME = "joint-vs-sequential"
TABLE_FILE = Path("apq") / "BitFusion_new.b1.dict"
METHODS = ("joint", "sequential", "int8")

N_SEEDS = 5
EVALUATIONS, QUICK_EVALUATIONS = 200, 40
N_CALIBRATION, N_VALIDATION = 500, 2000
ROUND = 10
"""Networks evaluated between two fits of the searcher's predictors."""
CANDIDATES = 4000
"""Networks that these look at for each."""

BUDGETS = (0.1, 0.2, 0.4)
"""Shares of the latency of the largest network in int8, for which the best accuracy is told."""
UNIFORM = ((8, 8), (4, 8), (4, 6))
"""Formats of weights and activations, the same in all blocks, that a search over policies begins with: those of the
smallest and of the largest architecture."""
FIRST_POLICIES = ((8, 8), (6, 8), (4, 8), (6, 6), (8, 6), (4, 6))
"""Likewise of some random architectures: at random per block nearly every network would have blocks of few bits."""
N_PER_POLICY = 3
"""Of these in the joint search; there is one where half as many evaluations are left for policies."""

COARSE_SHARE = 0.6
"""Of the evaluations of the joint search, those in which all blocks have the same formats."""

Accuracies = Callable[[Codes], Floats]
"""Accuracy, a share, of each of some networks."""


@dataclass(frozen=True, eq=False)
class Task:
    """What all searches share.

    Attributes:
        space: The quantized space.
        table: Gives latencies.
        accuracies: Of codes of `space`.
        float_accuracies: Of codes of its `float_space`, not quantized.
        held_out: As `accuracies`, on images that no search sees.
        worst_error: Share of images; with the latency of the largest network in int8 the reference point of all
            hypervolumes.
    """

    space: SearchSpace
    table: BitFusionTable
    accuracies: Accuracies
    float_accuracies: Accuracies
    held_out: Accuracies
    worst_error: float

    @property
    def reference(self) -> Floats:
        """Error, as a share, and latency in ms from which hypervolumes count; the latency of the largest in int8."""
        plain = float_space(self.space)
        return np.array([self.worst_error, self.latency_ms(self.in_int8(plain.encode([plain.largest])))[0]])

    def in_int8(self, codes: Codes) -> Codes:
        """Codes of architectures as those of networks in int8."""
        return with_precision(self.space, codes, INT8, INT8)

    def latency_ms(self, codes: Codes) -> Floats:
        """On BitFusion, in each network's own formats."""
        return code_costs(BitFusion(self.table, None), self.space, codes)[:, 0]

    def losses(self, codes: Codes) -> Floats:
        """Error and latency of quantized networks, shape (n, 2); these are true evaluations."""
        return np.column_stack([1.0 - self.accuracies(codes), self.latency_ms(codes)])


@dataclass(frozen=True, eq=False)
class Genotype:
    """What a search decides.

    Attributes:
        counts: Options of each decision, all ordered.
        canonical: Equal for equal networks.
        networks: The networks, in the quantized space, that the searcher's knowledge of costs is about.
        knows: Further columns for the searcher's predictors, of the genotypes.
    """

    counts: tuple[int, ...]
    canonical: Callable[[Codes], Codes]
    networks: Callable[[Codes], Codes]
    knows: Callable[[Codes], Floats] | None = None


def search(
    task: Task,
    genotype: Genotype,
    losses: Callable[[Codes], Floats],
    starts: Codes,
    n: int,
    seed: int,
    told: tuple[Codes, Floats] | None = None,
) -> tuple[Codes, Floats]:
    """`n` different genotypes and their losses, shapes (n, d) and (n, 2), in the order of their evaluation.

    Linas, which begins with `starts`, and whose predictors see `known_columns` beside the genotype.

    Args:
        told: Genotypes that were evaluated before, and their losses; the first of the `n`.
    """
    import optuna

    from hanax.searchers import LinasSampler

    def features(codes: Codes) -> Floats:
        columns = known_columns(task, genotype.networks(codes))
        return columns if genotype.knows is None else np.column_stack([columns, genotype.knows(codes)])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parameters = {
        str(number): optuna.distributions.IntDistribution(0, count - 1) for number, count in enumerate(genotype.counts)
    }
    sampler = LinasSampler(
        seed=seed,
        batch=ROUND,
        candidates=CANDIDATES,
        reference=task.reference.tolist(),
        search_space=parameters,
        canonical_codes=genotype.canonical,
        features=features,
    )
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for row in starts[:n]:
        study.enqueue_trial(dict(zip(parameters, row.tolist(), strict=True)))
    codes, found = told or (np.zeros((0, len(parameters)), dtype=np.int32), np.zeros((0, 2)))
    for row, value in zip(codes.tolist(), found.tolist(), strict=True):
        chosen = dict(zip(parameters, row, strict=True))
        study.add_trial(optuna.create_trial(params=chosen, distributions=dict(parameters), values=value))
    while len(codes) < n:
        trials = [study.ask(dict(parameters)) for _ in range(min(ROUND, n - len(codes)))]
        rows = np.array([[trial.params[name] for name in parameters] for trial in trials], dtype=np.int32)
        rows = genotype.canonical(rows)
        values = losses(rows)
        for trial, value in zip(trials, values.tolist(), strict=True):
            study.tell(trial, value)
        codes, found = np.concatenate([codes, rows]), np.concatenate([found, values])
    assert len(np.unique(codes, axis=0)) == n, "no network is evaluated twice"
    return codes, found


def known_columns(task: Task, codes: Codes) -> Floats:
    """What is known of networks without an evaluation, shape (n, 6).

    Logarithms of latency, MACs, bit operations and bits of kernels, and the mean over blocks of the power of the
    rounding error in weights and in activations, which a bit less makes 4 times as large.
    """
    model = BitFusion(task.table, None)

    def summary(ops: list[Operator], precision: Precision | None) -> list[float]:
        weight_bits, activation_bits = (format_bits(code) for code in precision or (INT8, INT8))
        macs = float(sum(op.macs for op in ops))
        in_bits = [(op.macs, *operator_bits(op, precision), math.prod(op.kernel_shape)) for op in ops if op.is_weighted]
        bit_operations = float(sum(n * weights * activations for n, weights, activations, _ in in_bits))
        kernel_bits = float(sum(n * weights for _, weights, _, n in in_bits))
        error = [4.0 ** (4 - weight_bits), 4.0 ** (4 - activation_bits)]
        return [model.costs_under(ops, precision)[0], macs, bit_operations, kernel_bits, *error, 1.0]

    sums = fold_precise_blocks(task.space, codes, summary, 7)
    return np.column_stack([np.log(sums[:, :4]), sums[:, 4:6] / sums[:, [6]]])


def search_jointly(task: Task, n: int, seed: int) -> tuple[Codes, Floats]:
    """Networks of the quantized space and their losses.

    From coarse to fine: the first `COARSE_SHARE` of the evaluations have the same formats in all blocks, so that two
    decisions stand for all about formats; what they taught begins the search of formats for each block.
    """
    space, plain = task.space, float_space(task.space)
    offered = format_options(space)
    n_decisions = len(plain.decisions)

    def networks(codes: Codes) -> Codes:
        made = np.zeros((len(codes), len(space.decisions)), dtype=np.int32)
        for pair in np.unique(codes[:, n_decisions:], axis=0):
            rows = np.flatnonzero((codes[:, n_decisions:] == pair).all(axis=1))
            formats = [options[option] for options, option in zip(offered, pair, strict=True)]
            made[rows] = with_precision(space, codes[rows, :n_decisions], *formats)
        return made

    def canonical(codes: Codes) -> Codes:
        return np.column_stack([plain.canonical(codes[:, :n_decisions]), codes[:, n_decisions:]]).astype(np.int32)

    def with_formats(archs: Codes, policies: Sequence[tuple[int, int]]) -> Codes:
        chosen = [[options.index(code) for options, code in zip(offered, pair, strict=True)] for pair in policies]
        return np.column_stack([archs, np.reshape(chosen, (len(archs), len(offered)))]).astype(np.int32)

    counts = (*plain.option_counts.tolist(), *map(len, offered))
    genotype = Genotype(counts, canonical, networks, lambda codes: format_shares(space, networks(codes)))
    drawn = plain.sample(np.random.default_rng([seed, 1]), N_PER_POLICY * len(FIRST_POLICIES))
    ends = np.repeat(_ends(plain), len(UNIFORM), axis=0)
    starts = np.concatenate([with_formats(ends, UNIFORM * 2), with_formats(drawn, FIRST_POLICIES * N_PER_POLICY)])
    starts = canonical(starts)[unique_rows(canonical(starts))]
    coarse, losses = search(
        task, genotype, lambda rows: task.losses(networks(rows)), starts, round(COARSE_SHARE * n), seed
    )

    counts = tuple(space.option_counts.tolist())
    genotype = Genotype(counts, space.canonical, lambda codes: codes, lambda codes: format_shares(space, codes))
    none = np.zeros((0, len(counts)), dtype=np.int32)
    return search(task, genotype, task.losses, none, n, seed, (networks(coarse), losses))


def search_int8(task: Task, n: int, seed: int) -> tuple[Codes, Floats]:
    """Networks in int8 and their losses."""
    plain = float_space(task.space)
    genotype = Genotype(tuple(plain.option_counts.tolist()), plain.canonical, task.in_int8)
    codes, losses = search(task, genotype, lambda rows: task.losses(task.in_int8(rows)), _ends(plain), n, seed)
    return task.in_int8(codes), losses


def search_sequentially(task: Task, n: int, seed: int) -> tuple[Codes, Floats]:
    """The quantized networks of the second half, and their losses; evaluations in float32 count among the `n`."""
    plain = float_space(task.space)
    genotype = Genotype(tuple(plain.option_counts.tolist()), plain.canonical, task.in_int8)

    def float_losses(codes: Codes) -> Floats:
        return np.column_stack([1.0 - task.float_accuracies(codes), task.latency_ms(task.in_int8(codes))])

    codes, losses = search(task, genotype, float_losses, _ends(plain), n // 2, seed)
    on_front = np.flatnonzero(non_dominated(losses))
    on_front = on_front[np.argsort(losses[on_front, 1], kind="stable")]
    return allocate(task, codes[on_front], 1.0 - losses[on_front, 0], n - n // 2, seed)


def allocate(task: Task, archs: Codes, float_accuracy: Floats, n: int, seed: int) -> tuple[Codes, Floats]:
    """Networks of `archs`, in the order of their latency, with policies that a search finds, and their losses.

    The searcher also knows the accuracy of each architecture in float32, and as the joint one the formats' shares.
    """
    space, columns = task.space, precision_columns(task.space)

    def networks(codes: Codes) -> Codes:
        made = np.zeros((len(codes), len(space.decisions)), dtype=np.int32)
        made[:, architecture_columns(space)] = archs[codes[:, 0]]
        made[:, columns] = codes[:, 1:]
        return space.canonical(made)

    def canonical(codes: Codes) -> Codes:
        return np.column_stack([codes[:, 0], networks(codes)[:, columns]]).astype(np.int32)

    genotype = Genotype(
        (len(archs), *space.option_counts[columns].tolist()),
        canonical,
        networks,
        lambda codes: np.column_stack([float_accuracy[codes[:, [0]]], format_shares(space, networks(codes))]),
    )
    ends = sorted({0, len(archs) - 1})
    drawn = np.random.default_rng([seed, 2]).integers(len(archs), size=len(FIRST_POLICIES))
    each = [with_precision(space, archs[[i]], *formats) for i, formats in zip(drawn, FIRST_POLICIES, strict=True)]
    first = [_uniformly_quantized(space, archs[ends]), *each]
    starts = np.column_stack([[*np.tile(ends, len(UNIFORM)), *drawn], np.concatenate(first)[:, columns]])
    starts = canonical(starts.astype(np.int32))
    starts = starts[unique_rows(starts)]
    codes, losses = search(task, genotype, lambda rows: task.losses(networks(rows)), starts, n, seed)
    return networks(codes), losses


def format_shares(space: SearchSpace, codes: Codes) -> Floats:
    """Which share of a network's blocks has each format of weights, and each of activations, shape (n, f)."""
    active, shares = space.active(codes), []
    for kind, options in zip(("weight_bits", "activation_bits"), format_options(space), strict=True):
        columns = [column for column in precision_columns(space) if space.decisions[column].name.endswith(kind)]
        taken = [((codes[:, columns] == option) & active[:, columns]).sum(axis=1) for option in range(len(options))]
        shares += [count / np.maximum(active[:, columns].sum(axis=1), 1) for count in taken]
    return np.column_stack(shares)


def _ends(space: SearchSpace) -> Codes:
    return space.canonical(space.encode([space.smallest, space.largest]))


def _uniformly_quantized(space: SearchSpace, archs: Codes) -> Codes:
    """`archs` in each of the `UNIFORM` policies, one policy after the other."""
    return np.concatenate([with_precision(space, archs, *formats) for formats in UNIFORM])


SEARCHES = {"joint": search_jointly, "sequential": search_sequentially, "int8": search_int8}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one search found.

    Attributes:
        front: The networks that no other one that it evaluated dominates.
        losses: Theirs, error and latency, shape (f, 2).
        held_out: The same with the error on images that the search did not see.
    """

    front: Codes
    losses: Floats
    held_out: Floats

    @classmethod
    def of(cls, task: Task, codes: Codes, losses: Floats) -> Outcome:
        """The outcome of a search that evaluated `codes`."""
        chosen = np.flatnonzero(non_dominated(losses))
        front, of_front = codes[chosen], losses[chosen]
        return cls(front, of_front, np.column_stack([1.0 - task.held_out(front), of_front[:, 1]]))


def compare(task: Task, n: int, n_seeds: int, say: Say) -> dict[str, list[Outcome]]:
    """Outcomes of each method, one per seed."""
    outcomes: dict[str, list[Outcome]] = {method: [] for method in METHODS}
    for seed in range(n_seeds):
        for method in METHODS:
            outcomes[method].append(Outcome.of(task, *SEARCHES[method](task, n, seed)))
        volumes = {method: _volume(of[-1].losses, task.reference) for method, of in outcomes.items()}
        say(f"seed {seed}: " + ", ".join(f"{method} {volume:.4f}" for method, volume in volumes.items()))
    return outcomes


def _volume(losses: Floats, reference: Floats) -> float:
    """Hypervolume as a share of the box between no error in no time and the reference point."""
    return hypervolume(losses, reference) / float(np.prod(reference))


def comparison_rows(task: Task, outcomes: dict[str, list[Outcome]], n: int) -> list[Row]:
    """Wins of the joint search, then the hypervolumes and best accuracies of each method, then what latencies are."""
    reference, n_seeds = task.reference, len(outcomes["joint"])
    volumes = {
        (method, images): np.array([_volume(getattr(each, field), reference) for each in of])
        for method, of in outcomes.items()
        for images, field in (("", "losses"), ("_held_out", "held_out"))
    }
    rows = []
    for images in ("", "_held_out"):
        for other in ("sequential", "int8"):
            wins = int((volumes["joint", images] > volumes[other, images]).sum())
            over = "" if other == "sequential" else f"_over_{other}"
            rows.append(
                Row(f"wins{over}_of_{n_seeds}{images}", None, wins, None, None, n_seeds, f"seeds, against {other}")
            )
    for (method, images), values in volumes.items():
        rows.append(_row(f"hv_{method}{images}", values, n, "share of the box up to the reference point"))
    for share in BUDGETS:
        for method, of in outcomes.items():
            best = np.array([_best_accuracy(each.losses, share * reference[1]) for each in of])
            rows.append(_row(f"accuracy_at_{share * 100:.0f}_{method}", 100.0 * best, n, "%, search images"))
    rows += [
        Row(
            "reference_error",
            None,
            100.0 * reference[0],
            None,
            None,
            None,
            "%, smallest network in the narrowest formats",
        ),
        Row("reference_latency", None, float(reference[1]), None, None, None, "ms, largest network in int8"),
    ]
    return rows + _origin_rows(task, outcomes)


def _row(metric: str, values: Floats, n: int, unit: str) -> Row:
    """Mean, standard deviation and worst over seeds."""
    return Row(metric, None, float(values.mean()), float(values.std()), float(values.min()), n, unit)


def _best_accuracy(losses: Floats, budget_ms: float) -> float:
    """Best accuracy of a network within the budget; 0 if there is none."""
    within = losses[losses[:, 1] <= budget_ms, 0]
    return float(1.0 - within.min()) if len(within) else 0.0


def _origin_rows(task: Task, outcomes: dict[str, list[Outcome]]) -> list[Row]:
    """Which shares of the MACs of all found networks have latencies that were looked up, or estimated."""
    fronts = np.unique(np.concatenate([each.front for of in outcomes.values() for each in of]), axis=0)
    costs = [
        task.table.graph_cost(task.space.graph(arch), kernel_precisions(task.space, arch))
        for arch in task.space.decode(fronts)
    ]
    rows = []
    for origin in ("exact", "interpolated", "extrapolated"):
        shares = np.array([getattr(cost, f"{origin}_share") for cost in costs])
        unit = "share of the MACs of the networks found"
        rows.append(Row(f"latency_{origin}", None, float(shares.mean()), None, None, len(shares), unit))
    return rows


# ---- true accuracies -----------------------------------------------------------------------------------------------


class KeptAccuracies:
    """Accuracies by an evaluator, each of which is found out once and kept in a ledger."""

    def __init__(self, evaluator: Evaluator, name: str, folder: Path) -> None:
        from hanax.supernet import supernet_fingerprint

        self._evaluator = evaluator
        self._ledger = AccuracyLedger.open(
            folder / f"{name}.ledger.jsonl",
            {
                "space_fingerprint": evaluator.space.fingerprint,
                "supernet_fingerprint": supernet_fingerprint(evaluator.params),
                "n_calibration": evaluator.n_calibration,
                "n_validation": evaluator.n_validation,
                "images": name,
            },
        )
        self._known = {arch: float(correct.mean()) for arch, correct in self._ledger.correct().items()}

    def __call__(self, codes: Codes) -> Floats:
        """Accuracy of each network, a share."""
        archs = self._evaluator.space.decode(codes)
        missing = [arch for arch in dict.fromkeys(archs) if arch not in self._known]
        before = time.perf_counter()

        def keep(arch: Any, first: int, correct: NDArray[np.bool_]) -> None:
            nonlocal before
            now = time.perf_counter()
            self._ledger.record(arch, first, correct, now - before)
            self._known[arch], before = float(correct.mean()), now

        if missing:
            self._evaluator.correct(missing, keep)
        return np.array([self._known[arch] for arch in archs])

    @property
    def seconds(self) -> list[float]:
        """Time that each accuracy in the ledger took."""
        return list(self._ledger.seconds().values())


def make_task(space: SearchSpace, params: Params, split: Split, table: BitFusionTable, say: Say) -> Task:
    """The task of searching the quantized `space`, whose supernet has the weights `params`.

    Searches see the first `N_VALIDATION` validation images; all others, in parts of as many, are held out. Errors count
    up to that of the smallest network in the narrowest formats.
    """
    from hanax.supernet import Evaluator, supernet_fingerprint

    folder = cache_folder() / NAME / supernet_fingerprint(params)

    def kept(of: SearchSpace, name: str, start: int) -> KeptAccuracies:
        part = slice(start, start + N_VALIDATION)
        images = dataclasses.replace(
            split, x_validation=split.x_validation[part], y_validation=split.y_validation[part]
        )
        evaluator = Evaluator(of, params, images, n_calibration=N_CALIBRATION, n_validation=N_VALIDATION)
        return KeptAccuracies(evaluator, name, folder)

    n_parts = len(split.x_validation) // N_VALIDATION
    others = [kept(space, f"held-out{number}", number * N_VALIDATION) for number in range(1, n_parts)]

    def held_out(codes: Codes) -> Floats:
        mean: Floats = np.mean([accuracies(codes) for accuracies in others], axis=0)
        return mean

    say(f"accuracies are kept in {folder}")
    accuracies, plain = kept(space, "quantized", 0), float_space(space)
    worst_error = 1.0 - float(accuracies(space.canonical(space.encode([space.smallest])))[0])
    return Task(space, table, accuracies, kept(plain, "float", 0), held_out, worst_error)


def reproduce_joint(data: Path, quick: bool, say: Say) -> Reproduction:
    """Joint search beside sequential search and search in int8, on a quantized supernet of a subset of CIFAR-10.

    Raises:
        DataError, FileNotFoundError: The public files are not in `data`.
        InUseError: Another process is at it, with the same cache folder.
    """
    started = time.perf_counter()
    table = BitFusionTable.read(data / TABLE_FILE)
    supernet = quantized_supernet(CIFAR10, data, say)
    with locked(cache_folder() / NAME):
        task = make_task(supernet.space, supernet.params, supernet.split, table, say)
        n, n_seeds = (QUICK_EVALUATIONS, 2) if quick else (EVALUATIONS, N_SEEDS)
        outcomes = compare(task, n, n_seeds, say)
    title = (
        f"Accuracy on {N_VALIDATION} validation images x BitFusion latency, {n} true evaluations per search, {n_seeds} "
        "seeds: search of architecture and policy together, of architectures in float32 and then of policies, and in "
        "int8; the file has layers of other sizes, so that latencies are estimated by its fit where the last rows say"
    )
    return Reproduction(NAME, title, comparison_rows(task, outcomes, n), time.perf_counter() - started)
