"""Sorting and crowding of whole populations at once, over NumPy or inside a JAX program.

`xp` is `numpy` or `jax.numpy`. Shapes are fixed, and every function takes any number of leading axes, one population
each. Results are the same to the last bit on either module.

Shapes: `n` rows, `m` objectives. All losses are minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from hanax.searchers._random_words import Array


def repeat_while(
    xp: ModuleType, at_most: int, holds: Callable[[Any], Array], step: Callable[[Any], Any], state: Any
) -> Any:
    """`step` applied to `state` while `holds(state)`, one truth value, but no more than `at_most` times."""
    if xp is np:
        for _ in range(at_most):
            if not holds(state):
                break
            state = step(state)
        return state
    from jax import lax

    counted = 0, state
    return lax.while_loop(lambda c: (c[0] < at_most) & holds(c[1]), lambda c: (c[0] + 1, step(c[1])), counted)[1]


def fronts(xp: ModuleType, losses: Array, violations: Array, enough: int | None = None) -> Array:
    """Front that each row belongs to, 0 the best, under constraint domination; what `constrained_rank` says.

    The sorting of Deb et al. (2002, section III-A) on arrays: the matrix of who dominates whom, from which the rows
    that no other one dominates are peeled, front by front.

    Args:
        losses: Shape (..., n, m).
        violations: Shape (..., n), 0 where feasible, infinite for rows that come after all others.
        enough: Feasible fronts are told apart only until they hold this many rows; the rows beyond share one front.

    Returns:
        Integers, shape (..., n).
    """
    n, m = losses.shape[-2:]
    feasible = violations <= 0
    no_worse = feasible[..., :, None] & feasible[..., None, :]
    for column in range(m):
        no_worse = no_worse & (losses[..., :, None, column] <= losses[..., None, :, column])
    dominates = no_worse & ~xp.swapaxes(no_worse, -1, -2)
    wanted = xp.minimum(xp.sum(feasible, axis=-1, keepdims=True), n if enough is None else enough)

    def is_short(left: Array) -> Array:
        return xp.sum(feasible & ~left, axis=-1, keepdims=True) < wanted

    def peel(state: tuple[Array, Array]) -> tuple[Array, Array]:
        rank, left = state
        goes_on = is_short(left)
        best = left & goes_on & ~xp.any(dominates & left[..., :, None], axis=-2)
        left = left & ~best
        return rank + (left & goes_on), left  # every round that leaves a row behind adds one to its front

    start = xp.zeros(feasible.shape, dtype=int), feasible
    rank, _ = repeat_while(xp, n, lambda state: xp.any(is_short(state[1])), peel, start)
    n_fronts = xp.max(xp.where(feasible, rank + 1, 0), axis=-1, keepdims=True)
    return xp.where(feasible, rank, n_fronts + _dense_rank(xp, xp.where(feasible, xp.inf, violations)))


def _dense_rank(xp: ModuleType, values: Array) -> Array:
    """How many different smaller values each one has, along the last axis."""
    order = xp.lexsort((values,), axis=-1)
    ascending = xp.take_along_axis(values, order, axis=-1)
    steps = xp.cumsum(ascending[..., 1:] > ascending[..., :-1], axis=-1)
    first = xp.zeros((*values.shape[:-1], 1), dtype=steps.dtype)
    return restored(xp, xp.concatenate([first, steps], axis=-1), order)


def restored(xp: ModuleType, values: Array, order: Array) -> Array:
    """`values` along the last axis, given in `order`, back in the order of before."""
    if xp is np:
        before = np.empty_like(values)
        np.put_along_axis(before, order, values, axis=-1)
        return before
    return xp.put_along_axis(xp.zeros_like(values), order, values, axis=-1, inplace=False)


def crowding(xp: ModuleType, losses: Array, rank: Array) -> Array:
    """Room around each row within its own front, shape (..., n) (Deb et al., 2002, section III-B), for all fronts.

    Per objective the gap between the next smaller and the next larger loss of the front, in units of the range of the
    front, summed; infinite at both ends, of equals those that come first and last. An objective in which a front does
    not vary adds nothing to it.

    Args:
        losses: Shape (..., n, m).
        rank: The front of each row, shape (..., n).
    """
    by_rank = xp.sort(rank, axis=-1)  # where fronts start and end is the same in the order of any objective
    starts, ends = runs(xp, by_rank)
    at_an_end = (starts == positions(xp, rank)) | (ends == positions(xp, rank))
    distance = xp.zeros(rank.shape, dtype=losses.dtype)
    for column in range(losses.shape[-1]):
        order = xp.lexsort((losses[..., column], rank), axis=-1)
        values = xp.take_along_axis(losses[..., column], order, axis=-1)
        extent = xp.take_along_axis(values, ends, axis=-1) - xp.take_along_axis(values, starts, axis=-1)
        before, after = xp.roll(values, 1, axis=-1), xp.roll(values, -1, axis=-1)
        gap = xp.where(at_an_end, xp.inf, after - before)
        room = xp.where(extent > 0, gap / xp.where(extent > 0, extent, 1.0), 0.0)
        distance = distance + restored(xp, room, order)
    return distance


def runs(xp: ModuleType, ascending: Array) -> tuple[Array, Array]:
    """First and last position of the values equal to each of `ascending`, along the last axis."""
    places = positions(xp, ascending)
    changes = ascending[..., 1:] != ascending[..., :-1]
    edge = xp.ones_like(ascending[..., :1], dtype=bool)
    starts = _running_max(xp, xp.where(xp.concatenate([edge, changes], axis=-1), places, 0))
    n = ascending.shape[-1]
    from_behind = xp.flip(xp.where(xp.concatenate([changes, edge], axis=-1), n - 1 - places, 0), axis=-1)
    return starts, n - 1 - xp.flip(_running_max(xp, from_behind), axis=-1)


def positions(xp: ModuleType, values: Array) -> Array:
    """0, 1, ... along the last axis of an array shaped as `values`."""
    numbers = np.arange(values.shape[-1]).reshape((1,) * (values.ndim - 1) + (-1,))
    return xp.broadcast_to(xp.asarray(numbers), values.shape)


def _running_max(xp: ModuleType, values: Array) -> Array:
    """The largest of all values up to each one, along the last axis."""
    if xp is np:
        return np.maximum.accumulate(values, axis=-1)
    from jax import lax

    return lax.cummax(values, axis=values.ndim - 1)
