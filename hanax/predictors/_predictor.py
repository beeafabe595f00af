"""What a predictor is, and what the linear ones have in common: prediction and jackknife+ intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from hanax.predictors._leave_one_out import Floats, fit_leave_one_out

ROWS_AT_A_TIME = 4096
"""Rows of `X` whose leave-one-out predictions are held in memory together."""


class Predictor(Protocol):
    """Learns one cost from features, in scikit-learn's convention, and says how sure it is.

    Shapes: `X` (n, f), `y` (n,), predictions and bounds (n,) in the unit of `y`.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Predictor:
        """Learn from measured costs `y`; returns self."""

    def predict(self, X: ArrayLike) -> Floats:
        """The cost of every row."""

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds that hold a new measurement with probability `coverage`."""


class LinearPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A linear model whose leave-one-out models are known exactly; the base of the final classes.

    Attributes:
        alpha_: The penalty chosen by leave-one-out.
        coef_, intercept_: The model, shape (f,) and a number.
        loo_coef_, loo_intercept_: The models that each leave out one sample, shapes (n, f) and (n,).
        loo_residuals_: What each of these misses its sample by, shape (n,).
    """

    alpha_: float
    coef_: Floats
    intercept_: float
    loo_coef_: Floats
    loo_intercept_: Floats
    loo_residuals_: Floats

    def predict(self, X: ArrayLike) -> Floats:
        """Predicted cost of each row of `X`, in the unit of the `y` of `fit`."""
        return self._to_cost(self._check(X) @ self.coef_ + self.intercept_)

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds for one new measurement at each row of `X`, in the unit of `y`.

        Jackknife+ (Barber et al., 2021, doi:10.1214/20-AOS1965) over the whole procedure, the choice of the penalty
        included. For samples drawn like the new rows it covers about `coverage`, and at least ``2 * coverage - 1``.
        The bounds are the ``ceil((n + 1) * coverage)``-th of `n` values, so they are infinite where `n` is too small
        to promise `coverage`: below 9 samples for 0.9.

        Raises:
            ValueError: `coverage` is not between 0 and 1.
        """
        features = self._check(X)
        rank = _rank(len(self.loo_residuals_), coverage)
        bounds = [
            self._bounds(features[start : start + ROWS_AT_A_TIME], rank)
            for start in range(0, len(features), ROWS_AT_A_TIME)
        ]
        lower, upper = np.concatenate(bounds, axis=1)
        return self._to_cost(lower), self._to_cost(upper)

    def _bounds(self, features: Floats, rank: int) -> Floats:
        """Lower and upper bounds before `_to_cost`, shape (2, n)."""
        n = len(self.loo_residuals_)
        if rank > n:
            return np.stack([np.full(len(features), -np.inf), np.full(len(features), np.inf)])
        left_out = features @ self.loo_coef_.T + self.loo_intercept_
        spread = np.abs(self.loo_residuals_)
        lower = np.partition(left_out - spread, n - rank, axis=1)[:, n - rank]
        upper = np.partition(left_out + spread, rank - 1, axis=1)[:, rank - 1]
        return np.stack([lower, upper])

    def _learn(self, features: Floats, target: Floats, free_columns: Sequence[int], alphas: Sequence[float]) -> None:
        """Set the learned attributes; an intercept and `free_columns` are not shrunk."""
        if len(alphas) == 0 or min(alphas) <= 0:
            raise ValueError(f"alphas must be positive penalties, at least one of them; got {alphas}")
        columns = np.arange(features.shape[1])
        is_free = np.isin(columns, columns[list(free_columns)])
        mean = features.mean(axis=0)
        spread = np.where(is_free, features.std(axis=0), 1.0)
        scaled = (features - mean) / np.where(spread > 0, spread, 1.0)
        fit = fit_leave_one_out(
            np.column_stack([np.ones(len(target)), scaled[:, is_free]]), scaled[:, ~is_free], target, alphas
        )
        models = np.empty((len(target) + 1, features.shape[1]))
        models[:, is_free] = np.vstack([fit.loo_free_coef, fit.free_coef])[:, 1:]
        models[:, ~is_free] = np.vstack([fit.loo_shrunk_coef, fit.shrunk_coef])
        models /= np.where(spread > 0, spread, 1.0)
        intercepts = np.append(fit.loo_free_coef[:, 0], fit.free_coef[0]) - models @ mean
        self.alpha_ = fit.alpha
        self.coef_, self.intercept_ = models[-1], float(intercepts[-1])
        self.loo_coef_, self.loo_intercept_ = models[:-1], intercepts[:-1]
        self.loo_residuals_ = fit.loo_residuals

    def _check(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        features: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        return features

    def _to_cost(self, values: Floats) -> Floats:
        """Model output to the unit of `y`."""
        return values


class LogStudentPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A predictor whose log cost has Student's t distribution; the base of the final classes.

    Attributes:
        degrees_: Degrees of freedom of that distribution.
    """

    degrees_: float

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds that hold one new measurement of each row of `X` with probability `coverage`.

        Raises:
            ValueError: `coverage` is not between 0 and 1.
        """
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage is a probability between 0 and 1, such as 0.9; got {coverage}")
        median, scale = self._distribution(X)
        half_width = student_t.ppf(0.5 + coverage / 2, self.degrees_) * scale
        with np.errstate(over="ignore"):  # a network of which nothing is known has no upper bound
            return np.exp(median - half_width), np.exp(median + half_width)

    def probability_below(self, X: ArrayLike, budget: float) -> Floats:
        """Probability that a new measurement of each row of `X` is at most `budget`, in the unit of the `y` of `fit`.

        Raises:
            ValueError: `budget` is not above 0.
        """
        if not budget > 0:
            raise ValueError(f"a budget is a cost above 0; got {budget}")
        median, scale = self._distribution(X)
        return np.asarray(student_t.cdf((np.log(budget) - median) / scale, self.degrees_))

    def _distribution(self, X: ArrayLike) -> tuple[Floats, Floats]:
        """Median of each row's log cost, and the scale of its t distribution, shapes (n,)."""
        raise NotImplementedError


def training_data(predictor: BaseEstimator, X: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Features and costs as checked arrays; scikit-learn's errors for what does not fit."""
    features, costs = validate_data(predictor, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
    return features, np.asarray(costs, dtype=np.float64)


def _rank(n: int, coverage: float) -> int:
    """``ceil((n + 1) * coverage)``, undisturbed by rounding in the product."""
    if not 0.0 < coverage < 1.0:
        raise ValueError(f"coverage is a probability between 0 and 1, such as 0.9; got {coverage}")
    return math.ceil((n + 1) * coverage - 1e-9)
