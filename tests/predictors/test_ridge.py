from __future__ import annotations

import numpy as np
import pytest

from hanax.predictors import RidgePredictor


def _latencies(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 3, size=(n, 8)).astype(float)
    return X, np.exp(0.3 * X @ np.linspace(-1, 1, 8) + 0.05 * rng.normal(size=n))


def test_a_logarithmic_target_predicts_positive_costs_in_the_unit_of_y() -> None:
    X, latency_ms = _latencies(60, 0)
    X_new, latency_ms_new = _latencies(300, 1)
    predictor = RidgePredictor(log_target=True).fit(X, latency_ms)
    lower, upper = predictor.predict_interval(X_new)
    assert (lower > 0).all()
    assert (lower < predictor.predict(X_new)).all()
    assert (predictor.predict(X_new) < upper).all()
    assert np.mean(np.abs(predictor.predict(X_new) / latency_ms_new - 1)) < 0.06
    assert np.mean((lower <= latency_ms_new) & (latency_ms_new <= upper)) > 0.85


def test_a_logarithmic_target_does_not_depend_on_the_unit() -> None:
    X, latency_ms = _latencies(40, 2)
    in_ms = RidgePredictor(log_target=True).fit(X, latency_ms)
    in_us = RidgePredictor(log_target=True).fit(X, latency_ms * 1000)
    np.testing.assert_allclose(in_us.predict(X), in_ms.predict(X) * 1000)
    np.testing.assert_allclose(in_us.predict_interval(X), np.stack(in_ms.predict_interval(X)) * 1000)


def test_a_logarithmic_target_refuses_costs_that_are_not_positive() -> None:
    X, latency_ms = _latencies(20, 3)
    latency_ms[7] = 0.0
    with pytest.raises(ValueError, match=r"log_target needs costs above 0; the least of 20 is 0\.0"):
        RidgePredictor(log_target=True).fit(X, latency_ms)


def test_the_order_of_the_samples_does_not_matter() -> None:
    X, latency_ms = _latencies(30, 4)
    order = np.random.default_rng(5).permutation(30)
    one, other = RidgePredictor().fit(X, latency_ms), RidgePredictor().fit(X[order], latency_ms[order])
    np.testing.assert_allclose(one.predict(X), other.predict(X))
    np.testing.assert_allclose(one.predict_interval(X), other.predict_interval(X))


@pytest.mark.parametrize("alphas", [(), (0.0, 1.0), (-1.0,)])
def test_penalties_that_are_not_positive_are_refused(alphas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="alphas must be positive"):
        RidgePredictor(alphas=alphas).fit(*_latencies(10, 6))
