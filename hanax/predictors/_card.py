"""What a predictor is worth on held-out measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, spearmanr
from sklearn.base import clone
from sklearn.model_selection import KFold

from hanax.predictors._leave_one_out import Floats


@dataclass(frozen=True, slots=True)
class PredictorCard:
    """Quality of a predictor on measurements that it never saw.

    Attributes:
        n: Measurements it was assessed on. By cross-validation, the models learned from a little fewer.
        spearman, kendall: Rank correlations of predicted with measured costs; NaN where either is constant.
        mape: Mean of ``|predicted - measured| / |measured|``, a fraction; NaN if a measured cost is 0.
        within_5_percent, within_10_percent: Share of networks predicted to within that of the measured cost.
        coverage: What the intervals promise.
        interval_coverage: Share of measured costs inside their intervals.
        mean_interval_width: In `unit`; infinite where there were too few samples for `coverage`.
        unit: Of the cost, e.g. ``ms``.
    """

    n: int
    spearman: float
    kendall: float
    mape: float
    within_5_percent: float
    within_10_percent: float
    coverage: float
    interval_coverage: float
    mean_interval_width: float
    unit: str


def make_card(
    predictor: Any, X: ArrayLike, y: ArrayLike, *, unit: str, coverage: float = 0.9, folds: int = 10, seed: int = 0
) -> PredictorCard:
    """Assess `predictor` (a `Predictor` that scikit-learn can clone; left unfitted) by K-fold cross-validation.

    Args:
        X: Features, shape (n, f).
        y: Measured costs, shape (n,), in `unit`.

    Raises:
        ValueError: Fewer samples than `folds`, or data that the predictor refuses.
    """
    features, costs = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
    predicted, lower, upper = np.empty((3, len(costs)))
    for known, held_out in KFold(folds, shuffle=True, random_state=seed).split(features):
        fitted = clone(predictor).fit(features[known], costs[known])
        predicted[held_out] = fitted.predict(features[held_out])
        lower[held_out], upper[held_out] = fitted.predict_interval(features[held_out], coverage)
    return compare_with_measured(predicted, (lower, upper), costs, unit=unit, coverage=coverage)


def compare_with_measured(
    predicted: ArrayLike, intervals: tuple[ArrayLike, ArrayLike], measured: ArrayLike, *, unit: str, coverage: float
) -> PredictorCard:
    """The card of predictions of costs that were not learned from.

    Args:
        predicted: Predicted costs, shape (n,), in `unit`.
        intervals: Lower and upper bounds that promise `coverage`, shapes (n,).
        measured: Shape (n,).

    Raises:
        ValueError: There are none, or the shapes differ.
    """
    found, costs = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    lower, upper = (np.asarray(bound, dtype=np.float64) for bound in intervals)
    if costs.ndim != 1 or len(costs) < 1 or not found.shape == lower.shape == upper.shape == costs.shape:
        raise ValueError(
            f"one prediction and one interval for each of one or more measured costs; got shapes {found.shape}, "
            f"{lower.shape} and {upper.shape} for {costs.shape}"
        )
    has_zero = bool(np.any(costs == 0))
    error = np.full(len(costs), np.nan) if has_zero else np.abs(found - costs) / np.abs(costs)
    ranks = not (_is_constant(costs) or _is_constant(found))
    return PredictorCard(
        n=len(costs),
        spearman=float(spearmanr(found, costs).statistic) if ranks else np.nan,
        kendall=float(kendalltau(found, costs).statistic) if ranks else np.nan,
        mape=float(error.mean()),
        within_5_percent=float(np.mean(np.abs(found - costs) <= 0.05 * np.abs(costs))),
        within_10_percent=float(np.mean(np.abs(found - costs) <= 0.10 * np.abs(costs))),
        coverage=coverage,
        interval_coverage=float(np.mean((lower <= costs) & (costs <= upper))),
        mean_interval_width=float(np.mean(upper - lower)),
        unit=unit,
    )


def _is_constant(values: Floats) -> bool:
    return bool(np.ptp(values) == 0)
