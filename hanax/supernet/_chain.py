"""A subnet as a chain of block executables: compile once per (block, expansion, map size), run any subnet.

XLA compiles per shape and a once-for-all space has up to 10^20 shapes, but only a few dozen different blocks.
Each block is its own jitted function. The forward one returns its output and its `jax.vjp` closure, which is a pytree,
so the residuals stay on the device; the backward one takes the closure and adds to the gradient in place.

Shapes: images in layout ``C H W N``; logits ``(N, classes)``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from hanax.search_spaces import INPUT, INT8, RESOLUTION, Arch, Block, PlacedBlock, SearchSpace
from hanax.supernet._backend import release_freed_memory
from hanax.supernet._blocks import BlockParams, ElasticValue, Norms, net_of
from hanax.supernet._fake_quant import Calibration
from hanax.supernet._layers import Statistics
from hanax.supernet._precision import ComputeDtype, apply_block_in
from hanax.supernet._quantized_blocks import STEPS, apply_quantized, initial_steps

Params = dict[str, BlockParams]
"""Slot name -> weights of its block at its largest."""

Progress = Callable[[int, int], None]
"""Called with how many parts are done, and of how many."""


def init_params(space: SearchSpace, seed: int) -> Params:
    """Fresh weights of the supernet of `space`, drawn with numpy: `jax.random` would compile once per shape."""
    rng = np.random.default_rng(seed)
    return with_steps(space, {slot.name: net_of(slot.block).init(slot.block, rng) for slot in space.slots})


def with_steps(space: SearchSpace, params: Params) -> Params:
    """`params` with the learned steps that blocks of a quantized `space` have, where there are none yet.

    So the weights of a float supernet become those of a quantized one, to which nothing was taught: post-training
    quantization.
    """
    quantized = {slot.name: slot.block for slot in space.slots if slot.precision is not None}
    return {
        name: weights
        if STEPS in weights or name not in quantized
        else weights | {STEPS: initial_steps(quantized[name])}
        for name, weights in params.items()
    }


@partial(jax.jit, static_argnames=("side",))
def prepare(
    images: UInt8[Array, "n h w c"], mean: Float[Array, " c"], std: Float[Array, " c"], side: int
) -> Float[Array, "c side side n"]:
    """Normalised images in the supernet's layout, resized (bilinear, antialiased) where `side` is another size."""
    x = images.astype(jnp.float32) / 255.0
    if x.shape[1:3] != (side, side):
        x = jax.image.resize(x, (x.shape[0], side, side, x.shape[3]), "linear", antialias=True)
    x = x.transpose(3, 1, 2, 0)
    return (x - mean[:, None, None, None]) / std[:, None, None, None]


Split = tuple[tuple[int | None, ...], tuple[Array, ...]]


def _split_choice(placed: PlacedBlock, height: int) -> Split:
    """The choice as its static part (None where traced) and its traced values, last of all the precision, if any."""
    flags = net_of(placed.slot.block).is_data(placed.slot.block, height)
    static = tuple(None if is_data else value for value, is_data in zip(placed.choice, flags, strict=True))
    data = [value for value, is_data in zip(placed.choice, flags, strict=True) if is_data]
    return static, tuple(jnp.asarray(value, jnp.int32) for value in (*data, *(placed.precision or ())))


def _apply(
    dtype: ComputeDtype,
    block: Block,
    static: tuple[int | None, ...],
    params: BlockParams,
    x: Array,
    traced: tuple[Array, ...],
    norms: Norms,
    calibration: Calibration = "minmax",
) -> tuple[Array, dict[str, Statistics]]:
    """The block with the choice and the precision that `_split_choice` took apart."""
    values = iter(traced)
    choice: tuple[ElasticValue, ...] = tuple(next(values) if value is None else value for value in static)
    precision = tuple(values)
    if not precision:
        return apply_block_in(dtype, block, params, x, choice, norms)
    return apply_quantized(block, params, x, choice, (precision[0], precision[1]), norms, calibration)


@partial(jax.jit, static_argnames=("block", "static", "is_first", "dtype"))
def _forward(
    block: Block,
    static: tuple[int | None, ...],
    params: BlockParams,
    x: Array,
    traced: tuple[Array, ...],
    is_first: bool,
    dtype: ComputeDtype,
) -> tuple[Array, Any]:
    def apply(params: BlockParams, x: Array) -> Array:
        return _apply(dtype, block, static, params, x, traced, x.shape[-1])[0]

    if is_first:  # nobody needs the gradient of the images
        return jax.vjp(lambda params: apply(params, x), params)
    return jax.vjp(apply, params, x)


