"""Distributions over networks in which every decision is drawn on its own.

Shapes: `d` decisions, `k` options of the decision that has most; what a decision does not have is 0 or masked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hanax.search_spaces import SearchSpace
from hanax.searchers._problem import Codes, Floats


def option_mask(space: SearchSpace) -> NDArray[np.bool_]:
    """Which options exist, shape (d, k)."""
    return np.asarray(np.arange(int(space.option_counts.max())) < space.option_counts[:, None])


def draw_networks(space: SearchSpace, rng: np.random.Generator, probabilities: Floats, n: int) -> Codes:
    """`n` canonical networks whose options have `probabilities`, shape (d, k); duplicates can occur."""
    drawn = (rng.random((n, len(probabilities), 1)) >= np.cumsum(probabilities, axis=1)).sum(axis=2)
    return space.canonical(np.minimum(drawn, space.option_counts - 1).astype(np.int32))


def most_likely_network(space: SearchSpace, probabilities: Floats) -> Codes:
    """The likeliest option of every decision, as a canonical network, shape (1, d)."""
    return space.canonical(probabilities.argmax(axis=1)[None].astype(np.int32))
