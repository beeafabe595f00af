"""ONNX models in 8 bits: with fixed scales, as QDQ pairs (QuantizeLinear, DequantizeLinear), or with dynamic ones.

Fixed scales follow what onnxruntime's documentation advises for CPUs, int8 weights and uint8 activations, and give the
model that onnxruntime's own quantizer gives (`tests/supernet/test_quantize_onnx.py`), in a tenth of its time: a table
of latencies needs hundreds. Processors without 8-bit dot products (VNNI on x86) may saturate their 16-bit sums, which
costs accuracy and no time.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, checker, helper, numpy_helper

from hanax.supernet._onnx import IMAGE, LOGITS

IN_INTEGERS = frozenset({"Conv", "Gemm", "Add", "Mul", "GlobalAveragePool", "Flatten"})
"""Operators that runtimes execute in integers between QDQ pairs; the others compute in float32."""

LARGEST_KERNEL = 64
"""Half of what int8 holds: x86 processors without VNNI add two products of uint8 and int8 in 16 bits, where the sum of
larger ones is cut off, and the logits are wrong. Twice 64 * 255 fits."""
LARGEST_BIAS = 2**30
"""Half of what int32 holds: the rest is for the rounding of scales, and for what the bias is added to."""

CALIBRATION_CHUNK = 8
"""Images at a time, to bound the memory."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How a tensor's values become uint8: ``round(x / scale) + zero_point``."""

    scale: np.float32
    zero_point: np.uint8


def quantize_onnx(model: bytes, images: Float32[np.ndarray, "n c h w"]) -> bytes:
    """`model`, as `to_onnx` makes it, in int8 with fixed scales, as QDQ pairs.

    Weights are int8 from -64 to 64 (`LARGEST_KERNEL` says why), symmetric, with a scale per output channel; biases are
    int32. Activations are uint8 with one scale and zero point per tensor, from the least and the largest value that the
    network computes for `images`. A ReLU after a convolution goes: the range of what it writes does its work. The same
    arguments give the same bytes.

    Args:
        images: Normalised.

    Raises:
        ValueError: There are no images, or the network's values for them are not finite.
    """
    if len(images) == 0:
        raise ValueError("activation scales come from images; there are none")
    quantized = onnx.load_from_string(model)
    graph = quantized.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = _without_relu(graph.node)
    scales = _scales(model, nodes, images)
    made, constants = list[onnx.NodeProto](), dict[str, np.ndarray]()

    def add(nodes: list[onnx.NodeProto], integers: Mapping[str, np.ndarray]) -> None:
        made.extend(nodes)
        constants.update(integers)

    add(*_pair(IMAGE, IMAGE, _rounded(IMAGE), scales[IMAGE]))
    for node in nodes:
        (output,) = node.output
        own = {name: weights[name] for name in node.input if name in weights}
        if own:
            add(*_integer_weights(own, scales[node.input[0]].scale))
        node.input[:] = [_rounded(name) if name in scales or name in own else name for name in node.input]
        if output == LOGITS:
            node.output[0] = f"{LOGITS}.real"
        made.append(node)
        if output in scales:
            add(*_pair(node.output[0], output, LOGITS if output == LOGITS else _rounded(output), scales[output]))
    del graph.node[:], graph.initializer[:]
    graph.node.extend(made)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return _checked(quantized)


def quantize_onnx_dynamically(model: bytes) -> bytes:
    """`model`, as `to_onnx` makes it, in 8 bits with activation scales that are found anew in every run.

    Made by onnxruntime's quantizer: convolutions become ConvInteger, the classifier MatMulInteger. Weights are uint8
    with one scale per tensor, the only form of ConvInteger that onnxruntime executes on a CPU. The same model gives the
    same bytes.
    """
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:  # the quantizer works on files
        original, inferred, target = (Path(folder, f"{name}.onnx") for name in ("original", "inferred", "target"))
        original.write_bytes(model)
        # Batch norms are folded already, so there is nothing to optimise before, and no shape is symbolic.
        quant_pre_process(original, inferred, skip_optimization=True, skip_symbolic_shape=True)
        quantize_dynamic(inferred, target, weight_type=QuantType.QUInt8)
        return _checked(onnx.load(target))


