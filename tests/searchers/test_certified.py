"""Constraints that hold with a probability: what they read, and how often what they let pass keeps its budget."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from hanax.experiments._fitting import costs_of, predicted_quantile
from hanax.predictors import RidgePredictor, predictor_features
from hanax.searchers import (
    Constraint,
    InfeasibleConstraintError,
    Nsga2,
    Objective,
    Problem,
    quantile_name,
    search,
)

LATENCY = Objective("latency_ms", "minimise", "ms")
NOISE_MS = 0.4


def test_a_certified_constraint_reads_a_quantile_by_its_name() -> None:
    upper, lower = (
        Constraint("latency_ms", at_most=30, unit="ms", probability=0.95),
        Constraint("accuracy", at_least=0.8, probability=0.99),
    )
    both = Constraint("latency_ms", at_most=30, at_least=10, probability=0.95)
    assert [str(part) for part in upper.reads] == ["latency_ms_p95 at most 30 ms"]
    assert [str(part) for part in lower.reads] == ["accuracy_p1 at least 0.8"]
    assert [str(part) for part in both.reads] == ["latency_ms_p2.5 at least 10", "latency_ms_p97.5 at most 30"]
    assert Constraint("macs", at_most=1).reads == (Constraint("macs", at_most=1),)
    assert str(upper) == "latency_ms at most 30 ms with probability 0.95"
    assert quantile_name("energy_mj", 0.999) == "energy_mj_p99.9"


@pytest.mark.parametrize("probability", [0.5, 1.0, 0.05, float("nan")])
def test_a_probability_that_certifies_nothing_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=f"certified with a probability above 0.5 and below 1.*; got {probability}"):
        Constraint("latency_ms", at_most=1.0, probability=probability)


def test_a_missing_quantile_is_asked_for_with_its_reason(tiny) -> None:
    problem = Problem(
        tiny.space, (LATENCY,), (Constraint("latency_ms", at_most=5, unit="ms", probability=0.95),), tiny.evaluate
    )
    with pytest.raises(
        ValueError,
        match=r"no cost 'latency_ms_p95', the 0.95 quantile of latency_ms, which latency_ms at most 5 ms with "
        "probability 0.95 needs; it gives accuracy, latency_ms, macs",
    ):
        problem.costs(tiny.codes)


def test_plain_and_certified_bounds_of_one_cost_go_together_but_not_the_same_twice(tiny) -> None:
    bounds = [Constraint("latency_ms", at_most=5.0), Constraint("latency_ms", at_most=6.0, probability=0.9)]
    problem = Problem(tiny.space, (LATENCY,), tuple(bounds), tiny.evaluate)
    costs = {"latency_ms": np.array([4.0, 10.0]), "latency_ms_p90": np.array([9.0, 12.0])}
    np.testing.assert_allclose(problem.violations(costs), [0.5, 1.0 + 1.0])
    with pytest.raises(ValueError, match="two constraints are named 'latency_ms_p90'"):
        Problem(tiny.space, (LATENCY,), (bounds[1], bounds[1]), tiny.evaluate)


def test_a_certificate_that_nothing_earns_is_explained_in_terms_of_the_quantile(tiny) -> None:
    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        costs = tiny.evaluate(codes)
        return costs | {"latency_ms_p95": costs["latency_ms"] + 1.0}

    least = float(tiny.latency_ms.min())
    certified = Constraint("latency_ms", at_most=least, unit="ms", probability=0.95)
    with pytest.raises(InfeasibleConstraintError) as caught:
        search(Problem(tiny.space, (LATENCY,), (certified,), evaluate), Nsga2(tiny.space), 100)
    assert caught.value.constraint == certified
    assert caught.value.closest == pytest.approx(least + 1.0)
    assert str(caught.value) == (
        f"none of 42 networks keeps latency_ms at most {least:g} ms with probability 0.95; "
        f"the closest has {least + 1:g} ms as its latency_ms_p95"
    )


def kept_share(latency_ms: np.ndarray, budget_ms: float, noise: np.random.Generator) -> float:
    return float(np.mean(latency_ms + NOISE_MS * noise.normal(size=(500, len(latency_ms))) <= budget_ms))


@pytest.mark.parametrize("probability", [0.8, 0.95, 0.99])
def test_networks_at_the_boundary_keep_their_budget_as_often_as_certified(toy, probability: float) -> None:
    """Measurements are normal with known deviation; the slowest networks that a constraint lets pass are measured."""
    budget_ms = float(np.median(toy.latency_ms))
    shift = NOISE_MS * norm.ppf(probability)
    name = quantile_name("latency_ms", probability)
    costs = {"latency_ms": toy.latency_ms, name: toy.latency_ms + shift, "accuracy": toy.accuracy}

    def slowest(constraint: Constraint) -> np.ndarray:
        passes = Problem(toy.space, (LATENCY,), (constraint,), toy.evaluate).violations(costs) == 0
        return np.sort(toy.latency_ms[passes])[-20:]

    rng = np.random.default_rng(0)
    certified = slowest(Constraint("latency_ms", at_most=budget_ms, probability=probability))
    plain = slowest(Constraint("latency_ms", at_most=budget_ms))
    error = 3 * np.sqrt(probability * (1 - probability) / 10_000)
    assert probability - error <= kept_share(certified, budget_ms, rng) <= probability + 0.03
    assert 0.5 - 0.015 <= kept_share(plain, budget_ms, rng) <= 0.56


def test_budgets_are_kept_as_certified_when_the_predictor_has_to_learn_the_noise(toy) -> None:
    """Ridge regressions of 60 noisy measurements, 30 times; each chooses the 20 networks nearest to the budget.

    The interval holds on average over all networks; of those nearest to the budget it holds for 0.88 of 0.9.
    """
    X = predictor_features(toy.space, toy.codes)
    budget_ms = float(np.quantile(toy.latency_ms, 0.6))
    certified, plain = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(X), 60, replace=False)
        predictor = RidgePredictor().fit(X[rows], toy.latency_ms[rows] + NOISE_MS * rng.normal(size=60))
        predicted = predictor.predict(X)
        quantile = predicted_quantile(predictor, X, 0.9, "latency_ms")
        for bound, shares in ((quantile, certified), (predicted, plain)):
            passes = np.flatnonzero(bound <= budget_ms)
            chosen = passes[np.argsort(predicted[passes])[-20:]]
            shares.append(kept_share(toy.latency_ms[chosen], budget_ms, rng))
    assert np.mean(certified) >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / 600)
    assert 0.4 <= np.mean(plain) <= 0.6


def test_too_few_measurements_to_certify_are_reported_and_not_guessed(tiny) -> None:
    X = predictor_features(tiny.space, tiny.codes)
    predictors = (RidgePredictor().fit(X, tiny.accuracy), RidgePredictor().fit(X, tiny.latency_ms))
    constraint = Constraint("latency_ms", at_most=5.0, probability=0.999)
    evaluate = costs_of(tiny.space, *predictors, constraints=(constraint,))
    with pytest.raises(ValueError, match=r"the 0.999 quantile of latency_ms is unknown: .*measure more networks"):
        evaluate(tiny.codes[:3])


def test_quantiles_are_the_ends_of_the_predicted_interval(tiny) -> None:
    X = predictor_features(tiny.space, tiny.codes)
    accuracy, latency = RidgePredictor().fit(X, tiny.accuracy), RidgePredictor().fit(X, tiny.latency_ms)
    constraints = (
        Constraint("latency_ms", at_most=5.0, probability=0.9),
        Constraint("accuracy", at_least=0.1, probability=0.9),
    )
    costs = costs_of(tiny.space, accuracy, latency, constraints=constraints)(tiny.codes)
    np.testing.assert_array_equal(costs["latency_ms_p90"], latency.predict_interval(X, 0.8)[1])
    np.testing.assert_allclose(costs["accuracy_p10"], accuracy.predict_interval(X, 0.8)[0])
