"""Bayesian linear regression whose prior was learned from other devices; everything is in closed form.

The log cost of a network on a device is ``level + x w`` plus noise. Over devices the weights `w` are normally
distributed; their mean and covariance are estimated on the source devices. A new device's samples then condition that
distribution (Rasmussen & Williams, 2006, chapter 2), with a common factor of all its variances that is unknown as
well: how unlike the sources the device is. With an inverse gamma prior of that factor, predictions are Student's t.

Shapes: `a` networks of the pool, `f` features, `m` source devices, `n` samples, `c` networks to predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from scipy.stats import t as student_t
from sklearn.utils.validation import check_is_fitted, validate_data

from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import LogStudentPredictor
from hanax.predictors._source_models import PoolContent, SourceModels, few_shot_data, fit_source_models
from hanax.predictors._source_pool import SourcePool, is_alive

SHARES = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
NOISES = tuple(np.logspace(-3.5, 0.5, 9).tolist())

LEVEL_VARIANCE = 1e4
"""Prior variance of a device's level, in units of the variance over networks: next to nothing is known of it."""

FACTOR_SHAPE = 2.0
"""Shape and rate of the inverse gamma prior of the factor of all variances: a device is likely to be like the sources,
but ten samples outweigh that."""

LEAST_NOISE_SPREAD = 0.7
"""Devices are taken to differ in the logarithm of their noise variance by at least this, a factor of two."""

CALIBRATED_COVERAGE = 0.9
"""The coverage for which the width of intervals is made right."""

N_DRAWS = 4
"""Sets of samples of each source device on which that is done."""

LEAST_CALIBRATION = 0.7

N_JUDGED = 30
"""Networks of each source device, left out in turn, on which `SHARES` are judged."""

LEAST_DIFFERENCE = 1e-4
"""Devices differ by at least this share of what networks differ by, in variance of the log cost."""


@dataclass(frozen=True, slots=True)
class WeightPrior:
    """What the weights of a device, for `X` less its mean, are before it was measured.

    Attributes:
        mean: Shape (f,).
        directions: Their covariance is ``directions @ directions.T + diag(scale ** 2)``; shapes (f, m) and (f,).
        variance: Of the log cost that this covariance means for a typical network of the pool.
    """

    mean: Floats
    directions: Floats
    scale: Floats
    variance: float

    def covariance(self, first: Floats, second: Floats) -> Floats:
        """Covariance of ``first @ w`` and ``second @ w``; shapes (n, f) and (c, f) give (n, c)."""
        along = (first @ self.directions) @ (second @ self.directions).T
        return np.asarray(along + (first * self.scale**2) @ second.T)

    def diagonal(self, first: Floats) -> Floats:
        """Variance of ``first @ w``, row by row."""
        return np.asarray(((first @ self.directions) ** 2).sum(axis=1) + (first**2) @ self.scale**2)


def weight_prior(models: SourceModels, devices: Sequence[int], share: float) -> WeightPrior:
    """The prior that the source `devices` suggest, from their models.

    The covariance over devices has one direction per device. It is shrunk towards one that has all directions, each
    as wide as `SourceModels.weight` says: of the variance of a typical network's log cost, `share` is of that kind.
    A single device does not show how devices differ: they are then taken to differ by as much as networks do.
    """
    coef = models.coef[:, list(devices)]
    mean = coef.mean(axis=1)
    over_networks = float(mean @ models.covariance @ mean)
    deviations = (coef - mean[:, None]) / np.sqrt(max(len(devices) - 1, 1))
    over_devices = float((deviations * (models.covariance @ deviations)).sum())
    variance = over_networks if len(devices) == 1 else max(over_devices, LEAST_DIFFERENCE * over_networks)
    variance = max(variance, np.finfo(float).tiny ** 0.5)
    spanned = over_devices / variance
    isotropic = float(np.diag(models.covariance) @ models.weight**2)
    share_of_rest = 1.0 - (1.0 - share) * min(spanned, 1.0)
    return WeightPrior(
        mean=mean,
        directions=deviations * np.sqrt(1.0 - share),
        scale=models.weight * np.sqrt(share_of_rest * variance / isotropic),
        variance=variance,
    )


