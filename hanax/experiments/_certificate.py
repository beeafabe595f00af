"""A search with a certificate: how far its front is from the exact optimum under the same costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hanax.search_spaces import RESOLUTION
from hanax.searchers import (
    Costs,
    HeadStart,
    Objective,
    OptimalityGap,
    Problem,
    Searcher,
    SearchResult,
    TooLargeError,
    exact_front,
    fit_additive,
    non_dominated,
    optimality_gap,
    search,
    spread_along_front,
)

WORDS = {"accuracy": "accuracy", "latency_ms": "latency", "macs": "MAC", "params": "parameter"}
"""Costs that can add up over blocks: linear models of sums over blocks, and such sums; and how to speak of them."""

TOLERANCE = 1e-8
"""Share of the spread of a cost, and of a hypervolume, up to which two of them are the same."""

SHARE_OF_WARM_START = 0.5
"""Of the evaluations; where the exact front is larger, a well-spread part of it is the warm start."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is known of the optimum under the costs that were searched on.

    Attributes:
        sentence: What it says, for people; where there is none, why.
        additive: Whether both objectives add up over blocks, up to rounding; None where nobody looked.
        max_residual: For each objective the largest difference between it and its tables on `n_checked` random
            networks, in its unit.
        n_checked: Their number.
        warm_start: Whether the search began with the front of the tables.
        n_exact: Points on the exact front that keep the constraints.
        gap_hypervolume: Share of their hypervolume that the search missed.
        gap_loss: The largest difference, over all budgets of the cost to keep low, between the best that the search
            found and that there is.
        gap_budget: A budget at which that is so.
    """

    sentence: str
    additive: bool | None = None
    max_residual: Mapping[str, float] | None = None
    n_checked: int | None = None
    warm_start: bool = False
    n_exact: int | None = None
    gap_hypervolume: float | None = None
    gap_loss: float | None = None
    gap_budget: float | None = None


def certified_search(
    problem: Problem,
    searcher: Searcher,
    n_evaluations: int,
    *,
    warm_start: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[SearchResult, Certificate]:
    """What `hanax.searchers.search` finds, and how far that is from the exact front where this can be known.

    It can where two objectives add up over blocks (at each resolution) and every constraint bounds one of them from its
    worse side: what is on the front of those that keep such bounds is on the front of all. That they add up is checked
    on random networks, and every point of the exact front is evaluated like any other network. Where they do not add
    up, the front of the nearest sums is a warm start, and nothing is certified.

    Args:
        problem: What to search for.
        searcher: What proposes the networks.
        n_evaluations: Networks to evaluate.
        warm_start: Give the front of the tables to the searcher to begin with.
        on_progress: Called with (done, total) evaluations.

    Raises:
        InfeasibleConstraintError, ValueError: As of `search`.
    """
    certificate, front = _find_front(problem)
    if front is None:
        return search(problem, searcher, n_evaluations, on_progress=on_progress), certificate
    if warm_start:
        n_first = max(1, int(SHARE_OF_WARM_START * n_evaluations))
        searcher = HeadStart(problem.space, searcher, front.codes[spread_along_front(front.points, n_first)])
    result = search(problem, searcher, n_evaluations, on_progress=on_progress)
    certificate = replace(certificate, warm_start=warm_start)
    if not certificate.additive:
        return result, certificate
    parts = _loss_and_cost(problem)
    found = np.column_stack([part.sign * result.costs[part.name].iloc[result.front] for part in parts])
    worst = np.array([part.sign * result.reference[part.name] for part in parts])
    gap = optimality_gap(found, front.points, worst, cost_tolerance=front.tolerances[1])
    return result, replace(
        certificate,
        sentence=_sentence(gap, *parts, front, warm_start),
        n_exact=len(front.codes),
        gap_hypervolume=gap.hypervolume_share,
        gap_loss=gap.largest_loss,
        gap_budget=gap.at_budget,
    )


@dataclass(frozen=True, eq=False)
class _Front:
    """The front of the tables: codes, shape (n, d), and loss and cost as they are evaluated, shape (n, 2).

    Attributes:
        tolerances: Differences of loss and cost that count for nothing: the tables were rounded, and predictions of a
            network differ by rounding from call to call.
    """

    codes: NDArray[np.int32]
    points: NDArray[np.float64]
    tolerances: tuple[float, float]


def _find_front(problem: Problem) -> tuple[Certificate, _Front | None]:
    """What the tables are worth, and the networks on their front that keep the constraints; None without any."""
    if reason := _why_not(problem):
        return _none(reason), None
    loss, cost = _loss_and_cost(problem)

    def evaluate(codes: NDArray[np.int32]) -> Costs:
        costs = problem.costs(codes)
        return {part.name: part.sign * costs[part.name] for part in (loss, cost)}

    space = problem.space
    per = (RESOLUTION,) if space.option_counts[space.column(RESOLUTION)] > 1 else ()
    try:
        fits = fit_additive(space, evaluate, [loss.name, cost.name], per=per)
        of_loss, of_cost = fits[loss.name], fits[cost.name]
        front = exact_front(of_loss.cost, of_cost.cost, loss_step=of_loss.step, cost_step=of_cost.step)
    except TooLargeError as error:
        return _none(str(error)), None
    reasons = [
        f"{name} does not add up over blocks; the nearest sum is up to {fit.max_residual:.2g} away"
        for name, fit in fits.items()
        if not fit.is_exact()
    ]
    certificate = replace(
        _none((reasons or ["no network keeps the constraints"])[0]),
        additive=not reasons,
        max_residual={name: fit.max_residual for name, fit in fits.items()},
        n_checked=of_loss.n_checked,
    )
    codes = front.codes[problem.violations(problem.costs(front.codes)) <= 0]
    if len(codes) == 0:
        return certificate, None
    values = evaluate(codes)
    points, rows = np.unique(np.column_stack([values[loss.name], values[cost.name]]), axis=0, return_index=True)
    kept = non_dominated(points)  # points that differ by the rounding of the tables alone may be equal here
    tolerances = (TOLERANCE * of_loss.spread, TOLERANCE * of_cost.spread)
    return certificate, _Front(codes[rows[kept]], points[kept], tolerances)


def _loss_and_cost(problem: Problem) -> tuple[Objective, Objective]:
    """What to make good at each budget, and what the budget is for: something to minimise, if there is."""
    first, second = problem.objectives
    return (second, first) if second.direction == "maximise" and first.direction == "minimise" else (first, second)


def _none(reason: str) -> Certificate:
    return Certificate(f"How far the search is from the exact optimum is not known: {reason}.")


def _why_not(problem: Problem) -> str:
    """Why the exact front is out of reach before anything is evaluated; empty, if it may be within."""
    directions = {part.name: part.direction for part in problem.objectives}
    if len(directions) != 2:
        return f"it is for searches with two objectives, and this one has {len(directions)}"
    if unknown := [name for name in directions if name not in WORDS]:
        return f"{unknown[0]} does not add up over blocks"
    for constraint in problem.read_constraints:
        if constraint.name not in directions:
            return f"there is a constraint on {constraint.name}, which is no objective"
        on_better_side = constraint.at_least if directions[constraint.name] == "minimise" else constraint.at_most
        if on_better_side is not None:
            return f"the constraint {constraint} bounds an objective from its better side"
    return ""


def _sentence(gap: OptimalityGap, loss: Objective, cost: Objective, front: _Front, warm_start: bool) -> str:
    share = f"{math.floor(1e4 * (1.0 - gap.hypervolume_share + TOLERANCE)) / 100:g} %"
    optimum = f"the exact optimum under the predictors, a front of {len(front.codes):,} networks"
    if warm_start:
        found = f"The search began with {optimum}, and ended with {share} of its hypervolume"
    else:
        found = f"The search found {share} of the hypervolume of {optimum}"
    budgets = f"at no {WORDS[cost.name]} budget"
    if gap.cheapest > gap.exact_cheapest + front.tolerances[1]:
        budgets += f" from {_rounded_up(gap.cheapest)} {cost.unit}".rstrip() + " on"
    if gap.largest_loss <= front.tolerances[0]:
        more = "a network predicted to be better than the best that it found"
    elif loss.name == "accuracy":
        more = f"a network predicted more than {_rounded_up(100 * gap.largest_loss)} points more accurate"
    else:
        more = f"a network predicted to be better by more than {_rounded_up(gap.largest_loss)} {loss.unit}".rstrip()
    return f"{found}; {budgets} is there {more}."


def _rounded_up(value: float) -> str:
    """Three significant digits that are no less than `value`, which is not 0."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return f"{math.ceil(value / step) * step:.3g}"
