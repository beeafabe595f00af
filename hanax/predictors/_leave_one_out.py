"""Ridge regression with free columns, its penalty chosen by leave-one-out, and all its leave-one-out models at once.

Nothing is refitted. With `Z` the free columns, `B` the shrunk ones and ``M`` the projection off the span of `Z`, the
residuals of the fit with penalty ``a`` are ``W y``, where ``M B = U S V'`` and ``W = M - U S^2 / (S^2 + a) U'``. The
fit without the rows `s` misses them by ``W[s, s]^-1 (W y)[s]`` (for one row: Golub, Heath & Wahba, 1979,
doi:10.1080/00401706.1979.10489751), and all coefficients are linear in `y`.

Shapes: `n` samples, `p` free columns, `q` shrunk columns, `k` singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NESTED_CHOICE_LIMIT = 500
"""Up to so many samples each leave-one-out model chooses its own penalty; with more, the choice hardly moves."""


@dataclass(frozen=True, slots=True)
class LeaveOneOutFit:
    """A linear model and the `n` models that the same procedure gives without one of the samples.

    Attributes:
        alpha: The penalty with the least mean squared leave-one-out error.
        free_coef, shrunk_coef: Coefficients, shapes (p,) and (q,).
        loo_free_coef, loo_shrunk_coef: Row `i` is the model without sample `i`; shapes (n, p) and (n, q).
        loo_residuals: `y[i]` minus what the model without sample `i` predicts there, shape (n,).
    """

    alpha: float
    free_coef: Floats
    shrunk_coef: Floats
    loo_free_coef: Floats
    loo_shrunk_coef: Floats
    loo_residuals: Floats


@dataclass(frozen=True, slots=True)
class _Spectrum:
    """``M B = left * singular @ right`` without its null part; `rest` projects off both `Z` and `B`."""

    left: Floats
    singular: Floats
    right: Floats
    rest: Floats

    def residual_map(self, alpha: float) -> Floats:
        """``W``, shape (n, n), as a sum of non-negative parts: nothing cancels for a small `alpha`."""
        return self.rest + (self.left * self._kept_share(alpha)) @ self.left.T

    def loo_residuals(self, alpha: float, y: Floats) -> Floats:
        """``(W y)_i / W_ii``, without making all of ``W``."""
        share = self._kept_share(alpha)
        residuals = self.rest @ y + self.left @ (share * (self.left.T @ y))
        return np.asarray(residuals / (np.diag(self.rest) + self.left**2 @ share))

    def _kept_share(self, alpha: float) -> Floats:
        """Share of each singular direction of `y` that remains in the residuals."""
        return np.asarray(alpha / (self.singular**2 + alpha))

    def shrunk_map(self, alpha: float) -> Floats:
        """The shrunk coefficients as a linear map of `y`, shape (q, n)."""
        return (self.right.T * (self.singular / (self.singular**2 + alpha))) @ self.left.T


def fit_leave_one_out(free: Floats, shrunk: Floats, y: Floats, alphas: Sequence[float]) -> LeaveOneOutFit:
    """Least squares of `y`, shape (n,), on `free`, shape (n, p), and `shrunk`, shape (n, q).

    The squared coefficients of `shrunk` are penalised by one of `alphas`, those of `free` not at all.

    Raises:
        ValueError: One sample alone determines a free coefficient, so that leaving it out leaves that open.
    """
    spectrum = _decompose(free, shrunk)
    grid = sorted(alphas, reverse=True)  # of equal errors, the first one wins: the largest penalty
    residuals = np.stack([spectrum.loo_residuals(alpha, y) for alpha in grid])
    best = int(np.argmin(np.mean(residuals**2, axis=1)))
    chosen = np.full(len(y), best)
    if len(y) <= NESTED_CHOICE_LIMIT:
        errors = [_squared_error_without(spectrum.residual_map(alpha), y) for alpha in grid]
        chosen = np.argmin(errors, axis=0)

    free_coef, shrunk_coef, _, _ = _coefficients(spectrum, free, shrunk, y, grid[best], residuals[best])
    loo_free, loo_shrunk = np.empty((len(y), free.shape[1])), np.empty((len(y), shrunk.shape[1]))
    for choice in np.unique(chosen):
        _, _, by_free, by_shrunk = _coefficients(spectrum, free, shrunk, y, grid[choice], residuals[choice])
        loo_free[chosen == choice] = by_free[chosen == choice]
        loo_shrunk[chosen == choice] = by_shrunk[chosen == choice]
    loo_residuals = residuals[chosen, np.arange(len(y))]
    return LeaveOneOutFit(grid[best], free_coef, shrunk_coef, loo_free, loo_shrunk, loo_residuals)


def _decompose(free: Floats, shrunk: Floats) -> _Spectrum:
    basis, scale, _ = np.linalg.svd(free, full_matrices=False)
    basis = basis[:, scale > 1e-10 * scale.max()]
    off_free = np.eye(len(free)) - basis @ basis.T
    alone = np.flatnonzero(np.diag(off_free) < 1e-9)
    if len(alone):
        raise ValueError(
            f"sample {alone[0]} of {len(free)} alone determines one of the {basis.shape[1]} coefficients that are not "
            "shrunk; leave-one-out needs more samples than that, and two with each property"
        )
    left, singular, right = np.linalg.svd(shrunk - basis @ (basis.T @ shrunk), full_matrices=False)
    kept = singular > 1e-10 * max(singular.max(initial=0.0), np.linalg.norm(shrunk), np.finfo(float).tiny)
    left, singular, right = left[:, kept], singular[kept], right[kept]
    is_complete = basis.shape[1] + len(singular) == len(free)
    rest = np.zeros_like(off_free) if is_complete else off_free - left @ left.T
    return _Spectrum(left, singular, right, rest)


def _squared_error_without(mapping: Floats, y: Floats) -> Floats:
    """For each sample, the mean squared leave-one-out error of the fit that never saw it, shape (n,).

    Leaving out rows `i` and `j` leaves the residual ``(W_ii w_j - W_ij w_i) / (W_ii W_jj - W_ij^2)`` at `j`, w = W y.
    """
    residual, diagonal = mapping @ y, np.diag(mapping)
    scale = np.multiply.outer(diagonal, diagonal)
    determinant = scale - mapping**2
    defined = determinant > 1e-12 * scale  # not on the diagonal, nor where the pair alone determines a coefficient
    pair = np.multiply.outer(diagonal, residual) - mapping * residual[:, None]
    squares = (pair / np.where(defined, determinant, np.inf)) ** 2
    return np.asarray(squares.sum(axis=1) / np.maximum(defined.sum(axis=1), 1))


def _coefficients(
    spectrum: _Spectrum, free: Floats, shrunk: Floats, y: Floats, alpha: float, loo_residuals: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Free and shrunk coefficients of the whole fit, then of the fit without each sample.

    The fit without sample `i` is the fit of `y` with ``y[i]`` replaced by what it predicts there, so its coefficients
    are those of the whole fit minus column `i` of the map from `y`, times the leave-one-out residual.
    """
    shrunk_map = spectrum.shrunk_map(alpha)
    free_map = np.linalg.pinv(free, rcond=1e-10) @ (np.eye(len(y)) - shrunk @ shrunk_map)
    free_coef, shrunk_coef = free_map @ y, shrunk_map @ y
    return (
        free_coef,
        shrunk_coef,
        free_coef - (free_map * loo_residuals).T,
        shrunk_coef - (shrunk_map * loo_residuals).T,
    )
