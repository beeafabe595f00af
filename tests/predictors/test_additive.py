"""The look-up predictor on costs whose true table is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from hanax.predictors import ADDITIVE_PRIOR_COLUMNS, AdditivePredictor, additive_features
from hanax.search_spaces import SearchSpace, block_one_hot, mobilenet_v3


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return mobilenet_v3(
        resolutions=(32,), n_classes=10, stem_stride=1, stage_widths=(16, 24, 32), stage_strides=(1, 2, 2),
        stage_activations=("relu", "relu", "hswish"), stage_squeeze_excite=(False, True, True), depths=(1, 2, 3),
        head_width=64, feature_width=64,
    )  # fmt: skip


def _table_cost(space: SearchSpace, codes: np.ndarray, seed: int) -> np.ndarray:
    """A latency that is the sum of one arbitrary figure per block choice, and a constant."""
    blocks = block_one_hot(space, codes)
    return 0.7 + blocks @ np.random.default_rng(seed).gamma(2.0, 0.5, size=blocks.shape[1])


@pytest.mark.parametrize("prior_columns", [(), ADDITIVE_PRIOR_COLUMNS])
def test_an_additive_table_is_recovered_and_extrapolates_to_unseen_networks(
    space: SearchSpace, prior_columns: tuple[int, ...]
) -> None:
    known = space.sample(np.random.default_rng(0), 400)
    unseen = space.sample(np.random.default_rng(1), 1000)
    unseen = unseen[(space.distance(unseen, known) > 0).all(axis=1)]
    assert len(unseen) > 900
    latency_ms = _table_cost(space, known, seed=2)
    predictor = AdditivePredictor(prior_columns).fit(additive_features(space, known), latency_ms)
    X_unseen = additive_features(space, unseen)
    np.testing.assert_allclose(predictor.predict(X_unseen), _table_cost(space, unseen, seed=2), rtol=1e-6)
    lower, upper = predictor.predict_interval(X_unseen)
    assert (upper - lower).max() < 1e-5


def test_few_samples_follow_what_the_prior_explains(space: SearchSpace) -> None:
    """A cost of MACs and a little more: ten samples rank well with the prior column, badly without."""
    known, new = (space.sample(np.random.default_rng(seed), n) for seed, n in ((3, 10), (4, 500)))
    X, X_new = additive_features(space, known), additive_features(space, new)

    def cost(codes: np.ndarray, features: np.ndarray) -> np.ndarray:
        return 5.0 + 2.0 * features[:, 0] + 0.1 * _table_cost(space, codes, seed=5)

    def rank_correlation(prior_columns: tuple[int, ...]) -> float:
        predictor = AdditivePredictor(prior_columns).fit(X, cost(known, X))
        return float(spearmanr(predictor.predict(X_new), cost(new, X_new)).statistic)

    assert rank_correlation((0,)) > 0.95
    assert rank_correlation((0,)) > rank_correlation(()) - 1e-9


def test_a_block_choice_never_measured_costs_what_its_macs_suggest(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(6), 300)
    X = additive_features(space, codes)
    largest_first_block = X[:, 3 + 8] == 1.0
    latency_ms = 1.0 + 3.0 * X[:, 0]
    predictor = AdditivePredictor((0,)).fit(X[~largest_first_block], latency_ms[~largest_first_block])
    np.testing.assert_allclose(predictor.predict(X[largest_first_block]), latency_ms[largest_first_block], rtol=1e-6)


def test_prior_columns_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prior_columns \(0, 5\) do not all exist; X has 4 columns"):
        AdditivePredictor((0, 5)).fit(np.eye(4), np.arange(4.0))
