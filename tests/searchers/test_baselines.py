"""Random, grid and local search and aging evolution: known answers and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
from plain_space import plain_space

from hanax.search_spaces import mobilenet_v3
from hanax.searchers import (
    AgingSearcher,
    Constraint,
    GridSearcher,
    LocalSearcher,
    Objective,
    Problem,
    RandomSearcher,
    every_network,
    search,
)

SPACE = plain_space(6, 3)
WEIGHTS = np.random.default_rng(0).normal(size=(7, 3))


def additive(codes: np.ndarray) -> np.ndarray:
    """A loss without local optima: decisions do not interact."""
    return WEIGHTS[np.arange(7), codes].sum(axis=1)


def rugged(codes: np.ndarray) -> np.ndarray:
    """A loss of which nothing can be learned."""
    return np.array([np.random.default_rng(row.tolist()).random() for row in codes])


def by_hand(loss, start: np.ndarray) -> list[set[bytes]]:
    """Best-improvement descent from `start`, written down as one would say it: the new networks of every step."""
    here, seen, steps = start, {start.tobytes()}, [{start.tobytes()}]
    while True:
        around = []
        for column in range(len(here)):
            for option in range(SPACE.option_counts[column]):
                if option != here[column]:
                    around.append(np.array([*here[:column], option, *here[column + 1 :]], dtype=np.int32))
        steps.append({one.tobytes() for one in around} - seen)
        seen |= steps[-1]
        best = min(around, key=lambda one: loss(one[None])[0])
        if loss(best[None])[0] >= loss(here[None])[0]:
            return steps
        here = best


@pytest.mark.parametrize("loss", [additive, rugged])
@pytest.mark.parametrize("seed", range(3))
def test_local_search_goes_where_a_descent_by_hand_goes(loss, seed: int) -> None:
    searcher = LocalSearcher(SPACE, starts=1, seed=seed)
    asked = searcher.ask()
    for step in by_hand(loss, asked[0]):
        assert {row.tobytes() for row in asked} == step
        searcher.tell(asked, loss(asked)[:, None], np.zeros(len(asked)))
        asked = searcher.ask()
    assert len(asked) == 1, "a new start"


def test_local_search_needs_one_descent_where_decisions_do_not_interact() -> None:
    """729 networks, 12 neighbours each: at most six steps to the best."""
    problem = Problem(SPACE, (Objective("loss", "minimise"),), (), lambda codes: {"loss": additive(codes)})
    result = search(problem, LocalSearcher(SPACE, starts=1, seed=5), 1 + 6 * 12)
    assert result.costs["loss"].min() == pytest.approx(additive(every_network(SPACE)).min())


def test_descents_meet_and_go_on_over_known_networks() -> None:
    """Every restart of a space without local optima ends at the best network, over networks seen before."""
    problem = Problem(SPACE, (Objective("loss", "minimise"),), (), lambda codes: {"loss": additive(codes)})
    result = search(problem, LocalSearcher(SPACE, starts=1, seed=0), 300)
    assert len(result.codes) == 300


def found(toy, make, evaluations: int, seeds: int = 3) -> int:
    front = toy.true_front()
    results = [search(toy.problem(), make(seed), evaluations).codes for seed in range(seeds)]
    return sum(len(front & {row.tobytes() for row in codes}) for codes in results)


def test_pareto_local_search_and_aging_evolution_find_more_of_the_front_than_chance(toy) -> None:
    """Of the true front of 3,528 networks, with 400 evaluations."""
    chance = found(toy, lambda seed: RandomSearcher(toy.space, seed=seed), 400)
    assert found(toy, lambda seed: LocalSearcher(toy.space, starts=10, batch=40, seed=seed), 400) > 2 * chance
    assert found(toy, lambda seed: AgingSearcher(toy.space, population=50, batch=25, seed=seed), 400) > 2 * chance


def test_local_search_climbs_out_of_infeasible_networks(toy) -> None:
    """Eight of 3,528 networks are feasible."""
    problem = toy.problem(Constraint("latency_ms", at_most=float(np.sort(toy.latency_ms)[8])))
    result = search(problem, LocalSearcher(toy.space, starts=1, seed=0), 400)
    assert result.costs["violation"].iloc[0] > 0
    assert (result.costs["violation"] == 0).sum() >= 4


def test_the_grid_lists_the_space_in_order_and_only_a_small_one(tiny) -> None:
    searcher = GridSearcher(tiny.space, batch=10)
    asked = [searcher.ask() for _ in range(6)]
    assert [len(codes) for codes in asked] == [10, 10, 10, 10, 2, 0]
    np.testing.assert_array_equal(np.concatenate(asked), tiny.codes)
    with pytest.raises(ValueError, match=r"has .* networks; only up to 100000 can be listed"):
        GridSearcher(mobilenet_v3())


def test_random_search_draws_every_option_alike() -> None:
    space = plain_space(10, 3)
    drawn = np.concatenate([RandomSearcher(space, batch=1000, seed=seed).ask() for seed in range(3)])
    shares = space.one_hot(drawn)[:, 1:].mean(axis=0)
    assert np.abs(shares - 1 / 3).max() < 4 * np.sqrt(2 / 9 / len(drawn))


def test_the_population_of_aging_evolution_are_the_youngest_whatever_they_are_worth() -> None:
    searcher = AgingSearcher(SPACE, population=10, sample=10, batch=5, seed=0)
    asked = []
    for _ in range(6):
        codes = searcher.ask()
        asked.append(codes)
        searcher.tell(codes, additive(codes)[:, None], np.zeros(len(codes)))
    np.testing.assert_array_equal(searcher.population, np.concatenate(asked)[-10:])


def test_a_full_tournament_is_won_by_the_best_alive_and_a_child_differs_in_one_decision() -> None:
    searcher = AgingSearcher(plain_space(20, 3), population=20, sample=20, batch=4, seed=0)
    for _ in range(12):
        alive = searcher.population
        codes = searcher.ask()
        if len(alive) == 20:
            best = alive[alive.sum(axis=1).argmin()]
            assert (np.sum(codes != best, axis=1) == 1).all()
        searcher.tell(codes, codes.sum(axis=1)[:, None].astype(float), np.zeros(len(codes)))


def test_a_scalarisation_decides_who_is_the_best_and_weights_are_one(toy) -> None:
    def play(scalarisation) -> np.ndarray:
        searcher = AgingSearcher(toy.space, population=20, sample=5, seed=0, scalarisation=scalarisation)
        return search(toy.problem(), searcher, 150).codes

    np.testing.assert_array_equal(play((1.0, 0.5)), play(lambda losses: losses[:, 0] + 0.5 * losses[:, 1]))
    assert not np.array_equal(play((1.0, 0.5)), play((1.0, 0.0)))


def test_scalarisations_that_do_not_fit_the_losses_are_refused() -> None:
    codes = np.zeros((1, 7), dtype=np.int32)
    with pytest.raises(ValueError, match="2 objectives need as many weights; got 1"):
        AgingSearcher(SPACE, scalarisation=(1.0,)).tell(codes, np.ones((1, 2)), np.zeros(1))
    with pytest.raises(ValueError, match=r"must be finite numbers of shape \(1,\); got shape \(1, 2\)"):
        AgingSearcher(SPACE, scalarisation=lambda losses: losses).tell(codes, np.ones((1, 2)), np.zeros(1))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: RandomSearcher(SPACE, batch=0), "a batch is at least 1 network; got 0"),
    (lambda: GridSearcher(SPACE, batch=0), "a batch is at least 1 network; got 0"),
    (lambda: LocalSearcher(SPACE, starts=0), "starts is a number of networks, at least 1; got 0"),
    (lambda: AgingSearcher(SPACE, population=0), "at least 1 network; got 0 and 10"),
    (lambda: AgingSearcher(SPACE, population=10, sample=11), "sample is between 1 and the population of 10; got 11"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
