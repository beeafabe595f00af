from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.exceptions import NotFittedError

from hanax.predictors import OperationWisePredictor, RidgePredictor, SourcePool, load_predictor, save_predictor
from hanax.predictors._operation_wise import _batches, _best_stop
from hanax.search_spaces import mobilenet_v3

D, K = 6, 4
POSITIONS = np.linspace(1.0, 2.0, D)
GROUPS = {"options": (0, D * K), "counts": (D * K, D * K + K), "work": (D * K + K, D * K + K + 1)}
SETTINGS: dict[str, Any] = {
    "option_counts": (K,) * D,
    "n_epochs": 40,
    "batch_size": 32,
    "width": 16,
    "n_layers": 2,
    "learning_rate": 3e-3,
}


def _features(codes: np.ndarray) -> np.ndarray:
    one_hot = codes[:, :, None] == np.arange(K)
    work = np.log1p(codes @ POSITIONS)
    return np.column_stack([one_hot.reshape(len(codes), -1), one_hot.sum(axis=1), work]).astype(float)


def _cost(codes: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Every position costs what the device asks for the operator there."""
    return 1.0 + (POSITIONS * prices[codes]).sum(axis=1)


def _sample(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, K, size=(n, D))


def _prices(rng: np.random.Generator) -> np.ndarray:
    """Two kinds of device: some ask most for operator 3, some for operator 1; each with its own noise."""
    kinds = np.array([[0.1, 1.0, 2.0, 6.0], [0.1, 6.0, 1.0, 2.0]])
    share = rng.uniform()
    return (share * kinds[0] + (1 - share) * kinds[1]) * rng.uniform(0.8, 1.25, size=K)


@pytest.fixture(scope="module")
def pool() -> SourcePool:
    rng = np.random.default_rng(0)
    codes = _sample(rng, 160)
    costs = np.stack([_cost(codes, _prices(rng)) for _ in range(8)], axis=1)
    costs[rng.uniform(size=costs.shape) < 0.05] = np.nan
    return SourcePool("f" * 16, GROUPS, _features(codes), costs, tuple(f"device{i}" for i in range(8)))


@pytest.fixture(scope="module")
def learned(pool: SourcePool) -> OperationWisePredictor:
    return OperationWisePredictor(pool, **SETTINGS).meta_fit()


def _draws(n_draws: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Samples of new devices, one each: `X`, `y` and the prices."""
    rng = np.random.default_rng(seed)
    prices = [_prices(rng) for _ in range(n_draws)]
    codes = [_sample(rng, n) for _ in prices]
    X = np.stack([_features(some) for some in codes])
    return X, np.stack([_cost(*pair) for pair in zip(codes, prices, strict=True)]), prices


def test_it_ranks_on_a_new_device_better_than_without_source_devices(learned: OperationWisePredictor) -> None:
    X, y, prices = _draws(6, 10, seed=1)  # fewer than the options of the space
    codes = _sample(np.random.default_rng(2), 400)
    ours, alone = [], []
    for fitted, features, costs, price in zip(learned.adapt_draws(X, y), X, y, prices, strict=True):
        truth = _cost(codes, price)
        ours.append(spearmanr(fitted.predict(_features(codes)), truth).statistic)
        ridge = RidgePredictor(log_target=True).fit(features, costs)
        alone.append(spearmanr(ridge.predict(_features(codes)), truth).statistic)
    assert np.mean(ours) > 0.95
    assert 1 - np.mean(ours) < 0.6 * (1 - np.mean(alone))


def test_ranking_improves_while_it_learns(learned: OperationWisePredictor) -> None:
    assert len(learned.meta_losses_) == 40 * 5
    assert learned.meta_losses_[-10:].mean() < 0.25 * learned.meta_losses_[:10].mean()


def test_the_new_device_starts_from_the_source_device_that_orders_the_samples_most_alike() -> None:
    rng = np.random.default_rng(3)
    codes = _sample(rng, 160)
    costs = np.stack([_cost(codes, 0.1 + 5.0 * np.eye(K)[dearest]) for dearest in range(K)], axis=1)
    pool = SourcePool("f" * 16, GROUPS, _features(codes), costs, ("a", "b", "c", "d"))
    # At a learning rate of nothing, what the fit starts from is also what it ends with.
    still = OperationWisePredictor(pool, adapt_learning_rate=0.0, **SETTINGS).meta_fit()
    new = _sample(rng, 10)
    for dearest in range(K):
        fitted = copy.copy(still)
        fitted.fit(_features(new), _cost(new, 0.2 + 3.0 * np.eye(K)[dearest]))
        assert fitted.source_ == dearest
        np.testing.assert_array_equal(fitted.embedding_, still.device_embeddings_[dearest])
        np.testing.assert_array_equal(fitted.weights_, still.meta_weights_)


def test_the_same_seed_gives_the_same_numbers(pool: SourcePool) -> None:
    X, y, _ = _draws(1, 10, seed=4)
    brief = SETTINGS | {"n_epochs": 2}
    first, again, other = (
        OperationWisePredictor(pool, seed=seed, **brief).fit(X[0], y[0]).predict(X[0]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_draws_are_what_single_fits_give_and_compile_nothing_anew(learned: OperationWisePredictor) -> None:
    from hanax.predictors import _operation_net as net

    X, y, _ = _draws(3, 10, seed=5)
    fitted = learned.adapt_draws(X, y)
    programs = net.adapt._cache_size(), net._score_block._cache_size()
    alone = learned.adapt_draws(X[1:2], y[1:2])[0]
    np.testing.assert_allclose(fitted[1].predict(X[0]), alone.predict(X[0]), rtol=1e-5)
    learned.adapt_draws(*_draws(5, 10, seed=6)[:2])
    assert (net.adapt._cache_size(), net._score_block._cache_size()) == programs


def test_pools_of_one_space_share_a_compiled_program(pool: SourcePool, learned: OperationWisePredictor) -> None:
    from hanax.predictors import _operation_net as net

    programs = net.meta_train._cache_size()
    OperationWisePredictor(pool.columns(pool.devices[:3]), **SETTINGS).meta_fit()
    assert net.meta_train._cache_size() == programs


def test_what_is_learned_is_plain_arrays_and_numbers(learned: OperationWisePredictor) -> None:
    X, y, _ = _draws(1, 10, seed=7)
    state = {name: value for name, value in vars(learned.adapt_draws(X, y)[0]).items() if name.endswith("_")}
    assert {"meta_weights_", "device_embeddings_", "weights_", "embedding_", "slope_"} <= set(state)
    assert {type(value) for value in state.values()} <= {np.ndarray, int, float}


def test_a_saved_predictor_comes_back_bit_for_bit(
    learned: OperationWisePredictor, pool: SourcePool, tmp_path: Path
) -> None:
    X, y, _ = _draws(1, 10, seed=16)
    space = mobilenet_v3(resolutions=(32,), n_classes=10)
    fitted = learned.adapt_draws(X, y)[0]
    fitted.set_params(pool=dataclasses.replace(pool, space_fingerprint=space.fingerprint))
    save_predictor(tmp_path / "p", fitted, space, "latency_ms")
    loaded = load_predictor(tmp_path / "p", space, "latency_ms")
    np.testing.assert_array_equal(loaded.predict(X[0]), fitted.predict(X[0]))
    np.testing.assert_array_equal(loaded.predict_interval(X[0]), fitted.predict_interval(X[0]))
    assert loaded.pool.fingerprint == fitted.pool.fingerprint


def test_predictions_are_in_the_unit_of_the_samples(learned: OperationWisePredictor) -> None:
    X, y, prices = _draws(1, 10, seed=8)
    in_ms, in_us = learned.adapt_draws(np.stack([X[0], X[0]]), np.stack([y[0], 1000 * y[0]]))
    np.testing.assert_allclose(in_us.predict(X[0]), 1000 * in_ms.predict(X[0]), rtol=1e-3)
    codes = _sample(np.random.default_rng(9), 400)
    truth = _cost(codes, prices[0])
    assert np.mean(np.abs(in_ms.predict(_features(codes)) / truth - 1)) < 0.15


def test_intervals_hold_about_what_they_promise(learned: OperationWisePredictor) -> None:
    X, y, prices = _draws(16, 10, seed=10)
    codes = _sample(np.random.default_rng(11), 400)
    held = []
    for fitted, price in zip(learned.adapt_draws(X, y), prices, strict=True):
        lower, upper = fitted.predict_interval(_features(codes), 0.9)
        truth = _cost(codes, price)
        held.append(np.mean((lower <= truth) & (truth <= upper)))
    assert 0.82 < np.mean(held) < 0.99


def test_intervals_are_infinite_where_the_samples_cannot_promise_the_coverage(learned: OperationWisePredictor) -> None:
    X, y, _ = _draws(1, 10, seed=12)
    lower, upper = learned.adapt_draws(X, y)[0].predict_interval(X[0], 0.95)
    assert (lower == 0).all()
    assert np.isinf(upper).all()


def test_every_device_learns_from_all_that_it_measured_and_from_nothing_else() -> None:
    measured = [np.arange(0, 30), np.arange(10, 20), np.array([3, 7])]
    picked, rows = _batches(np.random.default_rng(13), measured, 30, 2, 5)
    assert np.bincount(picked.ravel()).tolist() == [20, 20, 20]
    for device, known in enumerate(measured):
        times = np.bincount(rows[picked == device].ravel(), minlength=30)
        assert set(np.flatnonzero(times)) == set(known)
        assert np.ptp(times[known]) <= 1


def test_fits_that_leave_samples_out_decide_when_to_stop() -> None:
    costs = np.arange(4.0)
    keep = np.array([[True, True, True, False], [False, True, True, True]])
    right, wrong = costs, np.array([3.0, 1.0, 2.0, 0.0])  # the samples left out are on the wrong side of all others
    scores = np.stack([[wrong, right, wrong], [wrong, right, right]])
    assert _best_stop(scores, costs, keep) == 1
    assert _best_stop(scores[:0], costs, keep[:0]) == 2
    only_known_pairs_differ = np.array([0.0, 2.0, 1.0, 3.0])
    assert _best_stop(np.stack([[only_known_pairs_differ, right]] * 2), costs, keep) == 0


def test_a_constant_cost_is_learned_as_it_is(learned: OperationWisePredictor) -> None:
    X, _, _ = _draws(1, 10, seed=14)
    fitted = learned.adapt_draws(X, np.full((1, 10), 3.0))[0]
    np.testing.assert_allclose(fitted.predict(X[0]), 3.0, rtol=1e-6)


def test_prediction_needs_a_device(learned: OperationWisePredictor, pool: SourcePool) -> None:
    with pytest.raises(NotFittedError):
        learned.predict(pool.X)


def test_samples_that_do_not_fit_the_pool_are_refused(learned: OperationWisePredictor) -> None:
    X, y, _ = _draws(2, 10, seed=15)
    with pytest.raises(ValueError, match="X has 28 columns; the architectures of the pool have 29"):
        learned.adapt_draws(X[:, :, :-1], y)
    with pytest.raises(ValueError, match=r"costs must be above 0; the least of 10 is 0\.0"):
        learned.adapt_draws(X, np.where(np.arange(10) == 3, 0.0, y))
    with pytest.raises(ValueError, match=r"X of shape \(draws, n, f\).*got \(10, 29\), \(10,\)"):
        learned.adapt_draws(X[0], y[0])
    with pytest.raises(ValueError, match="adapt_steps is a multiple of 5, or 0; got 7"):
        copy.copy(learned).set_params(adapt_steps=7).fit(X[0], y[0])
    with pytest.raises(ValueError, match="folds is 0, use 5"):
        copy.copy(learned).set_params(folds=0).fit(X[0], y[0]).predict_interval(X[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"option_counts": None}, "adjacency and option_counts are both None"),
        ({"option_counts": (4, 4)}, r"the options of the pool are 24 columns; option_counts are \(4, 4\)"),
        ({"option_counts": (6, 6, 6, 6)}, "takes two options at once"),
        ({"adjacency": np.eye(5, k=1)}, r"6 decisions need an adjacency of shape \(8, 8\); got \(5, 5\)"),
        ({"adjacency": np.eye(8, k=-1)}, "rows must feed columns"),
        ({"feature_groups": ("depth",)}, "no group of columns 'depth'; it has options, counts, work"),
    ],
)
def test_settings_that_do_not_fit_the_pool_are_refused(
    pool: SourcePool, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OperationWisePredictor(pool, **(SETTINGS | settings)).meta_fit()


def test_a_pool_without_devices_is_refused(pool: SourcePool) -> None:
    with pytest.raises(ValueError, match="the pool has no devices"):
        OperationWisePredictor(pool.columns(()), **SETTINGS).meta_fit()