@dataclass(frozen=True, slots=True)
class Posterior:
    """What log costs of networks are, given some samples: Student's t, for `centred` rows of `X`, less its mean.

    Attributes:
        prior: What was known before the samples.
        noise: Variance of the measurement noise, in units of the prior's variance over networks.
        coef, level: Of the median, shape (f,) and a number.
        known, known_level: What the samples have taught about the weights and the level, shapes (f, n) and (n,): the
            prior's covariance less their outer products is what is left.
        factor, degrees: Of all variances, and degrees of freedom.
    """

    prior: WeightPrior
    noise: float
    coef: Floats
    level: float
    known: Floats
    known_level: Floats
    factor: float
    degrees: float

    def medians(self, centred: Floats) -> Floats:
        """Median log cost of each row."""
        return np.asarray(centred @ self.coef + self.level)

    def scales(self, centred: Floats) -> Floats:
        """Scale of the t distribution of a new measurement's log cost, for each row."""
        known = ((centred @ self.known + self.known_level) ** 2).sum(axis=1)
        left = self.prior.diagonal(centred) + LEVEL_VARIANCE * self.prior.variance - known
        return np.asarray(np.sqrt(self.factor * (np.maximum(left, 0.0) + self.noise * self.prior.variance)))

    def covariance(self, centred: Floats) -> Floats:
        """Covariance of the log costs, without noise and up to the factor, shape (c, c)."""
        known = centred @ self.known + self.known_level
        prior = self.prior.covariance(centred, centred) + LEVEL_VARIANCE * self.prior.variance
        return np.asarray(prior - known @ known.T)


def condition(prior: WeightPrior, noise: float, centred: Floats, logs: Floats) -> Posterior:
    """The distribution `prior`, given the log costs `logs`, shape (n,), of networks `centred`, shape (n, f)."""
    covariance, residuals, level = _samples(prior, centred, logs)
    factor = np.linalg.cholesky(covariance + noise * prior.variance * np.eye(len(logs)))
    whitened = solve_triangular(factor, residuals, lower=True)
    shape = FACTOR_SHAPE + (len(logs) - 1) / 2  # one sample's worth goes into the level
    rate = FACTOR_SHAPE + float(whitened @ whitened) / 2
    along = prior.directions @ (centred @ prior.directions).T + prior.scale[:, None] ** 2 * centred.T
    known = solve_triangular(factor, along.T, lower=True).T
    known_level = solve_triangular(factor, np.full(len(logs), LEVEL_VARIANCE * prior.variance), lower=True)
    return Posterior(
        prior=prior,
        noise=noise,
        coef=prior.mean + known @ whitened,
        level=float(level + known_level @ whitened),
        known=known,
        known_level=known_level,
        factor=rate / shape,
        degrees=2 * shape,
    )


