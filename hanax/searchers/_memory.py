"""Which networks were proposed and what they turned out to cost: what keeps a search from looking at one twice."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._enumerate import ENUMERABLE, every_network
from hanax.searchers._problem import Codes, Floats, Indices

ROUNDS = 20
"""How often chance may try to find something new."""


def row_keys(codes: Codes) -> list[bytes]:
    """A hashable value per row of `codes`, equal for equal rows."""
    return [row.tobytes() for row in np.ascontiguousarray(codes, dtype=np.int32)]


class Unseen:
    """The networks of `space` that were not handed out yet; those that were have serial numbers."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._serials: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        """Whether the network with this `row_keys` value is still unseen."""
        return key not in self._serials

    @property
    def is_exhausted(self) -> bool:
        """Whether every network of the space was handed out."""
        return len(self._serials) >= self._space.size

    def take(self, codes: Codes) -> Codes:
        """The unseen ones of `codes`, canonical, each once and in their order; they count as seen from now on."""
        new = []
        for index, key in enumerate(row_keys(codes)):
            if key in self:
                self._serials[key] = len(self._serials)
                new.append(index)
        return codes[new]

    def put_back(self, codes: Codes) -> None:
        """Count `codes` as unseen again; not for those who ask for `serials`."""
        for key in row_keys(codes):
            self._serials.pop(key, None)

    def serials(self, codes: Codes) -> Indices:
        """When each of `codes`, all of them seen, was seen first: 0, 1, ..."""
        return np.array([self._serials[key] for key in row_keys(codes)], dtype=np.int64)

    def draw(self, rng: np.random.Generator, n: int) -> Codes:
        """Up to `n` unseen networks at random; fewer only where no more can be found.

        By chance first. Where that fails and the space can be listed, from the list of what is left: fewer than `n`
        then means that the space is exhausted.
        """
        drawn = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
        for _ in range(ROUNDS):
            if len(drawn) == n or self.is_exhausted:
                return drawn
            drawn = np.concatenate([drawn, self.take(self._space.sample(rng, n - len(drawn)))])
        if len(drawn) < n and self._space.size <= ENUMERABLE:
            codes = rng.permutation(every_network(self._space))
            left = [index for index, key in enumerate(row_keys(codes)) if key in self]
            drawn = np.concatenate([drawn, self.take(codes[left[: n - len(drawn)]])])
        return drawn


class Told:
    """Losses and violation of every network reported so far, by its `row_keys` value."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._outcomes: dict[bytes, tuple[tuple[float, ...], float]] = {}

    def __len__(self) -> int:
        return len(self._outcomes)

    def __contains__(self, key: bytes) -> bool:
        return key in self._outcomes

    def __getitem__(self, key: bytes) -> tuple[tuple[float, ...], float]:
        """Losses and violation of a network."""
        return self._outcomes[key]

    def add(self, codes: Codes, losses: Floats, violations: Floats) -> tuple[Codes, Floats, Floats]:
        """Remember outcomes; returns those of networks not told before, with canonical codes.

        Raises:
            ValueError: Shapes that do not fit together or to what was told before, a loss or violation that is not a
                finite number (or a violation below 0), or a network told before with another outcome.
        """
        codes, losses = self._space.canonical(codes), np.asarray(losses, dtype=np.float64)
        violations = np.asarray(violations, dtype=np.float64)
        self._check(codes, losses, violations)
        new = []
        outcomes = zip(map(tuple, losses.tolist()), violations.tolist(), strict=True)
        for index, (key, outcome) in enumerate(zip(row_keys(codes), outcomes, strict=True)):
            known = self._outcomes.setdefault(key, outcome)
            if known is outcome:
                new.append(index)
            elif known != outcome:
                arch = self._space.decode(codes[[index]])[0]
                raise ValueError(f"network {arch} was told already, with losses {known[0]} and violation {known[1]}; "
                                 f"now with {outcome[0]} and {outcome[1]}")  # fmt: skip
        return codes[new], losses[new], violations[new]

    def arrays(self, n_objectives: int) -> tuple[Codes, Floats, Floats]:
        """Codes, losses and violations of all networks, in the order of telling."""
        n = len(self._outcomes)
        codes = np.frombuffer(b"".join(self._outcomes), dtype=np.int32).reshape(n, len(self._space.decisions))
        losses = np.array([losses for losses, _ in self._outcomes.values()]).reshape(n, n_objectives)
        return codes, losses, np.array([violation for _, violation in self._outcomes.values()])

    def _check(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        n_objectives = len(next(iter(self._outcomes.values()))[0]) if self._outcomes else losses.shape[-1]
        if losses.shape != (len(codes), n_objectives) or violations.shape != (len(codes),):
            raise ValueError(
                f"{len(codes)} networks and {n_objectives} objectives need losses of shape ({len(codes)}, "
                f"{n_objectives}) and violations of shape ({len(codes)},); got {losses.shape} and {violations.shape}"
            )
        if not (np.isfinite(losses).all() and np.isfinite(violations).all() and (violations >= 0).all()):
            raise ValueError("losses and violations must be finite numbers, and violations at least 0")
