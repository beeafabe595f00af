"""Every network of a small space, one after the other."""

from __future__ import annotations

from hanax.search_spaces import SearchSpace
from hanax.searchers._enumerate import every_network
from hanax.searchers._memory import Told, Unseen
from hanax.searchers._problem import Codes, Floats


class GridSearcher:
    """Proposes the networks of `every_network` in lexical order: the true front of a space that can be listed."""

    def __init__(self, space: SearchSpace, *, batch: int = 100) -> None:
        """List the space.

        Args:
            space: Where to search.
            batch: Networks per `ask`.

        Raises:
            ValueError: The space has too many networks to be listed, or a batch is less than 1.
        """
        if batch < 1:
            raise ValueError(f"a batch is at least 1 network; got {batch}")
        self._batch = batch
        self._left = every_network(space)
        self._unseen = Unseen(space)
        self._told = Told(space)

    def ask(self) -> Codes:
        """The next `batch` networks, shape (n, d), those told before left out; no rows: the space is exhausted."""
        proposals = self._left[:0]
        while len(proposals) == 0 and len(self._left):
            proposals = self._unseen.take(self._left[: self._batch])
            self._left = self._left[self._batch :]
        return proposals

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Take note that networks are known, with losses, shape (n, m), and violations, shape (n,).

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit.
        """
        self._unseen.take(self._told.add(codes, losses, violations)[0])
