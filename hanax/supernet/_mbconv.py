"""An inverted-residual block as one native kernel, in training and in evaluation.

The same results as `apply_block`, to rounding, but most of what lies between its operators never goes through memory:
`native/mbconv.h` says how. Blocks of other types, choices that are masked, other dtypes and machines without native
kernels take `apply_block`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from hanax.search_spaces import Block, MBConv
from hanax.supernet._blocks import BlockParams, ElasticValue, Norms, net_of
from hanax.supernet._depthwise import has_native_form
from hanax.supernet._layers import BATCH_NORM_EPSILON, NATIVE_ACTIVATIONS, Statistics
from hanax.supernet._native import call_native

NORMED = ("expand", "depthwise", "project")
LINE = 16
"""What the kernel pads numbers of images and input channels to a multiple of (``kLine``, floats of a cache line)."""

Operands = tuple[Array, ...]
"""The block's input and weights in the order of the kernel; what the block lacks is empty."""


def is_fused(block: Block, choice: tuple[ElasticValue, ...], dtype: DTypeLike) -> TypeGuard[MBConv]:
    """Whether `apply_fused` knows `block` with `choice` on images of `dtype`."""
    return (
        isinstance(block, MBConv)
        and isinstance(choice[1], int)
        and dtype == jnp.float32
        and block.activation in NATIVE_ACTIVATIONS
        and has_native_form(block.stride, block.kernel_sizes[-1])
    )


def apply_fused(
    block: MBConv, params: BlockParams, x: Float[Array, "c h w n"], choice: tuple[ElasticValue, ...], norms: Norms
) -> tuple[Float[Array, "c_out h_out w_out n"], dict[str, Statistics]]:
    """Output of `block` with `choice`, and the statistics that normalised it; arguments as of `apply_block`.

    There is a gradient where the statistics are those of all images, as in training.
    """
    weights = net_of(block).weights_for(block, params, choice)
    operands = _operands(block, weights, x)
    size = jnp.asarray(choice[0], jnp.int32)
    if norms == x.shape[3]:
        y, *found = _trained(block, size, *operands)
    else:
        given = norms if isinstance(norms, dict) else None
        y, *found = call_native(
            "mbconv_evaluate",
            _results(block, operands),
            *_kernel_operands(operands, size, [given and given.get(name) for name in NORMED]),
            n_statistics=min(norms, x.shape[3]) if isinstance(norms, int) else 0,
            **_settings(block),
        )
    by_name = dict(zip(NORMED, found, strict=True))
    return y, {name: (by_name[name][0], by_name[name][1]) for name in NORMED if name in weights}


def _operands(block: MBConv, weights: BlockParams, x: Array) -> Operands:
    empty = {"expand": {"kernel": (0, 0), "scale": (0,), "offset": (0,)}}
    empty |= {name: {"kernel": (0, 0), "bias": (0,)} for name in ("se.reduce", "se.expand")}

    def weight(operator: str, name: str) -> Array:
        return weights[operator][name] if operator in weights else jnp.zeros(empty[operator][name], jnp.float32)

    def norm(operator: str) -> Array:
        return jnp.stack([weight(operator, "scale"), weight(operator, "offset")])

    return (
        x,
        weight("expand", "kernel"),
        norm("expand"),
        weight("depthwise", "kernel"),
        norm("depthwise"),
        weight("se.reduce", "kernel"),
        weight("se.reduce", "bias"),
        weight("se.expand", "kernel"),
        weight("se.expand", "bias"),
        weight("project", "kernel"),
        norm("project"),
    )


def _kernel_operands(operands: Operands, size: Array, statistics: list[Any]) -> Operands:
    """`operands` with the statistics of the norms, zero where they are None, and the kernel size among them."""
    x, expand, expand_norm, kernels, depthwise_norm, *squeeze_excite, project, project_norm = operands
    norms = [
        jnp.concatenate([rows, jnp.zeros_like(rows) if found is None else jnp.stack(found)])
        for rows, found in zip((expand_norm, depthwise_norm, project_norm), statistics, strict=True)
    ]
    return (x, expand, norms[0], kernels, size, norms[1], *squeeze_excite, project, norms[2])


def _settings(block: MBConv) -> dict[str, int | float]:
    return {
        "stride": block.stride,
        "activation": NATIVE_ACTIVATIONS[block.activation],
        "has_residual": int(block.has_residual),
        "epsilon": BATCH_NORM_EPSILON,
    }


def _results(block: MBConv, operands: Operands) -> list[jax.ShapeDtypeStruct]:
    """Of the forward kernels: the output, and mean and variance of each norm."""
    x = operands[0]
    extents = [-(-extent // block.stride) for extent in x.shape[1:3]]
    norms = [operands[index].shape for index in (2, 4, 10)]
    shapes = [(block.out_channels, *extents, x.shape[3]), *norms]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def _padded(count: int) -> int:
    return -(-count // LINE) * LINE


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _trained(block: MBConv, size: Array, *operands: Array) -> list[Array]:
    return _trained_with_residuals(block, size, *operands)[0]


def _trained_with_residuals(block: MBConv, size: Array, *operands: Array) -> tuple[list[Array], tuple[Any, ...]]:
    results = _results(block, operands)
    channels, n_images = operands[0].shape[0], operands[0].shape[3]
    _, height, width, _ = results[0].shape
    lines = _padded(n_images) * height * width
    moments = (channels + 1) * _padded(channels)
    kept = [
        jax.ShapeDtypeStruct((n,), jnp.float32) for n in (moments, lines * len(operands[3]), lines * block.out_channels)
    ]
    found = call_native(
        "mbconv_forward", results + kept, *_kernel_operands(operands, size, [None] * 3), **_settings(block)
    )
    outputs = list(found[:4])
    return outputs, (size, operands, outputs[1:], found[4:])


def _trained_backward(block: MBConv, residuals: tuple[Any, ...], given: list[Any]) -> tuple[Array | None, ...]:
    size, operands, statistics, kept = residuals
    size = jnp.asarray(size)  # numpy's where it was a constant when JAX traced the forward pass
    gradients = call_native(
        "mbconv_backward", list(operands), *_kernel_operands(operands, size, statistics), *kept, given[0],
        **_settings(block),
    )  # fmt: skip
    return (None, *gradients)


_trained.defvjp(_trained_with_residuals, _trained_backward)
