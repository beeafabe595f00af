"""What every source device of a pool costs, for any network: a ridge regression of each device's log costs.

A model of a device knows networks that were never measured on it, and less of the noise of those that were. What it
leaves out is a device's level, which says what unit its costs have: predictors that use these models learn it anew.

Shapes: `a` networks of the pool, `f` features, `m` source devices, `n` networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import training_data
from hanax.predictors._source_pool import SourcePool, is_alive

GROUP_SCALES = {"options": 1.0, "pairs": 0.5, "stages": 0.3, "work": 0.3}
"""The groups of columns that the models read. Joint options count less than those they consist of, as an interaction is
expected to be the smaller; sums over the network are in units of their spread."""

INDICATORS = ("options", "pairs")
"""Those of them whose columns are 0 or 1."""

SOURCE_ALPHAS = tuple(np.logspace(-6, 4, 21).tolist())


@dataclass(frozen=True, slots=True)
class SourceModels:
    """Linear models of the log costs of all devices of a pool, in the columns of its `X`.

    Attributes:
        coef, intercept: Of the log costs, shapes (f, m) and (m,).
        centre: Mean of every column over the pool, shape (f,).
        covariance: Of the columns over the pool, shape (f, f).
        residual: Mean squared leave-one-out error of each device's model, in log cost, shape (m,): noise, and what the
            columns do not explain.
        weight: How much every column counts, shape (f,): a coefficient is expected to be of this size, and those of
            columns that the models do not read, or that never change, are 0.
    """

    coef: Floats
    intercept: Floats
    centre: Floats
    covariance: Floats
    residual: Floats
    weight: Floats

    def log_costs(self, X: Floats) -> Floats:
        """Log cost of each row of `X` on each device, shape (n, m)."""
        return X @ self.coef + self.intercept


def fit_source_models(pool: SourcePool) -> SourceModels:
    """The models of all devices of `pool`, each from the networks that were measured on it.

    Raises:
        ValueError: `pool` has none of the columns that the models read, a cost that is not above 0, or a device with
            fewer than two costs; says which.
    """
    return _fit(PoolContent.of(pool))


def few_shot_data(predictor: Any, X: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Features of the samples of a predictor that has a `pool`, shape (n, f), and the logarithms of their costs, (n,).

    Raises:
        ValueError: `X` has not the columns of the pool, a cost is not above 0, or what scikit-learn refuses.
    """
    features, costs = training_data(predictor, X, y)
    n_columns = predictor.pool.X.shape[1]
    if features.shape[1] != n_columns:
        raise ValueError(
            f"X has {features.shape[1]} columns, the networks of the pool have {n_columns}; both must be the "
            "latency_features of one space"
        )
    if costs.min() <= 0:
        raise ValueError(f"costs must be above 0; the least of {len(costs)} is {costs.min()}")
    return features, np.log(costs)


@dataclass(frozen=True)
class PoolContent:
    """A pool that equals others with the same content, so that what follows from it is computed once."""

    fingerprint: str
    pool: SourcePool = field(compare=False)

    @classmethod
    def of(cls, pool: SourcePool) -> PoolContent:
        """That of `pool`."""
        return cls(pool.fingerprint, pool)


@lru_cache(maxsize=16)
def _fit(content: PoolContent) -> SourceModels:
    pool = content.pool
    costs = np.asarray(pool.costs, dtype=np.float64)
    # a runtime may drop most of a network without a path: what is left says nothing about others
    measured = np.isfinite(costs) & is_alive(pool.X, pool.groups)[:, None]
    for device, column, known in zip(pool.devices, costs.T, measured.T, strict=True):
        if known.sum() < 2:
            raise ValueError(f"source device {device} has {known.sum()} costs of whole networks; it needs two or more")
        if column[known].min() <= 0:
            raise ValueError(f"source device {device}: costs must be above 0; the least is {column[known].min()}")
    centre, weight = _scales(pool)
    used = np.flatnonzero(weight)
    basis = (pool.X[:, used] - centre[used]) * weight[used]
    logs = np.log(np.where(measured, costs, 1.0))
    coef = np.zeros((len(weight), costs.shape[1]))
    intercept, residual = np.zeros((2, costs.shape[1]))
    masks, kind = np.unique(measured, axis=1, return_inverse=True)
    for number, rows in enumerate(masks.T):  # devices with the same networks have their decomposition in common
        devices = np.flatnonzero(kind.ravel() == number)
        scaled, intercept[devices], residual[devices] = _ridge(basis[rows], logs[np.ix_(rows, devices)], SOURCE_ALPHAS)
        coef[np.ix_(used, devices)] = scaled * weight[used, None]
    centred = pool.X - centre
    return SourceModels(coef, intercept - centre @ coef, centre, centred.T @ centred / len(centred), residual, weight)


def _scales(pool: SourcePool) -> tuple[Floats, Floats]:
    """`SourceModels.centre` and `SourceModels.weight`."""
    centre, spread = pool.X.mean(axis=0), pool.X.std(axis=0)
    weight = np.zeros(len(centre))
    for group, scale in GROUP_SCALES.items():
        if group in pool.groups:
            columns = slice(*pool.groups[group])
            unit = 1.0 if group in INDICATORS else np.where(spread[columns] > 0, spread[columns], 1.0)
            weight[columns] = scale / unit
    weight[spread <= 1e-9 * np.maximum(np.abs(centre), 1.0)] = 0.0
    if not weight.any():
        raise ValueError(
            f"no column of the groups {', '.join(GROUP_SCALES)} changes over the pool; its groups are "
            f"{', '.join(pool.groups)}"
        )
    return centre, weight


def _ridge(basis: Floats, targets: Floats, alphas: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """Ridge regressions of `targets`, shape (a, t), on `basis`, shape (a, q).

    Each target has the penalty with the least squared leave-one-out error; of equals the largest.

    Returns:
        Coefficients, shape (q, t), intercepts, (t,), and mean squared leave-one-out errors, (t,).
    """
    mean, level = basis.mean(axis=0), targets.mean(axis=0)
    left, singular, right = np.linalg.svd(basis - mean, full_matrices=False)
    kept = singular > 1e-10 * max(singular.max(initial=0.0), np.finfo(float).tiny)
    left, singular, right = left[:, kept], singular[kept], right[kept]
    along = left.T @ (targets - level)
    rest = targets - level - left @ along
    least = np.full(targets.shape[1], np.inf)
    alpha = np.full(targets.shape[1], max(alphas))
    for candidate in sorted(alphas, reverse=True):
        kept_share = candidate / (singular**2 + candidate)
        residuals = rest + left @ (kept_share[:, None] * along)
        # 1 minus the diagonal of the hat matrix, as a sum of non-negative parts
        free = np.maximum(1.0 - 1.0 / len(targets) - (left**2).sum(axis=1), 0.0) + left**2 @ kept_share
        error = np.mean((residuals / np.maximum(free, 1e-9)[:, None]) ** 2, axis=0)
        alpha, least = np.where(error < least, candidate, alpha), np.minimum(error, least)
    coef = right.T @ (singular[:, None] / (singular[:, None] ** 2 + alpha) * along)
    return coef, level - mean @ coef, least
