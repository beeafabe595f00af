"""Gaussian-process regression that averages over its kernel in place of choosing one.

The kernel is a weighted sum of given ones; weights and noise are unknown. For each of many settings of these, level and
scale of the function integrate out in closed form under flat priors, which leaves the evidence of the setting and a
Student-t prediction (Rasmussen & Williams, 2006, Gaussian Processes for Machine Learning, sections 2.7 and 5.4).

Shapes: `n` samples, `c` kernels, `h` settings, `q` networks to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hanax.predictors._leave_one_out import Floats

CONCENTRATION = 0.1
"""Of the Dirichlet prior of the kernels' weights: most of a setting's weight is on one or two of them."""

NOISES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""Noise variances, in units of the function's."""

TAIL = 1.0
"""Degrees of freedom of the noise: measurements have outliers."""

N_ROUNDS = 3
"""Rounds of reweighting samples by their residuals, as for Student-t noise."""

JITTER = 1e-6


@dataclass(frozen=True, slots=True)
class Settings:
    """Weights of the kernels, shape (h, c), each row summing to 1, and noise variances, shape (h,)."""

    weights: Floats
    noise: Floats


def draw_settings(n_kernels: int, n_settings: int, rng: np.random.Generator) -> Settings:
    """Settings from the prior; the first ones have nearly all weight on one kernel each."""
    weights = rng.dirichlet(np.full(n_kernels, CONCENTRATION), n_settings)
    alone = min(n_kernels, n_settings)
    weights[:alone] = (0.98 * np.eye(n_kernels) + 0.02 / n_kernels)[:alone]
    return Settings(weights, np.asarray(NOISES)[np.arange(n_settings) % len(NOISES)])


@dataclass(frozen=True, slots=True)
class Posterior:
    """What each setting makes of the samples.

    Attributes:
        log_evidence: Up to a constant, shape (h,).
        level: Of the function, shape (h,).
        dual: Coefficients of the kernel functions of the samples, shape (h, n).
        scale: Squared scale of function and noise, shape (h,).
        precision: Inverse of kernel and noise between the samples, shape (h, n, n).
    """

    log_evidence: Floats
    level: Floats
    dual: Floats
    scale: Floats
    precision: Floats

    def leave_one_out(self) -> tuple[Floats, Floats]:
        """What each sample exceeds its prediction from the others by, and that prediction's squared scale, (h, n).

        The setting and the scale are those of all samples.
        """
        ones = self.precision.sum(axis=2)
        diagonal = np.diagonal(self.precision, axis1=1, axis2=2) - ones**2 / ones.sum(axis=1, keepdims=True)
        diagonal = np.maximum(diagonal, 1e-12)
        return self.dual / diagonal, self.scale[:, None] / diagonal


def infer(grams: Floats, z: Floats, settings: Settings, noise_factor: Floats, extra_noise: Floats) -> Posterior:
    """The posterior of every setting.

    Args:
        grams: Each kernel between the samples, shape (c, n, n).
        z: The samples' values, shape (n,).
        noise_factor: How much noisier than `Settings.noise` each sample is, shape (n,).
        extra_noise: Noise variance of each sample that does not depend on the setting, shape (n,).
    """
    return infer_each(grams, z[None], settings, noise_factor, extra_noise)[0]


def infer_each(
    grams: Floats, targets: Floats, settings: Settings, noise_factor: Floats, extra_noise: Floats
) -> list[Posterior]:
    """As `infer`, for several values of the same samples, shape (w, n), at little more than the cost of one."""
    n = targets.shape[1]
    diagonal = settings.noise[:, None] * noise_factor + extra_noise + JITTER
    covariance = np.tensordot(settings.weights, grams, axes=1) + diagonal[:, :, None] * np.eye(n)
    precision: Floats = np.linalg.inv(covariance).astype(np.float64)
    _, log_determinant = np.linalg.slogdet(covariance)
    ones = precision.sum(axis=2)
    total = ones.sum(axis=1)
    posteriors = []
    for z in targets:
        level = ones @ z / total
        dual = np.einsum("hij,hj->hi", precision, z - level[:, None])
        squares = np.maximum(np.einsum("hi,hi->h", dual, z - level[:, None]), 1e-12)
        log_evidence: Floats = -0.5 * (log_determinant + np.log(total) + (n - 1) * np.log(squares))
        posteriors.append(Posterior(log_evidence, level, dual, squares / (n - 1), precision))
    return posteriors
