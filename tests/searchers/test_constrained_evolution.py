"""Constrained evolution finds the true optimum of an enumerable space, for many budgets and devices at once."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from hanax.search_spaces import mobilenet_v3
from hanax.searchers import ConstrainedEvolution, InfeasibleConstraintError, block_table, constrained_evolution

SMALL = {"population": 40, "generations": 40}


class Exact:
    """Scores and costs of the toy space that are multiples of 1/64: equal in float32 and float64, on both modules."""

    def __init__(self, toy, n_devices: int | None = None) -> None:
        rng = np.random.default_rng(0)
        axis = () if n_devices is None else (n_devices,)
        pairs = [(a, b) for a, b in zip(toy.space.decisions, toy.space.decisions[1:], strict=False)]
        sizes = [(len(a.options), len(b.options)) for a, b in pairs]
        names = [(a.name, b.name) for a, b in pairs]
        self.space = toy.space
        self.cost = block_table(toy.space, [
            (name, rng.integers(0, 64, size + axis) / 64) for name, size in zip(names, sizes, strict=True)
        ])  # fmt: skip
        self.score = block_table(toy.space, [
            (name, rng.integers(-128, 128, size) / 64) for name, size in zip(names, sizes, strict=True)
        ])  # fmt: skip
        self.costs, self.scores = self.cost(toy.codes), self.score(toy.codes)

    def optimum(self, budget: float, device: int | None = None) -> float:
        costs = self.costs if device is None else self.costs[:, device]
        return float(self.scores[costs <= budget].max())


@pytest.fixture(scope="module")
def exact(toy) -> Exact:
    return Exact(toy)


@pytest.fixture(scope="module")
def on_devices(toy) -> Exact:
    return Exact(toy, 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_true_optimum_is_found_for_every_budget_of_one_call(exact, seed: int) -> None:
    budgets = np.quantile(exact.costs, np.linspace(0.0, 1.0, 20))
    result = constrained_evolution(exact.space, exact.score, exact.cost, budgets, seed=seed, **SMALL)
    assert result.codes.shape == (20, len(exact.space.decisions))
    np.testing.assert_array_equal(result.scores, [exact.optimum(budget) for budget in budgets])
    np.testing.assert_array_equal(result.scores, exact.score(result.codes))
    np.testing.assert_array_equal(result.costs, exact.cost(result.codes))
    assert (result.costs <= budgets).all()


def test_the_true_optimum_is_found_for_one_budget(exact) -> None:
    budget = float(np.median(exact.costs))
    result = constrained_evolution(exact.space, exact.score, exact.cost, [budget], **SMALL)
    assert result.scores.tolist() == [exact.optimum(budget)]
    assert result.n_scored == 40 * 41 + 1


def test_devices_have_budgets_of_their_own_and_share_the_scores(on_devices) -> None:
    budgets = np.quantile(on_devices.costs, [0.02, 0.3, 0.7], axis=0).T
    calls: list[int] = []

    def score(codes: np.ndarray) -> np.ndarray:
        calls.append(len(codes))
        return on_devices.score(codes)

    evolution = ConstrainedEvolution(on_devices.space, score, on_devices.cost, **SMALL)
    result = evolution.run(budgets)
    assert result.codes.shape == (3, 3, len(on_devices.space.decisions))
    expected = [[on_devices.optimum(budget, device) for budget in row] for device, row in enumerate(budgets)]
    np.testing.assert_array_equal(result.scores, expected)
    assert evolution.n_children(3, 3) == 84
    assert max(calls) == evolution.n_children(3, 3) + 3
    same_for_all = evolution.run(budgets[0])
    np.testing.assert_array_equal(same_for_all.budgets, np.broadcast_to(budgets[0], (3, 3)))


def test_numpy_and_jax_find_the_same_to_the_last_bit_without_compiling_for_other_budgets_and_seeds(on_devices) -> None:
    traces: list[int] = []

    def score(codes: jnp.ndarray) -> jnp.ndarray:
        traces.append(len(codes))
        return on_devices.score(codes)

    settings = {"population": 20, "generations": 12}
    on_numpy = ConstrainedEvolution(on_devices.space, on_devices.score, on_devices.cost, **settings)
    on_jax = ConstrainedEvolution(on_devices.space, score, on_devices.cost, backend="jax", **settings)
    n_traces = None
    for seed, quantiles in ((7, [0.05, 0.5]), (8, [0.2, 0.9])):
        budgets = np.quantile(on_devices.costs, quantiles, axis=0).T
        ours, theirs = on_numpy.run(budgets, seed=seed), on_jax.run(budgets, seed=seed)
        for name in ours.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        assert n_traces in (None, len(traces))
        n_traces = len(traces)


def test_no_network_is_twice_in_a_population_and_all_keep_the_budget(exact) -> None:
    budgets = np.quantile(exact.costs, [0.01, 0.2, 0.5, 0.9])
    result = constrained_evolution(exact.space, exact.score, exact.cost, budgets, population=60, generations=15)
    for budget, codes, scores in zip(budgets, result.population, result.population_scores, strict=True):
        there = scores > -np.inf
        assert len(np.unique(codes[there], axis=0)) == there.sum() > 10
        np.testing.assert_array_equal(exact.space.canonical(codes), codes)
        assert (exact.cost(codes[there]) <= budget).all()
        assert (scores[1:] <= scores[:-1]).all()


def test_history_says_how_good_how_diverse_and_how_often_feasible(exact) -> None:
    result = constrained_evolution(exact.space, exact.score, exact.cost, [float(np.median(exact.costs))], **SMALL)
    assert result.best_scores.shape == result.diversity.shape == result.feasible.shape == (41, 1)
    assert (np.diff(result.best_scores[:, 0]) >= 0).all()
    assert result.best_scores[-1, 0] == result.scores[0]
    (population,) = result.population
    n = len(population)
    distances = exact.space.distance(population, population).sum() / (n * (n - 1))
    assert result.diversity[-1, 0] == pytest.approx(distances, rel=1e-6)
    assert (result.feasible <= 41).all()


def test_a_space_smaller_than_a_population_is_exhausted_and_no_obstacle(tiny) -> None:
    def of(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda codes: np.array([values[tiny.row_of[row.tobytes()]] for row in codes])

    result = constrained_evolution(
        tiny.space, of(tiny.accuracy), of(tiny.latency_ms), [tiny.latency_ms.min(), 1e9], population=300, generations=5
    )
    assert result.scores[1] == tiny.accuracy.max()
    assert np.isfinite(result.population_scores).sum(axis=1).tolist() == [1, tiny.space.size]


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_a_budget_that_nothing_keeps_ends_at_once_with_the_cheapest_cost(exact, backend) -> None:
    def never(codes: np.ndarray) -> np.ndarray:
        raise AssertionError("nothing is to be scored")

    least = float(exact.costs.min())
    evolution = ConstrainedEvolution(exact.space, never, exact.cost, backend=backend)
    with pytest.raises(
        InfeasibleConstraintError, match=f"costs at most {least / 2:g}; the cheapest costs {least:g}"
    ) as e:
        evolution.run([1e9, least / 2])
    assert e.value.closest == least
    assert e.value.constraint.at_most == least / 2


def test_the_device_whose_budget_is_infeasible_is_named(on_devices) -> None:
    budgets = on_devices.costs.min(axis=0)[:, None] - [[0.0], [0.5], [0.0]]
    evolution = ConstrainedEvolution(on_devices.space, on_devices.score, on_devices.cost, **SMALL)
    with pytest.raises(InfeasibleConstraintError, match="on device 1; the cheapest"):
        evolution.run(budgets)


def test_the_cheapest_network_of_a_large_space_is_found_by_descent() -> None:
    space = mobilenet_v3()
    rng = np.random.default_rng(0)
    terms = [((d.name,), rng.random(len(d.options))) for d in space.decisions]
    cost = block_table(space, terms)
    evolution = ConstrainedEvolution(space, cost, cost, population=10, generations=0)
    with pytest.raises(InfeasibleConstraintError) as caught:
        evolution.run([-1.0])
    by_stage = {}
    for stage in range(1, 6):
        least = [
            float(table[0] if d.when is not None else table.min())
            for d, (_, table) in zip(space.decisions, terms, strict=True)
            if d.name.startswith(f"stage{stage}")
        ]
        by_stage[stage] = sum(least)
    assert caught.value.closest <= sum(by_stage.values()) + float(terms[0][1].min()) + 1e-5


@pytest.mark.parametrize(("settings", "message"), [
    ({"population": 1}, "population of at least 2"),
    ({"children": 3}, "children is an even number"),
    ({"parents": 0.0}, "parents is a share"),
    ({"mutation": 2.0}, "between 0 and 1"),
    ({"tries": 0}, "at least 1 try"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(exact, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConstrainedEvolution(exact.space, exact.score, exact.cost, **settings)


def test_budgets_seeds_and_functions_that_make_no_sense_are_refused(exact, on_devices) -> None:
    evolution = ConstrainedEvolution(exact.space, exact.score, exact.cost, **SMALL)
    with pytest.raises(ValueError, match=r"shape \(k,\), and k at least 1; got \(0,\)"):
        evolution.run([])
    with pytest.raises(ValueError, match="budgets must be finite; got nan"):
        evolution.run([1.0, float("nan")])
    with pytest.raises(ValueError, match="seed is between"):
        evolution.run([1e9], seed=-1)
    with pytest.raises(ValueError, match=r"shape \(k,\) or \(3, k\)"):
        ConstrainedEvolution(on_devices.space, on_devices.score, on_devices.cost).run(np.ones((2, 2)))
    with pytest.raises(ValueError, match="score must give the shape"):
        ConstrainedEvolution(exact.space, on_devices.cost, exact.cost, **SMALL).run([1e9])
    with pytest.raises(ValueError, match="backend is 'numpy' or 'jax'; got 'torch'"):
        ConstrainedEvolution(exact.space, exact.score, exact.cost, backend="torch").run([1e9])  # type: ignore[arg-type]
