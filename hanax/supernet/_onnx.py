"""Architectures as ONNX models, built operator by operator from the graph with batch norms folded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, checker, helper, numpy_helper

from hanax.search_spaces import INPUT, Graph, Operator
from hanax.supernet._static_net import StaticNet
from hanax.supernet._weights import Weights, fold_batch_norm, n_classes

OPSET = 17
"""Old enough for every runtime in use, new enough for HardSwish (14)."""

IR_VERSION = 8
"""The file format that came with opset 17; onnxruntime reads it since 1.12."""

IMAGE, LOGITS = "image", "logits"


class ExportMismatchError(RuntimeError):
    """An exported model does not compute what the network computes."""


def to_onnx(
    graph: Graph, weights: Weights, *, batch: int | None = 1, metadata: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """An ONNX model: float32 normalised images (batch, channels, height, width) in, logits (batch, classes) out.

    The same arguments give the same bytes.

    Args:
        batch: Images per call; None leaves it to the caller of the model.
        metadata: Kept in the model's ``metadata_props``.

    Raises:
        ValueError: The weights do not fit the graph, or it does not end with a dense layer.
        UncalibratedError: A batch norm has no statistics.
    """
    width = n_classes(graph)
    folded = fold_batch_norm(graph, weights)
    names = {op.name: op.name for op in graph.operators} | {INPUT: IMAGE, graph.operators[-1].name: LOGITS}
    extent = "batch" if batch is None else batch
    model = helper.make_model(
        helper.make_graph(
            [node for op in graph.operators for node in _nodes(op, names)],
            "hanax",
            [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, (extent, *graph.input_shape))],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, (extent, width))],
            [
                numpy_helper.from_array(array, f"{name}.{entry}")
                for name, entries in folded.items()
                for entry, array in entries.items()
            ],
        ),
        producer_name="hanax",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, dict(metadata))
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _nodes(op: Operator, names: Mapping[str, str]) -> list[onnx.NodeProto]:
    """The ONNX nodes of `op`: its own, then its activation."""
    inputs, output = [names[name] for name in op.inputs], names[op.name]
    raw = output if op.activation == "none" else f"{op.name}.raw"
    if op.is_weighted:
        inputs += [f"{op.name}.kernel", f"{op.name}.bias"]
    nodes = []
    if op.kind == "conv":
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                [raw],
                name=op.name,
                kernel_shape=[op.kernel_size] * 2,
                strides=[op.stride] * 2,
                pads=[op.kernel_size // 2] * 4,
                group=op.groups,
            )
        )
    elif op.kind == "dense":
        flat = f"{op.name}.flat"
        nodes.append(helper.make_node("Flatten", inputs[:1], [flat], name=flat))
        nodes.append(helper.make_node("Gemm", [flat, *inputs[1:]], [raw], name=op.name, transB=1))
    else:
        kind = {"global_pool": "GlobalAveragePool", "multiply": "Mul", "add": "Add"}[op.kind]
        nodes.append(helper.make_node(kind, inputs, [raw], name=op.name))
    if op.activation == "relu":
        nodes.append(helper.make_node("Relu", [raw], [output], name=f"{op.name}.relu"))
    elif op.activation == "hswish":
        nodes.append(helper.make_node("HardSwish", [raw], [output], name=f"{op.name}.hswish"))
    elif op.activation == "hsigmoid":
        nodes.append(
            helper.make_node("HardSigmoid", [raw], [output], name=f"{op.name}.hsigmoid", alpha=1 / 6, beta=0.5)
        )
    return nodes


def check_onnx(
    model: bytes,
    graph: Graph,
    weights: Weights,
    images: Float32[np.ndarray, "n c h w"],
    tolerance: float = 1e-4,
) -> float:
    """Largest absolute difference of logits between `model` in onnxruntime and `StaticNet`, over `images`.

    A model of fixed batch is run on that many images at a time.

    Raises:
        ExportMismatchError: The difference is above `tolerance`, or not a number.
        ValueError: There are no images, or their number is not a multiple of the model's batch.
    """
    exported = run_onnx(model, images)
    # Compiled for a handful of images: the compiler's own time is what counts.
    compiled = jax.jit(StaticNet(graph, weights), compiler_options={"xla_backend_optimization_level": 0})
    network = np.asarray(compiled(images))
    error = float(np.max(np.abs(exported - network)))
    if not error <= tolerance:
        raise ExportMismatchError(
            f"the ONNX model's logits differ by {error:.3g} from the network's; at most {tolerance:g} is allowed "
            f"(the network's largest logit is {float(np.max(np.abs(network))):.3g})"
        )
    return error


def run_onnx(
    model: bytes, images: Float32[np.ndarray, "n c h w"], chunk: int = 500
) -> Float32[np.ndarray, "n classes"]:
    """Logits of an exported model for normalised `images`, by onnxruntime on this machine's CPU.

    Args:
        chunk: Images at a time, for a model of any batch; a model of fixed batch takes its own.

    Raises:
        ValueError: There are no images, or their number is not a multiple of the model's fixed batch.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    extent = session.get_inputs()[0].shape[0]
    batch = extent if isinstance(extent, int) else chunk
    if len(images) == 0 or (isinstance(extent, int) and len(images) % batch):
        raise ValueError(f"the model takes {batch} images at a time; got {len(images)}, which is no multiple of it")
    starts = range(0, len(images), batch)
    return np.concatenate([session.run([LOGITS], {IMAGE: images[start : start + batch]})[0] for start in starts])
