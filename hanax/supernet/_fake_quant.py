"""Fake quantization: values rounded to what a number format can hold, in float32 and with gradients.

The format is a traced value (see ``hanax/search_spaces/_precision.py``), so one executable serves every policy. One
formula serves integers and minifloats: a value in units of the scale is rounded to a multiple of its *quantum*, which
is 1 for integers and a power of two that depends on the value's exponent for minifloats. Gradients are straight-through
(Bengio et al., 2013, arXiv:1308.3432), and with respect to the scale those of LSQ (Esser et al., 2020,
arXiv:1902.08153, eq. 3).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from hanax.search_spaces import FLOAT32

Calibration = Literal["minmax", "percentile", "mse"]
"""How the range of a tensor is chosen, see `activation_range`."""

Format = int | Int[Array, ""]

LARGEST_KERNEL = 64.0
"""Largest integer of a kernel: x86 processors without VNNI add two products of uint8 and int8 in 16 bits, where the sum
of larger ones is cut off. Twice 64 * 255 fits, so what is computed here is what they compute."""

KERNEL_CLIPS = tuple(1.0 - 0.05 * step for step in range(13))
"""Shares of a kernel's largest value that are tried as the end of its scale."""

N_STEPS = 8
"""Learned steps of a tensor: for integers of 2 to 8 bits, and one for all other formats."""


def _parts(code: Format) -> tuple[Array, Array, Array, Array]:
    """Whether `code` is a minifloat, its bits of exponent and of mantissa, and the bits of an integer."""
    code = jnp.asarray(code, jnp.int32)
    return (code > 100) & (code < FLOAT32), (code - 100) // 10, (code - 100) % 10, code


