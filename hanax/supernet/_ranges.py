"""Between which values the tensors of a network lie: what integer formats take their scales from."""

from __future__ import annotations

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, helper

from hanax.search_spaces import INPUT, Graph
from hanax.supernet._onnx import IMAGE, LOGITS, to_onnx
from hanax.supernet._weights import Weights

Ranges = dict[str, tuple[float, float]]
"""Least and largest value by operator (or `INPUT`), and by ``NAME.raw`` before the hard swish of an operator."""

CHUNK = 2
"""Images at a time: more take more memory, and no less time, since their activations leave the caches."""


def activation_ranges(graph: Graph, weights: Weights, images: Float32[np.ndarray, "n c h w"]) -> Ranges:
    """The least and the largest value that the network computes for any of `images`, for each of its tensors.

    Computed by onnxruntime: compiling each network would take longer than all the rest of its conversion.

    Raises:
        ValueError: There are no images, or the weights do not fit the graph.
        UncalibratedError: A batch norm has no statistics.
    """
    import onnxruntime

    if len(images) == 0:
        raise ValueError("ranges come from images; there are none")
    names = [op.name for op in graph.operators]
    names += [f"{op.name}.raw" for op in graph.operators if op.activation == "hswish"]
    model = onnx.load_from_string(to_onnx(graph, weights, batch=None))
    del model.graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            source = LOGITS if name == graph.operators[-1].name else name
            model.graph.node.append(helper.make_node(kind, [source], [f"{name}/{kind}"], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(f"{name}/{kind}", TensorProto.FLOAT, ()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums of the same order, so the same bits, on any machine's number of cores
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    starts = range(0, len(images), CHUNK)
    extremes = np.array([session.run(None, {IMAGE: images[start : start + CHUNK]}) for start in starts])
    lowest, highest = extremes[:, ::2].min(axis=0), extremes[:, 1::2].max(axis=0)
    ranges = {name: (float(low), float(high)) for name, low, high in zip(names, lowest, highest, strict=True)}
    return ranges | {INPUT: (float(images.min()), float(images.max()))}
