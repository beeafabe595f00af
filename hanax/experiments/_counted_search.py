"""How many evaluations a search needs until its front is as good as it should be.

What is counted are different networks: a search that proposes a network again is answered from memory, whoever it is.

Shapes: `n` networks, `d` decisions, `m` objectives.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from hanax.search_spaces import SearchSpace, unique_rows
from hanax.searchers import Searcher, hypervolume, non_dominated

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Codes = NDArray[np.int32]
Floats = NDArray[np.float64]

PROPOSALS_PER_EVALUATION = 4
"""A search ends after so many proposals for each of the evaluations that it may make: it repeats itself."""


class Benchmark(Protocol):
    """What can be searched: `TabularBenchmark` or `SurrogateBenchmark`."""

    @property
    def space(self) -> SearchSpace:
        """The space."""

    @property
    def reference_losses(self) -> Floats:
        """The reference point of hypervolumes, shape (m,)."""

    def losses_of(self, codes: Codes) -> Floats:
        """The objectives of canonical `codes`, all to be minimised, shape (n, m)."""


class PlainStudy:
    """An Optuna study as people write it: a categorical parameter per decision that has a choice, nothing else."""

    def __init__(self, space: SearchSpace, sampler: BaseSampler, n_objectives: int) -> None:
        import optuna
        from optuna.distributions import CategoricalDistribution

        self._space = space
        self._distributions = {
            decision.name: CategoricalDistribution(decision.options)
            for decision in space.decisions
            if len(decision.options) > 1
        }
        self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * n_objectives)
        self._trial: optuna.Trial | None = None

    def ask(self) -> Codes:
        """The network of the next trial, shape (1, d)."""
        self._trial = self._study.ask(dict(self._distributions))
        return self._space.encode([self._space.arch(self._trial.params)])

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report the losses of that network, shape (1, m)."""
        assert self._trial is not None, "a trial is told after it was asked for"
        self._study.tell(self._trial, losses[0].tolist())


def search_until(benchmark: Benchmark, searcher: Searcher, target: float, limit: int) -> Codes:
    """The networks that `searcher` evaluates until their hypervolume is `target`, in their order, shape (n, d).

    Ends after `limit` different networks, or when it proposes nothing new for long.
    """
    seen: set[bytes] = set()
    evaluated: list[Codes] = []
    front = np.zeros((0, len(benchmark.reference_losses)))
    for _ in range(PROPOSALS_PER_EVALUATION * limit):
        codes = benchmark.space.canonical(searcher.ask())
        if len(codes) == 0:
            break
        losses = benchmark.losses_of(codes)
        searcher.tell(codes, losses, np.zeros(len(codes)))
        new = [index for index, row in enumerate(codes) if row.tobytes() not in seen]
        seen.update(codes[index].tobytes() for index in new)
        evaluated.append(codes[new])
        front = np.concatenate([front, losses[new]])
        front = front[non_dominated(front)]
        if len(seen) >= limit or _is_reached(front, benchmark.reference_losses, target):
            break
    return np.concatenate([np.zeros((0, len(benchmark.space.decisions)), dtype=np.int32), *evaluated])


def evaluations_of(benchmark: Benchmark, codes: Codes, target: float, limit: int) -> int:
    """Different networks of `codes`, in their order, until their hypervolume is `target`; `limit` if it never is."""
    n = evaluations_to(benchmark.losses_of(codes[unique_rows(codes)]), benchmark.reference_losses, target)
    return limit if n is None else min(n, limit)


def evaluations_to(losses: Floats, reference: Floats, target: float) -> int | None:
    """The fewest rows of `losses`, shape (n, m), from the first on, whose hypervolume is `target`; None: not all."""
    counts = range(len(losses) + 1)
    n = bisect.bisect_left(counts, True, key=lambda count: _is_reached(losses[:count], reference, target))
    return n if n < len(counts) else None


def _is_reached(losses: Floats, reference: Floats, target: float) -> bool:
    """Whether the hypervolume of `losses` is `target`, but for a billionth that sums of volumes round to."""
    return hypervolume(losses, reference) >= target * (1 - 1e-9)
