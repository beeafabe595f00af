"""The layers that blocks are made of, in layout ``C H W N`` (channels, height, width, images).

Batch norms (with the activation after them) and 1x1 convolutions have native kernels for float32 beside their pure-XLA
forms: see `_native.py`. Both forms compute the same to rounding.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from hanax.search_spaces import Activation
from hanax.supernet._native import call_native, native_status

BATCH_NORM_EPSILON = 1e-5

MAX_COPIED_BYTES = 1 << 26
"""Memory that a dense convolution may take for shifted copies of its input, at most."""

Statistics = tuple[Array, Array]
"""Mean and (biased) variance per channel."""


def activate(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """Apply the activation; the hard forms are MobileNetV3's (Howard et al., 2019, arXiv:1905.02244)."""
    if activation == "relu":
        return jax.nn.relu(x)
    if activation == "hswish":
        return x * jnp.clip(x + 3.0, 0.0, 6.0) / 6.0
    if activation == "hsigmoid":
        return jnp.clip(x + 3.0, 0.0, 6.0) / 6.0
    return x


def batch_norm(
    x: Float[Array, "c h w n"],
    scale: Float[Array, " c"],
    offset: Float[Array, " c"],
    norm: int | Statistics,
    activation: Activation = "none",
) -> tuple[Float[Array, "c h w n"], Statistics]:
    """`x` normalised and activated, and the statistics it was normalised by, through which no gradient flows.

    Args:
        norm: The statistics; or how many leading images of `x` they come from: all of the batch in training. In
            evaluation the calibration images come first and the images to score after them: one pass calibrates and
            scores, and no score can depend on another scored image.
    """
    is_wide = x.dtype == jnp.float32
    if isinstance(norm, int) and is_wide and activation in NATIVE_ACTIVATIONS and native_status().available:
        n_statistics = min(norm, x.shape[-1])
        if n_statistics == x.shape[-1]:
            return _native_batch_norm(x, scale, offset, activation)
        return _native_batch_norm_forward(x, scale, offset, activation, n_statistics)
    wide = x.astype(jnp.float32)  # statistics and the difference from a mean need more digits than bfloat16 has
    mean, variance = statistics_of(wide[..., :norm]) if isinstance(norm, int) else norm
    factor = scale * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    y = activate((wide - _spread(mean)) * _spread(factor) + _spread(offset), activation)
    return y.astype(x.dtype), jax.lax.stop_gradient((mean, variance))


NATIVE_ACTIVATIONS: dict[Activation, int] = {"none": 0, "relu": 1, "hswish": 2}
"""The activations that the native kernel knows, by its numbers."""


def _native_batch_norm_forward(
    x: Array, scale: Array, offset: Array, activation: Activation, n_statistics: int
) -> tuple[Array, Statistics]:
    y, mean, variance = call_native(
        "batch_norm_forward",
        (x, scale, scale),
        x,
        scale,
        offset,
        activation=NATIVE_ACTIVATIONS[activation],
        n_statistics=n_statistics,
        epsilon=BATCH_NORM_EPSILON,
    )
    return y, (mean, variance)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _native_batch_norm(x: Array, scale: Array, offset: Array, activation: Activation) -> tuple[Array, Statistics]:
    return _native_batch_norm_forward(x, scale, offset, activation, x.shape[-1])


def _batch_norm_with_residuals(
    x: Array, scale: Array, offset: Array, activation: Activation
) -> tuple[tuple[Array, Statistics], tuple[Array, ...]]:
    y, (mean, variance) = _native_batch_norm(x, scale, offset, activation)
    return (y, (mean, variance)), (x, scale, offset, mean, variance)


def _batch_norm_backward(
    activation: Activation, residuals: tuple[Array, ...], given: tuple[Array, Statistics]
) -> tuple[Array, Array, Array]:
    x, scale, *_ = residuals
    dx, dscale, doffset = call_native(
        "batch_norm_backward",
        (x, scale, scale),
        *residuals,
        given[0],
        activation=NATIVE_ACTIVATIONS[activation],
        epsilon=BATCH_NORM_EPSILON,
    )
    return dx, dscale, doffset


_native_batch_norm.defvjp(_batch_norm_with_residuals, _batch_norm_backward)


def statistics_of(x: Float[Array, "c h w n"]) -> Statistics:
    """Mean and (biased) variance of every channel."""
    count = x.size // x.shape[0]
    mean = _sum_per_channel(x) / count
    return mean, _sum_per_channel(jnp.square(x - _spread(mean))) / count


def _sum_per_channel(x: Float[Array, "c h w n"]) -> Float[Array, " c"]:
    # Positions first, images last: the first sum runs over contiguous vectors of images.
    return x.sum(axis=(1, 2)).sum(axis=1)


def _spread(values: Float[Array, " c"]) -> Float[Array, "c 1 1 1"]:
    return values[:, None, None, None]


def pointwise(x: Float[Array, "c h w n"], kernel: Float[Array, "c_out c"]) -> Float[Array, "c_out h w n"]:
    """1x1 convolution, as one matrix product."""
    if x.dtype == jnp.float32 and native_status().available:
        return _native_pointwise(x, kernel)
    return (kernel @ x.reshape(x.shape[0], -1)).reshape(kernel.shape[0], *x.shape[1:])


@jax.custom_vjp
def _native_pointwise(x: Array, kernel: Array) -> Array:
    y: Array = call_native("pointwise_forward", jax.ShapeDtypeStruct((len(kernel), *x.shape[1:]), x.dtype), x, kernel)
    return y


def _pointwise_with_residuals(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _native_pointwise(x, kernel), (x, kernel)


def _pointwise_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    dx, dkernel = call_native("pointwise_backward", residuals, *residuals, dy)
    return dx, dkernel


_native_pointwise.defvjp(_pointwise_with_residuals, _pointwise_backward)


def convolve(
    x: Float[Array, "c h w n"], kernel: Float[Array, "c_out c k k"], stride: int
) -> Float[Array, "c_out h_out w_out n"]:
    """Dense convolution padded by ``k // 2``, meant for few input channels: a GEMM per row of the kernel.

    The shifted copies of thousands of images would be most of the memory that an evaluation needs, so they are made for
    some rows of the output at a time. All rows of the kernel in one GEMM would need three times as much.
    """
    size = kernel.shape[2]
    half = size // 2
    out_height, out_width = (-(-extent // stride) for extent in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))

    def of_rows(first: int, n_rows: int, row: int) -> Array:
        """What one row of the kernel adds to some rows of the output."""
        start = first * stride + row
        rows = padded[:, start : start + (n_rows - 1) * stride + 1 : stride]
        shifted = [rows[:, :, column : column + (out_width - 1) * stride + 1 : stride] for column in range(size)]
        patches = jnp.stack(shifted, axis=1).reshape(x.shape[0] * size, -1)
        return kernel[:, :, row].reshape(kernel.shape[0], -1) @ patches

    copied_bytes = 4 * x.shape[0] * size * out_height * out_width * x.shape[3]
    n_rows = max(1, out_height // -(-copied_bytes // MAX_COPIED_BYTES))
    y = []
    for first in range(0, out_height, n_rows):
        count = min(n_rows, out_height - first)
        part = sum((of_rows(first, count, row) for row in range(1, size)), start=of_rows(first, count, 0))
        y.append(part.reshape(kernel.shape[0], count, out_width, x.shape[3]))
    return jnp.concatenate(y, axis=1) if len(y) > 1 else y[0]
