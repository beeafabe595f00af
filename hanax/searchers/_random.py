"""Random search: the baseline that every other searcher has to beat."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._memory import Told, Unseen
from hanax.searchers._problem import Codes, Floats


class RandomSearcher:
    """Draws every decision uniformly (`SearchSpace.sample`), and no network twice."""

    def __init__(self, space: SearchSpace, *, batch: int = 100, seed: int = 0) -> None:
        """Start with nothing seen.

        Args:
            space: Where to search.
            batch: Networks per `ask`.
            seed: The same seed gives the same proposals.

        Raises:
            ValueError: A batch of less than 1.
        """
        if batch < 1:
            raise ValueError(f"a batch is at least 1 network; got {batch}")
        self._batch = batch
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._told = Told(space)

    def ask(self) -> Codes:
        """Up to `batch` canonical networks never proposed before, shape (n, d); no rows: the space is exhausted."""
        return self._unseen.draw(self._rng, self._batch)

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Take note that networks are known, with losses, shape (n, m), and violations, shape (n,).

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit.
        """
        self._unseen.take(self._told.add(codes, losses, violations)[0])