def _power_of_two(exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """2 to the power of integers from -126 to 127, exactly."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _exponent(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """The integer part of log2 |x|, exactly; -127 for 0."""
    return ((jax.lax.bitcast_convert_type(x, jnp.int32) >> 23) & 255) - 127


def largest_value(code: Format) -> Float[Array, ""]:
    """The largest number of a symmetric format in units of its scale; of integers one less than half their number."""
    is_minifloat, exponent_bits, mantissa_bits, bits = _parts(code)
    exponent_bits, mantissa_bits = (jnp.where(is_minifloat, value, 1) for value in (exponent_bits, mantissa_bits))
    has_infinity = (exponent_bits + mantissa_bits == 7) & (exponent_bits != 4)  # E5M2 and E3M4, as IEEE formats have
    top = (1 << exponent_bits) - 1 - has_infinity - ((1 << (exponent_bits - 1)) - 1)
    spacing = _power_of_two(top - mantissa_bits)
    largest = _power_of_two(top + 1) - spacing
    # E4M3 gives its last code to NaN (Micikevicius et al., 2022, arXiv:2209.05433).
    largest -= jnp.where((exponent_bits == 4) & (mantissa_bits == 3), spacing, 0.0)
    integers = _power_of_two(jnp.clip(bits, 2, 8) - 1) - 1.0
    return jnp.where(is_minifloat, largest, integers)


def round_to_format(x: Float[Array, "..."], code: Format) -> Float[Array, "..."]:
    """`x`, in units of the scale, to the nearest number of the format (ties to even), without an end to the range."""
    is_minifloat, exponent_bits, mantissa_bits, _ = _parts(code)
    least = 2 - (1 << (jnp.where(is_minifloat, exponent_bits, 1) - 1))  # of normal numbers; subnormal ones share it
    quantum_exponent = jnp.maximum(_exponent(x), least) - mantissa_bits
    quantum = _power_of_two(jnp.where(is_minifloat, quantum_exponent, 0))
    return jnp.round(x / quantum) * quantum


def quantize(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    lowest: Float[Array, "..."],
    highest: Float[Array, "..."],
    code: Format,
) -> Float[Array, "..."]:
    """`x` rounded to the format between `lowest` and `highest`, both in units of `scale`; `x` itself for `FLOAT32`.

    The gradient by `x` is that of the clipping alone, and that by `scale` is LSQ's: rounding counts as the identity.
    """
    clipped = jnp.clip(x / scale, lowest, highest)
    rounded = clipped + jax.lax.stop_gradient(round_to_format(clipped, code) - clipped)
    return jnp.where(jnp.asarray(code) == FLOAT32, x, rounded * scale)


def quantize_activation(
    x: Float[Array, "..."], low: Float[Array, ""], high: Float[Array, ""], code: Format
) -> Float[Array, "..."]:
    """`x` in a format whose numbers span `low` to `high` and 0.

    Integers are asymmetric, with 2^b levels and a zero point, so that 0 is one of them, as padding and ReLU need it
    exactly (Jacob et al., 2018, arXiv:1712.05877); minifloats are symmetric.
    """
    scale, lowest, highest = activation_scale(low, high, code)
    return quantize(x, scale, lowest, highest, code)


def activation_scale(low: Float[Array, ""], high: Float[Array, ""], code: Format) -> tuple[Array, Array, Array]:
    """Scale, lowest and highest number in units of it, of an activation; a zero point is the lowest, negated."""
    is_minifloat, _, _, bits = _parts(code)
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    levels = _power_of_two(jnp.clip(bits, 2, 8)) - 1.0
    scale = jnp.where(is_minifloat, jnp.maximum(-low, high) / largest_value(code), (high - low) / levels)
    scale = jnp.where(scale > 1e-30, scale, 1.0)
    zero_point = jax.lax.stop_gradient(jnp.clip(jnp.round(-low / scale), 0.0, levels))
    lowest = jnp.where(is_minifloat, -largest_value(code), -zero_point)
    highest = jnp.where(is_minifloat, largest_value(code), levels - zero_point)
    return scale, lowest, highest


def activation_range(
    x: Float[Array, "..."], code: Format, method: Calibration = "minmax"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Between which values `x` is quantized in format `code`; no gradient flows through it.

    Args:
        method: ``minmax`` takes the least and the largest value.
    """
    if method != "minmax":
        raise NotImplementedError(method)
    return jax.lax.stop_gradient((x.min(), x.max()))


def kernel_scale(kernel: Float[Array, "c_out ..."], code: Format) -> tuple[Float[Array, "c_out ..."], Array]:
    """Scale of each output channel, in the shape of the kernel's axes, and the largest number in units of it.

    The share of the channel's largest value at which its numbers end is that of `KERNEL_CLIPS` with the least squared
    error. Multiplying a channel by a constant multiplies its scale, so that quantizing a kernel and folding a batch
    norm into it may come in either order.
    """
    is_minifloat, *_ = _parts(code)
    largest = jnp.where(is_minifloat, largest_value(code), jnp.minimum(largest_value(code), LARGEST_KERNEL))
    axes = tuple(range(1, kernel.ndim))
    end = jnp.abs(kernel).max(axis=axes, keepdims=True)
    end = jnp.where(end > 1e-30, end, 1.0)

    def error(clip: float) -> Array:
        rounded = quantize(kernel, end * (clip / largest), -largest, largest, code)
        return jnp.square((rounded - kernel) / end).sum(axis=axes, keepdims=True)

    errors = jnp.stack([error(clip) for clip in KERNEL_CLIPS])
    clip = jnp.array(KERNEL_CLIPS)[errors.argmin(axis=0)]
    return jax.lax.stop_gradient(end * clip / largest), largest


def quantize_kernel(
    kernel: Float[Array, "c_out ..."], code: Format, factor: Float[Array, ""] | float = 1.0
) -> Float[Array, "c_out ..."]:
    """`kernel` in a symmetric format with a scale per output channel.

    Args:
        factor: What the scales are multiplied by: what was learned, see `learned_factor`.
    """
    scale, largest = kernel_scale(kernel, code)
    return quantize(kernel, scale * factor, -largest, largest, code)


def learned_factor(steps: Float[Array, " steps"], code: Format, n_values: int) -> Float[Array, ""]:
    """What the calibrated scale of a tensor is multiplied by: the exponential of the learned step of its format.

    LSQ and LSQ+ (Bhalgat et al., 2020, arXiv:2004.09576) learn the step itself. A tensor of a supernet has another
    range in every subnet, so here the calibrated step is corrected by what they share. The gradient is scaled as in
    LSQ, section 2.2, by the number of values and levels.

    Args:
        steps: For each kind of format, see `N_STEPS`; 0 where nothing was learned.
        n_values: Values of the tensor.
    """
    code = jnp.asarray(code, jnp.int32)
    step = steps[jnp.where(code <= 8, code - 2, N_STEPS - 1)]
    share = jax.lax.rsqrt(n_values * largest_value(code))
    return jnp.exp(share * step + jax.lax.stop_gradient((1.0 - share) * step))
