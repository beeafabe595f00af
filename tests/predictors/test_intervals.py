from __future__ import annotations

import numpy as np
import pytest

from hanax.predictors import AdditivePredictor, RidgePredictor


def _draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    X = rng.integers(0, 2, size=(n, 12)).astype(float)
    return X, X @ np.linspace(1, 3, 12) + rng.normal(size=n)


@pytest.mark.parametrize("predictor", [RidgePredictor(), AdditivePredictor(prior_columns=(0,))])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("n", [15, 60])
def test_intervals_cover_what_they_promise(
    predictor: RidgePredictor | AdditivePredictor, coverage: float, n: int
) -> None:
    hits = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        X, y = _draw(rng, n)
        X_new, y_new = _draw(rng, 200)
        lower, upper = predictor.fit(X, y).predict_interval(X_new, coverage)
        hits.append(np.mean((lower <= y_new) & (y_new <= upper)))
    assert coverage - 0.03 < np.mean(hits) < coverage + 0.06


def test_bounds_are_the_honest_order_statistics_of_the_leave_one_out_models() -> None:
    X, y = _draw(np.random.default_rng(0), 24)
    X_new, _ = _draw(np.random.default_rng(1), 5)
    predictor = RidgePredictor().fit(X, y)
    lower, upper = predictor.predict_interval(X_new, 0.9)
    rank = 23  # ceil(25 * 0.9)
    for row, low, high in zip(X_new, lower, upper, strict=True):
        left_out = predictor.loo_coef_ @ row + predictor.loo_intercept_
        miss = np.abs(predictor.loo_residuals_)
        assert high == pytest.approx(np.sort(left_out + miss)[rank - 1])
        assert low == pytest.approx(-np.sort(-(left_out - miss))[rank - 1])


@pytest.mark.parametrize(("n", "coverage", "is_finite"), [(8, 0.9, False), (9, 0.9, True), (18, 0.95, False)])
def test_intervals_are_infinite_where_the_samples_cannot_promise_the_coverage(
    n: int, coverage: float, is_finite: bool
) -> None:
    X, y = _draw(np.random.default_rng(2), n)
    lower, upper = RidgePredictor().fit(X, y).predict_interval(X, coverage)
    assert np.isfinite(lower).all() == np.isfinite(upper).all() == is_finite


def test_many_rows_get_the_same_bounds_as_few() -> None:
    X, y = _draw(np.random.default_rng(3), 30)
    X_new, _ = _draw(np.random.default_rng(4), 9000)
    predictor = RidgePredictor().fit(X, y)
    whole = predictor.predict_interval(X_new)
    part = predictor.predict_interval(X_new[4000:4200])
    np.testing.assert_allclose(np.stack(whole)[:, 4000:4200], np.stack(part))


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90])
def test_a_coverage_that_is_no_probability_is_refused(coverage: float) -> None:
    X, y = _draw(np.random.default_rng(5), 20)
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.9"):
        RidgePredictor().fit(X, y).predict_interval(X, coverage)
