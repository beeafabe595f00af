"""What the stages of a run and the single commands share: drawing networks, fitting predictors, joining their costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hanax.predictors import PredictorCard, predictor_features
from hanax.search_spaces import Arch, SearchSpace, graph_features, unique_rows
from hanax.searchers import Constraint, Costs, quantile_name

COVERAGE = 0.9
"""What predicted intervals promise to hold."""

LATENCY_TOLERANCE = 0.15
"""A winner's measured latency that is further from its prediction than this share is called a miss."""


def draw_archs(space: SearchSpace, n: int, seed: Sequence[int]) -> list[Arch]:
    """The largest, the smallest and `n` - 2 other networks drawn at random, all different.

    The whole space, if it has no more than `n`; fewer than `n`, if drawing finds no more.
    """
    rng = np.random.default_rng(list(seed))
    ends = space.canonical(space.encode([space.largest, space.smallest]))
    codes = np.concatenate([ends, space.sample(rng, 20 * n)])
    return space.decode(codes[unique_rows(codes)[:n]])


def training_data(space: SearchSpace, frame: pd.DataFrame, target: str) -> tuple[Any, Any]:
    """Features and costs of the rows of `frame`, for a predictor."""
    codes = space.canonical(space.encode([Arch.parse(text) for text in frame["arch"]]))
    return predictor_features(space, codes), frame[target].to_numpy(dtype=np.float64)


def costs_of(
    space: SearchSpace,
    accuracy: Any,
    latency: Any,
    *,
    peak_memory: bool = False,
    constraints: Sequence[Constraint] = (),
) -> Callable[[Any], Costs]:
    """The function that a search asks for costs: both predictors, the exact sizes, and what `constraints` read.

    Args:
        peak_memory: Give ``peak_activation_bytes`` too, which takes a millisecond a network.
        constraints: Certified ones among them read quantiles, which come from `predicted_quantile`; one on the peak
            memory has it given.
    """
    predictors = {"accuracy": accuracy, "latency_ms": latency}
    quantiles = [(part.name, level) for part in constraints for level in part.levels]
    peak_memory = peak_memory or any(part.name == "peak_activation_bytes" for part in constraints)

    def evaluate(codes: Any) -> Costs:
        features = predictor_features(space, codes)
        names, sums = graph_features(space, codes)
        costs = {
            "accuracy": accuracy.predict(features),
            "latency_ms": latency.predict(features),
            "macs": sums[:, names.index("macs")],
            "params": sums[:, names.index("params")],
        }
        if peak_memory:
            peaks = [space.graph(arch).peak_activation_bytes() for arch in space.decode(codes)]
            costs["peak_activation_bytes"] = np.array(peaks, dtype=np.float64)
        for name, level in quantiles:
            costs[quantile_name(name, level)] = predicted_quantile(predictors[name], features, level, name)
        return costs

    return evaluate


def predicted_quantile(predictor: Any, features: Any, level: float, name: str) -> Any:
    """The `level` quantile of a new measurement of each row of `features`, shape (n,): an end of `predict_interval`.

    The interval of coverage ``|2 * level - 1|`` leaves the same share on either side, so its upper end stands for a
    level above 0.5 and its lower end for one below. That is as good as the interval is, as its errors are alike on both
    sides, and as the networks are like the measured ones: of those that a search picks because they look fast, one to
    two in a hundred fewer may keep it.

    Raises:
        ValueError: The predictor learned from too few measurements to say so; names the cost, `name`.
    """
    lower, upper = predictor.predict_interval(features, abs(2.0 * level - 1.0))
    quantile = upper if level > 0.5 else lower
    if not np.isfinite(quantile).all():
        raise ValueError(
            f"the {level:g} quantile of {name} is unknown: its predictor learned from too few measurements; "
            "measure more networks or ask for a lower probability"
        )
    return quantile


def load_card(folder: Path) -> PredictorCard:
    """The predictor card in a stage's folder."""
    return PredictorCard(**json.loads((folder / "card.json").read_text()))
