"""The Flax network computes what its graph says, and can be trained on."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hanax.search_spaces import INPUT, Graph, Operator, mobilenet_v3
from hanax.supernet._static_net import StaticNet
from hanax.supernet._weights import UncalibratedError, Weights, random_weights

SPACE = mobilenet_v3(
    resolutions=(14, 16), n_classes=5, image_channels=1, expand_ratios=(3, 6), depths=(1, 2), stem_width=8,
    stem_stride=1, stage_widths=(8, 16, 24), stage_strides=(2, 2, 1), stage_activations=("relu", "hswish", "hswish"),
    stage_squeeze_excite=(False, True, True), head_width=48, feature_width=64,
)  # fmt: skip
TINY = mobilenet_v3(
    resolutions=(8,), n_classes=5, image_channels=1, kernel_sizes=(3,), expand_ratios=(3,), depths=(1,), stem_width=8,
    stage_widths=(16,), stage_strides=(2,), stage_activations=("hswish",), stage_squeeze_excite=(True,),
    head_width=32, feature_width=32,
)  # fmt: skip
TINY_GRAPH = TINY.graph(TINY.smallest)

# Compiles in a third of the usual time.
QUICK = {"xla_backend_optimization_level": 0}


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


def reference_logits(graph: Graph, weights: Weights, images: np.ndarray) -> np.ndarray:
    """The network in NumPy and float64, straight from the meaning of its operators."""
    values = {INPUT: images.astype(np.float64)}
    for op in graph.operators:
        inputs, entries = [values[name] for name in op.inputs], weights.get(op.name, {})
        if op.kind == "conv":
            y = _convolve(inputs[0], entries["kernel"], op)
        elif op.kind == "dense":
            y = inputs[0].reshape(len(images), -1) @ entries["kernel"].T
        elif op.kind == "global_pool":
            y = inputs[0].mean((2, 3), keepdims=True)
        else:
            y = inputs[0] * inputs[1] if op.kind == "multiply" else inputs[0] + inputs[1]
        per_channel = {name: array.reshape(-1, *[1] * (y.ndim - 2)) for name, array in entries.items()}
        if op.has_bias:
            y = y + per_channel["bias"]
        if op.has_norm:
            y = (y - per_channel["mean"]) / np.sqrt(per_channel["variance"] + 1e-5)
            y = y * per_channel["scale"] + per_channel["offset"]
        hard = np.clip(y + 3, 0, 6) / 6
        values[op.name] = {"none": y, "relu": np.maximum(y, 0), "hswish": y * hard, "hsigmoid": hard}[op.activation]
    return values[graph.operators[-1].name]


def _convolve(x: np.ndarray, kernel: np.ndarray, op: Operator) -> np.ndarray:
    margin = op.kernel_size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (op.kernel_size, op.kernel_size), (2, 3))
    windows = windows[:, :, :: op.stride, :: op.stride]
    windows = windows.reshape(len(x), op.groups, -1, *windows.shape[2:])
    y = np.einsum("ngchwab,gocab->ngohw", windows, kernel.reshape(op.groups, -1, *kernel.shape[1:]))
    return y.reshape(len(x), -1, *y.shape[3:])


@pytest.mark.parametrize("seed", range(2))
def test_logits_equal_those_of_a_plain_numpy_network(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = SPACE.graph(SPACE.decode(SPACE.sample(rng, 1))[0])
    weights = trained_like_weights(graph, seed)
    images = rng.standard_normal((3, *graph.input_shape), dtype=np.float32)
    logits = jax.jit(StaticNet(graph, weights), compiler_options=QUICK)(images)
    np.testing.assert_allclose(logits, reference_logits(graph, weights, images), rtol=1e-5, atol=1e-4)


def test_it_consists_of_the_parameters_that_the_graph_counts() -> None:
    net = StaticNet(TINY_GRAPH, random_weights(TINY_GRAPH, np.random.default_rng(0)))
    learned = jax.tree.leaves(nnx.state(net, nnx.Param))
    assert sum(array.size for array in learned) == TINY_GRAPH.params
    layers = {type(layer) for _, layer in nnx.iter_modules(net)}
    assert layers == {StaticNet, nnx.Dict, nnx.Conv, nnx.BatchNorm, nnx.Linear}


def test_it_gives_back_the_weights_it_was_made_from_and_keeps_copies_of_them() -> None:
    weights = trained_like_weights(TINY_GRAPH, 0)
    net = StaticNet(TINY_GRAPH, weights)
    before = {name: {entry: array.copy() for entry, array in entries.items()} for name, entries in weights.items()}
    for entries in weights.values():
        for array in entries.values():
            array[...] = 0
    after = net.weights()
    assert after.keys() == before.keys()
    for name, entries in before.items():
        assert after[name].keys() == entries.keys()
        for entry, array in entries.items():
            np.testing.assert_array_equal(after[name][entry], array, strict=True)


def test_it_can_be_fine_tuned() -> None:
    rng = np.random.default_rng(0)
    net = StaticNet(TINY_GRAPH, random_weights(TINY_GRAPH, rng))
    net.train()
    structure, params, statistics = nnx.split(net, nnx.Param, nnx.BatchStat)
    images = rng.standard_normal((8, *TINY_GRAPH.input_shape), dtype=np.float32)
    classes = jnp.arange(8) % 5

    def loss(params: nnx.State, statistics: nnx.State) -> tuple[jax.Array, nnx.State]:
        net = nnx.merge(structure, params, statistics, copy=True)
        scores = jax.nn.log_softmax(net(images))
        return -jnp.take_along_axis(scores, classes[:, None], axis=1).mean(), nnx.state(net, nnx.BatchStat)

    @partial(jax.jit, compiler_options=QUICK)
    def step(params: nnx.State, statistics: nnx.State) -> tuple[nnx.State, nnx.State, jax.Array, jax.Array]:
        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        params = jax.tree.map(lambda param, gradient: param - 0.01 * gradient, params, gradients)
        return params, statistics, value, jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradients)])

    losses = []
    for _ in range(5):
        params, statistics, value, largest_gradients = step(params, statistics)
        assert np.min(largest_gradients) > 0, "every parameter learns"
        losses.append(float(value))
    assert losses[-1] < losses[0]
    nnx.update(net, params, statistics)
    before = random_weights(TINY_GRAPH, np.random.default_rng(0))
    assert all(
        not np.array_equal(array, before[name][entry])
        for name, entries in net.weights().items()
        for entry, array in entries.items()
    ), "weights and statistics have moved"


def test_evaluation_leaves_the_statistics_alone() -> None:
    weights = trained_like_weights(TINY_GRAPH, 0)
    net = StaticNet(TINY_GRAPH, weights)
    nnx.jit(StaticNet.__call__)(net, np.ones((1, *TINY_GRAPH.input_shape), dtype=np.float32))
    np.testing.assert_array_equal(net.weights()["stem.conv"]["mean"], weights["stem.conv"]["mean"])


def test_weights_without_statistics_are_refused() -> None:
    weights = random_weights(TINY_GRAPH, np.random.default_rng(0))
    for op in TINY_GRAPH.operators:
        if op.has_norm:
            del weights[op.name]["mean"], weights[op.name]["variance"]
    with pytest.raises(UncalibratedError, match="calibrate the network on training images first"):
        StaticNet(TINY_GRAPH, weights)


def test_a_network_without_a_classifier_is_refused() -> None:
    graph = Graph((1, 4, 4), (Operator("pool", "global_pool", (INPUT,), (1, 4, 4), (1, 1, 1)),))
    with pytest.raises(ValueError, match="ends with pool, a global_pool"):
        StaticNet(graph, {})
