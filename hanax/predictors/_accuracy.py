"""Accuracy from a few dozen trained networks: effects shared between blocks, and a ceiling that accuracies approach.

Shapes: `n` samples, `f` features, `c` kernels, `h` settings, `w` ceilings, `q` networks to predict.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from hanax.predictors._evidence import Posterior, Settings, infer_each
from hanax.predictors._kernels import Kernel, Kernels
from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import training_data
from hanax.predictors._source_pool import Groups

N_SETTINGS = 192
N_COMPARED = 96
"""Samples on which all settings are compared; with more of them, the best settings are compared again on all."""
N_FINALISTS = 16
N_KEPT = 256
"""Settings of most evidence that predictions are made from."""
LEAST_SHARE = 0.01
"""Of the probability of the likeliest setting, below which one is not kept."""

HEADROOMS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""How far the ceiling is above the best sample, in standard deviations of the samples; the last is as good as none."""

CONCENTRATION = 0.3
"""Of the Dirichlet prior of the kernels' weights: several kernels share most of a setting's weight."""
NOISES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
"""Noise variances, in units of the function's."""
SMOOTH_LENGTH = 1.5
"""Length scale of the smooth kernel, in root mean squares of the distance from the mean network."""

ROWS_AT_A_TIME = 4096


class AccuracyPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The accuracy of networks, from few that were evaluated; with intervals.

    A Gaussian process on ``-log(ceiling - accuracy)``: every improvement takes away a share of what is missing to an
    unknown ceiling, so that effects add up on that scale where accuracies saturate. Its kernel is a weighted sum of a
    linear kernel on each group of columns, for `accuracy_features` a model of random effects (option, stage deviation,
    block deviation), and of the squared exponential on all of them. Weights, noise and ceiling are averaged over by
    their evidence, the density of the samples with everything else integrated out; nothing is tuned by the user, and
    shifting or scaling all accuracies shifts or scales all predictions. Accuracies that grow are better: give errors or
    losses negated.

    With ceilings apart, quantiles are averaged (Ratcliff, 1979, doi:10.1037/0033-2909.86.3.446); a ceiling's own
    distribution is Student's t on the scale above. Time grows with the cube of the number of samples beyond some
    hundreds.

    Args:
        groups: Groups of the columns of `X` (`accuracy_feature_groups`); None takes all columns as one group. Columns
            should have about unit spread.
        n_settings: Mixes of kernels that are tried.
        seed: Decides which these are.

    Attributes:
        samples_: What it learned from, shape (n, f).
        share_: Posterior probability of each setting that is kept, shape (h,).
        ceiling_: The ceiling of each, in the unit of `y`, shape (h,).
        kernel_weights_, noise_: The settings, shapes (h, c) and (h,).
        level_, dual_, scale_, precision_: Their posteriors, as in the attributes of `TransferPredictor`.
        kernel_names_: What the kernels are about: the groups, and ``smooth``.
        kernel_share_: How much each counts, shape (c,); sums to 1.
        unit_: Standard deviation of the samples' accuracies.
    """

    samples_: Floats
    share_: Floats
    ceiling_: Floats
    kernel_weights_: Floats
    noise_: Floats
    level_: Floats
    dual_: Floats
    scale_: Floats
    precision_: Floats
    kernel_names_: NDArray[np.object_]
    kernel_share_: Floats
    unit_: float

    def __init__(self, groups: Groups | None = None, n_settings: int = N_SETTINGS, seed: int = 0) -> None:
        self.groups = groups
        self.n_settings = n_settings
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike) -> AccuracyPredictor:
        """Fit on `accuracy_features` `X` of the samples, shape (n, f), and their accuracies `y`, shape (n,).

        Raises:
            ValueError: Groups that are not columns of `X`, no settings to try, or data that scikit-learn refuses.
        """
        features, accuracies = training_data(self, X, y)
        if self.n_settings < 1:
            raise ValueError(f"n_settings must be at least 1; got {self.n_settings}")
        kernels = self._kernels(features.shape[1])
        self.unit_ = float(accuracies.std()) or 1.0
        ceilings = accuracies.max() + self.unit_ * np.array(HEADROOMS)
        gaps = (ceilings[:, None] - accuracies) / self.unit_
        settings = _draw_settings(len(kernels.kernels), self.n_settings, np.random.default_rng(self.seed))
        if len(accuracies) > N_COMPARED:
            few = _spread(features, accuracies, N_COMPARED)
            _, share = _weigh(kernels, features[few], gaps[:, few], settings)
            finalists = np.sort(np.argsort(-share.sum(axis=0), kind="stable")[:N_FINALISTS])
            settings = Settings(settings.weights[finalists], settings.noise[finalists])
        posteriors, share = _weigh(kernels, features, gaps, settings)
        kept = np.argsort(-share, axis=None, kind="stable")[:N_KEPT]
        kept = kept[share.flat[kept] >= LEAST_SHARE * share.max()]
        which_ceiling, which_setting = np.unravel_index(kept, share.shape)
        picked = [(posteriors[w], h) for w, h in zip(which_ceiling, which_setting, strict=True)]
        self.samples_ = features
        self.share_ = share.flat[kept] / share.flat[kept].sum()
        self.ceiling_ = ceilings[which_ceiling]
        self.kernel_weights_, self.noise_ = settings.weights[which_setting], settings.noise[which_setting]
        self.level_, self.dual_, self.scale_, self.precision_ = (
            np.stack([getattr(posterior, name)[h] for posterior, h in picked])
            for name in ("level", "dual", "scale", "precision")
        )
        self.kernel_names_ = np.array(kernels.names, dtype=object)
        self.kernel_share_ = self.share_ @ self.kernel_weights_
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Predicted accuracy (median) of each row of `X`, shape (q,), in the unit of the `y` of `fit`."""
        features = self._check(X)
        kernels = self._kernels(features.shape[1])
        known = kernels.embed(self.samples_)
        dual = self.kernel_weights_.T[:, :, None] * self.dual_  # (c, h, n)
        predicted = np.empty(len(features))
        for start in range(0, len(features), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            cross = kernels.between(kernels.embed(features[rows]), known)
            mean = self.level_[:, None] + np.sum(dual @ cross.transpose(0, 2, 1), axis=0)
            predicted[rows] = self._quantile(mean, np.zeros_like(mean), 0.0)
        return predicted

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds that hold one new accuracy of each row of `X` with probability `coverage`.

        Raises:
            ValueError: `coverage` is not between 0 and 1.
        """
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage is a probability between 0 and 1, such as 0.9; got {coverage}")
        features = self._check(X)
        kernels = self._kernels(features.shape[1])
        known = kernels.embed(self.samples_)
        deviations = float(student_t.ppf(0.5 + coverage / 2, len(self.samples_) - 1))
        lower, upper = np.empty(len(features)), np.empty(len(features))
        for start in range(0, len(features), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            mean, variance = self._moments(kernels, known, features[rows])
            lower[rows] = self._quantile(mean, variance, -deviations)
            upper[rows] = self._quantile(mean, variance, deviations)
        return lower, upper

    def _moments(self, kernels: Kernels, known: list[Floats], features: Floats) -> tuple[Floats, Floats]:
        """Mean of each setting, and squared scale of a new sample, on the setting's own scale, shapes (h, q)."""
        embedded = kernels.embed(features)
        cross, own = kernels.between(embedded, known), kernels.own(embedded)
        mean, variance = np.empty((2, len(self.share_), len(features)))
        for h, precision in enumerate(self.precision_):
            mixed = np.tensordot(self.kernel_weights_[h], cross, axes=1)
            mean[h] = self.level_[h] + mixed @ self.dual_[h]
            ones = precision.sum(axis=1)
            explained = ((mixed @ precision) * mixed).sum(axis=1) - (1.0 - mixed @ ones) ** 2 / ones.sum()
            spare = self.kernel_weights_[h] @ own + self.noise_[h] - explained
            variance[h] = self.scale_[h] * np.maximum(spare, 1e-9)
        return mean, variance

    def _quantile(self, mean: Floats, variance: Floats, deviations: float) -> Floats:
        """Accuracies so many `deviations` above the median, from moments on each setting's scale, shapes (h, q)."""
        averaged = np.zeros(mean.shape[1])
        for ceiling in np.unique(self.ceiling_):
            of_ceiling = self.ceiling_ == ceiling
            share = self.share_[of_ceiling] / self.share_[of_ceiling].sum()
            centre = share @ mean[of_ceiling]
            spread = np.sqrt(share @ (variance[of_ceiling] + (mean[of_ceiling] - centre) ** 2))
            with np.errstate(over="ignore"):  # a network of which nothing is known has no lower bound
                gap = np.exp(-(centre + deviations * spread))
            averaged += self.share_[of_ceiling].sum() * (ceiling - self.unit_ * gap)
        return averaged

    def _kernels(self, n_columns: int) -> Kernels:
        """A linear kernel on each group of columns, and a smooth one on all, every group counting the same."""
        groups = {"columns": (0, n_columns)} if self.groups is None else self.groups
        if not groups:
            raise ValueError("groups names no group of columns; None takes all columns as one")
        kernels = []
        for name, (start, stop) in groups.items():
            if not 0 <= start < stop <= n_columns:
                raise ValueError(f"group {name} is columns {start} to {stop}; X has {n_columns} columns")
            scale = np.full(stop - start, 1.0 / np.sqrt(stop - start))
            kernels.append(Kernel(name, np.arange(start, stop), scale, of_sources=False, is_smooth=False))
        columns = np.concatenate([kernel.columns for kernel in kernels])
        scale = np.concatenate([kernel.scale for kernel in kernels]) / (SMOOTH_LENGTH * np.sqrt(len(kernels)))
        kernels.append(Kernel("smooth", columns, scale, of_sources=False, is_smooth=True))
        return Kernels(np.zeros((n_columns, 0)), np.zeros(0), tuple(kernels))

    def _check(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        features: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        return features


def _draw_settings(n_kernels: int, n_settings: int, rng: np.random.Generator) -> Settings:
    weights = rng.dirichlet(np.full(n_kernels, CONCENTRATION), n_settings)
    return Settings(weights, np.asarray(NOISES)[np.arange(n_settings) % len(NOISES)])


def _weigh(kernels: Kernels, features: Floats, gaps: Floats, settings: Settings) -> tuple[list[Posterior], Floats]:
    """Posteriors below each ceiling, and the probability of each ceiling and setting, shape (w, h).

    Args:
        gaps: What is missing to each ceiling, in units of `unit_`, shape (w, n).
    """
    embedded = kernels.embed(features)
    same = np.ones(len(features))
    posteriors = infer_each(kernels.between(embedded, embedded), -np.log(gaps), settings, same, 0.0 * same)
    # the density of accuracies is that on the logarithmic scale times the slope of the scale, 1 / gap
    evidence = np.stack([posterior.log_evidence for posterior in posteriors]) - np.log(gaps).sum(axis=1)[:, None]
    share = np.exp(evidence - evidence.max())
    return posteriors, share / share.sum()


def _spread(features: Floats, accuracies: Floats, n: int) -> NDArray[np.int64]:
    """`n` samples at even ranks of their accuracies, whatever the order they come in; the extremes among them."""
    order = np.lexsort((*features.T, accuracies))
    return order[np.linspace(0, len(order) - 1, n).astype(np.int64)]
