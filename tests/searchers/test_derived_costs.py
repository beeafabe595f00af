"""Costs made of other costs: the worst case over devices, and published rewards, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hanax.searchers import (
    Constraint,
    Nsga2,
    Objective,
    Problem,
    mnasnet_reward,
    search,
    tunas_reward,
    with_cost,
    with_mnasnet_reward,
    with_tunas_reward,
    worst_case,
)


def three_devices(codes: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "accuracy": np.array([0.7, 0.75, 0.8]),
        "pi_ms": np.array([30.0, 15.0, 60.0]),
        "phone_ms": np.array([5.0, 12.0, 9.0]),
        "server_ms": np.array([2.0, 1.0, 0.5]),
    }


def test_the_worst_case_is_the_largest_share_of_a_budget() -> None:
    budgets = {"pi_ms": 30.0, "phone_ms": 10.0, "server_ms": 4.0}
    costs = worst_case(three_devices, "worst_share", budgets)(np.zeros((3, 1), dtype=np.int32))
    assert costs["worst_share"].tolist() == [1.0, 1.2, 2.0]
    assert list(costs) == ["accuracy", "pi_ms", "phone_ms", "server_ms", "worst_share"]


def test_the_worst_case_of_costs_in_one_unit_is_their_maximum() -> None:
    costs = worst_case(three_devices, "worst_ms", {"phone_ms": 1.0, "server_ms": 1.0})(np.zeros((3, 1), dtype=np.int32))
    assert costs["worst_ms"].tolist() == [5.0, 12.0, 9.0]


def test_a_robust_search_finds_the_best_network_that_is_in_budget_on_every_device(toy) -> None:
    """Three devices that rank networks differently; the answer is known by enumeration."""
    rng = np.random.default_rng(0)
    one_hot = toy.space.one_hot(toy.codes)
    latencies = {f"device{i}_ms": one_hot @ rng.gamma(2.0, 1.0, size=one_hot.shape[1]) for i in range(3)}
    budgets = {name: float(np.quantile(values, 0.4)) for name, values in latencies.items()}

    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        rows = [toy.row_of[row.tobytes()] for row in codes]
        return {"accuracy": toy.accuracy[rows]} | {name: values[rows] for name, values in latencies.items()}

    problem = Problem(
        toy.space,
        (Objective("accuracy", "maximise"),),
        (Constraint("worst_share", at_most=1.0),),
        worst_case(evaluate, "worst_share", budgets),
    )
    result = search(problem, Nsga2(toy.space, population=40, seed=0), 600)
    in_budget = np.all([latencies[name] <= budget for name, budget in budgets.items()], axis=0)
    assert 10 < in_budget.sum() < 0.4 * len(toy.codes)
    assert result.costs["accuracy"].iloc[result.front[0]] == toy.accuracy[in_budget].max()


def test_a_worst_case_over_nothing_or_over_unknown_costs_is_refused() -> None:
    codes = np.zeros((3, 1), dtype=np.int32)
    with pytest.raises(ValueError, match="worst: the worst case needs at least one cost"):
        worst_case(three_devices, "worst", {})
    with pytest.raises(ValueError, match=r"worst: the scale of pi_ms is a positive number; got 0.0"):
        worst_case(three_devices, "worst", {"pi_ms": 0.0})
    with pytest.raises(ValueError, match="worst: evaluate gives no cost 'tpu_ms'; it gives accuracy, pi_ms"):
        worst_case(three_devices, "worst", {"tpu_ms": 1.0})(codes)
    with pytest.raises(ValueError, match="gives a cost 'pi_ms' already"):
        worst_case(three_devices, "pi_ms", {"phone_ms": 1.0})(codes)


def test_the_mnasnet_reward_by_hand() -> None:
    """At twice the target 2 ** -0.07 = 0.95264 is left of the accuracy: the 5 % that the paper trades for it."""
    accuracy, cost = np.array([0.75, 0.8, 0.8]), np.array([80.0, 160.0, 40.0])
    np.testing.assert_allclose(mnasnet_reward(accuracy, cost, 80.0), [0.75, 0.8 * 0.952638, 0.8 / 0.952638], rtol=1e-6)
    np.testing.assert_allclose(
        mnasnet_reward(accuracy, cost, 80.0, exponent=-1.0, hard=True), [0.75, 0.8 / 2, 0.8], rtol=1e-12
    )


def test_the_tunas_reward_by_hand() -> None:
    accuracy, cost = np.array([0.75, 0.8, 0.8]), np.array([84.0, 168.0, 42.0])
    np.testing.assert_allclose(tunas_reward(accuracy, cost, 84.0), [0.75, 0.8 - 0.07, 0.8 - 0.035], rtol=1e-12)
    np.testing.assert_allclose(tunas_reward(accuracy, cost, 84.0, beta=-0.5), [0.75, 0.3, 0.55], rtol=1e-12)


def test_rewards_join_the_costs_of_an_evaluate_function() -> None:
    codes = np.zeros((3, 1), dtype=np.int32)
    both = with_tunas_reward(with_mnasnet_reward(three_devices, "pi_ms", 30.0), "phone_ms", 10.0, name="on_phone")
    costs = both(codes)
    np.testing.assert_allclose(costs["reward"], [0.7, 0.75 * 2**0.07, 0.8 * 2**-0.07])
    np.testing.assert_allclose(costs["on_phone"], [0.7 - 0.035, 0.75 - 0.014, 0.8 - 0.007])
    doubled = with_cost(both, "twice", lambda given: 2 * given["reward"])(codes)
    np.testing.assert_array_equal(doubled["twice"], 2 * costs["reward"])


def test_rewards_of_impossible_costs_and_targets_are_refused() -> None:
    one = np.ones(1)
    with pytest.raises(ValueError, match=r"target of a reward is a cost above 0; got 0.0"):
        mnasnet_reward(one, one, 0.0)
    with pytest.raises(ValueError, match=r"costs above 0; the least is 0.0"):
        tunas_reward(one, 0 * one, 1.0)
    with pytest.raises(ValueError, match=r"beta takes reward away .* below 0; got 0.07"):
        tunas_reward(one, one, 1.0, beta=0.07)
