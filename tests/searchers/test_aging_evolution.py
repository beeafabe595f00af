"""Aging evolution finds the optimum of an enumerable space, forgets the old, and is the same on both array modules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hanax.searchers import AgingEvolution, InfeasibleConstraintError, block_table


@pytest.fixture(scope="module")
def exact(toy):
    """Score and cost as sums of multiples of 1/64, equal in float32 and float64."""
    rng = np.random.default_rng(4)
    tables = []
    for low in (-128, 1):
        terms = [((d.name,), rng.integers(low, 128, len(d.options)) / 64) for d in toy.space.decisions]
        tables.append(block_table(toy.space, terms))
    return tables


def test_the_true_optimum_is_found_for_every_budget(toy, exact) -> None:
    score, cost = exact
    scores, costs = score(toy.codes), cost(toy.codes)
    budgets = np.quantile(costs, [0.0, 0.1, 0.5, 0.9])
    result = AgingEvolution(toy.space, score, cost, generations=60).run(budgets, seed=1)
    assert result.scores.tolist() == [scores[costs <= budget].max() for budget in budgets]
    np.testing.assert_array_equal(result.costs, cost(result.codes))
    np.testing.assert_array_equal(result.scores, score(result.codes))
    assert (result.costs <= budgets).all()
    for budget, codes, there in zip(budgets, result.population, result.population_scores > -np.inf, strict=True):
        assert len(np.unique(codes[there], axis=0)) == there.sum()
        assert (cost(codes[there]) <= budget).all()
    assert (np.diff(result.best_scores, axis=0) >= 0).all()
    assert result.n_scored == 4 * (100 + 60 * 20)


def test_a_generation_replaces_the_oldest_and_no_others(toy, exact) -> None:
    budget = [float(np.median(exact[1](toy.codes)))]
    populations = [
        AgingEvolution(toy.space, *exact, population=30, children=10, generations=n).run(budget).population[0]
        for n in range(5)
    ]
    for number, (before, after) in enumerate(itertools.pairwise(populations)):
        old = np.arange(10) + 10 * (number % 3)
        kept = np.setdiff1d(np.arange(30), old)
        np.testing.assert_array_equal(before[kept], after[kept])
        assert (before[old] != after[old]).any(axis=1).all()


def test_numpy_and_jax_find_the_same_to_the_last_bit(toy, exact) -> None:
    budgets = np.quantile(exact[1](toy.codes), [0.2, 0.6])
    ours, theirs = (
        AgingEvolution(toy.space, *exact, population=20, children=5, sample=4, tries=2, generations=9, backend=backend)
        .run(budgets, seed=5)
        for backend in ("numpy", "jax")
    )  # fmt: skip
    for name in ours.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


def test_infeasible_budgets_and_settings_that_make_no_sense_are_refused(toy, exact) -> None:
    with pytest.raises(InfeasibleConstraintError, match="no network found costs at most 0"):
        AgingEvolution(toy.space, *exact).run([0.0])
    with pytest.raises(ValueError, match="multiple of the children; got 25, 4, 30 and 100"):
        AgingEvolution(toy.space, *exact, children=30)
