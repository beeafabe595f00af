from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from device_family import DeviceFamily, draw_family
from scipy.integrate import quad
from scipy.stats import invgamma, norm, t

from hanax.predictors import HierarchicalBayesPredictor
from hanax.predictors._hierarchical_bayes import FACTOR_SHAPE, LEVEL_VARIANCE, WeightPrior, weight_prior
from hanax.predictors._source_models import fit_source_models

N = 10
FIXED = {"shares": (0.1,), "noises": (0.03,)}


@pytest.fixture(scope="module")
def family() -> DeviceFamily:
    return draw_family(0, n_new=60)


def prior_of(family: DeviceFamily, share: float = 0.1) -> tuple[WeightPrior, np.ndarray]:
    """The prior, and the covariance matrix of the weights that it stands for."""
    models = fit_source_models(family.pool)
    prior = weight_prior(models, range(len(family.pool.devices)), share)
    return prior, prior.directions @ prior.directions.T + np.diag(prior.scale**2)


def condition(family: DeviceFamily) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Mean and covariance of the log costs of all networks but the first `N`, given these; by the textbook, densely.

    With them the degrees of freedom and the factor of the variances.
    """
    prior, covariance_of_weights = prior_of(family)
    centred = family.X - fit_source_models(family.pool).centre
    joint = centred @ covariance_of_weights @ centred.T + LEVEL_VARIANCE * prior.variance
    joint += 0.03 * prior.variance * np.eye(len(joint))
    mean = centred @ prior.mean
    rest = np.log(family.y[:N]) - mean[:N]
    mean = mean + rest.mean()
    rest = rest - rest.mean()
    gain = joint[N:, :N] @ np.linalg.inv(joint[:N, :N])
    shape = FACTOR_SHAPE + (N - 1) / 2
    rate = FACTOR_SHAPE + rest @ np.linalg.solve(joint[:N, :N], rest) / 2
    return mean[N:] + gain @ rest, joint[N:, N:] - gain @ joint[:N, N:], 2 * shape, rate / shape


def test_predictions_are_the_joint_gaussian_conditioned_on_the_samples(family: DeviceFamily) -> None:
    mean, covariance, degrees, factor = condition(family)
    predictor = HierarchicalBayesPredictor(family.pool, **FIXED).fit(family.X[:N], family.y[:N])
    np.testing.assert_allclose(np.log(predictor.predict(family.X[N:])), mean, atol=1e-8)
    half_width = predictor.calibration_ * t.ppf(0.95, degrees) * np.sqrt(factor * np.diag(covariance))
    lower, upper = predictor.predict_interval(family.X[N:], 0.9)
    np.testing.assert_allclose(np.log(lower), mean - half_width, atol=1e-6)
    np.testing.assert_allclose(np.log(upper), mean + half_width, atol=1e-6)


def test_the_probability_of_a_budget_is_the_integral_over_the_unknown_factor(family: DeviceFamily) -> None:
    mean, covariance, degrees, factor = condition(family)
    predictor = HierarchicalBayesPredictor(family.pool, **FIXED).fit(family.X[:N], family.y[:N])
    budget = float(np.exp(mean[0]) * 1.02)
    deviation = predictor.calibration_ * np.sqrt(covariance[0, 0])
    of_factor = invgamma(degrees / 2, scale=factor * degrees / 2)
    expected, _ = quad(
        lambda f: norm.cdf(np.log(budget), mean[0], np.sqrt(f) * deviation) * of_factor.pdf(f), 0, np.inf
    )
    assert predictor.probability_below(family.X[[N]], budget)[0] == pytest.approx(expected, abs=1e-6)
    _, upper = predictor.predict_interval(family.X[[N]], 0.9)
    assert predictor.probability_below(family.X[[N]], float(upper[0]))[0] == pytest.approx(0.95)
    with pytest.raises(ValueError, match="a budget is a cost above 0; got 0"):
        predictor.probability_below(family.X, 0.0)


def test_the_prior_is_the_mean_and_the_covariance_of_the_sources_weights(family: DeviceFamily) -> None:
    models = fit_source_models(family.pool)
    prior, covariance = prior_of(family, share=1e-12)
    np.testing.assert_allclose(prior.mean, models.coef.mean(axis=1))
    np.testing.assert_allclose(covariance, np.cov(models.coef), atol=1e-9)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_shrinking_keeps_the_variance_over_networks(family: DeviceFamily, share: float) -> None:
    models = fit_source_models(family.pool)
    prior, covariance = prior_of(family, share)
    centred = family.pool.X - models.centre
    assert np.mean(np.diag(centred @ covariance @ centred.T)) == pytest.approx(prior.variance)
    assert prior.variance == pytest.approx(np.mean(np.diag(centred @ np.cov(models.coef) @ centred.T)))


def test_a_device_unlike_the_sources_gets_wide_intervals(family: DeviceFamily) -> None:
    def width(costs: np.ndarray) -> float:
        predictor = HierarchicalBayesPredictor(family.pool).fit(family.X[:N], costs[:N])
        lower, upper = predictor.predict_interval(family.X[N:])
        return float(np.log(upper / lower).mean())

    unlike = 1 / family.y
    assert width(unlike) > 3 * width(family.y)


def test_a_noisy_device_is_known_to_be_noisy(family: DeviceFamily) -> None:
    noise = np.exp(0.2 * np.random.default_rng(0).normal(size=40))
    clean = HierarchicalBayesPredictor(family.pool).fit(family.X[:40], family.y[:40])
    noisy = HierarchicalBayesPredictor(family.pool).fit(family.X[:40], family.y[:40] * noise)
    assert noisy.noise_ * noisy.factor_ > 10 * clean.noise_ * clean.factor_


def test_the_first_further_sample_is_the_best_of_all_by_brute_force(family: DeviceFamily) -> None:
    _, covariance, _, _ = condition(family)
    noise = 0.03 * prior_of(family)[0].variance
    covariance = covariance - noise * np.eye(len(covariance))
    left = [
        np.mean(np.diag(covariance) - covariance[:, c] ** 2 / (covariance[c, c] + noise))
        for c in range(len(covariance))
    ]
    predictor = HierarchicalBayesPredictor(family.pool, **FIXED).fit(family.X[:N], family.y[:N])
    chosen, remaining = predictor.further_samples(family.X[N:], 5)
    assert chosen[0] == np.argmin(left)
    now = np.mean(np.diag(covariance)) + noise
    assert remaining[0] == pytest.approx(np.sqrt((min(left) + noise) / now))
    assert (np.diff(remaining) < 0).all() and len(set(chosen.tolist())) == 5


def test_what_further_samples_promise_is_what_they_do(family: DeviceFamily) -> None:
    """The variances do not depend on the costs, but for the common factor."""
    X = family.X[N:]

    def variances(predictor: HierarchicalBayesPredictor) -> np.ndarray:
        return (predictor._distribution(X)[1] / predictor.calibration_) ** 2 / predictor.factor_

    before = HierarchicalBayesPredictor(family.pool, **FIXED).fit(family.X[:N], family.y[:N])
    chosen, remaining = before.further_samples(X, 4)
    rows = np.append(np.arange(N), N + chosen)
    after = HierarchicalBayesPredictor(family.pool, **FIXED).fit(family.X[rows], family.y[rows])
    ratio = np.sqrt(np.mean(variances(after)) / np.mean(variances(before)))
    assert ratio == pytest.approx(remaining[-1])


@pytest.mark.parametrize("n", [0, 51])
def test_a_number_of_further_samples_that_there_are_not_is_refused(family: DeviceFamily, n: int) -> None:
    predictor = HierarchicalBayesPredictor(family.pool).fit(family.X[:N], family.y[:N])
    with pytest.raises(ValueError, match=f"between 1 and the number of networks, 50; got {n}"):
        predictor.further_samples(family.X[N:], n)


def test_sources_that_are_all_the_same_are_a_prior_too(family: DeviceFamily) -> None:
    same = dataclasses.replace(family.pool, costs=np.repeat(family.pool.costs[:, :1], len(family.pool.devices), axis=1))
    predictor = HierarchicalBayesPredictor(same).fit(family.X[:N], family.y[:N])
    lower, upper = predictor.predict_interval(family.X)
    assert np.isfinite(lower).all() and (lower < upper).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": ()}, r"shares must be above 0 and at most 1, at least one of them; got \(\)"),
        ({"shares": (0.0, 1.0)}, "shares must be above 0"),
        ({"noises": (0.1, -1.0)}, "noises must be positive variances"),
    ],
)
def test_settings_out_of_range_are_refused(
    family: DeviceFamily, settings: dict[str, tuple[float, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalBayesPredictor(family.pool, **settings).fit(family.X[:N], family.y[:N])


def test_intervals_are_widened_by_what_source_devices_that_are_left_out_would_have_needed() -> None:
    """With far too small a noise forced upon the model, the sources know better."""
    covered, not_widened = [], []
    for seed in range(6):
        family = draw_family(seed, noise=0.1)
        predictor = HierarchicalBayesPredictor(family.pool, shares=(0.01,), noises=(1e-4,)).fit(
            family.X[:N], family.y[:N]
        )
        for hits in (covered, not_widened):
            lower, upper = predictor.predict_interval(family.X[N:], 0.9)
            hits.append(np.mean((lower <= family.y[N:]) & (family.y[N:] <= upper)))
            predictor.calibration_ = 1.0
    assert np.mean(not_widened) < 0.75
    assert 0.82 < np.mean(covered) < 0.97


def test_two_source_devices_say_nothing_about_how_wide_intervals_must_be(family: DeviceFamily) -> None:
    pool = family.pool.columns(family.pool.devices[:2])
    assert HierarchicalBayesPredictor(pool).fit(family.X[:N], family.y[:N]).calibration_ == 1.0
