from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge

from hanax.predictors import (
    AdditivePredictor,
    RidgePredictor,
    additive_features,
    load_predictor,
    predictor_features,
    save_predictor,
)
from hanax.search_spaces import SearchSpace, mobilenet_v3


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
