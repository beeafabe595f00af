"""Sorting hidden channels by importance, so that a narrower subnet, which takes the leading ones, takes the best.

A permutation of the channels inside a block is not seen from outside: the largest subnet stays the same function. It is
done before widths become elastic (Once-for-All, Cai et al., 2020, arXiv:1908.09791, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from hanax.search_spaces import Block, MBConv, SearchSpace, Slot
from hanax.supernet._blocks import BlockParams
from hanax.supernet._chain import Params, backward_along, forward_with_tape
from hanax.supernet._distillation import cross_entropy

Importance = dict[str, dict[str, np.ndarray]]
"""Slot name -> group of channels (``mid``, ``squeeze``) -> importance of each channel of the block at its largest."""


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels inside a block that may trade places.

    Attributes:
        parameter: The elastic parameter that says how many leading channels a subnet takes.
        width: Their number for a value of `parameter`.
        rows: The operators with an output for each channel.
        columns: The operators with an input for each channel.
        reader: The one of `columns` through which all that a channel does leaves the group.
    """

    parameter: str
    width: Callable[[int], int]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    reader: str


def _mbconv_groups(block: MBConv) -> dict[str, ChannelGroup]:
    if not block.has_expansion:  # its channels are those of the block before
        return {}
    if not block.has_squeeze_excite:
        rows: tuple[str, ...] = ("expand", "depthwise")
        return {"mid": ChannelGroup("expand_ratio", block.mid_channels, rows, ("project",), "project")}
    rows = ("expand", "depthwise", "se.expand")
    return {
        "mid": ChannelGroup("expand_ratio", block.mid_channels, rows, ("se.reduce", "project"), "project"),
        "squeeze": ChannelGroup("expand_ratio", block.squeeze_channels, ("se.reduce",), ("se.expand",), "se.expand"),
    }


GROUPS: dict[type, Callable[[Any], dict[str, ChannelGroup]]] = {MBConv: _mbconv_groups}
"""Block type -> its groups of channels by name; the types that are not listed have none."""


def _groups(block: Block) -> dict[str, ChannelGroup]:
    for block_type, groups_of in GROUPS.items():
        if isinstance(block, block_type):
            return groups_of(block)
    return {}


def l1_importance(space: SearchSpace, params: Params) -> Importance:
    """Sum of the absolute weights that read a channel, as Once-for-All ranks them.

    Of a mid channel those of the projection, of a squeeze channel those of the second squeeze-excite convolution.
    """
    return _of_readers(space, lambda slot, operator: np.abs(_kernel(params, slot, operator)).sum(axis=0))


def taylor_importance(
    space: SearchSpace,
    params: Params,
    batches: Iterable[tuple[Float[Array, "c h w n"], Float[Array | np.ndarray, "n classes"]]],
) -> Importance:
    """Mean over `batches` of the squared derivative of the largest subnet's loss by a gate on each channel.

    The gate's derivative is ``sum_o w[o, c] dL/dw[o, c]`` over the weights that read channel c. Its square estimates
    the squared change of the loss without the channel to first order (Molchanov et al., 2019, arXiv:1906.10771, with
    the gate on what the next operator reads). Averaged, it is also the empirical Fisher information of the gate,
    which stands for the diagonal of the Hessian by the gates (Optimal Brain Damage, LeCun et al., 1989).

    Args:
        batches: Images, prepared at the largest resolution, and the probability of each class.

    Raises:
        ValueError: There are no batches.
    """
    sums: Importance = {}
    n_batches = 0
    for x, labels in batches:
        squared = _squared_gate_gradient(space, params, x, jnp.asarray(labels))
        sums = jax.tree.map(np.add, sums, squared) if n_batches else squared
        n_batches += 1
    if n_batches == 0:
        raise ValueError("taylor_importance needs at least one batch; got none")
    means: Importance = jax.tree.map(lambda total: total / n_batches, sums)
    return means