@partial(jax.jit, donate_argnums=(2,))
def _backward(vjp: Any, dy: Array, accumulated: BlockParams) -> tuple[BlockParams, tuple[Array, ...]]:
    gradient, *rest = vjp(dy)
    return jax.tree.map(jnp.add, accumulated, gradient), tuple(rest)


@partial(jax.jit, static_argnames=("block", "static", "n_statistics", "dtype", "calibration"))
def _evaluate(
    block: Block,
    static: tuple[int | None, ...],
    params: BlockParams,
    x: Array,
    traced: tuple[Array, ...],
    n_statistics: int | None,
    statistics: dict[str, Statistics] | None,
    dtype: ComputeDtype,
    calibration: Calibration,
) -> tuple[Array, dict[str, Statistics]]:
    norms: Any = n_statistics if statistics is None else statistics
    return _apply(dtype, block, static, params, x, traced, norms, calibration)


@partial(jax.jit, static_argnames=("blocks", "dtype"))
def _forward_whole(blocks: tuple[PlacedBlock, ...], params: Params, x: Array, dtype: ComputeDtype) -> tuple[Array, Any]:
    def apply(params: Params) -> Array:
        y = x
        for placed in blocks:
            slot = placed.slot
            precision = tuple(jnp.asarray(code, jnp.int32) for code in placed.precision or ())
            y, _ = _apply(dtype, slot.block, placed.choice, params[slot.name], y, precision, y.shape[-1])
        return y

    return jax.vjp(apply, params)


@partial(jax.jit, donate_argnums=(2,))
def _backward_whole(vjp: Any, dy: Array, accumulated: Params) -> Params:
    (gradient,) = vjp(dy)
    total: Params = jax.tree.map(jnp.add, accumulated, gradient)
    return total


Tape = list[tuple[tuple[str, ...], Any]]
"""For each executable run, in order: the names of its slots, and its vjp closure."""


def forward_with_tape(
    space: SearchSpace,
    params: Params,
    arch: Arch,
    x: Float[Array, "c h w n"],
    *,
    dtype: ComputeDtype = "float32",
    recurs: bool = False,
) -> tuple[Float[Array, "n classes"], Tape]:
    """Logits of `arch` in training mode (batch norm over the batch), and what `backward_along` needs.

    Args:
        dtype: What blocks compute in, see `apply_block_in`; quantized ones do in float32, and logits and gradients are.
        recurs: `arch` is worth executables of its own, which take seconds to compile and run faster than the chain.
    """
    if recurs:
        blocks = tuple(space.blocks(arch))
        names = tuple(placed.slot.name for placed in blocks)
        logits, vjp = _forward_whole(blocks, {name: params[name] for name in names}, x, dtype)
        return logits, [(names, vjp)]
    tape: Tape = []
    for placed in space.blocks(arch):
        slot = placed.slot
        static, traced = _split_choice(placed, x.shape[1])
        x, vjp = _forward(slot.block, static, params[slot.name], x, traced, not tape, dtype)
        tape.append(((slot.name,), vjp))
    return x, tape


def backward_along(tape: Tape, dlogits: Float[Array, "n classes"], gradient: Params) -> None:
    """Add the gradient for `dlogits` to `gradient`, whose old arrays must not be used afterwards. Empties `tape`."""
    dy = dlogits
    while tape:
        names, vjp = tape.pop()
        if len(names) > 1:
            gradient.update(_backward_whole(vjp, dy, {name: gradient[name] for name in names}))
            return
        gradient[names[0]], rest = _backward(vjp, dy, gradient[names[0]])
        dy = rest[0] if rest else dy


def evaluate_block(
    placed: PlacedBlock,
    params: Params,
    x: Float[Array, "c h w n"],
    norms: Norms,
    *,
    dtype: ComputeDtype = "float32",
    calibration: Calibration = "minmax",
) -> tuple[Array, dict[str, Statistics]]:
    """Output of one block in evaluation, and the batch-norm statistics per operator that normalised it.

    A block with a precision is quantized (and computed in float32); see `apply_quantized` for its further statistics.

    Args:
        norms: How many leading images the statistics come from, or the statistics found in an earlier pass.
        dtype: What the block computes in: float32, but for a frozen teacher, which is run as its students are.
        calibration: How ranges of tensors that are quantized are found.
    """
    static, traced = _split_choice(placed, x.shape[1])
    n_statistics, statistics = (norms, None) if isinstance(norms, int) else (None, norms)
    result: tuple[Array, dict[str, Statistics]] = _evaluate(
        placed.slot.block, static, params[placed.slot.name], x, traced, n_statistics, statistics, dtype, calibration
    )
    return result


