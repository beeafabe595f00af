from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hanax.search_spaces import mobilenet_v3
from hanax.searchers import (
    Constraint,
    InfeasibleConstraintError,
    Nsga2,
    Objective,
    Problem,
    every_network,
    hypervolume,
    non_dominated,
    search,
)


class Forgetful:
    """Proposes the same three networks for ever."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes
        self.told: list[np.ndarray] = []

    def ask(self) -> np.ndarray:
        return self.codes[[0, 1, 1, 2]]

    def tell(self, codes: np.ndarray, losses: np.ndarray, violations: np.ndarray) -> None:
        self.told.append(losses)


def test_a_searcher_that_repeats_itself_gets_answers_from_memory_and_an_end(tiny) -> None:
    calls = []

    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(codes))
        return tiny.evaluate(codes)

    searcher = Forgetful(tiny.codes)
    result = search(Problem(tiny.space, tiny.problem().objectives, (), evaluate), searcher, 10)
    assert calls == [3]
    assert result.stopped == "the searcher proposed nothing new after 3 networks"
    expected = tiny.problem().losses(tiny.evaluate(tiny.codes[[0, 1, 1, 2]]))
    for losses in searcher.told:
        np.testing.assert_array_equal(losses, expected)


def test_the_result_is_consistent_with_itself_and_with_the_costs(toy) -> None:
    seen = []
    result = search(
        toy.problem(Constraint("macs", at_most=float(np.median(toy.macs)))),
        Nsga2(toy.space, population=30, seed=0),
        200,
        reference={"accuracy": 0.0, "latency_ms": 20.0},
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(30, 200), (60, 200), (90, 200), (120, 200), (150, 200), (180, 200), (200, 200)]
    assert result.stopped == "all 200 evaluations were made"
    assert list(result.costs.columns) == ["arch", "accuracy", "latency_ms", "macs", "violation"]
    assert result.costs["arch"].tolist() == [str(arch) for arch in toy.space.decode(result.codes)]
    for name, values in toy.evaluate(result.codes).items():
        np.testing.assert_array_equal(result.costs[name], values)
    losses = np.column_stack([-result.costs["accuracy"], result.costs["latency_ms"]])
    feasible = np.flatnonzero(result.costs["violation"] == 0)
    assert set(result.front) == set(feasible[non_dominated(losses[feasible])])
    assert result.costs["accuracy"][result.front].is_monotonic_decreasing
    assert result.history["evaluations"].tolist() == [done for done, _ in seen]
    assert result.history["hypervolume"].is_monotonic_increasing
    assert result.history["hypervolume"].iloc[-1] == pytest.approx(
        hypervolume(losses[result.front], np.array([0.0, 20.0]))
    )


def test_diversity_is_the_mean_distance_between_the_networks_of_a_round(toy) -> None:
    result = search(toy.problem(), Nsga2(toy.space, population=25, seed=1), 100)
    for number, diversity in enumerate(result.history["diversity"]):
        codes = result.codes[25 * number : 25 * number + 25]
        assert diversity == pytest.approx(toy.space.distance(codes, codes).sum() / (25 * 24))


def test_without_a_reference_the_worst_feasible_costs_are_it(toy) -> None:
    bound = float(np.median(toy.latency_ms))
    result = search(toy.problem(Constraint("latency_ms", at_most=bound)), Nsga2(toy.space, population=30), 150)
    feasible = result.costs[result.costs["violation"] == 0]
    worst = {"accuracy": feasible["accuracy"].min(), "latency_ms": feasible["latency_ms"].max()}
    assert result.reference == worst
    assert worst["latency_ms"] <= bound


def test_a_reference_must_name_the_objectives(toy) -> None:
    with pytest.raises(ValueError, match="reference must name the objectives accuracy, latency_ms; got latency"):
        search(toy.problem(), Nsga2(toy.space), 10, reference={"latency": 1.0})


def test_a_search_without_evaluations_is_refused(toy) -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        search(toy.problem(), Nsga2(toy.space), 0)


def test_constraints_that_exclude_each_other_are_explained_by_the_nearest_network(tiny) -> None:
    constraints = (
        Constraint("accuracy", at_least=float(tiny.accuracy.max())),
        Constraint("latency_ms", at_most=float(tiny.latency_ms.min()), unit="ms"),
    )
    with pytest.raises(InfeasibleConstraintError, match="Each can be kept by itself") as caught:
        search(tiny.problem(*constraints), Nsga2(tiny.space, population=10), 1000)
    violations = tiny.problem(*constraints).violations(tiny.evaluate(tiny.codes))
    least = np.argmin(violations)
    assert f"accuracy {tiny.accuracy[least]:g}, latency_ms {tiny.latency_ms[least]:g} ms" in str(caught.value)
    assert caught.value.closest in (tiny.accuracy[least], tiny.latency_ms[least])
    assert isinstance(caught.value, ValueError)


def test_more_than_four_objectives_are_searched_without_a_hypervolume(toy) -> None:
    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        return {f"cost{i}": np.cos(codes @ np.arange(i, i + codes.shape[1])) for i in range(6)}

    problem = Problem(toy.space, tuple(Objective(f"cost{i}", "minimise") for i in range(6)), (), evaluate)
    result = search(problem, Nsga2(toy.space, population=20), 60)
    assert result.history["hypervolume"].isna().all()
    assert len(result.front) > 0


def test_costs_that_change_their_names_are_refused(tiny) -> None:
    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        return tiny.evaluate(codes) | ({} if len(codes) == 10 else {"extra": np.zeros(len(codes))})

    problem = Problem(tiny.space, tiny.problem().objectives, (), evaluate)
    with pytest.raises(ValueError, match="evaluate gave the costs accuracy, latency_ms, macs before and"):
        search(problem, Nsga2(tiny.space, population=10), 15)


def test_every_network_is_listed_once(toy, tiny) -> None:
    for one in (toy, tiny):
        assert len(one.codes) == one.space.size == len(np.unique(one.codes, axis=0))
        np.testing.assert_array_equal(one.space.canonical(one.codes), one.codes)


def test_a_large_space_is_not_listed() -> None:
    with pytest.raises(ValueError, match=r"mobilenet_v3 has .*e\+20 networks; only up to 100000"):
        every_network(mobilenet_v3())


@pytest.mark.parametrize("module", ["jax", "pandas", "optuna", "hanax.devices", "hanax.predictors"])
def test_searchers_are_imported_without_heavy_or_unrelated_modules(module: str) -> None:
    code = f"import sys, hanax.searchers; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
