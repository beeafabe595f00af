"""Blocks as integer runtimes compute them, in float32 and with gradients: their kernels and tensors fake-quantized.

What is in which format says ``hanax/search_spaces/_precision.py``. A block quantizes its input, in its own activation
format, and all that it keeps inside; its output is the next block's input. Batch norms are not folded: a kernel's scale
is per output channel, so that quantizing and folding may come in either order (see `kernel_scale`).

What lies before a hard swish is in 8 bits, from -3 on, below which it is 0; a squeeze-excite gate in 8 bits, from 0 to
1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from hanax.search_spaces import FLOAT32, INT8, Activation, Block, ConvBlock, Head, MBConv
from hanax.supernet._blocks import BlockParams, ElasticValue, Norms, elastic_mid, elastic_squeeze, limit, net_of
from hanax.supernet._depthwise import depthwise
from hanax.supernet._fake_quant import (
    N_STEPS,
    Calibration,
    Format,
    activation_range,
    learned_factor,
    quantize_activation,
    quantize_kernel,
)
from hanax.supernet._layers import Statistics, activate, batch_norm, convolve, pointwise

STEPS = "steps"
"""Beside a block's operators, the learned steps of its tensors and kernels; absent where nothing was learned."""

TracedPrecision = tuple[Format, Format]


def range_name(tensor: str) -> str:
    """Under which name the range of `tensor` is kept among a block's statistics."""
    return f"{tensor}.range"


def learned_tensors(block: Block) -> list[str]:
    """What of `block` is in a policy's formats: tensors by the name of their operator, kernels as ``OPERATOR.kernel``.

    Raises:
        TypeError: Blocks of this type cannot be quantized.
    """
    if isinstance(block, ConvBlock):
        return ["input", "conv.kernel"]
    if isinstance(block, Head):
        return ["input", "expand.kernel"]
    if isinstance(block, MBConv):
        names = ["input", "se.scale" if block.has_squeeze_excite else "depthwise", "depthwise.kernel", "project.kernel"]
        return [*names, "expand", "expand.kernel"] if block.has_expansion else names
    raise TypeError(f"blocks of type {type(block).__name__} cannot be quantized yet; ConvBlock, MBConv and Head can")


def initial_steps(block: Block) -> dict[str, Array]:
    """Learned steps of `block` before anything was learned."""
    return {name: jnp.asarray(np.zeros(N_STEPS, np.float32)) for name in learned_tensors(block)}


def apply_quantized(
    block: Block,
    params: BlockParams,
    x: Float[Array, "c h w n"],
    choice: tuple[ElasticValue, ...],
    precision: TracedPrecision,
    norms: Norms,
    calibration: Calibration = "minmax",
) -> tuple[Array, dict[str, Statistics]]:
    """As `apply_block`, quantized. The statistics also hold, as `range_name` says, the range of every tensor."""
    points = _Points(params.get(STEPS, {}), precision, norms, calibration)
    weights = net_of(block).weights_for(block, params, choice)
    apply: Callable[..., Array] = next(of for kind, of in APPLY.items() if isinstance(block, kind))
    return apply(block, weights, x, choice, points), points.statistics


