"""Every network of a small space."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._problem import Codes

ENUMERABLE = 100_000
"""Networks that a space may have to be listed in full."""


def every_network(space: SearchSpace) -> Codes:
    """Canonical codes of all networks of `space`, shape (`SearchSpace.size`, d), in lexical order.

    Raises:
        ValueError: There are more than `ENUMERABLE`.
    """
    if space.size > ENUMERABLE:
        raise ValueError(f"{space.name} has {space.size:.3g} networks; only up to {ENUMERABLE} can be listed")
    codes = np.zeros((1, len(space.decisions)), dtype=np.int32)
    for column, count in enumerate(space.option_counts):
        repeats = np.where(space.active(codes)[:, column], count, 1)
        first = np.cumsum(repeats) - repeats
        codes = np.repeat(codes, repeats, axis=0)
        codes[:, column] = np.arange(len(codes)) - np.repeat(first, repeats)
    return codes
