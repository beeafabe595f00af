from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import null_space
from scipy.stats import multivariate_normal

from hanax.predictors import (
    AccuracyPredictor,
    RidgePredictor,
    accuracy_feature_groups,
    accuracy_features,
    load_predictor,
    save_predictor,
)
from hanax.predictors._accuracy import HEADROOMS, N_COMPARED
from hanax.predictors._evidence import draw_settings, infer, infer_each
from hanax.search_spaces import SearchSpace, mobilenet_v3

Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return mobilenet_v3(
        resolutions=(32,), n_classes=10, stage_widths=(16, 24, 32), stage_strides=(1, 2, 2),
        stage_activations=("relu", "relu", "hswish"), stage_squeeze_excite=(False, True, True), depths=(1, 2, 3),
        kernel_sizes=(3, 5, 7), expand_ratios=(2, 3, 4), head_width=64, feature_width=64,
    )  # fmt: skip


def _networks(space: SearchSpace, n: int, seed: int) -> Data:
    """Features and accuracies: blocks of a stage act alike, and accuracies approach 90 %."""
    rng = np.random.default_rng(seed)
    codes = np.unique(space.sample(rng, 2 * n), axis=0)
    codes = codes[rng.permutation(len(codes))[:n]]
    active = space.active(codes)
    good = np.zeros(len(codes))
    for column, decision in enumerate(space.decisions):
        stage = {"stage1": 0.5, "stage2": 1.0, "stage3": 1.5}.get(decision.name.partition(".")[0], 0.0)
        size = 0.35 if decision.name.endswith("expand_ratio") else 0.15 if "kernel" in decision.name else 0.4
        good += active[:, column] * stage * size * codes[:, column]
    accuracy = 90.0 - 40.0 * np.exp(-good) + 0.1 * rng.normal(size=len(codes))
    return accuracy_features(space, codes), accuracy


def test_a_shared_effect_and_a_ceiling_are_learned_from_fewer_networks_than_ridge_needs(space: SearchSpace) -> None:
    errors, ridge_errors = [], []
    for seed in range(3):
        X, accuracy = _networks(space, 300, seed)
        predictor = AccuracyPredictor(accuracy_feature_groups(space)).fit(X[:40], accuracy[:40])
        errors.append(np.mean(np.abs(predictor.predict(X[40:]) - accuracy[40:])))
        ridge = RidgePredictor().fit(X[:120], accuracy[:120])
        ridge_errors.append(np.mean(np.abs(ridge.predict(X[120:]) - accuracy[120:])))
    assert np.mean(errors) < 0.6 * np.mean(ridge_errors)


@pytest.mark.parametrize("n", [20, 60])
def test_intervals_cover_what_they_promise(space: SearchSpace, n: int) -> None:
    holds: dict[float, list[float]] = {0.8: [], 0.9: []}
    for seed in range(8):
        X, accuracy = _networks(space, 200, seed)
        predictor = AccuracyPredictor(accuracy_feature_groups(space), n_settings=64).fit(X[:n], accuracy[:n])
        for coverage, shares in holds.items():
            lower, upper = predictor.predict_interval(X[n:], coverage)
            shares.append(np.mean((lower <= accuracy[n:]) & (accuracy[n:] <= upper)))
    for coverage, shares in holds.items():
        assert coverage - 0.05 < np.mean(shares) < coverage + 0.08


def test_bounds_lie_around_the_prediction_and_below_the_ceiling(space: SearchSpace) -> None:
    X, accuracy = _networks(space, 200, 0)
    predictor = AccuracyPredictor(accuracy_feature_groups(space)).fit(X[:40], accuracy[:40])
    wide, narrow = predictor.predict_interval(X, 0.99), predictor.predict_interval(X, 0.5)
    assert (wide[0] < narrow[0]).all() and (narrow[0] < predictor.predict(X)).all()
    assert (predictor.predict(X) < narrow[1]).all() and (narrow[1] < wide[1]).all()
    assert wide[1].max() < predictor.share_ @ predictor.ceiling_


@pytest.mark.parametrize("n", [40, N_COMPARED + 30])
def test_the_order_of_the_samples_does_not_matter(space: SearchSpace, n: int) -> None:
    X, accuracy = _networks(space, 200, 1)
    order = np.random.default_rng(0).permutation(n)
    one = AccuracyPredictor(accuracy_feature_groups(space)).fit(X[:n], accuracy[:n])
    other = AccuracyPredictor(accuracy_feature_groups(space)).fit(X[order], accuracy[order])
    np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-7)
    np.testing.assert_allclose(one.predict_interval(X), other.predict_interval(X), rtol=1e-7)


