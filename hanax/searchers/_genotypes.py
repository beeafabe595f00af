"""Genotypes: operations on architecture codes as arrays, of NumPy or of JAX.

`SearchSpace` has the same operations for NumPy's random generators. Here they are functions of random words, so that
they are traced into a JAX executable, and give the same networks on either array module.

Shapes: `d` decisions; ``...`` any leading axes. Codes are int32, words uint32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from hanax.search_spaces import RESOLUTION, SearchSpace
from hanax.searchers._random_words import Array, bounded, happens, threshold

MAX_OPTIONS = 2**16
"""Options that a decision may have."""


@dataclass(frozen=True, eq=False)
class Genotypes:
    """What the operations need to know of a space, as small arrays; see `genotypes_of`.

    Attributes:
        counts: Options of each decision, uint32, shape (d,).
        parents: The column that each decision depends on, int32, shape (d,); its own where it depends on none.
        accepted: Whether an option of the parent makes the decision count, shape (d, most options of a decision).
        n_levels: Length of the longest chain of decisions of which each depends on the one before.
        groups: Slices of decisions of which one word can hold the joint setting; in order, all decisions.
        strides: The weight of each decision's code in its word, uint32, shape (d,).
    """

    counts: np.ndarray
    parents: np.ndarray
    accepted: np.ndarray
    n_levels: int
    groups: tuple[slice, ...]
    strides: np.ndarray

    @property
    def n_decisions(self) -> int:
        """Number of decisions."""
        return len(self.counts)

    def active(self, xp: ModuleType, codes: Array) -> Array:
        """Where a decision counts, given the others; of `codes`, shape (..., d)."""
        holds = self._holds(xp, codes)
        active = holds
        for _ in range(self.n_levels - 1):
            active = holds & active[..., self.parents]
        return active

    def _holds(self, xp: ModuleType, codes: Array) -> Array:
        """Where the condition of a decision is met, if its parent counts."""
        if self.n_levels == 0:
            return xp.ones(codes.shape, dtype=bool)
        return xp.asarray(self.accepted)[np.arange(self.n_decisions), codes[..., self.parents]]

    def canonical(self, xp: ModuleType, codes: Array) -> Array:
        """`codes`, shape (..., d), with every decision that does not count set to 0."""
        return xp.where(self.active(xp, codes), codes, 0)

    def random(self, xp: ModuleType, words: Array) -> Array:
        """Canonical codes, shape (..., d), every decision drawn uniformly and independently, from as many words."""
        return self.canonical(xp, bounded(xp, words, self._row(xp, self.counts, words.ndim)))

    def mutate(self, xp: ModuleType, codes: Array, words: Array, thresholds: np.ndarray) -> Array:
        """Canonical copies of `codes`, shape (..., d), in which each decision that counts changes by chance.

        At least one decision changes in every row (one that counts, all equally likely), to any other of its options
        with equal probability. What a change switches on is drawn uniformly.

        Args:
            words: Shape (..., 2, d).
            thresholds: The probability of a change of each decision, uint32; see `mutation_thresholds`. Shape (d,), or
                (..., d) for others in every row.
        """
        gates, values = words[..., 0, :], words[..., 1, :]
        counts = self._row(xp, self.counts, codes.ndim)
        active = self.active(xp, codes)
        changeable = active & (counts > 1)
        limits = self._row(xp, thresholds, codes.ndim) if thresholds.ndim == 1 else xp.asarray(thresholds)
        chosen = changeable & happens(xp, gates, limits)
        # Bits that neither `happens` nor, for all that matters, `bounded` has looked at order the decisions.
        lots = xp.where(changeable, (gates << 24) | ((values & 0xFFFF) << 8) | 1, 0)
        forced = changeable & (lots == lots.max(axis=-1, keepdims=True))
        chosen = chosen | (forced & ~chosen.any(axis=-1, keepdims=True))
        # A shift by 1..count-1, modulo the count, reaches every other option with the same probability.
        shifted = codes + 1 + bounded(xp, values, xp.maximum(counts, 2) - 1)
        ends = counts.astype(xp.int32)
        shifted = xp.where(shifted >= ends, shifted - ends, shifted)
        drawn = bounded(xp, values, counts)
        return self.canonical(xp, xp.where(active, xp.where(chosen, shifted, codes), drawn))

    def crossover(self, xp: ModuleType, first: Array, second: Array, words: Array) -> Array:
        """Canonical children of the rows of `first` and `second`: each decision comes from either with probability 1/2.

        A decision that counts in one parent only comes from that one. All have the shape (..., d).
        """
        first_active, second_active = self.active(xp, first), self.active(xp, second)
        take_first = xp.where(first_active == second_active, (words >> 31) == 0, first_active)
        return self.canonical(xp, xp.where(take_first, first, second))

    def pack(self, xp: ModuleType, codes: Array) -> Array:
        """Words, uint32, shape (..., w), that are equal for equal canonical `codes`, shape (..., d), and no others."""
        weighted = codes.astype(xp.uint32) * self._row(xp, self.strides, codes.ndim)
        return xp.stack([weighted[..., group].sum(axis=-1, dtype=xp.uint32) for group in self.groups], axis=-1)

    @staticmethod
    def _row(xp: ModuleType, values: np.ndarray, ndim: int) -> Array:
        """`values`, shape (d,), as the last of `ndim` axes."""
        return xp.asarray(values.reshape((1,) * (ndim - 1) + values.shape))


def genotypes_of(space: SearchSpace) -> Genotypes:
    """The arrays of `space`.

    Raises:
        ValueError: A decision has more than `MAX_OPTIONS` options.
    """
    for decision in space.decisions:
        if len(decision.options) > MAX_OPTIONS:
            raise ValueError(f"{decision.name} has {len(decision.options)} options; at most {MAX_OPTIONS} can be drawn")
    counts = space.option_counts
    parents = np.arange(len(counts), dtype=np.int32)
    accepted = np.ones((len(counts), counts.max()), dtype=bool)
    levels = np.zeros(len(counts), dtype=int)
    for column, decision in enumerate(space.decisions):
        if decision.when is not None:
            parents[column] = parent = space.column(decision.when.decision)
            options = space.decisions[parent].options
            accepted[column, : len(options)] = [option in decision.when.options for option in options]
            levels[column] = levels[parent] + 1
    groups, strides = _packing(counts.tolist())
    return Genotypes(counts.astype(np.uint32), parents, accepted, int(levels.max()), groups, strides)


def mutation_thresholds(
    space: SearchSpace, probability: float, resolution_probability: float | None = None
) -> np.ndarray:
    """`Genotypes.mutate`'s thresholds for a `probability` per decision, and for the resolution's own if given.

    Raises:
        ValueError: A probability outside [0, 1].
    """
    of_resolution = probability if resolution_probability is None else resolution_probability
    for value in (probability, of_resolution):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"the probability of a mutation is between 0 and 1; got {value}")
    thresholds = np.full(len(space.decisions), threshold(probability), dtype=np.uint32)
    thresholds[space.column(RESOLUTION)] = threshold(of_resolution)
    return thresholds


def repeats(xp: ModuleType, keys: Array) -> Array:
    """Where a row of `keys`, shape (..., n, w), is equal to an earlier one; shape (..., n)."""
    n = keys.shape[-2]
    earlier = np.tri(n, k=-1, dtype=bool).reshape((1,) * (keys.ndim - 2) + (n, n))
    return (equal_rows(xp, keys, keys) & xp.asarray(earlier)).any(axis=-1)


def equal_rows(xp: ModuleType, first: Array, second: Array) -> Array:
    """Where rows of `first`, shape (..., n, w), equal rows of `second`, shape (..., m, w); shape (..., n, m)."""
    same = first[..., :, None, 0] == second[..., None, :, 0]
    for word in range(1, first.shape[-1]):
        same = same & (first[..., :, None, word] == second[..., None, :, word])
    return same


def _packing(counts: Sequence[int]) -> tuple[tuple[slice, ...], np.ndarray]:
    """Groups of decisions with at most 2^32 joint settings, and each decision's weight in the number of a setting."""
    starts, strides = [0], [1]
    for column in range(1, len(counts)):
        stride = strides[-1] * counts[column - 1]
        if stride * counts[column] > 2**32:
            starts.append(column)
            stride = 1
        strides.append(stride)
    ends = [*starts[1:], len(counts)]
    return tuple(map(slice, starts, ends)), np.array(strides, dtype=np.uint32)
