"""Which networks to evaluate next, by models of their costs that are fitted anew to what is known.

The loop of LINAS (Cummings et al., 2022, arXiv:2205.10358): evaluate, fit a predictor per objective, search on the
predictions, evaluate what was found. Different from the paper: the predictors are Gaussian processes chosen by their
leave-one-out density, so what they do not know counts, too; and the search on them looks for the networks whose
expected improvement of the dominated hypervolume is largest (Emmerich et al., 2006, doi:10.1109/TEVC.2005.859463),
each given the ones chosen before it, so that the networks of a batch differ.

Shapes: `n` networks, `d` decisions, `m` objectives, `c` constraints or candidates, as said.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from hanax.searchers._breeding import breed, draw_unseen, every_combination
from hanax.searchers._domain import Domain
from hanax.searchers._gaussian_process import ADDITIVE, PARTS, Beliefs, GaussianProcess, Inputs, make_inputs
from hanax.searchers._memory import row_keys
from hanax.searchers._pareto import constrained_rank, non_dominated
from hanax.searchers._problem import Codes, Floats

LISTED = 20_000
"""Combinations of options up to which all networks are candidates; in larger domains they are bred."""
SURROGATES = {
    "additive": (ADDITIVE, False),
    "additive-warped": (ADDITIVE, True),
    "mixture": (tuple(range(PARTS)), False),
    "mixture-warped": (tuple(range(PARTS)), True),
}
"""Models of a cost by name: parts of the covariance, and whether its logarithm is modelled."""
N_BRED = 500
"""Networks in a generation of candidates."""
N_PARENTS = 100
N_DRAWS = 64
EXACT = 2_000
"""Candidates whose expected improvement is worked out; the others look worse at their mean less a deviation."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of `propose`.

    Attributes:
        n_initial: Networks that must be told before anything is predicted; until then, proposals are spread out.
        candidates: Networks bred per proposal in a domain too large to list.
        reference: For each loss the worst of interest; None for a tenth of the front's extent beyond its worst.
        surrogates: Models to choose from, of `SURROGATES`.
        max_steps: Of the optimiser of the hyperparameters.
    """

    n_initial: int = 10
    candidates: int = 4_000
    reference: tuple[float, ...] | None = None
    surrogates: tuple[str, ...] = tuple(SURROGATES)
    max_steps: int = 25


def propose(
    domain: Domain,
    codes: Codes,
    losses: Floats,
    violations: Floats,
    pending: Codes,
    n: int,
    rng: np.random.Generator,
    settings: Settings,
) -> Codes:
    """The next networks to evaluate, shape (up to `n`, d): canonical, all different, none known or pending.

    Fewer than `n` only where the domain is exhausted.

    Args:
        domain: What can be chosen.
        codes: Networks evaluated, canonical, shape (t, d).
        losses: Theirs, all minimised, shape (t, m).
        violations: By how much each constraint is missed, feasible where none is above 0, shape (t, c).
        pending: Networks that are being evaluated or cannot be, canonical, shape (p, d).
        n: How many to propose.
        rng: For the first networks and the breeding.
        settings: See there.
    """
    known = set(row_keys(np.concatenate([codes, pending])))
    if len(codes) < max(settings.n_initial, 3):
        return _spread_out(domain, known, n, rng)
    reference = _reference(losses, violations, settings.reference)
    models = _Models(domain, codes, np.minimum(losses, reference), violations, settings)
    known_front = _Front(losses, violations, reference)
    best = codes[np.argsort(constrained_rank(losses, violations.max(axis=1, initial=0.0)), kind="stable")[:N_PARENTS]]
    candidates = _candidates(domain, known, best, models, known_front, rng, settings)
    if len(candidates) == 0:
        return candidates
    return candidates[_batch(models, candidates, pending, known_front, min(n, len(candidates)), rng)]


def _reference(losses: Floats, violations: Floats, given: Sequence[float] | None) -> Floats:
    if given is not None:
        return np.asarray(given, dtype=np.float64)
    keeps = (violations <= 0).all(axis=1)
    feasible = losses[keeps] if keeps.any() else losses
    front = feasible[non_dominated(feasible)]
    extent = np.where(np.ptp(front, axis=0) > 0, np.ptp(front, axis=0), np.ptp(feasible, axis=0))
    return np.asarray(front.max(axis=0) + 0.1 * np.where(extent > 0, extent, 1.0))


class _Models:
    """A Gaussian process per loss and per constraint."""

    def __init__(self, domain: Domain, codes: Codes, losses: Floats, violations: Floats, settings: Settings) -> None:
        self._domain, self._codes = domain, codes
        (inputs,) = make_inputs(domain, codes)
        self._of_losses = [_fit(domain, inputs, column, settings) for column in losses.T]
        self._of_violations = [_fit(domain, inputs, column, settings) for column in violations.T]

    def predict(self, candidates: Codes) -> _Outlook:
        _, inputs = make_inputs(self._domain, self._codes, candidates)
        return _Outlook(
            [model.predict(inputs) for model in self._of_losses],
            [model.predict(inputs) for model in self._of_violations],
        )


def _fit(domain: Domain, inputs: Inputs, y: Floats, settings: Settings) -> GaussianProcess:
    """The one of several models that predicts each evaluation from the others best."""
    fits = [
        GaussianProcess(domain, inputs, y, parts=parts, warp=warp, max_steps=settings.max_steps)
        for parts, warp in (SURROGATES[name] for name in settings.surrogates)
    ]
    return max(fits, key=lambda fit: fit.log_density)


@dataclass(frozen=True, eq=False)
class _Outlook:
    """What is believed of the losses and violations of some candidates."""

    losses: list[Beliefs]
    violations: list[Beliefs]

    def after(self, index: int) -> _Outlook:
        """The same once candidate `index` is evaluated and turns out as expected."""
        return _Outlook([one.after(index) for one in self.losses], [one.after(index) for one in self.violations])

    @property
    def medians(self) -> Floats:
        """Of the losses, shape (c, m)."""
        return np.column_stack([one.median for one in self.losses])

    @property
    def log_feasible(self) -> Floats:
        """Logarithm of the probability that all constraints are kept, taken as independent, shape (c,)."""
        parts = [one.log_below(0.0) for one in self.violations]
        return np.sum(parts, axis=0) if parts else np.zeros(len(self.losses[0].median))

    def gain(self, front: _Front, rng: np.random.Generator) -> Floats:
        """How much evaluating each candidate promises, shape (c,); without a feasible network, that it is one."""
        if front.losses is None:
            return self.log_feasible
        spreads = np.column_stack([one.spread for one in self.losses])
        gain = front.expected_improvement(self.losses, self.medians, spreads, rng) * np.exp(self.log_feasible)
        # Where nothing promises to improve the front, what is known least is worth the most.
        return np.asarray(gain + 1e-9 * np.sum(spreads / front.extent, axis=1))


class _Front:
    """The best feasible losses so far, up to the reference point."""

    def __init__(self, losses: Floats, violations: Floats, reference: Floats) -> None:
        feasible = losses[(violations <= 0).all(axis=1)]
        ideal = losses.min(axis=0)
        self.reference = reference
        self.extent = np.where(reference > ideal, reference - ideal, 1.0)
        self.losses: Floats | None = _best(np.minimum(feasible, reference)) if len(feasible) else None

    def with_one(self, losses: Floats) -> _Front:
        """The same with one more network, of `losses`, shape (m,)."""
        more = copy(self)
        if self.losses is not None:
            more.losses = _best(np.vstack([self.losses, np.minimum(losses, self.reference)]))
        return more

    def expected_improvement(
        self, beliefs: list[Beliefs], medians: Floats, spreads: Floats, rng: np.random.Generator
    ) -> Floats:
        """Of the hypervolume; of a random scalarisation of more than two losses (Knowles, 2006, equation 2)."""
        assert self.losses is not None
        if len(beliefs) == 1:
            return beliefs[0].expected_shortfall(self.losses.min(axis=0))[:, 0]
        if len(beliefs) > 2:
            scaled = [(self.reference - self.losses) / self.extent, (self.reference - medians) / self.extent]
            return _scalarised_improvement(scaled[1], spreads / self.extent, scaled[0], rng)
        strips = _strips(self.losses, self.reference)
        hopes = [np.maximum(edge - (medians - spreads)[:, [m]], 0.0) for m, edge in enumerate(strips)]
        hopeful = _expected_area(*hopes)
        likely = np.argsort(-hopeful, kind="stable")[:EXACT]
        shortfalls = [one.rows(likely).expected_shortfall(edge) for one, edge in zip(beliefs, strips, strict=True)]
        gain = np.zeros(len(medians))
        gain[likely] = _expected_area(*shortfalls)
        return gain / np.prod(self.extent)


def _best(losses: Floats) -> Floats:
    return losses[non_dominated(losses)]


def _strips(front: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Where the area that `front` does not dominate is cut: right ends in the first loss, and tops in the second.

    The strip that ends at a point of the front lies below the best second loss of the points left of it.
    """
    first, second = np.unique(front, axis=0).T
    return np.append(first, reference[0]), np.concatenate([[reference[1]], np.minimum.accumulate(second)])


