"""Fitted predictors as files: an npz of arrays with a JSON header, never a pickle.

A file is self-contained: a predictor that learned from a pool of other devices has the pool in it. What JSON cannot
hold is an array of the npz, under its path: ``learned.coef_``, ``learned.weights_.layer1``, ``pools.0.costs``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from hanax._files import write_atomically
from hanax.predictors._accuracy import AccuracyPredictor
from hanax.predictors._additive import AdditivePredictor
from hanax.predictors._best_source import BestSourcePredictor
from hanax.predictors._help import HelpPredictor
from hanax.predictors._hierarchical_bayes import HierarchicalBayesPredictor
from hanax.predictors._operation_wise import OperationWisePredictor
from hanax.predictors._predictor import Predictor
from hanax.predictors._principal_components import PrincipalComponentsPredictor
from hanax.predictors._quantized_accuracy import QuantizedAccuracyPredictor
from hanax.predictors._ridge import RidgePredictor
from hanax.predictors._source_pool import SourcePool
from hanax.predictors._transfer import TransferPredictor
from hanax.search_spaces import SearchSpace

PREDICTORS: dict[str, type[Any]] = {
    "ridge": RidgePredictor,
    "additive": AdditivePredictor,
    "best-source": BestSourcePredictor,
    "principal-components": PrincipalComponentsPredictor,
    "hierarchical-bayes": HierarchicalBayesPredictor,
    "transfer": TransferPredictor,
    "operation-wise": OperationWisePredictor,
    "help": HelpPredictor,
    "accuracy": AccuracyPredictor,
    "quantized-accuracy": QuantizedAccuracyPredictor,
}
FORMAT = "hanax-predictor-2"
FIRST_FORMAT = "hanax-predictor-1"
HEADER = "header"


class PoolMismatchError(ValueError):
    """A predictor learned from another pool of source devices."""


def save_predictor(path: str | Path, predictor: Predictor, space: SearchSpace, target: str) -> None:
    """Write a fitted predictor of `target` (e.g. ``latency_ms`` of a device) over `space` to `path`, atomically.

    Raises:
        sklearn.exceptions.NotFittedError: `predictor` has not learned anything.
        SpaceMismatchError: It has a pool of another space; names both fingerprints.
        ValueError: It is none of the predictors of this package, or has learned what a file cannot hold.
    """
    check_is_fitted(predictor)
    writer = _Writer(space)
    header = {
        "format": FORMAT,
        "space_fingerprint": space.fingerprint,
        "target": target,
        "predictor": writer.predictor(predictor, "", type(predictor).__name__),
        "pools": writer.pool_headers,
    }
    buffer = io.BytesIO()
    writer.arrays[HEADER] = np.array(json.dumps(header))
    np.savez_compressed(buffer, **writer.arrays)
    write_atomically(Path(path), buffer.getvalue())


def load_predictor(path: str | Path, space: SearchSpace, target: str, pool: SourcePool | None = None) -> Any:
    """Read what `save_predictor` wrote: a predictor of the class that was saved.

    Args:
        pool: The pool that it must have learned from; any, if None. The file has its own copy.

    Raises:
        SpaceMismatchError: It was learned on another space; names both fingerprints.
        PoolMismatchError: It learned from another pool; names both fingerprints.
        ValueError: The file is not a predictor, is damaged, or was learned for another target (names both).
    """
    header, arrays = _read(Path(path))
    space.require(header["space_fingerprint"], f"predictor {path}")
    if header["target"] != target:
        raise ValueError(f"{path} predicts {header['target']!r}; asked for {target!r}")
    try:
        reader = _Reader(header.get("pools", []), arrays)
        is_first = header["format"] == FIRST_FORMAT
        predictor = _first_format(header, arrays) if is_first else reader.read(header["predictor"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if pool is not None:
        found = ", ".join(stored.fingerprint for stored in reader.pools) or "none"
        if found != pool.fingerprint:
            raise PoolMismatchError(
                f"{path} learned from a pool with fingerprint {found}; this one, of {', '.join(pool.devices)}, has "
                f"fingerprint {pool.fingerprint}"
            )
    return predictor


class _Writer:
    """Takes values apart into JSON and arrays; pools that are equal are kept once."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.arrays: dict[str, Any] = {}
        self.pool_headers: list[dict[str, Any]] = []

    def predictor(self, predictor: Any, path: str, owner: str) -> dict[str, Any]:
        kinds = [kind for kind, known in PREDICTORS.items() if type(predictor) is known]
        if not kinds:
            raise ValueError(f"cannot save a {type(predictor).__name__}; known predictors: {', '.join(PREDICTORS)}")
        learned = {name: value for name, value in vars(predictor).items() if name.endswith("_")}
        return {
            "is": "predictor",
            "kind": kinds[0],
            "settings": self._values(predictor.get_params(deep=False), f"{path}settings.", owner),
            "learned": self._values(learned, f"{path}learned.", owner),
        }

    def _values(self, values: Mapping[str, Any], path: str, owner: str) -> dict[str, Any]:
        return {name: self._value(value, path + name, f"{owner}.{name}") for name, value in values.items()}

    def _value(self, value: Any, path: str, owner: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "O":  # scikit-learn's names of columns
                return {"is": "names", "names": [str(name) for name in value]}
            self.arrays[path] = value
            return {"is": "array", "at": path}
        if isinstance(value, tuple | list):
            parts = [self._value(part, f"{path}.{number}", f"{owner}[{number}]") for number, part in enumerate(value)]
            return {"is": "tuple", "parts": parts} if isinstance(value, tuple) else parts
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {"is": "dict", "parts": self._values(value, f"{path}.", owner)}
        if isinstance(value, SourcePool):
            return {"is": "pool", "number": self._pool(value)}
        if type(value) in PREDICTORS.values():
            return self.predictor(value, f"{path}.", owner)
        raise ValueError(
            f"cannot save {owner}, a {type(value).__name__}; a file holds numbers, texts, arrays, pools, predictors, "
            "and tuples, lists and dicts of these"
        )

    def _pool(self, pool: SourcePool) -> int:
        """Position of `pool` among the pools of the file."""
        fingerprints = [header["fingerprint"] for header in self.pool_headers]
        if pool.fingerprint in fingerprints:
            return fingerprints.index(pool.fingerprint)
        self.space.require(pool.space_fingerprint, f"the pool of {', '.join(pool.devices)}")
        number = len(fingerprints)
        self.arrays[f"pools.{number}.X"], self.arrays[f"pools.{number}.costs"] = pool.X, pool.costs
        self.pool_headers.append({
            "fingerprint": pool.fingerprint,
            "space_fingerprint": pool.space_fingerprint,
            "groups": {group: list(columns) for group, columns in pool.groups.items()},
            "devices": list(pool.devices),
        })  # fmt: skip
        return number


class _Reader:
    """Puts together what `_Writer` took apart."""

    def __init__(self, pool_headers: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.pools = [self._pool(header, f"pools.{number}.") for number, header in enumerate(pool_headers)]

    def read(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.read(part) for part in value]
        if not isinstance(value, dict):
            return value
        kind = value["is"]
        if kind == "array":
            return self._arrays[value["at"]]
        if kind == "names":
            return np.array(value["names"], dtype=object)
        if kind == "tuple":
            return tuple(self.read(part) for part in value["parts"])
        if kind == "dict":
            return {name: self.read(part) for name, part in value["parts"].items()}
        if kind == "pool":
            return self.pools[value["number"]]
        if kind != "predictor":
            raise ValueError(f"it holds a {kind!r}")
        settings = {name: self.read(part) for name, part in value["settings"].items()}
        predictor = _class_of(value["kind"])(**settings)
        for name, part in value["learned"].items():
            setattr(predictor, name, self.read(part))
        return predictor

    def _pool(self, header: dict[str, Any], path: str) -> SourcePool:
        pool = SourcePool(
            space_fingerprint=header["space_fingerprint"],
            groups={group: (start, stop) for group, (start, stop) in header["groups"].items()},
            X=self._arrays[f"{path}X"],
            costs=self._arrays[f"{path}costs"],
            devices=tuple(header["devices"]),
        )
        if pool.fingerprint != header["fingerprint"]:
            raise ValueError(f"its pool has fingerprint {pool.fingerprint}, not {header['fingerprint']} as when saved")
        return pool


def _first_format(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """The predictor of a file of `FIRST_FORMAT`, which only linear ones on features were written in."""
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in header["settings"].items()}
    predictor = _class_of(header["kind"])(**settings)
    names = {name: np.array(value, dtype=object) for name, value in header["names"].items()}
    for name, value in {**header["numbers"], **names, **arrays}.items():
        setattr(predictor, name, value)
    return predictor


def _class_of(kind: str) -> type[Any]:
    if kind not in PREDICTORS:
        raise ValueError(f"its kind is {kind!r}, none of {', '.join(PREDICTORS)}")
    return PREDICTORS[kind]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file.items())
        header = json.loads(str(arrays.pop(HEADER)))
        if header["format"] not in (FORMAT, FIRST_FORMAT):
            raise ValueError(f"its format is {header['format']!r}, neither {FORMAT!r} nor {FIRST_FORMAT!r}")
        for name in ("space_fingerprint", "target"):
            header[name]
    except (KeyError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    return header, arrays


def _damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a predictor saved by Hanax, or it is damaged: {error}")
