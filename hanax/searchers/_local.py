"""Local search: whole neighbourhoods of the best networks, with restarts."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._memory import Told, Unseen, row_keys
from hanax.searchers._pareto import constrained_rank
from hanax.searchers._problem import Codes, Floats


def neighbours(space: SearchSpace, codes: Codes) -> Codes:
    """Canonical codes of the networks that differ from `codes`, shape (1, d), in one decision, shape (n, d).

    Only decisions that count change. What a change switches on takes its first option.
    """
    columns = np.flatnonzero(space.active(codes)[0])
    changes = [
        (column, option)
        for column in columns.tolist()
        for option in range(int(space.option_counts[column]))
        if option != codes[0, column]
    ]
    changed = np.repeat(codes, len(changes), axis=0)
    for row, (column, option) in enumerate(changes):
        changed[row, column] = option
    return space.canonical(changed)


class LocalSearcher:
    """Best-improvement search for one objective, Pareto local search for several.

    One objective: look at all `neighbours` of the incumbent, go to the best of them if it is better, and start again
    from random networks where none is (White et al., 2021, arXiv:2005.02960); equals of it are looked around too.
    Several: keep the networks that no other
    dominates, look at all neighbours of one of these after the other, drawn at random, until each was looked at
    (Paquete et al., 2004, doi:10.1007/978-3-642-17144-4_7), then start again. Infeasible networks are compared by their
    violation. Several random networks begin a descent, and `ask` goes on with further members of the front, before the
    results of the last neighbourhood are known, to fill a batch.

    Results may come back in any order, a few at a time or not at all. Networks told before the first `ask` are where
    the first descent begins.
    """

    def __init__(self, space: SearchSpace, *, starts: int = 10, batch: int = 100, seed: int = 0) -> None:
        """Start without an incumbent.

        Args:
            space: Where to search.
            starts: Random networks that begin a descent.
            batch: The most networks per `ask`.
            seed: The same seed and the same results give the same proposals.

        Raises:
            ValueError: `starts` or `batch` is less than 1.
        """
        for name, value in (("starts", starts), ("batch", batch)):
            if value < 1:
                raise ValueError(f"{name} is a number of networks, at least 1; got {value}")
        self._space = space
        self._starts = starts
        self._batch = batch
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._told = Told(space)
        self._none = np.zeros((0, len(space.decisions)), dtype=np.int32)
        self._has_begun = False
        self._queue = self._none
        self._members: set[bytes] = set()
        self._explored: set[bytes] = set()
        self._front: dict[bytes, tuple[tuple[float, ...], float]] = {}

    def ask(self) -> Codes:
        """Up to `batch` networks never proposed before, shape (n, d): neighbours of the front, or a new start.

        No rows mean that the space is exhausted.
        """
        self._has_begun = True
        proposals = self._none
        while len(proposals) < self._batch:
            if len(self._queue) == 0 and not self._explore():
                break
            room = self._batch - len(proposals)
            proposals = np.concatenate([proposals, self._unseen.take(self._queue[:room])])
            self._queue = self._queue[room:]
        return proposals if len(proposals) else self._restart()

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), 0 where feasible.

        Telling the same again changes nothing.

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit.
        """
        new = self._told.add(codes, losses, violations)[0]
        self._unseen.take(new)
        keys = row_keys(new)
        if not self._has_begun:
            self._members.update(keys)
        self._consider([key for key in keys if key in self._members])

    def _consider(self, keys: list[bytes]) -> None:
        """Let told networks of this descent join its front."""
        self._front.update({key: self._told[key] for key in keys})
        if keys:
            losses = np.array([outcome[0] for outcome in self._front.values()])
            violations = np.array([outcome[1] for outcome in self._front.values()])
            best = constrained_rank(losses, violations) == 0
            self._front = {key: value for (key, value), stays in zip(self._front.items(), best, strict=True) if stays}

    def _explore(self) -> bool:
        """Queue the neighbourhood of a member of the front; whether there was one left."""
        left = [key for key in self._front if key not in self._explored]
        if not left:
            return False
        codes = np.stack([np.frombuffer(key, dtype=np.int32) for key in left])
        by_age = np.argsort(self._unseen.serials(codes))  # whatever the order of telling
        chosen = codes[[by_age[self._rng.integers(len(left))]]]
        self._explored.add(row_keys(chosen)[0])
        self._queue = neighbours(self._space, chosen)
        keys = row_keys(self._queue)
        joining = [key for key in keys if key not in self._members and key in self._told]
        self._members.update(keys)
        self._consider(joining)
        return True

    def _restart(self) -> Codes:
        """Begin a new descent; networks of this one that are still being evaluated are part of it."""
        starts = self._unseen.draw(self._rng, self._starts)
        self._members = {key for key in self._members if key not in self._told} | set(row_keys(starts))
        self._explored, self._front = set(), {}
        return starts
