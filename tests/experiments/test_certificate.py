"""How far a search is from the exact optimum: right where it can be known, and said where it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hanax.experiments._certificate import _rounded_up, certified_search
from hanax.experiments._fitting import costs_of
from hanax.predictors import RidgePredictor, predictor_features
from hanax.search_spaces import graph_features, mobilenet_v3
from hanax.searchers import (
    Constraint,
    InfeasibleConstraintError,
    Nsga2,
    Objective,
    Problem,
    every_network,
    hypervolume,
    non_dominated,
)

ACCURACY, LATENCY = Objective("accuracy", "maximise"), Objective("latency_ms", "minimise", "ms")


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Both predictors of a run, on a space of 3,528 networks at two resolutions."""
    space = mobilenet_v3(
        resolutions=(24, 32), n_classes=10, stem_stride=1, stage_widths=(16, 24), stage_strides=(1, 2),
        stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), depths=(1, 2), kernel_sizes=(3, 5),
        head_width=64, feature_width=64,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    codes = space.sample(rng, 60)
    features, macs = predictor_features(space, codes), graph_features(space, codes)[1][:, 0]
    accuracy = RidgePredictor().fit(features, 0.05 * np.log(macs) + rng.normal(0.0, 0.005, 60))
    latency = RidgePredictor().fit(features, macs / 1e6 + rng.normal(0.0, 0.3, 60))
    networks = every_network(space)
    costs = costs_of(space, accuracy, latency)(networks)
    rows = {row.tobytes(): index for index, row in enumerate(networks)}

    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        known = [rows[row.tobytes()] for row in codes]
        return {name: values[known] for name, values in costs.items()}

    return Problem(space, (ACCURACY, LATENCY), (), evaluate)


def _truth(problem: Problem) -> np.ndarray:
    costs = problem.costs(every_network(problem.space))
    points = problem.losses(costs)[problem.violations(costs) <= 0]
    return np.unique(points[non_dominated(points)], axis=0)


def _search(problem: Problem, n_evaluations: int = 300, *, warm_start: bool = False):
    searcher = Nsga2(problem.space, population=50, seed=0)
    return certified_search(problem, searcher, n_evaluations, warm_start=warm_start)


@pytest.mark.parametrize("limit", [None, 6.0])
def test_the_gap_is_that_to_the_front_of_all_networks(problem: Problem, limit: float | None) -> None:
    if limit is not None:
        problem = replace(problem, constraints=(Constraint("latency_ms", at_most=limit, unit="ms"),))
    truth = _truth(problem)
    result, certificate = _search(problem)
    found = problem.losses({name: result.costs[name].to_numpy() for name in ("accuracy", "latency_ms")})[result.front]
    worst = np.array([-result.reference["accuracy"], result.reference["latency_ms"]])
    share = hypervolume(found, worst) / hypervolume(truth, worst)
    assert certificate.additive and not certificate.warm_start
    assert certificate.n_exact == len(truth)
    assert certificate.gap_hypervolume == pytest.approx(1 - share, abs=1e-9)
    assert certificate.gap_hypervolume > 0
    lost = max(found[found[:, 1] <= at, 0].min() - loss for loss, at in truth if at >= found[:, 1].min())
    assert certificate.gap_loss == pytest.approx(lost, abs=1e-9)
    assert "points more accurate" in certificate.sentence


def test_a_warm_start_makes_the_front_the_exact_one(problem: Problem) -> None:
    result, certificate = _search(problem, warm_start=True)
    assert certificate.gap_hypervolume == certificate.gap_loss == 0.0
    assert certificate.n_exact == len(_truth(problem)) <= len(result.front)
    assert certificate.sentence == (
        "The search began with the exact optimum under the predictors, a front of "
        f"{certificate.n_exact} networks, and ended with 100 % of its hypervolume; at no latency budget is there a "
        "network predicted to be better than the best that it found."
    )


def test_a_warm_start_leaves_half_of_the_evaluations_to_the_search(problem: Problem) -> None:
    result, certificate = _search(problem, 50, warm_start=True)
    assert len(result.codes) == 50 < certificate.n_exact
    assert 0 < certificate.gap_hypervolume < 0.05


