"""Features of architectures that explain latencies, in named groups, from the space's decisions and graph alone.

Shapes: `n` architectures, `d` decisions, `f` features.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hanax.predictors._features import Codes, reference_codes
from hanax.predictors._leave_one_out import Floats
from hanax.predictors._source_pool import Groups
from hanax.search_spaces import (
    INPUT,
    PRECISION_SUMS,
    Operator,
    SearchSpace,
    Shape,
    block_one_hot,
    decides_precision,
    fold_blocks,
    graph_features,
    live_operators,
    longest_path,
    operator_class,
    operator_classes,
)

INDICATORS = ("options", "pairs")
"""Groups whose columns are 0 or 1. All others but ``dead`` are in units of their spread over the space."""

MACS_PER_VALUE = (2.0, 20.0)
"""Multiply-accumulates in the time of moving one value, for two rooflines: one short of compute, one of bandwidth."""

N_TOTALS = 7 + len(MACS_PER_VALUE)
"""MACs, live MACs, values moved, parameters, operators, live operators, longest path, and the rooflines."""


def latency_features(space: SearchSpace, codes: Codes) -> Floats:
    """Features of `codes`, shape (n, d), for predictors of latency on a new device, shape (n, f).

    The groups of columns, whose places `latency_feature_groups` tells:

    * ``options``: one column per option of every decision, 1 where it is taken and counts.
    * ``pairs``: the same for joint options of decisions of one block.
    * ``counts``, ``live_counts``: operators per class; those alone that their block's output depends on.
    * ``stages``: per number of a block's output channels, operators and MACs per class, all MACs and values moved.
    * ``work``: MACs, values moved, operators, longest path and rooflines of the whole network, and their logarithms;
      where the space decides about precision, the bits of kernels, the bits read, and MACs times bits, too.
    * ``dead``: number of blocks whose output does not depend on their input. A runtime may drop what is before them, so
      that such networks say little about others.

    Columns that never change, or only as another one does, are left out. Which that is follows from the definition of
    the space, so that features of any two calls fit together.
    """
    statistics = _statistics(space)
    columns = _all_columns(space, codes)
    parts = [(columns[name][:, kept] - mean) / spread for name, (kept, mean, spread) in statistics.items()]
    return np.concatenate(parts, axis=1)


def latency_feature_groups(space: SearchSpace) -> Groups:
    """First column, and the one after the last, of each group of `latency_features`."""
    sizes = {name: len(kept) for name, (kept, _, _) in _statistics(space).items()}
    stops = itertools.accumulate(sizes.values())
    return {name: (stop - size, stop) for (name, size), stop in zip(sizes.items(), stops, strict=True)}


def _all_columns(space: SearchSpace, codes: Codes) -> dict[str, Floats]:
    sums = _sums(space, codes)
    shares = sums["work"] / np.maximum(_means(space), 1e-12)
    sums["work"] = np.concatenate([shares, np.log(shares + 1e-3)], axis=1)
    return {"options": space.one_hot(codes), "pairs": block_one_hot(space, codes), **sums}


def _sums(space: SearchSpace, codes: Codes) -> dict[str, Floats]:
    """Sums over the operators of each network, before any scaling."""
    classes = list(operator_classes(space))
    widths = sorted({shape[0] for shape in _output_shapes(space)})
    n_classes, n_widths = len(classes), len(widths)
    class_of = {label: index for index, label in enumerate(classes)}
    width_of = {channels: index for index, channels in enumerate(widths)}
    sizes = {
        "counts": n_classes,
        "live_counts": n_classes,
        "stages": n_widths * (2 * n_classes + 2),
        "work": N_TOTALS,
        "dead": 1,
    }
    starts = dict(zip(sizes, [0, *itertools.accumulate(sizes.values())], strict=False))

    def summary(ops: list[Operator]) -> list[float]:
        row = [0.0] * sum(sizes.values())
        live = {op.name for op in live_operators(ops)}
        stage = starts["stages"] + width_of[ops[-1].out_shape[0]] * (2 * n_classes + 2)
        macs = live_macs = traffic = params = 0
        roofs = [0.0] * len(MACS_PER_VALUE)
        for op in ops:
            index = class_of[operator_class(op)]
            op_macs, op_traffic = op.macs, op.traffic_values
            row[index] += 1
            row[stage + index] += 1
            row[stage + n_classes + index] += op_macs
            macs, traffic, params = macs + op_macs, traffic + op_traffic, params + op.params
            for position, ratio in enumerate(MACS_PER_VALUE):
                roofs[position] += max(op_macs, ratio * op_traffic)
            if op.name in live:
                row[starts["live_counts"] + index] += 1
                live_macs += op_macs
        row[stage + 2 * n_classes : stage + 2 * n_classes + 2] = [macs, traffic]
        totals = [macs, live_macs, traffic, params, len(ops), len(live), longest_path(ops), *roofs]
        row[starts["work"] : starts["work"] + N_TOTALS] = totals
        row[starts["dead"]] = not live
        return row

    folded = fold_blocks(space, codes, summary, sum(sizes.values()))
    sums = {name: folded[:, starts[name] : starts[name] + size] for name, size in sizes.items()}
    if decides_precision(space):
        names, in_bits = graph_features(space, codes)
        sums["work"] = np.concatenate(
            [sums["work"], in_bits[:, [names.index(name) for name in PRECISION_SUMS]]], axis=1
        )
    return sums


def _output_shapes(space: SearchSpace) -> list[Shape]:
    """Shape of each slot's output in the largest network; no choice changes the channels of a slot's output."""
    shapes = [space.input_shape(space.largest)]
    for placed in space.blocks(space.largest):
        shapes.append(placed.slot.block.lower(placed.slot.name, placed.choice, INPUT, shapes[-1])[-1].out_shape)
    return shapes[1:]


@lru_cache(maxsize=16)
def _means(space: SearchSpace) -> Floats:
    """Means of the totals over the reference networks."""
    means: Floats = _sums(space, reference_codes(space))["work"].mean(axis=0)
    return means


@lru_cache(maxsize=16)
def _statistics(space: SearchSpace) -> dict[str, tuple[NDArray[np.int64], Floats, Floats]]:
    """For each group the columns that are kept, what is subtracted from each and what it is divided by."""
    columns = _all_columns(space, reference_codes(space))
    statistics = {}
    said = np.zeros((len(reference_codes(space)), 0))
    for name, values in columns.items():
        mean, spread = values.mean(axis=0), values.std(axis=0)
        kept = np.flatnonzero(spread > 1e-9 * np.maximum(np.abs(mean), 1.0))
        if name in ("options", "dead"):
            kept = np.arange(values.shape[1])
        elif name != "pairs":
            kept, said = _new_columns(values, kept, said)
        is_scaled = name not in (*INDICATORS, "dead")
        mean, spread = mean[kept], spread[kept]
        statistics[name] = (kept, mean if is_scaled else 0.0 * mean, spread if is_scaled else np.ones(len(kept)))
    return statistics


def _new_columns(values: Floats, candidates: NDArray[np.int64], said: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Those of `candidates` that are no multiple of an earlier column; `said` holds those, standardised."""
    kept = []
    for column in candidates.tolist():
        standard = (values[:, column] - values[:, column].mean()) / values[:, column].std()
        if not len(said.T) or np.abs(said.T @ standard).max() < (1 - 1e-9) * len(standard):
            kept.append(column)
            said = np.column_stack([said, standard])
    return np.array(kept, dtype=np.int64), said
