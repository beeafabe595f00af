"""How far a front is from the exact one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hanax.searchers._pareto import hypervolume
from hanax.searchers._problem import Floats


@dataclass(frozen=True, slots=True)
class OptimalityGap:
    """What a front lacks of the exact front.

    Attributes:
        hypervolume_share: Share of the exact front's hypervolume that is missing; 0 where there is none to miss.
        largest_loss: The most that a budget's best loss is above the exact best, over all budgets from `cheapest` on.
        at_budget: A budget at which that is so.
        cheapest: The lowest cost on the front: for budgets below it has no network.
        exact_cheapest: The lowest cost of all.
    """

    hypervolume_share: float
    largest_loss: float
    at_budget: float
    cheapest: float
    exact_cheapest: float


def optimality_gap(
    front: Floats, exact: Floats, reference: Floats | None = None, *, cost_tolerance: float = 0.0
) -> OptimalityGap:
    """The gap between two sets of points, each with columns loss and cost, both minimised; shapes (n, 2) and (m, 2).

    Dominated points may be among them. Nothing is rounded or clipped: a front that is better than `exact`, which cannot
    be where the exact front is of the same costs, has a gap below 0.

    Args:
        front: What was found.
        exact: What there is.
        reference: The worst loss and cost that count for the hypervolume, shape (2,); by default the worst of the ideal
            trade-offs: the loss of the cheapest and the cost of the best point of `exact`.
        cost_tolerance: A budget that a network exceeds by no more pays for it. Predictions of one network differ by
            rounding between calls, which must not be taken for a network that is missing.

    Raises:
        ValueError: One of the sets is empty or not of two columns.
    """
    for name, points in (("front", front), ("exact", exact)):
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise ValueError(f"{name} needs one or more rows of loss and cost; got shape {points.shape}")
    front, exact = _by_cost(front), _by_cost(exact)
    if reference is None:
        reference = exact[[0, -1], [0, 1]]
    volume = hypervolume(exact, reference)
    budgets = np.concatenate([front[:1, 1], exact[exact[:, 1] + cost_tolerance >= front[0, 1], 1]])
    lost = _best(front, budgets + cost_tolerance) - _best(exact, budgets)
    worst = int(np.argmax(lost))
    return OptimalityGap(
        hypervolume_share=1.0 - hypervolume(front, reference) / volume if volume > 0 else 0.0,
        largest_loss=float(lost[worst]),
        at_budget=float(budgets[worst]),
        cheapest=float(front[0, 1]),
        exact_cheapest=float(exact[0, 1]),
    )


def _by_cost(points: Floats) -> Floats:
    """`points` by cost, each with the least loss up to there."""
    points = points[np.lexsort((points[:, 0], points[:, 1]))]
    return np.column_stack([np.minimum.accumulate(points[:, 0]), points[:, 1]])


def _best(points: Floats, budgets: Floats) -> Floats:
    """The least loss at each budget, which is at least the lowest cost."""
    rows = np.searchsorted(points[:, 1], budgets, side="right") - 1
    best: Floats = points[np.maximum(rows, 0), 0]
    return best