def _without_relu(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, but a convolution that only a ReLU reads writes in its place, and the ReLU is left out."""
    readers = Counter(name for node in nodes for name in node.input)
    relus = {node.input[0]: node for node in nodes if node.op_type == "Relu" and readers[node.input[0]] == 1}
    kept, replaced = [], set[str]()
    for node in nodes:
        if node.op_type == "Conv" and node.output[0] in relus:
            relu = relus[node.output[0]]
            node.output[0] = relu.output[0]
            replaced.add(relu.name)
        if node.name not in replaced:
            kept.append(node)
    return kept


def _scales(model: bytes, nodes: Sequence[onnx.NodeProto], images: Float32[np.ndarray, "n c h w"]) -> dict[str, Scale]:
    """The scale of every activation that an operator in `IN_INTEGERS` reads or writes, by name."""
    touched = [name for node in nodes if node.op_type in IN_INTEGERS for name in (*node.input, *node.output)]
    ranges = _ranges(model, list(dict.fromkeys(touched)), images)
    return {name: _scale(low, high) for name, (low, high) in ranges.items()}


def _ranges(
    model: bytes, names: Sequence[str], images: Float32[np.ndarray, "n c h w"]
) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each tensor, weights aside, while `model` computes the logits of `images`."""
    import onnxruntime

    probe = onnx.load_from_string(model)
    graph = probe.graph
    weights = {tensor.name for tensor in graph.initializer}
    activations = [name for name in names if name not in weights]
    extremes = [(f"{name}.{kind}", kind, name) for name in activations for kind in ("ReduceMin", "ReduceMax")]
    graph.node.extend(helper.make_node(kind, [name], [extreme], keepdims=0) for extreme, kind, name in extremes)
    graph.output.extend(helper.make_tensor_value_info(extreme, TensorProto.FLOAT, []) for extreme, _, _ in extremes)
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the work is small, and one thread adds in one order
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    asked, starts = [extreme for extreme, _, _ in extremes], range(0, len(images), CALIBRATION_CHUNK)
    found = np.array([session.run(asked, {IMAGE: images[start : start + CALIBRATION_CHUNK]}) for start in starts])
    if not np.isfinite(found).all():
        raise ValueError("what the network computes for these images is not finite; no scale can hold it")
    low, high = found[:, 0::2].min(axis=0).tolist(), found[:, 1::2].max(axis=0).tolist()
    return dict(zip(activations, zip(low, high, strict=True), strict=True))


def _scale(low: float, high: float) -> Scale:
    """256 steps that span a range and 0; 0 is a step, as padding and ReLU need it exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    if scale == 0:
        return Scale(np.float32(1), np.uint8(0))
    return Scale(scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


def _rounded(name: str) -> str:
    """The name of a tensor after it went through integers."""
    return f"{name}.rounded"


def _pair(source: str, name: str, target: str, scale: Scale) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The nodes, and their constants, that round the tensor `source` to uint8 and write it as real values, `target`."""
    constants: dict[str, np.ndarray] = {
        f"{name}.scale": np.array(scale.scale),
        f"{name}.zero_point": np.array(scale.zero_point),
    }
    nodes = [
        helper.make_node("QuantizeLinear", [source, *constants], [f"{name}.uint8"], name=f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.uint8", *constants], [target], name=f"{name}.dequantize"),
    ]
    return nodes, constants


def _integer_weights(
    weights: Mapping[str, np.ndarray], input_scale: np.float32
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The nodes, and their constants, that make a kernel from int8 and its bias from int32, with a scale per channel.

    A bias has the scale of the products that it is added to. Where that is too small for int32 to hold the bias, since
    the channel's kernel is nearly 0, the kernel's scale is raised.

    Args:
        weights: The kernel and the bias, by name, in this order.
    """
    (kernel, kernel_values), (bias, bias_values) = weights.items()
    channels = kernel_values.reshape(len(kernel_values), -1).astype(np.float64)
    least = np.abs(bias_values, dtype=np.float64) / (float(input_scale) * LARGEST_BIAS)
    scale = np.maximum(np.abs(channels).max(axis=1) / LARGEST_KERNEL, least).astype(np.float32)
    scale[scale == 0] = 1
    bias_scale = (scale.astype(np.float64) * float(input_scale)).astype(np.float32)
    kernel_integers = np.rint(channels / scale[:, None].astype(np.float64)).astype(np.int8).reshape(kernel_values.shape)
    bias_integers = np.rint(bias_values / bias_scale.astype(np.float64)).astype(np.int32)
    nodes, constants = list[onnx.NodeProto](), dict[str, np.ndarray]()
    for name, integers, per_channel in ((kernel, kernel_integers, scale), (bias, bias_integers, bias_scale)):
        zeros = np.zeros(len(integers), integers.dtype)
        entries = {f"{name}.integers": integers, f"{name}.scale": per_channel, f"{name}.zero_point": zeros}
        node = helper.make_node("DequantizeLinear", list(entries), [_rounded(name)], name=f"{name}.dequantize", axis=0)
        nodes.append(node)
        constants |= entries
    return nodes, constants


def _checked(model: onnx.ModelProto) -> bytes:
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
