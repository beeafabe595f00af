"""What measurement says of candidates: a probability excuses none, and its promise is held against the count."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hanax.experiments._confirmed import breaks, certified_outcomes, confirmed_front
from hanax.searchers import Constraint, Objective

CANDIDATES = pd.DataFrame({
    "validation_accuracy": [0.90, 0.92, 0.91, 0.95],
    "measured_latency_ms": [1.0, 1.9, 2.1, 3.0],
    "macs": [1e6, 2e6, 3e6, 4e6],
})  # fmt: skip
CERTIFIED = Constraint("latency_ms", at_most=2.0, unit="ms", probability=0.95)


def test_a_certified_constraint_is_judged_by_its_plain_bound() -> None:
    np.testing.assert_array_equal(breaks(CANDIDATES, [CERTIFIED]), [False, False, True, True])
    both = [CERTIFIED, Constraint("accuracy", at_least=0.91, probability=0.9), Constraint("macs", at_most=3e6)]
    np.testing.assert_array_equal(breaks(CANDIDATES, both), [True, False, True, True])
    np.testing.assert_array_equal(breaks(CANDIDATES, []), [False] * 4)


def test_the_promise_stands_beside_what_was_measured() -> None:
    (outcome,) = certified_outcomes(CANDIDATES, [Constraint("macs", at_most=1.0), CERTIFIED])
    assert (outcome.constraint, outcome.kept, outcome.measured) == (CERTIFIED, 2, 4)
    assert outcome.words == ("2 of 4 candidates keep it when measured (50 %, 95 % interval 15 to 85 %); promised: 0.95")


def test_the_confirmed_front_is_that_of_the_measured_values() -> None:
    objectives = [Objective("accuracy", "maximise"), Objective("latency_ms", "minimise", "ms")]
    np.testing.assert_array_equal(confirmed_front(CANDIDATES, objectives), [True, True, False, True])
