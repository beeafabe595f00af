"""Which networks to measure on a device: those that would tell most about all others, known before any measurement.

Shapes: `n` candidates, `r` networks that predictions are wanted for, `f` features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hanax.predictors._kernels import Kernels, latency_kernels
from hanax.predictors._leave_one_out import Floats
from hanax.predictors._source_pool import Groups, SourcePool, group_columns, is_alive

N_CANDIDATES = 300
N_REFERENCE = 400
NOISE = 0.1
"""Noise variance that measurements are expected to have, in units of the costs' variance."""

Indices = NDArray[np.int64]


def choose_archs(
    pool: SourcePool | None, X: Floats, n: int, rng: np.random.Generator, groups: Groups | None = None
) -> Indices:
    """`n` of the networks with features `X`, shape (n, f), to measure on a new device: their indices, best first.

    Greedy: each one lessens the mean posterior variance over random networks of `X` most (Cohn, 1996,
    doi:10.1016/0893-6080(95)00137-9), with all kernels of `TransferPredictor` counting the same. Where that would leave
    the number of some class of operator the same in all of them, the last ones give way to networks that have more or
    less of it. Networks of which a runtime may drop a part are left alone.

    Args:
        pool: Costs on other devices; without one, `groups` of the columns of `X`.
        rng: Draws `N_CANDIDATES` of the networks to choose from; different ones give different choices of like worth.

    Raises:
        ValueError: `X` has fewer than `n` networks that can be chosen, or neither pool nor groups are given.
    """
    groups = groups if pool is None else pool.groups
    if groups is None:
        raise ValueError("give a pool of other devices, or without one the groups of the columns of X")
    usable = np.flatnonzero(is_alive(X, groups))
    if len(usable) < n:
        raise ValueError(f"{n} networks are wanted; {len(usable)} of {len(X)} can be chosen from")
    candidates = rng.permutation(usable)[: max(N_CANDIDATES, n)]
    reference = rng.permutation(usable)[:N_REFERENCE]
    kernels = latency_kernels(groups, X.shape[1], pool)
    shares = np.full(len(kernels.kernels), 1.0 / len(kernels.kernels))
    taken, _ = _greedy(kernels, shares, NOISE, X[candidates], X[reference], X[:0], n)
    operators = group_columns(X[candidates], groups, [name for name in ("counts", "live_counts") if name in groups])
    return candidates[_cover(operators, taken)]


def _cover(operators: Floats, taken: Indices) -> Indices:
    """`taken`, its last ones replaced until every column of `operators`, shape (n, k), varies among them.

    Columns that never vary do not count. All but the first may be replaced, so that with more classes of operators than
    networks some stay as they are.
    """
    chosen = taken.copy()
    varying = operators[:, np.ptp(operators, axis=0) > 0]
    for place in range(len(chosen) - 1, 0, -1):
        same = np.flatnonzero(np.ptp(varying[chosen], axis=0) == 0)
        if not len(same):
            break
        values = varying[:, same[0]]
        chosen[place] = int(np.argmax(np.abs(values - values[chosen[0]])))
    return chosen


def next_archs(
    kernels: Kernels, shares: Floats, noise: float, X: Floats, samples: Floats, n: int
) -> tuple[Indices, Floats]:
    """`n` rows of `X` to measure after `samples`, and the mean variance over `X` left with none, one, ... of them."""
    if len(X) < n:
        raise ValueError(f"{n} networks are wanted; there are {len(X)}")
    spread = np.linspace(0, len(X) - 1, min(len(X), max(N_CANDIDATES, n))).astype(np.int64)
    taken, remaining = _greedy(kernels, shares, noise, X[spread], X[spread], samples, n)
    return spread[taken], remaining


def _greedy(
    kernels: Kernels, shares: Floats, noise: float, X: Floats, reference: Floats, samples: Floats, n: int
) -> tuple[Indices, Floats]:
    """Rows of `X` in the order that lessens the mean variance over `reference` most, and what is left each time."""
    points = np.concatenate([samples, X])
    embedded, targets = kernels.embed(points), kernels.embed(reference)
    # the unknown level of the costs is one more function, a constant
    inner = 1.0 + np.tensordot(shares, kernels.between(embedded, embedded), axes=1)
    outer = 1.0 + np.tensordot(shares, kernels.between(targets, embedded), axes=1)
    left = 1.0 + shares @ kernels.own(targets)
    taken: list[int] = []
    remaining: list[float] = []
    free = np.arange(len(points)) >= len(samples)
    for step in range(len(samples) + n):
        if step >= len(samples):
            remaining.append(float(left.mean()))
        own = np.diag(inner) + noise
        gain = (outer**2).mean(axis=0) / own
        best = step if step < len(samples) else int(np.argmax(np.where(free, gain, -1.0)))
        free[best] = False
        if step >= len(samples):
            taken.append(best - len(samples))
        row, column = inner[best] / own[best], outer[:, best].copy()
        left = left - column**2 / own[best]
        outer = outer - np.outer(column, row)
        inner = inner - np.outer(inner[best], row)
    remaining.append(float(left.mean()))
    return np.array(taken, dtype=np.int64), np.maximum(np.array(remaining), 1e-12)
