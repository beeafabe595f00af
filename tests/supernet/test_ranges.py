"""Ranges are those of the network's own values, over all images."""

from __future__ import annotations

import numpy as np
import pytest

from hanax.search_spaces import INPUT, Graph, Operator
from hanax.supernet._ranges import CHUNK, activation_ranges
from hanax.supernet._weights import Weights, random_weights

GRAPH = Graph(
    (2, 4, 4),
    (
        Operator("point", "conv", (INPUT,), (2, 4, 4), (3, 4, 4), has_bias=True, activation="hswish"),
        Operator("again", "add", ("point", "point"), (3, 4, 4), (3, 4, 4), activation="relu"),
        Operator("pool", "global_pool", ("again",), (3, 4, 4), (3, 1, 1)),
        Operator("classify", "dense", ("pool",), (3, 1, 1), (5, 1, 1), has_bias=True),
    ),
)
WEIGHTS: Weights = random_weights(GRAPH, np.random.default_rng(0))
IMAGES = np.random.default_rng(1).standard_normal((CHUNK + 3, *GRAPH.input_shape), dtype=np.float32)


def test_ranges_are_the_extremes_of_what_numpy_computes() -> None:
    raw = np.einsum("oi,nihw->nohw", WEIGHTS["point"]["kernel"][:, :, 0, 0], IMAGES)
    point = raw * np.clip(raw + 3, 0, 6) / 6
    again = np.maximum(2 * point, 0)
    pool = again.mean((2, 3))
    logits = pool @ WEIGHTS["classify"]["kernel"].T
    expected = {INPUT: IMAGES, "point.raw": raw, "point": point, "again": again, "pool": pool, "classify": logits}
    ranges = activation_ranges(GRAPH, WEIGHTS, IMAGES)
    assert ranges.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(ranges[name], (values.min(), values.max()), rtol=1e-5, atol=1e-6, err_msg=name)


def test_ranges_over_no_image_are_refused() -> None:
    with pytest.raises(ValueError, match="ranges come from images; there are none"):
        activation_ranges(GRAPH, WEIGHTS, IMAGES[:0])
