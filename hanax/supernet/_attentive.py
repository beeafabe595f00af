"""Attentive sampling: which subnets to train, by where the front of MACs and loss is likely to be.

AttentiveNAS (Wang et al., 2021, arXiv:2011.09011): draw a target of MACs as uniform sampling would, then among
candidates of about so many MACs train the one with the lowest (best-up) or the highest predicted loss (worst-up). It
differs in the estimator: the paper fits a predictor on a supernet trained before, or evaluates the candidates; here a
linear model learns from the losses of the steps so far, which cost nothing.

Shapes: `n` architectures, `d` decisions, `f` features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jax import Array
from jaxtyping import Float, Int, Int32

from hanax.search_spaces import (
    INPUT,
    RESOLUTION,
    SearchSpace,
    architecture_columns,
    block_one_hot,
    decides_precision,
    float_space,
)

Sample = Callable[[np.random.Generator, int], Int32[np.ndarray, "n d"]]
"""Draws that many canonical codes, e.g. `SearchSpace.sample`."""

Direction = Literal["best", "worst"]

# ---- the estimator of losses ----------------------------------------------------------------------------------

LossEstimator = dict[str, np.ndarray | Array]
"""``moments`` (f, f) and ``responses`` (f,): discounted sums of products of features with each other and with the loss.

Float32, so that a checkpoint keeps them to the bit.
"""


def new_estimator(space: SearchSpace) -> LossEstimator:
    """An estimator that has seen nothing and predicts 0."""
    n_features = int(space.option_counts.sum())
    return {
        "moments": np.zeros((n_features, n_features), np.float32),
        "responses": np.zeros(n_features, np.float32),
    }


def update_estimator(
    space: SearchSpace,
    estimator: LossEstimator,
    codes: Int[np.ndarray, "n d"],
    excess_loss: Float[np.ndarray, " n"],
    *,
    forgetting: float = 0.998,
) -> LossEstimator:
    """`estimator` after a step in which the subnets `codes` had `excess_loss`.

    Args:
        excess_loss: Loss of each subnet less that of the largest one, with the same weights, images and targets: what
            the batch and the progress of training do to both cancels.
        forgetting: What a step counts relative to the one after it.

    Raises:
        ValueError: `excess_loss` is not finite, or `forgetting` not in (0, 1].
    """
    if not np.isfinite(excess_loss).all():
        raise ValueError(f"excess_loss must be finite; got {excess_loss}")
    if not 0.0 < forgetting <= 1.0:
        raise ValueError(f"forgetting must lie in (0, 1]; got {forgetting}")
    features = _features(space, codes)
    moments = forgetting * np.asarray(estimator["moments"], np.float64) + features.T @ features
    responses = forgetting * np.asarray(estimator["responses"], np.float64) + features.T @ excess_loss
    return {"moments": moments.astype(np.float32), "responses": responses.astype(np.float32)}


def predict_excess_loss(
    space: SearchSpace, estimator: LossEstimator, codes: Int[np.ndarray, "n d"], *, ridge: float = 1.0
) -> Float[np.ndarray, " n"]:
    """Predicted loss of each subnet less that of the largest one.

    Ridge regression over all steps so far, each discounted by those after it. This is recursive least squares with
    forgetting in its information form: the penalty is not forgotten, so directions that no subnet of late has explored
    cannot grow without bound, as they do in the covariance form.
    """
    moments = np.asarray(estimator["moments"], np.float64)
    weights = np.linalg.solve(moments + ridge * np.eye(len(moments)), np.asarray(estimator["responses"], np.float64))
    prediction: Float[np.ndarray, " n"] = _features(space, codes) @ weights
    return prediction


def _features(space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n f"]:
    """What distinguishes each network from the largest, whose features, and with them its prediction, are 0."""
    features: Float[np.ndarray, "n f"] = space.one_hot(codes) - space.one_hot(space.encode([space.largest]))
    return features


# ---- the distribution of MACs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class AttentivePrior:
    """Distribution of MACs under a sampler, in bins of equal probability.

    Attributes:
        edges: MACs between the bins, ascending.
        fixed_macs: MACs of the blocks that every network has, per resolution.
        elastic_macs: MACs per resolution and column of `block_one_hot`.
    """

    edges: Float[np.ndarray, " e"]
    fixed_macs: Float[np.ndarray, " r"]
    elastic_macs: Float[np.ndarray, "r f"]

    @staticmethod
    def of(
        space: SearchSpace, sample: Sample, rng: np.random.Generator, *, n: int = 10_000, n_bins: int = 20
    ) -> AttentivePrior:
        """The distribution found from `n` draws of `sample`; fewer bins where many networks have equal MACs."""
        fixed_macs, elastic_macs = _macs_by_setting(space)
        macs = _macs(space, sample(rng, n), fixed_macs, elastic_macs)
        # An edge that no draw lies below would leave its bin empty.
        inner = np.unique(np.quantile(macs, np.arange(1, n_bins) / n_bins, method="inverted_cdf"))
        return AttentivePrior(inner[inner > macs.min()], fixed_macs, elastic_macs)

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.edges) + 1

    def bins(self, space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """Index of the bin that each network's MACs lie in."""
        return np.searchsorted(self.edges, _macs(space, codes, self.fixed_macs, self.elastic_macs), side="right")


