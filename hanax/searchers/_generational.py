"""Evolution in generations, by ask and tell."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._memory import ROUNDS, Told, Unseen
from hanax.searchers._pareto import constrained_rank
from hanax.searchers._problem import Codes, Floats
from hanax.searchers._random_words import Array


class Survival(Protocol):
    """Who survives a generation, and who is the better parent.

    The state is what is remembered from one generation to the next. Shapes: ``...`` any leading axes, a population
    each; `n` rows, `m` objectives.
    """

    def start(self, xp: ModuleType, batch: tuple[int, ...], n_objectives: int) -> Any:
        """The state before the first generation, for the leading axes `batch`."""

    def select(
        self, xp: ModuleType, state: Any, losses: Array, feasible: Array, rank: Array, words: Array
    ) -> tuple[Array, Any]:
        """Rows that survive, the best first, and the next state.

        Args:
            losses: Shape (..., n, m).
            feasible: Whether a row keeps the constraints, shape (..., n).
            rank: The front of each row, shape (..., n); rows beyond the last front that can survive may share one.
            words: Random uint32 words, shape (..., n).
        """

    def merits(self, xp: ModuleType, violations: Array) -> Array:
        """What a tournament compares, the smaller the better, of survivors with these violations, the best first."""


def mutation_probability_of(space: SearchSpace, probability: float | None) -> float:
    """`probability`, or if it is None, that of one mutated decision on average."""
    return 1.0 / max(1, int(np.sum(space.option_counts > 1))) if probability is None else probability


class GenerationalSearcher:
    """What NSGA-II and NSGA-III share; they differ in who survives.

    No network is ever proposed twice: children that were seen before are bred again, a bounded number of times, then
    replaced by random networks.
    """

    def __init__(
        self,
        space: SearchSpace,
        survival: Survival,
        *,
        population: int,
        seed: int,
        mutation_probability: float | None,
        crossover_probability: float,
    ) -> None:
        """Start without a population; the arguments are those of `Nsga2` and who survives.

        Raises:
            ValueError: A population of less than 2, or a probability outside [0, 1].
        """
        if population < 2:
            raise ValueError(f"a population needs at least 2 networks; got {population}")
        mutation = mutation_probability_of(space, mutation_probability)
        for name, value in (("mutation", mutation), ("crossover", crossover_probability)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}_probability is between 0 and 1; got {value}")
        self._space = space
        self._survival = survival
        self._size = population
        self._seed = seed
        self._mutation_probability = mutation
        self._crossover_probability = crossover_probability
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._told = Told(space)
        self._pool: list[tuple[Codes, Floats, Floats]] = []
        self._state: Any = None
        self._generation = 0

    @property
    def population(self) -> Codes:
        """The networks told so far that survive, the best first, shape (n, d)."""
        return self._survivors()[0][0]

    def ask(self) -> Codes:
        """The next generation, shape (n, d): up to `population` canonical networks never proposed before.

        No rows mean that the space is exhausted.
        """
        survivors, self._state = self._survivors()
        self._generation += 1
        self._pool = [survivors] if self._pool else []
        parents, _, violations = survivors
        children = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
        for _ in range(ROUNDS if len(parents) else 0):
            bred = self._breed(parents, violations, self._size - len(children))
            children = np.concatenate([children, self._unseen.take(bred)])
            if len(children) == self._size:
                return children
        return np.concatenate([children, self._unseen.draw(self._rng, self._size - len(children))])

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), 0 where feasible.

        Telling the same again changes nothing.

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit.
        """
        news = self._told.add(codes, losses, violations)
        self._unseen.take(news[0])
        self._pool.append(news)

    def _survivors(self) -> tuple[tuple[Codes, Floats, Floats], Any]:
        """Codes, losses and violations of the best networks of the pool, the best first; and the next state."""
        if not self._pool:
            none = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
            return (none, np.zeros((0, 1)), np.zeros(0)), self._state
        codes, losses, violations = (np.concatenate(parts) for parts in zip(*self._pool, strict=True))
        order = np.argsort(self._unseen.serials(codes))  # the order of asking, whatever that of telling
        codes, losses, violations = codes[order], losses[order], violations[order]
        state = self._survival.start(np, (), losses.shape[1]) if self._state is None else self._state
        words = np.random.default_rng([self._seed, self._generation]).integers(2**32, size=len(codes), dtype=np.uint32)
        rank = constrained_rank(losses, violations)
        best, state = self._survival.select(np, state, losses, violations <= 0, rank, words)
        return (codes[best], losses[best], violations[best]), state

    def _breed(self, parents: Codes, violations: Floats, n: int) -> Codes:
        """`n` children of the winners of tournaments between two `parents` each."""
        merits = self._survival.merits(np, violations)
        drawn = self._rng.integers(0, len(parents), size=(2, 2, n))
        one, other = drawn[:, 0], drawn[:, 1]
        first, second = parents[np.where(merits[other] < merits[one], other, one)]
        has_two_parents = self._rng.random(n) < self._crossover_probability
        children = self._space.mutate(self._rng, first, self._mutation_probability)
        crossed = self._space.crossover(self._rng, first, second)
        return np.where(has_two_parents[:, None], crossed, children)
