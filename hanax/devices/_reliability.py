"""Reliability of a table: how well two passes over the same networks, at other times and in another order, agree.

An interval tells how much the rounds of one pass scatter. It cannot tell what stays for minutes: the machine's clock
speed, a neighbour, where memory happened to lie. A second pass, in a new process, shows all of it (Mytkowicz et al.,
2009, doi:10.1145/1508244.1508275, on how large such effects are).

Shapes: `n` networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RELIABLE = 0.98
"""Rank correlation of two passes that a table should reach."""

LEAST_DRIFT = 0.03
"""Change of the machine's speed between passes that is worth a word."""

MANY_REJECTED = 0.1
MANY_UNCONVERGED = 0.1
BUSY = 0.1
FAR_APART = 0.1
"""Shares: of rejected rounds, of rows whose interval stayed wide, of the cores that others had, of difference between
two passes of one network (drift taken out), beyond which each is named as a reason."""

FEWEST_NETWORKS = 20
"""With fewer, one exchanged pair of neighbours moves the rank correlation by a hundredth or so."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Agreement of two passes over the same networks.

    Attributes:
        n: Networks that both passes measured.
        spearman: Rank correlation; NaN where all latencies of a pass are equal.
        kendall: Kendall's tau-b; NaN as well.
        median_difference: Median over networks of the relative difference, second to first pass.
        drift: Median over networks of second over first pass: how much slower the machine itself was. It does not
            change ranks.
        span: Ratio of the largest to the smallest latency, both passes together.
        reasons: Why `spearman` is below `RELIABLE`, as far as the table can tell; empty if it is not.
    """

    n: int
    spearman: float
    kendall: float
    median_difference: float
    drift: float
    span: float
    reasons: tuple[str, ...]

    @property
    def is_reliable(self) -> bool:
        """Whether the rank correlation reaches `RELIABLE`."""
        return self.spearman >= RELIABLE

    def __str__(self) -> str:
        text = (
            f"reliability of {self.n} networks measured twice: Spearman {self.spearman:.4f}, Kendall tau "
            f"{self.kendall:.4f}, median difference {self.median_difference:.2%}; the second pass took "
            f"{self.drift:.3f} times as long as the first"
        )
        if self.is_reliable:
            return text
        why = "; ".join(self.reasons) or "none of the known reasons shows in the table"
        return f"{text}. That is below {RELIABLE}: {why}"


def compare_passes(
    first_ms: Float[np.ndarray, " n"],
    second_ms: Float[np.ndarray, " n"],
    names: Sequence[str],
    *,
    half_widths: Float[np.ndarray, " n"],
    rejected_share: float,
    unconverged_share: float,
    busy_share: float,
) -> Reliability:
    """The reliability of two passes, with reasons if it is low.

    Args:
        names: Of the networks.
        half_widths: Of their combined 95 % intervals, as shares of the latency.
        rejected_share: Of all rounds of both passes.
        unconverged_share: Of the networks, those whose interval stayed wider than asked for.
        busy_share: Typical share of the cores that others had; NaN if nobody knows.

    Raises:
        ValueError: Fewer than two networks, or arrays of different length.
    """
    from scipy.stats import kendalltau, spearmanr

    n = len(first_ms)
    if n < 2 or not n == len(second_ms) == len(names) == len(half_widths):
        raise ValueError(
            f"two passes need the same networks, two or more; got {n}, {len(second_ms)} latencies of {len(names)}"
        )
    varies = bool(np.ptp(first_ms) > 0 and np.ptp(second_ms) > 0)
    spearman = float(spearmanr(first_ms, second_ms).statistic) if varies else math.nan
    change = np.log(second_ms / first_ms)
    drift = float(np.exp(np.median(change)))
    both = np.concatenate([first_ms, second_ms])
    span = float(both.max() / both.min())
    reasons: list[str] = []
    if not spearman >= RELIABLE:
        reasons = [
            *_load(rejected_share, unconverged_share, busy_share),
            *_change(drift, change, names),
            *_range(first_ms, second_ms, span, half_widths),
        ]
    return Reliability(
        n=n,
        spearman=spearman,
        kendall=float(kendalltau(first_ms, second_ms).statistic) if varies else math.nan,
        median_difference=float(np.median(np.abs(second_ms / first_ms - 1.0))),
        drift=drift,
        span=span,
        reasons=tuple(reasons),
    )


def _load(rejected_share: float, unconverged_share: float, busy_share: float) -> list[str]:
    reasons = []
    if busy_share > BUSY:
        reasons.append(f"other processes had {busy_share:.0%} of the cores while it was measured")
    if rejected_share > MANY_REJECTED:
        reasons.append(f"{rejected_share:.0%} of the rounds were rejected for stolen time")
    if unconverged_share > MANY_UNCONVERGED:
        reasons.append(f"the intervals of {unconverged_share:.0%} of the networks stayed wider than asked for")
    return reasons


def _change(drift: float, change: Float[np.ndarray, " n"], names: Sequence[str]) -> list[str]:
    """The machine's speed between the passes, within them, and single networks that changed."""
    from scipy.stats import spearmanr

    reasons = []
    if abs(math.log(drift)) > LEAST_DRIFT:
        reasons.append(f"the machine's own speed drifted: the second pass took {drift:.2f} times as long as the first")
    left = change - math.log(drift)
    n = len(change)
    if n >= FEWEST_NETWORKS and np.ptp(left) > 0:
        trend = spearmanr(np.arange(n), left)
        if trend.pvalue < 0.01:
            reasons.append(
                "it drifted within the first pass: the later a network was measured in it, the "
                f"{'slower' if trend.statistic < 0 else 'faster'} (rank correlation {abs(trend.statistic):.2f})"
            )
    far = np.flatnonzero(np.abs(left) > FAR_APART)
    if len(far):
        worst = far[np.argmax(np.abs(left[far]))]
        reasons.append(
            f"{len(far)} network(s) changed by more than {FAR_APART:.0%} beyond the drift, most of all {names[worst]} "
            f"(by {np.expm1(abs(left[worst])):.0%})"
        )
    return reasons


def _range(
    first_ms: Float[np.ndarray, " n"],
    second_ms: Float[np.ndarray, " n"],
    span: float,
    half_widths: Float[np.ndarray, " n"],
) -> list[str]:
    reasons = []
    if len(first_ms) < FEWEST_NETWORKS:
        reasons.append(f"{len(first_ms)} networks are few for a rank correlation")
    # Ranks are kept only as far as neighbours lie further apart than they are known.
    gaps = np.diff(np.sort(np.log(first_ms * second_ms) / 2))
    spread = float(np.std(np.log(first_ms * second_ms) / 2))
    typical = float(np.median(half_widths))
    if spread < 5 * typical:
        reasons.append(
            f"the latencies span a factor of only {span:.2f}: neighbours in rank are typically "
            f"{float(np.median(gaps)):.2%} apart and known to +-{typical:.2%}"
        )
    return reasons
