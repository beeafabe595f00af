"""The weights of each block type: how they are made, chosen from and applied.

A block's weights are kept at its largest. A choice takes a part of them (`weights_for`), and that part is what training
applies and what extraction keeps, so a subnet in the supernet and the extracted net cannot differ. An elastic value may
be a Python int (a static slice: fewer operations, one executable per value) or a traced integer (a mask: the same
operations for every value, one executable).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from hanax.search_spaces import Activation, Block, ConvBlock, Head, MBConv
from hanax.supernet._depthwise import depthwise, kernel_is_data
from hanax.supernet._layers import Statistics, activate, batch_norm, convolve, pointwise

BlockParams = dict[str, dict[str, Array]]
"""Operator within the block (``expand``, ``se.reduce``, ...) -> weight name -> array."""

ElasticValue = int | Array

Norms = int | dict[str, Statistics]
"""Batch-norm statistics per operator of a block, or how many leading images they are to come from."""


@dataclass(frozen=True, slots=True)
class BlockNet:
    """What the supernet must know about a block type.

    Attributes:
        init: ``(block, rng) -> params`` at the block's largest.
        weights_for: ``(block, params, choice) -> params`` of the operators of the block with that choice.
        apply: ``(block, weights, x, choice, norms) -> (y, statistics per operator with a norm)``.
        is_data: ``(block, height) -> flags``: elastic parameters to pass as traced values, as they cost nothing extra
            on an input map of `height`.
    """

    init: Callable[[Any, np.random.Generator], BlockParams]
    weights_for: Callable[[Any, BlockParams, tuple[ElasticValue, ...]], BlockParams]
    apply: Callable[[Any, BlockParams, Array, tuple[ElasticValue, ...], Norms], tuple[Array, dict[str, Statistics]]]
    is_data: Callable[[Any, int], tuple[bool, ...]]


def net_of(block: Block) -> BlockNet:
    """The implementation of a block's type.

    Raises:
        TypeError: The type has none.
    """
    for block_type, net in NETS.items():
        if isinstance(block, block_type):
            return net
    known = ", ".join(block_type.__name__ for block_type in NETS)
    raise TypeError(f"no weights are known for blocks of type {type(block).__name__}; known: {known}")


def apply_block(
    block: Block, params: BlockParams, x: Float[Array, "c h w n"], choice: tuple[ElasticValue, ...], norms: Norms
) -> tuple[Array, dict[str, Statistics]]:
    """Output of `block` with `choice`, and the batch-norm statistics per operator (see `batch_norm`)."""
    net = net_of(block)
    return net.apply(block, net.weights_for(block, params, choice), x, choice, norms)


def _norm_of(norms: Norms, name: str) -> int | Statistics:
    return norms if isinstance(norms, int) else norms[name]


def _kernel(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """He-normal initialisation (He et al., 2015, arXiv:1502.01852)."""
    return jnp.asarray(rng.normal(0.0, np.sqrt(2.0 / fan_in), shape), jnp.float32)


def _norm(channels: int, scale: float = 1.0) -> dict[str, Array]:
    return {"scale": jnp.asarray(np.full(channels, scale, np.float32)), "offset": _zeros(channels)}


def _zeros(channels: int) -> Array:
    return jnp.asarray(np.zeros(channels, np.float32))


def _is_static(value: ElasticValue) -> bool:
    return isinstance(value, int)


def limit(x: Array, count: ElasticValue) -> Array:
    """`x` with all but the first `count` channels zero; nothing to do where the slice was static."""
    if _is_static(count):
        return x
    active = jnp.arange(x.shape[0]) < count
    return jnp.where(active.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)


def _look_up(value: ElasticValue, options: tuple[int, ...], results: list[int]) -> ElasticValue:
    """The entry of `results` at the position of `value` in ascending `options`."""
    if isinstance(value, int):
        return results[options.index(value)]
    return jnp.array(results)[jnp.searchsorted(jnp.array(options), value)]


# ---- ConvBlock ------------------------------------------------------------------------------------------------


def _init_conv(block: ConvBlock, rng: np.random.Generator) -> BlockParams:
    shape = (block.out_channels, block.in_channels, block.kernel_size, block.kernel_size)
    kernel = _kernel(rng, shape, block.in_channels * block.kernel_size**2)
    return {"conv": {"kernel": kernel, **_norm(block.out_channels)}}


def _apply_conv(
    block: ConvBlock, weights: BlockParams, x: Array, choice: tuple[ElasticValue, ...], norms: Norms
) -> tuple[Array, dict[str, Statistics]]:
    conv = weights["conv"]
    y = convolve(x, conv["kernel"], block.stride)
    y, statistics = batch_norm(y, conv["scale"], conv["offset"], _norm_of(norms, "conv"), block.activation)
    return y, {"conv": statistics}


# ---- MBConv ---------------------------------------------------------------------------------------------------


def _init_mbconv(block: MBConv, rng: np.random.Generator) -> BlockParams:
    mid = block.mid_channels(block.expand_ratios[-1])
    largest = block.kernel_sizes[-1]
    params: BlockParams = {}
    if block.has_expansion:
        params["expand"] = {"kernel": _kernel(rng, (mid, block.in_channels), block.in_channels), **_norm(mid)}
    params["depthwise"] = {"kernel": _kernel(rng, (mid, largest, largest), largest**2), **_norm(mid)}
    for size in block.kernel_sizes[:-1]:
        params["depthwise"][f"transform{size}"] = jnp.asarray(np.eye(size * size, dtype=np.float32))
    if block.has_squeeze_excite:
        squeeze = block.squeeze_channels(block.expand_ratios[-1])
        params["se.reduce"] = {"kernel": _kernel(rng, (squeeze, mid), mid), "bias": _zeros(squeeze)}
        params["se.expand"] = {"kernel": _kernel(rng, (mid, squeeze), squeeze), "bias": _zeros(mid)}
    # A residual block starts as the identity (scale 0), which keeps deep subnets trainable beside shallow ones
    # (BigNAS, Yu et al., 2020, arXiv:2003.11142, section 3.2).
    params["project"] = {
        "kernel": _kernel(rng, (block.out_channels, mid), mid),
        **_norm(block.out_channels, 0.0 if block.has_residual else 1.0),
    }
    return params


def elastic_kernel(block: MBConv, depthwise_params: Mapping[str, Array], kernel_size: ElasticValue) -> Array:
    """Depthwise kernel of `kernel_size`: the centre of the next larger one through a learned matrix.

    Once-for-All's kernel transformation (Cai et al., 2020, section 3.3): one matrix per size and block, shared by
    the channels; it starts as the identity, so a smaller kernel starts as the centre crop. With a traced size
    every kernel is embedded in zeros at the largest size.
    """
    sizes = block.kernel_sizes
    kernels = {sizes[-1]: depthwise_params["kernel"]}
    for larger, size in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
        margin = (larger - size) // 2
        centre = kernels[larger][:, margin : margin + size, margin : margin + size]
        flat = centre.reshape(-1, size * size) @ depthwise_params[f"transform{size}"].T
        kernels[size] = flat.reshape(-1, size, size)
    if isinstance(kernel_size, int):
        return kernels[kernel_size]
    embedded = [jnp.pad(kernels[size], ((0, 0), *(((sizes[-1] - size) // 2,) * 2,) * 2)) for size in sizes]
    index = jnp.searchsorted(jnp.array(sizes), kernel_size).astype(jnp.int32)
    return jax.lax.select_n(index, *embedded) if len(embedded) > 1 else embedded[0]


def elastic_mid(block: MBConv, expand_ratio: ElasticValue) -> ElasticValue:
    """Channels of the depthwise convolution."""
    return _look_up(expand_ratio, block.expand_ratios, [block.mid_channels(ratio) for ratio in block.expand_ratios])


def elastic_squeeze(block: MBConv, expand_ratio: ElasticValue) -> ElasticValue:
    """Channels between the two squeeze-excite convolutions."""
    return _look_up(expand_ratio, block.expand_ratios, [block.squeeze_channels(ratio) for ratio in block.expand_ratios])


def _mbconv_weights(block: MBConv, params: BlockParams, choice: tuple[ElasticValue, ...]) -> BlockParams:
    kernel_size, expand_ratio = choice
    # Masks leave the arrays whole; static values take leading slices.
    widest = expand_ratio if isinstance(expand_ratio, int) else block.expand_ratios[-1]
    mid, squeeze = block.mid_channels(widest), block.squeeze_channels(widest)

    def leading(name: str, *counts: int) -> dict[str, Array]:
        """The first `counts` of each axis: all arrays of an operator share their first axis with its kernel."""
        return {
            key: array[tuple(slice(count) for count in counts[: array.ndim])] for key, array in params[name].items()
        }

    depthwise_params = {key: params["depthwise"][key] for key in params["depthwise"] if key.startswith("transform")}
    depthwise_params["kernel"] = params["depthwise"]["kernel"][:mid]
    weights: BlockParams = {}
    if block.has_expansion:
        weights["expand"] = leading("expand", mid)
    weights["depthwise"] = {
        "kernel": elastic_kernel(block, depthwise_params, kernel_size),
        "scale": params["depthwise"]["scale"][:mid],
        "offset": params["depthwise"]["offset"][:mid],
    }
    if block.has_squeeze_excite:
        weights["se.reduce"] = leading("se.reduce", squeeze, mid)
        weights["se.expand"] = leading("se.expand", mid, squeeze)
    weights["project"] = leading("project", block.out_channels, mid)
    return weights


def _apply_mbconv(
    block: MBConv, weights: BlockParams, x: Array, choice: tuple[ElasticValue, ...], norms: Norms
) -> tuple[Array, dict[str, Statistics]]:
    kernel_size, expand_ratio = choice
    statistics: dict[str, Statistics] = {}

    def normed(name: str, y: Array, activation: Activation = "none") -> Array:
        scale, offset = weights[name]["scale"], weights[name]["offset"]
        y, statistics[name] = batch_norm(y, scale, offset, _norm_of(norms, name), activation)
        return y

    y = x
    if block.has_expansion:
        y = normed("expand", pointwise(y, weights["expand"]["kernel"]), block.activation)
    y = depthwise(y, weights["depthwise"]["kernel"], block.stride, kernel_size)
    y = normed("depthwise", y, block.activation)
    y = limit(
        y, elastic_mid(block, expand_ratio)
    )  # after the activation: the offset of the batch norm revives what was zero before it
    if block.has_squeeze_excite:
        gate = _squeeze_excite(weights, y.mean(axis=(1, 2)), elastic_squeeze(block, expand_ratio))
        y = y * gate[:, None, None, :]
    y = normed("project", pointwise(y, weights["project"]["kernel"]))
    return (x + y if block.has_residual else y), statistics


def _squeeze_excite(weights: BlockParams, pooled: Float[Array, "c n"], squeeze: ElasticValue) -> Float[Array, "c n"]:
    """Gate per channel and image (Hu et al., 2018, arXiv:1709.01507), with MobileNetV3's hard sigmoid."""
    reduce, expand = weights["se.reduce"], weights["se.expand"]
    hidden = limit(activate(reduce["kernel"] @ pooled + reduce["bias"][:, None], "relu"), squeeze)
    return activate(expand["kernel"] @ hidden + expand["bias"][:, None], "hsigmoid")