def _macs(
    space: SearchSpace,
    codes: Int[np.ndarray, "n d"],
    fixed_macs: Float[np.ndarray, " r"],
    elastic_macs: Float[np.ndarray, "r f"],
) -> Float[np.ndarray, " n"]:
    """MACs of each network, looked up: `graph_features` would lower its blocks in every step."""
    if decides_precision(space):
        space, codes = float_space(space), codes[:, architecture_columns(space)]
    resolution = codes[:, space.column(RESOLUTION)]
    elastic = (block_one_hot(space, codes) * elastic_macs[resolution]).sum(axis=1)
    macs: Float[np.ndarray, " n"] = fixed_macs[resolution] + elastic
    return macs


def _macs_by_setting(space: SearchSpace) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, "r f"]]:
    """MACs, per resolution, of the blocks without a column in `block_one_hot`, and of each of its columns."""
    options = {decision.name: decision.options for decision in space.decisions}
    fixed, elastic = [], []
    for side in options[RESOLUTION]:
        shape = (space.image_channels, side, side)
        fixed_macs, columns = 0, []
        for slot in space.slots:
            settings = [(s,) if isinstance(s, int) else options[s] for s in slot.settings]
            lowered = [slot.block.lower(slot.name, c, INPUT, shape) for c in itertools.product(*settings)]
            macs = [sum(op.macs for op in ops) for ops in lowered]
            if len(lowered) > 1 or slot.when is not None:
                columns += macs
            else:
                fixed_macs += macs[0]
            shape = lowered[-1][-1].out_shape
        fixed.append(fixed_macs)
        elastic.append(columns)
    return np.array(fixed, np.float64), np.array(elastic, np.float64)


# ---- drawing --------------------------------------------------------------------------------------------------


def draw_attentive(
    space: SearchSpace,
    prior: AttentivePrior,
    estimator: LossEstimator,
    rng: np.random.Generator,
    n: int,
    direction: Direction,
    sample: Sample,
    *,
    n_candidates: int = 50,
) -> Int32[np.ndarray, "n d"]:
    """`n` codes whose MACs are distributed as those of `sample`, each the best or worst predicted of its bin.

    A draw of `sample` decides the bin. That draw and others in the same bin, `n_candidates` at most, are compared.
    While the estimator knows nothing, the draw itself is taken.

    Args:
        direction: "best" for the lowest predicted loss, "worst" for the highest.
        sample: The one that `prior` was found with.
    """
    chosen = sample(rng, n)
    for row in range(n):
        drawn = np.concatenate([chosen[[row]], sample(rng, n_candidates * prior.n_bins)])
        bins = prior.bins(space, drawn)
        candidates = drawn[bins == bins[0]][:n_candidates]
        loss = predict_excess_loss(space, estimator, candidates)
        chosen[row] = candidates[np.argmin(loss) if direction == "best" else np.argmax(loss)]
    return chosen
