"""One architecture in the arrays of the whole supernet, so that every subnet is trained by the same executables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hanax.search_spaces import Arch, Block, Choice, PlacedBlock, Precision, SearchSpace
from hanax.supernet._blocks import BlockParams, net_of
from hanax.supernet._chain import Params, init_params
from hanax.supernet._fake_quant import learned_factor
from hanax.supernet._quantized_blocks import STEPS

TRANSFORM = "transform"
"""How the names of kernel transforms begin."""


def fresh_subnet(space: SearchSpace, arch: Arch, seed: int) -> Params:
    """Fresh weights that suit `arch` alone: kernels drawn for its own fan-in, not for the largest net's.

    Kernel transforms are the identity, so a smaller kernel is the centre of the largest.
    """
    params = init_params(space, seed)
    own = {placed.slot.name: _own_weights(placed.slot.block, placed.choice, params[placed.slot.name])
           for placed in space.blocks(arch)}  # fmt: skip

    def scaled(path: Any, array: Array) -> Array:
        slot, operator, name = (key.key for key in path)
        if slot not in own or name != "kernel":
            return array
        fan_in, own_fan_in = (np.prod(kernel.shape[1:]) for kernel in (array, own[slot][operator][name]))
        return jnp.asarray(np.asarray(array) * np.float32(np.sqrt(fan_in / own_fan_in)))

    result: Params = jax.tree_util.tree_map_with_path(scaled, params)
    return result


def inherited_subnet(space: SearchSpace, params: Params, arch: Arch) -> Params:
    """`params` with the kernels that `arch` makes by transforms put where identity transforms find them.

    The function of `arch` does not change by it; other subnets' do.
    """
    result = dict(params)
    for placed in space.blocks(arch):
        name = placed.slot.name
        own = _own_weights(placed.slot.block, placed.choice, params[name])
        result[name] = {
            operator: _untransformed(arrays, own[operator]["kernel"]) if _has_transform(arrays) else arrays
            for operator, arrays in params[name].items()
        }
    return result


def trainable_weights(space: SearchSpace, params: Params, arch: Arch) -> Params:
    """1 for each weight that `arch` reads where kernel transforms are the identity, 0 for all others and transforms.

    Of learned steps it reads those of its own formats.
    """
    used = {placed.slot.name: placed for placed in space.blocks(arch)}

    def mask(slot: str, weights: BlockParams) -> BlockParams:
        if slot not in used:
            unread: BlockParams = jax.tree.map(lambda array: jnp.asarray(np.zeros(array.shape, np.float32)), weights)
            return unread
        return _read_by(used[slot], weights)

    return {slot: mask(slot, weights) for slot, weights in params.items()}


def _read_by(placed: PlacedBlock, weights: BlockParams) -> BlockParams:
    """1 for each of the block's weights that it reads as `placed`, see `trainable_weights`; 0 for the others."""
    shared = {operator: arrays for operator, arrays in weights.items() if operator != STEPS}
    read: BlockParams = _read_weights(placed.slot.block, placed.choice, shared)
    if placed.precision is not None and STEPS in weights:
        read[STEPS] = {name: _read_steps(array, name, placed.precision) for name, array in weights[STEPS].items()}
    return read


def _read_steps(steps: Array, name: str, precision: Precision) -> Array:
    code = precision[0] if name.endswith(".kernel") else precision[1]
    read: Array = (jax.grad(learned_factor)(steps, code, 1) != 0.0).astype(jnp.float32)
    return read


def _has_transform(arrays: Mapping[str, Array]) -> bool:
    return any(name.startswith(TRANSFORM) for name in arrays)


def _untransformed(arrays: Mapping[str, Array], own_kernel: Array) -> dict[str, Array]:
    """`arrays` with `own_kernel` in the leading rows and the centre of the kernel, and identity transforms."""
    kernel = np.array(arrays["kernel"])
    rows, size = own_kernel.shape[:2]
    margin = (kernel.shape[1] - size) // 2
    kernel[:rows, margin : margin + size, margin : margin + size] = np.asarray(own_kernel)
    identity = {
        name: jnp.asarray(np.eye(len(array), dtype=np.float32))
        for name, array in arrays.items()
        if name.startswith(TRANSFORM)
    }
    return {**arrays, **identity, "kernel": jnp.asarray(kernel)}


@partial(jax.jit, static_argnames=("block", "choice"))
def _own_weights(block: Block, choice: Choice, params: BlockParams) -> BlockParams:
    return net_of(block).weights_for(block, params, choice)


@partial(jax.jit, static_argnames=("block", "choice"))
def _read_weights(block: Block, choice: Choice, params: BlockParams) -> BlockParams:
    """1 where a weight is read by `choice` if transforms are the identity; 0 elsewhere, and for transforms."""

    def total(params: BlockParams) -> Array:
        leaves = jax.tree.leaves(net_of(block).weights_for(block, params, choice))
        return jnp.stack([array.sum() for array in leaves]).sum()

    def neutral(path: Any, array: Array) -> Array:
        return jnp.eye(len(array)) if path[-1].key.startswith(TRANSFORM) else jnp.ones_like(array)

    # At weights of 1 the derivatives of this sum are positive or 0: none can cancel another.
    slopes = jax.grad(total)(jax.tree_util.tree_map_with_path(neutral, params))

    def is_read(path: Any, slope: Array) -> Array:
        return (slope > 0.0).astype(jnp.float32) * (not path[-1].key.startswith(TRANSFORM))

    read: BlockParams = jax.tree_util.tree_map_with_path(is_read, slopes)
    return read
