"""Shipping: the confirmed front as model files with cards, and the one look at the test images.

Nets in float32 are written here, integer models in ``_ship_integers.py``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hanax._files import write_atomically
from hanax._intervals import wilson_interval
from hanax.experiments._config import DeviceConfig
from hanax.experiments._export import count_correct, export, exported_logits
from hanax.experiments._frames import read_frame, write_frame
from hanax.experiments._model_card import (
    AccuracyFigure,
    IntegerFigure,
    LatencyFigure,
    ModelCardData,
    ModelFile,
    write_model_card,
)
from hanax.search_spaces import Arch

if TYPE_CHECKING:
    from hanax.devices import LatencyTable
    from hanax.experiments._pipeline import Pipeline
    from hanax.supernet import Subnet

PARITY_TOLERANCE = 1e-4
"""Largest difference between the logits of an exported model and of the supernet, relative to the largest logit."""


class ParityError(RuntimeError):
    """An exported model does not compute what the supernet computes."""


def ship_models(pipeline: Pipeline, device: DeviceConfig, folder: Path) -> None:
    """Write every net of the confirmed front, and the largest and smallest, into the device's folder; score on test.

    Each net gets ``model.onnx`` (and the device's own format, if another), ``weights.npz``, ``subnet.json`` and
    ``card.md``; an integer model ``quantized.npz`` and ``quantized.json`` in place of the middle two, and its parity
    certificate. The test images are scored with the exported model.

    Raises:
        ParityError: An exported model disagrees with the supernet.
    """
    from hanax.devices import LatencyTable
    from hanax.experiments._ship_integers import ship_integers

    confirm = pipeline.folder(f"confirm/{device.label}")
    frame, _ = read_frame(confirm / "confirmed.parquet", pipeline.searched_space)
    frame = frame[frame["on_front"] | frame["reference"]].sort_values("measured_latency_ms", ignore_index=True)
    table = LatencyTable.read(confirm / "table.parquet")
    models = pipeline.device_folder(device) / "models"
    shutil.rmtree(models, ignore_errors=True)
    bar = pipeline.reporter.bar("models shipped")
    rows = []
    for index, row in enumerate(frame.to_dict("records")):
        name = f"net{index + 1:02d}"
        ship = _ship_one if pipeline.experiment.quantization is None else ship_integers
        rows.append(ship(pipeline, device, models / name, {str(k): v for k, v in row.items()}, table))
        bar(index + 1, len(frame))
    write_frame(folder / "shipped.parquet", pd.DataFrame(rows), pipeline.searched_space)


def _ship_one(
    pipeline: Pipeline, device: DeviceConfig, folder: Path, row: dict[str, Any], table: LatencyTable
) -> dict[str, Any]:
    """Write one net; returns its row of the report."""
    arch = Arch.parse(row["arch"])
    subnet = pipeline.evaluator.extract(arch)
    subnet.save(folder)
    spec = device.spec()
    files = {"model.onnx": export(subnet, "onnx", spec.batch)}
    if spec.model_format != "onnx":
        files[f"model.{spec.model_format}"] = export(subnet, spec.model_format, spec.batch)
    for name, content in files.items():
        write_atomically(folder / name, content)
    check_parity(pipeline, subnet)
    dataset = pipeline.dataset
    correct = count_correct(subnet, dataset.x_test, dataset.y_test)
    row |= shipped_columns(pipeline, folder, arch, correct)
    write_card(
        pipeline,
        folder,
        row,
        latencies=(latency_figure(row, table),),
        accuracies=accuracy_figures(pipeline, row),
        files=[*files, "weights.npz", "subnet.json"],
    )
    return row


def check_parity(pipeline: Pipeline, subnet: Subnet) -> float:
    """Largest difference between the logits of the exported net and of the subnet in the supernet, over its scale.

    Raises:
        ParityError: It is above `PARITY_TOLERANCE`.
    """
    evaluator = pipeline.evaluator
    expected = evaluator.logits(subnet.arch)
    images = pipeline.split.x_validation[: evaluator.n_validation]
    given = exported_logits(subnet, images)
    difference = float(np.abs(given - expected).max() / max(1.0, np.abs(expected).max()))
    if not difference <= PARITY_TOLERANCE:
        raise ParityError(
            f"the exported model of {subnet.arch} differs from the supernet by {difference:.2g} of the largest "
            f"logit on the validation images; at most {PARITY_TOLERANCE:g} is rounding"
        )
    return difference


def shipped_columns(pipeline: Pipeline, folder: Path, arch: Arch, correct: int) -> dict[str, Any]:
    """What shipping adds to a net's row, whose model is in `folder` and classifies `correct` test images correctly."""
    n_test = len(pipeline.dataset.y_test)
    low, high = wilson_interval(correct, n_test)
    return {
        "settings": json.dumps(pipeline.searched_space.options_of(arch)),
        "test_accuracy": correct / n_test,
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "model_path": str((folder / "model.onnx").relative_to(pipeline.path)),
    }


def latency_figure(row: dict[str, Any], table: LatencyTable, arch: str | None = None) -> LatencyFigure:
    """The latency of a net on the device of `table`, as measured and, in its own precision, as predicted.

    Args:
        arch: By which `table` knows the net, if it is not by its own: the figure is of that one, and not predicted.
    """
    measured: Any = table.frame.set_index("arch").loc[row["arch"] if arch is None else arch]
    nan = float("nan")
    return LatencyFigure(
        device=str(measured["device"]),
        device_fingerprint=table.device_fingerprint,
        hardware=table.device_description,
        runtime=f"{measured['runtime']} {measured['runtime_version']}",
        precision=str(measured["precision"]),
        threads=int(measured["threads"]),
        batch=int(measured["batch"]),
        predicted_ms=row["predicted_latency_ms"] if arch is None else nan,
        predicted_low_ms=row["predicted_latency_low_ms"] if arch is None else nan,
        predicted_high_ms=row["predicted_latency_high_ms"] if arch is None else nan,
        measured_ms=float(measured["latency_ms"]),
        measured_low_ms=float(measured["latency_low_ms"]),
        measured_high_ms=float(measured["latency_high_ms"]),
        how=(
            f"median over {measured['n_rounds']} interleaved rounds of each round's fastest run, "
            f"{measured['n_runs']} runs in all, {measured['rejected_rounds']} rounds rejected"
        ),
        measured_at=str(measured["measured_at"]),
    )


def accuracy_figures(pipeline: Pipeline, row: dict[str, Any]) -> tuple[AccuracyFigure, ...]:
    """The accuracies of a net: predicted, on validation images, on test images."""
    nan = float("nan")
    return (
        AccuracyFigure(
            "validation (predicted)", row["predicted_accuracy"], row["predicted_accuracy_low"],
            row["predicted_accuracy_high"], "90 % jackknife+", pipeline.accuracy_images[1],
        ),
        AccuracyFigure("validation", row["validation_accuracy"], nan, nan, "", len(pipeline.split.y_validation)),
        AccuracyFigure(
            "test", row["test_accuracy"], row["test_accuracy_low"], row["test_accuracy_high"], "95 % Wilson",
            len(pipeline.dataset.y_test),
        ),
    )  # fmt: skip


def write_card(
    pipeline: Pipeline,
    folder: Path,
    row: dict[str, Any],
    *,
    latencies: tuple[LatencyFigure, ...],
    accuracies: tuple[AccuracyFigure, ...],
    files: list[str],
    integer: IntegerFigure | None = None,
) -> None:
    """Write ``card.md`` and ``card.json`` of a net into its folder.

    Args:
        latencies: The first one is on the device that the net was searched for.
    """
    import hanax

    dataset, split, space = pipeline.dataset, pipeline.split, pipeline.searched_space
    arch = Arch.parse(row["arch"])
    card = ModelCardData(
        title=f"{pipeline.experiment.name}: {folder.name} for {latencies[0].device}",
        arch=row["arch"],
        settings=space.options_of(arch),
        space_name=space.name,
        space_fingerprint=space.fingerprint,
        input_shape=space.input_shape(arch),
        mean=tuple(map(float, split.mean)),
        std=tuple(map(float, split.std)),
        class_names=dataset.class_names,
        macs=int(row["macs"]),
        params=int(row["params"]),
        latencies=latencies,
        accuracies=accuracies,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        files=tuple(ModelFile.of(folder / name, folder) for name in files),
        hanax_version=hanax.__version__,
        limits=(
            "The validation accuracy was used to choose this net among the candidates, so it is somewhat optimistic; "
            "the test accuracy was not used for any choice.",
        ),
        integer=integer,
    )
    write_model_card(card, folder / "card.md")
    write_atomically(folder / "card.json", json.dumps(dataclasses.asdict(card), indent=1).encode())
