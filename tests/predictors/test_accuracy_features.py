from __future__ import annotations

import numpy as np
import pytest

from hanax.predictors import accuracy_feature_groups, accuracy_features
from hanax.predictors._accuracy_features import pooling
from hanax.search_spaces import SearchSpace, fbnet, mobilenet_v3, nas_bench_201

SPACES = [
    mobilenet_v3(resolutions=(24, 32), n_classes=10, depths=(1, 2), stem_stride=1),
    fbnet(stages=((1, 16, 1), (2, 24, 2), (2, 32, 2))),
]


@pytest.fixture(params=SPACES, ids=lambda each: each.name)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return request.param


def test_features_of_a_network_do_not_depend_on_its_company(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), 50)
    together = accuracy_features(space, codes)
    for rows in ([0], [7, 3], [*range(20, 50)], []):
        np.testing.assert_array_equal(accuracy_features(space, codes[rows]), together[rows])


def test_different_networks_have_different_features_of_comparable_scale(space: SearchSpace) -> None:
    codes = np.unique(space.sample(np.random.default_rng(1), 300), axis=0)
    X = accuracy_features(space, codes)
    assert np.isfinite(X).all() and len(np.unique(X, axis=0)) == len(codes)
    for start, stop in accuracy_feature_groups(space).values():
        assert 0.5 < np.mean(X[:, start:stop] ** 2) < 2.0
        assert (X[:, start:stop].std(axis=0) > 0).all()


def test_groups_follow_each_other_and_hold_all_columns(space: SearchSpace) -> None:
    groups = accuracy_feature_groups(space)
    assert list(groups) == ["options", "stages", "network", "totals", "sums"]
    bounds = [bound for group in groups.values() for bound in group]
    assert bounds[0] == 0 and bounds[1:-1:2] == bounds[2::2]
    assert bounds[-1] == accuracy_features(space, space.sample(np.random.default_rng(2), 1)).shape[1]


def test_options_of_one_kind_are_added_up_per_stage_and_over_the_network() -> None:
    space = SPACES[0]
    in_stage, in_network = pooling(space)
    codes = space.canonical(space.encode([space.largest, space.smallest]))
    counts = space.one_hot(codes) @ in_network
    # the largest: 24 or 32 px, depth 1 or 2, then kernel sizes 3, 5, 7 and expansions 3, 4, 6 of ten blocks
    np.testing.assert_array_equal(counts[0], [0, 1, 0, 5, 0, 0, 10, 0, 0, 10])
    np.testing.assert_array_equal(counts[1], [1, 0, 5, 0, 5, 0, 0, 5, 0, 0])
    of_stages = space.one_hot(codes) @ in_stage
    assert of_stages.shape[1] == 2 + 5 * 8
    assert of_stages[0].max() == 2 and of_stages[0].sum() == counts[0].sum()


def test_edges_of_a_cell_are_of_one_kind() -> None:
    space = nas_bench_201()
    codes = space.sample(np.random.default_rng(3), 20)
    counts = space.one_hot(codes) @ pooling(space)[1]
    n_operators = int(space.option_counts.max())
    edges = codes[:, [column for column, count in enumerate(space.option_counts) if count == n_operators]]
    expected = (edges[:, :, None] == np.arange(n_operators)).sum(axis=1)
    assert counts.shape[1] == n_operators + 1  # and the resolution
    for column in expected.T:
        assert any(np.array_equal(column, count) for count in counts.T)
