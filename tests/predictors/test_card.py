from __future__ import annotations

import numpy as np
import pytest

from hanax.predictors import AdditivePredictor, RidgePredictor, make_card


def _data(noise: float, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, size=(n, 10)).astype(float)
    return X, 20 + X @ np.sqrt(np.arange(2.0, 12.0)) * 3 + noise * rng.normal(size=n)


def test_a_cost_without_noise_gets_a_perfect_card() -> None:
    card = make_card(AdditivePredictor(), *_data(0.0), unit="ms")
    assert card.spearman > 0.9999
    assert card.kendall > 0.999
    assert card.mape < 1e-6
    assert card.within_5_percent == card.within_10_percent == 1.0
    assert (card.n, card.coverage, card.unit) == (80, 0.9, "ms")


def test_noise_shows_in_every_figure() -> None:
    card = make_card(RidgePredictor(), *_data(5.0), unit="ms", coverage=0.8)
    assert 0.5 < card.spearman < 0.97
    assert card.kendall < card.spearman
    assert 0.02 < card.mape < 0.2
    assert 0.0 < card.within_5_percent < card.within_10_percent < 1.0
    assert 0.7 < card.interval_coverage < 0.92
    assert 8 < card.mean_interval_width < 25


def test_the_same_seed_gives_the_same_card_and_the_predictor_stays_unfitted() -> None:
    predictor = RidgePredictor()
    assert make_card(predictor, *_data(3.0), unit="ms") == make_card(predictor, *_data(3.0), unit="ms")
    assert not hasattr(predictor, "coef_")


def test_a_random_cost_is_not_flattered() -> None:
    X, _ = _data(0.0)
    card = make_card(RidgePredictor(), X, np.random.default_rng(1).uniform(1, 2, size=len(X)), unit="ms")
    assert abs(card.spearman) < 0.35


def test_constant_costs_have_no_rank_correlation() -> None:
    X, y = _data(0.0)
    assert np.isnan(make_card(RidgePredictor(), X, np.ones_like(y), unit="ms").spearman)


def test_more_folds_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="n_splits=20"):
        make_card(RidgePredictor(), *_data(1.0, n=10), unit="ms", folds=20)
