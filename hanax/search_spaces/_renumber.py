"""Published numberings of operators as codes of a space.

Shapes: `n` architectures, `k` operators of each, `d` = k + 1 decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32


def renumber(operators: Int[np.ndarray, "n k"], names: Sequence[str], known: Sequence[str]) -> Int32[np.ndarray, "n d"]:
    """Codes at the first resolution, which is the first decision, of `operators`; their options follow `known`.

    Args:
        operators: Indices into `names`.

    Raises:
        ValueError: An index is out of range, or `names` are not `known` in some order.
    """
    if sorted(names) != sorted(known):
        raise ValueError(f"the operators of this space are {', '.join(known)}, in any order; got {', '.join(names)}")
    if operators.size and not 0 <= operators.min() <= operators.max() < len(names):
        raise ValueError(
            f"operators are indices from 0 to {len(names) - 1}; there is {operators.min()} or {operators.max()}"
        )
    option = np.array([known.index(name) for name in names], dtype=np.int32)
    return np.column_stack([np.zeros(len(operators), dtype=np.int32), option[operators]])
