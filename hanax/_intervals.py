"""Intervals of proportions."""

from __future__ import annotations

import math


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Lower and upper end of the 95 % interval of a proportion, `correct` of `n`.

    The score interval (Wilson, 1927, doi:10.1080/01621459.1927.10502953).

    Raises:
        ValueError: `n` is not positive, or `correct` is not in 0..n.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"an accuracy needs 0 <= correct <= n and n >= 1; got correct={correct}, n={n}")
    z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
    centre = (correct + z**2 / 2) / (n + z**2)
    half_width = z / (n + z**2) * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)
