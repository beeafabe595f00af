from __future__ import annotations

import numpy as np
import pytest

from hanax.searchers import Constraint, Nsga3, Objective, Problem, non_dominated, search


def test_the_true_front_of_an_enumerable_space_is_found_within_half_of_it(toy) -> None:
    """3,528 networks; the front of each is known by enumeration."""
    result = search(toy.problem(), Nsga3(toy.space, n_objectives=2, population=50, seed=0), 1764)
    assert {row.tobytes() for row in result.codes[result.front]} == toy.true_front()


def test_the_true_front_under_two_constraints_is_found_too(toy) -> None:
    most_ms, least = np.quantile(toy.latency_ms, 0.3), np.quantile(toy.accuracy, 0.6)
    constraints = (Constraint("latency_ms", at_most=most_ms), Constraint("accuracy", at_least=least))
    result = search(toy.problem(*constraints), Nsga3(toy.space, n_objectives=2, population=50, seed=0), 1764)
    feasible = (toy.latency_ms <= most_ms) & (toy.accuracy >= least)
    assert {row.tobytes() for row in result.codes[result.front]} == toy.true_front(feasible)


def test_three_objectives_in_units_far_apart_keep_the_ends_of_the_front(toy) -> None:
    """The survivors hold nearly the best network of each objective, though one counts in millions."""
    objectives = (Objective("accuracy", "maximise"), Objective("latency_ms", "minimise"), Objective("macs", "minimise"))
    problem = Problem(toy.space, objectives, (), toy.evaluate)
    searcher = Nsga3(toy.space, n_objectives=3, population=40, seed=0)
    search(problem, searcher, 1000)
    costs = toy.evaluate(searcher.population)
    for values, all_values in ((-costs["accuracy"], -toy.accuracy), (costs["latency_ms"], toy.latency_ms),
                               (costs["macs"], toy.macs)):  # fmt: skip
        assert values.min() <= np.quantile(all_values, 0.002)
    assert non_dominated(problem.losses(costs)).mean() > 0.9


def test_looking_at_the_population_changes_nothing(toy) -> None:
    def play(looks: bool) -> np.ndarray:
        searcher = Nsga3(toy.space, n_objectives=2, population=10, seed=6)
        for _ in range(3):
            for codes in np.array_split(searcher.ask(), 4):
                searcher.tell(codes, toy.problem().losses(toy.problem().costs(codes)), np.zeros(len(codes)))
                assert not looks or len(searcher.population) <= 10
        return searcher.ask()

    np.testing.assert_array_equal(play(True), play(False))


def test_the_order_of_telling_does_not_change_what_is_asked_next(toy) -> None:
    def ask_twice(order: slice) -> np.ndarray:
        searcher = Nsga3(toy.space, n_objectives=2, population=30, seed=5)
        for _ in range(4):
            codes = searcher.ask()[order]
            searcher.tell(codes, toy.problem().losses(toy.problem().costs(codes)), np.zeros(len(codes)))
        return searcher.ask()

    np.testing.assert_array_equal(ask_twice(slice(None)), ask_twice(slice(None, None, -1)))


def test_another_number_of_objectives_is_refused(tiny) -> None:
    searcher = Nsga3(tiny.space, n_objectives=2, population=5)
    codes = searcher.ask()
    with pytest.raises(ValueError, match=r"2 objectives need losses of shape \(n, 2\); got \(5, 3\)"):
        searcher.tell(codes, np.zeros((5, 3)), np.zeros(5))
    with pytest.raises(ValueError, match="6 objectives, at most 5"):
        Nsga3(tiny.space, n_objectives=6, population=5)
