from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from device_family import DeviceFamily, draw_family, draw_features
from scipy.stats import spearmanr

from hanax.predictors import SourcePool, TransferPredictor, choose_archs
from hanax.predictors._evidence import Settings, infer


def rank_correlation(predictor: TransferPredictor, family: DeviceFamily, rows: np.ndarray) -> float:
    predictor.fit(family.X[rows], family.y[rows])
    others = np.setdiff1d(np.arange(len(family.X)), rows)
    return float(spearmanr(predictor.predict(family.X[others]), family.y[others]).statistic)


def unlike_its_sources(family: DeviceFamily, seed: int) -> DeviceFamily:
    """The same new device, but sources whose costs have nothing to do with the networks' features."""
    rng = np.random.default_rng(seed)
    shuffled = np.stack([rng.permutation(column) for column in family.pool.costs.T], axis=1)
    return replace(family, pool=replace(family.pool, costs=shuffled))


def test_the_posterior_is_that_of_the_joint_gaussian() -> None:
    """With a flat prior on the level, approached by a very wide one, and the scale held at its estimate."""
    rng = np.random.default_rng(0)
    features, z = rng.normal(size=(6, 3)), rng.normal(size=6)
    gram = features @ features.T
    settings = Settings(np.ones((1, 1)), np.array([0.3]))
    posterior = infer(gram[None], z, settings, np.ones(6), np.zeros(6))
    covariance = gram + 0.3 * np.eye(6) + 1e8
    np.testing.assert_allclose(
        posterior.level[0] + gram @ posterior.dual[0], (gram + 1e8) @ np.linalg.solve(covariance, z), atol=1e-4
    )


def test_leaving_a_sample_out_is_fitting_without_it() -> None:
    rng = np.random.default_rng(1)
    features, z = rng.normal(size=(7, 3)), rng.normal(size=7)
    settings = Settings(np.ones((1, 1)), np.array([0.2]))
    gram = features @ features.T
    residual, _ = infer(gram[None], z, settings, np.ones(7), np.zeros(7)).leave_one_out()
    for left_out in range(7):
        rest = np.delete(np.arange(7), left_out)
        without = infer(gram[np.ix_(rest, rest)][None], z[rest], settings, np.ones(6), np.zeros(6))
        predicted = without.level[0] + gram[left_out, rest] @ without.dual[0]
        assert residual[0, left_out] == pytest.approx(z[left_out] - predicted, abs=1e-6)


def test_sources_like_the_device_help() -> None:
    with_sources, without = [], []
    for seed in range(6):
        family = draw_family(seed)
        rows = np.arange(10)
        with_sources.append(rank_correlation(TransferPredictor(family.pool), family, rows))
        without.append(rank_correlation(TransferPredictor(groups=family.pool.groups), family, rows))
    assert np.median(with_sources) > 0.9
    assert np.median(with_sources) > np.median(without) + 0.1


def test_sources_unlike_the_device_hardly_hurt_and_lose_their_say() -> None:
    differences, shares = [], []
    for seed in range(8):
        family = unlike_its_sources(draw_family(seed), seed)
        predictor = TransferPredictor(family.pool)
        rows = np.arange(20)
        without = rank_correlation(TransferPredictor(groups=family.pool.groups), family, rows)
        differences.append(rank_correlation(predictor, family, rows) - without)
        from_sources = [name.startswith("sources") for name in predictor.kernel_names_]
        shares.append(predictor.kernel_share_[from_sources].sum())
    assert np.median(differences) > -0.05
    assert np.median(shares) < 0.4


def test_chosen_networks_are_worth_more_than_random_ones() -> None:
    chosen, random = [], []
    for seed in range(8):
        family = draw_family(seed, noise=0.05)
        predictor = TransferPredictor(family.pool)
        rng = np.random.default_rng(seed)
        chosen.append(rank_correlation(predictor, family, choose_archs(family.pool, family.X, 8, rng)))
        random.append(rank_correlation(predictor, family, rng.choice(len(family.X), 8, replace=False)))
    assert np.mean(chosen) > np.mean(random)


