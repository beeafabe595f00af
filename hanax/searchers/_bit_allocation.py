"""Which format each layer of a network gets: the least loss under a budget, and the fewest bits at an accuracy.

Losses and costs come as arrays: what option `o` of layer `l` adds (and what the options of two layers add beside that).
Where they only add up, `allocate` solves a multiple-choice knapsack exactly, in place of AdaQuant's integer program
(Hubara et al., 2020, arXiv:2006.10518, section 4), for all budgets at once. With terms of pairs it is the integer
quadratic program of CLADO (Deng et al., 2023, arXiv:2307.05657): branch and bound, best bound first, from the best of a
local search; it says how far from the optimum it may be when it was stopped. `bisect_formats` needs true accuracies.

Shapes: `l` layers, `o` options, `n` points.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hanax.searchers._additive import TooLargeError
from hanax.searchers._knapsack import MAX_SUMS, front_rows
from hanax.searchers._problem import Floats, Indices

MAX_NODES = 20_000
"""Partial assignments that are looked at, at most, before the search for the optimum stops with a gap."""

N_PRICES = 6
"""Prices of the cost from which a partial assignment's bound is the best."""

ROUNDING = 1e-12
"""Share of the largest sum by which sums that are equal may differ."""

Assignment = Indices
"""The option of each layer, shape (l,)."""
Table = Floats
"""Shape (l, o)."""
PairTable = Floats
"""Shape (l, o, l, o)."""


@dataclass(frozen=True, eq=False)
class Allocation:
    """One option per layer.

    Attributes:
        choices: The options, shape (l,).
        loss: Their sum of losses, with the terms of pairs.
        cost: Their sum of costs.
        gap: By how much the loss of the best assignment under the same budget may be lower; 0 if this is the best.
    """

    choices: Assignment
    loss: float
    cost: float
    gap: float

    def __str__(self) -> str:
        quality = "the optimum" if self.gap == 0 else f"at most {self.gap:.3g} above the optimum"
        return f"options {self.choices.tolist()}: loss {self.loss:.5g} ({quality}), cost {self.cost:.5g}"


@dataclass(frozen=True, eq=False)
class AllocationFront:
    """Every point of the front of additive losses and costs, with an assignment for each, from the cheapest on.

    Attributes:
        choices: Options, shape (n, l).
        losses: Descending, shape (n,).
        costs: Ascending, shape (n,).
    """

    choices: Indices
    losses: Floats
    costs: Floats

    def best_under(self, budget: float) -> Allocation:
        """The assignment of least loss among those that cost at most `budget`.

        Raises:
            ValueError: All cost more; says what the cheapest costs.
        """
        row = int(np.searchsorted(self.costs, budget + _slack(self.costs), side="right")) - 1
        if row < 0:
            raise ValueError(f"no assignment costs at most {budget:g}; the cheapest costs {self.costs[0]:g}")
        return Allocation(self.choices[row], float(self.losses[row]), float(self.costs[row]), 0.0)


def allocation_front(losses: Table, costs: Table) -> AllocationFront:
    """The Pareto front of the sums of `losses` and `costs` over all assignments, exactly.

    Lists of non-dominated partial sums, layer by layer, as in `exact_front`, which does the same for search spaces.

    Raises:
        ValueError: The tables are not of one shape, are empty, or hold values that are not finite.
        TooLargeError: There are too many partial sums.
    """
    losses, costs = _checked(losses, costs)
    points, parents = np.zeros((1, 2)), list[Indices]()
    n_options = losses.shape[1]
    for layer in np.stack([losses, costs], axis=2):
        if len(points) * n_options > MAX_SUMS:
            raise TooLargeError(f"{len(points) * n_options:.2g} partial sums would have to be compared; at most "
                                f"{MAX_SUMS:.2g} can be: round losses or costs to coarser steps")  # fmt: skip
        sums = (points[:, None] + layer).reshape(-1, 2)
        kept = front_rows(np.zeros(len(sums), np.int64), sums)
        parents.append(np.column_stack(np.divmod(kept, n_options)))
        points = sums[kept]
    choices = np.zeros((len(points), len(losses)), np.int64)
    row = np.arange(len(points))
    for layer in reversed(range(len(losses))):
        choices[:, layer], row = parents[layer][row, 1], parents[layer][row, 0]
    return AllocationFront(choices, points[:, 0], points[:, 1])


