"""Leave-one-out by algebra against leave-one-out by refitting."""

from __future__ import annotations

import numpy as np
import pytest

from hanax.predictors import AdditivePredictor, RidgePredictor


def _ridge_by_refitting(X: np.ndarray, y: np.ndarray, free: list[int], alpha: float) -> np.ndarray:
    """Coefficients, intercept last, by solving the normal equations."""
    design = np.column_stack([X, np.ones(len(y))])
    penalty = np.full(design.shape[1], alpha)
    penalty[[*free, -1]] = 0.0
    return np.linalg.solve(design.T @ design + np.diag(penalty), design.T @ y)


def _data(n: int, f: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * f)
    X = rng.normal(size=(n, f)) + 3.0
    return X, X @ rng.normal(size=f) + rng.normal(size=n) * 2.0


SHAPES = [(12, 30), (40, 8), (9, 8)]
FREE = [[], [0, 3]]


def _predictor(free: list[int], alphas: tuple[float, ...]) -> RidgePredictor | AdditivePredictor:
    return AdditivePredictor(tuple(free), alphas) if free else RidgePredictor(alphas)


@pytest.mark.parametrize(("n", "f"), SHAPES)
@pytest.mark.parametrize("free", FREE)
def test_the_model_and_its_leave_one_out_models_equal_refits_with_one_penalty(n: int, f: int, free: list[int]) -> None:
    X, y = _data(n, f)
    predictor = _predictor(free, (0.7,)).fit(X, y)
    whole = _ridge_by_refitting(X, y, free, 0.7)
    np.testing.assert_allclose([*predictor.coef_, predictor.intercept_], whole, rtol=1e-8, atol=1e-9)
    for i in range(n):
        others = np.arange(n) != i
        model = _ridge_by_refitting(X[others], y[others], free, 0.7)
        np.testing.assert_allclose([*predictor.loo_coef_[i], predictor.loo_intercept_[i]], model, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(predictor.loo_residuals_[i], y[i] - X[i] @ model[:-1] - model[-1], rtol=1e-7)


@pytest.mark.parametrize(("n", "f"), SHAPES)
@pytest.mark.parametrize("free", FREE)
def test_leave_one_out_models_choose_their_own_penalty_as_a_refit_would(n: int, f: int, free: list[int]) -> None:
    X, y = _data(n, f)
    alphas = tuple(np.logspace(-3, 3, 13))
    predictor = _predictor(free, alphas).fit(X, y)
    for i in range(n):
        others = np.arange(n) != i
        refit = _predictor(free, alphas).fit(X[others], y[others])
        np.testing.assert_allclose(predictor.loo_coef_[i], refit.coef_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(predictor.loo_residuals_[i], y[i] - refit.predict(X[[i]])[0], rtol=1e-6)


def test_the_penalty_is_the_one_with_the_least_leave_one_out_error() -> None:
    X, y = _data(25, 40)
    alphas = tuple(np.logspace(-3, 3, 13))

    def error(alpha: float) -> float:
        misses = [
            y[i] - np.append(X[i], 1.0) @ _ridge_by_refitting(np.delete(X, i, 0), np.delete(y, i), [], alpha)
            for i in range(len(y))
        ]
        return float(np.mean(np.square(misses)))

    assert RidgePredictor(alphas).fit(X, y).alpha_ == min(alphas, key=error)


def test_duplicate_rows_and_columns_leave_the_algebra_exact() -> None:
    X, y = _data(14, 6)
    X, y = np.vstack([X, X[:4]]), np.concatenate([y, y[:4] + 0.1])
    X = np.column_stack([X, X[:, :2], np.ones(len(X))])
    predictor = RidgePredictor((1e-3, 1.0)).fit(X, y)
    for i in range(len(y)):
        refit = RidgePredictor((1e-3, 1.0)).fit(np.delete(X, i, 0), np.delete(y, i))
        np.testing.assert_allclose(predictor.loo_residuals_[i], y[i] - refit.predict(X[[i]])[0], rtol=1e-6)


def test_too_few_samples_for_the_free_columns_are_refused_with_their_number() -> None:
    X, y = _data(3, 4)
    with pytest.raises(ValueError, match="sample 0 of 3 alone determines one of the 3 coefficients"):
        AdditivePredictor(prior_columns=(0, 1)).fit(X, y)
