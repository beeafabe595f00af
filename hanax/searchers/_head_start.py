"""A searcher that begins with given networks."""

from __future__ import annotations

from hanax.search_spaces import SearchSpace, unique_rows
from hanax.searchers._problem import Codes, Floats
from hanax.searchers._search import Searcher


class HeadStart:
    """Proposes given networks first, all at once, and then what `searcher` proposes, which learns of everything.

    For an evolution the networks are initial members: it breeds from those of them that survive.
    """

    def __init__(self, space: SearchSpace, searcher: Searcher, codes: Codes) -> None:
        """Begin with `codes`, shape (n, d); networks that occur again are left out.

        Raises:
            ValueError: A row is not of `space`.
        """
        codes = space.canonical(codes)
        self._first = codes[unique_rows(codes)]
        self._searcher = searcher

    def ask(self) -> Codes:
        """The given networks, once; then the proposals of the searcher."""
        first, self._first = self._first, self._first[:0]
        return first if len(first) else self._searcher.ask()

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), to the searcher.

        Raises:
            ValueError: The searcher refuses them.
        """
        self._searcher.tell(codes, losses, violations)
