"""ONNX models in 8 bits: with fixed scales, as QDQ pairs (QuantizeLinear, DequantizeLinear), or with dynamic ones.

Fixed scales follow what onnxruntime's documentation advises for CPUs, int8 weights and uint8 activations, and give the
model that onnxruntime's own quantizer gives (`tests/supernet/test_quantize_onnx.py`), in a tenth of its time: a table
of latencies needs hundreds. Processors without 8-bit dot products (VNNI on x86) may saturate their 16-bit sums, which
costs accuracy and no time.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, checker, helper, numpy_helper

from hanax.search_spaces import INPUT, INT8, Graph
from hanax.supernet._fake_quant import LARGEST_KERNEL
from hanax.supernet._onnx import IMAGE, LOGITS, to_onnx
from hanax.supernet._quantized_net import IntegerKernel, Levels, QuantizedNet, levels_of, nearest_integers

IN_INTEGERS = frozenset({"Conv", "Gemm", "Add", "Mul", "GlobalAveragePool", "Flatten"})
"""Operators that runtimes execute in integers between QDQ pairs; the others compute in float32."""

CALIBRATION_CHUNK = 8
"""Images at a time, to bound the memory."""


def to_qdq_onnx(net: QuantizedNet, *, batch: int | None = 1) -> bytes:
    """An ONNX model of a quantized network: as of `to_onnx`, with its integers and levels as QDQ pairs.

    Kernels are int8 from -64 to 64 with a scale per output channel (fewer bits use fewer of these numbers), biases
    int32. Activations
    are uint8; one of fewer bits is cut off at its last level in integers. A ReLU after a convolution goes, and so does
    a hard sigmoid, which becomes part of kernel and bias: the levels of what it writes do the rest. The same arguments
    give the same bytes.

    Args:
        batch: Images per call; None leaves it to the caller of the model.
    """
    operators = [dataclasses.replace(op, has_norm=False, has_bias=op.is_weighted) for op in net.graph.operators]
    values = {name: {"kernel": kernel.values, "bias": kernel.bias} for name, kernel in net.kernels.items()}
    metadata = {
        "arch": str(net.arch),
        "space_fingerprint": net.space_fingerprint,
        "input_mean": json.dumps(net.input_mean),
        "input_std": json.dumps(net.input_std),
    }
    model = to_onnx(Graph(net.graph.input_shape, tuple(operators)), values, batch=batch, metadata=metadata)
    last = net.graph.operators[-1].name
    levels = {{INPUT: IMAGE, last: LOGITS}.get(name, name): found for name, found in net.tensors.items()}
    levels[f"{last}.flat"] = net.tensors[net.graph.operators[-1].inputs[0]]
    return _in_integers(model, levels, net.kernels)


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
    graph = onnx.load_from_string(model).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes, _ = _fused(graph.node)
    touched = [name for node in nodes if node.op_type in IN_INTEGERS for name in (*node.input, *node.output)]
    gates = {node.output[0]: (0.0, 1.0) for node in graph.node if node.op_type == "HardSigmoid"}
    ranges = _ranges(model, list(dict.fromkeys(touched)), images) | gates
    levels = {name: levels_of(INT8, *found) for name, found in ranges.items()}
    kernels = {
        node.name: nearest_integers(weights[node.input[1]], weights[node.input[2]], LARGEST_KERNEL)
        for node in nodes
        if len(node.input) > 1 and node.input[1] in weights
    }
    return _in_integers(model, levels, kernels)


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


def _in_integers(model: bytes, levels: Mapping[str, Levels], kernels: Mapping[str, IntegerKernel]) -> bytes:
    """`model`, as `to_onnx` makes it, with pairs at the tensors that `levels` names, and kernels by node.

    The one place that says what an integer model looks like, whatever its numbers come from.
    """
    quantized = onnx.load_from_string(model)
    graph = quantized.graph
    nodes, gates = _fused(graph.node)
    made, constants = list[onnx.NodeProto](), dict[str, np.ndarray]()

    def add(nodes: list[onnx.NodeProto], integers: Mapping[str, np.ndarray]) -> None:
        made.extend(nodes)
        constants.update(integers)

    add(*_pair(IMAGE, IMAGE, _rounded(IMAGE), levels[IMAGE]))
    for node in nodes:
        (output,) = node.output
        own = list(node.input[1:]) if node.name in kernels else []
        if own:
            kernel, scale = kernels[node.name].widened(), levels[node.input[0]].scale
            made_for = kernel.gated() if node.name in gates else kernel
            add(*_integer_weights(own, made_for.for_input(scale), scale))
        node.input[:] = [_rounded(name) if name in levels or name in own else name for name in node.input]
        if output == LOGITS:
            node.output[0] = f"{LOGITS}.real"
        made.append(node)
        if output in levels:
            add(*_pair(node.output[0], output, LOGITS if output == LOGITS else _rounded(output), levels[output]))
    del graph.node[:], graph.initializer[:]
    graph.node.extend(made)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return _checked(quantized)


def _fused(nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes without the ReLUs and hard sigmoids that alone read a convolution, which writes in their place.

    Returns:
        The nodes, and the names of the convolutions that are to do a hard sigmoid's work, see `IntegerKernel.gated`.
    """
    readers = Counter(name for node in nodes for name in node.input)
    activations = {
        node.input[0]: node for node in nodes if node.op_type in ("Relu", "HardSigmoid") and readers[node.input[0]] == 1
    }
    kept, replaced, gates = [], set[str](), set[str]()
    for node in nodes:
        if node.op_type == "Conv" and node.output[0] in activations:
            activation = activations[node.output[0]]
            node.output[0] = activation.output[0]
            replaced.add(activation.name)
            if activation.op_type == "HardSigmoid":
                gates.add(node.name)
        if node.name not in replaced:
            kept.append(node)
    return kept, gates


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


