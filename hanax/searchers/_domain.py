"""What can be chosen, for searchers that know nothing of a space but its options.

Shapes: `n` networks, `d` decisions, `f` columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hanax.searchers._problem import Codes, Floats, Indices


@dataclass(frozen=True, eq=False)
class Domain:
    """What can be chosen.

    Attributes:
        counts: Options of each decision, shape (d,).
        values: For each decision the numbers of its options where they are ordered, None for categories.
        canonical: Maps codes, shape (n, d), to those that stand for equal networks; the identity where all differ.
        features: Further columns that the caller knows of, such as MACs: codes to shape (n, f).
    """

    counts: Indices
    values: tuple[Floats | None, ...]
    canonical: Callable[[Codes], Codes]
    features: Callable[[Codes], Floats] | None = None

    @cached_property
    def _columns(self) -> tuple[Indices, Indices, NDArray[np.bool_]]:
        """Of each binary column: its decision, its option, and whether it marks a category or a threshold."""
        rows = [
            (decision, option, values is None)
            for decision, (count, values) in enumerate(zip(self.counts.tolist(), self.values, strict=True))
            for option in range(count if values is None else count - 1)
            if count > 1
        ]
        owner, option, is_category = zip(*rows, strict=True) if rows else ((), (), ())
        return np.array(owner, dtype=np.int64), np.array(option, dtype=np.int64), np.array(is_category, dtype=bool)

    @cached_property
    def alike(self) -> list[Indices]:
        """Groups of two and more decisions that offer the same options."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for decision, (count, values) in enumerate(zip(self.counts.tolist(), self.values, strict=True)):
            if count > 1:
                groups.setdefault((count, None if values is None else tuple(values.tolist())), []).append(decision)
        return [np.array(group) for group in groups.values() if len(group) > 1]

    @property
    def owner(self) -> Indices:
        """The decision of each column of `binary`."""
        return self._columns[0]

    @cached_property
    def shared(self) -> Indices:
        """For each column of `binary` the number of what it shares with the same option of decisions alike."""
        owner, option, _ = self._columns
        group_of = np.arange(len(self.counts))
        for group in self.alike:
            group_of[group] = group[0]
        return np.unique(np.column_stack([group_of[owner], option]), axis=0, return_inverse=True)[1].reshape(-1)

    def binary(self, codes: Codes) -> Floats:
        """Columns, shape (n, f), in which two networks' squared distance is the number of decisions that differ.

        An ordered decision has a column per threshold: the distance grows with the steps between two options.
        """
        owner, option, is_category = self._columns
        chosen = codes[:, owner]
        marked = np.where(is_category, chosen == option, chosen > option)
        return np.where(is_category, np.sqrt(0.5), 1.0) * marked

    def summaries(self, codes: Codes) -> Floats:
        """Shape (n, f): how often each option is taken over decisions alike (their mean where ordered); `features`."""
        columns = []
        for group in self.alike:
            count = int(self.counts[group[0]])
            if self.values[group[0]] is None:
                columns += [np.sum(codes[:, group] == option, axis=1) / np.sqrt(len(group)) for option in range(count)]
            else:
                columns.append(np.sum(codes[:, group], axis=1) / ((count - 1) * np.sqrt(len(group))))
        own = np.array(columns, dtype=np.float64).reshape(len(columns), len(codes)).T
        return own if self.features is None else np.hstack([own, self.features(codes)])
