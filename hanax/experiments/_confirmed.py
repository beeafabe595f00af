"""What measurement says about the candidates of a search: which keep the constraints, which are on the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hanax._intervals import wilson_interval
from hanax.searchers import Constraint, Objective, non_dominated

_CONFIRMED = {"accuracy": "validation_accuracy", "latency_ms": "measured_latency_ms"}
"""Column of the confirmed value of a cost that was predicted; the others are exact."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Certified:
    """How a certified constraint fared: of `measured` networks that were chosen under it, `kept` keep its bounds."""

    constraint: Constraint
    kept: int
    measured: int

    @property
    def words(self) -> str:
        """The share that was promised and the one that was measured, with its 95 % interval."""
        low, high = wilson_interval(self.kept, self.measured)
        return (
            f"{self.kept} of {self.measured} candidates keep it when measured "
            f"({100 * self.kept / self.measured:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %); "
            f"promised: {self.constraint.probability:.10g}"
        )


def confirmed_front(frame: pd.DataFrame, objectives: Sequence[Objective]) -> Mask:
    """Which rows no other row dominates, by confirmed values."""
    losses = [part.sign * frame[_CONFIRMED.get(part.name, part.name)] for part in objectives]
    return non_dominated(np.column_stack(losses).astype(np.float64))


def breaks(frame: pd.DataFrame, constraints: Sequence[Constraint]) -> Mask:
    """Which rows break a constraint, by confirmed values; a probability is no excuse."""
    broken = np.zeros(len(frame), dtype=bool)
    for constraint in constraints:
        values = frame[_CONFIRMED.get(constraint.name, constraint.name)].to_numpy(dtype=np.float64)
        broken |= constraint.excess(values) > 0
    return broken


def certified_outcomes(candidates: pd.DataFrame, constraints: Sequence[Constraint]) -> tuple[Certified, ...]:
    """Of each certified constraint, how many of the confirmed `candidates` that the search chose keep it."""
    return tuple(
        Certified(constraint, int(np.sum(~breaks(candidates, [constraint]))), len(candidates))
        for constraint in constraints
        if constraint.probability is not None
    )
