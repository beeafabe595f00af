"""Spaces that are nothing but decisions, for tests of searchers that need no network."""

from __future__ import annotations

from hanax.search_spaces import RESOLUTION, Decision, SearchSpace


def plain_space(n_decisions: int, n_options: int) -> SearchSpace:
    """`n_decisions` free decisions, and the one resolution that every space has."""
    decisions = [Decision(f"layer{number}", tuple(range(n_options))) for number in range(1, n_decisions + 1)]
    return SearchSpace("plain", 3, 10, (Decision(RESOLUTION, (32,)), *decisions), ())
