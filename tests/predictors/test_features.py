from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hanax.predictors import additive_features, predictor_features
from hanax.search_spaces import SearchSpace, fbnet, mobilenet_v3, nas_bench_201


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return mobilenet_v3(
        resolutions=(24, 32), n_classes=10, stage_widths=(16, 24), stage_strides=(1, 2),
        stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), depths=(1, 2),
        kernel_sizes=(3, 5), expand_ratios=(3, 6), head_width=64, feature_width=64,
    )  # fmt: skip


def test_features_of_a_network_do_not_depend_on_its_company(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), 50)
    for make in (predictor_features, additive_features):
        together = make(space, codes)
        for rows in ([0], [7, 3], [*range(20, 50)]):
            np.testing.assert_array_equal(make(space, codes[rows]), together[rows])


def test_different_networks_have_different_features(space: SearchSpace) -> None:
    codes = np.unique(space.sample(np.random.default_rng(1), 300), axis=0)
    for make in (predictor_features, additive_features):
        assert len(np.unique(make(space, codes), axis=0)) == len(codes)


def test_no_column_is_constant_over_the_space_and_scales_are_comparable(space: SearchSpace) -> None:
    spread = predictor_features(space, space.sample(np.random.default_rng(2), 2000)).std(axis=0)
    assert spread.min() > 0.1
    assert spread.max() < 1.5


def test_a_space_with_nothing_to_choose_in_one_decision_drops_its_column(space: SearchSpace) -> None:
    fixed = mobilenet_v3(resolutions=(32,), depths=(1,), kernel_sizes=(3,), n_classes=10)
    codes = fixed.sample(np.random.default_rng(3), 100)
    features = predictor_features(fixed, codes)
    assert features.shape[1] < fixed.one_hot(codes).shape[1] + 60
    assert (features.std(axis=0) > 0).all()


def test_the_number_of_columns_is_that_of_the_space_for_one_network_too(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(4), 20)
    assert predictor_features(space, codes[:1]).shape[1] == predictor_features(space, codes).shape[1]
    assert predictor_features(space, codes[:0]).shape == (0, predictor_features(space, codes).shape[1])


def test_predictors_do_not_import_jax() -> None:
    code = "import sys, hanax.predictors; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("each", [nas_bench_201(), fbnet()], ids=lambda each: each.name)
def test_spaces_of_cells_and_of_operators_have_features_like_any_other(each: SearchSpace) -> None:
    codes = each.canonical(np.unique(each.sample(np.random.default_rng(5), 300), axis=0))
    features = predictor_features(each, codes)
    assert np.isfinite(features).all() and len(np.unique(features, axis=0)) == len(codes)
    assert additive_features(each, codes).shape[1] < 500
    np.testing.assert_array_equal(predictor_features(each, codes[7:9]), features[7:9])
