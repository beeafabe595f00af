"""Features of architectures for predictors: what every space gets for free from its decisions and its graph.

Shapes: `n` architectures, `f` features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from hanax.search_spaces._blocks import Block, Choice
from hanax.search_spaces._graph import INPUT, Operator, Shape, live_operators, longest_path, size_of
from hanax.search_spaces._precision import format_bits, operator_precision
from hanax.search_spaces._space import RESOLUTION, Condition, Precision, SearchSpace, Slot

MAX_JOINT_SETTINGS = 256
"""Joint settings of a slot's decisions up to which each has a column of its own in `block_one_hot`."""

PRECISION_SUMS = ("kernel_bits", "read_bits", "bit_operations")
"""What `graph_features` adds for a space that decides about precision."""

_work = attrgetter(*(field.name for field in fields(Operator) if field.name not in ("name", "inputs")))
"""All that decides what an operator costs: two that differ in their place only are the same."""


def graph_features(space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> tuple[list[str], Float[np.ndarray, "n f"]]:
    """Names and values of sums over each network's operators, exact, without building a net per architecture.

    ``macs``, ``params``, ``traffic_values``, ``operators``; per class of operator (see `operator_class`) its count and,
    where it has a kernel, its MACs. Blocks are lowered once per choice and input shape.

    A space that decides about precision has `PRECISION_SUMS` too: the bits of all kernels, the bits that operators with
    kernels read, and MACs times the bits of both factors.
    """
    classes = operator_classes(space)
    names = ["macs", "params", "traffic_values", "operators"]
    names += [f"{label}.count" for label in classes]
    names += [f"{label}.macs" for label, is_weighted in classes.items() if is_weighted]
    column = {name: index for index, name in enumerate(names)}
    terms: dict[tuple[Any, ...], list[tuple[int, int]]] = {}

    def terms_of(op: Operator) -> list[tuple[int, int]]:
        """What one operator adds, and to which columns."""
        label = operator_class(op)
        added = {"macs": op.macs, "params": op.params, "traffic_values": op.traffic_values, "operators": 1}
        added[f"{label}.count"] = 1
        if op.is_weighted:
            added[f"{label}.macs"] = op.macs
        return [(column[name], value) for name, value in added.items()]

    def summary(ops: list[Operator]) -> list[float]:
        row = [0.0] * len(names)
        for op in ops:
            key = _work(op)
            if key not in terms:
                terms[key] = terms_of(op)
            for index, value in terms[key]:
                row[index] += value
        return row

    sums = fold_blocks(space, codes, summary, len(names))
    if not decides_precision(space):
        return names, sums
    in_bits = fold_precise_blocks(space, codes, _precision_sums, len(PRECISION_SUMS))
    return [*names, *PRECISION_SUMS], np.concatenate([sums, in_bits], axis=1)


def _precision_sums(ops: list[Operator], precision: Precision | None) -> list[float]:
    kernel_bits = read_bits = bit_operations = 0.0
    for op in ops:
        if op.is_weighted:
            weight_bits, activation_bits = map(format_bits, operator_precision(op, precision))
            kernel_bits += math.prod(op.kernel_shape) * weight_bits
            read_bits += size_of(op.in_shape) * activation_bits
            bit_operations += op.macs * weight_bits * activation_bits
    return [kernel_bits, read_bits, bit_operations]


def decides_precision(space: SearchSpace) -> bool:
    """Whether some block of `space` has number formats."""
    return any(slot.precision is not None for slot in space.slots)


def live_features(space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> tuple[list[str], Float[np.ndarray, "n f"]]:
    """Names and values of what is left of each network without the operators that its blocks' outputs do not need.

    ``live_macs``, ``live_operators``; per class of operator the count of its live ones (see `live_operators`); and
    ``depth``, the sum over blocks of the operators on the longest path through each. What counts is whether a block's
    output depends on its own input: a block behind a dead one is as live as any.
    """
    classes = operator_classes(space)
    names = ["live_macs", "live_operators", "depth", *(f"live_{label}.count" for label in classes)]
    column = {label: index for index, label in enumerate(classes, start=3)}

    def summary(ops: list[Operator]) -> list[float]:
        row = [0.0] * len(names)
        row[2] += longest_path(ops)
        for op in live_operators(ops):
            row[0] += op.macs
            row[1] += 1
            row[column[operator_class(op)]] += 1
        return row

    return names, fold_blocks(space, codes, summary, len(names))


def fold_blocks(
    space: SearchSpace,
    codes: Int[np.ndarray, "n d"],
    summary: Callable[[list[Operator]], ArrayLike],
    width: int,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.add,
    *,
    reads_names: bool = False,
) -> Float[np.ndarray, "n f"]:
    """What `combine` makes of the blocks' summaries, for each network, without building a net per architecture.

    A block is lowered and summarised once per choice and input shape, whatever the number of architectures and of slots
    that hold an equal block.

    Args:
        summary: `width` non-negative values of a block, from its operators; its input is named `INPUT`.
        combine: ``np.add`` for what adds up over operators, ``np.maximum`` for the most of any block.
        reads_names: `summary` looks at the names of operators, so that equal blocks of different slots differ.
    """
    return _fold(space, codes, lambda ops, _: summary(ops), width, combine, by_name=reads_names, by_precision=False)


def fold_precise_blocks(
    space: SearchSpace,
    codes: Int[np.ndarray, "n d"],
    summary: Callable[[list[Operator], Precision | None], ArrayLike],
    width: int,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.add,
) -> Float[np.ndarray, "n f"]:
    """As `fold_blocks`, for a `summary` of a block that also depends on its number formats (None: it has none)."""
    return _fold(space, codes, summary, width, combine, by_name=False, by_precision=True)


def _fold(
    space: SearchSpace,
    codes: Int[np.ndarray, "n d"],
    summary: Callable[[list[Operator], Precision | None], ArrayLike],
    width: int,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    by_name: bool,
    by_precision: bool,
) -> Float[np.ndarray, "n f"]:
    sides = space.decisions[space.column(RESOLUTION)].options
    number_of = {(space.image_channels, side, side): number for number, side in enumerate(sides)}
    shape_number = codes[:, space.column(RESOLUTION)].astype(np.int64)
    active = space.active(codes)
    folded = np.zeros((len(codes), width))
    known: dict[tuple[object, Choice, Precision | None, Shape], tuple[Any, int]] = {}

    def summarised(slot: Slot, setting: tuple[Choice, Precision | None], shape: Shape) -> tuple[Any, int]:
        choice, precision = setting
        key = (slot.name if by_name else slot.block, choice, precision, shape)
        if key not in known:
            ops = slot.block.lower(slot.name, choice, INPUT, shape)
            known[key] = summary(ops, precision), number_of.setdefault(ops[-1].out_shape, len(number_of))
        return known[key]

    for slot in space.slots:
        setting, choices = _settings(space, slot, codes, active, by_precision=by_precision)
        rows = np.flatnonzero(setting >= 0)
        if not len(rows):
            continue
        shapes = list(number_of)
        met, kind = np.unique(shape_number[rows] * len(choices) + setting[rows], return_inverse=True)
        pairs = [divmod(pair, len(choices)) for pair in met.tolist()]
        summaries, numbers = zip(
            *(summarised(slot, choices[choice], shapes[shape]) for shape, choice in pairs), strict=True
        )
        values = np.array(summaries, dtype=np.float64).reshape(len(pairs), width)
        folded[rows] = combine(folded[rows], values[kind])
        shape_number[rows] = np.array(numbers)[kind]
    return folded


def block_one_hot(space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n f"]:
    """One column per slot and joint setting of its decisions, 1 where the slot is active with it.

    Those about its precision are among its decisions.
    Slots that are the same in every network have no column. A cost that adds up over blocks (at one resolution) is
    exactly linear in these, unless a slot has more than two decisions with more than `MAX_JOINT_SETTINGS` joint
    settings: then there is one column per joint setting of each two of them. What another slot's columns say already,
    since the decisions are the same, is not said again.
    """
    active = space.active(codes)
    parts = [np.zeros((len(codes), 0), dtype=bool)]
    said = set[tuple[frozenset[str], Condition | None]]()
    for slot in space.slots:
        settings = (*slot.settings, *(slot.precision or ()))
        names = tuple(dict.fromkeys(setting for setting in settings if isinstance(setting, str)))
        n_joint = _n_joint(space, names)
        if n_joint == 1 and slot.when is None:
            continue
        groups: list[tuple[str, ...]] = [names]
        if n_joint > MAX_JOINT_SETTINGS and len(names) > 2:
            groups = list(itertools.combinations(names, 2))
        for group in groups:
            key = (frozenset(group), slot.when)
            if key not in said:
                said.add(key)
                setting = _joint(space, group, slot.when, codes, active)
                parts.append(setting[:, None] == np.arange(_n_joint(space, group)))
    return np.concatenate(parts, axis=1).astype(np.float64)


def operator_class(op: Operator) -> str:
    """The class that an operator is counted in: ``conv1``, ``depthwise5``, ``grouped1``, ``avg_pool3``, ``add``, ...

    An ``identity`` is of the class ``norm``, or of that of its activation, ``relu`` or another.
    """
    if op.kind == "conv":
        kind = "depthwise" if op.is_depthwise else "conv" if op.groups == 1 else "grouped"
        return f"{kind}{op.kernel_size}"
    if op.kind == "avg_pool":
        return f"avg_pool{op.kernel_size}"
    if op.kind == "identity" and not op.is_alias:
        return "norm" if op.has_norm else op.activation
    return op.kind


def operator_classes(space: SearchSpace) -> dict[str, bool]:
    """The classes of all operators that a network of `space` can have, sorted, and whether they have kernels."""
    classes: dict[str, bool] = {}
    shape = space.input_shape(space.largest)
    for slot in space.slots:
        of_block, shape = _block_classes(slot.block, shape)
        classes |= of_block
    return dict(sorted(classes.items()))


@lru_cache(maxsize=1024)
def _block_classes(block: Block, shape: Shape) -> tuple[dict[str, bool], Shape]:
    """The classes of operators of `block` over all its choices, and the shape of its output; no shape changes them."""
    different: dict[tuple[Any, ...], Operator] = {}
    ops: list[Operator] = []
    for choice in itertools.product(*block.elastic.values()):
        ops = block.lower("block", choice, INPUT, shape)
        different.update(zip(map(_work, ops), ops, strict=True))
    return {operator_class(op): op.is_weighted for op in different.values()}, ops[-1].out_shape


def _settings(
    space: SearchSpace,
    slot: Slot,
    codes: Int[np.ndarray, "n d"],
    active: Bool[np.ndarray, "n d"],
    *,
    by_precision: bool,
) -> tuple[Int[np.ndarray, " n"], list[tuple[Choice, Precision | None]]]:
    """For each architecture the index, in the list of settings, of its choice for `slot`, -1 where the slot is absent.

    A setting is the choice and, `by_precision`, the number formats.
    """
    precision = slot.precision if by_precision else None
    settings = (*slot.settings, *(precision or ()))
    options = [
        (setting,) if isinstance(setting, int) else space.decisions[space.column(setting)].options
        for setting in settings
    ]
    present = np.ones(len(codes), dtype=bool) if slot.when is None else space.holds(slot.when, codes, active)
    index = np.zeros(len(codes), dtype=np.int64)
    for setting, values in zip(settings, options, strict=True):
        code = 0 if isinstance(setting, int) else codes[:, space.column(setting)]
        index = index * len(values) + code
    n = len(slot.settings)
    listed: list[tuple[Choice, Precision | None]] = [
        (each[:n], None if precision is None else (each[n], each[n + 1])) for each in itertools.product(*options)
    ]
    return np.where(present, index, -1), listed


def _joint(
    space: SearchSpace,
    names: Sequence[str],
    when: Condition | None,
    codes: Int[np.ndarray, "n d"],
    active: Bool[np.ndarray, "n d"],
) -> Int[np.ndarray, " n"]:
    """The number of the joint setting of the decisions `names`, -1 where `when` does not hold."""
    index = np.zeros(len(codes), dtype=np.int64)
    for name in names:
        column = space.column(name)
        index = index * space.option_counts[column] + codes[:, column]
    return index if when is None else np.where(space.holds(when, codes, active), index, -1)


def _n_joint(space: SearchSpace, names: Sequence[str]) -> int:
    """How many joint settings the decisions `names` have."""
    return math.prod(len(space.decisions[space.column(name)].options) for name in names)
