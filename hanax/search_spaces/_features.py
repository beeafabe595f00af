"""Features of architectures for predictors: what every space gets for free from its decisions and its graph.

Shapes: `n` architectures, `f` features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from hanax.search_spaces._blocks import Choice
from hanax.search_spaces._graph import INPUT, Operator
from hanax.search_spaces._space import RESOLUTION, SearchSpace, Slot


def graph_features(space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> tuple[list[str], Float[np.ndarray, "n f"]]:
    """Names and values of sums over each network's operators, exact, without building a net per architecture.

    ``macs``, ``params``, ``traffic_values``, ``operators``; per class of operator (``conv1``, ``depthwise5``, ``add``,
    ...) its count and, where it has a kernel, its MACs. Blocks are lowered once per choice and input shape.
    """
    classes = sorted({_label(op) for ops in _every_block(space) for op in ops})
    weighted = sorted({_label(op) for ops in _every_block(space) for op in ops if op.is_weighted})
    names = ["macs", "params", "traffic_values", "operators"]
    names += [f"{label}.count" for label in classes] + [f"{label}.macs" for label in weighted]
    column = {name: index for index, name in enumerate(names)}

    def summary(ops: list[Operator]) -> Float[np.ndarray, " f"]:
        row = np.zeros(len(names))
        for op in ops:
            row[column["macs"]] += op.macs
            row[column["params"]] += op.params
            row[column["traffic_values"]] += op.traffic_values
            row[column["operators"]] += 1
            row[column[f"{_label(op)}.count"]] += 1
            if op.is_weighted:
                row[column[f"{_label(op)}.macs"]] += op.macs
        return row

    return names, fold_blocks(space, codes, summary, len(names))


def fold_blocks(
    space: SearchSpace,
    codes: Int[np.ndarray, "n d"],
    summary: Callable[[list[Operator]], ArrayLike],
    width: int,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.add,
) -> Float[np.ndarray, "n f"]:
    """What `combine` makes of the blocks' summaries, for each network, without building a net per architecture.

    Blocks are lowered and summarised once per choice and input shape, whatever the number of architectures.

    Args:
        summary: `width` non-negative values of a block, from its operators; its input is named `INPUT`.
        combine: ``np.add`` for what adds up over operators, ``np.maximum`` for the most of any block.
    """
    shapes = [(space.image_channels, side, side) for side in space.decisions[space.column(RESOLUTION)].options]
    shape_index = codes[:, space.column(RESOLUTION)].astype(np.int64)
    active = space.active(codes)
    folded = np.zeros((len(codes), width))
    for slot in space.slots:
        setting, choices = _settings(space, slot, codes, active)
        rows = np.flatnonzero(setting >= 0)
        pairs, kind = np.unique(np.stack([shape_index[rows], setting[rows]]), axis=1, return_inverse=True)
        blocks = [
            slot.block.lower(slot.name, choices[choice], INPUT, shapes[shape]) for shape, choice in pairs.T.tolist()
        ]
        if not blocks:
            continue
        values = np.array([summary(ops) for ops in blocks], dtype=np.float64).reshape(len(blocks), width)
        folded[rows] = combine(folded[rows], values[kind])
        for ops in blocks:
            if ops[-1].out_shape not in shapes:
                shapes.append(ops[-1].out_shape)
        shape_index[rows] = np.array([shapes.index(ops[-1].out_shape) for ops in blocks])[kind]
    return folded


def block_one_hot(space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n f"]:
    """One column per slot and joint setting of its decisions, 1 where the slot is active with it.

    Slots that are the same in every network have no column. A cost that adds up over blocks (at one resolution) is
    exactly linear in these.
    """
    active = space.active(codes)
    parts = [np.zeros((len(codes), 0), dtype=bool)]
    for slot in space.slots:
        setting, choices = _settings(space, slot, codes, active)
        if len(choices) > 1 or slot.when is not None:
            parts.append(setting[:, None] == np.arange(len(choices)))
    return np.concatenate(parts, axis=1).astype(np.float64)


def _settings(
    space: SearchSpace, slot: Slot, codes: Int[np.ndarray, "n d"], active: Bool[np.ndarray, "n d"]
) -> tuple[Int[np.ndarray, " n"], list[Choice]]:
    """For each architecture the index of its choice for `slot` in the list of choices, -1 where the slot is absent."""
    options = [
        (setting,) if isinstance(setting, int) else space.decisions[space.column(setting)].options
        for setting in slot.settings
    ]
    present = np.ones(len(codes), dtype=bool) if slot.when is None else space.holds(slot.when, codes, active)
    index = np.zeros(len(codes), dtype=np.int64)
    for setting, values in zip(slot.settings, options, strict=True):
        code = 0 if isinstance(setting, int) else codes[:, space.column(setting)]
        index = index * len(values) + code
    return np.where(present, index, -1), list(itertools.product(*options))


def _label(op: Operator) -> str:
    if op.kind != "conv":
        return op.kind
    return f"{'depthwise' if op.is_depthwise else 'conv'}{op.kernel_size}"


def _every_block(space: SearchSpace) -> Iterator[list[Operator]]:
    """The operators of every slot for each of its choices; shapes do not matter here."""
    shape = space.input_shape(space.largest)
    for slot in space.slots:
        ops: list[Operator] = []
        for choice in itertools.product(*slot.block.elastic.values()):
            ops = slot.block.lower(slot.name, choice, INPUT, shape)
            yield ops
        shape = ops[-1].out_shape
