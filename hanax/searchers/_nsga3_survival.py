"""Who survives a generation of NSGA-III (Deb & Jain, 2014, doi:10.1109/TEVC.2013.2281535), on populations as arrays.

Shapes: ``...`` any leading axes, a population each; `n` rows, `m` objectives, `r` reference directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np

from hanax.searchers._domination import positions, restored, runs
from hanax.searchers._problem import Floats
from hanax.searchers._random_words import Array

OFF_AXIS = 1e-6
"""Weight of the other objectives in the search for the extreme point of one."""

LEAST_INTERCEPT = 1e-6
"""Below this share of an objective's range a hyperplane is taken for degenerate."""


class Normalisation(NamedTuple):
    """What is remembered from one generation to the next.

    Attributes:
        ideal: The least loss found so far in each objective, shape (..., m).
        extremes: The point found so far that lies closest to each axis, shape (..., m, m): axis, objective.
    """

    ideal: Array
    extremes: Array


@dataclass(frozen=True, eq=False)
class Nsga3Survival:
    """Survival by front, within the last front by niches around reference directions.

    Infeasible rows come after all feasible ones, in the order of their violation (Jain & Deb, 2014,
    doi:10.1109/TEVC.2013.2281534).

    Differs from the paper in the normalisation: extreme points are looked for in units of the range of each objective,
    since losses of any unit meet here; an extreme point that was found once stays a candidate, as the ideal point does;
    and an intercept ends at the worst loss among those that may survive (both of Blank et al., 2019,
    doi:10.1007/978-3-030-12598-1_19). Where the extreme points span no hyperplane or one that misses the axes, the
    range of the first front takes the place of the intercepts.

    Attributes:
        size: How many survive.
        directions: Shape (r, m), non-negative, none of them 0; see `reference_directions`.
    """

    size: int
    directions: Floats

    def start(self, xp: ModuleType, batch: tuple[int, ...], n_objectives: int) -> Normalisation:
        """Nothing found yet, for as many populations as `batch`, the leading axes, has."""
        return Normalisation(
            xp.full((*batch, n_objectives), xp.inf), xp.full((*batch, n_objectives, n_objectives), xp.inf)
        )

    def select(
        self, xp: ModuleType, state: Normalisation, losses: Array, feasible: Array, rank: Array, words: Array
    ) -> tuple[Array, Normalisation]:
        """Rows that survive, the best first, shape (..., size), and what is known for the next generation.

        The paper picks one row after the other: always from the direction with the fewest survivors so far. A row that
        would be the k-th of its direction is therefore picked before every row that would be a later one of its own,
        and one sort by this number says who is picked.

        Args:
            losses: Shape (..., n, m).
            feasible: Whether a row keeps the constraints, shape (..., n).
            rank: The front of each row, shape (..., n); rows beyond the last front that can survive may share one.
            words: Random ones, shape (..., n), for what the paper leaves to chance.
        """
        n_survivors = min(self.size, rank.shape[-1])
        last = xp.sort(rank, axis=-1)[..., n_survivors - 1 : n_survivors]
        normalised, state = normalise(xp, state, losses, rank, feasible & (rank <= last), last)
        niche, distance = associate(xp, normalised, self.directions)
        candidates = rank == last
        numbers = np.arange(len(self.directions)).reshape((1,) * rank.ndim + (-1,))
        members = niche[..., None] == xp.asarray(numbers)
        n_before = xp.sum(members & (rank < last)[..., None], axis=-2)
        nearest = xp.argmin(xp.where(members & candidates[..., None], distance[..., None], xp.inf), axis=-2)
        n_before, nearest = (xp.take_along_axis(part, niche, axis=-1) for part in (n_before, nearest))
        # Within an empty niche the row closest to the direction comes first; all others come at random.
        comes_first = (n_before == 0) & (nearest == positions(xp, rank))
        place = n_before + _order_within(xp, (words, ~comes_first), xp.where(candidates, niche, len(self.directions)))
        order = xp.lexsort((words, xp.where(candidates, place, 0), rank), axis=-1)
        return order[..., :n_survivors], state

    def merits(self, xp: ModuleType, violations: Array) -> Array:
        """What a tournament between survivors compares, the smaller the better: their violations, shape (..., size).

        Among feasible ones there is none to be preferred (Deb & Jain, 2014, section IV-F).
        """
        return violations


