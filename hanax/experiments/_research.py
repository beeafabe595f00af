"""Searching again on what a run left, or on tables alone: nothing is trained and nothing is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanax.devices import LatencyTable
from hanax.experiments._config import BITFUSION_COSTS, POLICY_COSTS, UNITS, DeviceConfig, Experiment, ExperimentError
from hanax.experiments._fitting import costs_of, timed_space, training_data
from hanax.experiments._folder import stage_folder
from hanax.experiments._frames import read_frame
from hanax.experiments._gather import read_experiment, read_searched_space
from hanax.experiments._progress import Reporter
from hanax.predictors import RidgePredictor, load_predictor
from hanax.search_spaces import SearchSpace, precision_columns
from hanax.searchers import (
    Constraint,
    Costs,
    Objective,
    OptunaSearcher,
    Problem,
    SamplerName,
    Searcher,
    feasible_front,
    search,
)

if TYPE_CHECKING:
    import pandas as pd

Evaluation = Literal["predicted", "supernet"]

DEFAULT_OBJECTIVES = ("accuracy", "latency_ms")

N_PREDICTED, N_REAL = 5000, 300
"""Networks to consider if neither a person nor a run says how many: on predictors, and on the supernet or in a study
that workers share, where each takes a hundred times as long."""


@dataclass(frozen=True)
class Sources:
    """Where costs come from.

    Attributes:
        run: The folder of a run; None: from files alone.
        space: Whose networks; None: those of the run.
        device: Which device of the run; its first one, if None.
        accuracy: An accuracy table (Parquet) or predictor (npz) in place of the run's table.
        latency: A latency table or predictor in place of the run's table.
        evaluation: Whether accuracy is predicted, or each network is scored with the run's supernet.
    """

    run: Path | None = None
    space: SearchSpace | None = None
    device: str | None = None
    accuracy: Path | None = None
    latency: Path | None = None
    evaluation: Evaluation = "predicted"


@dataclass(frozen=True)
class Task:
    """What to search for, and how.

    Attributes:
        problem: Objectives, constraints and costs.
        origin: Where accuracy and latency come from, in words that are the same whenever they are.
        experiment: The run's settings; None without a run.
    """

    problem: Problem
    origin: Mapping[str, str]
    experiment: Experiment | None

    @property
    def seed(self) -> int:
        """The run's seed; 0 without a run."""
        return 0 if self.experiment is None else self.experiment.seed


def make_task(
    sources: Sources,
    *,
    objectives: Sequence[str] = (),
    at_most: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    reporter: Reporter,
) -> Task:
    """Read what a search needs.

    Args:
        objectives: Costs to trade off; those of the run, if none are given.
        at_most: Bounds in place of those of the run, by cost.
        at_least: The same from below.

    Raises:
        ExperimentError: The run has no such device, a bound or an objective names no cost, or there is neither a run
            nor a space with files for both costs.
        FileNotFoundError: A table is not there (yet).
        SpaceMismatchError: A table or predictor belongs to another space; names both fingerprints.
    """
    at_most, at_least = at_most or {}, at_least or {}
    if unknown := [cost for cost in [*at_most, *at_least, *objectives] if cost not in UNITS]:
        raise ExperimentError(f"no cost is called {unknown[0]!r}; there are {', '.join(UNITS)}")
    experiment = None if sources.run is None else read_experiment(sources.run)
    device = None if experiment is None else _device(experiment, sources)
    space = _space(sources)
    accuracy, latency = _files(sources, device)
    constraints = tuple(
        Constraint(cost, at_most.get(cost), at_least.get(cost), UNITS[cost])
        for cost in UNITS
        if cost in at_most or cost in at_least
    )
    if not constraints and experiment is not None and device is not None:
        constraints = experiment.constraints(device)
    quantizes = bool(precision_columns(space))
    asked = [*at_most, *at_least, *objectives]
    if not quantizes and (cost := next((cost for cost in asked if cost in POLICY_COSTS), None)):
        raise ExperimentError(f"{cost} is decided by number formats, and {space.name} has none; take params or macs")
    if objectives or experiment is None:
        chosen = tuple(map(_objective, dict.fromkeys(objectives or DEFAULT_OBJECTIVES)))
    else:
        chosen = experiment.objectives()
    costs = [part.name for part in chosen] + [part.name for part in constraints]
    evaluate = costs_of(
        space,
        _accuracy_predictor(space, accuracy),
        _latency_predictor(space, latency),
        peak_memory="peak_activation_bytes" in costs,
        on_bitfusion=any(cost in BITFUSION_COSTS for cost in costs),
        constraints=constraints,
    )
    origin = {"accuracy": f"predicted, {_digest(accuracy)}", "latency": f"predicted, {_digest(latency)}"}
    if sources.evaluation == "supernet":
        evaluate, origin["accuracy"] = _on_supernet(sources, experiment, evaluate, reporter)
    return Task(Problem(space, chosen, constraints, evaluate), origin, experiment)


