"""`hanax reproduce exact-front`: exact front of an additive surrogate of Once-for-All, and evolution's gap to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanax.devices import code_costs, find_cost_model
from hanax.devices.public import find_source, import_source
from hanax.experiments._reproduction import Reproduction, Row
from hanax.predictors import RidgePredictor, predictor_features
from hanax.search_spaces import RESOLUTION, Arch, SearchSpace, mobilenet_v3
from hanax.searchers import (
    AdditiveCost,
    AdditiveFit,
    Costs,
    Nsga2,
    Objective,
    Problem,
    exact_front,
    fit_additive,
    optimality_gap,
    search,
)

Codes = NDArray[np.int32]

DEVICE = "roofline-cortex-a72"
N_SEEDS = 5
RESOLUTIONS = ((224,), tuple(range(128, 225, 4)))
EVALUATIONS, POPULATION = 5000, 100
"""The defaults of an experiment file."""

POINTS_PER_OCTAVE = 6.0
"""Top-1 accuracy, in points, that doubling the resolution is taken to add: the traces are of one resolution only."""


def reproduce_exact(data: Path, n_seeds: int, say: Callable[[str], None]) -> Reproduction:
    """Loss: ridge regression on the accuracies of DyNAS-T's traces; cost: the roofline latency of a Raspberry Pi 4.

    No published figures: who searches on a surrogate does not say how far from its optimum the search ends.
    """
    started = time.perf_counter()
    table = import_source(find_source("dynas-t"), data / "dynas-t").tables[0].frame.drop_duplicates("arch")
    space = mobilenet_v3(resolutions=(224,))
    codes = space.canonical(space.encode([Arch.parse(text) for text in table["arch"]]))
    accuracy = RidgePredictor().fit(predictor_features(space, codes), table["top1"].to_numpy())
    rows: list[Row] = []

    def add(metric: str, values: list[float], unit: str, n: int | None = None) -> None:
        spread = float(np.std(values)) if len(values) > 1 else None
        worst = max(values) if len(values) > 1 else None
        rows.append(Row(metric, None, float(np.mean(values)), spread, worst, n, unit))

    for resolutions in RESOLUTIONS:
        fits = _fits(space, resolutions, accuracy)
        loss, cost = fits["loss"].cost, fits["latency_ms"].cost
        before = time.perf_counter()
        front = exact_front(loss, cost, loss_step=fits["loss"].step, cost_step=fits["latency_ms"].step)
        seconds = time.perf_counter() - before
        name = f"{len(resolutions)}_resolution{'s' * (len(resolutions) > 1)}"
        say(f"{name}: {len(front.codes)} points in {seconds:.2f} s")
        add(f"exact_points_{name}", [float(len(front.codes))], "points")
        add(f"exact_s_{name}", [seconds], "s")
        residual = max(fit.max_residual / fit.spread for fit in fits.values())
        add(f"fit_residual_{name}", [1e9 * residual], "1e-9 of the spread")
        exact = np.column_stack([front.losses, front.costs])
        gaps = []
        for seed in range(n_seeds):
            result = search(_problem(loss, cost), Nsga2(loss.space, population=POPULATION, seed=seed), EVALUATIONS)
            found = result.costs[["loss", "latency_ms"]].to_numpy()[result.front]
            gaps.append(optimality_gap(found, exact))
            say(f"{name}: NSGA-II with seed {seed} misses {gaps[-1].hypervolume_share:.2%} of the hypervolume")
        add(f"nsga2_hypervolume_gap_{name}", [100 * gap.hypervolume_share for gap in gaps], "%", EVALUATIONS)
        add(f"nsga2_accuracy_gap_{name}", [gap.largest_loss for gap in gaps], "points", EVALUATIONS)
    title = f"Exact front of an additive surrogate of Once-for-All, and NSGA-II beside it, {n_seeds} seeds"
    return Reproduction("exact-front", title, rows, time.perf_counter() - started)


def _problem(loss: AdditiveCost, cost: AdditiveCost) -> Problem:
    def evaluate(codes: Codes) -> Costs:
        return {"loss": loss(codes), "latency_ms": cost(codes)}

    return Problem(loss.space, (Objective("loss", "minimise"), Objective("latency_ms", "minimise", "ms")), (), evaluate)


def _fits(trained: SearchSpace, resolutions: tuple[int, ...], accuracy: RidgePredictor) -> dict[str, AdditiveFit]:
    """The tables of the loss, in points, and of the latency."""
    space = mobilenet_v3(resolutions=resolutions)
    column = space.column(RESOLUTION)
    gained = POINTS_PER_OCTAVE * np.log2(np.array(resolutions) / 224)
    model = find_cost_model(DEVICE)

    def evaluate(codes: Codes) -> Costs:
        at_224 = codes.copy()
        at_224[:, column] = 0
        top1 = accuracy.predict(predictor_features(trained, at_224)) + gained[codes[:, column]]
        return {"loss": -top1, "latency_ms": code_costs(model, space, codes)[:, 0]}

    per = (RESOLUTION,) if len(resolutions) > 1 else ()
    return fit_additive(space, evaluate, ["loss", "latency_ms"], per=per)
