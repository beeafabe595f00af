"""Architectures as StableHLO, at inference: batch norms folded, in layout NHWC, channels innermost.

`to_mlir` keeps convolutions, for compilers that are good at them. `to_stablehlo` is for XLA on CPU, whose convolutions
are made for large batches, and has none left:

* 1x1: one GEMM.
* Depthwise: shift, multiply and add along the width for all kernel rows at once, then shift and add along the height.
  That is ``2 k`` taps to compile, not ``k * k``; it compiles in less time than the direct sum and runs no slower.
* Others without groups: one GEMM over shifted copies; meant for the few channels of a stem.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jaxtyping import Float, Float32

from hanax.search_spaces import INPUT, Graph, Operator
from hanax.supernet._layers import activate
from hanax.supernet._weights import Weights, fold_batch_norm, n_classes

ApplyWeighted = Callable[[Operator, Array, np.ndarray], Array]
"""Computes an operator that has a kernel, without bias and activation."""


def to_stablehlo(graph: Graph, weights: Weights, *, batch: int = 1) -> bytes:
    """A model file for XLA: float32 normalised images (batch, channels, height, width) in, logits (batch, classes) out.

    ``jax.export.deserialize(file).call`` is the function, on CPU; it needs jax and flatbuffers, not Hanax.

    Raises:
        ValueError: The weights do not fit the graph, or the network has another kind of convolution or end.
        UncalibratedError: A batch norm has no statistics.
    """
    return bytes(_export(graph, weights, batch, _weighted).serialize())


def to_mlir(graph: Graph, weights: Weights, *, batch: int = 1) -> bytes:
    """A module for compilers that read StableHLO, such as IREE's: MLIR bytecode that later versions of them read, too.

    Its only function, ``main``, takes float32 normalised images (batch, channels, height, width) to logits (batch,
    classes).

    Raises:
        ValueError: The weights do not fit the graph, or the network has another end.
        UncalibratedError: A batch norm has no statistics.
    """
    return bytes(_export(graph, weights, batch, _convolution).mlir_module_serialized)


def _export(graph: Graph, weights: Weights, batch: int, weighted: ApplyWeighted) -> export.Exported:
    n_classes(graph)
    folded = fold_batch_norm(graph, weights)

    def logits(image: Array) -> Array:
        return _forward(graph, folded, image, weighted)

    image = jax.ShapeDtypeStruct((batch, *graph.input_shape), jnp.float32)
    return export.export(jax.jit(logits), platforms=["cpu"])(image)


def _forward(
    graph: Graph, folded: Weights, image: Float[Array, "n c h w"], weighted: ApplyWeighted
) -> Float[Array, "n classes"]:
    values = {INPUT: jnp.transpose(image, (0, 2, 3, 1))}
    for op in graph.operators:
        inputs = [values[name] for name in op.inputs]
        values[op.name] = activate(_apply(op, inputs, folded.get(op.name), weighted), op.activation)
    return values[graph.operators[-1].name]


def _apply(op: Operator, inputs: list[Array], entries: dict[str, np.ndarray] | None, weighted: ApplyWeighted) -> Array:
    if op.kind == "global_pool":
        return inputs[0].mean((1, 2), keepdims=True)
    if op.kind == "multiply":
        return inputs[0] * inputs[1]
    if op.kind == "add":
        return inputs[0] + inputs[1]
    assert entries is not None, "folding gives every weighted operator its entries"
    y = weighted(op, inputs[0], entries["kernel"])
    return y + entries["bias"].reshape((1,) * (y.ndim - 1) + (-1,))


def _convolution(op: Operator, x: Array, kernel: np.ndarray) -> Array:
    if op.kind == "dense":
        return x.reshape(len(x), -1) @ kernel.T
    margin = kernel.shape[-1] // 2
    return jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel.transpose(2, 3, 1, 0)),
        (op.stride, op.stride),
        [(margin, margin)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=op.groups,
    )


def _weighted(op: Operator, x: Array, kernel: np.ndarray) -> Array:
    if op.kind == "dense":
        return x.reshape(len(x), -1) @ kernel.T
    if op.groups == 1:
        return _convolve(x, kernel.transpose(2, 3, 1, 0), op.stride)
    if op.is_depthwise and op.out_shape[0] == op.groups:
        return _depthwise(x, kernel[:, 0].transpose(1, 2, 0), op.stride)
    raise ValueError(
        f"{op.name}: a convolution of {op.in_shape[0]} to {op.out_shape[0]} channels in {op.groups} groups "
        "has no StableHLO form; groups must be 1 or, with as many outputs, the number of channels"
    )


def _convolve(
    x: Float[Array, "n h w c"], kernel: Float32[np.ndarray, "k k c c_out"], stride: int
) -> Float[Array, "n h_out w_out c_out"]:
    """Convolution padded by ``k // 2``, as one GEMM over the input's ``k * k`` shifted copies."""
    size = len(kernel)
    padded = _pad(x, size // 2)
    rows, columns = (-(-extent // stride) for extent in x.shape[1:3])
    shifted = [
        _every(_every(padded, 1, row, rows, stride), 2, column, columns, stride)
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[3])


def _depthwise(
    x: Float[Array, "n h w c"], kernel: Float32[np.ndarray, "k k c"], stride: int
) -> Float[Array, "n h_out w_out c"]:
    """Each channel convolved with its own kernel, padded by ``k // 2``: first the width, then the height."""
    size = len(kernel)
    padded = _pad(x, size // 2)[:, None]
    rows, columns = (-(-extent // stride) for extent in x.shape[1:3])
    # (n, kernel row, padded height, w_out, c): what each input row gives to each row of the kernel.
    along_width = functools.reduce(
        operator.add,
        (
            _every(padded, 3, column, columns, stride) * kernel[:, column].reshape(1, size, 1, 1, -1)
            for column in range(size)
        ),
    )
    return functools.reduce(operator.add, (_every(along_width[:, row], 1, row, rows, stride) for row in range(size)))


def _pad(x: Float[Array, "n h w c"], margin: int) -> Float[Array, "n h_padded w_padded c"]:
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0))) if margin else x


def _every(x: Array, axis: int, start: int, count: int, stride: int) -> Array:
    """`count` slices of `x` along `axis`, `stride` apart."""
    return jax.lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)
