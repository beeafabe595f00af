"""The gap to the exact front, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hanax.searchers import HeadStart, Nsga2, optimality_gap, search

EXACT = np.array([[3.0, 1.0], [1.0, 2.0], [0.0, 4.0]])


def test_the_exact_front_has_no_gap_in_any_order_and_with_dominated_points() -> None:
    front = np.concatenate([EXACT[::-1], [[2.0, 3.0]]])
    gap = optimality_gap(front, EXACT)
    assert (gap.hypervolume_share, gap.largest_loss) == (0.0, 0.0)
    assert gap.cheapest == gap.exact_cheapest == 1.0


def test_the_gap_of_a_front_without_one_point_is_what_that_point_adds() -> None:
    gap = optimality_gap(EXACT[[0, 2]], EXACT, reference=np.array([4.0, 5.0]))
    # Of 1 * 1 + 3 * 2 + 4 * 1 = 11 the middle point alone has the rectangle from cost 2 to 4 and from loss 1 to 3.
    assert gap.hypervolume_share == pytest.approx(4 / 11)
    assert (gap.largest_loss, gap.at_budget) == (2.0, 2.0)


def test_budgets_below_the_cheapest_network_of_the_front_are_told_apart() -> None:
    gap = optimality_gap(np.array([[1.5, 2.5]]), EXACT)
    assert (gap.largest_loss, gap.at_budget) == (1.5, 4.0)
    assert (gap.cheapest, gap.exact_cheapest) == (2.5, 1.0)


def test_the_gap_may_lie_between_budgets_of_the_exact_front() -> None:
    gap = optimality_gap(np.array([[2.0, 2.5], [0.5, 3.0], [0.0, 4.0]]), EXACT)
    assert (gap.largest_loss, gap.at_budget) == (1.0, 2.5)


def test_costs_that_differ_by_rounding_are_the_same_budget_where_that_is_asked_for() -> None:
    rounded = np.add(EXACT, [0.0, 1e-12])
    assert optimality_gap(rounded, EXACT).largest_loss == 2.0
    assert optimality_gap(rounded, EXACT, cost_tolerance=1e-9).largest_loss == 0.0
    assert optimality_gap(EXACT[1:], EXACT, cost_tolerance=1e-9).cheapest == 2.0


def test_a_single_best_network_has_no_hypervolume_to_miss() -> None:
    gap = optimality_gap(np.array([[2.0, 2.0]]), np.array([[1.0, 1.0]]))
    assert (gap.hypervolume_share, gap.largest_loss) == (0.0, 1.0)


def test_sets_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"front needs one or more rows of loss and cost; got shape \(0, 2\)"):
        optimality_gap(EXACT[:0], EXACT)
    with pytest.raises(ValueError, match=r"exact needs .* got shape \(3,\)"):
        optimality_gap(EXACT, EXACT[:, 0])


def test_a_head_start_is_evaluated_first_and_bred_from(toy) -> None:
    front = toy.true_front()
    best = toy.codes[[row.tobytes() in front for row in toy.codes]]
    searcher = HeadStart(toy.space, Nsga2(toy.space, population=20), np.concatenate([best, best]))
    result = search(toy.problem(), searcher, len(best) + 20)
    np.testing.assert_array_equal(result.codes[: len(best)], best)
    assert {row.tobytes() for row in result.codes[result.front]} == front
    nearest = toy.space.distance(result.codes[len(best) :], best).min(axis=1)
    assert nearest.mean() < toy.space.distance(toy.codes, best).min(axis=1).mean()