def _expected_area(widths: Floats, heights: Floats) -> Floats:
    """Expected area that each candidate adds to what is dominated, shape (c,), from its shortfalls at the strips.

    The two losses are taken as independent, so the expected area in a strip is that of its width times its height.
    """
    within = np.diff(widths, axis=1, prepend=0.0)
    return np.asarray(np.sum(within * heights, axis=1))


def _scalarised_improvement(means: Floats, spreads: Floats, front: Floats, rng: np.random.Generator) -> Floats:
    """Expected improvement of the augmented Tchebycheff value for random weights, by `N_DRAWS` draws."""
    weights = rng.dirichlet(np.ones(means.shape[1]))

    def value(points: Floats) -> Floats:
        weighted = weights * (points - 1.0)
        return np.asarray(weighted.min(axis=-1) + 0.05 * weighted.sum(axis=-1))

    best = value(front).max()
    draws = rng.standard_normal((N_DRAWS, 1, means.shape[1]))
    return np.asarray(np.maximum(value(means + spreads * draws) - best, 0.0).mean(axis=0))


def _batch(
    models: _Models, candidates: Codes, pending: Codes, front: _Front, n: int, rng: np.random.Generator
) -> list[int]:
    """Indices of `n` candidates, each the most promising once those before it and the pending ones are known."""
    outlook = models.predict(np.concatenate([candidates, pending]))
    for index in range(len(candidates), len(candidates) + len(pending)):
        outlook, front = outlook.after(index), front.with_one(outlook.medians[index])
    chosen: list[int] = []
    for _ in range(n):
        gain = outlook.gain(front, rng)[: len(candidates)]
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        outlook, front = outlook.after(chosen[-1]), front.with_one(outlook.medians[chosen[-1]])
    return chosen


