"""Costs made of other costs: an evaluate function with one more name in its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hanax.searchers._problem import Codes, Costs, Evaluate, Floats


def with_cost(evaluate: Evaluate, name: str, cost: Callable[[Costs], Floats]) -> Evaluate:
    """`evaluate` with one more cost, `name`, that `cost` computes from the others.

    The function that comes out raises `ValueError` where `evaluate` has a cost of this name already.
    """

    def evaluate_and_add(codes: Codes) -> Costs:
        costs = evaluate(codes)
        if name in costs:
            raise ValueError(f"evaluate gives a cost {name!r} already; call the new one otherwise")
        return {**costs, name: cost(costs)}

    return evaluate_and_add


def worst_case(evaluate: Evaluate, name: str, costs: Mapping[str, float]) -> Evaluate:
    """`evaluate` with one more cost, `name`: the largest over `costs` of each divided by its scale.

    With the latencies of a family of devices and their budgets, ``worst_case(evaluate, "worst_share", {"pi_ms": 30.0,
    "phone_ms": 10.0})``, a network whose worst share is at most 1 keeps every budget, and to minimise the share is to
    search for all devices at once. Scales of 1 give the plain worst of costs in one unit. Quantiles
    (`quantile_name`) may stand in place of costs.

    Args:
        costs: Names of costs that `evaluate` gives, each with its budget or scale, in the unit of the cost.

    Raises:
        ValueError: There are no `costs`, or a scale is not a positive number.
    """
    if not costs:
        raise ValueError(f"{name}: the worst case needs at least one cost")
    for cost, scale in costs.items():
        if not 0.0 < scale < np.inf:
            raise ValueError(f"{name}: the scale of {cost} is a positive number; got {scale}")

    def worst(given: Costs) -> Floats:
        missing = [cost for cost in costs if cost not in given]
        if missing:
            raise ValueError(f"{name}: evaluate gives no cost {missing[0]!r}; it gives {', '.join(given) or 'none'}")
        return np.asarray(np.max([np.asarray(given[cost]) / scale for cost, scale in costs.items()], axis=0))

    return with_cost(evaluate, name, worst)
