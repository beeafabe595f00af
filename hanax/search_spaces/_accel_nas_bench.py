"""MnasNet's space (Tan et al., 2019, arXiv:1807.11626) as Accel-NASBench has it (Ahmad et al., arXiv:2404.08005).

Shapes: `n` architectures.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int32

from hanax.search_spaces._space import RESOLUTION, Decision, SearchSpace

BLOCKS = tuple(range(7))

OPTIONS = {"expand_ratio": (1, 4, 6), "kernel_size": (3, 5), "n_layers": (1, 2, 3), "has_squeeze_excite": (0, 1)}
"""Of each block, in the order of the published files."""

N_LAYERS_OF_BLOCK_5 = (1, 2, 3, 4)


def accel_nas_bench() -> SearchSpace:
    """The decisions of Accel-NASBench at 224 px, without the network they shape: 10^11 architectures.

    Seven blocks, ``block0`` to ``block6``, each with an expansion, a kernel size, a number of layers, and with or
    without squeeze-and-excitation. For searching where costs are looked up or predicted; such a space has no graphs.
    """
    decisions = [Decision(RESOLUTION, (224,))]
    for block in BLOCKS:
        for setting, options in OPTIONS.items():
            is_longest = (block, setting) == (5, "n_layers")
            decisions.append(Decision(f"block{block}.{setting}", N_LAYERS_OF_BLOCK_5 if is_longest else options))
    return SearchSpace("accel_nas_bench", 3, 1000, tuple(decisions), ())


def accel_nas_bench_codes(options: Int[np.ndarray, "n 28"]) -> Int32[np.ndarray, "n 29"]:
    """Codes of the networks with these indices of options, in the order of the published files.

    Raises:
        ValueError: An index is out of range; names the decision.
    """
    codes = np.column_stack([np.zeros(len(options), dtype=np.int32), options.astype(np.int32)])
    accel_nas_bench().check(codes)
    return codes