def compile_chain(
    space: SearchSpace,
    params: Params,
    n_images: int,
    *,
    n_statistics: int | None = None,
    n_given: int | None = None,
    calibration: Calibration = "minmax",
    recurring: Sequence[Arch] = (),
    dtype: ComputeDtype = "float32",
    on_progress: Progress | None = None,
) -> int:
    """Compile all that a subnet of `space` can need on batches of `n_images`; returns the number of different parts.

    For training (forward and backward), or for evaluation if `n_statistics` is given. Runs in parallel threads, as
    XLA compiles outside Python's lock. Without this call executables are compiled one by one when first needed.

    Args:
        n_statistics: Leading images that batch-norm statistics come from.
        n_given: Also for later passes, over so many images, with the statistics of an earlier one.
        calibration: How ranges of quantized tensors are found in evaluation.
        recurring: Subnets that get executables of their own for training.
        dtype: What training computes in; quantized blocks do in float32 anyway.
    """
    parts = list(_executables(space, n_images))

    def build_whole(arch: Arch) -> None:
        logits, tape = forward_with_tape(
            space, params, arch, _zeros((*space.input_shape(arch), n_images)), dtype=dtype, recurs=True
        )
        gradient = {name: jax.tree.map(_zeros_like, weights) for name, weights in params.items()}
        backward_along(tape, logits, gradient)
        jax.block_until_ready(gradient)

    def build(placed: PlacedBlock, x_shape: tuple[int, ...], is_first: bool) -> None:
        slot = placed.slot
        if n_statistics is not None:
            y, found = evaluate_block(placed, params, _zeros(x_shape), n_statistics, calibration=calibration)
            if n_given is not None:
                given = _zeros((*x_shape[:-1], n_given))
                y, _ = evaluate_block(placed, params, given, found, calibration=calibration)
            y.block_until_ready()
            return
        x = _zeros(x_shape, "float32" if is_first or slot.precision is not None else dtype)
        static, traced = _split_choice(placed, x.shape[1])
        y, vjp = _forward(slot.block, static, params[slot.name], x, traced, is_first, dtype)
        zeros = jax.tree.map(_zeros_like, params[slot.name])
        jax.block_until_ready(_backward(vjp, np.zeros(y.shape, y.dtype), zeros))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        # The whole subnets take longest, so they come first.
        futures = [*(pool.submit(build_whole, arch) for arch in recurring), *(pool.submit(build, *p) for p in parts)]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if on_progress is not None:
                    on_progress(done, len(futures))
        except BaseException:  # an interrupt must not wait for what has not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    release_freed_memory()  # of the compiler, and of parts that ran side by side
    return len(futures)


def _zeros_like(array: Array) -> Array:
    return _zeros(array.shape)


def _zeros(shape: tuple[int, ...], dtype: ComputeDtype = "float32") -> Array:
    return jnp.asarray(np.zeros(shape, jnp.dtype(dtype)))  # numpy: jnp.zeros would compile once per shape


def _executables(space: SearchSpace, n_images: int) -> Iterator[tuple[PlacedBlock, tuple[int, ...], bool]]:
    """One example of every (block, static choice, input shape): what an executable is compiled for."""
    seen = set()
    options = {decision.name: decision.options for decision in space.decisions}
    for side in options[RESOLUTION]:
        shape = (space.image_channels, side, side)
        for position, slot in enumerate(space.slots):
            settings = [(s,) if isinstance(s, int) else options[s] for s in slot.settings]
            for choice in itertools.product(*settings):
                placed = PlacedBlock(slot, choice, None if slot.precision is None else (INT8, INT8))
                static, _ = _split_choice(placed, shape[1])
                if (slot.block, static, shape) not in seen:
                    seen.add((slot.block, static, shape))
                    yield placed, (*shape, n_images), position == 0
            shape = slot.block.lower(slot.name, choice, INPUT, shape)[-1].out_shape
