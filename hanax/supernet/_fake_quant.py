"""Fake quantization: values rounded to what a number format can hold, in float32 and with gradients.

The format is a traced value (see ``hanax/search_spaces/_precision.py``), so one executable serves every policy. One
formula serves integers and minifloats: a value in units of the scale is rounded to a multiple of its *quantum*, which
is 1 for integers and a power of two that depends on the value's exponent for minifloats. Gradients are straight-through
(Bengio et al., 2013, arXiv:1308.3432), and with respect to the scale those of LSQ (Esser et al., 2020,
arXiv:1902.08153, eq. 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int

from hanax.search_spaces import FLOAT32, LEAST_BITS, MOST_BITS

Calibration = Literal["minmax", "percentile", "mse"]
"""How the range of a tensor is chosen, see `activation_range`."""

Format = int | Int[Array, ""]

TAIL = 1e-4
"""Share of a tensor's values that ``percentile`` leaves outside a range, at either end."""

N_OF_PERCENTILES, N_OF_ERRORS = 1 << 16, 1 << 14
"""Values of a tensor that percentiles and that errors are computed from, at most: sorting and trying all take long."""

RANGE_CLIPS = tuple(0.9**step for step in range(24))
"""Shares of a tensor's least and largest value that ``mse`` tries as the ends of its range; the last one is 0.09."""

LARGEST_KERNEL = 64
"""Largest integer of a kernel: x86 processors without VNNI add two products of uint8 and int8 in 16 bits, where the sum
of larger ones is cut off. Twice 64 * 255 fits, so what is computed here is what they compute."""

KERNEL_CLIPS = tuple(1.0 - 0.05 * step for step in range(13))
"""Shares of a kernel's largest value that are tried as the end of its scale."""

LEAST_SCALE = 1e-30
"""What is all 0, or nearly, has the scale 1 instead of one that nothing can be divided by."""

N_STEPS = 8
"""Learned steps of a tensor: for integers of 2 to 8 bits, and one for all other formats."""


class _Numbers(NamedTuple):
    """What a format can hold, in units of its scale. Looked up, as a traced formula would be compiled at every use.

    Attributes:
        least_exponent: Of numbers that are not subnormal; what is smaller has their quantum.
        mantissa_bits: The quantum is 2 to the power of a number's exponent less these. Integers have both 127: a
            quantum of 1.
        largest: The largest number if the format is symmetric.
        levels: Largest integer if the least one is 0.
        is_minifloat: Whether it is symmetric always.
    """

    least_exponent: Array
    mantissa_bits: Array
    largest: Array
    levels: Array
    is_minifloat: Array


def _numbers(code: Format) -> _Numbers:
    code = jnp.asarray(code, jnp.int32)
    row = jnp.asarray(_table())[jnp.where(code <= MOST_BITS, code, jnp.minimum(code - 91, 69))]
    return _Numbers(row[0].astype(jnp.int32), row[1].astype(jnp.int32), row[2], row[3], row[4] > 0.0)


@cache
def _table() -> Float32[np.ndarray, "formats 5"]:
    """`_Numbers` of the codes 0 to 8, 100 to 159 and `FLOAT32`, of which nothing is used."""
    table = np.ones((70, 5), np.float32)
    for bits in range(LEAST_BITS, MOST_BITS + 1):
        table[bits] = 127, 127, 2 ** (bits - 1) - 1, 2**bits - 1, 0
    for exponent_bits, mantissa_bits in itertools.product(range(1, 6), range(6)):
        bias = 2 ** (exponent_bits - 1) - 1
        top, last = 2**exponent_bits - 1 - bias, 2**mantissa_bits - 1  # exponent and mantissa of the last finite code
        if (exponent_bits, mantissa_bits) in ((5, 2), (3, 4)):  # like IEEE formats, with infinities and many NaN
            top -= 1
        elif (exponent_bits, mantissa_bits) == (4, 3):  # one NaN (Micikevicius et al., 2022, arXiv:2209.05433)
            last -= 1
        largest = 2.0**top * (1 + last / 2**mantissa_bits)
        table[9 + 10 * exponent_bits + mantissa_bits] = 1 - bias, mantissa_bits, largest, 1, 1
    return table