class _Points:
    """The quantization points of one block while it is traced; collects its statistics."""

    def __init__(
        self, steps: dict[str, Array], precision: TracedPrecision, norms: Norms, calibration: Calibration
    ) -> None:
        self.steps, self.precision, self.norms, self.calibration = steps, precision, norms, calibration
        self.statistics: dict[str, Statistics] = {}

    def tensor(self, name: str, x: Array, n_channels: ElasticValue) -> Array:
        """`x`, which an operator with a batch norm reads: in the policy's format.

        Args:
            n_channels: Those that count; the others are 0.
        """
        code = self.precision[1]
        low, high = self._range(name, x, code)
        factor = self._factor(name, code, x.size // x.shape[0] * n_channels)
        return quantize_activation(x, low * factor, high * factor, code)

    def int8(self, name: str, x: Array, least: float | None = None) -> Array:
        """`x` in 8 bits, unless the policy is not to quantize; values below `least` are cut off."""
        low, high = self._range(name, x if least is None else jnp.maximum(x, least), INT8)
        return quantize_activation(x, low, high, _int8_unless_float(self.precision[1]))

    def gate(self, x: Array) -> Array:
        """`x`, from 0 to 1, in 8 bits."""
        return quantize_activation(x, jnp.zeros(()), jnp.ones(()), _int8_unless_float(self.precision[1]))

    def _range(self, name: str, x: Array, code: Format) -> Statistics:
        if isinstance(self.norms, int):
            found = activation_range(x, code, self.calibration, self.norms)
        else:
            found = self.norms[range_name(name)]
        self.statistics[range_name(name)] = found
        return found

    def _factor(self, key: str, code: Format, n_values: ElasticValue) -> Array | float:
        return learned_factor(self.steps[key], code, n_values) if key in self.steps else 1.0

    def kernel(self, name: str, kernel: Array, n_values: ElasticValue) -> Array:
        """A kernel with a batch norm after it: in the policy's format.

        Args:
            n_values: Those that count; others are 0, or of output channels that do not count.
        """
        code = self.precision[0]
        return quantize_kernel(kernel, code, self._factor(f"{name}.kernel", code, n_values))

    def int8_kernel(self, kernel: Array) -> Array:
        """A kernel without a batch norm, in 8 bits, unless the policy is not to quantize."""
        return quantize_kernel(kernel, _int8_unless_float(self.precision[0]))

    def normed(
        self, name: str, y: Array, weights: BlockParams, activation: Activation, n_channels: ElasticValue
    ) -> Array:
        """`y` after the batch norm and the activation of operator `name`; 0 but for the first `n_channels`."""
        norm = self.norms if isinstance(self.norms, int) else self.norms[name]
        scale, offset = weights[name]["scale"], weights[name]["offset"]
        fused: Activation = "none" if activation == "hswish" else activation
        y, self.statistics[name] = batch_norm(y, scale, offset, norm, fused)
        y = limit(y, n_channels)  # the offset of the batch norm revived what was zero before it
        return y if fused == activation else self.hard_swish(name, y)

    def hard_swish(self, name: str, raw: Array) -> Array:
        """The activation of operator `name`; both what it reads and the operator's output are tensors of their own."""
        return activate(self.int8(f"{name}.raw", raw, least=-3.0), "hswish")


def _int8_unless_float(code: Format) -> Array:
    return jnp.where(jnp.asarray(code) == FLOAT32, FLOAT32, INT8)


def _apply_conv(
    block: ConvBlock, weights: BlockParams, x: Array, choice: tuple[ElasticValue, ...], points: _Points
) -> Array:
    kernel = weights["conv"]["kernel"]
    kernel = points.kernel("conv", kernel, kernel.size)
    y = convolve(points.tensor("input", x, block.in_channels), kernel, block.stride)
    return points.normed("conv", y, weights, block.activation, block.out_channels)


def _apply_mbconv(
    block: MBConv, weights: BlockParams, x: Array, choice: tuple[ElasticValue, ...], points: _Points
) -> Array:
    # Where masks leave arrays whole, what does not count is 0 before a range or a scale is taken from them.
    kernel_size, expand_ratio = choice
    mid = elastic_mid(block, expand_ratio)
    x = y = points.tensor("input", x, block.in_channels)
    if block.has_expansion:
        y = pointwise(y, points.kernel("expand", weights["expand"]["kernel"], mid * block.in_channels))
        y = points.tensor("expand", points.normed("expand", y, weights, block.activation, mid), mid)
    kernel = points.kernel("depthwise", weights["depthwise"]["kernel"], mid * kernel_size * kernel_size)
    y = depthwise(y, kernel, block.stride, kernel_size)
    y = points.normed("depthwise", y, weights, block.activation, mid)
    if block.has_squeeze_excite:
        y = points.int8("depthwise", y)
        gate = _gate(weights, y.mean(axis=(1, 2)), mid, elastic_squeeze(block, expand_ratio), points)
        y = points.tensor("se.scale", y * gate[:, None, None, :], mid)
    else:
        y = points.tensor("depthwise", y, mid)
    kernel = points.kernel("project", _limit_inputs(weights["project"]["kernel"], mid), block.out_channels * mid)
    y = points.normed("project", pointwise(y, kernel), weights, "none", block.out_channels)
    return x + points.int8("project", y) if block.has_residual else y


def _gate(
    weights: BlockParams, pooled: Float[Array, "c n"], mid: ElasticValue, squeeze: ElasticValue, points: _Points
) -> Array:
    """As of a block that is not quantized, with every tensor and kernel in 8 bits."""
    reduce, expand = weights["se.reduce"], weights["se.expand"]
    kernel = points.int8_kernel(_limit_inputs(reduce["kernel"], mid))
    hidden = kernel @ points.int8("se.pool", pooled) + reduce["bias"][:, None]
    hidden = points.int8("se.reduce", limit(activate(hidden, "relu"), squeeze))
    raw = points.int8_kernel(_limit_inputs(expand["kernel"], squeeze)) @ hidden + expand["bias"][:, None]
    return points.gate(activate(raw, "hsigmoid"))


def _limit_inputs(kernel: Float[Array, "c_out c"], count: ElasticValue) -> Float[Array, "c_out c"]:
    return limit(kernel.T, count).T


def _apply_head(
    block: Head, weights: BlockParams, x: Array, choice: tuple[ElasticValue, ...], points: _Points
) -> Array:
    kernel = points.kernel("expand", weights["expand"]["kernel"], block.wide_channels * block.in_channels)
    y = pointwise(points.tensor("input", x, block.in_channels), kernel)
    y = points.int8("expand", points.normed("expand", y, weights, block.activation, block.wide_channels))
    pooled = points.int8("pool", y.mean(axis=(1, 2)))
    mixed = points.int8_kernel(weights["mix"]["kernel"]) @ pooled
    mixed = points.hard_swish("mix", mixed) if block.activation == "hswish" else activate(mixed, block.activation)
    classify = weights["classify"]
    logits = points.int8_kernel(classify["kernel"]) @ points.int8("mix", mixed) + classify["bias"][:, None]
    return points.int8("classify", logits).T


APPLY: dict[type, Callable[..., Array]] = {ConvBlock: _apply_conv, MBConv: _apply_mbconv, Head: _apply_head}
"""By type of block: ``(block, weights, x, choice, points) -> y``."""
