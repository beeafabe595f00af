"""What to search for: objectives and constraints over named costs, and the function that gives the costs.

Shapes: `n` architectures, `d` decisions, `m` objectives, `c` constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hanax.search_spaces import SearchSpace

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]
Indices = NDArray[np.int64]
Costs = Mapping[str, Floats]
"""Named costs of `n` architectures, each of shape (n,), in the unit that the objective or constraint of it states."""

Evaluate = Callable[[Codes], Costs]
"""Costs of canonical codes, shape (n, d); more of them than the problem names are welcome and kept."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A cost to make as small or as large as possible."""

    name: str
    direction: Literal["minimise", "maximise"]
    unit: str = ""

    def __post_init__(self) -> None:
        if self.direction not in ("minimise", "maximise"):
            raise ValueError(f"{self.name}: direction is 'minimise' or 'maximise'; got {self.direction!r}")

    @property
    def sign(self) -> float:
        """Factor that turns the cost into a loss."""
        return 1.0 if self.direction == "minimise" else -1.0


def quantile_name(cost: str, level: float) -> str:
    """Name of the cost that holds a quantile of another: ``latency_ms_p95`` for level 0.95 of ``latency_ms``."""
    return f"{cost}_p{100 * level:.10g}"


@dataclass(frozen=True, slots=True)
class Constraint:
    """Bounds that a cost must keep.

    With a `probability` the constraint is *certified*: a network keeps it where a new measurement of its cost keeps the
    bounds with at least that probability. It then reads quantiles in place of the cost itself (`reads`): `at_most` with
    probability 0.95 holds the 0.95 quantile of ``latency_ms``, a cost named ``latency_ms_p95``, to the bound, and
    `at_least` the 0.05 quantile, ``latency_ms_p5``. With both bounds each side may fail in half of the cases (0.975
    and 0.025).

    Attributes:
        probability: With which a measurement must keep the bounds, above 0.5; None: the cost is taken as it is.

    Raises:
        ValueError: There is no bound, none can be kept, or the probability is not between 0.5 and 1.
    """

    name: str
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""
    probability: float | None = None

    def __post_init__(self) -> None:
        low, high = self._bounds
        if not low <= high or low == np.inf or high == -np.inf:
            raise ValueError(f"{self.name}: no value is at least {self.at_least} and at most {self.at_most}")
        if low == -np.inf and high == np.inf:
            raise ValueError(f"the constraint on {self.name} needs a bound: at_most, at_least or both")
        if self.probability is not None and not 0.5 < self.probability < 1.0:
            raise ValueError(f"{self.name}: a constraint is certified with a probability above 0.5 and below 1, such "
                             f"as 0.95; got {self.probability}")  # fmt: skip

    def __str__(self) -> str:
        parts = [
            f"{words} {bound:g}{self.suffix}"
            for words, bound in (("at least", self.at_least), ("at most", self.at_most))
            if bound is not None
        ]
        certified = "" if self.probability is None else f" with probability {self.probability:g}"
        return f"{self.name} {' and '.join(parts)}{certified}"

    @property
    def suffix(self) -> str:
        """The unit as it stands behind a number."""
        return f" {self.unit}" if self.unit else ""

    @property
    def levels(self) -> tuple[float, ...]:
        """Levels of the quantiles that a certified constraint reads; none if it is not certified."""
        if self.probability is None:
            return ()
        sides = (self.at_least is not None) + (self.at_most is not None)
        tail = (1.0 - self.probability) / sides
        lower = () if self.at_least is None else (tail,)
        return lower if self.at_most is None else (*lower, 1.0 - tail)

    @property
    def reads(self) -> tuple[Constraint, ...]:
        """Plain constraints on the costs that this one reads; itself, if it is not certified."""
        if self.probability is None:
            return (self,)
        return tuple(
            Constraint(quantile_name(self.name, level), at_most=self.at_most, unit=self.unit)
            if level > 0.5
            else Constraint(quantile_name(self.name, level), at_least=self.at_least, unit=self.unit)
            for level in self.levels
        )

    @property
    def _bounds(self) -> tuple[float, float]:
        low = -np.inf if self.at_least is None else self.at_least
        high = np.inf if self.at_most is None else self.at_most
        return low, high

    def excess(self, values: Floats) -> Floats:
        """By how much `values`, measured or certain, miss the bounds, in the cost's unit; 0 where they keep them."""
        low, high = self._bounds
        return np.maximum(np.maximum(values - high, low - values), 0.0)

    def violation(self, values: Floats) -> Floats:
        """`excess` in units of the bound that is missed (of the cost itself where that bound is 0)."""
        low, high = self._bounds
        bound = np.where(values > high, high, low)
        scale = np.where(np.isfinite(bound) & (bound != 0), np.abs(bound), 1.0)
        return np.asarray(self.excess(values) / scale)


@dataclass(frozen=True, slots=True)
class Problem:
    """Objectives and constraints over the architectures of a space.

    Raises:
        ValueError: There is no objective, or two objectives or two constraints read the same cost.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    evaluate: Evaluate

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("a problem needs at least one objective")
        for role, names in (
            ("objectives", [objective.name for objective in self.objectives]),
            ("constraints", [part.name for part in self.read_constraints]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {role} are named {twice[0]!r}")

    @property
    def read_constraints(self) -> tuple[Constraint, ...]:
        """Every constraint as what it reads: certified ones as bounds of quantiles (`Constraint.reads`)."""
        return tuple(part for constraint in self.constraints for part in constraint.reads)

    def costs(self, codes: Codes) -> dict[str, Floats]:
        """Every cost that `evaluate` gives for `codes`, checked.

        Raises:
            ValueError: A cost the problem names is missing, has another length than `codes`, or is not finite.
        """
        costs = {name: np.asarray(values, dtype=np.float64) for name, values in self.evaluate(codes).items()}
        named = [objective.name for objective in self.objectives] + [part.name for part in self.read_constraints]
        for name in dict.fromkeys(named):
            if name not in costs:
                raise ValueError(
                    f"evaluate gives no cost {name!r}{self._why(name)}; it gives {', '.join(costs) or 'none'}"
                )
            if costs[name].shape != (len(codes),):
                raise ValueError(f"{name}: {len(codes)} architectures need costs of shape ({len(codes)},); "
                                 f"got {costs[name].shape}")  # fmt: skip
            wrong = np.flatnonzero(~np.isfinite(costs[name]))
            if len(wrong):
                raise ValueError(f"{name} of {self.space.decode(codes[wrong[:1]])[0]} is {costs[name][wrong[0]]}; "
                                 "every cost must be a finite number")  # fmt: skip
        return costs

    def losses(self, costs: Costs) -> Floats:
        """The objectives, all to be minimised, shape (n, m)."""
        return np.column_stack([objective.sign * costs[objective.name] for objective in self.objectives])

    def violations(self, costs: Costs) -> Floats:
        """By how much the constraints are missed together, shape (n,); 0 where all are kept.

        The sum of `Constraint.violation`, so that constraints of different units count alike.
        """
        parts = [part.violation(costs[part.name]) for part in self.read_constraints]
        n = len(costs[self.objectives[0].name])
        return np.sum(parts, axis=0) if parts else np.zeros(n)

    def _why(self, name: str) -> str:
        """Why a certified constraint needs the quantile called `name`; empty for any other cost."""
        for constraint in self.constraints:
            for level in constraint.levels:
                if quantile_name(constraint.name, level) == name:
                    return f", the {level:.10g} quantile of {constraint.name}, which {constraint} needs"
        return ""
