"""Model files: of extracted subnets, and of networks whose latency alone matters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from hanax.search_spaces import INT8, Arch, Graph, SearchSpace, precision_columns, precision_plan

if TYPE_CHECKING:
    from hanax.devices import DeviceSpec
    from hanax.supernet import QuantizedNet, Subnet, Weights

CHUNK = 2000
"""Images normalised at a time, to bound the memory."""

N_CALIBRATION = 16
"""Random images that set the scales of quantized models whose latency alone matters."""

FLOAT_FORMATS = ("onnx", "stablehlo", "mlir", "tflite", "ncnn")
"""Formats of `convert` that hold the network in float32, as it was scored."""

PARITY_SPACE: dict[str, Any] = {
    "resolutions": (32,),
    "n_classes": 10,
    "stem_stride": 1,
    "depths": (1, 2),
    "stage_widths": (16, 24, 32),
    "stage_strides": (2, 2, 1),
    "stage_activations": ("relu", "hswish", "hswish"),
    "stage_squeeze_excite": (False, True, True),
    "head_width": 64,
    "feature_width": 64,
}
"""A small space that has every operator there is."""


def latency_model_builder(space: SearchSpace, model_format: str, batch: int, seed: int) -> Callable[[Arch], bytes]:
    """Builds the model file of an architecture with random weights: latency does not depend on their values.

    A space with number formats has integer models, each in its own formats.
    """
    if precision_columns(space):
        return lambda arch: export_integers(_random_integers(space, arch, seed), model_format, batch)
    build = graph_model_builder(model_format, batch, seed)
    return lambda arch: build(space.graph(arch))


def _random_integers(space: SearchSpace, arch: Arch, seed: int) -> QuantizedNet:
    """A network that computes nothing of use, in the formats of `arch`; the ranges of its tensors are all alike."""
    from hanax.supernet import IntegerKernel, Levels, QuantizedNet, tensor_names

    graph, plan, rng = space.graph(arch), precision_plan(space, arch), np.random.default_rng(seed)
    kernels = {}
    for op in graph.operators:
        if op.is_weighted:
            bits, channels = plan.kernels[op.name], op.out_shape[0]
            largest = 2 ** (bits - 1) - 1
            integers = rng.integers(-largest, largest, op.kernel_shape, dtype=np.int8, endpoint=True)
            scales = np.full(channels, 0.5 / largest / math.sqrt(integers[0].size), np.float32)
            kernels[op.name] = IntegerKernel(bits, integers, scales, np.zeros(channels, np.float32))
    bits_of = {name: plan.tensors.get(name, INT8) for name in tensor_names(graph)}
    tensors = {name: Levels(bits, 8.0 / 2**bits, 2 ** (bits - 1)) for name, bits in bits_of.items()}
    channels = graph.input_shape[0]
    return QuantizedNet(
        arch, graph, kernels, tensors, space.fingerprint, (0.5,) * channels, (0.5,) * channels, 0, "minmax"
    )  # fmt: skip


def graph_model_builder(model_format: str, batch: int, seed: int) -> Callable[[Graph], bytes]:
    """Builds the model file of a network with random weights."""
    from hanax.supernet import random_weights

    def build(graph: Graph) -> bytes:
        rng = np.random.default_rng(seed)
        weights = random_weights(graph, rng)
        images = rng.standard_normal((N_CALIBRATION, *graph.input_shape), dtype=np.float32)
        return convert(graph, weights, model_format, batch, images)

    return build


def convert(
    graph: Graph, weights: Weights, model_format: str, batch: int, images: Float32[np.ndarray, "n c h w"]
) -> bytes:
    """The model file of a network.

    Args:
        images: Normalised; formats with fixed scales take these from what the network computes for them.

    Raises:
        ValueError: There is no such format.
    """
    from hanax.supernet import (
        quantize_onnx,
        quantize_onnx_dynamically,
        to_mlir,
        to_ncnn,
        to_onnx,
        to_stablehlo,
        to_tflite,
        to_tflite_int8,
    )

    if model_format == "onnx":
        return to_onnx(graph, weights, batch=batch)
    if model_format == "onnx-int8":
        return quantize_onnx(to_onnx(graph, weights, batch=batch), images)
    if model_format == "onnx-dynamic-int8":
        return quantize_onnx_dynamically(to_onnx(graph, weights, batch=batch))
    if model_format == "stablehlo":
        return to_stablehlo(graph, weights, batch=batch)
    if model_format == "mlir":
        return to_mlir(graph, weights, batch=batch)
    if model_format == "vmfb-cortex-a53":
        from hanax.devices import compile_with_iree

        return compile_with_iree(to_mlir(graph, weights, batch=batch))
    if model_format == "tflite":
        return to_tflite(graph, weights, batch=batch)
    if model_format == "tflite-int8":
        return to_tflite_int8(graph, weights, images, batch=batch)
    if model_format == "ncnn":
        return to_ncnn(graph, weights, batch=batch)
    raise ValueError(f"there is no model format {model_format!r}")


def export_integers(net: QuantizedNet, model_format: str, batch: int | None = 1) -> bytes:
    """The model file of a quantized network, as ``onnx-int8`` or ``tflite-int8``.

    Raises:
        ValueError: The format holds no integers with fixed scales, or cannot hold this network or any batch (None).
    """
    from hanax.supernet import to_integer_tflite, to_qdq_onnx

    if model_format == "onnx-int8":
        return to_qdq_onnx(net, batch=batch)
    if model_format == "tflite-int8" and batch is not None:
        return to_integer_tflite(net, batch=batch)
    raise ValueError(
        f"a quantized network is exported as onnx-int8, or as tflite-int8 with a fixed batch; got {model_format!r} "
        f"with batch {batch}"
    )


def parity_case(
    spec: DeviceSpec, n_images: int, seed: int
) -> tuple[bytes, Float32[np.ndarray, "n c h w"], Float32[np.ndarray, "n classes"]]:
    """A small network with random weights as a model file for `spec`, random images, and the network's own logits."""
    graph, weights, images, expected = parity_network(n_images, seed)
    return convert(graph, weights, spec.model_format, spec.batch, images), images, expected


