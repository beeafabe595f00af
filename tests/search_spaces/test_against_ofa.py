"""MACs and parameters equal those of the static nets that the `ofa` package builds.

The figures and their origin are in `ofa_reference_figures.json`; `benchmarks/ofa_reference_figures.py` writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hanax.search_spaces import RESOLUTION, SearchSpace, graph_features, mobilenet_v3

ROWS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("ofa_reference_figures.json").read_text())["rows"]
BLOCKS_PER_STAGE = 4


def options_of(row: dict[str, Any]) -> dict[str, int]:
    """The row's architecture as options of hanax's space; settings of unused blocks are left out."""
    options = {RESOLUTION: row["resolution"]}
    for stage, depth in enumerate(row["d"]):
        options[f"stage{stage + 1}.depth"] = depth
        for block in range(depth):
            name, index = f"stage{stage + 1}.block{block + 1}", stage * BLOCKS_PER_STAGE + block
            options |= {f"{name}.kernel_size": row["ks"][index], f"{name}.expand_ratio": row["e"][index]}
    return options


@pytest.fixture(scope="module")
def spaces() -> dict[float, SearchSpace]:
    return {width_mult: mobilenet_v3(width_mult=width_mult) for width_mult in {row["width_mult"] for row in ROWS}}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"width{row['width_mult']}-{row['macs']}")
def test_macs_and_parameters_equal_those_of_the_static_net_of_ofa(
    row: dict[str, Any], spaces: dict[float, SearchSpace]
) -> None:
    space = spaces[row["width_mult"]]
    arch = space.arch(options_of(row))
    graph = space.graph(arch)
    assert (graph.macs, graph.params) == (row["macs"], row["params"])
    names, features = graph_features(space, space.encode([arch]))
    assert [features[0, names.index(name)] for name in ("macs", "params")] == [row["macs"], row["params"]]


def test_the_figures_cover_both_widths_and_the_smallest_and_largest_nets() -> None:
    assert len({(row["width_mult"], row["macs"]) for row in ROWS}) >= 12
    for width_mult in (1.0, 1.2):
        rows = [row for row in ROWS if row["width_mult"] == width_mult]
        assert {(min(row["ks"]), max(row["e"]), max(row["d"])) for row in rows} >= {(3, 3, 2), (7, 6, 4)}
