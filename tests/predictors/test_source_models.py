from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from device_family import draw_family

from hanax.predictors._leave_one_out import fit_leave_one_out
from hanax.predictors._source_models import SOURCE_ALPHAS, _ridge, fit_source_models


def test_devices_without_noise_are_known_exactly_on_networks_they_never_ran() -> None:
    family = draw_family(0, noise=0.0)
    half = family.pool.rows(np.arange(100))
    found = fit_source_models(half).log_costs(family.pool.X[100:])
    np.testing.assert_allclose(found, np.log(family.pool.costs[100:]), atol=2e-3)


def test_a_model_has_less_noise_than_the_measurements() -> None:
    noisy, clean = draw_family(1, noise=0.1), draw_family(1, noise=0.0)
    truth = np.log(clean.pool.costs)
    found = fit_source_models(noisy.pool).log_costs(noisy.pool.X)
    assert np.std(found - truth) < 0.6 * np.std(np.log(noisy.pool.costs) - truth)


def test_each_device_is_fitted_to_what_was_measured_on_it() -> None:
    pool = draw_family(2).pool
    costs = pool.costs.copy()
    costs[::3, 0] = np.nan
    costs[1::4, 3] = np.nan
    holey = fit_source_models(dataclasses.replace(pool, costs=costs))
    whole = fit_source_models(pool)
    for device in range(len(pool.devices)):
        same = np.allclose(holey.coef[:, device], whole.coef[:, device], atol=1e-9)
        assert same == (device not in (0, 3))


@pytest.mark.parametrize("n", [12, 60])
def test_all_devices_at_once_get_the_ridge_of_each_alone(n: int) -> None:
    rng = np.random.default_rng(n)
    basis = rng.normal(size=(n, 20))
    targets = basis[:, :4] @ rng.normal(size=(4, 3)) + np.array([0.01, 0.5, 3.0]) * rng.normal(size=(n, 3))
    coef, intercept, _ = _ridge(basis, targets, SOURCE_ALPHAS)
    for column in range(3):
        alone = fit_leave_one_out(np.ones((n, 1)), basis - basis.mean(axis=0), targets[:, column], SOURCE_ALPHAS)
        np.testing.assert_allclose(coef[:, column], alone.shrunk_coef, atol=1e-8)
        assert intercept[column] == pytest.approx(alone.free_coef[0] - basis.mean(axis=0) @ alone.shrunk_coef)


def test_pools_of_the_same_content_have_their_models_in_common() -> None:
    pool = draw_family(3).pool
    assert fit_source_models(pool) is fit_source_models(dataclasses.replace(pool, X=pool.X.copy()))


def test_a_pool_without_columns_to_learn_from_is_refused() -> None:
    pool = draw_family(4).pool
    with pytest.raises(
        ValueError, match=r"no column of the groups options, pairs, .* changes over the pool; its groups are x"
    ):
        fit_source_models(dataclasses.replace(pool, groups={"x": (0, 5)}))
