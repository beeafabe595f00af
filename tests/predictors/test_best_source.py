from __future__ import annotations

import numpy as np
import pytest
from device_family import draw_family
from scipy.stats import spearmanr

from hanax.predictors import BestSourcePredictor
from hanax.predictors._best_source import _most_alike
from hanax.predictors._source_models import fit_source_models


@pytest.mark.parametrize("source", [0, 3, 7])
def test_a_device_that_is_a_source_in_other_clothes_is_recognised(source: int) -> None:
    family = draw_family(source)
    costs = 5.0 * np.exp(1.3 * fit_source_models(family.pool).log_costs(family.X)[:, source])
    predictor = BestSourcePredictor(family.pool).fit(family.X[:10], costs[:10])
    assert predictor.source_ == source
    np.testing.assert_allclose(predictor.predict(family.X), costs, rtol=2e-3)


def test_the_ranking_is_that_of_the_source() -> None:
    family = draw_family(1)
    predictor = BestSourcePredictor(family.pool).fit(family.X[:10], family.y[:10])
    of_source = fit_source_models(family.pool).log_costs(family.X)[:, predictor.source_]
    assert spearmanr(predictor.predict(family.X), of_source).statistic == pytest.approx(1.0)


def test_leave_one_out_models_are_those_of_the_other_samples_with_a_source_of_their_own() -> None:
    """With one penalty only, as the fit without a sample chooses among several by what it has."""
    chosen = set()
    for seed in range(6):
        family = draw_family(seed, noise=0.15)
        X, y = family.X[:8], family.y[:8]
        predictor = BestSourcePredictor(family.pool, alphas=(0.1,)).fit(X, y)
        for left_out in range(8):
            others = BestSourcePredictor(family.pool, alphas=(0.1,)).fit(
                np.delete(X, left_out, 0), np.delete(y, left_out)
            )
            chosen.add(others.source_ == predictor.source_)
            np.testing.assert_allclose(predictor.loo_coef_[left_out], others.coef_, atol=1e-9)
            assert predictor.loo_intercept_[left_out] == pytest.approx(others.intercept_)
            miss = np.log(y[left_out] / others.predict(X[[left_out]])[0])
            assert predictor.loo_residuals_[left_out] == pytest.approx(miss)
    assert chosen == {True, False}


def test_of_sources_that_rank_alike_the_more_proportional_one_is_taken() -> None:
    logs = np.array([0.0, 1.0, 2.0, 4.0])
    sources = np.column_stack([np.exp(5 * logs), -logs, 2 * logs, np.zeros(4)])
    assert _most_alike(sources, logs) == 2
    assert _most_alike(sources[:, [1, 3]], logs) == 1


def test_two_samples_are_too_few() -> None:
    family = draw_family(0)
    with pytest.raises(ValueError, match="3 samples or more"):
        BestSourcePredictor(family.pool).fit(family.X[:2], family.y[:2])