def search_alone(
    task: Task, searcher: str | None, evaluations: int | None, seed: int, reporter: Reporter
) -> pd.DataFrame:
    """The front of a search in this process: a row per network, ``arch`` and its costs, by latency.

    Args:
        searcher: ``nsga2``, the vectorised one; a name of `optuna_samplers`; None: as the run has it.
        evaluations: Networks to consider; as the run has it, if None and accuracy is predicted.

    Raises:
        InfeasibleConstraintError: No network keeps the bounds; says the closest value.
    """
    problem, experiment = task.problem, task.experiment
    is_real = not task.origin["accuracy"].startswith("predicted")
    n = evaluations or (N_REAL if is_real else experiment.search.evaluations if experiment else N_PREDICTED)
    found = search(problem, _searcher(task, searcher, seed), n, on_progress=reporter.bar("networks considered"))
    return _by_latency(found.costs.iloc[found.front].drop(columns="violation"))


def open_study(
    task: Task, searcher: str | None, evaluations: int | None, seed: int, storage: str, study: str
) -> OptunaSearcher:
    """This process's part in a study that workers share.

    Raises:
        ExperimentError: `searcher` is not an Optuna sampler.
        ValueError: The study is of another space, or with other objectives, constraints or costs.
        StorageError: The storage cannot be opened.
    """
    samplers = optuna_samplers()
    if searcher is not None and searcher not in samplers:
        raise ExperimentError(f"workers share an Optuna study, so --searcher is one of {', '.join(samplers)}; "
                              f"got {searcher}")  # fmt: skip
    return OptunaSearcher(
        task.problem.space,
        sampler=samplers[searcher or "linas"],
        objectives=task.problem.objectives,
        constraints=task.problem.read_constraints,
        seed=seed,
        storage=storage,
        study_name=study,
        total=evaluations or N_REAL,
        facts=task.origin,
    )


def search_together(task: Task, searcher: OptunaSearcher, on_progress: Callable[[int], None]) -> pd.DataFrame:
    """Work on a shared study until it is complete, then the front of the whole study, as `search_alone` gives it.

    Args:
        on_progress: Called with the number of networks that the study has.

    Raises:
        InfeasibleConstraintError: No network of the study keeps the bounds; says the closest value.
    """
    problem = task.problem
    on_progress(len(searcher.results()[0]))
    while len(codes := searcher.ask()):
        costs = problem.costs(codes)
        searcher.annotate(codes, costs)
        searcher.tell(codes, problem.losses(costs), problem.violations(costs))
        on_progress(len(searcher.results()[0]))
    frame = searcher.table()
    costs = {name: frame[name].to_numpy() for name in frame.columns if name != "arch"}
    return _by_latency(frame.iloc[feasible_front(problem, costs)])


def optuna_samplers() -> dict[str, SamplerName]:
    """The samplers of Optuna studies by the names that they have beside searchers that are none."""
    from typing import get_args

    return {"optuna-nsga2" if name == "nsga2" else name: name for name in get_args(SamplerName)}


