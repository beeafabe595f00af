"""A Gaussian process over choices: what a search believes of networks that it has not evaluated.

The covariance of two networks is a sum of parts, whose weights and length scales are the most probable ones given the
evaluations (Rasmussen & Williams, 2006, chapter 5), under a log-normal prior around fixed values:

- additive in the decisions, and its square, which adds pairs of decisions;
- the exponential of the weighted number of decisions in which two networks differ;
- additive in, and the squared exponential of, summaries: how often each option is taken over decisions that offer the
  same ones, and further features that the caller knows of;
- the product of the two exponentials.

Shapes: `n` networks told, `c` candidates, `d` decisions, `f` columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr

from hanax.searchers._domain import Domain
from hanax.searchers._problem import Codes, Floats, Indices

ADDITIVE = (0, 5)
"""Parts that are sums over decisions or summaries."""
PARTS = 6
PRIOR_WEIGHTS = (0.4, 0.3, 0.4, 0.3, 0.2, 0.4)
PRIOR_NOISE = 0.01
"""Share of a cost's variance."""
JITTER = 1e-5
"""Least noise, which keeps the covariance of equal networks invertible."""
WARP = 0.3
"""Standard deviations from the least cost down to the bound that a logarithm is taken from."""
CAUTION = 2.0
"""Factor of all spreads: a search goes where the model errs the most, further than leave-one-out errors say."""
FARTHEST = 5.0
"""Bound of scaled summaries: one that hardly varied so far must not swamp the others."""
N_FITTED = 120
"""Evaluations that decide the hyperparameters."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The two kinds of columns of some networks: `Domain.binary` and scaled `Domain.summaries`."""

    binary: Floats
    summaries: Floats

    def __len__(self) -> int:
        return len(self.binary)

    def rows(self, index: Indices | int) -> Inputs:
        """Some of the networks."""
        chosen = np.atleast_1d(index)
        return Inputs(self.binary[chosen], self.summaries[chosen])


def make_inputs(domain: Domain, *codes: Codes) -> list[Inputs]:
    """Inputs of each of `codes`; the summaries in units of their spread over the first."""
    raw = [domain.summaries(part) for part in codes]
    mean, spread = raw[0].mean(axis=0), raw[0].std(axis=0)
    scale = 2.0 * np.where(spread > 1e-9 * np.abs(raw[0]).max(axis=0), spread, np.inf)  # what is constant says nothing
    scaled = [np.clip((one - mean) / scale, -FARTHEST, FARTHEST) for one in raw]
    return [Inputs(domain.binary(part), one) for part, one in zip(codes, scaled, strict=True)]


