"""Latency on a new device from about ten measurements, with or without other devices to learn from.

Shapes: `n` samples, `f` features, `c` kernels, `h` settings, `q` networks to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted, validate_data

from hanax.predictors._choose_archs import next_archs
from hanax.predictors._evidence import N_ROUNDS, TAIL, Posterior, Settings, draw_settings, infer
from hanax.predictors._kernels import Kernels, latency_kernels
from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import LogStudentPredictor, training_data
from hanax.predictors._source_pool import Groups, SourcePool

N_SETTINGS = 600
N_KEPT = 32
"""Settings of most evidence that predictions are made from."""

ROWS_AT_A_TIME = 4096
LEAST_SHARE = 0.2
"""Of the least cost measured: a setting that adds effects up predicts no less than that."""

PRIOR_RESIDUALS = 6.0
"""Leave-one-out residuals as large as expected that the calibration of intervals starts from."""

INFLATION = 1.2
"""How much wider intervals are than the posterior says at least: chosen on source devices that the pool was without."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """A scale on which costs are modelled: their logarithm, or themselves in units of their mean."""

    is_log: bool
    unit: float

    def of(self, costs: Floats) -> Floats:
        return np.log(costs) if self.is_log else costs / self.unit

    def log_jacobian(self, costs: Floats) -> float:
        """Logarithm of the density of costs per density on this scale, so that evidences compare."""
        return -float(np.log(costs).sum()) if self.is_log else -len(costs) * float(np.log(self.unit))

    def derivative(self, costs: Floats) -> Floats:
        return 1.0 / costs if self.is_log else np.full(len(costs), 1.0 / self.unit)


class TransferPredictor(LogStudentPredictor):
    """Cost on a new device from few samples: other devices count as far as the samples speak for them.

    A Gaussian process whose kernel is a mix of what the source devices cost (as a mix of them, and as a smooth function
    of them) and of features that need no other device: operators by class and by stage, options, total work. How much
    each counts, how noisy the samples are, and whether effects add up or multiply is averaged over by evidence, so
    that sources unlike the device lose their say. Outliers are weighted down (Student-t noise), and costs in whole
    milliseconds carry the noise of rounding.

    Args:
        pool: Costs on other devices; None to learn from the samples alone.
        groups: Groups of the columns of `X` (`latency_feature_groups`); needed without a pool only.
        n_settings: Mixes of kernels that are tried.
        seed: Decides which these are.

    Attributes:
        samples_, costs_: What it learned from, shapes (n, f) and (n,).
        share_: Posterior probability of each setting that is kept, shape (h,).
        kernel_weights_, noise_: The settings, shapes (h, c) and (h,).
        is_log_: Whether a setting models the logarithm of the cost, shape (h,).
        level_, dual_, scale_, precision_: Their posteriors, see `Posterior`.
        kernel_names_: What the kernels are about.
        kernel_share_: How much each counts, shape (c,); sums to 1.
        calibration_: Factor of all standard deviations.
        rounding_: Standard deviation of the rounding of costs, 0 unless all are whole numbers.
        degrees_: Degrees of freedom of the predictive distribution.
    """

    samples_: Floats
    costs_: Floats
    share_: Floats
    kernel_weights_: Floats
    noise_: Floats
    is_log_: np.ndarray
    level_: Floats
    dual_: Floats
    scale_: Floats
    precision_: Floats
    kernel_names_: np.ndarray
    kernel_share_: Floats
    calibration_: float
    rounding_: float

    def __init__(
        self, pool: SourcePool | None = None, groups: Groups | None = None, n_settings: int = N_SETTINGS, seed: int = 0
    ) -> None:
        self.pool = pool
        self.groups = groups
        self.n_settings = n_settings
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike) -> TransferPredictor:
        """Fit on `latency_features` `X` of the samples, shape (n, f), and their costs `y`, shape (n,); returns self.

        Raises:
            ValueError: Neither a pool nor groups, columns that are not the pool's, a cost that is not above 0, fewer
                than three samples, or data that scikit-learn refuses.
        """
        features, costs = training_data(self, X, y)
        if costs.min() <= 0:
            raise ValueError(f"costs must be above 0; the least of {len(costs)} is {costs.min()}")
        if len(costs) < 3:
            raise ValueError(f"at least 3 samples are needed; got {len(costs)}")
        kernels = self._kernels(features.shape[1])
        embedded = kernels.embed(features)
        grams = kernels.between(embedded, embedded)
        settings = draw_settings(len(grams), self.n_settings, np.random.default_rng(self.seed))
        scales = (_Scale(True, 1.0), _Scale(False, float(costs.mean())))
        # costs in whole units are rounded: uniform noise of variance 1/12
        self.rounding_ = 1.0 / np.sqrt(12.0) if np.all(costs == np.round(costs)) else 0.0
        posteriors, share = _weigh(grams, costs, settings, scales, self.rounding_)
        kept = np.argsort(-share, axis=None, kind="stable")[:N_KEPT]
        which_scale, which_setting = np.unravel_index(kept, share.shape)
        self.samples_, self.costs_ = features, costs
        self.degrees_ = float(len(costs) - 1)
        self.share_ = share[which_scale, which_setting] / share[which_scale, which_setting].sum()
        self.is_log_ = np.array([scales[index].is_log for index in which_scale])
        self.kernel_weights_, self.noise_ = settings.weights[which_setting], settings.noise[which_setting]
        picked = list(zip(which_scale.tolist(), which_setting.tolist(), strict=True))
        for name in ("level", "dual", "scale", "precision"):
            setattr(self, f"{name}_", np.stack([getattr(posteriors[s], name)[h] for s, h in picked]))
        self.kernel_names_ = np.array(kernels.names, dtype=object)
        self.kernel_share_ = self.share_ @ self.kernel_weights_
        self.calibration_ = self._calibrate()
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Predicted cost (median) of each row of `X`, shape (q,), in the unit of the `y` of `fit`."""
        features = self._check(X)
        kernels = self._kernels(features.shape[1])
        known = kernels.embed(self.samples_)
        dual = self.kernel_weights_.T[:, :, None] * self.dual_  # (c, h, n)
        parts = []
        for start in range(0, len(features), ROWS_AT_A_TIME):
            cross = kernels.between(kernels.embed(features[start : start + ROWS_AT_A_TIME]), known)
            mean = self.level_[:, None] + np.sum(dual @ cross.transpose(0, 2, 1), axis=0)
            parts.append(self.share_ @ self._log_means(mean))
        return np.exp(np.concatenate(parts))

    def next_measurements(self, X: ArrayLike, n: int) -> tuple[np.ndarray, Floats]:
        """Which `n` rows of `X` to measure next, best first, and what that is expected to bring.

        Returns:
            Indices, shape (n,), and the mean relative standard deviation of predictions over `X` with none, one, ...
            `n` of them measured, shape (n + 1,), if the device goes on as it is understood now.
        """
        features = self._check(X)
        kernels = self._kernels(features.shape[1])
        noise = float(self.share_ @ self.noise_)
        chosen, remaining = next_archs(kernels, self.kernel_share_, noise, features, self.samples_, n)
        _, deviation = self._distribution(features)
        return chosen, float(deviation.mean()) * np.sqrt(remaining / remaining[0])

    def _kernels(self, n_columns: int) -> Kernels:
        groups = self.groups if self.pool is None else self.pool.groups
        if groups is None:
            raise ValueError("give a pool of other devices, or without one the groups of the columns of X")
        if self.pool is not None and self.pool.X.shape[1] != n_columns:
            raise ValueError(
                f"X has {n_columns} columns, the networks of the pool have {self.pool.X.shape[1]}; both must be the "
                "latency_features of one space"
            )
        return latency_kernels(groups, n_columns, self.pool)

    def _check(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        features: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        return features

    def _distribution(self, X: ArrayLike) -> tuple[Floats, Floats]:
        """Median of each row's log cost, and the calibrated scale of its t distribution, shapes (q,)."""
        features = self._check(X)
        kernels = self._kernels(features.shape[1])
        known = kernels.embed(self.samples_)
        parts = [
            self._distribution_of(kernels, known, features[start : start + ROWS_AT_A_TIME])
            for start in range(0, len(features), ROWS_AT_A_TIME)
        ]
        mean, variance = (np.concatenate(part) for part in zip(*parts, strict=True))
        return mean, self.calibration_ * np.sqrt(variance)

    def _distribution_of(self, kernels: Kernels, known: list[Floats], features: Floats) -> tuple[Floats, Floats]:
        embedded = kernels.embed(features)
        own = kernels.own(embedded)
        mixed = np.tensordot(self.kernel_weights_, kernels.between(embedded, known), axes=1)  # (h, q, n)
        mean = self.level_[:, None] + np.einsum("hqn,hn->hq", mixed, self.dual_)
        explained = (mixed @ self.precision_ * mixed).sum(axis=2)
        ones = self.precision_.sum(axis=2)
        slack = 1.0 - np.einsum("hqn,hn->hq", mixed, ones)
        spare = self.kernel_weights_ @ own + self.noise_[:, None] - explained + slack**2 / ones.sum(axis=1)[:, None]
        return self._combine(mean, np.maximum(spare, 1e-9) * self.scale_[:, None])

    def _log_means(self, mean: Floats) -> Floats:
        """Each setting's mean of the log cost, from that on its own scale, shapes (h, q)."""
        least = LEAST_SHARE * float(self.costs_.min())
        cost = np.where(self.is_log_[:, None], 1.0, np.maximum(mean * float(self.costs_.mean()), least))
        return np.where(self.is_log_[:, None], mean, np.log(cost))

    def _combine(self, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of log costs over the settings, from each setting's on its own scale, shapes (h, q)."""
        log_mean = self._log_means(mean)
        cost = np.exp(log_mean)
        relative = np.where(self.is_log_[:, None], 1.0, (float(self.costs_.mean()) / cost) ** 2)
        log_variance = variance * relative + (self.rounding_ / cost) ** 2
        combined = self.share_ @ log_mean
        return combined, self.share_ @ (log_variance + (log_mean - combined) ** 2)

    def _calibrate(self) -> float:
        """`INFLATION`, and more where leave-one-out residuals are larger than predicted.

        Smaller ones narrow nothing: the settings were chosen with the very samples that are left out.
        """
        posterior = Posterior(self.share_, self.level_, self.dual_, self.scale_, self.precision_)
        residual, variance = posterior.leave_one_out()
        unit = float(self.costs_.mean())
        z = np.where(self.is_log_[:, None], np.log(self.costs_), self.costs_ / unit)
        mean, variance = self._combine(z - residual, variance)
        squares = (np.log(self.costs_) - mean) ** 2 / variance
        excess = (PRIOR_RESIDUALS + squares.sum()) / (PRIOR_RESIDUALS + len(squares))
        return INFLATION * float(np.sqrt(max(1.0, excess)))


def _weigh(
    grams: Floats, costs: Floats, settings: Settings, scales: tuple[_Scale, ...], rounding: float
) -> tuple[list[Posterior], Floats]:
    """Posteriors on each scale, and the probability of each scale and setting, shape (scales, h).

    Samples that the others do not expect are given more noise and all is weighed anew: the expectation step of
    Student-t noise (Lange, Little & Taylor, 1989, doi:10.2307/2290063), with leave-one-out residuals.
    """
    factor = np.ones(len(costs))
    posteriors: list[Posterior] = []
    share = np.zeros((len(scales), len(settings.noise)))
    for _ in range(N_ROUNDS):
        posteriors = []
        for scale in scales:
            z = scale.of(costs)
            extra = (rounding * scale.derivative(costs)) ** 2 / max(float(z.var()), 1e-12)
            posteriors.append(infer(grams, z, settings, factor, extra))
        evidence = np.stack(
            [
                posterior.log_evidence + scale.log_jacobian(costs)
                for posterior, scale in zip(posteriors, scales, strict=True)
            ]
        )
        share = np.exp(evidence - evidence.max())
        share /= share.sum()
        surprise = np.zeros(len(costs))
        for posterior, weight in zip(posteriors, share, strict=True):
            residual, variance = posterior.leave_one_out()
            surprise += weight @ (residual**2 / variance)
        factor = np.maximum((TAIL + surprise) / (TAIL + 1.0), 1.0)
    return posteriors, share
