from __future__ import annotations

import itertools

import numpy as np
import pytest

from hanax.predictors import latency_feature_groups, latency_features
from hanax.search_spaces import SearchSpace, fbnet, graph_features, mobilenet_v3, nas_bench_201

SPACES = {
    "mobilenet_v3": lambda: mobilenet_v3(resolutions=(32, 48), n_classes=10, width_mult=0.5, stem_stride=1),
    "fbnet": fbnet,
    "nas_bench_201": nas_bench_201,
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]()


def group(space: SearchSpace, features: np.ndarray, name: str) -> np.ndarray:
    return features[:, slice(*latency_feature_groups(space)[name])]


def test_groups_cover_all_columns_in_order(space: SearchSpace) -> None:
    features = latency_features(space, space.sample(np.random.default_rng(0), 5))
    spans = list(latency_feature_groups(space).values())
    assert spans[0][0] == 0 and spans[-1][1] == features.shape[1]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert np.isfinite(features).all()


def test_features_of_a_network_do_not_depend_on_those_beside_it(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), 20)
    alone = np.concatenate([latency_features(space, row[None]) for row in codes])
    np.testing.assert_allclose(latency_features(space, codes), alone, atol=1e-12)


def test_options_are_the_options(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), 20)
    np.testing.assert_array_equal(group(space, latency_features(space, codes), "options"), space.one_hot(codes))


def test_work_knows_the_macs(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), 200)
    names, sums = graph_features(space, codes)
    work = group(space, latency_features(space, codes), "work")
    macs = sums[:, names.index("macs")]
    assert max(abs(np.corrcoef(column, macs)[0, 1]) for column in work.T) == pytest.approx(1.0, abs=1e-4)


def test_every_column_but_options_says_something_of_its_own(space: SearchSpace) -> None:
    features = latency_features(space, space.sample(np.random.default_rng(1), 400))
    for name in ("counts", "live_counts", "stages", "work"):
        columns = group(space, features, name)
        assert (columns.std(axis=0) > 0).all()
        if columns.shape[1] > 1:
            correlations = np.corrcoef(columns, rowvar=False) - 2 * np.eye(columns.shape[1])
            assert np.abs(correlations[correlations > -0.99]).max() < 1 - 1e-9


def test_a_cell_without_a_path_has_dead_blocks_and_a_whole_network_none() -> None:
    space = nas_bench_201()
    codes = space.encode([space.smallest, space.largest])
    dead = group(space, latency_features(space, codes), "dead")[:, 0]
    assert dead[0] == 15 and dead[1] == 0
