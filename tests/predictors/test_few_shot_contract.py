"""What every predictor that learns a device from few samples and a pool of other devices promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from device_family import DeviceFamily, draw_family
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks

from hanax.predictors import (
    BestSourcePredictor,
    HierarchicalBayesPredictor,
    PrincipalComponentsPredictor,
    SourcePool,
    TransferPredictor,
)

FEW_SHOT: dict[str, Callable[[SourcePool], Any]] = {
    "best source": BestSourcePredictor,
    "principal components": PrincipalComponentsPredictor,
    "hierarchical Bayes": HierarchicalBayesPredictor,
    "transfer": TransferPredictor,
}

N = 10


@pytest.fixture(params=FEW_SHOT)
def make(request: pytest.FixtureRequest) -> Callable[[SourcePool], Any]:
    return FEW_SHOT[request.param]


@pytest.fixture(scope="module")
def family() -> DeviceFamily:
    return draw_family(0)


def rank_correlation(predictor: Any, family: DeviceFamily, n: int = N) -> float:
    predictor.fit(family.X[:n], family.y[:n])
    return float(spearmanr(predictor.predict(family.X[n:]), family.y[n:]).statistic)


def test_ten_samples_are_enough_for_a_device_like_the_sources(make: Callable[[SourcePool], Any]) -> None:
    families = [draw_family(seed) for seed in range(8)]
    assert np.median([rank_correlation(make(family.pool), family) for family in families]) > 0.8
    errors = []
    for family in families:
        predictor = make(family.pool).fit(family.X[:N], family.y[:N])
        errors.append(np.abs(predictor.predict(family.X[N:]) / family.y[N:] - 1).mean())
    assert np.median(errors) < 0.2


def test_a_mix_of_the_sources_is_better_than_the_best_of_them() -> None:
    families = [draw_family(seed) for seed in range(8)]
    error = {
        name: np.mean([np.abs(np.log(make(f.pool).fit(f.X[:N], f.y[:N]).predict(f.X[N:]) / f.y[N:])) for f in families])
        for name, make in FEW_SHOT.items()
    }
    assert error["principal components"] < 0.7 * error["best source"]
    assert error["hierarchical Bayes"] < 0.7 * error["best source"]


def test_more_samples_are_better(make: Callable[[SourcePool], Any]) -> None:
    errors = []
    for n in (6, 60):
        of_n = []
        for seed in range(8):
            family = draw_family(seed)
            predictor = make(family.pool).fit(family.X[:n], family.y[:n])
            of_n.append(np.abs(np.log(predictor.predict(family.X[60:]) / family.y[60:])).mean())
        errors.append(np.mean(of_n))
    assert errors[1] < errors[0]


def test_costs_are_predicted_in_the_unit_of_the_samples(
    make: Callable[[SourcePool], Any], family: DeviceFamily
) -> None:
    in_ms = make(family.pool).fit(family.X[:N], family.y[:N])
    in_us = make(family.pool).fit(family.X[:N], 1000 * family.y[:N])
    np.testing.assert_allclose(in_us.predict(family.X), 1000 * in_ms.predict(family.X), rtol=1e-6)
    np.testing.assert_allclose(
        in_us.predict_interval(family.X), 1000 * np.stack(in_ms.predict_interval(family.X)), rtol=1e-6
    )


def test_the_units_and_the_order_of_the_sources_do_not_matter(
    make: Callable[[SourcePool], Any], family: DeviceFamily
) -> None:
    pool = family.pool
    other = dataclasses.replace(pool, costs=pool.costs * np.logspace(-3, 6, len(pool.devices)))
    other = other.columns(pool.devices[::-1])
    expected = make(pool).fit(family.X[:N], family.y[:N]).predict(family.X)
    np.testing.assert_allclose(make(other).fit(family.X[:N], family.y[:N]).predict(family.X), expected, rtol=1e-6)


def test_the_order_of_the_samples_does_not_matter(make: Callable[[SourcePool], Any], family: DeviceFamily) -> None:
    order = np.random.default_rng(0).permutation(N)
    one = make(family.pool).fit(family.X[:N], family.y[:N])
    other = make(family.pool).fit(family.X[:N][order], family.y[:N][order])
    np.testing.assert_allclose(one.predict(family.X), other.predict(family.X), rtol=1e-6)
    np.testing.assert_allclose(one.predict_interval(family.X), other.predict_interval(family.X), rtol=1e-6)


def test_costs_that_the_pool_lacks_are_no_obstacle(make: Callable[[SourcePool], Any], family: DeviceFamily) -> None:
    costs = np.where(np.random.default_rng(1).random(family.pool.costs.shape) < 0.3, np.nan, family.pool.costs)
    holey = dataclasses.replace(family.pool, costs=costs)
    assert rank_correlation(make(holey), family) > rank_correlation(make(family.pool), family) - 0.05


def test_intervals_hold_what_they_promise(make: Callable[[SourcePool], Any]) -> None:
    hits = []
    for seed in range(40):
        family = draw_family(seed, n_pool=80, n_new=110)
        lower, upper = make(family.pool).fit(family.X[:N], family.y[:N]).predict_interval(family.X[N:], 0.9)
        hits.append(np.mean((lower <= family.y[N:]) & (family.y[N:] <= upper)))
    assert 0.85 < np.mean(hits) < 0.995  # some are made wider than a device exactly of the family needs


def test_intervals_hold_the_prediction_and_grow_with_the_coverage(
    make: Callable[[SourcePool], Any], family: DeviceFamily
) -> None:
    predictor = make(family.pool).fit(family.X[:20], family.y[:20])
    lower, upper = predictor.predict_interval(family.X, 0.9)
    narrow_lower, narrow_upper = predictor.predict_interval(family.X, 0.5)
    predicted = predictor.predict(family.X)
    assert (lower > 0).all() and (lower < predicted).all() and (predicted < upper).all()
    assert (narrow_upper - narrow_lower < upper - lower).all()


def test_one_source_device_is_enough(make: Callable[[SourcePool], Any], family: DeviceFamily) -> None:
    pool = family.pool.columns(family.pool.devices[:1])
    assert rank_correlation(make(pool), family) > 0.5


def test_fitting_changes_neither_the_pool_nor_the_settings(
    make: Callable[[SourcePool], Any], family: DeviceFamily
) -> None:
    X, costs = family.pool.X.copy(), family.pool.costs.copy()
    predictor = make(family.pool)
    settings = predictor.get_params()
    first = predictor.fit(family.X[:N], family.y[:N]).predict(family.X)
    assert predictor.get_params() == settings
    np.testing.assert_array_equal(family.pool.X, X)
    np.testing.assert_array_equal(family.pool.costs, costs)
    np.testing.assert_array_equal(predictor.fit(family.X[:N], family.y[:N]).predict(family.X), first)
    np.testing.assert_array_equal(clone(predictor).fit(family.X[:N], family.y[:N]).predict(family.X), first)


def test_what_cannot_be_learned_from_is_refused(make: Callable[[SourcePool], Any], family: DeviceFamily) -> None:
    predictor = make(family.pool)
    with pytest.raises(NotFittedError):
        predictor.predict(family.X)
    with pytest.raises(ValueError, match=r"X has 5 columns, the networks of the pool have 62"):
        predictor.fit(family.X[:N, :5], family.y[:N])
    with pytest.raises(ValueError, match=r"costs must be above 0; the least of 10 is -1\.0"):
        predictor.fit(family.X[:N], np.append(family.y[: N - 1], -1.0))
    with pytest.raises(ValueError, match="NaN"):
        predictor.fit(family.X[:N], np.append(family.y[: N - 1], np.nan))
    predictor.fit(family.X[:N], family.y[:N])
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.9"):
        predictor.predict_interval(family.X, 1.0)
    with pytest.raises(ValueError, match="features"):
        predictor.predict(family.X[:, :5])


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learn_accepts_it_as_far_as_its_checks_fit(
    make: Callable[[SourcePool], Any], family: DeviceFamily, check: Callable[[str, Any], None]
) -> None:
    """All checks that fit on data of their own are left out: these have other columns than the pool, and costs below 0.

    What they test of the input is what `training_data` and `validate_data` do, which are those of `RidgePredictor`.
    """
    predictor = make(family.pool)
    check(type(predictor).__name__, predictor)
