"""NSGA-II on populations as arrays."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._memory import ROUNDS, Told, Unseen
from hanax.searchers._pareto import constrained_rank, crowding_distance
from hanax.searchers._problem import Codes, Floats


class Nsga2:
    """Evolution by constraint domination and crowding (Deb et al., 2002, doi:10.1109/4235.996017).

    Differs from the paper in the variation, which is that of the space (`SearchSpace.crossover`, `SearchSpace.mutate`),
    and in that no network is ever proposed twice: children that were seen before are bred again, a bounded number of
    times, then replaced by random networks.

    Results may come back in any order, a few at a time or not at all; the order changes nothing. Networks that were not
    asked for may be told as well, as a warm start.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int = 100,
        seed: int = 0,
        mutation_probability: float | None = None,
        crossover_probability: float = 0.5,
    ) -> None:
        """Start without a population.

        Args:
            space: Where to search.
            population: Networks that survive a generation, and children per generation.
            seed: The same seed and the same results give the same proposals.
            mutation_probability: That a mutant changes each of its decisions (but one at least); None is one over
                their number.
            crossover_probability: That a child has two parents; otherwise it is a mutant of one.

        Raises:
            ValueError: A population of less than 2, or a probability outside [0, 1].
        """
        if population < 2:
            raise ValueError(f"a population needs at least 2 networks; got {population}")
        if mutation_probability is None:
            mutation_probability = 1.0 / max(1, int(np.sum(space.option_counts > 1)))
        for name, value in (("mutation", mutation_probability), ("crossover", crossover_probability)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}_probability is between 0 and 1; got {value}")
        self._space = space
        self._size = population
        self._mutation_probability = mutation_probability
        self._crossover_probability = crossover_probability
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._told = Told(space)
        self._pool: list[tuple[Codes, Floats, Floats]] = []

    @property
    def population(self) -> Codes:
        """The networks told so far that survive, the best first, shape (n, d)."""
        return self._survivors()[0]

    def ask(self) -> Codes:
        """The next generation, shape (n, d): up to `population` canonical networks never proposed before.

        No rows mean that the space is exhausted.
        """
        survivors = self._survivors()
        self._pool = [survivors] if self._pool else []
        parents = survivors[0]
        children = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
        for _ in range(ROUNDS if len(parents) else 0):
            children = np.concatenate([children, self._unseen.take(self._breed(parents, self._size - len(children)))])
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

    def _survivors(self) -> tuple[Codes, Floats, Floats]:
        """Codes, losses and violations of the best networks of the pool, the best first."""
        if not self._pool:
            none = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
            return none, np.zeros((0, 1)), np.zeros(0)
        codes, losses, violations = (np.concatenate(parts) for parts in zip(*self._pool, strict=True))
        order = np.argsort(self._unseen.serials(codes))  # the order of asking, whatever that of telling
        codes, losses, violations = codes[order], losses[order], violations[order]
        rank = constrained_rank(losses, violations)
        best = np.lexsort((-crowding_distance(losses, rank), rank))[: self._size]
        return codes[best], losses[best], violations[best]

    def _breed(self, parents: Codes, n: int) -> Codes:
        """`n` children of `parents`, which come the best first, so that the winner of a tournament is the earlier."""
        first, second = parents[self._rng.integers(0, len(parents), size=(2, 2, n)).min(axis=1)]
        has_two_parents = self._rng.random(n) < self._crossover_probability
        children = self._space.mutate(self._rng, first, self._mutation_probability)
        crossed = self._space.crossover(self._rng, first, second)
        return np.where(has_two_parents[:, None], crossed, children)
