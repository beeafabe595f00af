"""The layers that blocks are made of, in layout ``C H W N`` (channels, height, width, images)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from hanax.search_spaces import Activation

BATCH_NORM_EPSILON = 1e-5

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
    x: Float[Array, "c h w n"], scale: Float[Array, " c"], offset: Float[Array, " c"], n_statistics: int
) -> tuple[Float[Array, "c h w n"], Statistics]:
    """`x` normalised by the statistics of its first `n_statistics` images, and those statistics.

    All of the batch in training. In evaluation the calibration images come first and the images to score after them:
    one pass calibrates and scores, and no score can depend on another scored image.
    """
    seen = x[..., :n_statistics]
    count = seen.size // seen.shape[0]
    mean = _sum_per_channel(seen) / count
    variance = _sum_per_channel(jnp.square(seen - _spread(mean))) / count
    factor = scale * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return (x - _spread(mean)) * _spread(factor) + _spread(offset), (mean, variance)


def _sum_per_channel(x: Float[Array, "c h w n"]) -> Float[Array, " c"]:
    # Positions first, images last: the first sum runs over contiguous vectors of images.
    return x.sum(axis=(1, 2)).sum(axis=1)


def _spread(values: Float[Array, " c"]) -> Float[Array, "c 1 1 1"]:
    return values[:, None, None, None]


def pointwise(x: Float[Array, "c h w n"], kernel: Float[Array, "c_out c"]) -> Float[Array, "c_out h w n"]:
    """1x1 convolution as one GEMM."""
    return (kernel @ x.reshape(x.shape[0], -1)).reshape(kernel.shape[0], *x.shape[1:])


def convolve(
    x: Float[Array, "c h w n"], kernel: Float[Array, "c_out c k k"], stride: int
) -> Float[Array, "c_out h_out w_out n"]:
    """Dense convolution padded by ``k // 2``, as one GEMM over shifted copies; meant for few input channels."""
    size = kernel.shape[2]
    half = size // 2
    out_height, out_width = (-(-extent // stride) for extent in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    shifted = [
        padded[
            :,
            row : row + (out_height - 1) * stride + 1 : stride,
            column : column + (out_width - 1) * stride + 1 : stride,
        ]
        for row in range(size)
        for column in range(size)
    ]
    patches = jnp.stack(shifted, axis=1).reshape(x.shape[0] * size * size, -1)
    y = kernel.reshape(kernel.shape[0], -1) @ patches
    return y.reshape(kernel.shape[0], out_height, out_width, x.shape[3])
