"""The loop of a search: ask, evaluate, tell; and what comes out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._memory import row_keys
from hanax.searchers._pareto import hypervolume, non_dominated
from hanax.searchers._problem import Codes, Constraint, Costs, Floats, Indices, Problem

if TYPE_CHECKING:
    import pandas as pd

STALE_ROUNDS = 100
"""Proposals in a row without a new network after which a search ends."""

MAX_HYPERVOLUME_OBJECTIVES = 4
"""With more, the exact hypervolume of every round takes longer than the search."""


class Searcher(Protocol):
    """Proposes architectures; the caller evaluates them, in any order and on any machine.

    Shapes: `n` architectures, `d` decisions, `m` objectives.
    """

    def ask(self) -> Codes:
        """Canonical codes of the networks to evaluate next, shape (n, d); no rows: there is nothing left to try."""

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), 0 where feasible."""


class InfeasibleConstraintError(ValueError):
    """No network that was evaluated keeps the constraints.

    Attributes:
        constraint: The one that cannot be kept, or that keeps the others from being kept.
        closest: The value of its cost (of the quantile that it reads, if it is certified) nearest to its bounds; if
            each constraint can be kept, but not all together, the value of the network that misses them least.
    """

    def __init__(self, message: str, constraint: Constraint, closest: float) -> None:
        super().__init__(message)
        self.constraint = constraint
        self.closest = closest


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Every network that a search evaluated, and the best of them.

    Attributes:
        codes: Canonical, shape (n, d), in the order of evaluation; no network occurs twice.
        costs: A row per network: ``arch``, every cost that `Problem.evaluate` gave, in its unit, and ``violation`` (of
            all constraints together, in units of their bounds; 0 where feasible).
        front: Rows of the feasible networks that no other feasible one dominates, in the order of the first objective.
        reference: For each objective the cost up to which `history` counts the hypervolume.
        history: A row per round: ``evaluations`` so far, ``hypervolume`` of the front so far (NaN for more than 4
            objectives), ``diversity`` (mean number of decisions in which two networks of the round differ).
        stopped: Why the search ended, in words.
    """

    codes: Codes
    costs: pd.DataFrame
    front: Indices
    reference: dict[str, float]
    history: pd.DataFrame
    stopped: str


def search(
    problem: Problem,
    searcher: Searcher,
    n_evaluations: int,
    *,
    reference: Mapping[str, float] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Evaluate up to `n_evaluations` different networks that `searcher` proposes.

    Networks that it proposes again are answered from memory. The result holds what this call evaluated; a searcher may
    know of more (`OptunaSearcher.results`).

    Args:
        problem: Space, objectives, constraints, and the function that gives the costs.
        searcher: What proposes the networks; it may have been told about some before.
        n_evaluations: Networks to evaluate.
        reference: For each objective the worst cost of interest, the reference point of the hypervolume; if None, the
            worst of the feasible networks evaluated.
        on_progress: Called with (done, total) evaluations.

    Raises:
        InfeasibleConstraintError: No evaluated network keeps all constraints.
        ValueError: `reference` names other costs than the objectives, `n_evaluations` is less than 1, or `evaluate`
            gives no usable costs.
    """
    names = [objective.name for objective in problem.objectives]
    if reference is not None and sorted(reference) != sorted(names):
        raise ValueError(f"reference must name the objectives {', '.join(names)}; got {', '.join(reference) or 'none'}")
    if n_evaluations < 1:
        raise ValueError(f"n_evaluations is the number of networks to evaluate, at least 1; got {n_evaluations}")
    record = _Record(problem)
    stale_rounds = 0
    while len(record) < n_evaluations and stale_rounds < STALE_ROUNDS:
        known = len(record)
        codes = problem.space.canonical(searcher.ask()[: n_evaluations - known])
        if len(codes) == 0:
            break
        searcher.tell(codes, *record.evaluate(codes))
        stale_rounds = stale_rounds + 1 if len(record) == known else 0
        if on_progress is not None:
            on_progress(len(record), n_evaluations)
    return record.result(reference, n_evaluations)


def feasible_front(problem: Problem, costs: Costs) -> Indices:
    """Rows of the feasible networks that no other feasible one dominates, in the order of the first objective.

    Args:
        costs: Of at least one network: every cost that `problem` names, each of shape (n,).

    Raises:
        InfeasibleConstraintError: No network keeps all constraints; says the closest value.
    """
    losses, violations = problem.losses(costs), problem.violations(costs)
    feasible = np.flatnonzero(violations <= 0)
    if len(feasible) == 0:
        raise _infeasible(problem, costs, violations)
    front = feasible[non_dominated(losses[feasible])]
    return front[np.argsort(losses[front, 0], kind="stable")]


