"""Dominance, whole arrays at a time. All losses are minimised.

Shapes: `n` points, `m` objectives.
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import NDArray

from hanax.searchers._domination import crowding
from hanax.searchers._problem import Floats, Indices


def non_dominated(losses: Floats) -> NDArray[np.bool_]:
    """Where no other row of `losses`, shape (n, m), is at least as good in all and better in one; shape (n,).

    Equal rows do not dominate each other.
    """
    if len(losses) == 0:
        return np.zeros(0, dtype=bool)
    if losses.shape[1] == 1:  # moocore needs two objectives in its older versions
        return np.asarray(losses[:, 0] == losses.min())
    return np.asarray(moocore.is_nondominated(losses, keep_weakly=True), dtype=bool)


def hypervolume(losses: Floats, reference: Floats) -> float:
    """Volume that the rows of `losses`, shape (n, m), dominate up to the point `reference`, shape (m,).

    Rows that are not better than `reference` in every objective add nothing.
    """
    if len(losses) == 0:
        return 0.0
    if losses.shape[1] == 1:
        return float(max(reference[0] - losses.min(), 0.0))
    return float(moocore.hypervolume(losses, ref=reference))


def constrained_rank(losses: Floats, violations: Floats) -> Indices:
    """Front that each row belongs to, 0 the best, under constraint domination (Deb et al., 2002, section VI).

    Feasible rows come before others and are sorted by dominance; infeasible ones by their violation alone.
    """
    feasible = violations <= 0
    rank = np.zeros(len(losses), dtype=np.int64)
    n_fronts = 0
    if feasible.any():
        fronts = moocore.pareto_rank(losses[feasible])
        rank[feasible] = fronts - fronts.min()  # older versions of moocore count from 1
        n_fronts = int(rank.max()) + 1
    rank[~feasible] = n_fronts + np.unique(violations[~feasible], return_inverse=True)[1]
    return rank


def crowding_distance(losses: Floats, rank: Indices) -> Floats:
    """Room around each row within its own front (Deb et al., 2002, section III-B), for all fronts at once.

    Per objective the gap between the next smaller and the next larger loss of the front, in units of the range of the
    front, summed; infinite at both ends. An objective in which a front does not vary adds nothing to it.
    """
    return np.asarray(crowding(np, losses, rank))


def spread_along_front(losses: Floats, k: int) -> Indices:
    """Indices of `k` well-spread rows of `losses`, shape (n, m), in the order of the first objective; all if n <= k.

    The best row of each objective first, then always the row furthest from those taken (Gonzalez, 1985,
    doi:10.1016/0304-3975(85)90224-5), in units of the range of each objective. If `k` is smaller than the number of
    objectives, only the first `k` have their best row.

    Raises:
        ValueError: `k` is less than 1.
    """
    if k < 1:
        raise ValueError(f"k is the number of rows to take, at least 1; got {k}")
    if len(losses) <= k:
        return np.argsort(losses[:, 0], kind="stable")
    extent = np.ptp(losses, axis=0)
    scaled = losses / np.where(extent > 0, extent, 1.0)
    taken: list[int] = []
    nearest = np.full(len(losses), np.inf)
    candidates = [_best(scaled, column) for column in range(losses.shape[1])]
    while len(taken) < k:
        index = candidates.pop(0) if candidates else int(np.argmax(nearest))
        if index not in taken:
            taken.append(index)
            nearest = np.minimum(nearest, np.linalg.norm(scaled - scaled[index], axis=1))
            nearest[index] = -1.0
    return np.array(sorted(taken, key=lambda index: losses[index, 0]))


def _best(losses: Floats, column: int) -> int:
    """The best row in one objective; of equal ones, the one that is best in the others together."""
    others = np.delete(losses, column, axis=1).sum(axis=1)
    return int(np.lexsort((others, losses[:, column]))[0])