def test_no_class_of_operator_is_the_same_in_all_chosen_networks() -> None:
    """Even one that a single network of all has another number of."""
    family = draw_family(4)
    n_columns = family.X.shape[1]
    groups = {**family.pool.groups, "counts": (n_columns, n_columns + 2)}

    def with_counts(X: np.ndarray) -> np.ndarray:
        rare = np.zeros((len(X), 2))
        rare[7, 0], rare[11, 1] = 1e-3, -1e-3
        return np.column_stack([X, rare])

    pool = replace(family.pool, groups=groups, X=with_counts(family.pool.X))
    X = with_counts(family.X)
    for seed in range(5):
        chosen = choose_archs(pool, X, 6, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 6
        assert (np.ptp(X[chosen, n_columns:], axis=0) > 0).all()


def test_one_wild_measurement_does_little_harm() -> None:
    clean, wild = [], []
    for seed in range(6):
        family = draw_family(seed)
        costs = family.y.copy()
        costs[3] *= 20.0
        predictor = TransferPredictor(family.pool)
        clean.append(rank_correlation(predictor, family, np.arange(14)))
        wild.append(rank_correlation(predictor, replace(family, y=costs), np.arange(14)))
    assert np.median(wild) > np.median(clean) - 0.1


def test_intervals_hold_what_they_promise_and_probabilities_fit_them() -> None:
    covered, below = [], []
    for seed in range(12):
        family = draw_family(seed, noise=0.1)
        predictor = TransferPredictor(family.pool).fit(family.X[:12], family.y[:12])
        lower, upper = predictor.predict_interval(family.X[12:], 0.9)
        covered.append(np.mean((lower <= family.y[12:]) & (family.y[12:] <= upper)))
        budget = float(np.median(family.y))
        probability = predictor.probability_below(family.X[12:], budget)
        below.append(probability.mean() - np.mean(family.y[12:] <= budget))
        sure = probability > 0.99
        assert np.mean(family.y[12:][sure] <= budget) > 0.9
        at_bound = [predictor.probability_below(family.X[12:13], float(bound[0]))[0] for bound in (lower, upper)]
        assert at_bound == pytest.approx([0.05, 0.95])
    assert 0.85 < np.mean(covered) <= 1.0
    assert abs(np.mean(below)) < 0.1


def test_whole_milliseconds_carry_the_noise_of_rounding() -> None:
    family = draw_family(0, noise=0.001)
    costs = family.y / family.y.mean() * 4.0
    fine = TransferPredictor(family.pool).fit(family.X[:12], costs[:12])
    coarse = TransferPredictor(family.pool).fit(family.X[:12], np.maximum(np.round(costs[:12]), 1.0))
    assert fine.rounding_ == 0.0 and coarse.rounding_ == pytest.approx(np.sqrt(1 / 12))
    widths = [np.median(np.divide(*p.predict_interval(family.X[12:])[::-1])) for p in (fine, coarse)]
    assert widths[1] > widths[0]


def test_a_unit_changes_predictions_by_its_factor() -> None:
    family = draw_family(2)
    in_ms = TransferPredictor(family.pool).fit(family.X[:10], family.y[:10])
    in_us = TransferPredictor(family.pool).fit(family.X[:10], 1000.0 * family.y[:10])
    np.testing.assert_allclose(in_us.predict(family.X[10:]), 1000.0 * in_ms.predict(family.X[10:]), rtol=1e-6)


def test_the_next_measurements_are_said_to_help_and_do() -> None:
    errors, promised = [], []
    for seed in range(6):
        family = draw_family(seed, noise=0.05)
        first = np.arange(6)
        predictor = TransferPredictor(family.pool).fit(family.X[first], family.y[first])
        chosen, expected = predictor.next_measurements(family.X, 8)
        assert len(set(chosen.tolist())) == 8 and (np.diff(expected) <= 0).all()
        after = np.concatenate([first, chosen])
        more = TransferPredictor(family.pool).fit(family.X[after], family.y[after])
        errors.append([np.abs(np.log(p.predict(family.X) / family.y)).mean() for p in (predictor, more)])
        promised.append(expected[-1] / expected[0])
    before, afterwards = np.mean(errors, axis=0)
    assert afterwards < before
    assert 0.0 < np.mean(promised) < 1.0


def test_networks_without_a_path_are_neither_chosen_nor_learned_from() -> None:
    family = draw_family(3)
    n_columns = family.X.shape[1]
    groups = {**family.pool.groups, "dead": (n_columns, n_columns + 1)}

    def with_dead(X: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.column_stack([X, np.isin(np.arange(len(X)), rows)])

    dead_sources, dead = np.arange(0, 150, 3), np.arange(0, 200, 2)
    costs = family.pool.costs.copy()
    spoilt = costs.copy()
    spoilt[dead_sources] = 1e-3
    X = with_dead(family.X, dead)
    assert not set(choose_archs(
        replace(family.pool, groups=groups, X=with_dead(family.pool.X, dead_sources)), X, 30, np.random.default_rng(0)
    ).tolist()) & set(dead.tolist())  # fmt: skip
    predictions = []
    for of_dead in (costs, spoilt):
        pool = replace(family.pool, groups=groups, X=with_dead(family.pool.X, dead_sources), costs=of_dead)
        predictions.append(TransferPredictor(pool).fit(X[1:30:2], family.y[1:30:2]).predict(X))
    np.testing.assert_allclose(*predictions)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X, y: (X, -y), "costs must be above 0; the least of 10"),
        (lambda X, y: (X[:2], y[:2]), "at least 3 samples are needed; got 2"),
        (lambda X, y: (X[:, :5], y), "X has 5 columns, the networks of the pool have"),
    ],
)
def test_what_it_cannot_learn_from_is_refused(
    spoil: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    family = draw_family(0)
    with pytest.raises(ValueError, match=message):
        TransferPredictor(family.pool).fit(*spoil(family.X[:10], family.y[:10]))


def test_neither_pool_nor_groups_is_refused() -> None:
    family = draw_family(0)
    with pytest.raises(ValueError, match="give a pool of other devices, or without one the groups"):
        TransferPredictor().fit(family.X[:10], family.y[:10])
    with pytest.raises(ValueError, match="give a pool of other devices, or without one the groups"):
        choose_archs(None, family.X, 3, np.random.default_rng(0))


def test_a_pool_says_what_is_wrong_with_it() -> None:
    features, groups = draw_features(np.random.default_rng(0), 4)
    costs = np.ones((4, 2))
    for changes, message in (
        ({"costs": costs[:, :1]}, "a pool of 2 devices needs features"),
        ({"costs": 0.0 * costs}, "costs of a pool are positive numbers"),
        ({"devices": ("one", "one")}, "need different names; got one, one"),
        ({"groups": {"options": (0, 999)}}, "feature group options is columns 0 to 999"),
    ):
        settings = {"groups": groups, "X": features, "costs": costs, "devices": ("one", "two")} | changes
        with pytest.raises(ValueError, match=message):
            SourcePool("0123", **settings)  # type: ignore[arg-type]
    pool = SourcePool("0123", groups, features, costs * [1.0, 2.0], ("one", "two"))
    assert pool.columns(["two"]).costs.max() == 2.0 and pool.without(["two", "other"]).devices == ("one",)
    assert pool.fingerprint != pool.rows([0, 1, 2]).fingerprint
    with pytest.raises(ValueError, match="the pool has no device three; it has one, two"):
        pool.columns(["three"])
