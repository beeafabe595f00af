"""Intervals of proportions against SciPy's."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from hanax._intervals import wilson_interval


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (9134, 10_000), (1, 3)])
def test_wilson_interval_equals_scipy(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_interval_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got correct={correct}, n={n}"):
        wilson_interval(correct, n)