def _mbconv_is_data(block: MBConv, height: int) -> tuple[bool, ...]:
    return (kernel_is_data(height, block.stride, block.kernel_sizes[-1]), False)


# ---- Head -----------------------------------------------------------------------------------------------------


def _init_head(block: Head, rng: np.random.Generator) -> BlockParams:
    wide, features = block.wide_channels, block.feature_channels
    return {
        "expand": {"kernel": _kernel(rng, (wide, block.in_channels), block.in_channels), **_norm(wide)},
        "mix": {"kernel": _kernel(rng, (features, wide), wide)},
        "classify": {
            "kernel": jnp.asarray(rng.normal(0.0, 0.01, (block.n_classes, features)), jnp.float32),
            "bias": _zeros(block.n_classes),
        },
    }


def _apply_head(
    block: Head, weights: BlockParams, x: Array, choice: tuple[ElasticValue, ...], norms: Norms
) -> tuple[Array, dict[str, Statistics]]:
    expand, classify = weights["expand"], weights["classify"]
    y = pointwise(x, expand["kernel"])
    y, statistics = batch_norm(y, expand["scale"], expand["offset"], _norm_of(norms, "expand"), block.activation)
    pooled = y.mean(axis=(1, 2))
    features = activate(weights["mix"]["kernel"] @ pooled, block.activation)
    logits = classify["kernel"] @ features + classify["bias"][:, None]
    return logits.T, {"expand": statistics}


def _all_weights(block: Block, params: BlockParams, choice: tuple[ElasticValue, ...]) -> BlockParams:
    return params


def _nothing_elastic(block: Block, height: int) -> tuple[bool, ...]:
    return ()


NETS: dict[type, BlockNet] = {
    ConvBlock: BlockNet(_init_conv, _all_weights, _apply_conv, _nothing_elastic),
    MBConv: BlockNet(_init_mbconv, _mbconv_weights, _apply_mbconv, _mbconv_is_data),
    Head: BlockNet(_init_head, _all_weights, _apply_head, _nothing_elastic),
}