class GaussianProcess:
    """The posterior of one cost given evaluations."""

    def __init__(
        self, domain: Domain, inputs: Inputs, y: Floats, *, parts: tuple[int, ...], warp: bool, max_steps: int
    ) -> None:
        """Fit.

        The hyperparameters follow from at most `N_FITTED` evaluations, evenly over `y`; the posterior from all.

        Args:
            domain: What can be chosen.
            inputs: Of the networks evaluated.
            y: Their costs, shape (n,).
            parts: Which parts of the covariance to use, of 0 to `PARTS` - 1.
            warp: Model the logarithm of how far `y` is above a bound a little below the least: the nearer to the best,
                the harder the next gain, as accuracies behave.
            max_steps: Of the optimiser of the hyperparameters.
        """
        self._domain = domain
        self._used = np.isin(np.arange(PARTS), parts).astype(np.float64)
        self._inputs = inputs
        deviation = float(y.std()) or 1.0
        self.bound = float(y.min()) - WARP * deviation if warp else None
        z = y if self.bound is None else np.log(y - self.bound)
        self._log_slope = 0.0 if self.bound is None else -float(z.mean())
        self._centre, self._scale = float(z.mean()), float(z.std()) or 1.0
        self._y = (z - self._centre) / self._scale
        few = np.argsort(y, kind="stable")[np.linspace(0, len(y) - 1, min(len(y), N_FITTED)).astype(np.int64)]
        self._few = inputs.rows(few), self._y[few]
        n_decisions, self._n_shared = len(domain.counts), int(domain.shared.max(initial=-1)) + 1
        n_summaries = inputs.summaries.shape[1]
        n_varying = int(np.sum(domain.counts > 1))
        self._cuts = np.cumsum([PARTS, n_decisions, self._n_shared, n_summaries])
        self._prior = np.concatenate([
            np.log(PRIOR_WEIGHTS), np.full(n_decisions, np.log(3.0 / (n_varying + 2))), np.zeros(self._n_shared),
            np.full(n_summaries, np.log(2.0 / (n_summaries + 2))), [np.log(PRIOR_NOISE)],
        ])  # fmt: skip
        self._spread = np.concatenate([
            np.full(PARTS, 1.5), np.ones(n_decisions), np.full(self._n_shared, 0.7), np.ones(n_summaries), [2.0]
        ])  # fmt: skip
        # Bounds keep the line search of the optimiser where the covariance can be factorised.
        bounds = list(zip(self._prior - 4 * self._spread, self._prior + 4 * self._spread, strict=True))
        found = minimize(
            self._energy, self._prior, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": max_steps}
        )
        self._weights, self._by_column, self._by_summary, self._noise = self._unpack(found.x)
        self._condition()

    def _unpack(self, logs: Floats) -> tuple[Floats, Floats, Floats, float]:
        weights, of_decisions, of_shared, of_summaries, noise = np.split(logs, self._cuts)
        by_column = np.exp(of_decisions[self._domain.owner] + of_shared[self._domain.shared])
        return np.exp(weights) * self._used, by_column, np.exp(of_summaries), float(np.exp(noise[0])) + JITTER

    def _covariances(self, a: Inputs, b: Inputs, by_column: Floats, by_summary: Floats) -> list[Floats]:
        """Each part, shape (a, b); zeros of shape (1, 1) for what is not used."""
        differ = near = both = by_sum = np.zeros((1, 1))
        additive = (a.binary * (by_column / _half_sum(by_column))) @ b.binary.T
        if self._used[[1, 3]].any():
            differ = np.exp(-_squared_distance(a.binary, b.binary, by_column))
        if self._used[[2, 3]].any():
            near = np.exp(-_squared_distance(a.summaries, b.summaries, by_summary))
        if self._used[3]:
            both = differ * near
        if self._used[5]:
            by_sum = a.summaries @ b.summaries.T / max(a.summaries.shape[1], 1)
        return [additive, differ, near, both, additive**2, by_sum]

    def _energy(self, logs: Floats) -> tuple[float, Floats]:
        """Negative logarithm of likelihood and prior, and its gradient."""
        weights, by_column, by_summary, noise = self._unpack(logs)
        a, y = self._few
        n = len(y)
        parts = self._covariances(a, a, by_column, by_summary)
        covariance = self._sum(weights, parts) + noise * np.eye(n)
        inverse = cho_solve((cholesky(covariance, lower=True, check_finite=False), True), np.eye(n), check_finite=False)
        sums = inverse.sum(axis=1)
        mean = float(sums @ y / sums.sum())
        alpha = inverse @ (y - mean)
        half_log_determinant = -0.5 * np.linalg.slogdet(inverse)[1]
        slope = 0.5 * (inverse - np.outer(alpha, alpha))  # of the energy, by each covariance
        additive, differ, near, both, _, _ = parts
        by_differ = -slope * (weights[1] * differ + weights[3] * both)
        by_near = -slope * (weights[2] * near + weights[3] * both)
        by_additive = slope * (weights[0] + 2 * weights[4] * additive)
        half_sum = _half_sum(by_column)
        columns = (
            _distance_slope(by_differ, a.binary)
            + (np.einsum("nf,nf->f", a.binary, by_additive @ a.binary) - 0.5 * np.sum(by_additive * additive))
            / half_sum
        )
        columns *= by_column
        gradient = np.concatenate([
            [weight and float(np.sum(slope * part)) * weight for part, weight in zip(parts, weights, strict=True)],
            np.bincount(self._domain.owner, columns, minlength=len(self._domain.counts)),
            np.bincount(self._domain.shared, columns, minlength=self._n_shared),
            _distance_slope(by_near, a.summaries) * by_summary,
            [float(np.trace(slope)) * (noise - JITTER)],
        ])  # fmt: skip
        from_prior = (logs - self._prior) / self._spread
        energy = 0.5 * float((y - mean) @ alpha) + half_log_determinant + 0.5 * float(from_prior @ from_prior)
        return energy, gradient + from_prior / self._spread

    def _condition(self) -> None:
        n = len(self._y)
        covariance = self._covariance(self._inputs, self._inputs) + self._noise * np.eye(n)
        self._factor = cholesky(covariance, lower=True, check_finite=False)
        inverse = cho_solve((self._factor, True), np.eye(n), check_finite=False)
        self._mean = float((inverse @ self._y).sum() / inverse.sum())
        self._alpha = inverse @ (self._y - self._mean)
        left_out = self._alpha / np.diag(inverse)
        variance = 1.0 / np.diag(inverse)
        density = -0.5 * np.log(2 * np.pi * variance * self._scale**2) - 0.5 * left_out**2 / variance
        # Of `y` itself, whatever the scale that it is modelled on.
        self.log_density = float(np.mean(density)) + self._log_slope
        # An evaluation that the others predict badly says that the spread is too small; it is never made smaller.
        self._inflation = CAUTION * max(1.0, float(np.sqrt(np.mean(left_out**2 / variance))))

    def _covariance(self, a: Inputs, b: Inputs) -> Floats:
        return self._sum(self._weights, self._covariances(a, b, self._by_column, self._by_summary))

    def _sum(self, weights: Floats, parts: list[Floats]) -> Floats:
        used = [weight * part for weight, part, is_used in zip(weights, parts, self._used, strict=True) if is_used]
        return np.asarray(sum(used[1:], start=used[0]))

    def _variance(self, a: Inputs) -> Floats:
        additive = (a.binary**2) @ (self._by_column / _half_sum(self._by_column))
        by_sum = np.sum(a.summaries**2, axis=1) / max(a.summaries.shape[1], 1)
        ones = np.ones(len(a))
        return np.asarray(self._weights @ np.array([additive, ones, ones, ones, additive**2, by_sum]))

    def predict(self, candidates: Inputs) -> Beliefs:
        """What is believed of `candidates`."""
        cross = self._covariance(self._inputs, candidates)
        rows = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        variance = np.maximum(self._variance(candidates) - np.sum(rows**2, axis=0), 1e-9)
        mean = self._mean + self._alpha @ cross
        return Beliefs(self, candidates, rows, mean, variance)


