"""Features of architectures that explain accuracies: what options do in their place, in their stage, and anywhere.

Shapes: `n` architectures, `d` decisions, `o` options that may be taken, `f` features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from hanax.predictors._features import Codes, reference_codes
from hanax.predictors._leave_one_out import Floats
from hanax.predictors._source_pool import Groups
from hanax.search_spaces import (
    INPUT,
    RESOLUTION,
    CellBlock,
    Decision,
    SearchSpace,
    Shape,
    Slot,
    decides_precision,
    graph_features,
)

TOTALS = ("macs", "params", "traffic_values", "operators")
PRECISION_TOTALS = ("kernel_bits", "bit_operations")
"""Further ones where a space decides about precision."""


def accuracy_features(space: SearchSpace, codes: Codes) -> Floats:
    """Features of `codes`, shape (n, d), for `AccuracyPredictor`, shape (n, f).

    The groups of columns, whose places `accuracy_feature_groups` tells:

    * ``options``: one column per option of every decision, 1 where it is taken and counts.
    * ``stages``: the same, added up over the decisions of one kind in one stage: its blocks are alike.
    * ``network``: the same, added up over the decisions of one kind in the whole network.
    * ``totals``: logarithms of MACs, parameters, values moved and operators; where the space decides about precision,
      of the bits of kernels and of MACs times bits, too.
    * ``sums``: `graph_features`.

    The first three together say how large an effect of, say, a kernel size is in general, how a stage differs from
    that, and a block from its stage. All columns are relative to the mean over the space; those of the first three have
    one scale a group, those of the others their spread each. Columns that never change are left out. Which that is
    follows from the definition of the space, so that features of any two calls fit together.
    """
    columns, statistics = _all_columns(space, codes), _statistics(space)
    parts = [(columns[name][:, kept] - mean) / scale for name, (kept, mean, scale) in statistics.items()]
    return np.concatenate(parts, axis=1)


def accuracy_feature_groups(space: SearchSpace) -> Groups:
    """First column, and the one after the last, of each group of `accuracy_features`."""
    sizes = {name: len(mean) for name, (_, mean, _) in _statistics(space).items()}
    stops = itertools.accumulate(sizes.values())
    return {name: (stop - size, stop) for (name, size), stop in zip(sizes.items(), stops, strict=True)}


def _all_columns(space: SearchSpace, codes: Codes) -> dict[str, Floats]:
    in_stage, in_network = pooling(space)
    options = space.one_hot(codes)
    names, sums = graph_features(space, codes)
    totals_named = (*TOTALS, *(PRECISION_TOTALS if decides_precision(space) else ()))
    totals = np.log(sums[:, [names.index(name) for name in totals_named]])
    return {
        "options": options,
        "stages": options @ in_stage,
        "network": options @ in_network,
        "totals": totals,
        "sums": sums,
    }


@lru_cache(maxsize=16)
def _statistics(space: SearchSpace) -> dict[str, tuple[np.ndarray, Floats, Floats]]:
    """For each group that varies, the columns that are kept, what is subtracted and what they are divided by."""
    statistics = {}
    for name, values in _all_columns(space, reference_codes(space)).items():
        mean, spread = values.mean(axis=0), values.std(axis=0)
        kept = np.flatnonzero(spread > 1e-9 * np.maximum(np.abs(mean), 1.0))
        if len(kept):
            has_one_scale = name not in ("totals", "sums")
            mean, spread = mean[kept], spread[kept]
            scale = np.full(len(kept), np.sqrt(np.mean(spread**2))) if has_one_scale else spread
            statistics[name] = (kept, mean, scale)
    return statistics


@lru_cache(maxsize=16)
def pooling(space: SearchSpace) -> tuple[Floats, Floats]:
    """Which options count as one in a stage, and in the network: 0 or 1, shapes (o, stages' sums) and (o, sums)."""
    in_stage, in_network = [], []
    slots = _slots_with_shapes(space)
    for decision in space.decisions:
        kind, stage = _kind(decision, slots), _stage(decision, slots)
        in_stage += [(kind, stage, option) for option in decision.options]
        in_network += [(kind, option) for option in decision.options]
    return _membership(in_stage), _membership(in_network)


def _membership(labels: Sequence[tuple[object, ...]]) -> Floats:
    column = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    member = np.zeros((len(labels), len(column)))
    member[np.arange(len(labels)), [column[label] for label in labels]] = 1.0
    return member


def _kind(decision: Decision, slots: list[tuple[Slot, Shape]]) -> frozenset[tuple[str, str]]:
    """What `decision` is about: the parameters or formats that it sets, or which blocks exist, or the resolution.

    All edges of a cell are of one kind, as each is the choice of an operator.
    """
    kinds = {("space", RESOLUTION)} if decision.name == RESOLUTION else set()
    for slot, _ in slots:
        block = type(slot.block).__name__
        for parameter, setting in zip(slot.block.elastic, slot.settings, strict=True):
            if setting == decision.name:
                kinds.add((block, "edge" if isinstance(slot.block, CellBlock) else parameter))
        for parameter, fixed_or_name in zip(("weight_bits", "activation_bits"), slot.precision or (), strict=False):
            if fixed_or_name == decision.name:
                kinds.add((block, parameter))
        if slot.when is not None and slot.when.decision == decision.name:
            kinds.add((block, "existence"))
    return frozenset(kinds)


def _stage(decision: Decision, slots: list[tuple[Slot, Shape]]) -> frozenset[Shape]:
    """The shapes of output, in the largest network, of the slots that `decision` has a say in."""
    return frozenset(
        shape
        for slot, shape in slots
        if decision.name in (*slot.settings, *(slot.precision or ()))
        or (slot.when is not None and slot.when.decision == decision.name)
    )


def _slots_with_shapes(space: SearchSpace) -> list[tuple[Slot, Shape]]:
    """All slots with the shapes of their output, in the largest network that has them."""
    known = {}
    shape = space.input_shape(space.largest)
    for placed in space.blocks(space.largest):
        shape = placed.slot.block.lower(placed.slot.name, placed.choice, INPUT, shape)[-1].out_shape
        known[placed.slot.name] = shape
    pairs, before = [], space.input_shape(space.largest)
    for slot in space.slots:
        before = known.get(slot.name, before)
        pairs.append((slot, before))
    return pairs