def test_exact_sizes_may_be_objectives(problem: Problem) -> None:
    for names in (("accuracy", "macs"), ("params", "accuracy"), ("latency_ms", "params")):
        parts = tuple(ACCURACY if name == "accuracy" else Objective(name, "minimise") for name in names)
        of_sizes = replace(problem, objectives=parts)
        _, certificate = _search(of_sizes)
        assert certificate.n_exact == len(_truth(of_sizes))


@pytest.mark.parametrize(
    ("objectives", "constraints", "reason"),
    [
        ((ACCURACY,), (), "it is for searches with two objectives, and this one has 1"),
        ((ACCURACY, LATENCY), (Constraint("macs", at_most=1e9),), "a constraint on macs, which is no objective"),
        ((ACCURACY, LATENCY), (Constraint("latency_ms", at_least=1.0, unit="ms"),), "from its better side"),
        ((ACCURACY, Objective("peak_activation_bytes", "minimise")), (), "peak_activation_bytes does not add up"),
    ],
)
def test_where_nothing_can_be_certified_the_reason_is_given(problem, objectives, constraints, reason) -> None:
    def evaluate(codes):
        return problem.evaluate(codes) | {"peak_activation_bytes": codes.max(axis=1).astype(float)}

    _, certificate = _search(Problem(problem.space, objectives, constraints, evaluate), 60, warm_start=True)
    assert certificate.sentence.startswith("How far the search is from the exact optimum is not known: ")
    assert reason in certificate.sentence
    assert certificate.n_exact is None and not certificate.warm_start


def test_a_predictor_that_does_not_add_up_is_noticed(problem: Problem) -> None:
    def evaluate(codes):
        costs = problem.evaluate(codes)
        return costs | {"latency_ms": costs["latency_ms"] ** 1.01}

    result, certificate = _search(replace(problem, evaluate=evaluate), 60, warm_start=True)
    assert certificate.additive is False
    assert certificate.gap_hypervolume is None
    assert certificate.warm_start and len(result.front) > 25  # the front of the nearest sums is nearly the true one
    assert certificate.max_residual["latency_ms"] > 1e-6 > 1e-9 > certificate.max_residual["accuracy"]
    assert "latency_ms does not add up over blocks" in certificate.sentence


def test_a_space_too_large_to_solve_is_searched_all_the_same(problem: Problem, monkeypatch) -> None:
    monkeypatch.setattr("hanax.searchers._knapsack.MAX_SUMS", 100)
    result, certificate = _search(problem, 60, warm_start=True)
    assert len(result.codes) == 60
    assert "is not known: " in certificate.sentence and "partial sums" in certificate.sentence


def test_constraints_that_no_network_keeps_end_as_in_any_search(problem: Problem) -> None:
    impossible = replace(problem, constraints=(Constraint("latency_ms", at_most=-1e9, unit="ms"),))
    with pytest.raises(InfeasibleConstraintError):
        _search(impossible, 60, warm_start=True)


def test_predictions_that_differ_by_rounding_from_call_to_call_are_no_gap(problem: Problem) -> None:
    rng = np.random.default_rng(0)

    def evaluate(codes):
        return {
            name: values * (1 + 1e-15 * rng.normal(size=len(codes))) for name, values in problem.evaluate(codes).items()
        }

    _, certificate = _search(replace(problem, evaluate=evaluate), warm_start=True)
    assert abs(certificate.gap_hypervolume) < 1e-12 and abs(certificate.gap_loss) < 1e-12
    assert "and ended with 100 % of its hypervolume; at no latency budget is there a network" in certificate.sentence


def test_a_constant_prediction_adds_up(problem: Problem) -> None:
    def evaluate(codes):
        return {"accuracy": np.full(len(codes), 0.1), "latency_ms": problem.evaluate(codes)["latency_ms"]}

    result, certificate = _search(replace(problem, evaluate=evaluate), warm_start=True)
    assert (certificate.n_exact, certificate.gap_hypervolume, certificate.gap_loss) == (1, 0.0, 0.0)
    assert "100 % of its hypervolume" in certificate.sentence
    assert len(result.front) == 1


def test_what_no_network_exceeds_is_rounded_up() -> None:
    assert [_rounded_up(value) for value in (0.9141, 0.91, 12.301, 4567.2, -1.2349)] == [
        "0.915", "0.91", "12.4", "4.57e+03", "-1.23",
    ]  # fmt: skip
