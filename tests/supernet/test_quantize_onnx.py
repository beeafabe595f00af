"""Models in int8: what is in the files, that onnxruntime executes them in integers, and how well they compute."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from hanax.search_spaces import Graph, mobilenet_v3
from hanax.supernet import fold_batch_norm, quantize_onnx, quantize_onnx_dynamically, random_weights, run_onnx, to_onnx
from hanax.supernet._weights import Weights

SPACE = mobilenet_v3(
    resolutions=(16,), n_classes=5, kernel_sizes=(3,), expand_ratios=(3,), depths=(1, 2), stem_width=8, stem_stride=1,
    stage_widths=(8, 16), stage_strides=(1, 2), stage_activations=("relu", "hswish"),
    stage_squeeze_excite=(False, True), head_width=32, feature_width=32,
)  # fmt: skip
GRAPH = SPACE.graph(SPACE.largest)
WEIGHTED = [op for op in GRAPH.operators if op.is_weighted]
N_CONVS = sum(op.kind == "conv" for op in WEIGHTED)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(GRAPH, np.random.default_rng(0))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, *GRAPH.input_shape), dtype=np.float32)


@pytest.fixture(scope="module")
def float_model(weights: Weights) -> bytes:
    return to_onnx(GRAPH, weights, batch=None)


@pytest.fixture(scope="module")
def int8_model(float_model: bytes, images: np.ndarray) -> bytes:
    return quantize_onnx(float_model, images)


class Nodes:
    """A model's nodes by their outputs, and its constants."""

    def __init__(self, model: bytes) -> None:
        graph = onnx.load_from_string(model).graph
        self.all = list(graph.node)
        self.kinds = Counter(node.op_type for node in graph.node)
        self.maker = {output: node for node in graph.node for output in node.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def named(self, name: str) -> onnx.NodeProto:
        (node,) = [node for node in self.all if node.name == name]
        return node

    def behind(self, name: str, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integers (empty for an activation), scale and zero point of an input of the node called `name`."""
        integers, scale, zero_point = self.maker[self.named(name).input[place]].input
        return self.constants.get(integers, np.empty(0)), self.constants[scale], self.constants[zero_point]


def executed_kinds(model: bytes, folder: Path) -> Counter[str]:
    """The operators that onnxruntime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def by_onnxruntime(model: bytes, images: np.ndarray, folder: Path) -> bytes:
    """`model` in int8 by onnxruntime's quantizer, told what `quantize_onnx` does."""
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    class Images:
        def __init__(self) -> None:
            self.left = [{"image": images}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    original, inferred, target = (folder / f"{name}.onnx" for name in ("original", "inferred", "target"))
    original.write_bytes(model)
    quant_pre_process(original, inferred, skip_optimization=True, skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    how = {"quant_format": QuantFormat.QDQ, "per_channel": True, "reduce_range": True, **types}
    quantize_static(inferred, target, Images(), **how)
    return target.read_bytes()


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


def test_every_kernel_is_int8_with_a_symmetric_scale_per_output_channel(int8_model: bytes, weights: Weights) -> None:
    nodes, folded = Nodes(int8_model), fold_batch_norm(GRAPH, weights)
    assert nodes.kinds["Conv"] == N_CONVS
    for op in WEIGHTED:
        dequantized = nodes.maker[nodes.named(op.name).input[1]]
        assert dequantized.op_type == "DequantizeLinear"
        assert [attribute.i for attribute in dequantized.attribute if attribute.name == "axis"] == [0]
        kernel, scale, zero_point = (nodes.constants[name] for name in dequantized.input)
        assert (kernel.dtype, scale.shape) == (np.int8, (op.out_shape[0],))
        assert not zero_point.any()
        expected = folded[op.name]["kernel"].reshape(op.out_shape[0], -1)
        if op.activation == "hsigmoid":
            expected = expected / 6  # its integers end at 0 and 1, which is all that is left of a hard sigmoid
        np.testing.assert_allclose(scale, np.abs(expected).max(axis=1) / 64, rtol=1e-5)
        assert np.abs(kernel.reshape(expected.shape) * scale[:, None] - expected).max() <= 0.501 * scale.max()


def test_every_weighted_operator_reads_and_writes_uint8_activations(int8_model: bytes) -> None:
    nodes = Nodes(int8_model)
    readers = {name: node for node in nodes.all for name in node.input}
    for op in WEIGHTED:
        node = nodes.named(op.name)
        read, written = nodes.maker[node.input[0]], readers[node.output[0]]
        assert (read.op_type, written.op_type) == ("DequantizeLinear", "QuantizeLinear")
        for pair in (read, written):
            assert nodes.constants[pair.input[1]].shape == ()
            assert nodes.constants[pair.input[2]].dtype == np.uint8


def test_scales_span_what_the_network_computes_for_the_images(int8_model: bytes, images: np.ndarray) -> None:
    nodes = Nodes(int8_model)
    (quantize,) = [node for node in nodes.all if node.op_type == "QuantizeLinear" and node.input[0] == "image"]
    scale, zero_point = (nodes.constants[name] for name in quantize.input[1:])
    assert scale == pytest.approx((images.max() - images.min()) / 255, rel=1e-5)
    assert zero_point == pytest.approx(-images.min() / scale, abs=0.51)


def test_onnxruntime_executes_every_convolution_in_integers(
    int8_model: bytes, float_model: bytes, tmp_path: Path
) -> None:
    fixed, dynamic = executed_kinds(int8_model, tmp_path), quantize_onnx_dynamically(float_model)
    assert (fixed["QLinearConv"], fixed["Conv"], fixed["QGemm"], fixed["Gemm"]) == (N_CONVS, 0, 1, 0)
    found = Nodes(dynamic)
    assert (found.kinds["ConvInteger"], found.kinds["MatMulInteger"]) == (N_CONVS, 1)
    assert found.kinds["Conv"] == found.kinds["Gemm"] == found.kinds["MatMul"] == 0
    kernels = [found.constants[node.input[1]] for node in found.all if node.op_type == "ConvInteger"]
    assert {kernel.dtype for kernel in kernels} == {np.dtype(np.uint8)}


def test_logits_are_those_of_the_network_to_a_few_percent(
    int8_model: bytes, float_model: bytes, images: np.ndarray
) -> None:
    others = np.random.default_rng(2).standard_normal((64, *GRAPH.input_shape), dtype=np.float32)
    for unseen in (images, others):
        expected = run_onnx(float_model, unseen)
        assert 0 < relative_rms(run_onnx(int8_model, unseen), expected) < 0.1
        assert 0 < relative_rms(run_onnx(quantize_onnx_dynamically(float_model), unseen[:6]), expected[:6]) < 0.1


def test_a_scale_per_channel_serves_channels_of_very_different_size(float_model: bytes, images: np.ndarray) -> None:
    """What one scale per tensor would lose: the small channels' kernels would all be 0."""
    model = onnx.load_from_string(float_model)
    (kernel,) = [tensor for tensor in model.graph.initializer if tensor.name == "stem.conv.kernel"]
    values = numpy_helper.to_array(kernel) * np.geomspace(1e-4, 1, 8, dtype=np.float32)[:, None, None, None]
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    nodes = Nodes(quantize_onnx(model.SerializeToString(), images))
    dequantize = nodes.maker[nodes.named("stem.conv").input[1]]
    largest = np.abs(nodes.constants[dequantize.input[0]].astype(int)).max(axis=(1, 2, 3))
    assert (largest == 64).all()


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_fixed_batch_is_calibrated_on_all_images_and_keeps_its_batch(
    batch: int, weights: Weights, images: np.ndarray, int8_model: bytes
) -> None:
    fixed = quantize_onnx(to_onnx(GRAPH, weights, batch=batch), images)
    scales, expected = Nodes(fixed).constants, Nodes(int8_model).constants
    assert scales.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(scales[name], values, rtol=1e-4, atol=1.0 * (values.dtype != np.float32))
    assert run_onnx(fixed, images[:4]).shape == (4, 5)
    assert onnx.load_from_string(fixed).graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch


@pytest.mark.parametrize("seed", range(3))
def test_the_model_is_the_one_that_onnxruntimes_own_quantizer_makes(
    seed: int, images: np.ndarray, tmp_path: Path
) -> None:
    """Its scales, its integers, what is executed, and the logits to less than quantization itself changes them.

    But for hard sigmoids, which onnxruntime computes in float32: here they are part of the convolutions before them.
    """
    rng = np.random.default_rng(seed)
    graph = SPACE.graph(SPACE.decode(SPACE.sample(rng, 1))[0])
    weights = {
        name: {key: array + 0.3 * rng.random(array.shape, dtype=np.float32) for key, array in entries.items()}
        for name, entries in random_weights(graph, rng).items()
    }
    model = to_onnx(graph, weights, batch=None)
    ours, theirs = quantize_onnx(model, images), by_onnxruntime(model, images, tmp_path)
    kinds, their_kinds = executed_kinds(ours, tmp_path), executed_kinds(theirs, tmp_path)
    integer = ("QLinearConv", "QGemm", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool")
    assert [kinds[kind] for kind in integer] == [their_kinds[kind] for kind in integer]
    n_gates = sum(op.activation == "hsigmoid" for op in graph.operators)
    assert their_kinds["HardSigmoid"] - kinds["HardSigmoid"] == n_gates > 0
    found, expected = Nodes(ours), Nodes(theirs)
    for op in graph.operators:
        if not op.is_weighted:
            continue
        for place in (0, 1, 2):
            integers, scale, zero_point = found.behind(op.name, place)
            their_integers, their_scale, their_zero_point = expected.behind(op.name, place)
            if place and op.activation == "hsigmoid":
                np.testing.assert_allclose(6 * scale, their_scale, rtol=1e-5)
                continue
            np.testing.assert_allclose(scale, their_scale, rtol=1e-5)
            np.testing.assert_array_equal(zero_point, their_zero_point)
            if place:
                assert integers.dtype == their_integers.dtype
                off = np.abs(integers.astype(np.int64) - their_integers)
                assert off.max() <= max(1, 1e-5 * np.abs(integers.astype(np.int64)).max())
    assert relative_rms(run_onnx(ours, images), run_onnx(theirs, images)) < 0.02


def test_a_channel_whose_kernel_is_nearly_zero_keeps_its_bias(float_model: bytes, images: np.ndarray) -> None:
    """Its bias would not fit into int32 at the scale of its products."""
    model = onnx.load_from_string(float_model)
    by_name = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, values in (("stem.conv.kernel", [1e-12, 0.0]), ("stem.conv.bias", [0.7, 0.0])):
        array = numpy_helper.to_array(by_name[name]).copy()
        array[:2] = np.array(values, np.float32).reshape(2, *[1] * (array.ndim - 1))
        by_name[name].CopyFrom(numpy_helper.from_array(array, name))
    nodes = Nodes(quantize_onnx(model.SerializeToString(), images))
    integers, scale, _ = nodes.behind("stem.conv", 2)
    assert (integers * scale)[:2] == pytest.approx([0.7, 0.0], rel=1e-4)
    assert np.isfinite(scale).all() and (scale > 0).all()


def test_scales_need_images_of_finite_values(float_model: bytes, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="activation scales come from images; there are none"):
        quantize_onnx(float_model, images[:0])
    with pytest.raises(ValueError, match="is not finite; no scale can hold it"):
        quantize_onnx(float_model, images * np.float32(np.inf))


def test_the_same_model_gives_the_same_bytes_in_another_process(
    float_model: bytes, int8_model: bytes, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "model.onnx").write_bytes(float_model)
    program = (
        "import sys, hashlib, numpy, pathlib; from hanax.supernet import quantize_onnx, quantize_onnx_dynamically\n"
        "folder = pathlib.Path(sys.argv[1]); model = (folder / 'model.onnx').read_bytes()\n"
        "models = quantize_onnx(model, numpy.load(folder / 'images.npy')), quantize_onnx_dynamically(model)\n"
        "print(*[hashlib.sha256(made).hexdigest() for made in models])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    here = [hashlib.sha256(made).hexdigest() for made in (int8_model, quantize_onnx_dynamically(float_model))]
    assert there == here


def test_the_quantizer_says_nothing_and_leaves_nothing(
    float_model: bytes,
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantize_onnx(float_model, images)
    quantize_onnx_dynamically(float_model)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_any_shape_of_convolution_can_be_quantized(images: np.ndarray) -> None:
    """Also one without batch norms, and with operators that read one input twice."""
    from hanax.search_spaces import INPUT, Operator

    graph = Graph(
        GRAPH.input_shape,
        (
            Operator("stem", "conv", (INPUT,), (3, 16, 16), (6, 8, 8), 3, 2, has_bias=True, activation="relu"),
            Operator("grouped", "conv", ("stem",), (6, 8, 8), (6, 8, 8), 3, 1, 3, has_bias=True),
            Operator("twice", "add", ("grouped", "grouped"), (6, 8, 8), (6, 8, 8)),
            Operator("pool", "global_pool", ("twice",), (6, 8, 8), (6, 1, 1)),
            Operator("classify", "dense", ("pool",), (6, 1, 1), (3, 1, 1), has_bias=True),
        ),
    )
    model = to_onnx(graph, random_weights(graph, np.random.default_rng(0)))
    expected = run_onnx(model, images)
    assert relative_rms(run_onnx(quantize_onnx(model, images), images), expected) < 0.1
    assert relative_rms(run_onnx(quantize_onnx_dynamically(model), images), expected) < 0.1
