"""The weights of one network as named arrays: checked, folded, drawn, saved.

Shapes are those of PyTorch: (out, in / groups, height, width) for a convolution, (out, in) for a dense layer.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from hanax._files import write_atomically
from hanax.search_spaces import Graph, Kind, Operator
from hanax.supernet._layers import BATCH_NORM_EPSILON

Weights = dict[str, dict[str, np.ndarray]]
"""Float32 arrays by operator and entry: ``kernel``, ``bias``, and of a batch norm ``scale``, ``offset``, ``mean``,
``variance``."""

_STATISTICS = ("mean", "variance")

WEIGHTED_KINDS: tuple[Kind, ...] = ("conv", "dense", "global_pool", "multiply", "add")
"""The kinds of operators that networks with weights, and their exports, are made of so far."""


class UncalibratedError(RuntimeError):
    """A network was asked for its output before its batch norms were given statistics."""


def check_weights(graph: Graph, weights: Weights) -> None:
    """Refuse weights that are not exactly those of `graph`.

    Raises:
        ValueError: Entries are missing, superfluous, or of the wrong shape or type; names up to ten; or an operator
            is of a kind that has no form with weights yet.
        UncalibratedError: Nothing is wrong except that mean or variance of a batch norm are missing.
    """
    _require_known_kinds(graph)
    expected = {
        (op.name, entry): shape
        for op in graph.operators
        if op.is_weighted
        for entry, shape in _entry_shapes(op).items()
    }
    given = {(name, entry): array for name, entries in weights.items() for entry, array in entries.items()}
    missing = [key for key in expected if key not in given]
    uncalibrated = [key for key in missing if key[1] in _STATISTICS]
    problems = [f"{name}.{entry} is missing" for name, entry in missing if entry not in _STATISTICS]
    problems += [f"{name}.{entry} is not part of the network" for name, entry in given if (name, entry) not in expected]
    problems += [
        f"{name}.{entry} is {given[name, entry].dtype} {given[name, entry].shape}, expected float32 {shape}"
        for (name, entry), shape in expected.items()
        if (name, entry) in given and (given[name, entry].shape != shape or given[name, entry].dtype != np.float32)
    ]
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"the weights do not fit the network: {'; '.join(problems[:10])}{more}")
    if uncalibrated:
        names = sorted({name for name, _ in uncalibrated})
        raise UncalibratedError(
            f"{len(names)} batch norms have no mean and variance, the first after {names[0]}; "
            "calibrate the network on training images first"
        )


def _require_known_kinds(graph: Graph) -> None:
    for op in graph.operators:
        if op.kind not in WEIGHTED_KINDS:
            raise ValueError(
                f"{op.name} is an operator of kind {op.kind}, which networks with weights cannot have yet; they are "
                f"made of {', '.join(WEIGHTED_KINDS)}"
            )


def _entry_shapes(op: Operator) -> dict[str, tuple[int, ...]]:
    per_channel = (op.out_shape[0],)
    shapes: dict[str, tuple[int, ...]] = {"kernel": op.kernel_shape}
    if op.has_bias:
        shapes["bias"] = per_channel
    if op.has_norm:
        shapes |= dict.fromkeys(("scale", "offset", *_STATISTICS), per_channel)
    return shapes


def n_classes(graph: Graph) -> int:
    """Width of the classifier that `graph`, a network to be built with weights, ends with.

    Raises:
        ValueError: The last operator is not a dense layer, or one is of a kind that has no form with weights yet.
    """
    _require_known_kinds(graph)
    last = graph.operators[-1]
    if last.kind != "dense":
        raise ValueError(f"a network for export ends with a dense layer; this one ends with {last.name}, a {last.kind}")
    return last.out_shape[0]


def fold_batch_norm(graph: Graph, weights: Weights) -> Weights:
    """Kernel and bias of every weighted operator such that no batch norm is left; zeros where there was no bias.

    ``scale * (conv(x) + bias - mean) / sqrt(variance + eps) + offset`` is a convolution with a scaled kernel and a
    bias. Computed in float64, returned in float32.

    Raises:
        ValueError: The weights do not fit the graph.
        UncalibratedError: A batch norm has no statistics.
    """
    check_weights(graph, weights)
    return {op.name: _fold(op, weights[op.name]) for op in graph.operators if op.is_weighted}


def _fold(op: Operator, entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = {name: array.astype(np.float64) for name, array in entries.items()}
    kernel, bias = values["kernel"], values.get("bias", np.zeros(op.out_shape[0]))
    if op.has_norm:
        gain = values["scale"] / np.sqrt(values["variance"] + BATCH_NORM_EPSILON)
        kernel = kernel * gain.reshape(-1, *[1] * (kernel.ndim - 1))
        bias = (bias - values["mean"]) * gain + values["offset"]
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def random_weights(graph: Graph, rng: np.random.Generator) -> Weights:
    """Calibrated weights of an untrained network, for models whose latency alone matters.

    Kernels are normal with variance ``2 / fan_in`` (He et al., 2015, arXiv:1502.01852), so that activations keep their
    scale and no value is denormal; batch norms are the identity, biases 0.

    Raises:
        ValueError: An operator is of a kind that has no form with weights yet.
    """
    _require_known_kinds(graph)
    return {op.name: _draw(op, rng) for op in graph.operators if op.is_weighted}


def _draw(op: Operator, rng: np.random.Generator) -> dict[str, np.ndarray]:
    filled = {"bias": 0.0, "scale": 1.0, "offset": 0.0, "mean": 0.0, "variance": 1.0}
    shapes = _entry_shapes(op)
    deviation = np.float32(np.sqrt(2 / np.prod(op.kernel_shape[1:])))
    kernel = deviation * rng.standard_normal(shapes.pop("kernel"), dtype=np.float32)
    return {"kernel": kernel} | {
        entry: np.full(shape, filled[entry], dtype=np.float32) for entry, shape in shapes.items()
    }


def save_weights(path: str | Path, weights: Weights) -> None:
    """Write `weights` as an npz file with one array ``operator/entry`` each, replacing `path` only when complete."""
    arrays = {f"{name}/{entry}": array for name, entries in weights.items() for entry, array in entries.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_atomically(Path(path), file.getvalue())


def load_weights(path: str | Path) -> Weights:
    """Read what `save_weights` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or holds something else.
    """
    path = Path(path)
    weights: Weights = {}
    try:
        # numpy leaves a file open that it opened itself and then finds damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                name, entry = key.split("/")
                weights.setdefault(name, {})[entry] = arrays[key]
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a complete file of weights: {error}") from error
    return weights