def _power_of_two(exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """2 to the power of integers from -126 to 127, exactly."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _exponent(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """The integer part of log2 |x|, exactly; -127 for 0."""
    return ((jax.lax.bitcast_convert_type(x, jnp.int32) >> 23) & 255) - 127


def largest_value(code: Format) -> Float[Array, ""]:
    """The largest number of a symmetric format in units of its scale; of integers one less than half their number."""
    return _numbers(code).largest


def round_to_format(x: Float[Array, "..."], code: Format) -> Float[Array, "..."]:
    """`x`, in units of the scale, to the nearest number of the format (ties to even), without an end to the range."""
    numbers = _numbers(code)
    exponent = jnp.clip(_exponent(x), numbers.least_exponent, 127)  # that of infinity is 128
    quantum = _power_of_two(exponent - numbers.mantissa_bits)
    return jnp.round(x / quantum) * quantum


def quantize(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    lowest: Float[Array, "..."],
    highest: Float[Array, "..."],
    code: Format,
) -> Float[Array, "..."]:
    """`x` rounded to the format between `lowest` and `highest`, both in units of `scale`; `x` itself for `FLOAT32`.

    All but `x` have its shape or one that broadcasts to it.

    The gradient by `x` is that of the clipping alone: 1 from `lowest` to `highest`, 0 outside. That by `scale` is LSQ's
    (eq. 3): rounding error over scale inside, `lowest` or `highest` outside. There is none by the ends.
    """
    return _quantize(x, scale, lowest, highest, jnp.asarray(code, jnp.int32))


@jax.custom_vjp
def _quantize(x: Array, scale: Array, lowest: Array, highest: Array, code: Array) -> Array:
    rounded = round_to_format(jnp.clip(x / scale, lowest, highest), code)
    return jnp.where(code == FLOAT32, x, rounded * scale)


def _quantize_with_residuals(*operands: Array) -> tuple[Array, tuple[Array, ...]]:
    return _quantize(*operands), operands


def _quantize_backward(residuals: tuple[Array, ...], dy: Array) -> tuple[Any, ...]:
    """From `x` itself: keeping the masks and rounded values that derive from it would cost more than these."""
    x, scale, lowest, highest, code = residuals
    v = x / scale
    clipped = jnp.clip(v, lowest, highest)
    is_float = code == FLOAT32
    is_inside = clipped == v
    by_scale = jnp.where(is_inside, round_to_format(v, code) - v, clipped)
    dscale = jnp.where(is_float, 0.0, dy * by_scale)
    axes = tuple(axis for axis in range(-scale.ndim, 0) if scale.shape[axis] == 1 and x.shape[axis] != 1)
    dscale = dscale.sum(axis=(*range(x.ndim - scale.ndim), *(x.ndim + axis for axis in axes)))
    return jnp.where(is_float | is_inside, dy, 0.0), dscale.reshape(scale.shape), None, None, None


_quantize.defvjp(_quantize_with_residuals, _quantize_backward)


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
    numbers = _numbers(code)
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = jnp.where(numbers.is_minifloat, jnp.maximum(-low, high) / numbers.largest, (high - low) / numbers.levels)
    scale = jnp.where(scale > LEAST_SCALE, scale, 1.0)
    zero_point = jax.lax.stop_gradient(jnp.clip(jnp.round(-low / scale), 0.0, numbers.levels))
    lowest = jnp.where(numbers.is_minifloat, -numbers.largest, -zero_point)
    return scale, lowest, jnp.where(numbers.is_minifloat, numbers.largest, numbers.levels - zero_point)


def activation_range(
    x: Float[Array, "... n"], code: Format, method: Calibration = "minmax", n_leading: int | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Between which values `x` is quantized in format `code`; no gradient flows through it.

    Args:
        method: ``minmax`` takes the least and the largest value. ``percentile`` takes the quantiles `TAIL` and
            1 - `TAIL`, interpolated, of `N_OF_PERCENTILES` values evenly spread over `x`. ``mse`` looks for the least
            squared error in this format of `N_OF_ERRORS` such values, among the shares `RANGE_CLIPS` of the least and
            the largest value of `x`: one share for both, then that of the least, then that of the largest. What is on
            one side of 0 only, as after a ReLU, keeps 0 as its other end.
        n_leading: Images, the last axis of `x`, that count; all by default.
    """
    x = jax.lax.stop_gradient(x)
    if method == "percentile":
        sample = _spread_over(x, N_OF_PERCENTILES, n_leading)
        return -_upper_quantile(-sample), _upper_quantile(sample)
    if method == "mse":
        sample = _spread_over(x, N_OF_ERRORS, n_leading)
        return _least_error_range(
            sample, _extremes(x, n_leading), jnp.zeros(()), partial(quantize_activation, code=code)
        )
    return _extremes(x, n_leading)


def _extremes(x: Float[Array, "... n"], n_leading: int | None = None) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Least and largest value; first of each image, as taking some images of a tensor would copy it."""
    axes = tuple(range(x.ndim - 1))
    return x.min(axis=axes)[:n_leading].min(), x.max(axis=axes)[:n_leading].max()


def _spread_over(x: Float[Array, "... n"], count: int, n_leading: int | None = None) -> Float[Array, " m"]:
    """At most `count` values of `x`, at even distances.

    The distance has no divisor in common with the number of values, so that it is out of step with every axis: values
    of all channels, positions and images are among them.
    """
    shape = (*x.shape[:-1], x.shape[-1] if n_leading is None else min(n_leading, x.shape[-1]))
    size = math.prod(shape)
    stride = -(-size // count)
    while math.gcd(stride, size) > 1:
        stride += 1
    return x[jnp.unravel_index(jnp.arange(0, size, stride), shape)]


def _upper_quantile(x: Float[Array, " n"]) -> Float[Array, ""]:
    """The quantile 1 - `TAIL`, linear between neighbours."""
    position = TAIL * (len(x) - 1)
    rank = int(position)

    def largest(k: int) -> Array:
        return jax.lax.top_k(x, min(k, len(x)))[0].min()  # the last one; but XLA sorts all of x when that is indexed

    above, below = largest(rank + 1), largest(rank + 2)
    return above + (position - rank) * (below - above)


def _least_error_range(
    sample: Float[Array, " m"],
    extremes: tuple[Float[Array, ""], Float[Array, ""]],
    centre: Float[Array, ""],
    rounded: Callable[[Array, Array, Array], Array],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The ends at which ``rounded(sample, low, high)`` has the least squared error.

    They are shares `RANGE_CLIPS` of the ways from `centre` to the `extremes` of the tensor.
    """
    clips = jnp.array(RANGE_CLIPS)
    lows = centre + clips * jnp.minimum(extremes[0] - centre, 0.0)
    highs = centre + clips * jnp.maximum(extremes[1] - centre, 0.0)

    def best(lows: Float[Array, " clips"], highs: Float[Array, " clips"]) -> Int[Array, ""]:
        def error(low: Array, high: Array) -> Array:
            return jnp.square(rounded(sample, low, high) - sample).sum()

        return jax.vmap(error)(lows, highs).argmin()

    high = highs[best(lows, highs)]
    low = lows[best(lows, jnp.full_like(highs, high))]
    return low, highs[best(jnp.full_like(lows, low), highs)]


def kernel_scale(kernel: Float[Array, "c_out ..."], code: Format) -> tuple[Float[Array, "c_out ..."], Array]:
    """Scale of each output channel, in the shape of the kernel's axes, and the largest number in units of it.

    The share of the channel's largest value at which its numbers end is that of `KERNEL_CLIPS` with the least squared
    error. Multiplying a channel by a constant multiplies its scale, so that quantizing a kernel and folding a batch
    norm into it may come in either order.
    """
    kernel = jax.lax.stop_gradient(kernel)
    numbers = _numbers(code)
    largest = jnp.where(numbers.is_minifloat, numbers.largest, jnp.minimum(numbers.largest, LARGEST_KERNEL))
    axes = tuple(range(1, kernel.ndim))
    end = jnp.abs(kernel).max(axis=axes, keepdims=True)
    end = jnp.where(end > LEAST_SCALE, end, 1.0)

    def error(clip: Array) -> Array:
        rounded = quantize(kernel, end * (clip / largest), -largest, largest, code)
        return jnp.square((rounded - kernel) / end).sum(axis=axes, keepdims=True)

    clips = jnp.array(KERNEL_CLIPS)
    clip = clips[jax.vmap(error)(clips).argmin(axis=0)]
    return end * clip / largest, largest


def quantize_kernel(
    kernel: Float[Array, "c_out ..."], code: Format, factor: Float[Array, ""] | float = 1.0
) -> Float[Array, "c_out ..."]:
    """`kernel` in a symmetric format with a scale per output channel.

    Args:
        factor: What the scales are multiplied by: what was learned, see `learned_factor`.
    """
    scale, largest = kernel_scale(kernel, code)
    return quantize(kernel, scale * factor, -largest, largest, code)


def learned_step_quantize(
    x: Float[Array, "..."], step: Float[Array, ""], offset: Float[Array, ""], code: Format
) -> Float[Array, "..."]:
    """`x` rounded to `offset` plus what the format can hold in units of `step`; `x` itself for `FLOAT32`.

    LSQ+ (Bhalgat et al., 2020, arXiv:2004.09576, eq. 3 to 6), which learns both: integers are 0 to 2^b - 1 steps above
    the offset, minifloats lie on both sides of it. The gradient by `step` is that of `quantize`, that by `offset` is 0
    inside the range and 1 outside; both are multiplied by LSQ's ``1 / sqrt(values of x * largest number)`` (section
    2.2). Nothing says that 0 is one of the numbers: what pads `x` should be `offset` too. See `lsq_initial`.
    """
    lowest, highest = _ends_from_offset(code)
    share = jax.lax.rsqrt(x.size * highest)
    step, offset = (share * value + jax.lax.stop_gradient((1.0 - share) * value) for value in (step, offset))
    moved = quantize(x - offset, step, lowest, highest, code)
    return jnp.where(jnp.asarray(code) == FLOAT32, x, moved + offset)


def lsq_initial(x: Float[Array, "... n"], code: Format) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Step and offset from which `learned_step_quantize` may start to learn: of the least squared error on `x`.

    That is the initialisation of LSQ+ for activations (section 3.3 there). The minimum is looked for as in
    `activation_range` with the method ``mse``, but with shares of the distances from the mean.
    """
    lowest, highest = _ends_from_offset(code)

    def rounded(values: Array, low: Array, high: Array) -> Array:
        step, offset = _step_and_offset(low, high, lowest, highest)
        return quantize(values - offset, step, lowest, highest, code) + offset

    x = jax.lax.stop_gradient(x)
    low, high = _least_error_range(_spread_over(x, N_OF_ERRORS), _extremes(x), x.mean(), rounded)
    return _step_and_offset(low, high, lowest, highest)


def _ends_from_offset(code: Format) -> tuple[Array, Array]:
    numbers = _numbers(code)
    lowest = jnp.where(numbers.is_minifloat, -numbers.largest, 0.0)
    return lowest, jnp.where(numbers.is_minifloat, numbers.largest, numbers.levels)


def _step_and_offset(low: Array, high: Array, lowest: Array, highest: Array) -> tuple[Array, Array]:
    step = (high - low) / (highest - lowest)
    step = jnp.where(step > LEAST_SCALE, step, 1.0)
    return step, low - lowest * step


def learned_factor(steps: Float[Array, " steps"], code: Format, n_values: int | Int[Array, ""]) -> Float[Array, ""]:
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
