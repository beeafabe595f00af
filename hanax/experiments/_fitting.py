"""What the stages of a run and the single commands share: drawing networks, fitting predictors, joining their costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hanax.devices import BitFusion, find_cost_model, policy_costs
from hanax.predictors import PredictorCard, predictor_features
from hanax.search_spaces import (
    INT8,
    Arch,
    SearchSpace,
    Slot,
    architecture_columns,
    float_space,
    graph_features,
    precision_columns,
    unique_rows,
)
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


def timed_space(space: SearchSpace) -> SearchSpace:
    """The space whose networks are timed for a search of `space`: `space`, without what does not change the time.

    Integer runtimes compute integers of all formats in 8 bits. Weights of fewer bits take the same time; activations of
    fewer are cut off at their last level, which is work, so where they are on offer, all formats are kept.
    """
    offered = [format for slot in space.slots for format in _activation_formats(space, slot)]
    return space if any(format != INT8 for format in offered) else float_space(space)


def _activation_formats(space: SearchSpace, slot: Slot) -> tuple[int, ...]:
    if slot.precision is None:
        return ()
    setting = slot.precision[1]
    return (setting,) if isinstance(setting, int) else space.decisions[space.column(setting)].options


def timed_codes(space: SearchSpace, codes: Any) -> Any:
    """The codes in `timed_space` of the networks `codes` of `space`."""
    return codes if timed_space(space) == space else codes[:, architecture_columns(space)]


def latency_predictor_features(space: SearchSpace, codes: Any) -> Any:
    """Features of the networks `codes` for a latency predictor, which learned from networks of `timed_space`."""
    return predictor_features(timed_space(space), timed_codes(space, codes))


def costs_of(
    space: SearchSpace,
    accuracy: Any,
    latency: Any,
    *,
    peak_memory: bool = False,
    on_bitfusion: bool = False,
    constraints: Sequence[Constraint] = (),
) -> Callable[[Any], Costs]:
    """The function that a search asks for costs: both predictors, the exact sizes, and what `constraints` read.

    Args:
        space: `latency` is of its `timed_space`.
        peak_memory: Give ``peak_activation_bytes`` too, which takes a millisecond a network.
        on_bitfusion: Give the costs on BitFusion too, see `formats_costs`.
        constraints: Certified ones among them read quantiles, which come from `predicted_quantile`; one on the peak
            memory has it given.
    """
    quantizes, in_time = bool(precision_columns(space)), timed_space(space)
    predictors = {"accuracy": accuracy, "latency_ms": latency}
    quantiles = [(part.name, level) for part in constraints for level in part.levels]
    peak_memory = peak_memory or any(part.name == "peak_activation_bytes" for part in constraints)

    def evaluate(codes: Any) -> Costs:
        features = {"accuracy": predictor_features(space, codes)}
        timed = timed_codes(space, codes)
        features["latency_ms"] = features["accuracy"] if timed is codes else predictor_features(in_time, timed)
        names, sums = graph_features(space, codes)
        costs = {
            "accuracy": accuracy.predict(features["accuracy"]),
            "latency_ms": latency.predict(features["latency_ms"]),
            "macs": sums[:, names.index("macs")],
            "params": sums[:, names.index("params")],
        }
        if peak_memory:
            peaks = peak_activation_bytes(space, space.decode(codes))
            costs["peak_activation_bytes"] = np.array(peaks, dtype=np.float64)
        if quantizes:
            costs |= formats_costs(space, codes, on_bitfusion=on_bitfusion)
        for name, level in quantiles:
            costs[quantile_name(name, level)] = predicted_quantile(predictors[name], features[name], level, name)
        return costs

    return evaluate


def formats_costs(space: SearchSpace, codes: Any, *, on_bitfusion: bool) -> dict[str, Any]:
    """Costs that number formats decide, exactly: ``size_bytes``, ``bit_operations`` and, if asked for, on BitFusion.

    Raises:
        ModelFileError: BitFusion's public table is not here.
        ValueError: That table has no rows for some format.
    """
    if not on_bitfusion:
        return dict(policy_costs(space, codes))
    model = find_cost_model("bitfusion")
    assert isinstance(model, BitFusion), "the name is that of BitFusion"
    costs = policy_costs(space, codes, model.table)
    renamed = {"latency_ms": "bitfusion_latency_ms", "energy_mj": "bitfusion_energy_mj"}
    return {renamed.get(name, name): values for name, values in costs.items()}


def peak_activation_bytes(space: SearchSpace, archs: Sequence[Arch]) -> list[int]:
    """Most activation memory alive at once: 4 bytes a value, and 1 in a space with number formats, whatever these."""
    bytes_per_value = 1 if precision_columns(space) else 4
    return [space.graph(arch).peak_activation_bytes(bytes_per_value) for arch in archs]


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