def normalise(
    xp: ModuleType, state: Normalisation, losses: Array, rank: Array, feasible: Array, last: Array
) -> tuple[Array, Normalisation]:
    """Losses from the ideal point on, in units of the intercepts, shape (..., n, m); and what was found for it.

    Args:
        state: What was found before.
        losses: Shape (..., n, m).
        rank: The front of each row, shape (..., n).
        feasible: Which rows may survive and keep the constraints, shape (..., n). Where there are none, nothing is
            found for later, and all that may survive count.
        last: The last front of which a row may survive, shape (..., 1).
    """
    any_feasible = xp.any(feasible, axis=-1, keepdims=True)
    counts = (feasible | (~any_feasible & (rank <= last)))[..., None]
    ideal = xp.minimum(state.ideal, xp.min(xp.where(counts, losses, xp.inf), axis=-2))
    extent = xp.max(xp.where(counts, losses, -xp.inf), axis=-2) - ideal
    extent = xp.where(extent > 0, extent, 1.0)[..., None, :]
    points = xp.concatenate([state.extremes, losses], axis=-2)
    shares = (points - ideal[..., None, :]) / extent
    known = xp.concatenate([xp.ones_like(state.extremes[..., :1], dtype=bool), counts], axis=-2)
    closest = xp.stack(
        [xp.argmin(_scalarised(xp, shares, known, axis), axis=-1) for axis in range(losses.shape[-1])], axis=-1
    )[..., None]
    extremes = xp.take_along_axis(points, closest, axis=-2)
    found = Normalisation(
        xp.where(any_feasible, ideal, state.ideal), xp.where(any_feasible[..., None], extremes, state.extremes)
    )
    shares_now = shares[..., losses.shape[-1] :, :]
    first = xp.where(counts & (rank == xp.min(rank, axis=-1, keepdims=True))[..., None], shares_now, 0.0)
    fallback = xp.max(first, axis=-2)
    cut, is_sound = intercepts(xp, xp.take_along_axis(shares, closest, axis=-2))
    units = xp.where(is_sound, xp.minimum(cut, 1.0), xp.where(fallback > 0, fallback, 1.0))
    return shares_now / units[..., None, :], found


def _scalarised(xp: ModuleType, shares: Array, known: Array, axis: int) -> Array:
    """The achievement scalarising function of one axis (Deb & Jain, 2014, eq. 4), infinite where not `known`."""
    weights = np.where(np.arange(shares.shape[-1]) == axis, 1.0, OFF_AXIS)
    stretched = shares / xp.asarray(weights.reshape((1,) * (shares.ndim - 1) + weights.shape))
    return xp.where(known[..., 0], xp.max(stretched, axis=-1), xp.inf)


def intercepts(xp: ModuleType, points: Array) -> tuple[Array, Array]:
    """Where the hyperplane through `points`, shape (..., m, m), cuts the axes, shape (..., m).

    Also whether it cuts all of them away from the origin, shape (..., 1); otherwise the values mean nothing. By
    elimination with pivoting.
    """
    m = points.shape[-1]
    rows = xp.concatenate([points, xp.ones_like(points[..., :1])], axis=-1)
    numbers = positions(xp, points[..., 0])
    is_sound = xp.all(xp.isfinite(points[..., 0]), axis=-1, keepdims=True)
    for column in range(m):
        sizes = xp.where(numbers >= column, xp.abs(rows[..., column]), -1.0)
        largest = xp.argmax(sizes, axis=-1)[..., None]
        swapped = xp.where(numbers == column, largest, xp.where(numbers == largest, column, numbers))
        rows = xp.take_along_axis(rows, swapped[..., None], axis=-2)
        pivot = rows[..., column : column + 1, column]
        is_sound = is_sound & (pivot != 0)
        pivot_row = rows[..., column : column + 1, :] / xp.where(pivot != 0, pivot, 1.0)[..., None]
        others = rows - rounded(xp, rows[..., column : column + 1] * pivot_row)
        rows = xp.where((numbers == column)[..., None], pivot_row, others)
    slopes = rows[..., m]
    is_sound = is_sound & xp.all((slopes > 0) & (slopes < 1.0 / LEAST_INTERCEPT), axis=-1, keepdims=True)
    return 1.0 / xp.where(is_sound, slopes, 1.0), is_sound


def associate(xp: ModuleType, normalised: Array, directions: Floats) -> tuple[Array, Array]:
    """The direction that each row of `normalised`, shape (..., n, m), is closest to, and its squared distance to it.

    Both of shape (..., n). The distance is perpendicular, to the line through the origin; of equals the first one.
    """
    units = directions / np.sqrt((directions**2).sum(axis=1, keepdims=True))
    parts = [
        (normalised[..., :, None, column], xp.asarray(units[:, column].reshape((1,) * (normalised.ndim - 1) + (-1,))))
        for column in range(directions.shape[1])
    ]
    along = sum(rounded(xp, part * unit) for part, unit in parts)
    off = [part - rounded(xp, along * unit) for part, unit in parts]
    distances = sum(rounded(xp, part * part) for part in off)
    return xp.argmin(distances, axis=-1), xp.min(distances, axis=-1)


def rounded(xp: ModuleType, product: Array) -> Array:
    """A product as a number of its own.

    A compiler may fuse a product with the sum that follows and round only once, which no other array module would
    repeat; it cannot where the product is bounded in between.
    """
    return product if xp is np else xp.clip(product, -1e300, 1e300)


def _order_within(xp: ModuleType, keys: tuple[Array, ...], group: Array) -> Array:
    """Position of each row within its `group`, shape (..., n), in the order of `keys`, the last one first."""
    order = xp.lexsort((*keys, group), axis=-1)
    starts, _ = runs(xp, xp.take_along_axis(group, order, axis=-1))
    return restored(xp, positions(xp, group) - starts, order)
