"""Attentive sampling: what the estimator learns, and that targets follow the MACs of uniform sampling."""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from hanax.search_spaces import SearchSpace, graph_features, mobilenet_v3
from hanax.supernet._attentive import (
    AttentivePrior,
    LossEstimator,
    draw_attentive,
    new_estimator,
    predict_excess_loss,
    update_estimator,
)

SPACE = mobilenet_v3(
    resolutions=(16, 24, 32), n_classes=10, expand_ratios=(3, 4, 6), depths=(1, 2, 3), stage_widths=(16, 24),
    stage_strides=(1, 2), stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), head_width=64,
    feature_width=64,
)  # fmt: skip


def codes(seed: int, n: int, space: SearchSpace = SPACE) -> np.ndarray:
    return space.sample(np.random.default_rng(seed), n)


def features(codes: np.ndarray) -> np.ndarray:
    return SPACE.one_hot(codes) - SPACE.one_hot(SPACE.encode([SPACE.largest]))


def additive_loss(codes: np.ndarray) -> np.ndarray:
    """A loss that adds up over the decisions, 0 for the largest network."""
    return features(codes) @ np.random.default_rng(7).uniform(0.0, 0.1, features(codes).shape[1])


@cache
def learned(n_steps: int) -> LossEstimator:
    estimator = new_estimator(SPACE)
    for step in range(n_steps):
        seen = codes(step, 3)
        noise = np.random.default_rng([1, step]).normal(0.0, 0.02, 3)
        estimator = update_estimator(SPACE, estimator, seen, additive_loss(seen) + noise)
    return estimator


def macs(codes: np.ndarray) -> np.ndarray:
    names, values = graph_features(SPACE, codes)
    return values[:, names.index("macs")]


# ---- the estimator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgetting", [1.0, 0.9])
def test_step_by_step_it_is_ridge_regression_on_all_steps_discounted_by_age(forgetting: float) -> None:
    x, y = codes(0, 60), np.random.default_rng(1).normal(size=60)
    estimator = new_estimator(SPACE)
    for step in range(20):
        rows = slice(3 * step, 3 * step + 3)
        estimator = update_estimator(SPACE, estimator, x[rows], y[rows], forgetting=forgetting)
    share = np.sqrt(forgetting ** np.repeat(np.arange(19, -1, -1), 3))[:, None]
    design = np.concatenate([share * features(x), np.sqrt(0.5) * np.eye(features(x).shape[1])])
    target = np.concatenate([share[:, 0] * y, np.zeros(features(x).shape[1])])
    weights = np.linalg.lstsq(design, target)[0]
    found = predict_excess_loss(SPACE, estimator, codes(2, 30), ridge=0.5)
    np.testing.assert_allclose(found, features(codes(2, 30)) @ weights, atol=1e-5)


def test_the_largest_network_is_predicted_to_be_as_good_as_itself() -> None:
    largest = SPACE.encode([SPACE.largest])
    assert predict_excess_loss(SPACE, learned(50), largest)[0] == 0.0


def test_an_additive_loss_is_learned_from_noisy_steps() -> None:
    unseen = codes(10**6, 200)
    assert np.corrcoef(predict_excess_loss(SPACE, learned(200), unseen), additive_loss(unseen))[0, 1] > 0.95


def test_what_was_learned_long_ago_gives_way() -> None:
    estimator = learned(100)
    for step in range(100):
        seen = codes(step, 3)
        estimator = update_estimator(SPACE, estimator, seen, -additive_loss(seen), forgetting=0.9)
    unseen = codes(10**6, 200)
    assert np.corrcoef(predict_excess_loss(SPACE, estimator, unseen), additive_loss(unseen))[0, 1] < -0.8


def test_a_long_training_on_one_subnet_leaves_finite_predictions() -> None:
    estimator, smallest = new_estimator(SPACE), SPACE.encode([SPACE.smallest])
    for _ in range(300):
        estimator = update_estimator(SPACE, estimator, smallest, np.array([0.5]), forgetting=0.9)
    assert np.abs(predict_excess_loss(SPACE, estimator, codes(0, 100))).max() < 1.0
    assert predict_excess_loss(SPACE, estimator, smallest)[0] == pytest.approx(0.5, rel=0.01)


