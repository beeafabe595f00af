"""Options for layers: against all assignments, where they can be listed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanax.searchers import allocate, allocation_front, bisect_formats, non_dominated, with_neighbours


def tables(seed: int, n_layers: int, n_options: int, *, whole: bool = False) -> tuple[np.ndarray, ...]:
    """Losses, costs, terms of pairs; and all assignments. With whole numbers there are ties."""
    rng = np.random.default_rng(seed)
    losses, costs = rng.normal(size=(2, n_layers, n_options))
    pairs = rng.normal(0.0, 0.5, (n_layers, n_options, n_layers, n_options))
    pairs = pairs + pairs.transpose(2, 3, 0, 1)
    pairs[np.arange(n_layers), :, np.arange(n_layers), :] = 0.0
    if whole:
        losses, costs, pairs = np.rint(2 * losses), np.rint(2 * costs), np.rint(pairs)
    choices = np.array(list(itertools.product(range(n_options), repeat=n_layers)))
    return losses, costs, pairs, choices


def sums(table: np.ndarray, choices: np.ndarray) -> np.ndarray:
    return table[np.arange(table.shape[0]), choices].sum(axis=1)


def joint_losses(losses: np.ndarray, pairs: np.ndarray, choices: np.ndarray) -> np.ndarray:
    terms = [pairs[i, choices[:, i], j, choices[:, j]] for i, j in itertools.combinations(range(choices.shape[1]), 2)]
    return sums(losses, choices) + np.sum(terms, axis=0)


@given(seed=st.integers(0, 10_000), n_layers=st.integers(1, 6), n_options=st.integers(1, 4), whole=st.booleans(),
       tightness=st.floats(0.0, 1.0))  # fmt: skip
def test_the_knapsack_finds_the_best_of_all_assignments(
    seed: int, n_layers: int, n_options: int, whole: bool, tightness: float
) -> None:
    losses, costs, _, choices = tables(seed, n_layers, n_options, whole=whole)
    every_loss, every_cost = sums(losses, choices), sums(costs, choices)
    budget = float(np.quantile(every_cost, tightness))
    found = allocate(losses, costs, budget)
    assert found.loss == pytest.approx(every_loss[every_cost <= budget + 1e-9].min())
    assert found.cost <= budget + 1e-9 and found.gap == 0
    assert sums(losses, found.choices[None])[0] == pytest.approx(found.loss)
    assert sums(costs, found.choices[None])[0] == pytest.approx(found.cost)


@pytest.mark.parametrize("seed", range(5))
def test_the_front_holds_every_non_dominated_point(seed: int) -> None:
    losses, costs, _, choices = tables(seed, 5, 3, whole=seed % 2 == 0)
    points = np.column_stack([sums(losses, choices), sums(costs, choices)])
    expected = np.unique(points[non_dominated(points)].round(9), axis=0)
    front = allocation_front(losses, costs)
    assert np.unique(np.column_stack([front.losses, front.costs]).round(9), axis=0) == pytest.approx(expected)
    assert (np.diff(front.costs) > 0).all() and (np.diff(front.losses) < 0).all()
    assert sums(losses, front.choices) == pytest.approx(front.losses)


@given(seed=st.integers(0, 10_000), n_layers=st.integers(1, 5), n_options=st.integers(1, 3), whole=st.booleans(),
       tightness=st.floats(0.0, 1.0))  # fmt: skip
def test_with_pairs_branch_and_bound_finds_the_best_of_all_assignments(
    seed: int, n_layers: int, n_options: int, whole: bool, tightness: float
) -> None:
    losses, costs, pairs, choices = tables(seed, n_layers, n_options, whole=whole)
    every_loss, every_cost = joint_losses(losses, pairs, choices), sums(costs, choices)
    budget = float(np.quantile(every_cost, tightness))
    found = allocate(losses, costs, budget, pairs=pairs)
    assert found.loss == pytest.approx(every_loss[every_cost <= budget + 1e-9].min())
    assert found.cost <= budget + 1e-9 and found.gap == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_search_that_is_stopped_says_how_far_from_the_optimum_it_may_be(seed: int) -> None:
    losses, costs, pairs, choices = tables(seed, 7, 3)
    every_loss, every_cost = joint_losses(losses, pairs, choices), sums(costs, choices)
    budget = float(np.quantile(every_cost, 0.3))
    best = every_loss[every_cost <= budget].min()
    for max_nodes in (1, 10, 100):
        found = allocate(losses, costs, budget, pairs=pairs, max_nodes=max_nodes)
        assert found.cost <= budget
        assert found.loss - found.gap <= best + 1e-9 <= found.loss + 2e-9
    assert "above the optimum" in str(allocate(losses, costs, budget, pairs=pairs, max_nodes=1))


def test_a_budget_that_nobody_meets_is_refused() -> None:
    losses, costs, pairs, _ = tables(0, 3, 2)
    with pytest.raises(ValueError, match=r"costs at most -100; the cheapest costs"):
        allocate(losses, costs, -100.0, pairs=pairs)
    with pytest.raises(ValueError, match="one shape"):
        allocate(losses, costs[:2], 0.0)
    with pytest.raises(ValueError, match="symmetric"):
        allocate(losses, costs, 100.0, pairs=np.arange(36.0).reshape(3, 2, 3, 2))
    with pytest.raises(ValueError, match="finite"):
        allocate(losses * np.nan, costs, 100.0)


def test_a_sum_that_equals_the_budget_to_rounding_is_within_it() -> None:
    found = allocate(np.array([[1.0, 0.0]] * 3), np.array([[0.0, 0.1]] * 3), 0.3)
    assert found.choices.tolist() == [1, 1, 1]


@given(seed=st.integers(0, 10_000), n_layers=st.integers(1, 40), n_options=st.integers(1, 4), is_steady=st.booleans(),
       least=st.floats(0.0, 1.0))  # fmt: skip
def test_bisection_asks_for_few_accuracies_and_returns_one_that_suffices(
    seed: int, n_layers: int, n_options: int, is_steady: bool, least: float
) -> None:
    rng = np.random.default_rng(seed)
    losses = np.sort(rng.random((n_layers, n_options)), axis=1)[:, ::-1]
    asked: dict[tuple[int, ...], float] = {}

    def accuracy_of(choices: np.ndarray) -> float:
        steady = 1.0 - losses[np.arange(n_layers), choices].sum() / losses.max(axis=1).sum()
        asked[tuple(choices.tolist())] = steady if is_steady else float(rng.random())
        return asked[tuple(choices.tolist())]

    try:
        found = bisect_formats(losses, accuracy_of, least)
    except ValueError:
        assert len(asked) == 1 and next(iter(asked.values())) < least
        return
    assert found.accuracy == asked[tuple(found.choices.tolist())] >= least
    assert found.n_evaluations <= 1 + (n_options - 1) * math.ceil(math.log2(n_layers + 1))
    assert len(asked) <= found.n_evaluations


def test_bisection_finds_the_longest_prefix_where_accuracy_falls_steadily() -> None:
    losses = np.column_stack([np.arange(10.0), np.zeros(10)])
    found = bisect_formats(losses, lambda choices: 1.0 - 0.01 * float(losses[:, 0] @ (choices == 0)), 0.9)
    assert found.choices.tolist() == [0] * 5 + [1] * 5, "0 + 1 + 2 + 3 + 4 hundredths, and 5 more would be too many"


def test_layers_that_compound_each_others_errors_count_as_more_sensitive() -> None:
    losses, pairs = np.ones((3, 2)), np.zeros((3, 2, 3, 2))
    pairs[0, 0, 1, 0] = pairs[1, 0, 0, 0] = 4.0
    assert with_neighbours(losses, pairs).tolist() == [[3.0, 1.0], [3.0, 1.0], [1.0, 1.0]]
