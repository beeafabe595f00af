"""Fitted predictors as files: an npz of arrays with a JSON header, never a pickle."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from hanax._files import write_atomically
from hanax.predictors._additive import AdditivePredictor
from hanax.predictors._predictor import LinearPredictor
from hanax.predictors._ridge import RidgePredictor
from hanax.search_spaces import SearchSpace

PREDICTORS: dict[str, type[LinearPredictor]] = {"ridge": RidgePredictor, "additive": AdditivePredictor}
FORMAT = "hanax-predictor-1"
HEADER = "header"


def save_predictor(path: str | Path, predictor: LinearPredictor, space: SearchSpace, target: str) -> None:
    """Write a fitted predictor of `target` (e.g. ``latency_ms`` of a device) over `space` to `path`, atomically.

    Raises:
        sklearn.exceptions.NotFittedError: `predictor` has not learned anything.
        ValueError: It is none of the predictors of this package.
    """
    check_is_fitted(predictor)
    kinds = [kind for kind, known in PREDICTORS.items() if type(predictor) is known]
    if not kinds:
        raise ValueError(f"cannot save a {type(predictor).__name__}; known predictors: {', '.join(PREDICTORS)}")
    learned = {name: value for name, value in vars(predictor).items() if name.endswith("_")}
    header = {
        "format": FORMAT,
        "kind": kinds[0],
        "settings": predictor.get_params(),
        "space_fingerprint": space.fingerprint,
        "target": target,
        "numbers": {name: value for name, value in learned.items() if isinstance(value, int | float)},
        "names": {name: value.tolist() for name, value in learned.items() if _holds_names(value)},
    }
    arrays: dict[str, Any] = {
        name: value for name, value in learned.items() if isinstance(value, np.ndarray) and not _holds_names(value)
    }
    buffer = io.BytesIO()
    arrays[HEADER] = np.array(json.dumps(header, default=np.ndarray.tolist))
    np.savez_compressed(buffer, **arrays)
    write_atomically(Path(path), buffer.getvalue())


def load_predictor(path: str | Path, space: SearchSpace, target: str) -> LinearPredictor:
    """Read what `save_predictor` wrote.

    Raises:
        SpaceMismatchError: It was learned on another space; names both fingerprints.
        ValueError: The file is not a predictor, is damaged, or was learned for another target (names both).
    """
    header, arrays = _read(Path(path))
    space.require(header["space_fingerprint"], f"predictor {path}")
    if header["target"] != target:
        raise ValueError(f"{path} predicts {header['target']!r}; asked for {target!r}")
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in header["settings"].items()}
    predictor = PREDICTORS[header["kind"]](**settings)
    names = {name: np.array(value, dtype=object) for name, value in header["names"].items()}
    for name, value in {**header["numbers"], **names, **arrays}.items():
        setattr(predictor, name, value)
    return predictor


def _holds_names(value: object) -> bool:
    """Whether a learned attribute is scikit-learn's array of column names."""
    return isinstance(value, np.ndarray) and value.dtype == object


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file.items())
        header = json.loads(str(arrays.pop(HEADER)))
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, not {FORMAT!r}")
        if header["kind"] not in PREDICTORS:
            raise ValueError(f"its kind is {header['kind']!r}, none of {', '.join(PREDICTORS)}")
    except (KeyError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a predictor saved by Hanax, or it is damaged: {error}") from error
    return header, arrays
