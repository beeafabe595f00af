"""The stages of a run: data -> supernet -> accuracies -> latencies -> search -> confirm -> ship -> report.

With `quantization` the supernet is trained on in number formats, and these are searched beside the architecture. What
is timed, confirmed and shipped are integer models (``_quantized_products.py``).

Each stage reads the results of those before it from their folders and writes its own, so any of them can be killed and
started again. What a stage computes is decided by its `Stage.settings` and by the keys of the stages it needs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hanax._files import read_lines, write_atomically
from hanax.experiments._accuracies import collect_accuracy
from hanax.experiments._certificate import certified_search
from hanax.experiments._config import BITFUSION_COSTS, DeviceConfig, Experiment
from hanax.experiments._confirmed import breaks, confirmed_front
from hanax.experiments._export import latency_model_builder
from hanax.experiments._fitting import (
    COVERAGE,
    LATENCY_TOLERANCE,
    costs_of,
    draw_archs,
    formats_costs,
    latency_predictor_features,
    peak_activation_bytes,
    timed_space,
    training_data,
)
from hanax.experiments._folder import QUANTIZED_SUPERNET, Stage, stage_folder
from hanax.experiments._frames import read_frame, write_frame
from hanax.experiments._products import FloatProducts, Products, measured_latencies
from hanax.experiments._progress import Reporter
from hanax.experiments._quantized_products import IntegerProducts
from hanax.predictors import (
    RidgePredictor,
    load_predictor,
    make_card,
    predictor_features,
    save_predictor,
)
from hanax.search_spaces import Arch, SearchSpace, graph_features, precision_columns
from hanax.searchers import Problem, spread_along_front

if TYPE_CHECKING:
    from hanax.devices import DeviceSpec, LatencyTable, Ledger
    from hanax.supernet import Evaluator, ImageDataset, Parallel, Params, Recipe, Split


class Pipeline:
    """The stages of one experiment in one folder, with what they share.

    Args:
        experiment: What to do.
        path: The run's folder.
        dataset: The images.
        reporter: Shows progress.
        parallel: The processes that train the supernet together; this one alone, if None.
    """

    def __init__(
        self,
        experiment: Experiment,
        path: Path,
        dataset: ImageDataset,
        reporter: Reporter,
        *,
        parallel: Parallel | None = None,
    ) -> None:
        self.experiment = experiment
        self.path = path
        self.dataset = dataset
        self.reporter = reporter
        self.parallel = parallel
        self.space: SearchSpace = experiment.build_space(dataset)
        self.searched_space: SearchSpace = experiment.searched_space(self.space)
        self.timed_space: SearchSpace = timed_space(self.searched_space)

    # ---- what the stages share -------------------------------------------------------------------------------

    @cached_property
    def split(self) -> Split:
        """Training and validation images."""
        from hanax.supernet import split_validation

        fraction = self.experiment.data.validation_fraction
        return split_validation(self.dataset, fraction=fraction, seed=self.experiment.seed)

    @cached_property
    def ledger(self) -> Ledger:
        """Counts every latency asked of a device."""
        from hanax.devices import Ledger

        return Ledger(self.path / "ledger.jsonl")

    @cached_property
    def params(self) -> Params:
        """The trained supernet's weights."""
        from hanax.supernet import load_supernet

        return load_supernet(self.space, self.folder("supernet"))

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores subnets of the trained supernet."""
        from hanax.supernet import Evaluator

        n_calibration, n_validation = self.accuracy_images
        return Evaluator(self.space, self.params, self.split, n_calibration=n_calibration, n_validation=n_validation)

    @cached_property
    def searched_evaluator(self) -> Evaluator:
        """Scores networks of the searched space: the `evaluator`, or one that computes in their number formats."""
        from hanax.supernet import Evaluator, load_supernet, with_steps

        quantization = self.experiment.quantization
        if quantization is None:
            return self.evaluator
        if self.quantized_recipe is None:
            params = with_steps(self.searched_space, self.params)
        else:
            params = load_supernet(self.searched_space, self.folder(QUANTIZED_SUPERNET))
        n_calibration, n_validation = self.accuracy_images
        return Evaluator(
            self.searched_space,
            params,
            self.split,
            n_calibration=n_calibration,
            n_validation=n_validation,
            calibration=quantization.calibration,
        )

    @cached_property
    def quantized_recipe(self) -> Recipe | None:
        """How the supernet is trained on in number formats; None, if it is not."""
        experiment = self.experiment
        quantization = experiment.quantization
        return None if quantization is None else quantization.recipe(experiment.supernet, experiment.seed)

    @cached_property
    def asks_bitfusion(self) -> bool:
        """Whether costs on BitFusion are searched."""
        return any(cost in BITFUSION_COSTS for cost in self.experiment.search.costs)

    @cached_property
    def accuracy_images(self) -> tuple[int, int]:
        """Numbers of calibration and validation images that subnets are scored on."""
        config, split = self.experiment.accuracy, self.split
        return min(config.n_calibration, len(split.x_train)), min(config.n_validation, len(split.x_validation))

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its results."""
        return stage_folder(self.path, stage)

    def device_folder(self, device: DeviceConfig) -> Path:
        """Where what is shipped for a device lies."""
        return self.path / "devices" / device.label

    # ---- the stages ------------------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """All stages, in the order of execution."""
        experiment = self.experiment
        settings = experiment.supernet.model_dump(mode="json", exclude={"checkpoint_seconds", "watch_epochs"})
        # What "auto" stands for depends on the machine; a training keeps its own answer.
        recipe = {name: value for name, value in settings.items() if value != "auto"}
        data = {
            "fingerprint": self.dataset.fingerprint,
            "validation_fraction": experiment.data.validation_fraction,
            "seed": experiment.seed,
        }
        accuracy = experiment.accuracy.model_dump(mode="json")
        stages = [
            Stage("data", data, (), self.describe_data),
            Stage("supernet", {"space": self.space.fingerprint, "recipe": recipe}, ("data",), self.train),
        ]
        quantization = experiment.quantization
        if quantization is not None:
            accuracy |= {"space": self.searched_space.fingerprint, "calibration": quantization.calibration}
        if self.quantized_recipe is not None:
            trained = dataclasses.asdict(self.quantized_recipe)
            trained = {name: value for name, value in trained.items() if name in recipe} | {
                "space": self.searched_space.fingerprint
            }
            stages.append(Stage(QUANTIZED_SUPERNET, trained, ("supernet",), self.train_quantized))
        stages += [
            Stage("accuracy", accuracy, (stages[-1].name,), self.collect_accuracy),
            Stage("accuracy-predictor", {}, ("accuracy",), self.fit_accuracy),
        ]
        for device in experiment.devices:
            stages += self.device_stages(device)
        needed = tuple(stage.name for stage in stages)
        stages.append(Stage("report", {"name": experiment.name}, needed, self.write_report))
        return stages

    def device_stages(self, device: DeviceConfig) -> list[Stage]:
        """The stages for one device."""
        experiment = self.experiment
        name = device.label
        # Latencies depend on the space and the device, not on trained weights, so not on the supernet stage either.
        measured = {
            "space": self.timed_space.fingerprint,
            "seed": experiment.seed,
            # The label says where the device is.
            **device.model_dump(mode="json", exclude={"max_latency_ms", "max_latency_probability", "place"}),
        }
        if device.table is not None:
            measured["table_sha256"] = _sha256(Path(device.table))
        searched = experiment.search.model_dump(mode="json", exclude={"candidates"}) | {
            "max_latency_ms": device.max_latency_ms, "max_latency_probability": device.max_latency_probability,
            "seed": experiment.seed,
        }  # fmt: skip

        def bind(work: Callable[[DeviceConfig, Path], None]) -> Callable[[Path], None]:
            return lambda folder: work(device, folder)

        confirm = {"candidates": experiment.search.candidates, "target_relative_ci": device.target_relative_ci}
        return [
            Stage(f"latency/{name}", measured, (), bind(self.collect_latency)),
            Stage(f"latency-predictor/{name}", {}, (f"latency/{name}",), bind(self.fit_latency)),
            Stage(
                f"search/{name}",
                searched,
                ("accuracy-predictor", f"latency-predictor/{name}"),
                bind(self.search),
            ),
            Stage(f"confirm/{name}", confirm, (f"search/{name}",), bind(self.confirm)),
            Stage(f"ship/{name}", {}, (f"confirm/{name}",), bind(self.ship)),
        ]

    def describe_data(self, folder: Path) -> None:
        """Record what the images are."""
        dataset, split = self.dataset, self.split
        facts = {
            "name": dataset.name,
            "n_train": len(split.x_train),
            "n_validation": len(split.x_validation),
            "n_test": len(dataset.x_test),
            "n_classes": dataset.n_classes,
            "image_size": list(dataset.image_size),
            "channels": dataset.channels,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "notes": dataset.notes,
            "mean": [float(value) for value in split.mean],
            "std": [float(value) for value in split.std],
        }
        _write_json(folder / "data.json", facts)

    def train(self, folder: Path) -> None:
        """Train the supernet, from its last checkpoint if there is one; every process of several calls this."""
        from hanax.supernet import train_supernet

        if self.parallel is not None:
            self.parallel.barrier("the writer has prepared the stage's folder")
        self.params = train_supernet(
            self.space,
            self.split,
            self.experiment.supernet.recipe(self.experiment.seed),
            folder,
            fingerprint=self.dataset.fingerprint,
            watch=self.accuracy_images,
            parallel=self.parallel,
            on_progress=self.reporter.bar("steps"),
            on_compiled=self.reporter.bar("compiling blocks"),
        )

    def train_quantized(self, folder: Path) -> None:
        """Train the supernet on, from its float32 weights, in random number formats; resumed as `train` is."""
        from hanax.supernet import train_quantized

        assert self.quantized_recipe is not None, "without a recipe there is no such stage"
        train_quantized(
            self.searched_space,
            self.params,
            self.split,
            self.quantized_recipe,
            folder,
            fingerprint=self.dataset.fingerprint,
            watch=self.accuracy_images,
            on_progress=self.reporter.bar("steps"),
            on_compiled=self.reporter.bar("compiling blocks"),
        )

    def collect_accuracy(self, folder: Path) -> None:
        """Score subnets drawn at random, each with its own calibration; those that a killed call scored are kept."""
        archs = draw_archs(self.searched_space, self.experiment.accuracy.archs, [self.experiment.seed, 10])
        self.accuracy_table(archs, folder / "accuracy.parquet")

    def accuracy_table(self, archs: Sequence[Arch], path: Path, *, race: bool = False) -> pd.DataFrame:
        """Accuracies of `archs`, a table with its ledger at `path`; see `_accuracies.collect_accuracy`."""
        return collect_accuracy(
            self.searched_evaluator,
            archs,
            path,
            data_fingerprint=self.dataset.fingerprint,
            race=race,
            on_compiled=self.reporter.bar("compiling blocks"),
            on_progress=self.reporter.bar("subnets scored"),
        )

    def fit_accuracy(self, folder: Path) -> None:
        """Learn accuracy from the scored subnets."""
        frame, _ = read_frame(self.folder("accuracy") / "accuracy.parquet", self.searched_space)
        self._fit(RidgePredictor(), self.searched_space, frame, "accuracy", "", folder)

    def collect_latency(self, device: DeviceConfig, folder: Path) -> None:
        """Measure networks with random weights (latency does not depend on them), or take the table that was given."""
        from hanax.devices import LatencyTable, collect_latency, start_agent_at

        if device.table is not None:
            LatencyTable.read(device.table).for_space(self.timed_space).write(folder / "table.parquet")
            return
        spec = device.spec()
        collect_latency(
            self.timed_space,
            draw_archs(self.timed_space, device.archs, [self.experiment.seed, 11]),
            spec,
            latency_model_builder(self.timed_space, spec.model_format, spec.batch, self.experiment.seed),
            folder / "table.parquet",
            self.ledger,
            method=_method(device),
            start_agent=start_agent_at(device.find_place()),
            on_progress=self.reporter.bar("networks measured"),
        )

    def fit_latency(self, device: DeviceConfig, folder: Path) -> None:
        """Learn latency from the measured networks."""
        frame = self.latency_table(device).frame
        # Latency itself, not its logarithm: it adds up over operators, as the features do.
        self._fit(RidgePredictor(), self.timed_space, frame[frame["purpose"] == "table"], "latency_ms", "ms", folder)

    def latency_table(self, device: DeviceConfig) -> Any:
        """The table of `device`."""
        from hanax.devices import LatencyTable

        return LatencyTable.read(self.folder(f"latency/{device.label}") / "table.parquet").for_space(self.timed_space)

    def _fit(
        self,
        predictor: RidgePredictor,
        space: SearchSpace,
        frame: pd.DataFrame,
        target: str,
        unit: str,
        folder: Path,
    ) -> None:
        features, costs = training_data(space, frame, target)
        card = make_card(predictor, features, costs, unit=unit, coverage=COVERAGE, seed=self.experiment.seed)
        _write_json(folder / "card.json", dataclasses.asdict(card))
        save_predictor(folder / "predictor.npz", predictor.fit(features, costs), space, target)

    def search(self, device: DeviceConfig, folder: Path) -> None:
        """Search on the predictors, for this device."""
        experiment, space = self.experiment, self.searched_space
        accuracy, latency = self.predictors(device)
        objectives, constraints = experiment.objectives(), experiment.constraints(device)
        peak_memory = "peak_activation_bytes" in experiment.search.objectives
        evaluate = costs_of(
            space,
            accuracy,
            latency,
            peak_memory=peak_memory,
            on_bitfusion=self.asks_bitfusion,
            constraints=constraints,
        )
        problem = Problem(space, objectives, constraints, evaluate)
        searcher = experiment.search.searcher.build(space, len(objectives), experiment.seed)
        result, certificate = certified_search(
            problem,
            searcher,
            experiment.search.evaluations,
            warm_start=experiment.search.warm_start,
            on_progress=self.reporter.bar("networks considered"),
        )
        on_front = np.zeros(len(result.costs), dtype=bool)
        on_front[result.front] = True
        write_frame(folder / "searched.parquet", result.costs.assign(on_front=on_front), space, stopped=result.stopped)
        write_frame(folder / "history.parquet", result.history, space, reference=result.reference)
        _write_json(folder / "certificate.json", dataclasses.asdict(certificate))

    def predictors(self, device: DeviceConfig) -> tuple[Any, Any]:
        """The accuracy and the latency predictor."""
        return (
            load_predictor(self.folder("accuracy-predictor") / "predictor.npz", self.searched_space, "accuracy"),
            load_predictor(
                self.folder(f"latency-predictor/{device.label}") / "predictor.npz", self.timed_space, "latency_ms"
            ),
        )

    def candidates(self, device: DeviceConfig) -> list[Arch]:
        """The largest and smallest network, and well-spread members of the predicted front."""
        space = self.searched_space
        frame, _ = read_frame(self.folder(f"search/{device.label}") / "searched.parquet", space)
        front = frame[frame["on_front"]]
        losses = np.column_stack([part.sign * front[part.name].to_numpy() for part in self.experiment.objectives()])
        chosen = front["arch"].iloc[spread_along_front(losses, min(self.experiment.search.candidates, len(front)))]
        archs = [*self.references(), *map(Arch.parse, chosen)]
        return list(dict.fromkeys(space.decode(space.canonical(space.encode(archs)))))

    def references(self) -> list[Arch]:
        """The largest and the smallest network, both with the most bits on offer."""
        space = self.searched_space
        smallest = list(space.smallest.choices)
        for column in precision_columns(space):
            smallest[column] = space.largest.choices[column]
        return space.decode(space.canonical(space.encode([space.largest, Arch(tuple(smallest))])))

    def confirm(self, device: DeviceConfig, folder: Path) -> None:
        """Score and measure every candidate as it would be shipped: extracted, calibrated, exported."""
        spec = device.spec()
        archs = self.candidates(device)
        products = self.products(device)
        table = self.measure(device, spec, self.searched_space, archs, products.model, folder / "table.parquet")
        correct = self.count_correct_on_validation(products, archs, folder / "correct.jsonl")
        frame = self.predicted_frame(device, archs)
        frame["validation_accuracy"] = [correct[arch] / len(self.split.y_validation) for arch in archs]
        for name, values in measured_latencies(table, archs).items():
            frame[f"measured_{name}"] = values
        for name, values in products.beside(archs, folder).items():
            frame[name] = values
        frame["latency_error"] = frame["predicted_latency_ms"] / frame["measured_latency_ms"] - 1.0
        broken = breaks(frame, self.experiment.constraints(device))
        frame["missed"] = (frame["latency_error"].abs() > LATENCY_TOLERANCE) | broken
        frame["on_front"] = confirmed_front(frame, self.experiment.objectives()) & ~broken
        ends = {str(arch) for arch in self.references()}
        frame["reference"] = frame["arch"].isin(ends) & ~frame["on_front"]
        write_frame(folder / "confirmed.parquet", frame, self.searched_space)

    def measure(
        self,
        device: DeviceConfig,
        spec: DeviceSpec,
        space: SearchSpace,
        archs: Sequence[Arch],
        build_model: Callable[[Arch], bytes],
        path: Path,
    ) -> LatencyTable:
        """Latencies of candidates of `space` on `spec`, which is `device` or what else its place can run."""
        from hanax.devices import collect_latency, start_agent_at

        return collect_latency(
            space,
            archs,
            spec,
            build_model,
            path,
            self.ledger,
            purpose="winner",
            method=_method(device),
            start_agent=start_agent_at(device.find_place()),
            on_progress=self.reporter.bar("candidates measured"),
        )

    def products(self, device: DeviceConfig) -> Products:
        """What the run ships for `device`."""
        if self.experiment.quantization is None:
            return FloatProducts(self.evaluator, device.spec())
        return IntegerProducts(self, device)

    def count_correct_on_validation(self, products: Products, archs: Sequence[Arch], log: Path) -> dict[Arch, int]:
        """How many of all validation images each arch's exported model classifies correctly; resumed from `log`."""
        known = {Arch.parse(line["arch"]): int(line["correct"]) for line in read_lines(log)}
        bar = self.reporter.bar("candidates scored")
        with log.open("a", encoding="utf-8") as stream:
            for index, arch in enumerate(archs):
                if arch not in known:
                    known[arch] = products.count_correct(arch, self.split.x_validation, self.split.y_validation)
                    stream.write(json.dumps({"arch": str(arch), "correct": known[arch]}) + "\n")
                    stream.flush()
                bar(index + 1, len(archs))
        return known

    def predicted_frame(self, device: DeviceConfig, archs: list[Arch]) -> pd.DataFrame:
        """What was predicted for `archs`, with intervals, and their exact sizes."""
        accuracy, latency = self.predictors(device)
        space = self.searched_space
        codes = space.encode(archs)
        names, sums = graph_features(space, codes)
        frame = pd.DataFrame({"arch": [str(arch) for arch in archs]})
        for name in ("macs", "params"):
            frame[name] = sums[:, names.index(name)].astype(np.int64)
        frame["peak_activation_bytes"] = peak_activation_bytes(space, archs)
        if self.experiment.quantization is not None:
            costs = formats_costs(space, codes, on_bitfusion=self.asks_bitfusion)
            for name, values in costs.items():
                frame[name] = values if name in BITFUSION_COSTS else values.astype(np.int64)
        for predictor, features, stem, end in (
            (accuracy, predictor_features(space, codes), "predicted_accuracy", ""),
            (latency, latency_predictor_features(space, codes), "predicted_latency", "_ms"),
        ):
            frame[f"{stem}{end}"] = predictor.predict(features)
            frame[f"{stem}_low{end}"], frame[f"{stem}_high{end}"] = predictor.predict_interval(features, COVERAGE)
        return frame

    def ship(self, device: DeviceConfig, folder: Path) -> None:
        """Write the models of the confirmed front with their cards; touch the test images, for the only time."""
        from hanax.experiments._ship import ship_models

        ship_models(self, device, folder)

    def write_report(self, folder: Path) -> None:
        """Write the report and the figures from the results of all stages."""
        from hanax.experiments._gather import write_outputs

        write_outputs(self.path)


def open_pipeline(experiment: Experiment, path: Path, reporter: Reporter, parallel: Parallel | None = None) -> Pipeline:
    """The pipeline of `experiment` in folder `path` with its images read, in a process that is set up for its work.

    Raises:
        DataError: The images cannot be read.
    """
    from hanax.supernet import keep_compiled_code, keep_freed_memory, load_images

    keep_compiled_code()
    keep_freed_memory()
    dataset = load_images(experiment.data.path, image_size=experiment.data.image_size)
    return Pipeline(experiment, path, dataset, reporter, parallel=parallel)


def _method(device: DeviceConfig) -> Any:
    from hanax.devices import Method

    return Method(target_relative_ci=device.target_relative_ci)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode())
