"""The ONNX model computes what the Flax network computes, and says what it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from hanax.search_spaces import INPUT, Graph, Operator, mobilenet_v3
from hanax.supernet._onnx import ExportMismatchError, check_onnx, to_onnx
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


@pytest.mark.parametrize("seed", range(3))
def test_models_of_random_architectures_agree_with_the_flax_network(seed: int) -> None:
    graph = SPACE.graph(SPACE.decode(SPACE.sample(np.random.default_rng(seed), 1))[0])
    weights, images = trained_like_weights(graph, seed), images_for(graph, 3)
    one_by_one = check_onnx(to_onnx(graph, weights), graph, weights, images)
    assert 0 < one_by_one <= 1e-4
    assert check_onnx(to_onnx(graph, weights, batch=None), graph, weights, images) <= 1e-4


def test_a_strided_biased_and_grouped_convolution_is_exported() -> None:
    graph = Graph(
        (4, 7, 7),
        (
            Operator("grouped", "conv", (INPUT,), (4, 7, 7), (8, 4, 4), 3, 2, 2, has_bias=True, has_norm=True),
            Operator("point", "conv", ("grouped",), (8, 4, 4), (6, 2, 2), 1, 2, activation="relu"),
            Operator("pool", "global_pool", ("point",), (6, 2, 2), (6, 1, 1)),
            Operator("classify", "dense", ("pool",), (6, 1, 1), (3, 1, 1), has_bias=True),
        ),
    )
    weights = trained_like_weights(graph, 0)
    assert check_onnx(to_onnx(graph, weights), graph, weights, images_for(graph, 2)) <= 1e-5


def test_a_model_of_dynamic_batch_takes_any_number_of_images() -> None:
    session = onnxruntime.InferenceSession(to_onnx(TINY_GRAPH, trained_like_weights(TINY_GRAPH, 0), batch=None))
    assert [session.run(["logits"], {"image": images_for(TINY_GRAPH, n)})[0].shape for n in (1, 4)] == [(1, 5), (4, 5)]


def test_the_model_has_no_batch_norm_and_fits_old_runtimes() -> None:
    model = onnx.load_from_string(to_onnx(TINY_GRAPH, trained_like_weights(TINY_GRAPH, 0)))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version <= 9


def test_the_model_carries_its_metadata() -> None:
    metadata = {"arch": str(TINY.smallest), "space": TINY.fingerprint}
    model = to_onnx(TINY_GRAPH, trained_like_weights(TINY_GRAPH, 0), metadata=metadata)
    assert onnxruntime.InferenceSession(model).get_modelmeta().custom_metadata_map == metadata


def test_the_same_network_gives_the_same_bytes() -> None:
    weights = trained_like_weights(TINY_GRAPH, 0)
    first, second = (to_onnx(TINY_GRAPH, weights, metadata={"a": "1", "b": "2"}) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("difference", ["other weights", "not a number"])
def test_a_model_that_computes_something_else_fails_the_check(difference: str) -> None:
    weights = trained_like_weights(TINY_GRAPH, 0)
    other = trained_like_weights(TINY_GRAPH, 1)
    if difference == "not a number":
        other = {name: dict(entries) for name, entries in weights.items()}
        other["head.classify"]["bias"] = np.full(5, np.nan, dtype=np.float32)
    with pytest.raises(ExportMismatchError, match=r"differ by .* from the network's; at most 0\.0001 is allowed"):
        check_onnx(to_onnx(TINY_GRAPH, other), TINY_GRAPH, weights, images_for(TINY_GRAPH, 2))


@pytest.mark.parametrize("n_images", [0, 3])
def test_the_check_wants_whole_batches(n_images: int) -> None:
    weights = trained_like_weights(TINY_GRAPH, 0)
    with pytest.raises(ValueError, match=f"the model takes 2 images at a time; got {n_images}"):
        check_onnx(to_onnx(TINY_GRAPH, weights, batch=2), TINY_GRAPH, weights, images_for(TINY_GRAPH, n_images))


def test_weights_without_statistics_are_refused() -> None:
    weights = trained_like_weights(TINY_GRAPH, 0)
    del weights["stem.conv"]["variance"]
    with pytest.raises(UncalibratedError):
        to_onnx(TINY_GRAPH, weights)