def test_the_unit_of_accuracies_does_not_matter(space: SearchSpace) -> None:
    X, accuracy = _networks(space, 100, 2)
    in_percent = AccuracyPredictor(accuracy_feature_groups(space)).fit(X[:50], accuracy[:50])
    as_share = AccuracyPredictor(accuracy_feature_groups(space)).fit(X[:50], accuracy[:50] / 100 - 1)
    np.testing.assert_allclose(100 * (as_share.predict(X) + 1), in_percent.predict(X), rtol=1e-8)


def test_many_rows_get_the_same_predictions_as_few(space: SearchSpace) -> None:
    X, accuracy = _networks(space, 50, 3)
    predictor = AccuracyPredictor(accuracy_feature_groups(space), n_settings=16).fit(X, accuracy)
    many = np.tile(X, (100, 1))
    np.testing.assert_allclose(predictor.predict(many).reshape(100, -1)[90], predictor.predict(X))
    np.testing.assert_allclose(predictor.predict_interval(many)[0][-50:], predictor.predict_interval(X)[0])


def test_the_ceilings_have_the_probability_that_integration_by_hand_gives() -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(7, 2))
    y = 5.0 - np.exp(-X[:, 0] + 0.3 * rng.normal(size=7))
    predictor = AccuracyPredictor(n_settings=1).fit(X, y)
    weights, noise = predictor.kernel_weights_[0], predictor.noise_[0]
    squares = ((X[:, None] - X[None]) ** 2).sum(axis=2) / 2
    kernel = weights[0] * X @ X.T / 2 + weights[1] * np.exp(-squares / 2 / 1.5**2) + noise * np.eye(7)
    contrasts = null_space(np.ones((1, 7)))
    without_level = contrasts.T @ kernel @ contrasts
    log_scales = np.linspace(-8.0, 8.0, 400)
    density = []
    for headroom in HEADROOMS:
        gap = y.max() + headroom * y.std() - y
        z = -np.log(gap)
        on_scale = [multivariate_normal(cov=np.exp(2 * s) * without_level).pdf(contrasts.T @ z) for s in log_scales]
        density.append(np.sum(on_scale) / np.prod(gap))
    shares = np.zeros(len(HEADROOMS))
    for share, ceiling in zip(predictor.share_, predictor.ceiling_, strict=True):
        shares[np.argmin(np.abs(y.max() + np.array(HEADROOMS) * y.std() - ceiling))] = share
    kept = shares > 0
    assert kept.sum() >= 3
    expected = np.array(density)[kept]
    np.testing.assert_allclose(shares[kept], expected / expected.sum(), rtol=1e-3)


def test_several_targets_are_learned_as_each_alone() -> None:
    rng = np.random.default_rng(5)
    points, targets = rng.normal(size=(12, 3)), rng.normal(size=(2, 12))
    grams = np.stack([points @ points.T, np.eye(12)])
    settings, factor = draw_settings(2, 8, rng), np.ones(12)
    together = infer_each(grams, targets, settings, factor, 0.0 * factor)
    for posterior, z in zip(together, targets, strict=True):
        alone = infer(grams, z, settings, factor, 0.0 * factor)
        for name in ("log_evidence", "level", "dual", "scale", "precision"):
            np.testing.assert_allclose(getattr(posterior, name), getattr(alone, name))


def test_equal_accuracies_are_predicted_everywhere() -> None:
    X = np.random.default_rng(6).normal(size=(20, 3))
    np.testing.assert_allclose(AccuracyPredictor().fit(X, np.full(20, 71.5)).predict(X + 1), 71.5, atol=1e-3)


def test_it_comes_back_from_a_file_bit_for_bit(space: SearchSpace, tmp_path: Path) -> None:
    X, accuracy = _networks(space, 60, 7)
    groups = accuracy_feature_groups(space)
    predictor = AccuracyPredictor(groups).fit(X, accuracy)
    save_predictor(tmp_path / "p", predictor, space, "accuracy")
    loaded = load_predictor(tmp_path / "p", space, "accuracy")
    assert loaded.groups == groups
    np.testing.assert_array_equal(loaded.predict(X), predictor.predict(X))
    np.testing.assert_array_equal(loaded.predict_interval(X), predictor.predict_interval(X))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"groups": {}}, "groups names no group"),
        ({"groups": {"totals": (0, 4)}}, "group totals is columns 0 to 4; X has 3 columns"),
        ({"groups": {"totals": (1, 1)}}, "group totals is columns 1 to 1"),
        ({"n_settings": 0}, "n_settings must be at least 1; got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AccuracyPredictor(**settings).fit(np.eye(3), np.arange(3.0))


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90])
def test_a_coverage_that_is_no_probability_is_refused(coverage: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.9"):
        AccuracyPredictor().fit(np.eye(4), np.arange(4.0)).predict_interval(np.eye(4), coverage)
