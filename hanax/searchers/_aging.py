"""Aging evolution: the oldest dies, whatever it is worth."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._memory import ROUNDS, Told, Unseen
from hanax.searchers._pareto import constrained_rank, crowding_distance
from hanax.searchers._problem import Codes, Floats, Indices
from hanax.searchers._scalarise import Scalarisation, scalar_losses


class AgingSearcher:
    """Regularised evolution (Real et al., 2019, arXiv:1802.01548), `batch` children at a time.

    The population are the networks asked for last, among those told. The parent of a child is the best of `sample`
    members drawn at random; the child differs from it in one decision. The paper has one objective. Several are made
    one by a scalarisation, or, without one, compared by constraint domination and crowding as in NSGA-II. Differs from
    the paper also in that no network is proposed twice: children that were seen before are bred again, a bounded number
    of times, then replaced by random networks.

    Results may come back in any order, a few at a time or not at all; the order changes nothing. Networks that were not
    asked for may be told as well, as a warm start.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int = 100,
        sample: int = 25,
        batch: int = 10,
        seed: int = 0,
        scalarisation: Scalarisation | None = None,
    ) -> None:
        """Start without a population.

        Args:
            space: Where to search.
            population: Networks that are alive together; as many random ones are the beginning.
            sample: Members that compete to be a parent.
            batch: Networks per `ask`.
            seed: The same seed and the same results give the same proposals.
            scalarisation: Weights of the losses, or a function that makes one of them; None: constraint domination.

        Raises:
            ValueError: `population` or `batch` is less than 1, or `sample` not between 1 and `population`.
        """
        if population < 1 or batch < 1:
            raise ValueError(f"population and batch are at least 1 network; got {population} and {batch}")
        if not 1 <= sample <= population:
            raise ValueError(f"sample is between 1 and the population of {population}; got {sample}")
        self._space = space
        self._size = population
        self._sample = sample
        self._batch = batch
        self._scalarisation = scalarisation
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._told = Told(space)
        self._n_seen = 0
        none = np.zeros((0, len(space.decisions)), dtype=np.int32)
        self._alive: tuple[Codes, Floats, Floats] = (none, np.zeros((0, 1)), np.zeros(0))

    @property
    def population(self) -> Codes:
        """The networks that are alive, the oldest first, shape (n, d)."""
        return self._alive[0]

    def ask(self) -> Codes:
        """Up to `batch` canonical networks never proposed before, shape (n, d); no rows: the space is exhausted."""
        missing = max(0, self._size - self._n_seen)
        if missing or len(self._alive[0]) == 0:
            proposals = self._unseen.draw(self._rng, min(self._batch, missing or self._batch))
        else:
            proposals = self._breed()
        self._n_seen += len(proposals)
        return proposals

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), 0 where feasible.

        Telling the same again changes nothing.

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit;
                weights or results of the scalarisation do not fit the losses.
        """
        if self._scalarisation is not None and np.ndim(losses) == 2:  # refused before anything is remembered
            scalar_losses(self._scalarisation, np.asarray(losses, dtype=np.float64))
        news = self._told.add(codes, losses, violations)
        self._n_seen += len(self._unseen.take(news[0]))
        if len(news[0]):
            parts = (news,) if len(self._alive[0]) == 0 else (self._alive, news)
            together = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
            youngest = np.argsort(self._unseen.serials(together[0]))[-self._size :]
            self._alive = (together[0][youngest], together[1][youngest], together[2][youngest])

    def _breed(self) -> Codes:
        parents = self._alive[0][self._best_first()]
        children = parents[:0]
        for _ in range(ROUNDS):
            n = self._batch - len(children)
            tickets = self._rng.random((n, len(parents)))
            drawn = np.argsort(tickets, axis=1)[:, : self._sample]
            mutants = self._space.mutate(self._rng, parents[drawn.min(axis=1)], 0.0)  # one decision, no more
            children = np.concatenate([children, self._unseen.take(mutants)])
            if len(children) == self._batch:
                return children
        return np.concatenate([children, self._unseen.draw(self._rng, self._batch - len(children))])

    def _best_first(self) -> Indices:
        """Positions of the living, the best first; of equals the oldest."""
        _, losses, violations = self._alive
        if self._scalarisation is not None:
            losses = scalar_losses(self._scalarisation, losses)[:, None]
        rank = constrained_rank(losses, violations)
        crowding = crowding_distance(losses, rank) if losses.shape[1] > 1 else np.zeros(len(rank))
        return np.lexsort((-crowding, rank))