def allocate(
    losses: Table, costs: Table, budget: float, *, pairs: PairTable | None = None, max_nodes: int = MAX_NODES
) -> Allocation:
    """The assignment of least loss that costs at most `budget`.

    Args:
        losses: What each option of each layer adds to the loss.
        costs: What it adds to the cost: bytes, bit operations, ms on a device; any that adds up over layers.
        budget: Of the sum of costs.
        pairs: What the options of two layers add beside `losses`: symmetric; what it says of one layer is not read.
        max_nodes: With `pairs`, partial assignments to look at; with more layers than it can do, there is a gap.

    Raises:
        ValueError: Every assignment costs more; or the tables do not fit together.
        TooLargeError: See `allocation_front`.
    """
    losses, costs = _checked(losses, costs)
    start = allocation_front(losses, costs).best_under(budget)
    if pairs is None:
        return start
    if pairs.shape != (*losses.shape, *losses.shape) or not np.isfinite(pairs).all():
        raise ValueError(f"pairs needs finite values of shape {(*losses.shape, *losses.shape)}; got {pairs.shape}")
    if not np.allclose(pairs, pairs.transpose(2, 3, 0, 1)):
        raise ValueError("pairs must be symmetric: pairs[i, a, j, b] == pairs[j, b, i, a]")
    program = _Program(losses, costs, budget + _slack(costs), pairs)
    choices, gap = program.solve(program.improve(start.choices), max_nodes)
    own = np.arange(len(losses))
    return Allocation(choices, program.loss(choices), float(costs[own, choices].sum()), gap)


class _Program:
    """Minimise a quadratic function of one option per layer, under one linear constraint."""

    def __init__(self, losses: Table, costs: Table, budget: float, pairs: PairTable) -> None:
        self.losses, self.costs, self.budget, self.pairs = losses, costs, budget, pairs.copy()
        self.n_layers, self.n_options = losses.shape
        own = np.arange(self.n_layers)
        self.pairs[own, :, own, :] = 0.0
        # Layers with the strongest terms come first: they decide most.
        self.order = np.argsort(-(np.ptp(losses, axis=1) + np.abs(self.pairs).max(axis=(1, 3)).sum(axis=1)))
        ratio = np.ptp(losses) / max(np.ptp(costs), 1e-30)
        self.prices = np.array([0.0, *(ratio * 4.0 ** np.arange(2 - N_PRICES, 1))])
        self.least = self.pairs.min(axis=3)  # of an option of a layer with any of another layer

    def loss(self, choices: Assignment) -> float:
        """Of a whole assignment."""
        own = np.arange(self.n_layers)
        joint = self.pairs[own[:, None], choices[:, None], own[None, :], choices[None, :]]
        return float(self.losses[own, choices].sum() + joint.sum() / 2)

    def improve(self, choices: Assignment) -> Assignment:
        """A local optimum: no change of one layer, or of two, lowers the loss within the budget."""
        choices, own = choices.copy(), np.arange(self.n_layers)
        while True:
            linear = self.losses + self.pairs[:, :, own, choices].sum(axis=2)
            gain = linear - linear[own, choices][:, None]
            dearer = self.costs - self.costs[own, choices][:, None]
            spent = float(self.costs[own, choices].sum())
            # What the change of one adds to the change of the other: the second difference of their term.
            kept = self.pairs[own, choices]
            mixed = self.pairs - self.pairs[:, :, own, choices][..., None] - kept[:, None]
            mixed += kept[:, own, choices][:, None, :, None]
            both = gain[:, :, None, None] + gain[None, None] + mixed
            both[own, :, own, :] = np.where(np.eye(self.n_options, dtype=bool), gain[:, :, None], np.inf)
            affordable = spent + dearer[:, :, None, None] + dearer[None, None] <= self.budget
            affordable[own, :, own, :] = (spent + dearer <= self.budget)[:, :, None]
            both = np.where(affordable, both, np.inf)
            best = np.unravel_index(both.argmin(), both.shape)
            if both[best] >= -ROUNDING * max(1.0, float(np.abs(self.losses).max())):
                return choices
            choices[best[2]], choices[best[0]] = best[3], best[1]

    def solve(self, incumbent: Assignment, max_nodes: int) -> tuple[Assignment, float]:
        """The best assignment found, from `incumbent`, and how much better another one could be at most."""
        best, upper = incumbent, self.loss(incumbent)
        cheapest = self.costs.min(axis=1)[self.order]
        reserve = np.append(np.cumsum(cheapest[::-1])[::-1], 0.0)  # of the layers from a depth on
        counter = itertools.count()
        heap: list[tuple[float, int, tuple[int, ...]]] = [(-np.inf, next(counter), ())]
        for _ in range(max_nodes):
            if not heap or heap[0][0] >= upper - self._tolerance(upper):
                return best, 0.0
            _, _, prefix = heapq.heappop(heap)
            depth = len(prefix)
            for option in range(self.n_options):
                chosen = (*prefix, option)
                taken = self.order[: depth + 1]
                spent = float(self.costs[taken, list(chosen)].sum())
                if spent + reserve[depth + 1] > self.budget:
                    continue
                if depth + 1 == self.n_layers:
                    whole = np.zeros(self.n_layers, np.int64)
                    whole[self.order] = chosen
                    if (found := self.loss(whole)) < upper:
                        best, upper = whole, found
                    continue
                bound = self._bound(taken, np.array(chosen), spent)
                if bound < upper - self._tolerance(upper):
                    heapq.heappush(heap, (bound, next(counter), chosen))
        return best, max(0.0, upper - heap[0][0]) if heap else 0.0

    @staticmethod
    def _tolerance(loss: float) -> float:
        return ROUNDING * max(1.0, abs(loss))

    def _bound(self, taken: Assignment, chosen: Assignment, spent: float) -> float:
        """No assignment with these options costs at most the budget and has a lower loss.

        A term of two layers that are free counts half for each, at its least for the option of that layer. What is left
        adds up; for any price above 0, charging it for what the budget is exceeded by gives a bound.
        """
        fixed = self.losses[taken, chosen].sum()
        fixed += self.pairs[taken[:, None], chosen[:, None], taken[None, :], chosen[None, :]].sum() / 2
        free = np.setdiff1d(self.order, taken)
        linear = self.losses[free] + self.pairs[free][:, :, taken, chosen].sum(axis=2)
        linear = linear + self.least[free][:, :, free].sum(axis=2) / 2
        priced = linear[None] + self.prices[:, None, None] * self.costs[free][None]
        return float(fixed + (priced.min(axis=2).sum(axis=1) - self.prices * (self.budget - spent)).max())


