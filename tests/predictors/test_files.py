from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from device_family import draw_family
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge

from hanax.predictors import (
    AdditivePredictor,
    BestSourcePredictor,
    HierarchicalBayesPredictor,
    PoolMismatchError,
    PrincipalComponentsPredictor,
    RidgePredictor,
    SourcePool,
    TransferPredictor,
    _files,
    additive_features,
    load_predictor,
    predictor_features,
    save_predictor,
)
from hanax.search_spaces import SearchSpace, SpaceMismatchError, mobilenet_v3


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return mobilenet_v3(resolutions=(32,), n_classes=10)


@pytest.fixture(scope="module")
def fitted(space: SearchSpace) -> dict[str, tuple[RidgePredictor | AdditivePredictor, np.ndarray]]:
    codes = space.sample(np.random.default_rng(0), 40)
    latency_ms = additive_features(space, codes)[:, 0] + np.random.default_rng(1).uniform(1, 2, size=40)
    X, X_additive = predictor_features(space, codes), additive_features(space, codes)
    return {
        "ridge": (RidgePredictor(log_target=True, alphas=(0.1, 1.0)).fit(X, latency_ms), X),
        "additive": (AdditivePredictor(prior_columns=(0,)).fit(X_additive, latency_ms), X_additive),
    }


@pytest.mark.parametrize("kind", ["ridge", "additive"])
def test_a_saved_predictor_comes_back_bit_for_bit(
    space: SearchSpace, fitted: dict[str, tuple[RidgePredictor, np.ndarray]], kind: str, tmp_path: Path
) -> None:
    predictor, X = fitted[kind]
    save_predictor(tmp_path / "p.npz", predictor, space, "latency_ms")
    loaded = load_predictor(tmp_path / "p.npz", space, "latency_ms")
    assert type(loaded) is type(predictor)
    assert loaded.get_params() == predictor.get_params()
    np.testing.assert_array_equal(loaded.predict(X), predictor.predict(X))
    np.testing.assert_array_equal(loaded.predict_interval(X), predictor.predict_interval(X))
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_column_names_and_array_settings_survive(space: SearchSpace, tmp_path: Path) -> None:
    table = pd.DataFrame(np.random.default_rng(2).normal(size=(20, 2)), columns=["macs", "params"])
    save_predictor(tmp_path / "p", RidgePredictor(np.logspace(-1, 1, 3)).fit(table, table["macs"]), space, "t")
    loaded = load_predictor(tmp_path / "p", space, "t")
    np.testing.assert_allclose(loaded.predict(table), table["macs"], atol=0.3)
    assert list(loaded.feature_names_in_) == ["macs", "params"]


def test_a_predictor_of_another_space_is_refused_with_both_fingerprints(
    space: SearchSpace, fitted: dict[str, tuple[RidgePredictor, np.ndarray]], tmp_path: Path
) -> None:
    other = mobilenet_v3(resolutions=(48,), n_classes=10)
    save_predictor(tmp_path / "p", fitted["ridge"][0], space, "accuracy")
    with pytest.raises(ValueError, match=rf"{space.fingerprint}.*{other.fingerprint}"):
        load_predictor(tmp_path / "p", other, "accuracy")


def test_a_predictor_of_another_target_is_refused_with_both_names(
    space: SearchSpace, fitted: dict[str, tuple[RidgePredictor, np.ndarray]], tmp_path: Path
) -> None:
    save_predictor(tmp_path / "p", fitted["ridge"][0], space, "latency_ms on a")
    with pytest.raises(ValueError, match="predicts 'latency_ms on a'; asked for 'latency_ms on b'"):
        load_predictor(tmp_path / "p", space, "latency_ms on b")


