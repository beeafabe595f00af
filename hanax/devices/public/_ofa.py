"""Once-for-All MobileNetV3 networks as others write them: kernel sizes and expansions of 20 blocks, five depths.

Shapes: `n` networks, `d` decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from hanax.devices.public._folder import PublicDataError
from hanax.search_spaces import RESOLUTION, SearchSpace, graph_features

N_STAGES, N_BLOCKS = 5, 4
LENGTHS = {"ks": N_STAGES * N_BLOCKS, "e": N_STAGES * N_BLOCKS, "d": N_STAGES}


def encode_ofa(
    space: SearchSpace, records: Sequence[Any], resolutions: Sequence[Any], where: str
) -> Int32[np.ndarray, "n d"]:
    """Canonical codes in `space` of records with the lists ``ks``, ``e`` and ``d``.

    Raises:
        PublicDataError: A record is not of that form, or `space` does not offer one of its options.
    """
    rows = []
    for number, (record, resolution) in enumerate(zip(records, resolutions, strict=True)):
        if not isinstance(record, Mapping) or not all(
            isinstance(record.get(key), list) and len(record[key]) == length for key, length in LENGTHS.items()
        ):
            raise PublicDataError(f"{where}: network {number} should have lists ks and e of 20 and d of 5 numbers")
        options = {RESOLUTION: resolution}
        for stage in range(N_STAGES):
            options[f"stage{stage + 1}.depth"] = record["d"][stage]
            for block in range(N_BLOCKS):
                slot = N_BLOCKS * stage + block
                options[f"stage{stage + 1}.block{block + 1}.kernel_size"] = record["ks"][slot]
                options[f"stage{stage + 1}.block{block + 1}.expand_ratio"] = record["e"][slot]
        for decision in space.decisions:
            if options[decision.name] not in decision.options:
                raise PublicDataError(
                    f"{where}: network {number} has {decision.name} {options[decision.name]!r}; "
                    f"the space offers {decision.options}"
                )
        rows.append([decision.options.index(options[decision.name]) for decision in space.decisions])
    return space.canonical(np.array(rows, dtype=np.int32))


def macs_and_params(space: SearchSpace, codes: Int32[np.ndarray, "n d"]) -> dict[str, Int64[np.ndarray, " n"]]:
    """The columns ``macs`` and ``params`` of these networks."""
    names, sums = graph_features(space, codes)
    return {name: sums[:, names.index(name)].astype(np.int64) for name in ("macs", "params")}