def parity_network(
    n_images: int, seed: int
) -> tuple[Graph, Weights, Float32[np.ndarray, "n c h w"], Float32[np.ndarray, "n classes"]]:
    """What `parity_case` converts: a small network with random weights, random images, and its logits for them."""
    import jax

    from hanax.search_spaces import mobilenet_v3
    from hanax.supernet import StaticNet, random_weights

    space = mobilenet_v3(**PARITY_SPACE)
    graph, rng = space.graph(space.largest), np.random.default_rng(seed)
    weights = random_weights(graph, rng)
    images = rng.standard_normal((n_images, *graph.input_shape), dtype=np.float32)
    return graph, weights, images, np.asarray(jax.jit(StaticNet(graph, weights))(images))


def export(subnet: Subnet, model_format: str, batch: int | None = 1) -> bytes:
    """The model file of an extracted subnet, in one of `FLOAT_FORMATS`.

    Raises:
        ValueError: The format is quantized, or `batch` is None (any batch) for a format that cannot hold that.
    """
    from hanax.supernet import to_onnx

    if model_format not in FLOAT_FORMATS:
        raise ValueError(f"a subnet is exported in float32, as {', '.join(FLOAT_FORMATS)}; got {model_format!r}")
    if model_format == "onnx":
        metadata = {
            "arch": str(subnet.arch),
            "space_fingerprint": subnet.space_fingerprint,
            "input_mean": json.dumps(subnet.input_mean),
            "input_std": json.dumps(subnet.input_std),
        }
        return to_onnx(subnet.graph, subnet.weights, batch=batch, metadata=metadata)
    if batch is None:
        raise ValueError(f"an export as {model_format} has a fixed batch; say which")
    no_images = np.empty((0, *subnet.graph.input_shape), np.float32)
    return convert(subnet.graph, subnet.weights, model_format, batch, no_images)


def exported_logits(subnet: Subnet, images: np.ndarray) -> np.ndarray:
    """Logits of the exported ONNX model of `subnet` for byte images (n, h, w, c), by onnxruntime."""
    from hanax.supernet import prepare, run_onnx

    model = export(subnet, "onnx", None)
    mean, std = (np.array(values, np.float32) for values in (subnet.input_mean, subnet.input_std))
    side = subnet.graph.input_shape[1]
    logits = []
    for start in range(0, len(images), CHUNK):
        prepared = np.asarray(prepare(images[start : start + CHUNK], mean, std, side))
        logits.append(run_onnx(model, np.ascontiguousarray(prepared.transpose(3, 0, 1, 2))))
    return np.concatenate(logits)


def count_correct(subnet: Subnet, images: np.ndarray, labels: np.ndarray) -> int:
    """How many of the byte images the exported model classifies correctly."""
    return int((exported_logits(subnet, images).argmax(axis=1) == labels).sum())