class Beliefs:
    """Mean and spread of one cost for candidates, which can be conditioned on having some of them evaluated."""

    def __init__(
        self, process: GaussianProcess, candidates: Inputs, rows: Floats, mean: Floats, variance: Floats
    ) -> None:
        """See `GaussianProcess.predict`."""
        self._process, self._candidates, self._rows, self._mean, self._variance = (
            process, candidates, rows, mean, variance,
        )  # fmt: skip

    @property
    def _normal(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of what is modelled, each of shape (c,)."""
        process = self._process
        mean = process._centre + process._scale * self._mean
        return mean, process._scale * process._inflation * np.sqrt(self._variance)

    @property
    def median(self) -> Floats:
        """Shape (c,), in the cost's unit."""
        mean, _ = self._normal
        return np.asarray(mean if self._process.bound is None else self._process.bound + np.exp(mean))

    @property
    def spread(self) -> Floats:
        """How far the cost may well be below its median, shape (c,): one standard deviation of what is modelled."""
        mean, deviation = self._normal
        return np.asarray(deviation if self._process.bound is None else np.exp(mean) - np.exp(mean - deviation))

    def log_below(self, threshold: float) -> Floats:
        """Logarithm of the probability that the cost is at most `threshold`, shape (c,)."""
        mean, deviation = self._normal
        bound = self._process.bound
        if bound is None:
            return np.asarray(log_ndtr((threshold - mean) / deviation))
        if threshold <= bound:
            return np.full(len(mean), -np.inf)
        return np.asarray(log_ndtr((np.log(threshold - bound) - mean) / deviation))

    def expected_shortfall(self, thresholds: Floats) -> Floats:
        """Expected part of each threshold, shape (t,), that the cost stays below it, shape (c, t)."""
        mean, deviation = (part[:, None] for part in self._normal)
        bound = self._process.bound
        if bound is None:
            z = (thresholds - mean) / deviation
            return np.asarray((thresholds - mean) * ndtr(z) + deviation * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))
        # Of a log-normal cost: the formula of Black & Scholes (1973) for a put.
        room = np.maximum(thresholds - bound, 1e-300)
        z = (np.log(room) - mean) / deviation
        typical = np.exp(np.minimum(mean + 0.5 * deviation**2, 700.0))
        return np.asarray(np.maximum(room * ndtr(z) - typical * ndtr(z - deviation), 0.0))

    def rows(self, index: Indices) -> Beliefs:
        """The beliefs about some of the candidates."""
        return Beliefs(
            self._process, self._candidates.rows(index), self._rows[:, index], self._mean[index], self._variance[index]
        )

    def after(self, index: int) -> Beliefs:
        """The beliefs once candidate `index` is evaluated and turns out as expected: the mean stays."""
        process = self._process
        covariance = process._covariance(self._candidates.rows(index), self._candidates)[0]
        covariance -= self._rows[:, index] @ self._rows
        row = covariance / np.sqrt(self._variance[index] + process._noise)
        variance = np.maximum(self._variance - row**2, 1e-9)
        return Beliefs(process, self._candidates, np.vstack([self._rows, row]), self._mean, variance)


def _half_sum(by_column: Floats) -> float:
    return 0.5 * float(by_column.sum()) or 1.0


def _squared_distance(a: Floats, b: Floats, weights: Floats) -> Floats:
    squares = (a * a @ weights)[:, None] + (b * b @ weights)[None]
    return np.maximum(squares - 2.0 * (a * weights) @ b.T, 0.0)


def _distance_slope(by_distance: Floats, columns: Floats) -> Floats:
    """Derivative by the weights of `_squared_distance`, given the one by (symmetric) distances."""
    return np.asarray(
        2.0 * (by_distance.sum(axis=1) @ columns**2 - np.einsum("nf,nf->f", columns, by_distance @ columns))
    )