def _candidates(
    domain: Domain,
    known: set[bytes],
    told_best: Codes,
    models: _Models,
    front: _Front,
    rng: np.random.Generator,
    settings: Settings,
) -> Codes:
    """Unknown networks: all in a small domain; else bred from the most promising, a generation at a time."""
    if np.prod(domain.counts.astype(np.float64)) <= LISTED:
        return _fresh(domain.canonical(every_combination(domain)), known)
    pool = draw_unseen(domain, rng, N_BRED, known)
    taken = known | set(row_keys(pool))
    for _ in range(settings.candidates // N_BRED - 1):
        promise = models.predict(pool).gain(front, rng)
        best = pool[np.argsort(-promise, kind="stable")[:N_PARENTS]]
        children = _fresh(breed(domain, rng, np.concatenate([best, told_best]), N_BRED), taken)
        taken |= set(row_keys(children))
        pool = np.concatenate([pool, children])
    return pool


def _fresh(codes: Codes, known: set[bytes]) -> Codes:
    """Those of `codes` that are not known, each once, in their order."""
    first = {key: index for index, key in reversed(list(enumerate(row_keys(codes)))) if key not in known}
    return codes[sorted(first.values())]


def _spread_out(domain: Domain, known: set[bytes], n: int, rng: np.random.Generator) -> Codes:
    """`n` unknown networks that differ much: always the one furthest from those taken (Gonzalez, 1985)."""
    pool = draw_unseen(domain, rng, 20 * n, known)
    columns = domain.binary(pool)
    taken = [0] if len(pool) else []
    nearest = np.full(len(pool), np.inf)
    while taken and len(taken) < min(n, len(pool)):
        nearest = np.minimum(nearest, np.sum((columns - columns[taken[-1]]) ** 2, axis=1))
        nearest[taken] = -1.0
        taken.append(int(np.argmax(nearest)))
    return pool[taken]
