"""Model files: of extracted subnets, and of networks whose latency alone matters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hanax.search_spaces import Arch, SearchSpace

if TYPE_CHECKING:
    from hanax.supernet import Subnet

CHUNK = 2000
"""Images normalised at a time, to bound the memory."""


def latency_model_builder(space: SearchSpace, model_format: str, batch: int, seed: int) -> Callable[[Arch], bytes]:
    """Builds the model file of an architecture with random weights: latency does not depend on their values."""
    from hanax.supernet import random_weights, to_onnx, to_stablehlo

    convert = {"onnx": to_onnx, "stablehlo": to_stablehlo}[model_format]

    def build(arch: Arch) -> bytes:
        graph = space.graph(arch)
        return convert(graph, random_weights(graph, np.random.default_rng(seed)), batch=batch)

    return build


def export(subnet: Subnet, model_format: str, batch: int | None = 1) -> bytes:
    """The model file of an extracted subnet, in ``onnx`` or ``stablehlo``.

    Raises:
        ValueError: `batch` is None (any batch) for a format that cannot hold that.
    """
    from hanax.supernet import to_onnx, to_stablehlo

    if model_format == "onnx":
        metadata = {
            "arch": str(subnet.arch),
            "space_fingerprint": subnet.space_fingerprint,
            "input_mean": json.dumps(subnet.input_mean),
            "input_std": json.dumps(subnet.input_std),
        }
        return to_onnx(subnet.graph, subnet.weights, batch=batch, metadata=metadata)
    if batch is None:
        raise ValueError("a StableHLO export has a fixed batch; say which")
    return to_stablehlo(subnet.graph, subnet.weights, batch=batch)


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
