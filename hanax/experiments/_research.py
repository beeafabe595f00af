"""Searching again on the tables of a run: nothing is trained, nothing is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hanax.devices import LatencyTable
from hanax.experiments._config import UNITS, ExperimentError
from hanax.experiments._fitting import costs_of, training_data
from hanax.experiments._folder import stage_folder
from hanax.experiments._frames import read_frame
from hanax.experiments._gather import read_experiment, read_space
from hanax.predictors import RidgePredictor
from hanax.searchers import Constraint, Problem, search

if TYPE_CHECKING:
    import pandas as pd


def search_again(
    path: Path,
    *,
    device_name: str | None = None,
    accuracy_file: Path | None = None,
    latency_file: Path | None = None,
    evaluations: int | None = None,
    at_most: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    seed: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The predicted front of the run in `path`, with other tables, bounds or effort where they are given.

    Returns one row per network: ``arch``, its costs, by increasing latency.

    Raises:
        ExperimentError: The run has no such device, or a bound names no cost.
        FileNotFoundError: A table is not there (yet).
        SpaceMismatchError: A table belongs to another space; names both fingerprints.
        InfeasibleConstraintError: No network keeps the bounds; says the closest value.
    """
    experiment, space = read_experiment(path), read_space(path)
    names = [device.label for device in experiment.devices]
    if device_name is not None and device_name not in names:
        raise ExperimentError(f"the run in {path} has no device {device_name!r}; it has {', '.join(names)}")
    device = experiment.devices[names.index(device_name or names[0])]
    at_most, at_least = at_most or {}, at_least or {}
    if unknown := [cost for cost in [*at_most, *at_least] if cost not in UNITS]:
        raise ExperimentError(f"no cost is called {unknown[0]!r}; there are {', '.join(UNITS)}")
    accuracy, _ = read_frame(accuracy_file or stage_folder(path, "accuracy") / "accuracy.parquet", space)
    table_file = latency_file or stage_folder(path, f"latency/{device.label}") / "table.parquet"
    latency = LatencyTable.read(table_file).for_space(space).frame
    constraints = tuple(
        Constraint(cost, at_most.get(cost), at_least.get(cost), UNITS[cost])
        for cost in UNITS
        if cost in at_most or cost in at_least
    )
    objectives = experiment.objectives()
    problem = Problem(
        space,
        objectives,
        constraints or experiment.constraints(device),
        costs_of(
            space,
            RidgePredictor().fit(*training_data(space, accuracy, "accuracy")),
            RidgePredictor().fit(*training_data(space, latency, "latency_ms")),
            peak_memory="peak_activation_bytes" in {*at_most, *at_least, *experiment.search.objectives},
        ),
    )
    searcher = experiment.search.searcher.build(space, len(objectives), experiment.seed if seed is None else seed)
    result = search(problem, searcher, evaluations or experiment.search.evaluations, on_progress=on_progress)
    front = result.costs.iloc[result.front].drop(columns="violation")
    return front.sort_values("latency_ms", ignore_index=True)