def test_an_estimator_that_jax_has_held_goes_on_to_the_bit() -> None:
    seen = codes(5, 3)
    kept = learned(10)
    held = {name: jnp.asarray(array) for name, array in kept.items()}
    first, second = (update_estimator(SPACE, each, seen, additive_loss(seen)) for each in (kept, held))
    for name in first:
        assert np.asarray(first[name]).tobytes() == np.asarray(second[name]).tobytes()


def test_losses_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="excess_loss must be finite"):
        update_estimator(SPACE, new_estimator(SPACE), codes(0, 2), np.array([0.1, np.nan]))


# ---- the prior ------------------------------------------------------------------------------------------------


def test_bins_are_those_of_the_graphs_macs() -> None:
    prior = AttentivePrior.of(SPACE, SPACE.sample, np.random.default_rng(0), n=1000, n_bins=8)
    drawn = codes(3, 300)
    np.testing.assert_array_equal(prior.bins(SPACE, drawn), np.searchsorted(prior.edges, macs(drawn), side="right"))
    np.testing.assert_array_equal(prior.edges, np.unique(prior.edges))
    assert set(prior.edges) <= set(macs(codes(0, 1000)))


def test_bins_are_equally_probable() -> None:
    prior = AttentivePrior.of(SPACE, SPACE.sample, np.random.default_rng(0), n=4000, n_bins=8)
    counts = np.bincount(prior.bins(SPACE, codes(1, 4000)), minlength=8)
    assert len(counts) == prior.n_bins == 8
    assert ((counts - 500.0) ** 2 / 500.0).sum() < 40.0


def test_a_space_with_one_network_has_one_bin() -> None:
    one = codes(0, 1)
    prior = AttentivePrior.of(SPACE, lambda rng, n: np.repeat(one, n, axis=0), np.random.default_rng(0), n=10)
    assert prior.n_bins == 1


# ---- drawing --------------------------------------------------------------------------------------------------

PRIOR = AttentivePrior.of(SPACE, SPACE.sample, np.random.default_rng(0), n=2000, n_bins=4)


def draw(estimator: LossEstimator, seed: int, n: int, direction: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw_attentive(SPACE, PRIOR, estimator, rng, n, direction, SPACE.sample, n_candidates=8)


def test_at_equal_macs_best_up_finds_lower_losses_than_uniform_sampling_and_worst_up_higher() -> None:
    estimator = learned(200)
    drawn = {"best": draw(estimator, 0, 100, "best"), "worst": draw(estimator, 0, 100, "worst"), "any": codes(4, 900)}
    bins = {name: PRIOR.bins(SPACE, each) for name, each in drawn.items()}
    for index in range(PRIOR.n_bins):
        mean = {name: additive_loss(each[bins[name] == index]).mean() for name, each in drawn.items()}
        assert mean["best"] < mean["any"] < mean["worst"]


@pytest.mark.parametrize("direction", ["best", "worst"])
def test_targets_follow_the_macs_of_uniform_sampling(direction: str) -> None:
    counts = np.bincount(PRIOR.bins(SPACE, draw(learned(50), 1, 200, direction)), minlength=PRIOR.n_bins)
    assert ((counts - 50.0) ** 2 / 50.0).sum() < 20.0  # chi-square with 3 degrees of freedom: above 20 once in 6,000


def test_an_estimator_that_knows_nothing_leaves_sampling_as_it_was() -> None:
    np.testing.assert_array_equal(draw(new_estimator(SPACE), 3, 5, "best"), codes(3, 5))


def test_the_same_generator_draws_the_same_subnets() -> None:
    estimator = learned(20)
    np.testing.assert_array_equal(draw(estimator, 3, 4, "worst"), draw(estimator, 3, 4, "worst"))
    assert len(draw(estimator, 3, 0, "best")) == 0


def test_draws_stay_within_what_is_sampled() -> None:
    def only_full_depth(rng: np.random.Generator, n: int) -> np.ndarray:
        drawn = SPACE.sample(rng, n)
        drawn[:, SPACE.column("stage1.depth")] = 2
        return SPACE.canonical(drawn)

    prior = AttentivePrior.of(SPACE, only_full_depth, np.random.default_rng(0), n=500, n_bins=4)
    rng = np.random.default_rng(1)
    drawn = draw_attentive(SPACE, prior, learned(50), rng, 50, "best", only_full_depth)
    assert (drawn[:, SPACE.column("stage1.depth")] == 2).all()
    np.testing.assert_array_equal(drawn, SPACE.canonical(drawn))
