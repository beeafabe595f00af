"""Shipping: the confirmed front as model files with cards, and the one look at the test images."""

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
    ``card.md``. The test images are scored with the exported model.

    Raises:
        ParityError: An exported model disagrees with the supernet.
    """
    from hanax.devices import LatencyTable

    confirm = pipeline.folder(f"confirm/{device.label}")
    frame, _ = read_frame(confirm / "confirmed.parquet", pipeline.space)
    frame = frame[frame["on_front"] | frame["reference"]].sort_values("measured_latency_ms", ignore_index=True)
    table = LatencyTable.read(confirm / "table.parquet")
    models = pipeline.device_folder(device) / "models"
    shutil.rmtree(models, ignore_errors=True)
    bar = pipeline.reporter.bar("models shipped")
    rows = []
    for index, row in enumerate(frame.to_dict("records")):
        name = f"net{index + 1:02d}"
        rows.append(_ship_one(pipeline, device, models / name, {str(k): v for k, v in row.items()}, table))
        bar(index + 1, len(frame))
    write_frame(folder / "shipped.parquet", pd.DataFrame(rows), pipeline.space)


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
    low, high = wilson_interval(correct, len(dataset.y_test))
    row |= {
        "settings": json.dumps(pipeline.space.options_of(arch)),
        "test_accuracy": correct / len(dataset.y_test),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "model_path": str((folder / "model.onnx").relative_to(pipeline.path)),
    }
    _write_card(pipeline, folder, subnet, row, table, [*files, "weights.npz", "subnet.json"])
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


def _write_card(
    pipeline: Pipeline,
    folder: Path,
    subnet: Subnet,
    row: dict[str, Any],
    table: LatencyTable,
    files: list[str],
) -> None:
    import hanax

    nan = float("nan")
    dataset, split = pipeline.dataset, pipeline.split
    measured = table.frame.set_index("arch").loc[row["arch"]]
    latency = LatencyFigure(
        device=str(measured["device"]),
        device_fingerprint=table.device_fingerprint,
        hardware=table.device_description,
        runtime=f"{measured['runtime']} {measured['runtime_version']}",
        precision=str(measured["precision"]),
        threads=int(measured["threads"]),
        batch=int(measured["batch"]),
        predicted_ms=row["predicted_latency_ms"],
        predicted_low_ms=row["predicted_latency_low_ms"],
        predicted_high_ms=row["predicted_latency_high_ms"],
        measured_ms=row["measured_latency_ms"],
        measured_low_ms=row["measured_latency_low_ms"],
        measured_high_ms=row["measured_latency_high_ms"],
        how=(
            f"median over {measured['n_rounds']} interleaved rounds of each round's fastest run, "
            f"{measured['n_runs']} runs in all, {measured['rejected_rounds']} rounds rejected"
        ),
        measured_at=str(measured["measured_at"]),
    )
    n_validation = pipeline.evaluator.n_validation
    accuracies = (
        AccuracyFigure(
            "validation (predicted)", row["predicted_accuracy"], row["predicted_accuracy_low"],
            row["predicted_accuracy_high"], "90 % jackknife+", n_validation,
        ),
        AccuracyFigure("validation", row["validation_accuracy"], nan, nan, "", len(split.y_validation)),
        AccuracyFigure(
            "test", row["test_accuracy"], row["test_accuracy_low"], row["test_accuracy_high"], "95 % Wilson",
            len(dataset.y_test),
        ),
    )  # fmt: skip
    card = ModelCardData(
        title=f"{pipeline.experiment.name}: {folder.name} for {measured['device']}",
        arch=row["arch"],
        settings=pipeline.space.options_of(subnet.arch),
        space_name=pipeline.space.name,
        space_fingerprint=pipeline.space.fingerprint,
        input_shape=subnet.graph.input_shape,
        mean=tuple(map(float, split.mean)),
        std=tuple(map(float, split.std)),
        class_names=dataset.class_names,
        macs=int(row["macs"]),
        params=int(row["params"]),
        latencies=(latency,),
        accuracies=accuracies,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        files=tuple(ModelFile.of(folder / name, folder) for name in files),
        hanax_version=hanax.__version__,
        limits=(
            "The validation accuracy was used to choose this net among the candidates, so it is somewhat optimistic; "
            "the test accuracy was not used for any choice.",
        ),
    )
    write_model_card(card, folder / "card.md")
    write_atomically(folder / "card.json", json.dumps(dataclasses.asdict(card), indent=1).encode())