class HierarchicalBayesPredictor(LogStudentPredictor):
    """The cost of networks on a new device, from its samples and a prior over devices; with intervals.

    How much of the prior covariance is not spanned by the sources is judged on the source devices, each left out in
    turn, and on the samples; the noise on the samples, with the sources' as its prior; both by the marginal likelihood.
    The width of intervals is what would have been right for source devices that were left out, with as many samples.
    Costs are predicted by their median, in the unit of the `y` of `fit`, whatever the units of the pool are.

    Args:
        pool: Costs on other devices.
        shares: Of the variance that is not along the sources' differences, to choose from; above 0, at most 1.
        noises: Variances of the measurement noise to choose from, in units of the prior's variance over networks.

    Attributes:
        share_, noise_: Those chosen.
        coef_, intercept_: The median of the log cost is ``X @ coef_ + intercept_``; shapes (f,) and a number.
        centre_, directions_, scale_, variance_: The prior: mean of `X`, and as in `WeightPrior`.
        known_, known_level_, factor_, degrees_: As in `Posterior`.
        calibration_: Of the width of all intervals, a factor; 1 with fewer than three source devices.
    """

    share_: float
    noise_: float
    coef_: Floats
    intercept_: float
    centre_: Floats
    directions_: Floats
    scale_: Floats
    variance_: float
    known_: Floats
    known_level_: Floats
    factor_: float
    calibration_: float

    def __init__(
        self, pool: SourcePool, shares: tuple[float, ...] = SHARES, noises: tuple[float, ...] = NOISES
    ) -> None:
        self.pool = pool
        self.shares = shares
        self.noises = noises

    def fit(self, X: ArrayLike, y: ArrayLike) -> HierarchicalBayesPredictor:
        """Fit on `latency_features` `X` of the samples, shape (n, f), and their costs `y`, shape (n,); returns self.

        Raises:
            ValueError: Shares or noises out of range, columns that are not those of the pool, a cost that is not above
                0, or data that scikit-learn refuses.
        """
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares must be above 0 and at most 1, at least one of them; got {self.shares}")
        if not self.noises or min(self.noises) <= 0:
            raise ValueError(f"noises must be positive variances, at least one of them; got {self.noises}")
        features, logs = few_shot_data(self, X, y)
        content, shares, noises = PoolContent.of(self.pool), tuple(self.shares), tuple(self.noises)
        models = fit_source_models(self.pool)
        devices = range(len(self.pool.devices))
        on_sources = _evidence_of_sources(content, shares, noises).mean(axis=1)
        self.share_, found = _choose(models, devices, shares, noises, on_sources, features - models.centre, logs)
        self.calibration_ = _calibration(content, shares, noises, len(logs))
        self.centre_, self.noise_ = models.centre, found.noise
        self.coef_, self.intercept_ = found.coef, float(found.level - models.centre @ found.coef)
        self.directions_, self.scale_ = found.prior.directions, found.prior.scale
        self.variance_, self.factor_, self.degrees_ = found.prior.variance, found.factor, found.degrees
        self.known_, self.known_level_ = found.known, found.known_level
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Median cost of each row of `X`, in the unit of the `y` of `fit`."""
        return np.exp(self._check(X) @ self.coef_ + self.intercept_)

    def further_samples(self, X: ArrayLike, n: int) -> tuple[NDArray[np.intp], Floats]:
        """Which `n` rows of `X` to measure next, and how sure one would be after each.

        Each is the one that reduces the mean variance over `X` the most, given those before it; the costs need not be
        known for that. `X` should be some hundred networks of those that matter.

        Returns:
            Indices, shape (n,), and the root mean variance over `X` of a new measurement's log cost after each, as a
            share of what it is now, shape (n,).

        Raises:
            ValueError: `n` is not between 1 and the number of rows.
        """
        centred = self._check(X) - self.centre_
        if not 1 <= n <= len(centred):
            raise ValueError(f"n must be between 1 and the number of networks, {len(centred)}; got {n}")
        return _most_informative(self._posterior().covariance(centred), self.noise_ * self.variance_, n)

    def _distribution(self, X: ArrayLike) -> tuple[Floats, Floats]:
        """Median of each row's log cost, and the scale of its t distribution."""
        features = self._check(X)
        scale = self.calibration_ * self._posterior().scales(features - self.centre_)
        return features @ self.coef_ + self.intercept_, scale

    def _posterior(self) -> Posterior:
        """The learned attributes as one value. Its prior has the new mean: the old one is taken in and not needed."""
        return Posterior(
            prior=WeightPrior(self.coef_, self.directions_, self.scale_, self.variance_),
            noise=self.noise_,
            coef=self.coef_,
            level=float(self.intercept_ + self.centre_ @ self.coef_),
            known=self.known_,
            known_level=self.known_level_,
            factor=self.factor_,
            degrees=self.degrees_,
        )

    def _check(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        features: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        return features


def _choose(
    models: SourceModels,
    devices: Sequence[int],
    shares: Sequence[float],
    noises: Sequence[float],
    on_sources: Floats,
    centred: Floats,
    logs: Floats,
) -> tuple[float, Posterior]:
    """The share, and the posterior with it and with the noise, that are most likely.

    Args:
        devices: Whose models make the prior.
        on_sources: What the source devices say of each share, shape of `shares`.
    """
    log_noise = np.log(np.maximum(models.residual[list(devices)], np.finfo(float).tiny))
    spread = max(float(log_noise.std()), LEAST_NOISE_SPREAD)
    best, found = -np.inf, (shares[0], weight_prior(models, devices, shares[0]), noises[0])
    for share, of_sources in zip(shares, on_sources, strict=True):
        prior = weight_prior(models, devices, share)
        evidences = of_sources + _log_evidences(prior, centred, logs, noises)
        evidences -= 0.5 * ((np.log(np.array(noises) * prior.variance) - log_noise.mean()) / spread) ** 2
        if evidences.max() > best:
            best, found = float(evidences.max()), (share, prior, noises[int(np.argmax(evidences))])
    share, prior, noise = found
    return share, condition(prior, noise, centred, logs)


def _samples(prior: WeightPrior, centred: Floats, logs: Floats) -> tuple[Floats, Floats, float]:
    """Covariance of the samples without noise, what of `logs` the prior's mean leaves, and the level taken off that."""
    rest = logs - centred @ prior.mean
    return prior.covariance(centred, centred) + LEVEL_VARIANCE * prior.variance, rest - rest.mean(), float(rest.mean())


def _log_evidences(prior: WeightPrior, centred: Floats, logs: Floats, noises: Sequence[float]) -> Floats:
    """Log marginal likelihood of `logs` with each noise, up to a constant, without the factor of all variances."""
    covariance, residuals, _ = _samples(prior, centred, logs)
    values, vectors = np.linalg.eigh(covariance)
    variances = np.maximum(values, 0.0) + prior.variance * np.array(noises)[:, None]
    rates = FACTOR_SHAPE + ((vectors.T @ residuals) ** 2 / variances).sum(axis=1) / 2
    return np.asarray(-np.log(variances).sum(axis=1) / 2 - (FACTOR_SHAPE + (len(logs) - 1) / 2) * np.log(rates))


@lru_cache(maxsize=64)
def _evidence_of_sources(content: PoolContent, shares: tuple[float, ...], noises: tuple[float, ...]) -> Floats:
    """For each of `shares`, how well the prior from the other source devices foretells each, shape (shares, m).

    Every device has the noise that suits it best. The mean over devices lets all together count as much as one more.
    Below three devices the others do not show how devices differ: all zeros.
    """
    pool, models = content.pool, fit_source_models(content.pool)
    devices = range(len(pool.devices))
    evidences = np.zeros((len(shares), len(devices)))
    for left_out in devices if len(devices) >= 3 else ():
        centred, logs = _measured(content, left_out)
        rows = np.linspace(0, len(logs) - 1, min(N_JUDGED, len(logs))).astype(int)
        others = [device for device in devices if device != left_out]
        for number, share in enumerate(shares):
            prior = weight_prior(models, others, share)
            evidences[number, left_out] = _log_evidences(prior, centred[rows], logs[rows], noises).max()
    return evidences


@lru_cache(maxsize=64)
def _calibration(content: PoolContent, shares: tuple[float, ...], noises: tuple[float, ...], n: int) -> float:
    """The factor of the width of intervals with which they hold what they promise on source devices left out.

    Over all source devices that have more than twice as many networks, each known by `n` of them, `N_DRAWS` times; at
    least `LEAST_CALIBRATION`, as devices yet to come may be less alike than the sources are.
    """
    pool, models = content.pool, fit_source_models(content.pool)
    devices = range(len(pool.devices))
    evidences = _evidence_of_sources(content, shares, noises)
    misses = []
    for left_out in devices if len(devices) >= 3 else ():
        centred, logs = _measured(content, left_out)
        others = [device for device in devices if device != left_out]
        for draw in range(N_DRAWS if len(logs) > 2 * n else 0):
            order = np.random.default_rng([left_out, draw, n]).permutation(len(logs))
            known, new = order[:n], order[n:]
            _, found = _choose(
                models, others, shares, noises, evidences[:, others].mean(axis=1), centred[known], logs[known]
            )
            ratio = np.abs(logs[new] - found.medians(centred[new])) / found.scales(centred[new])
            misses.append(ratio / student_t.ppf(0.5 + CALIBRATED_COVERAGE / 2, found.degrees))
    if not misses:
        return 1.0
    return max(LEAST_CALIBRATION, float(np.quantile(np.concatenate(misses), CALIBRATED_COVERAGE)))


def _measured(content: PoolContent, device: int) -> tuple[Floats, Floats]:
    """The whole networks that were measured on a source device, less the mean of the pool, and their log costs."""
    pool = content.pool
    rows = np.flatnonzero(np.isfinite(pool.costs[:, device]) & is_alive(pool.X, pool.groups))
    return pool.X[rows] - fit_source_models(pool).centre, np.log(pool.costs[rows, device])


def _most_informative(covariance: Floats, noise: float, n: int) -> tuple[NDArray[np.intp], Floats]:
    """What `further_samples` returns, for log costs of that covariance, shape (c, c), measured with that noise."""
    covariance = covariance.copy()
    now = float(np.mean(np.diag(covariance))) + noise
    chosen, remaining = np.empty(n, dtype=np.intp), np.empty(n)
    for step in range(n):
        gains = (covariance**2).sum(axis=0) / (np.diag(covariance) + noise)
        gains[chosen[:step]] = -np.inf  # measuring one again would average noise only
        best = int(np.argmax(gains))
        column = covariance[:, best].copy()
        covariance -= np.outer(column, column) / (column[best] + noise)
        chosen[step] = best
        remaining[step] = np.sqrt((np.mean(np.diag(covariance)) + noise) / now)
    return chosen, remaining