def _by_latency(front: pd.DataFrame) -> pd.DataFrame:
    return front.sort_values("latency_ms", ignore_index=True)


def _searcher(task: Task, name: str | None, seed: int) -> Searcher:
    from hanax.searchers import Nsga2

    problem, samplers = task.problem, optuna_samplers()
    if name is None and task.experiment is not None:
        return task.experiment.search.searcher.build(problem.space, len(problem.objectives), seed)
    if name is None or name == "nsga2":
        return Nsga2(problem.space, seed=seed)
    if name not in samplers:
        raise ExperimentError(f"no searcher is called {name!r}; there are nsga2, {', '.join(samplers)}")
    return OptunaSearcher(
        problem.space,
        sampler=samplers[name],
        objectives=problem.objectives,
        constraints=problem.read_constraints,
        seed=seed,
    )


def _device(experiment: Experiment, sources: Sources) -> DeviceConfig:
    names = [device.label for device in experiment.devices]
    if sources.device is not None and sources.device not in names:
        raise ExperimentError(f"the run in {sources.run} has no device {sources.device!r}; it has {', '.join(names)}")
    return experiment.devices[names.index(sources.device or names[0])]


def _space(sources: Sources) -> SearchSpace:
    if sources.run is not None:
        return read_searched_space(sources.run)
    if sources.space is None:
        raise ExperimentError("without the folder of a run, --space says whose networks to search")
    return sources.space


def _files(sources: Sources, device: DeviceConfig | None) -> tuple[Path, Path]:
    """Where the accuracies and the latencies are."""
    if sources.run is None or device is None:
        if sources.accuracy is None or sources.latency is None:
            raise ExperimentError("without the folder of a run, a search needs --accuracy and --latency, each a file")
        return sources.accuracy, sources.latency
    return (
        sources.accuracy or stage_folder(sources.run, "accuracy") / "accuracy.parquet",
        sources.latency or stage_folder(sources.run, f"latency/{device.label}") / "table.parquet",
    )


def _objective(cost: str) -> Objective:
    return Objective(cost, "maximise" if cost == "accuracy" else "minimise", UNITS[cost])  # type: ignore[index]


def _accuracy_predictor(space: SearchSpace, file: Path) -> Any:
    if file.suffix == ".npz":
        return load_predictor(file, space, "accuracy")
    frame, _ = read_frame(file, space)
    return RidgePredictor().fit(*training_data(space, frame, "accuracy"))


def _latency_predictor(space: SearchSpace, file: Path) -> Any:
    timed = timed_space(space)
    if file.suffix == ".npz":
        return load_predictor(file, timed, "latency_ms")
    frame = LatencyTable.read(file).for_space(timed).frame
    return RidgePredictor().fit(*training_data(timed, frame, "latency_ms"))


def _digest(file: Path) -> str:
    return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _on_supernet(
    sources: Sources, experiment: Experiment | None, predicted: Callable[[Any], Costs], reporter: Reporter
) -> tuple[Callable[[Any], Costs], str]:
    """`predicted` with each network's accuracy from the run's supernet, and in words what that is."""
    if sources.run is None or experiment is None:
        raise ExperimentError("only the folder of a run has a supernet to evaluate networks with")
    from hanax.experiments._pipeline import open_pipeline
    from hanax.supernet import supernet_fingerprint

    pipeline = open_pipeline(experiment, sources.run, reporter)
    evaluator = pipeline.searched_evaluator
    compile_once = cache(lambda: evaluator.compile(reporter.bar("compiling blocks")))

    def evaluate(codes: Any) -> Costs:
        compile_once()  # not before: a study that is complete, or another's, needs none of it
        costs = dict(predicted(codes))
        costs["predicted_accuracy"] = costs["accuracy"]
        costs["accuracy"] = evaluator.accuracies(evaluator.space.decode(codes)).astype("float64")
        return costs

    images = f"{evaluator.n_validation} validation images of data set {pipeline.dataset.fingerprint}"
    return evaluate, f"of subnets of supernet {supernet_fingerprint(evaluator.params)} on {images}"