def _squared_gate_gradient(
    space: SearchSpace, params: Params, x: Float[Array, "c h w n"], labels: Float[Array, "n classes"]
) -> Importance:
    gradient: Params = jax.tree.map(lambda array: jnp.asarray(np.zeros_like(array)), params)
    logits, tape = forward_with_tape(space, params, space.largest, x)
    backward_along(tape, jax.grad(cross_entropy)(logits, labels), gradient)
    return _of_readers(
        space,
        lambda slot, operator: (_kernel(params, slot, operator) * _kernel(gradient, slot, operator)).sum(axis=0) ** 2,
    )


def _of_readers(space: SearchSpace, value: Callable[[str, str], Float[np.ndarray, " c"]]) -> Importance:
    """`value` of each group's slot and reader."""
    importance = {
        slot.name: {name: value(slot.name, group.reader) for name, group in _groups(slot.block).items()}
        for slot in space.slots
    }
    return {slot: groups for slot, groups in importance.items() if groups}


def _kernel(params: Params, slot: str, operator: str) -> Float[np.ndarray, "c_out c"]:
    return np.asarray(params[slot][operator]["kernel"], np.float64)


def sort_channels(space: SearchSpace, params: Params, importance: Importance, *, keep: Sequence[int] = ()) -> Params:
    """`params` with the channels of each block by falling `importance`; the largest subnet stays the same function.

    State of an optimizer does not fit the new order.

    Args:
        keep: Expansion ratios that are elastic already. Channels are sorted between their widths only, so subnets that
            take only these ratios (and the largest one) stay the same functions too.

    Raises:
        ValueError: A ratio of `keep` is offered nowhere, or `importance` does not fit the channels or is not finite.
    """
    offered = sorted({value for slot in space.slots for group in _groups(slot.block).values()
                      for value in _offered(space, slot, group)})  # fmt: skip
    if unknown := sorted(set(keep) - set(offered)):
        raise ValueError(f"keep: expansion ratios {unknown} are offered nowhere; {space.name} offers {offered}")
    result = dict(params)
    for slot in space.slots:
        for name, group in _groups(slot.block).items():
            borders = _borders(space, slot, group, keep)
            values = importance[slot.name][name]
            if values.shape != (borders[-1],) or not np.isfinite(values).all():
                raise ValueError(
                    f"importance of {slot.name}, {name}: {borders[-1]} finite values are needed; "
                    f"got shape {values.shape} with {int((~np.isfinite(values)).sum())} that are not finite"
                )
            result[slot.name] = _permuted(result[slot.name], group, _order(values, borders))
    return result


def _offered(space: SearchSpace, slot: Slot, group: ChannelGroup) -> tuple[int, ...]:
    """The values of the group's parameter that `space` offers in `slot`, ascending."""
    setting = slot.settings[list(slot.block.elastic).index(group.parameter)]
    return (setting,) if isinstance(setting, int) else space.decisions[space.column(setting)].options


def _borders(space: SearchSpace, slot: Slot, group: ChannelGroup, keep: Sequence[int]) -> list[int]:
    """Widths that no channel may cross, ascending, with 0 and all channels there are."""
    offered = _offered(space, slot, group)
    fixed = {*(set(keep) & set(offered)), offered[-1], slot.block.elastic[group.parameter][-1]}
    return sorted({0, *(group.width(value) for value in fixed)})


def _order(importance: Float[np.ndarray, " c"], borders: list[int]) -> Int[np.ndarray, " c"]:
    """Channels in their new order: by falling importance between borders, equal ones as they were."""
    return np.concatenate(
        [start + np.argsort(-importance[start:end], kind="stable") for start, end in pairwise(borders)]
    )


def _permuted(params: BlockParams, group: ChannelGroup, order: Int[np.ndarray, " c"]) -> BlockParams:
    def reordered(array: Array, axis: int) -> Array:  # by numpy: JAX would compile once per shape
        return jnp.asarray(np.take(np.asarray(array), order, axis=axis))

    result = dict(params)
    for name in group.rows:  # kernel transforms are shared by the channels
        result[name] = {
            key: array if key.startswith("transform") else reordered(array, 0) for key, array in result[name].items()
        }
    for name in group.columns:
        result[name] = result[name] | {"kernel": reordered(result[name]["kernel"], 1)}
    return result
