"""Features of architectures on scales that suit the predictors, from the space alone.

Shapes: `n` architectures, `d` decisions, `f` features.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hanax.predictors._leave_one_out import Floats
from hanax.search_spaces import RESOLUTION, SearchSpace, block_one_hot, graph_features

Codes = NDArray[np.int32]

N_REFERENCE = 512
"""Networks over which the scale of the graph features is taken."""

JOINT_SCALE = 0.5
"""Weight of joint block settings beside the options they consist of: an interaction is expected to be the smaller."""

ADDITIVE_PRIOR_COLUMNS = (0, 1, 2)
"""Columns of `additive_features` that `AdditivePredictor` should not shrink: MACs, traffic and operators."""


def predictor_features(space: SearchSpace, codes: Codes) -> Floats:
    """Features of `codes`, shape (n, d), for `RidgePredictor`, shape (n, f).

    Options taken (0 or 1), joint settings of a block (0 or `JOINT_SCALE`), and the sums over the graph in units of
    their spread over the space, from their mean there. Columns that are the same all over the space are left out. Which
    and how is decided by the definition of the space, so that features of any two calls fit together.
    """
    mean, scale = _column_statistics(space)
    varies = scale > 0
    return (_all_columns(space, codes)[:, varies] - mean[varies]) / scale[varies]


def additive_features(space: SearchSpace, codes: Codes) -> Floats:
    """Features of `codes`, shape (n, d), for `AdditivePredictor`, shape (n, f).

    Millions of MACs, millions of values read and written, operators; then an indicator per block choice and per
    resolution. ``AdditivePredictor(prior_columns=ADDITIVE_PRIOR_COLUMNS)`` takes the first three as the prior.
    """
    names, sums = graph_features(space, codes)
    priors = [sums[:, names.index(name)] for name in ("macs", "traffic_values", "operators")]
    column = space.column(RESOLUTION)
    resolution = codes[:, [column]] == np.arange(space.option_counts[column])
    return np.column_stack([priors[0] / 1e6, priors[1] / 1e6, priors[2], block_one_hot(space, codes), resolution])


def _all_columns(space: SearchSpace, codes: Codes) -> Floats:
    return np.column_stack([
        space.one_hot(codes), JOINT_SCALE * block_one_hot(space, codes), graph_features(space, codes)[1]
    ])  # fmt: skip


@lru_cache(maxsize=16)
def _column_statistics(space: SearchSpace) -> tuple[Floats, Floats]:
    """What to subtract from each column and to divide it by; the divisor is 0 for a column to leave out."""
    columns = _all_columns(space, reference_codes(space))
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    n_sums = graph_features(space, reference_codes(space)[:1])[1].shape[1]
    is_sum = np.arange(len(mean)) >= len(mean) - n_sums
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1.0)
    return np.where(is_sum, mean, 0.0), np.where(varies, np.where(is_sum, spread, 1.0), 0.0)


def reference_codes(space: SearchSpace) -> Codes:
    """`N_REFERENCE` canonical codes like those of `SearchSpace.sample`, the same with every version of NumPy."""
    shape = (N_REFERENCE, len(space.decisions))
    stream = hashlib.shake_256(b"hanax reference networks").digest(4 * shape[0] * shape[1])
    return space.canonical(np.frombuffer(stream, dtype="<u4").reshape(shape) % space.option_counts)
