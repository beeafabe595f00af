from __future__ import annotations

import numpy as np
import pytest

from hanax.searchers import Constraint, Objective, Problem

LATENCY = Objective("latency_ms", "minimise", "ms")


def test_losses_are_minimised_whatever_the_direction(tiny) -> None:
    costs = tiny.problem().costs(tiny.codes[:3])
    losses = tiny.problem().losses(costs)
    np.testing.assert_array_equal(losses, np.column_stack([-tiny.accuracy[:3], tiny.latency_ms[:3]]))


def test_violations_add_up_in_units_of_the_bounds(tiny) -> None:
    constraints = (
        Constraint("latency_ms", at_most=10.0),
        Constraint("accuracy", at_least=0.8, at_most=0.9),
        Constraint("margin", at_least=0.0),
    )
    problem = Problem(tiny.space, (LATENCY,), constraints, tiny.evaluate)
    costs = {
        "latency_ms": np.array([5.0, 10.0, 15.0, 11.0, 1.0]),
        "accuracy": np.array([0.85, 0.9, 0.85, 0.4, 0.99]),
        "margin": np.array([0.0, 3.0, 1.0, 0.0, -0.5]),
    }
    np.testing.assert_allclose(problem.violations(costs), [0.0, 0.0, 0.5, 0.1 + 0.5, 0.1 + 0.5])


def test_a_problem_without_constraints_is_never_violated(tiny) -> None:
    assert not tiny.problem().violations(tiny.problem().costs(tiny.codes)).any()


def test_constraints_read_as_sentences() -> None:
    assert str(Constraint("latency_ms", at_most=30, unit="ms")) == "latency_ms at most 30 ms"
    assert str(Constraint("accuracy", at_least=0.8, at_most=0.9)) == "accuracy at least 0.8 and at most 0.9"


@pytest.mark.parametrize(("bounds", "message"), [
    ({}, "latency_ms needs a bound"),
    ({"at_most": 1.0, "at_least": 2.0}, "no value is at least 2.0 and at most 1.0"),
    ({"at_most": float("nan")}, "no value is at least None and at most nan"),
])  # fmt: skip
def test_bounds_that_mean_nothing_are_refused(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Constraint("latency_ms", **bounds)


def test_declarations_that_contradict_themselves_are_refused(tiny) -> None:
    with pytest.raises(ValueError, match="direction is 'minimise' or 'maximise'; got 'min'"):
        Objective("accuracy", "min")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one objective"):
        Problem(tiny.space, (), (), tiny.evaluate)
    with pytest.raises(ValueError, match="two objectives are named 'latency_ms'"):
        Problem(tiny.space, (LATENCY, LATENCY), (), tiny.evaluate)
    with pytest.raises(ValueError, match="two constraints are named 'macs'"):
        Problem(tiny.space, (LATENCY,), (Constraint("macs", 1.0), Constraint("macs", 2.0)), tiny.evaluate)


def test_costs_that_are_missing_misshaped_or_no_numbers_are_refused(tiny) -> None:
    def problem(**costs: np.ndarray) -> Problem:
        return Problem(tiny.space, (LATENCY,), (Constraint("macs", at_most=1e9),), lambda codes: costs)

    codes = tiny.codes[:2]
    with pytest.raises(ValueError, match="evaluate gives no cost 'macs'; it gives latency_ms, accuracy"):
        problem(latency_ms=np.ones(2), accuracy=np.ones(2)).costs(codes)
    with pytest.raises(ValueError, match=r"macs: 2 architectures need costs of shape \(2,\); got \(2, 1\)"):
        problem(latency_ms=np.ones(2), macs=np.ones((2, 1))).costs(codes)
    with pytest.raises(ValueError, match=f"macs of {tiny.space.decode(codes)[1]} is nan"):
        problem(latency_ms=np.ones(2), macs=np.array([1.0, np.nan])).costs(codes)