class _Record:
    """What a search evaluated so far: every network once, in order."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rows: dict[bytes, int] = {}
        self._codes: list[Codes] = []
        self._costs: list[dict[str, Floats]] = []
        self._losses: list[Floats] = []
        self._violations: list[float] = []
        self._rounds: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def evaluate(self, codes: Codes) -> tuple[Floats, Floats]:
        """Losses, shape (n, m), and violations, shape (n,), of a round of `codes`; known networks from memory."""
        keys = row_keys(codes)
        new = {key: index for index, key in enumerate(keys) if key not in self._rows}
        if new:
            self._add(codes[sorted(new.values())])
        self._rounds.append((len(self), mean_distance(self._problem.space, codes)))
        rows = [self._rows[key] for key in keys]
        return np.array([self._losses[row] for row in rows]), np.array([self._violations[row] for row in rows])

    def _add(self, codes: Codes) -> None:
        costs = self._problem.costs(codes)
        if self._costs and list(costs) != list(self._costs[0]):
            raise ValueError(f"evaluate gave the costs {', '.join(self._costs[0])} before and {', '.join(costs)} now")
        self._rows.update({key: len(self) + index for index, key in enumerate(row_keys(codes))})
        self._codes.append(codes)
        self._costs.append(costs)
        self._losses.extend(self._problem.losses(costs))
        self._violations.extend(self._problem.violations(costs).tolist())

    def result(self, reference: Mapping[str, float] | None, n_evaluations: int) -> SearchResult:
        """Everything as tables.

        Raises:
            InfeasibleConstraintError: Nothing evaluated keeps the constraints.
        """
        import pandas as pd

        space, objectives = self._problem.space, self._problem.objectives
        codes = np.concatenate([np.zeros((0, len(space.decisions)), dtype=np.int32), *self._codes])
        losses = np.array(self._losses).reshape(len(self), len(objectives))
        front = feasible_front(self._problem, self._all_costs()) if len(self) else np.zeros(0, dtype=np.int64)
        if reference is None:
            worst = losses[np.array(self._violations) <= 0].max(axis=0, initial=-np.inf)
            reference = {part.name: part.sign * loss for part, loss in zip(objectives, worst.tolist(), strict=True)}
        table = {"arch": [str(arch) for arch in space.decode(codes)], **self._all_costs()}
        return SearchResult(
            codes=codes,
            costs=pd.DataFrame({**table, "violation": self._violations}),
            front=front,
            reference=dict(reference),
            history=self._history(losses, np.array([part.sign * reference[part.name] for part in objectives])),
            stopped=self._why_it_stopped(n_evaluations),
        )

    def _all_costs(self) -> dict[str, Floats]:
        return {name: np.concatenate([costs[name] for costs in self._costs]) for name in (self._costs or [{}])[0]}

    def _history(self, losses: Floats, reference: Floats) -> pd.DataFrame:
        import pandas as pd

        violations = np.array(self._violations)
        front = losses[:0]
        volumes = []
        for start, end in itertools.pairwise([0, *(end for end, _ in self._rounds)]):
            candidates = np.concatenate([front, losses[start:end][violations[start:end] <= 0]])
            front = candidates[non_dominated(candidates)]
            is_cheap = len(reference) <= MAX_HYPERVOLUME_OBJECTIVES
            volumes.append(hypervolume(front, reference) if is_cheap else np.nan)
        ends, distances = ([row[column] for row in self._rounds] for column in (0, 1))
        return pd.DataFrame({"evaluations": ends, "hypervolume": volumes, "diversity": distances})

    def _why_it_stopped(self, n_evaluations: int) -> str:
        if len(self) >= n_evaluations:
            return f"all {n_evaluations} evaluations were made"
        if len(self) == self._problem.space.size:
            return f"the space is exhausted: all of its {len(self)} networks were evaluated"
        return f"the searcher proposed nothing new after {len(self)} networks"


def _infeasible(problem: Problem, costs: Costs, violations: Floats) -> InfeasibleConstraintError:
    """Which constraint cannot be kept, and how close the evaluated networks came."""
    n = len(violations)
    parts = [(constraint, part) for constraint in problem.constraints for part in constraint.reads]
    for constraint, part in parts:
        excess = part.excess(costs[part.name])
        if excess.min() > 0:
            closest = float(costs[part.name][np.argmin(excess)])
            read = "" if part is constraint else f" as its {part.name}"
            message = f"none of {n} networks keeps {constraint}; the closest has {closest:g}{part.suffix}{read}"
            return InfeasibleConstraintError(message, constraint, closest)
    least = int(np.argmin(violations))
    there = {part.name: float(costs[part.name][least]) for _, part in parts}
    worst, missed = max(parts, key=lambda pair: float(pair[1].violation(np.array([there[pair[1].name]]))[0]))
    values = ", ".join(f"{part.name} {there[part.name]:g}{part.suffix}" for _, part in parts)
    message = (
        f"none of {n} networks keeps all of: {'; '.join(map(str, problem.constraints))}. Each can be kept by itself; "
        f"the network that misses them least has {values}"
    )
    return InfeasibleConstraintError(message, worst, there[missed.name])


def mean_distance(space: SearchSpace, codes: Codes) -> float:
    """Mean of `SearchSpace.distance` between two different rows of `codes`; 0 for fewer than two rows."""
    n, d = codes.shape
    if n < 2:
        return 0.0
    options = int(space.option_counts.max()) + 1
    marked = np.where(space.active(codes), codes + 1, 0) + options * np.arange(d)
    counts = np.bincount(marked.ravel(), minlength=options * d)
    return float(d - np.sum(counts * (counts - 1)) / (n * (n - 1)))