def _rounded(name: str) -> str:
    """The name of a tensor after it went through integers."""
    return f"{name}.rounded"


def _pair(source: str, name: str, target: str, levels: Levels) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The nodes, and their constants, that round the tensor `source` to uint8 and write it as real values, `target`."""
    constants: dict[str, np.ndarray] = {
        f"{name}.scale": np.array(levels.scale, np.float32),
        f"{name}.zero_point": np.array(levels.zero_point, np.uint8),
    }
    rounded = f"{name}.uint8"
    nodes = [helper.make_node("QuantizeLinear", [source, *constants], [rounded], name=f"{name}.quantize")]
    shared = list(constants)
    if levels.highest < 255:
        constants[f"{name}.highest"] = np.array(levels.highest, np.uint8)
        cut = f"{name}.cut"
        nodes.append(helper.make_node("Clip", [rounded, "", f"{name}.highest"], [cut], name=cut))
        rounded = cut
    nodes.append(helper.make_node("DequantizeLinear", [rounded, *shared], [target], name=f"{name}.dequantize"))
    return nodes, constants


def _integer_weights(
    names: Sequence[str], kernel: IntegerKernel, input_scale: float
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The nodes, and their constants, that make a kernel from int8 and its bias from int32, with a scale per channel.

    A bias has the scale of the products that it is added to.

    Args:
        names: Of the kernel and of the bias.
    """
    bias = kernel.bias_integers(input_scale), kernel.bias_scales(input_scale)
    nodes, constants = list[onnx.NodeProto](), dict[str, np.ndarray]()
    for name, (integers, scales) in zip(names, ((kernel.integers, kernel.scales), bias), strict=True):
        zeros = np.zeros(len(integers), integers.dtype)
        entries = {f"{name}.integers": integers, f"{name}.scale": scales, f"{name}.zero_point": zeros}
        node = helper.make_node("DequantizeLinear", list(entries), [_rounded(name)], name=f"{name}.dequantize", axis=0)
        nodes.append(node)
        constants |= entries
    return nodes, constants


def _checked(model: onnx.ModelProto) -> bytes:
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
