from __future__ import annotations

import numpy as np
import pytest

from hanax.search_spaces import mobilenet_v3
from hanax.searchers import Constraint, Nsga2, Objective, Problem, search


@pytest.mark.parametrize("seed", range(5))
def test_the_true_front_of_an_enumerable_space_is_found_within_half_of_it(toy, seed: int) -> None:
    """3,528 networks; the front of each is known by enumeration."""
    result = search(toy.problem(), Nsga2(toy.space, population=50, seed=seed), 1764)
    assert {row.tobytes() for row in result.codes[result.front]} == toy.true_front()


@pytest.mark.parametrize("seed", range(2))
def test_the_true_front_under_two_constraints_is_found_too(toy, seed: int) -> None:
    most_ms, least = np.quantile(toy.latency_ms, 0.3), np.quantile(toy.accuracy, 0.6)
    constraints = (Constraint("latency_ms", at_most=most_ms), Constraint("accuracy", at_least=least))
    result = search(toy.problem(*constraints), Nsga2(toy.space, population=50, seed=seed), 1764)
    feasible = (toy.latency_ms <= most_ms) & (toy.accuracy >= least)
    assert 10 < feasible.sum() < 1000
    assert {row.tobytes() for row in result.codes[result.front]} == toy.true_front(feasible)


def test_it_needs_far_fewer_evaluations_than_chance(toy) -> None:
    """Share of the true front found with 400 evaluations: at least twice that of random networks."""
    front = toy.true_front()

    def found(codes: np.ndarray) -> int:
        return len(front & {row.tobytes() for row in codes})

    evolved = [search(toy.problem(), Nsga2(toy.space, population=40, seed=s), 400).codes for s in range(5)]
    drawn = [np.random.default_rng(s).permutation(toy.codes)[:400] for s in range(5)]
    assert sum(map(found, evolved)) > 2 * sum(map(found, drawn))


def test_one_and_four_objectives_work_alike(toy) -> None:
    one = Problem(toy.space, (Objective("latency_ms", "minimise"),), (), toy.evaluate)
    result = search(one, Nsga2(toy.space, population=20, seed=0), 600)
    assert result.costs["latency_ms"][result.front].tolist() == [toy.latency_ms.min()]

    def four_costs(codes: np.ndarray) -> dict[str, np.ndarray]:
        return toy.evaluate(codes) | {"blocks": toy.space.active(codes).sum(axis=1)}

    objectives = tuple(Objective(name, "minimise") for name in ("latency_ms", "macs", "blocks"))
    four = Problem(toy.space, (Objective("accuracy", "maximise"), *objectives), (), four_costs)
    result = search(four, Nsga2(toy.space, population=50, seed=0), 500)
    assert len(result.front) > 20
    assert result.history["hypervolume"].is_monotonic_increasing


def test_children_of_crossover_and_of_mutation_are_bred_and_survive() -> None:
    """Mutants differ from a parent in a few of 46 decisions, children of two parents from both in many."""
    space = mobilenet_v3()
    searcher = Nsga2(space, population=60, seed=0)
    parents = searcher.ask()
    searcher.tell(parents, np.random.default_rng(0).random((60, 2)) + 10.0, np.zeros(60))
    children = searcher.ask()
    assert len(children) == 60
    from_parents = space.distance(children, parents).min(axis=1)
    assert 10 < np.sum(from_parents > 8) < 50
    assert 10 < np.sum(from_parents <= 8) < 50
    searcher.tell(children, np.random.default_rng(1).random((60, 2)), np.zeros(60))
    assert {row.tobytes() for row in searcher.population} == {row.tobytes() for row in children}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_either_operator_can_work_alone(toy, probability: float) -> None:
    result = search(toy.problem(), Nsga2(toy.space, population=20, seed=0, crossover_probability=probability), 300)
    assert len(result.codes) == 300


def test_the_order_of_telling_does_not_change_what_is_asked_next(toy) -> None:
    def ask_twice(order: slice) -> np.ndarray:
        searcher = Nsga2(toy.space, population=30, seed=5)
        for _ in range(4):
            codes = searcher.ask()[order]
            searcher.tell(codes, toy.problem().losses(toy.problem().costs(codes)), np.zeros(len(codes)))
        return searcher.ask()

    np.testing.assert_array_equal(ask_twice(slice(None)), ask_twice(slice(None, None, -1)))


def test_looking_at_the_population_changes_nothing(toy) -> None:
    def play(looks: bool) -> np.ndarray:
        searcher = Nsga2(toy.space, population=10, seed=6)
        for _ in range(3):
            for codes in np.array_split(searcher.ask(), 4):
                searcher.tell(codes, toy.problem().losses(toy.problem().costs(codes)), np.zeros(len(codes)))
                assert not looks or len(searcher.population) <= 10
        return searcher.ask()

    np.testing.assert_array_equal(play(True), play(False))


def test_infeasible_networks_guide_the_search_to_feasible_ones(toy) -> None:
    """Eight of 3,528 networks are feasible; the least violated survive and lead there."""
    bound = np.sort(toy.latency_ms)[8]
    problem = toy.problem(Constraint("latency_ms", at_most=bound))
    result = search(problem, Nsga2(toy.space, population=20, seed=0), 400)
    assert result.costs["violation"].iloc[:20].min() > 0
    assert (result.costs["violation"] == 0).sum() >= 4


@pytest.mark.parametrize(("settings", "message"), [
    ({"population": 1}, "at least 2 networks; got 1"),
    ({"mutation_probability": 1.5}, "mutation_probability is between 0 and 1; got 1.5"),
    ({"crossover_probability": -0.1}, "crossover_probability is between 0 and 1; got -0.1"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(tiny, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nsga2(tiny.space, **settings)