def test_what_is_not_a_whole_predictor_file_is_refused_by_name(
    space: SearchSpace, fitted: dict[str, tuple[RidgePredictor, np.ndarray]], tmp_path: Path
) -> None:
    save_predictor(tmp_path / "whole", fitted["ridge"][0], space, "t")
    content = (tmp_path / "whole").read_bytes()
    np.savez(tmp_path / "foreign.npz", x=np.ones(3))
    np.save(tmp_path / "single.npy", np.ones(3))
    damaged = {"empty": b"", "text": b"hello", "truncated": content[: len(content) // 2], "head": content[:40]}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    for name in [*damaged, "foreign.npz", "single.npy"]:
        with pytest.raises(ValueError, match=rf"{name} is not a predictor saved by Hanax, or it is damaged"):
            load_predictor(tmp_path / name, space, "t")


def test_unfitted_and_foreign_predictors_cannot_be_saved(space: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        save_predictor(tmp_path / "p", RidgePredictor(), space, "t")
    with pytest.raises(ValueError, match="cannot save a Ridge; known predictors: ridge, additive"):
        save_predictor(tmp_path / "p", Ridge().fit(np.eye(3), np.arange(3)), space, "t")


# ---- predictors with a pool of other devices, and with state of more kinds ------------------------------------------


@pytest.fixture(scope="module")
def pool(space: SearchSpace) -> SourcePool:
    return dataclasses.replace(draw_family(0).pool, space_fingerprint=space.fingerprint)


@pytest.mark.parametrize(
    "kind", [BestSourcePredictor, HierarchicalBayesPredictor, PrincipalComponentsPredictor, TransferPredictor]
)
def test_a_predictor_with_a_pool_is_whole_in_its_file(
    space: SearchSpace, pool: SourcePool, kind: type[BestSourcePredictor], tmp_path: Path
) -> None:
    family = draw_family(0)
    predictor = kind(pool).fit(family.X[:10], family.y[:10])
    save_predictor(tmp_path / "p", predictor, space, "latency_ms")
    loaded = load_predictor(tmp_path / "p", space, "latency_ms")
    assert type(loaded) is kind
    assert loaded.pool.fingerprint == pool.fingerprint
    assert loaded.pool.devices == pool.devices
    assert {name: value for name, value in loaded.get_params().items() if name != "pool"} == {
        name: value for name, value in predictor.get_params().items() if name != "pool"
    }
    np.testing.assert_array_equal(loaded.predict(family.X), predictor.predict(family.X))
    np.testing.assert_array_equal(loaded.predict_interval(family.X), predictor.predict_interval(family.X))
    again = loaded.fit(family.X[:10], family.y[:10])
    np.testing.assert_array_equal(again.predict(family.X), predictor.predict(family.X))


def test_a_predictor_of_another_pool_is_refused_with_both_fingerprints(
    space: SearchSpace, pool: SourcePool, tmp_path: Path
) -> None:
    family = draw_family(0)
    save_predictor(tmp_path / "p", BestSourcePredictor(pool).fit(family.X[:10], family.y[:10]), space, "t")
    assert load_predictor(tmp_path / "p", space, "t", pool).source_ >= 0
    other = pool.without(["source0"])
    with pytest.raises(PoolMismatchError, match=rf"fingerprint {pool.fingerprint}; .* fingerprint {other.fingerprint}"):
        load_predictor(tmp_path / "p", space, "t", other)


def test_a_predictor_without_a_pool_is_refused_where_one_is_asked_for(
    space: SearchSpace, pool: SourcePool, fitted: dict[str, tuple[RidgePredictor, np.ndarray]], tmp_path: Path
) -> None:
    save_predictor(tmp_path / "p", fitted["ridge"][0], space, "t")
    with pytest.raises(PoolMismatchError, match="a pool with fingerprint none"):
        load_predictor(tmp_path / "p", space, "t", pool)


def test_a_pool_of_another_space_cannot_be_saved(space: SearchSpace, tmp_path: Path) -> None:
    family = draw_family(0)
    predictor = BestSourcePredictor(family.pool).fit(family.X[:10], family.y[:10])
    with pytest.raises(SpaceMismatchError, match=rf"{family.pool.space_fingerprint}.*{space.fingerprint}"):
        save_predictor(tmp_path / "p", predictor, space, "t")
    assert list(tmp_path.iterdir()) == []


def test_a_pool_that_changed_in_the_file_is_damage(space: SearchSpace, pool: SourcePool, tmp_path: Path) -> None:
    family = draw_family(0)
    save_predictor(tmp_path / "p", BestSourcePredictor(pool).fit(family.X[:10], family.y[:10]), space, "t")
    with np.load(tmp_path / "p") as file:
        arrays = dict(file.items())
    arrays["pools.0.costs"][0, 0] *= 2
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(ValueError, match=rf"damaged: its pool has fingerprint .*, not {pool.fingerprint}"):
        load_predictor(tmp_path / "changed.npz", space, "t")


class Nested(BaseEstimator):
    """A predictor that has learned everything that a file can hold."""

    def __init__(
        self, pool: SourcePool, inner: RidgePredictor | None = None, shape: tuple[Any, ...] = (1, 2.5)
    ) -> None:
        self.pool, self.inner, self.shape = pool, inner, shape

    def fit(self, X: np.ndarray, y: np.ndarray) -> Nested:
        self.pool_ = self.pool
        self.weights_ = {"first": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.float32([1, 2])}, "scale": 0.5}
        self.members_ = [RidgePredictor().fit(X, y), BestSourcePredictor(self.pool).fit(X, y)]
        self.chosen_, self.note_, self.nothing_, self.is_good_ = np.int64(3), "tanh", None, True
        self.worst_ = float("-inf")
        return self


def test_nested_state_comes_back_as_it_was_and_a_pool_is_stored_once(
    space: SearchSpace, pool: SourcePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_files.PREDICTORS, "nested", Nested)
    family = draw_family(0)
    predictor = Nested(pool, RidgePredictor(alphas=(0.5,)), (1, 2.5, "a", (3,))).fit(family.X[:10], family.y[:10])
    save_predictor(tmp_path / "p", predictor, space, "t")
    with np.load(tmp_path / "p") as file:
        assert {"learned.weights_.first.kernel", "learned.members_.1.learned.coef_", "pools.0.X"} <= set(file)
        assert "pools.1.X" not in file
    loaded = load_predictor(tmp_path / "p", space, "t")
    assert loaded.shape == (1, 2.5, "a", (3,))
    assert loaded.inner.get_params() == {"alphas": (0.5,), "log_target": False}
    assert loaded.pool is loaded.pool_ is loaded.members_[1].pool
    assert loaded.weights_["scale"] == 0.5
    np.testing.assert_array_equal(loaded.weights_["first"]["kernel"], predictor.weights_["first"]["kernel"])
    assert loaded.weights_["first"]["bias"].dtype == np.float32
    for inner, outer in zip(loaded.members_, predictor.members_, strict=True):
        np.testing.assert_array_equal(inner.predict(family.X), outer.predict(family.X))
    assert (loaded.chosen_, loaded.note_, loaded.nothing_, loaded.is_good_) == (3, "tanh", None, True)
    assert loaded.worst_ == float("-inf")


def test_what_a_file_cannot_hold_is_named(space: SearchSpace, tmp_path: Path) -> None:
    predictor = RidgePredictor().fit(np.eye(3), np.arange(3.0))
    predictor.layers_ = {"one": [np.ones(2), {1, 2}]}
    with pytest.raises(ValueError, match=r"cannot save RidgePredictor\.layers_\.one\[1\], a set"):
        save_predictor(tmp_path / "p", predictor, space, "t")


def test_files_of_the_first_format_are_read(
    space: SearchSpace, fitted: dict[str, tuple[RidgePredictor, np.ndarray]], tmp_path: Path
) -> None:
    """Written here as Hanax 0.1.0 wrote them."""
    predictor, X = fitted["ridge"]
    header = {
        "format": "hanax-predictor-1",
        "kind": "ridge",
        "settings": predictor.get_params(),
        "space_fingerprint": space.fingerprint,
        "target": "latency_ms",
        "numbers": {name: getattr(predictor, name) for name in ("alpha_", "intercept_", "n_features_in_")},
        "names": {},
    }
    arrays = {name: getattr(predictor, name) for name in ("coef_", "loo_coef_", "loo_intercept_", "loo_residuals_")}
    with (tmp_path / "old").open("wb") as stream:
        np.savez_compressed(stream, header=np.array(json.dumps(header)), **arrays)
    loaded = load_predictor(tmp_path / "old", space, "latency_ms")
    assert loaded.get_params() == predictor.get_params()
    np.testing.assert_array_equal(loaded.predict(X), predictor.predict(X))
    np.testing.assert_array_equal(loaded.predict_interval(X), predictor.predict_interval(X))
