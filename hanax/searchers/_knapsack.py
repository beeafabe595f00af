"""The exact Pareto front of two additive costs: a multiple-choice knapsack, solved for all budgets at once.

Lists of non-dominated partial sums (Nemhauser & Ullmann, 1969, doi:10.1287/mnsc.15.9.494) take the place of numbers in
variable elimination (Dechter, 1999, doi:10.1016/S0004-3702(99)00059-4): to eliminate a decision, the lists of the
tables that name it are added, every sum of two members, for each joint setting of the decisions that they name; the
lists of its options are united; and what another member of a list dominates is dropped, since whatever is added to both
later is the same. For a space of stages with a depth that is: the list of a block, sums of blocks, the union over
depths, sums of stages, the union over resolutions.

Sums are exact. Values are rounded to multiples of a step first, by default so small that only digits beyond the
precision of a sum are lost, and counted in whole steps.

Shapes: `n` architectures, `d` decisions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hanax.search_spaces import SearchSpace
from hanax.searchers._additive import AdditiveCost, TooLargeError
from hanax.searchers._problem import Codes, Floats, Indices

MAX_CELLS = 1_000_000
"""Joint settings of decisions that may have to be looked at together."""

MAX_SUMS = 200_000_000
"""Sums that may be made to eliminate one decision."""

SUMS_AT_A_TIME = 1_000_000

BINS = 4096
"""Intervals of the cost in which dominated sums are looked for before they are sorted."""


@dataclass(frozen=True, eq=False)
class ExactFront:
    """Every point of the front of two additive costs, with a network for each, from the cheapest to the best.

    For every network of the space some member of the front loses at most ``2 * loss_error`` more at a cost of at most
    ``2 * cost_error`` more.

    Attributes:
        codes: Canonical, shape (n, d); one network per point, although others may share it.
        losses: Descending, shape (n,).
        costs: Ascending, shape (n,).
        loss_error: The most that rounding to steps may have changed the loss of a network; 0 where values are multiples
            of the step.
        cost_error: The same of the cost.
    """

    codes: Codes
    losses: Floats
    costs: Floats
    loss_error: float
    cost_error: float

    def best_under(self, budget: float) -> int:
        """The row of the network of least loss among those that cost at most `budget`.

        Raises:
            ValueError: All networks cost more; says what the cheapest costs.
        """
        n_affordable = int(np.searchsorted(self.costs, budget, side="right"))
        if n_affordable == 0:
            raise ValueError(f"no network costs at most {budget:g}; the cheapest costs {self.costs[0]:g}")
        return n_affordable - 1


def exact_front(
    loss: AdditiveCost, cost: AdditiveCost, *, loss_step: float | None = None, cost_step: float | None = None
) -> ExactFront:
    """The Pareto front of `loss` and `cost`, both minimised, over all networks of their space.

    Works for any tables and conditions as long as few decisions are coupled at a time. The number of points can grow
    with the number of networks in bad cases; coarser steps bound it.

    Args:
        loss: What to minimise under a budget.
        cost: What the budget is for.
        loss_step: Round each entry of the tables of `loss` to a multiple of this; None is 2^-52 of the largest
            sum, rounded up to a power of two, which leaves whole numbers and fractions of 2 as they are.
        cost_step: The same of `cost`.

    Raises:
        SpaceMismatchError: The costs are of different spaces.
        ValueError: A step is not above 0, or too small for sums to be exact.
        TooLargeError: The tables couple too many decisions, or there are too many partial sums.
    """
    space = loss.space
    space.require(cost.space.fingerprint, "the cost")
    steps = [_step(loss, loss_step, "loss_step"), _step(cost, cost_step, "cost_step")]
    tables, errors = _tables(space, (loss, cost), steps)
    front = _eliminate(space, [*tables, *_conditions(space)])
    states = np.zeros((len(front.points), len(space.decisions)), dtype=np.int64)
    _recover(front, np.arange(len(front.points)), states)
    codes = np.where(states < space.option_counts, states, 0).astype(np.int32)
    points = np.column_stack([loss(codes), cost(codes)])
    order = np.lexsort((points[:, 0], points[:, 1]))
    kept = order[_is_front(np.zeros(len(order), dtype=np.int64), points[order])]
    return ExactFront(codes[kept], points[kept, 0], points[kept, 1], errors[0], errors[1])


@dataclass(frozen=True, eq=False)
class _Factor:
    """A list of non-dominated points for each joint state of some decisions.

    A state of a decision is an option or, one past the last, that it does not count. Cells number the joint states of
    `scope`, the last decision running fastest; rows are sorted by cell, and a cell without rows is impossible.

    Attributes:
        scope: Columns of the decisions, ascending.
        cell: Of each row.
        points: Loss and cost in steps, shape (rows, 2).
        eliminated: The column of the decision that was eliminated last, if any.
        state: Its state in each row.
        inputs: The factors that rows are sums of.
        parts: The row of each input, shape (rows, inputs).
    """

    scope: tuple[int, ...]
    cell: Indices
    points: Floats
    eliminated: int | None = None
    state: Indices | None = None
    inputs: tuple[_Factor, ...] = ()
    parts: Indices | None = None


def _step(cost: AdditiveCost, step: float | None, name: str) -> float:
    largest = float(sum(np.abs(table.values).max() for table in cost.tables))
    if step is None:
        return math.ldexp(1.0, math.frexp(largest)[1] - 52) if largest > 0 else 1.0
    if not step > 0 or largest / step > 2.0**52:
        raise ValueError(f"{name} must be above 0, and sums of up to {largest:g} at most 2^52 times as large; "
                         f"got {step:g}")  # fmt: skip
    return step


def _tables(
    space: SearchSpace, costs: Sequence[AdditiveCost], steps: Sequence[float]
) -> tuple[list[_Factor], list[float]]:
    """The tables of both costs as factors, and the most that rounding changes each cost."""
    sizes = _state_counts(space)
    errors = [0.0 for _ in costs]
    values: dict[tuple[int, ...], Floats] = {}
    for index, (cost, step) in enumerate(zip(costs, steps, strict=True)):
        for table in cost.tables:
            columns = np.array([space.column(name) for name in table.decisions])
            order = np.argsort(columns)
            scope = tuple(columns[order].tolist())
            rounded = np.rint(table.values / step)
            errors[index] += float(np.abs(table.values - rounded * step).max())
            does_not_count = [(0, sizes[column] - int(space.option_counts[column])) for column in scope]
            there = values.setdefault(scope, np.zeros((*(sizes[column] for column in scope), 2)))
            there[..., index] += np.pad(rounded.transpose(order), does_not_count)
    factors = [_Factor(scope, np.arange(points.size // 2), points.reshape(-1, 2)) for scope, points in values.items()]
    return factors, errors


def _conditions(space: SearchSpace) -> list[_Factor]:
    """Which states of a decision go with which of the one that its condition names."""
    sizes = _state_counts(space)
    factors = []
    for column, decision in enumerate(space.decisions):
        if decision.when is not None:
            parent = space.column(decision.when.decision)
            options = space.decisions[parent].options
            holds = np.zeros(sizes[parent], dtype=bool)
            holds[: len(options)] = [option in decision.when.options for option in options]
            counts = np.arange(sizes[column]) < len(decision.options)
            possible = np.flatnonzero(holds[:, None] == counts)
            factors.append(_Factor((parent, column), possible, np.zeros((len(possible), 2))))
    return factors


def _state_counts(space: SearchSpace) -> list[int]:
    """Options of each decision and, where it has a condition, the state that it does not count."""
    return [len(decision.options) + (decision.when is not None) for decision in space.decisions]


def _eliminate(space: SearchSpace, factors: list[_Factor]) -> _Factor:
    """The one list that is left when every decision is eliminated, always the one that couples the least."""
    sizes = _state_counts(space)
    left = set(range(len(sizes)))
    while left:
        scopes = {column: _joint_scope(factors, column) for column in left}
        n_cells = {column: math.prod(sizes[other] for other in scope) for column, scope in scopes.items()}
        column = min(left, key=lambda candidate: (n_cells[candidate], -candidate))
        if n_cells[column] > MAX_CELLS:
            names = ", ".join(space.decisions[other].name for other in scopes[column])
            raise TooLargeError(
                f"tables and conditions couple {names}: {n_cells[column]} joint settings; at most {MAX_CELLS} can be "
                "looked at together"
            )
        inputs = [factor for factor in factors if column in factor.scope]
        factors = [factor for factor in factors if column not in factor.scope]
        factors.append(_sum_out(inputs, scopes[column], column, sizes))
        left.remove(column)
    return _sum_out(factors, (), None, sizes)


def _joint_scope(factors: Sequence[_Factor], column: int) -> tuple[int, ...]:
    """The decisions that share a factor with `column`, and itself."""
    return tuple(sorted(set().union({column}, *(factor.scope for factor in factors if column in factor.scope))))


def _sum_out(inputs: Sequence[_Factor], joint: tuple[int, ...], column: int | None, sizes: Sequence[int]) -> _Factor:
    """The sum of `inputs` over the decisions `joint`, and the union over the states of the decision `column`."""
    scope = tuple(other for other in joint if other != column)
    n_states = 1 if column is None else sizes[column]
    axes = scope if column is None else (*scope, column)
    shape = [sizes[other] for other in axes]
    n_cells = math.prod(shape)
    states = dict(zip(axes, np.indices(shape).reshape(len(axes), n_cells), strict=True))
    cell, points = np.arange(n_cells), np.zeros((n_cells, 2))
    parts = np.zeros((n_cells, 0), dtype=np.int64)
    inputs = sorted(inputs, key=lambda factor: len(factor.cell))
    for factor in inputs:
        theirs = np.zeros(n_cells, dtype=np.int64)
        for other in factor.scope:
            theirs = theirs * sizes[other] + states[other]
        cell, points, parts = _add(cell, points, parts, factor, theirs)
    order = front_rows(cell // n_states, points)
    return _Factor(
        scope, cell[order] // n_states, points[order], column, cell[order] % n_states, tuple(inputs), parts[order]
    )


def _add(
    cell: Indices, points: Floats, parts: Indices, factor: _Factor, theirs: Indices
) -> tuple[Indices, Floats, Indices]:
    """Every sum of a row with a row of `factor` in the same cell that no other in the cell dominates.

    Args:
        cell, points, parts: The rows so far, sorted by cell.
        theirs: The factor's cell for each cell.
    """
    starts = np.searchsorted(factor.cell, theirs)
    counts = np.searchsorted(factor.cell, theirs, side="right") - starts
    n_sums = counts[cell]
    total = int(n_sums.sum())
    if total > MAX_SUMS:
        raise TooLargeError(
            f"{total:.2g} partial sums would have to be compared, more than {MAX_SUMS:.2g}; give coarser steps "
            "(loss_step, cost_step), and take the errors that they state"
        )
    begins = np.cumsum(n_sums) - n_sums
    cuts = np.unique(np.searchsorted(begins, np.arange(SUMS_AT_A_TIME, total, SUMS_AT_A_TIME)))
    found: list[tuple[Indices, Indices]] = []
    for first, last in itertools.pairwise([0, *cuts[cuts < len(cell)].tolist(), len(cell)]):
        mine = np.repeat(np.arange(first, last), n_sums[first:last])
        within = np.arange(len(mine)) + begins[first] - begins[mine]
        other = starts[cell[mine]] + within
        kept = front_rows(cell[mine], points[mine] + factor.points[other])
        found.append((mine[kept], other[kept]))
    mine, other = (np.concatenate(rows) for rows in zip(*found, strict=True))
    sums = points[mine] + factor.points[other]
    if len(found) > 1:
        kept = front_rows(cell[mine], sums)
        mine, other, sums = mine[kept], other[kept], sums[kept]
    return cell[mine], sums, np.column_stack([parts[mine], other])


def front_rows(cell: Indices, points: Floats) -> Indices:
    """The rows that no other in their cell dominates, by cell and then by cost; the first of equal ones."""
    rows = _not_clearly_dominated(cell, points) if len(cell) > 4 * BINS else np.arange(len(cell))
    rows = rows[np.lexsort((points[rows, 0], points[rows, 1], cell[rows]))]
    return rows[_is_front(cell[rows], points[rows])]


def _not_clearly_dominated(cell: Indices, points: Floats) -> Indices:
    """The rows that have no lower loss in an interval of lower costs of their cell: quick, and drops most of them.

    Rows are sorted by cell.
    """
    is_first = np.diff(cell, prepend=-1) > 0
    number = np.cumsum(is_first) - 1
    starts = np.flatnonzero(is_first)
    n_bins = max(2, BINS // len(starts))
    low = np.minimum.reduceat(points[:, 1], starts)
    width = np.maximum.reduceat(points[:, 1], starts) - low
    scale = (n_bins - 1) / np.where(width > 0, width, 1.0)
    interval = ((points[:, 1] - low[number]) * scale[number]).astype(np.int64)
    least = np.full((len(starts), n_bins + 1), np.inf)
    np.minimum.at(least, (number, interval + 1), points[:, 0])
    least = np.minimum.accumulate(least, axis=1)
    return np.flatnonzero(points[:, 0] < least[number, interval])


def _is_front(cell: Indices, points: Floats) -> NDArray[np.bool_]:
    """Where the loss is lower than that of every row before it in its cell; rows are sorted by cell, cost and loss."""
    if len(cell) == 0:
        return np.zeros(0, dtype=bool)
    rank = np.unique(points[:, 0], return_inverse=True)[1].ravel()
    # A later cell counts from further below, so that the running minimum starts anew in it.
    lowered = rank - cell * (int(rank.max()) + 1)
    is_front = np.ones(len(cell), dtype=bool)
    is_front[1:] = lowered[1:] < np.minimum.accumulate(lowered)[:-1]
    return is_front


def _recover(factor: _Factor, rows: Indices, states: Indices) -> None:
    """Write into `states`, shape (n, d), what was eliminated on the way to the given `rows` of `factor`."""
    if factor.eliminated is not None and factor.state is not None:
        states[:, factor.eliminated] = factor.state[rows]
    for index, part in enumerate(factor.inputs):
        assert factor.parts is not None
        _recover(part, factor.parts[rows, index], states)
