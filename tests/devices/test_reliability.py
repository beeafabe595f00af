from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hanax.devices._reliability import Reliability, compare_passes

N = 60
TRUE_MS = np.exp(np.random.default_rng(0).permutation(np.linspace(0.0, 1.5, N)))


def compare(first: np.ndarray, second: np.ndarray, **changes: Any) -> Reliability:
    facts: dict[str, Any] = {
        "names": [f"0.{index}" for index in range(len(first))],
        "half_widths": np.full(len(first), 0.005),
        "rejected_share": 0.0,
        "unconverged_share": 0.0,
        "busy_share": 0.0,
    }
    return compare_passes(first, second, **(facts | changes))


def noise(size: float, seed: int = 1) -> np.ndarray:
    return np.asarray(np.exp(size * np.random.default_rng(seed).standard_normal(N)))


def test_passes_that_agree_are_reliable_and_need_no_reason() -> None:
    found = compare(TRUE_MS, TRUE_MS, busy_share=0.9)
    assert (found.n, found.spearman, found.kendall, found.drift, found.median_difference) == (N, 1.0, 1.0, 1.0, 0.0)
    assert found.is_reliable
    assert found.reasons == ()
    assert found.span == pytest.approx(math.exp(1.5))
    assert "Spearman 1.0000, Kendall tau 1.0000, median difference 0.00%" in str(found)


def test_ranks_have_the_known_correlations() -> None:
    # The textbook's case: sum of squared rank differences 2 + 2, so 1 - 6 * 4 / (5 * 24); two of ten pairs exchanged.
    found = compare(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 3.0, 5.0, 4.0]))
    assert found.spearman == pytest.approx(0.8)
    assert found.kendall == pytest.approx(0.6)


def test_a_drift_alone_does_not_change_ranks_but_is_told() -> None:
    found = compare(TRUE_MS, 1.2 * TRUE_MS)
    assert found.is_reliable
    assert found.drift == pytest.approx(1.2)
    assert found.median_difference == pytest.approx(0.2)
    assert "the second pass took 1.200 times as long" in str(found)


def test_low_reliability_is_explained_by_a_drift_and_the_load() -> None:
    found = compare(TRUE_MS, 1.1 * TRUE_MS * noise(0.3), busy_share=0.4, rejected_share=0.25, unconverged_share=0.5)
    assert not found.is_reliable
    text = str(found)
    assert "below 0.98: other processes had 40% of the cores" in text
    assert "25% of the rounds were rejected" in text
    assert "the intervals of 50% of the networks stayed wider" in text
    assert "the machine's own speed drifted" in text


def test_low_reliability_is_explained_by_a_drift_within_a_pass() -> None:
    first = TRUE_MS * np.linspace(1.0, 2.0, N)
    (reason,) = [text for text in compare(first, TRUE_MS).reasons if "within the first pass" in text]
    assert "the later a network was measured in it, the slower (rank correlation 1.00)" in reason
    assert not any("within the first pass" in text for text in compare(TRUE_MS, TRUE_MS * noise(0.3)).reasons)


def test_low_reliability_is_explained_by_too_narrow_a_range() -> None:
    narrow = TRUE_MS**0.01
    reasons = compare(narrow, narrow * noise(0.005)).reasons
    assert any("the latencies span a factor of only 1.0" in reason for reason in reasons)
    assert not any("span a factor" in reason for reason in compare(TRUE_MS, TRUE_MS * noise(0.3)).reasons)


def test_a_network_that_changed_is_named() -> None:
    second = TRUE_MS.copy()
    second[np.argmin(TRUE_MS)] *= 20
    reasons = compare(TRUE_MS, second).reasons
    assert any(
        f"1 network(s) changed by more than 10% beyond the drift, most of all 0.{np.argmin(TRUE_MS)} " in r
        for r in reasons
    )


def test_few_networks_are_a_reason() -> None:
    reasons = compare(TRUE_MS[:4], TRUE_MS[3::-1]).reasons
    assert any("4 networks are few" in reason for reason in reasons)


def test_latencies_that_are_all_equal_have_no_rank_correlation_and_are_not_reliable() -> None:
    found = compare(np.ones(5), np.ones(5))
    assert math.isnan(found.spearman)
    assert not found.is_reliable


def test_passes_over_different_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="two passes need the same networks"):
        compare(TRUE_MS[:1], TRUE_MS[:1])
