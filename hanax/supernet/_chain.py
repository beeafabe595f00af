"""A subnet as a chain of block executables: compile once per (block, expansion, map size), run any subnet.

XLA compiles per shape and a once-for-all space has up to 10^20 shapes, but only a few dozen different blocks.
Each block is its own jitted function. The forward one returns its output and its `jax.vjp` closure, which is a pytree,
so the residuals stay on the device; the backward one takes the closure and adds to the gradient in place.

Shapes: images in layout ``C H W N``; logits ``(N, classes)``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from hanax.search_spaces import INPUT, RESOLUTION, Arch, Block, PlacedBlock, SearchSpace
from hanax.supernet._blocks import BlockParams, ElasticValue, apply_block, net_of
from hanax.supernet._layers import Statistics

Params = dict[str, BlockParams]
"""Slot name -> weights of its block at its largest."""

Progress = Callable[[int, int], None]
"""Called with how many parts are done, and of how many."""


def init_params(space: SearchSpace, seed: int) -> Params:
    """Fresh weights of the supernet of `space`, drawn with numpy: `jax.random` would compile once per shape."""
    rng = np.random.default_rng(seed)
    return {slot.name: net_of(slot.block).init(slot.block, rng) for slot in space.slots}


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
    """The choice as its static part (None where traced) and its traced values."""
    flags = net_of(placed.slot.block).is_data(placed.slot.block, height)
    static = tuple(None if is_data else value for value, is_data in zip(placed.choice, flags, strict=True))
    return static, tuple(
        jnp.asarray(value, jnp.int32) for value, is_data in zip(placed.choice, flags, strict=True) if is_data
    )


def _merge_choice(static: tuple[int | None, ...], traced: tuple[Array, ...]) -> tuple[ElasticValue, ...]:
    values = iter(traced)
    return tuple(next(values) if value is None else value for value in static)


@partial(jax.jit, static_argnames=("block", "static", "is_first"))
def _forward(
    block: Block,
    static: tuple[int | None, ...],
    params: BlockParams,
    x: Array,
    traced: tuple[Array, ...],
    is_first: bool,
) -> tuple[Array, Any]:
    def apply(params: BlockParams, x: Array) -> Array:
        return apply_block(block, params, x, _merge_choice(static, traced), x.shape[-1])[0]

    if is_first:  # nobody needs the gradient of the images
        return jax.vjp(lambda params: apply(params, x), params)
    return jax.vjp(apply, params, x)


@partial(jax.jit, donate_argnums=(2,))
def _backward(vjp: Any, dy: Array, accumulated: BlockParams) -> tuple[BlockParams, tuple[Array, ...]]:
    gradient, *rest = vjp(dy)
    return jax.tree.map(jnp.add, accumulated, gradient), tuple(rest)


@partial(jax.jit, static_argnames=("block", "static", "n_statistics"))
def _evaluate(
    block: Block,
    static: tuple[int | None, ...],
    params: BlockParams,
    x: Array,
    traced: tuple[Array, ...],
    n_statistics: int,
) -> tuple[Array, dict[str, Statistics]]:
    return apply_block(block, params, x, _merge_choice(static, traced), n_statistics)


Tape = list[tuple[str, Any]]
"""For each block run, in order: its slot's name and its vjp closure."""


def forward_with_tape(
    space: SearchSpace, params: Params, arch: Arch, x: Float[Array, "c h w n"]
) -> tuple[Float[Array, "n classes"], Tape]:
    """Logits of `arch` in training mode (batch norm over the batch), and what `backward_along` needs."""
    tape: Tape = []
    for placed in space.blocks(arch):
        slot = placed.slot
        static, traced = _split_choice(placed, x.shape[1])
        x, vjp = _forward(slot.block, static, params[slot.name], x, traced, not tape)
        tape.append((slot.name, vjp))
    return x, tape


def backward_along(tape: Tape, dlogits: Float[Array, "n classes"], gradient: Params) -> None:
    """Add the gradient for `dlogits` to `gradient`, whose old arrays must not be used afterwards. Empties `tape`."""
    dy = dlogits
    while tape:
        name, vjp = tape.pop()
        gradient[name], rest = _backward(vjp, dy, gradient[name])
        dy = rest[0] if rest else dy


def evaluate_block(
    placed: PlacedBlock, params: Params, x: Float[Array, "c h w n"], n_statistics: int
) -> tuple[Array, dict[str, Statistics]]:
    """Output of one block in evaluation, and its batch-norm statistics over the first `n_statistics` images."""
    static, traced = _split_choice(placed, x.shape[1])
    result: tuple[Array, dict[str, Statistics]] = _evaluate(
        placed.slot.block, static, params[placed.slot.name], x, traced, n_statistics
    )
    return result


def compile_chain(
    space: SearchSpace,
    params: Params,
    n_images: int,
    *,
    n_statistics: int | None = None,
    on_progress: Progress | None = None,
) -> int:
    """Compile every executable that a subnet of `space` can need on batches of `n_images`; returns their number.

    For training (forward and backward), or for evaluation if `n_statistics` is given. Runs in parallel threads, as
    XLA compiles outside Python's lock. Without this call they are compiled one by one when first needed.
    """
    work = list(_executables(space, n_images))

    def build(placed: PlacedBlock, x_shape: tuple[int, ...], is_first: bool) -> None:
        slot = placed.slot
        x = jnp.asarray(np.zeros(x_shape, np.float32))  # numpy: jnp.zeros would compile once per shape
        if n_statistics is not None:
            evaluate_block(placed, params, x, n_statistics)[0].block_until_ready()
            return
        static, traced = _split_choice(placed, x.shape[1])
        y, vjp = _forward(slot.block, static, params[slot.name], x, traced, is_first)
        zeros = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), params[slot.name])
        jax.block_until_ready(_backward(vjp, np.zeros(y.shape, y.dtype), zeros))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(build, *item) for item in work]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if on_progress is not None:
                    on_progress(done, len(work))
        except BaseException:  # an interrupt must not wait for what has not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(work)


def _executables(space: SearchSpace, n_images: int) -> Iterator[tuple[PlacedBlock, tuple[int, ...], bool]]:
    """One example of every (block, static choice, input shape): what an executable is compiled for."""
    seen = set()
    options = {decision.name: decision.options for decision in space.decisions}
    for side in options[RESOLUTION]:
        shape = (space.image_channels, side, side)
        for position, slot in enumerate(space.slots):
            settings = [(s,) if isinstance(s, int) else options[s] for s in slot.settings]
            for choice in itertools.product(*settings):
                placed = PlacedBlock(slot, choice)
                static, _ = _split_choice(placed, shape[1])
                if (slot.block, static, shape) not in seen:
                    seen.add((slot.block, static, shape))
                    yield placed, (*shape, n_images), position == 0
            shape = slot.block.lower(slot.name, choice, INPUT, shape)[-1].out_shape
