from __future__ import annotations

import numpy as np
import pytest
from device_family import DeviceFamily, draw_family

from hanax.predictors import PrincipalComponentsPredictor


@pytest.fixture(scope="module")
def family() -> DeviceFamily:
    return draw_family(0, n_sources=4, noise=0.0)


def mixed_costs(family: DeviceFamily, weights: np.ndarray) -> np.ndarray:
    """Costs on a device whose log cost is a mix of what the models say of the sources."""
    fitted = PrincipalComponentsPredictor(family.pool).fit(family.X[:10], family.y[:10])
    assert fitted.components_.shape == (family.X.shape[1], 4)
    from hanax.predictors._source_models import fit_source_models

    return np.exp(3.0 + fit_source_models(family.pool).log_costs(family.X) @ weights)


def test_a_mix_of_the_sources_is_recovered_exactly(family: DeviceFamily) -> None:
    costs = mixed_costs(family, np.array([0.7, -0.4, 0.1, 0.9]))
    predictor = PrincipalComponentsPredictor(family.pool).fit(family.X[:10], costs[:10])
    np.testing.assert_allclose(predictor.predict(family.X), costs, rtol=1e-5)
    lower, upper = predictor.predict_interval(family.X[10:])
    assert (upper / lower < 1.0001).all()


def test_fewer_components_than_ways_in_which_devices_differ_do_not_suffice(family: DeviceFamily) -> None:
    costs = mixed_costs(family, np.array([0.7, -0.4, 0.1, 0.9]))
    predictor = PrincipalComponentsPredictor(family.pool, n_components=1).fit(family.X[:10], costs[:10])
    assert np.abs(predictor.predict(family.X) / costs - 1).max() > 0.01


def test_components_are_uncorrelated_over_the_pool_and_in_order_of_their_spread(family: DeviceFamily) -> None:
    predictor = PrincipalComponentsPredictor(family.pool).fit(family.X[:10], family.y[:10])
    scores = family.pool.X @ predictor.components_ + predictor.offset_
    spread = scores.std(axis=0)
    assert spread[0] == pytest.approx(1.0)
    assert (np.diff(spread) < 0).all()
    np.testing.assert_allclose(np.corrcoef(scores[:, :3], rowvar=False), np.eye(3), atol=1e-6)


def test_there_are_no_more_components_than_source_devices(family: DeviceFamily) -> None:
    pool = family.pool.columns(family.pool.devices[:2])
    assert PrincipalComponentsPredictor(pool).fit(family.X[:10], family.y[:10]).components_.shape[1] == 2


def test_no_components_are_refused(family: DeviceFamily) -> None:
    with pytest.raises(ValueError, match="n_components must be at least 1; got 0"):
        PrincipalComponentsPredictor(family.pool, n_components=0).fit(family.X[:10], family.y[:10])