# ---- by true accuracy -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BisectedFormats:
    """Options whose accuracy was looked at, and suffices.

    Attributes:
        choices: One option per layer, shape (l,).
        accuracy: Of these choices.
        n_evaluations: Accuracies that were asked for.
    """

    choices: Assignment
    accuracy: float
    n_evaluations: int


def bisect_formats(losses: Table, accuracy_of: Callable[[Assignment], float], least_accuracy: float) -> BisectedFormats:
    """As many layers as possible in cheap formats at an accuracy of at least `least_accuracy`.

    All layers start at the last option. Those that lose least by the option before it are moved there, as many as the
    accuracy allows by bisection; of those, as many to the option before that, and so on (Schaefer et al., 2023,
    arXiv:2306.04879, algorithm 1). It takes at most ``1 + (options - 1) * ceil(log2(layers + 1))`` accuracies. Where
    accuracy does not fall steadily with the number of layers, more layers might have been moved; what is returned was
    evaluated in any case, and suffices.

    Args:
        losses: What each option of each layer adds to the loss; for terms of pairs see `with_neighbours`.
        accuracy_of: The true accuracy of an assignment.
        least_accuracy: The least that suffices.

    Raises:
        ValueError: Already the last option of all layers is less accurate; or `losses` is empty or not finite.
    """
    losses, _ = _checked(losses, losses)
    choices = np.full(len(losses), losses.shape[1] - 1)
    accuracy, n_evaluations = accuracy_of(choices.copy()), 1
    if not accuracy >= least_accuracy:
        raise ValueError(f"an accuracy of {least_accuracy:g} is out of reach: the last option of all layers has "
                         f"{accuracy:g}; allow less")  # fmt: skip
    moved = np.arange(len(losses))
    for option in reversed(range(losses.shape[1] - 1)):
        rise = losses[moved, option] - losses[moved, option + 1]
        moved = moved[np.argsort(rise, kind="stable")]
        enough, too_many = 0, len(moved) + 1
        while too_many - enough > 1:
            count = (enough + too_many) // 2
            tried = choices.copy()
            tried[moved[:count]] = option
            found, n_evaluations = accuracy_of(tried.copy()), n_evaluations + 1
            if found >= least_accuracy:
                enough, kept, accuracy = count, tried, found
            else:
                too_many = count
        if enough == 0:
            break
        moved, choices = moved[:enough], kept
    return BisectedFormats(choices, accuracy, n_evaluations)


def with_neighbours(losses: Table, pairs: PairTable) -> Table:
    """`losses` augmented with half of each layer's terms with all others in the same option, shape (l, o)."""
    options, own = np.arange(losses.shape[1]), np.arange(len(losses))
    joint = pairs[:, options, :, options].transpose(1, 2, 0)  # layer, other layer, option of both
    joint[own, own] = 0.0
    return np.asarray(losses + joint.sum(axis=1) / 2, np.float64)


def _checked(losses: Table, costs: Table) -> tuple[Table, Table]:
    losses, costs = np.asarray(losses, np.float64), np.asarray(costs, np.float64)
    if losses.ndim != 2 or losses.size == 0 or losses.shape != costs.shape:
        raise ValueError(f"losses and costs need one shape (layers, options); got {losses.shape} and {costs.shape}")
    if not (np.isfinite(losses).all() and np.isfinite(costs).all()):
        raise ValueError("losses and costs must be finite numbers")
    return losses, costs


def _slack(costs: Floats) -> float:
    """By how much a sum of costs may exceed a budget that it is meant to equal."""
    return ROUNDING * float(np.abs(costs).sum())
