"""The StableHLO model computes what the Flax network computes, in any process that has jax."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

from hanax.search_spaces import INPUT, Graph, Operator, mobilenet_v3
from hanax.supernet._stablehlo import _convolution, _export, to_mlir, to_stablehlo
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


def images_for(graph: Graph, n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, *graph.input_shape), dtype=np.float32)


def run(function: Callable[[jax.Array], jax.Array], images: np.ndarray) -> jax.Array:
    """The function's value, compiled in a third of the usual time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(images)


def flax_logits(graph: Graph, weights: Weights, images: np.ndarray) -> jax.Array:
    return run(StaticNet(graph, weights), images)


@pytest.mark.parametrize(("seed", "batch"), [(0, 1), (1, 3)])
def test_models_of_random_architectures_agree_with_the_flax_network(seed: int, batch: int) -> None:
    graph = SPACE.graph(SPACE.decode(SPACE.sample(np.random.default_rng(seed), 1))[0])
    weights, images = trained_like_weights(graph, seed), images_for(graph, batch)
    model = export.deserialize(bytearray(to_stablehlo(graph, weights, batch=batch)))
    np.testing.assert_allclose(run(model.call, images), flax_logits(graph, weights, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_a_strided_depthwise_convolution_agrees_on_a_map_that_is_not_square(kernel_size: int) -> None:
    graph = Graph(
        (4, 9, 5),
        (
            Operator("depthwise", "conv", (INPUT,), (4, 9, 5), (4, 5, 3), kernel_size, 2, 4, has_norm=True),
            Operator("point", "conv", ("depthwise",), (4, 5, 3), (6, 3, 2), 1, 2, activation="hswish"),
            Operator("pool", "global_pool", ("point",), (6, 3, 2), (6, 1, 1)),
            Operator("classify", "dense", ("pool",), (6, 1, 1), (3, 1, 1), has_bias=True),
        ),
    )
    weights, images = trained_like_weights(graph, 0), images_for(graph, 2)
    model = export.deserialize(bytearray(to_stablehlo(graph, weights, batch=2)))
    np.testing.assert_allclose(run(model.call, images), flax_logits(graph, weights, images), rtol=0, atol=1e-5)


def test_no_convolution_is_left_to_xla() -> None:
    model = export.deserialize(bytearray(to_stablehlo(TINY_GRAPH, trained_like_weights(TINY_GRAPH, 0))))
    assert "stablehlo.convolution" not in model.mlir_module()
    assert model.platforms == ("cpu",)


def test_mlir_keeps_each_convolution_of_the_graph_and_computes_the_same() -> None:
    """What the runtimes that read it make of the module is tested with them; here it is run by XLA."""
    weights, images = trained_like_weights(TINY_GRAPH, 0), images_for(TINY_GRAPH, 2)
    exported = _export(TINY_GRAPH, weights, 2, _convolution)
    assert to_mlir(TINY_GRAPH, weights, batch=2).startswith(b"ML\xefR")  # as MLIR bytecode does
    n_convolutions = sum(op.kind == "conv" for op in TINY_GRAPH.operators)
    assert exported.mlir_module().count("stablehlo.convolution") == n_convolutions > 3
    np.testing.assert_allclose(run(exported.call, images), flax_logits(TINY_GRAPH, weights, images), rtol=0, atol=1e-5)


def test_the_model_runs_in_a_process_that_has_only_jax(tmp_path: Path) -> None:
    weights, images = trained_like_weights(TINY_GRAPH, 0), images_for(TINY_GRAPH, 1)
    (tmp_path / "model").write_bytes(to_stablehlo(TINY_GRAPH, weights))
    np.save(tmp_path / "images.npy", images)
    program = """
import sys
sys.modules |= dict.fromkeys(("hanax", "flax", "onnx"))  # importing them fails
import jax, numpy
from jax import export
model = export.deserialize(bytearray(open("model", "rb").read()))
numpy.save("logits.npy", jax.jit(model.call)(numpy.load("images.npy")))
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    expected = flax_logits(TINY_GRAPH, weights, images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-4)


def test_a_grouped_convolution_is_refused_by_name() -> None:
    graph = Graph(
        (4, 3, 3),
        (
            Operator("grouped", "conv", (INPUT,), (4, 3, 3), (8, 3, 3), 3, 1, 2),
            Operator("pool", "global_pool", ("grouped",), (8, 3, 3), (8, 1, 1)),
            Operator("classify", "dense", ("pool",), (8, 1, 1), (3, 1, 1)),
        ),
    )
    with pytest.raises(ValueError, match="grouped: a convolution of 4 to 8 channels in 2 groups has no StableHLO form"):
        to_stablehlo(graph, trained_like_weights(graph, 0))


def test_weights_without_statistics_are_refused() -> None:
    weights = trained_like_weights(TINY_GRAPH, 0)
    del weights["stem.conv"]["variance"]
    with pytest.raises(UncalibratedError):
        to_stablehlo(TINY_GRAPH, weights)
