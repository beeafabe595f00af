"""Small networks on which converted models are compared with the Flax network: random ones and odd ones."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np

from hanax.search_spaces import INPUT, Graph, Operator, mobilenet_v3
from hanax.supernet import StaticNet, Weights, random_weights

SPACE = mobilenet_v3(
    resolutions=(14, 15, 16), n_classes=5, image_channels=2, expand_ratios=(3, 6), depths=(1, 2), stem_width=8,
    stem_stride=1, stage_widths=(8, 16, 24), stage_strides=(2, 2, 1), stage_activations=("relu", "hswish", "hswish"),
    stage_squeeze_excite=(False, True, True), head_width=48, feature_width=64,
)  # fmt: skip
N_IMAGES = 16


def _random(seed: int) -> Graph:
    return SPACE.graph(SPACE.decode(SPACE.sample(np.random.default_rng(seed), 1))[0])


def _strided(extent: int, kernel_size: int) -> Graph:
    """Both kinds of convolution with stride 2, from images of that extent, and a convolution in groups."""
    half = -(-extent // 2)
    quarter = -(-half // 2)
    shapes = (4, extent, extent), (8, half, half), (16, quarter, quarter)
    return Graph(
        shapes[0],
        (
            Operator("dense", "conv", (INPUT,), shapes[0], shapes[1], kernel_size, 2, activation="relu"),
            Operator("depthwise", "conv", ("dense",), shapes[1], shapes[2], kernel_size, 2, 8, has_norm=True),
            Operator("grouped", "conv", ("depthwise",), shapes[2], shapes[2], 3, 1, 4, has_bias=True),
            Operator("pool", "global_pool", ("grouped",), shapes[2], (16, 1, 1)),
            Operator("classify", "dense", ("pool",), (16, 1, 1), (3, 1, 1), has_bias=True),
        ),
    )


def _gated(channels: int, extent: int) -> Graph:
    """A gate on a map, tensors with several readers, and activations behind operators without a kernel."""
    shape, vector = (channels, extent, extent), (channels, 1, 1)
    return Graph(
        shape,
        (
            Operator("pool", "global_pool", (INPUT,), shape, vector, activation="hswish"),
            Operator("gate", "conv", ("pool",), vector, vector, activation="hsigmoid"),
            Operator("scaled", "multiply", (INPUT, "gate"), shape, shape, activation="hswish"),
            Operator("sum", "add", ("scaled", INPUT), shape, shape, activation="relu"),
            Operator("product", "multiply", ("sum", "scaled"), shape, shape, activation="relu"),
            Operator("mean", "global_pool", ("product",), shape, vector),
            Operator("classify", "dense", ("mean",), vector, (3, 1, 1), has_bias=True),
        ),
    )


GRAPHS = {
    **{f"random {seed}": _random(seed) for seed in range(3)},
    **{f"{size}x{size} on {extent} px": _strided(extent, size) for extent in (7, 8) for size in (3, 5, 7)},
    # A vector of as many values as a map has columns could be taken for one along the columns.
    "8 channels of 8 px": _gated(8, 8),
    "5 channels of 3 px": _gated(5, 3),
}


def trained_like_weights(graph: Graph, seed: int) -> Weights:
    """Weights in which no batch norm is the identity and no bias zero."""
    rng = np.random.default_rng(seed)
    return {
        name: {
            entry: array if entry == "kernel" else rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
            for entry, array in entries.items()
        }
        for name, entries in random_weights(graph, rng).items()
    }


@cache
def case(name: str) -> tuple[Graph, Weights, np.ndarray, np.ndarray]:
    """The network `name` of `GRAPHS`, weights, images, and its logits for them."""
    graph = GRAPHS[name]
    weights = trained_like_weights(graph, 0)
    images = np.random.default_rng(1).standard_normal((N_IMAGES, *graph.input_shape), dtype=np.float32)
    compiled = jax.jit(StaticNet(graph, weights), compiler_options={"xla_backend_optimization_level": 0})
    logits = np.asarray(compiled(images))
    assert logits.std() > 0.01, "the logits depend on the images"
    return graph, weights, images, logits
