"""Spaces of published benchmarks: their networks cost what the files say, and their codes are those of the files."""

from __future__ import annotations

import numpy as np
import pytest

from hanax.search_spaces import (
    accel_nas_bench,
    accel_nas_bench_codes,
    graph_features,
    nas_bench_macro,
    nas_bench_macro_codes,
)

MACRO_MACS = {"00000000": 7_713_280, "00000001": 14_115_328, "00000002": 20_910_592, "00000011": 20_517_376}
"""Of the published file."""


def test_networks_of_nas_bench_macro_cost_what_the_file_says() -> None:
    space = nas_bench_macro()
    assert space.size == 6561
    codes = nas_bench_macro_codes(np.array([list(map(int, digits)) for digits in MACRO_MACS], dtype=np.int32))
    names, sums = graph_features(space, codes)
    np.testing.assert_array_equal(sums[:, names.index("macs")], list(MACRO_MACS.values()))
    assert sums[0, names.index("params")] == 387_882
    with pytest.raises(ValueError, match="from 0 to 2; there is 0 or 3"):
        nas_bench_macro_codes(np.array([[0, 0, 0, 0, 0, 0, 0, 3]], dtype=np.int32))


def test_accel_nas_bench_has_its_decisions_and_no_network() -> None:
    space = accel_nas_bench()
    assert space.size == 36**6 * 48 and space.slots == ()
    options = np.zeros((1, 28), dtype=np.int32)
    options[0, 22] = 3
    (arch,) = space.decode(accel_nas_bench_codes(options))
    assert space.options_of(arch)["block5.n_layers"] == 4
    options[0, 18] = 3
    with pytest.raises(ValueError, match=r"block4.n_layers: option 3 does not exist"):
        accel_nas_bench_codes(options)
