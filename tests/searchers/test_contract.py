"""What every searcher promises. A new one joins by a line in `SEARCHERS`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hanax.search_spaces import SearchSpace
from hanax.searchers import (
    AgingSearcher,
    Constraint,
    GridSearcher,
    InfeasibleConstraintError,
    LocalSearcher,
    Nsga2,
    Nsga3,
    OptunaSearcher,
    RandomSearcher,
    Reinforce,
    Searcher,
    search,
)

SEARCHERS: dict[str, Callable[[SearchSpace, int], Searcher]] = {
    "nsga2": lambda space, seed: Nsga2(space, population=20, seed=seed),
    "nsga3": lambda space, seed: Nsga3(space, n_objectives=2, population=20, seed=seed),
    "optuna-nsga2": lambda space, seed: OptunaSearcher(
        space, sampler="nsga2", n_objectives=2, seed=seed, batch=10, population=20
    ),
    "optuna-tpe": lambda space, seed: OptunaSearcher(space, sampler="tpe", n_objectives=2, seed=seed, batch=10),
    "optuna-linas": lambda space, seed: OptunaSearcher(space, sampler="linas", n_objectives=2, seed=seed, batch=10),
    "optuna-evolution": lambda space, seed: OptunaSearcher(
        space, sampler="evolution", n_objectives=2, seed=seed, batch=10, population=20
    ),
    "random": lambda space, seed: RandomSearcher(space, batch=20, seed=seed),
    "grid": lambda space, seed: GridSearcher(space, batch=20),
    "local": lambda space, seed: LocalSearcher(space, starts=10, batch=20, seed=seed),
    "aging": lambda space, seed: AgingSearcher(space, population=20, sample=5, batch=20, seed=seed),
    "aging-scalarised": lambda space, seed: AgingSearcher(
        space, population=20, sample=5, batch=20, seed=seed, scalarisation=(1.0, 0.05)
    ),
    "reinforce": lambda space, seed: Reinforce(space, (1.0, 0.05), batch=20, seed=seed),
    "optuna-random": lambda space, seed: OptunaSearcher(space, sampler="random", n_objectives=2, seed=seed, batch=10),
}


@pytest.fixture(params=SEARCHERS)
def make(request: pytest.FixtureRequest) -> Callable[[SearchSpace, int], Searcher]:
    return SEARCHERS[request.param]


def _play(toy, searcher: Searcher, rounds: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """All codes asked for in `rounds`; results come back in the order of asking or in a random one."""
    problem = toy.problem(Constraint("latency_ms", at_most=6.0))
    asked = []
    for _ in range(rounds):
        codes = searcher.ask()
        asked.append(codes)
        order = np.arange(len(codes)) if rng is None else rng.permutation(len(codes))
        for part in np.array_split(order, 3):
            costs = problem.costs(codes[part])
            searcher.tell(codes[part], problem.losses(costs), problem.violations(costs))
    return np.concatenate(asked)


def test_proposals_are_canonical_networks_of_the_space_and_none_comes_twice(toy, make) -> None:
    asked = _play(toy, make(toy.space, 0), 5)
    assert asked.dtype == np.int32
    np.testing.assert_array_equal(toy.space.canonical(asked), asked)
    assert len(np.unique(asked, axis=0)) == len(asked) >= 50


def test_the_same_seed_proposes_the_same_and_another_seed_does_not(toy, make) -> None:
    first, second, other = (_play(toy, make(toy.space, seed), 3) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert np.array_equal(first, other) == (make is SEARCHERS["grid"])


def test_networks_asked_for_may_be_told_in_parts_and_in_any_order(toy, make) -> None:
    _play(toy, make(toy.space, 0), 4, np.random.default_rng(0))


def test_results_that_never_come_are_no_obstacle(toy, make) -> None:
    searcher = make(toy.space, 0)
    lost, found = searcher.ask(), searcher.ask()
    costs = toy.problem().costs(found)
    searcher.tell(found, toy.problem().losses(costs), np.zeros(len(found)))
    more = searcher.ask()
    assert len(np.unique(np.concatenate([lost, found, more]), axis=0)) == len(lost) + len(found) + len(more)


def test_telling_the_same_again_changes_nothing_and_telling_otherwise_is_refused(toy, make) -> None:
    searcher, undisturbed = make(toy.space, 0), make(toy.space, 0)
    for one in (searcher, undisturbed):
        codes = one.ask()
        losses = toy.problem().losses(toy.problem().costs(codes))
        one.tell(codes, losses, np.zeros(len(codes)))
    searcher.tell(codes, losses, np.zeros(len(codes)))
    with pytest.raises(ValueError, match=f"network {toy.space.decode(codes[:1])[0]} was told already, with losses"):
        searcher.tell(codes[:1], losses[:1] + 1.0, np.zeros(1))
    np.testing.assert_array_equal(searcher.ask(), undisturbed.ask())


def test_networks_known_beforehand_are_welcome_and_never_proposed(tiny, make) -> None:
    searcher = make(tiny.space, 0)
    known = tiny.codes[::2]
    searcher.tell(known, tiny.problem().losses(tiny.problem().costs(known)), np.zeros(len(known)))
    result = search(tiny.problem(), searcher, 1000)
    assert {row.tobytes() for row in result.codes} == {row.tobytes() for row in tiny.codes[1::2]}


def test_an_exhausted_space_ends_the_search_with_its_true_front(tiny, make) -> None:
    searcher = make(tiny.space, 1)
    result = search(tiny.problem(), searcher, 1000)
    assert result.stopped == "the space is exhausted: all of its 42 networks were evaluated"
    assert len(np.unique(result.codes, axis=0)) == len(result.codes) == tiny.space.size
    assert {row.tobytes() for row in result.codes[result.front]} == tiny.true_front()
    assert len(searcher.ask()) == 0


def test_no_network_is_evaluated_twice(toy, make) -> None:
    evaluated: list[bytes] = []

    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        evaluated.extend(row.tobytes() for row in codes)
        return toy.evaluate(codes)

    problem = toy.problem(Constraint("latency_ms", at_most=6.0, unit="ms"))
    result = search(type(problem)(toy.space, problem.objectives, problem.constraints, evaluate), make(toy.space, 0), 45)
    assert len(evaluated) == len(set(evaluated)) == len(result.codes) == len(result.costs) == 45


def test_an_infeasible_constraint_ends_with_the_closest_value_found(tiny, make) -> None:
    least = tiny.latency_ms.min()
    with pytest.raises(InfeasibleConstraintError) as caught:
        search(tiny.problem(Constraint("latency_ms", at_most=least / 2, unit="ms")), make(tiny.space, 0), 1000)
    assert caught.value.constraint.name == "latency_ms"
    assert caught.value.closest == pytest.approx(least)
    assert str(caught.value) == (
        f"none of 42 networks keeps latency_ms at most {least / 2:g} ms; the closest has {least:g} ms"
    )


def test_the_front_of_a_constrained_search_keeps_the_constraints(toy, make) -> None:
    result = search(toy.problem(Constraint("macs", at_most=float(np.median(toy.macs)))), make(toy.space, 0), 60)
    assert (result.costs["macs"][result.front] <= np.median(toy.macs)).all()
    assert (result.costs["macs"] > np.median(toy.macs)).any() or make is SEARCHERS["grid"]


def test_wrong_shapes_and_values_are_refused(toy, make) -> None:
    searcher = make(toy.space, 0)
    codes = searcher.ask()
    with pytest.raises(ValueError, match="shape"):
        searcher.tell(codes, np.zeros((len(codes) - 1, 2)), np.zeros(len(codes)))
    with pytest.raises(ValueError, match="shape"):
        searcher.tell(codes, np.zeros((len(codes), 2)), np.zeros((len(codes), 1)))
    with pytest.raises(ValueError, match="finite"):
        searcher.tell(codes, np.full((len(codes), 2), np.nan), np.zeros(len(codes)))
    with pytest.raises(ValueError, match="finite"):
        searcher.tell(codes, np.zeros((len(codes), 2)), np.full(len(codes), -1.0))
