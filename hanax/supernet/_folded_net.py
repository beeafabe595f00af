"""One network with its batch norms folded, as a function of its kernels, its biases and its number formats.

Unlike the blocks of a supernet it has an executable of its own, and can be differentiated any number of times, forwards
and backwards. What is rounded, and how, is what ``_quantized_blocks.py`` says of blocks, but for two things: kernels
come rounded, and the range of a tensor is given.

Shapes: activations ``c h w n`` (channels, height, width, images).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int

from hanax.search_spaces import FLOAT32, INPUT, INT8, Graph, Operator, PrecisionPlan
from hanax.supernet._depthwise import depthwise, smooth_depthwise
from hanax.supernet._fake_quant import (
    Calibration,
    Format,
    activation_range,
    kernel_scale,
    quantize_activation,
    quantize_kernel,
)
from hanax.supernet._layers import activate, convolve, pointwise
from hanax.supernet._ranges import Ranges
from hanax.supernet._subnet import Subnet
from hanax.supernet._weights import Weights, fold_batch_norm

Tensors = dict[str, Array]
"""Kernels or biases, by operator."""

CHUNK = 128
"""Images at a time where gradients are taken, to bound the memory."""


@dataclass(frozen=True, eq=False)
class FoldedNet:
    """A network without batch norms; its graph still says which operators had one, as policies go by that.

    Attributes:
        weights: ``kernel`` and ``bias`` of every operator with a kernel, see `fold_batch_norm`.
    """

    graph: Graph
    weights: Weights

    @classmethod
    def of(cls, subnet: Subnet) -> FoldedNet:
        """The network of an extracted subnet."""
        return cls(subnet.graph, fold_batch_norm(subnet.graph, subnet.weights))

    @cached_property
    def kernels(self) -> Tensors:
        """All kernels, by operator."""
        return _arrays(self.weights, "kernel")

    @cached_property
    def biases(self) -> Tensors:
        """All biases, by operator."""
        return _arrays(self.weights, "bias")

    def rounded_kernels(self, code: int) -> Weights:
        """Every kernel rounded to a number format: its ``kernel`` and, per output channel, its ``scale``.

        The kernels go through as the rows of one matrix: to compile for each shape would take a minute.
        """
        fan_in = {name: array.size // len(array) for name, array in self.kernels.items()}
        rows = np.concatenate(
            [
                np.pad(entries["kernel"].reshape(len(entries["kernel"]), -1), ((0, 0), (0, widest - fan_in[name])))
                for widest in [max(fan_in.values())]
                for name, entries in self.weights.items()
            ]
        )
        rounded, scales = (np.asarray(array) for array in _round_rows(rows, code))
        result: Weights = {}
        start = 0
        for name, entries in self.weights.items():
            kernel = entries["kernel"]
            stop = start + len(kernel)
            result[name] = {
                "kernel": rounded[start:stop, : fan_in[name]].reshape(kernel.shape),
                "scale": scales[start:stop, 0],
            }
            start = stop
        return result


def _arrays(weights: Weights, entry: str) -> Tensors:
    with jax.ensure_compile_time_eval():  # they are kept, so they must be arrays also where JAX is tracing
        return {name: jnp.asarray(entries[entry]) for name, entries in weights.items()}


@jax.jit
def _round_rows(rows: Array, code: Format) -> tuple[Array, Array]:
    return quantize_kernel(rows, code), kernel_scale(rows, code)[0]


def raw_name(name: str) -> str:
    """Name of the tensor before the hard swish of an operator."""
    return f"{name}.raw"


def tensor_names(graph: Graph) -> list[str]:
    """All that may be rounded: the input, what operators write, and what is before a hard swish."""
    names = [INPUT]
    for op in graph.operators:
        names += [raw_name(op.name), op.name] if op.activation == "hswish" else [op.name]
    return names


def tensor_codes(graph: Graph, plan: PrecisionPlan) -> Int[np.ndarray, " tensors"]:
    """Format of each of `tensor_names`; what is before a hard swish is in 8 bits."""
    return np.array([plan.tensors.get(name, INT8) for name in tensor_names(graph)], np.int32)


def float_plan(graph: Graph) -> PrecisionPlan:
    """No quantization, also of what is before a hard swish."""
    kernels = {op.name: FLOAT32 for op in graph.operators if op.is_weighted}
    return PrecisionPlan(kernels, dict.fromkeys(tensor_names(graph), FLOAT32))


def range_array(graph: Graph, ranges: Ranges) -> Float[np.ndarray, "tensors 2"]:
    """Least and largest value of each of `tensor_names`, as they are rounded: see ``_quantized_blocks.py``.

    Raises:
        ValueError: The range of a tensor is missing.
    """
    missing = [name for name in tensor_names(graph) if name not in ranges]
    if missing:
        raise ValueError(f"every tensor needs a range; there is none of {', '.join(missing[:5])}")
    found = np.array([ranges[name] for name in tensor_names(graph)], np.float32)
    gates = {op.name for op in graph.operators if op.activation == "hsigmoid"}
    raws = {raw_name(op.name) for op in graph.operators if op.activation == "hswish"}
    for position, name in enumerate(tensor_names(graph)):
        if name in gates:
            found[position] = (0.0, 1.0)
        elif name in raws:
            found[position, 0] = max(found[position, 0], -3.0)
    return found


def network_input(images: Float32[np.ndarray, "n c h w"]) -> Float[Array, "c h w n"]:
    """Normalised images in the layout of activations."""
    return jnp.asarray(np.ascontiguousarray(images.transpose(1, 2, 3, 0)))


def apply_operator(
    op: Operator, kernel: Array | None, bias: Array | None, inputs: Sequence[Array], *, twice: bool = False
) -> Float[Array, "c h w n"]:
    """What `op` computes, before its activation.

    Args:
        kernel, bias: Of an operator with a kernel.
        twice: Whether to stay with forms that can be differentiated forwards, and more than once; others are faster.
    """
    x = inputs[0]
    if op.kind == "global_pool":
        return x.mean(axis=(1, 2), keepdims=True)
    if op.kind == "multiply":
        return x * inputs[1]
    if op.kind == "add":
        return x + inputs[1]
    assert kernel is not None and bias is not None
    return _product(op, kernel, x, twice) + bias[:, None, None, None]


def _product(op: Operator, kernel: Array, x: Array, twice: bool) -> Array:
    if op.kind == "dense":
        return (kernel @ x.reshape(-1, x.shape[-1]))[:, None, None, :]
    if op.is_depthwise and op.out_shape[0] == op.in_shape[0]:
        return (smooth_depthwise if twice else depthwise)(x, kernel[:, 0], op.stride)
    if op.groups == 1 and op.kernel_size == 1 and op.stride == 1:
        matrix = kernel[:, :, 0, 0]
        if not twice:
            return pointwise(x, matrix)
        return (matrix @ x.reshape(len(x), -1)).reshape(len(kernel), *x.shape[1:])
    if op.groups == 1:
        return convolve(x, kernel, op.stride)
    half = op.kernel_size // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (op.stride,) * 2, [(half, half)] * 2, feature_group_count=op.groups,
        dimension_numbers=("CHWN", "OIHW", "CHWN"),
    )  # fmt: skip


def compute(
    graph: Graph,
    kernels: Mapping[str, Array],
    biases: Mapping[str, Array],
    x: Float[Array, "c h w n"],
    *,
    codes: Int[Array, " tensors"] | None = None,
    ranges: Float[Array, "tensors 2"] | None = None,
    rounded: frozenset[str] = frozenset(),
    twice: bool = False,
) -> tuple[Float[Array, "n classes"], Tensors]:
    """Logits, and every tensor by name as the operators read it.

    Args:
        codes: Formats of `tensor_names`.
        ranges: As `range_array` gives them.
        rounded: The tensors that may be in another format than float32.
        twice: See `apply_operator`.
    """
    positions = {name: position for position, name in enumerate(tensor_names(graph))}

    def point(name: str, value: Array) -> Array:
        if name not in rounded:
            return value
        assert codes is not None and ranges is not None
        low, high = ranges[positions[name]]
        return quantize_activation(value, low, high, codes[positions[name]])

    values = {INPUT: point(INPUT, x)}
    for op in graph.operators:
        y = apply_operator(op, kernels.get(op.name), biases.get(op.name), [values[name] for name in op.inputs],
                           twice=twice)  # fmt: skip
        if op.activation == "hswish":
            y = values[raw_name(op.name)] = point(raw_name(op.name), y)
        values[op.name] = point(op.name, activate(y, op.activation))
    return values[graph.operators[-1].name].reshape(-1, x.shape[-1]).T, values


def tensor_ranges(
    net: FoldedNet, images: Float32[np.ndarray, "n c h w"], calibration: Calibration = "minmax", code: int = INT8
) -> Ranges:
    """Between which values each tensor of the float network is to be rounded.

    Args:
        images: Normalised; all go through at once.
        calibration: How ranges are found.
        code: The format they are for, where that matters to `calibration`.

    Raises:
        ValueError: There are no images.
    """
    if len(images) == 0:
        raise ValueError("ranges come from images; there are none")
    found = np.asarray(_find_ranges(net.graph, net.kernels, net.biases, network_input(images), calibration, code))
    names = tensor_names(net.graph)
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, found, strict=True)}


@partial(jax.jit, static_argnames=("graph", "calibration"))
def _find_ranges(
    graph: Graph, kernels: Tensors, biases: Tensors, x: Array, calibration: Calibration, code: Format
) -> Array:
    _, values = compute(graph, kernels, biases, x)
    return jnp.stack([jnp.stack(activation_range(values[name], code, calibration)) for name in tensor_names(graph)])


def image_chunks(
    images: Float32[np.ndarray, "n c h w"], labels: Int[np.ndarray, " n"] | None, size: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Images in parts of equal size, their labels, and the weight of each image in a mean over all; 0 of fillers."""
    n_parts = -(-len(images) // size)
    size = -(-len(images) // n_parts)
    for start in range(0, len(images), size):
        rows = np.arange(start, start + size)
        chosen = np.minimum(rows, len(images) - 1)
        weight = np.where(rows < len(images), np.float32(1 / len(images)), np.float32(0))
        own = np.zeros(size, np.int32) if labels is None else labels[chosen].astype(np.int32)
        yield network_input(images[chosen]), jnp.asarray(own), jnp.asarray(weight)


def cross_entropies(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """Cross-entropy of each image, in nats."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]


@partial(jax.jit, static_argnames=("graph", "rounded"))
def scores(
    graph: Graph,
    rounded: frozenset[str],
    kernels: Tensors,
    biases: Tensors,
    codes: Array,
    ranges: Array,
    x: Array,
    labels: Array,
    weight: Array,
) -> Float[Array, " 2"]:
    """Cross-entropy and accuracy of a rounded network, weighted sums over the images; see `compute`."""
    logits, _ = compute(graph, kernels, biases, x, codes=codes, ranges=ranges, rounded=rounded)
    is_right = (logits.argmax(axis=1) == labels).astype(jnp.float32)
    return jnp.stack([weight @ cross_entropies(logits, labels), weight @ is_right])
