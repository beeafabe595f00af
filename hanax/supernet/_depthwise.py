"""Depthwise convolution on a CPU, forward and backward, without `lax.conv` (20 to 80 times slower there).

Layout ``C H W N``: channels, height, width, images. With the images innermost every form below runs over contiguous
vectors. Three forms:

* The native kernel (`_native.py`), for float32, where it is there: it reads the kernel size as data and does only the
  work of that size.
* Without it, small maps: per channel the kernel becomes a dense (H W) x (H' W') Toeplitz matrix and the convolution one
  GEMM batched over channels. Its cost does not depend on the kernel size, so the kernel size can be data here too.
* Without it, larger maps: shift, multiply and add in both data directions; the weight gradient as GEMMs over tiles of
  the map (autodiff of shift-multiply-add would reduce each tap by itself, ten times slower).

The pure-XLA forms are also the oracle that the native kernel is tested against.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from hanax.supernet._native import call_native, native_status

TOEPLITZ_OUTPUTS = 64
"""Largest number of output positions for which the Toeplitz form is used."""

NATIVE_SIZE = 7
"""Largest kernel that the native form knows."""


def kernel_is_data(height: int, stride: int, largest: int) -> bool:
    """Whether a kernel size that is data costs no more than one that is compiled in, on a square map of `height`.

    Args:
        largest: The largest kernel size on offer.
    """
    return has_native_form(stride, largest) or _is_small(height, height, stride)


def has_native_form(stride: int, largest: int) -> bool:
    """Whether the native kernels are there, and know this stride and kernels up to `largest`."""
    return stride <= 2 and largest <= NATIVE_SIZE and native_status().available


def _is_small(height: int, width: int, stride: int) -> bool:
    return -(-height // stride) * -(-width // stride) <= TOEPLITZ_OUTPUTS and max(height, width) <= 16


def depthwise(
    x: Float[Array, "c h w n"],
    kernel: Float[Array, "c k k"],
    stride: int = 1,
    size: Int[Array, ""] | int | None = None,
) -> Float[Array, "c h_out w_out n"]:
    """Convolve every channel with its own `kernel`, padding by ``k // 2``; ``h_out = ceil(h / stride)``.

    Args:
        size: Of the part of `kernel` that is not zero, its centre; all of it by default. May be data.
    """
    if x.dtype == jnp.float32 and has_native_form(stride, kernel.shape[1]):
        return _native(x, kernel, jnp.asarray(kernel.shape[1] if size is None else size, jnp.int32), stride)
    if _is_small(x.shape[1], x.shape[2], stride):
        return _toeplitz(x, kernel, stride)
    return _shifted(x, kernel, stride)


def smooth_depthwise(
    x: Float[Array, "c h w n"], kernel: Float[Array, "c k k"], stride: int = 1
) -> Float[Array, "c h_out w_out n"]:
    """As `depthwise`, in forms that can also be differentiated forwards, and more than once."""
    is_small = _is_small(x.shape[1], x.shape[2], stride)
    return (_toeplitz if is_small else _shift_multiply_add)(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _native(
    x: Float[Array, "c h w n"], kernel: Float[Array, "c k k"], size: Int[Array, ""], stride: int
) -> Float[Array, "c ho wo n"]:
    channels, height, width, images = x.shape
    y = jax.ShapeDtypeStruct((channels, -(-height // stride), -(-width // stride), images), x.dtype)
    result: Array = call_native("depthwise_forward", y, x, kernel, size, stride=stride)
    return result


def _native_forward(x: Array, kernel: Array, size: Array, stride: int) -> tuple[Array, tuple[Array, Array, Array]]:
    return _native(x, kernel, size, stride), (x, kernel, size)


def _native_backward(
    stride: int, residuals: tuple[Array, Array, Array | np.ndarray], dy: Array
) -> tuple[Array, Array, None]:
    x, kernel, size = residuals  # `size` is numpy's where it was a constant when JAX traced the forward pass
    dx, dkernel = call_native("depthwise_backward", (x, kernel), x, kernel, jnp.asarray(size), dy, stride=stride)
    return dx, dkernel, None


_native.defvjp(_native_forward, _native_backward)


def _taps(size: int, kernel_size: int, stride: int) -> Float[np.ndarray, "k size out"]:
    """``taps[a, i, o]`` is 1 where tap `a` of output `o` reads input `i`, along one axis."""
    out = -(-size // stride)
    reads = np.arange(out) * stride + np.arange(kernel_size)[:, None] - kernel_size // 2
    taps: Float[np.ndarray, "k size out"] = (np.arange(size)[None, :, None] == reads[:, None, :]).astype(np.float32)
    return taps


def _toeplitz(x: Float[Array, "c h w n"], kernel: Float[Array, "c k k"], stride: int) -> Float[Array, "c ho wo n"]:
    channels, height, width, images = x.shape
    rows = _taps(height, kernel.shape[1], stride).astype(kernel.dtype)
    columns = _taps(width, kernel.shape[2], stride).astype(kernel.dtype)
    matrix = jnp.einsum("cab,aio->cbio", kernel, rows)
    matrix = jnp.einsum("cbio,bjp->cijop", matrix, columns)
    out_height, out_width = rows.shape[2], columns.shape[2]
    matrix = matrix.reshape(channels, height * width, out_height * out_width)
    y = jnp.einsum("cio,cin->con", matrix, x.reshape(channels, height * width, images))
    return y.reshape(channels, out_height, out_width, images)


def _shift_multiply_add(
    x: Float[Array, "c h w n"], kernel: Float[Array, "c k k"], stride: int
) -> Float[Array, "c ho wo n"]:
    size = kernel.shape[1]
    out_height, out_width = (-(-extent // stride) for extent in x.shape[1:3])
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    y = jnp.zeros((x.shape[0], out_height, out_width, x.shape[3]), x.dtype)
    for row in range(size):
        for column in range(size):
            window = padded[
                :,
                row : row + (out_height - 1) * stride + 1 : stride,
                column : column + (out_width - 1) * stride + 1 : stride,
                :,
            ]
            y += kernel[:, row, column, None, None, None] * window
    return y


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x: Float[Array, "c h w n"], kernel: Float[Array, "c k k"], stride: int) -> Float[Array, "c ho wo n"]:
    return _shift_multiply_add(x, kernel, stride)


def _shifted_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _shift_multiply_add(x, kernel, stride), (x, kernel)


def _shifted_backward(stride: int, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    if stride > 1:  # the gradient of a strided convolution is that of a dense one with zeros between the outputs
        spread = jnp.zeros((dy.shape[0], *x.shape[1:3], dy.shape[3]), dy.dtype)
        dy = spread.at[:, ::stride, ::stride, :].set(dy)
    dx = _shift_multiply_add(dy, kernel[:, ::-1, ::-1], 1)
    return dx, _weight_gradient(x, dy, kernel.shape[1])


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _weight_gradient(x: Float[Array, "c h w n"], dy: Float[Array, "c h w n"], size: int) -> Float[Array, "c k k"]:
    """Gradient of the kernel of a convolution of stride 1: products of each tile of `dy` with the `x` it saw, summed.

    One GEMM per channel gives the products of all pairs of positions in a tile and its halo; the constant `taps` adds
    up the pairs that are one tap apart. Tiles keep the number of pairs, and so the waste, small.
    """
    channels, height, width, images = x.shape
    half = size // 2
    n_rows, n_columns = -(-height // 8), -(-width // 8)
    tile_height, tile_width = -(-height // n_rows), -(-width // n_columns)
    pad_rows, pad_columns = n_rows * tile_height - height, n_columns * tile_width - width
    x = jnp.pad(x, ((0, 0), (half, half + pad_rows), (half, half + pad_columns), (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, pad_rows), (0, pad_columns), (0, 0)))
    products = jnp.zeros(
        (channels, (tile_height + 2 * half) * (tile_width + 2 * half), tile_height * tile_width), x.dtype
    )
    for row in range(0, n_rows * tile_height, tile_height):
        for column in range(0, n_columns * tile_width, tile_width):
            seen = x[:, row : row + tile_height + 2 * half, column : column + tile_width + 2 * half]
            given = dy[:, row : row + tile_height, column : column + tile_width]
            products += jnp.einsum(
                "cin,con->cio", seen.reshape(channels, -1, images), given.reshape(channels, -1, images)
            )
    products = products.reshape(channels, tile_height + 2 * half, tile_width + 2 * half, tile_height, tile_width)
    rows = _halo_taps(tile_height, size).astype(x.dtype)
    columns = _halo_taps(tile_width, size).astype(x.dtype)
    partial_sums = jnp.einsum("cijop,aio->cajp", products, rows)
    return jnp.einsum("cajp,bjp->cab", partial_sums, columns)


def _halo_taps(tile: int, size: int) -> Float[np.ndarray, "k halo tile"]:
    positions = np.arange(tile)[None, :] + np.arange(size)[:, None]
    halo = np.arange(tile + size - 1)[None, :, None]
    taps: Float[np.ndarray, "k halo tile"] = (halo == positions[:, None, :]).astype(np.float32)
    return taps
