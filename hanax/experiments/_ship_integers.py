"""Shipping integer models: their files and cards, and the proof that they are as accurate as what was searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanax._files import write_atomically
from hanax.experiments._config import DeviceConfig
from hanax.experiments._export import export_integers
from hanax.experiments._model_card import AccuracyFigure, IntegerFigure
from hanax.experiments._parity_certificate import ParityCertificate, certify
from hanax.experiments._quantized_products import IntegerProducts
from hanax.experiments._ship import accuracy_figures, latency_figure, shipped_columns, write_card
from hanax.search_spaces import Arch, float_arch

if TYPE_CHECKING:
    from hanax.devices import LatencyTable
    from hanax.experiments._pipeline import Pipeline
    from hanax.supernet import QuantizedNet

CERTIFICATE_FILE = "certificate.json"


def ship_integers(
    pipeline: Pipeline, device: DeviceConfig, folder: Path, row: dict[str, Any], table: LatencyTable
) -> dict[str, Any]:
    """Write one integer model; returns its row of the report.

    A file that is not as accurate as the fake-quantized network is shipped all the same, as the search promised it; the
    row, the card and the report say so.
    """
    from hanax.devices import LatencyTable

    arch, spec, dataset = Arch.parse(row["arch"]), device.spec(), pipeline.dataset
    products = IntegerProducts(pipeline, device)
    net = products.net(arch)
    net.save(folder)
    files = {"model.onnx": export_integers(net, "onnx-int8", spec.batch)}
    if spec.model_format != "onnx-int8":
        files[f"model.{spec.model_format.removesuffix('-int8')}"] = products.model(arch)
    for name, content in files.items():
        write_atomically(folder / name, content)
    certificate = certify_on_validation(pipeline, device, net)
    certificate.save(folder / CERTIFICATE_FILE)
    row |= {"delivered_accuracy": certificate.runtime_accuracy, "parity": certificate.is_met}
    if not certificate.is_met:
        pipeline.reporter.say(f"PARITY FAILED for {folder.relative_to(pipeline.path)}: {certificate.verdict}")
    row |= shipped_columns(pipeline, folder, arch, products.count_correct(arch, dataset.x_test, dataset.y_test))
    in_float = LatencyTable.read(pipeline.folder(f"confirm/{device.label}") / "float.parquet")
    predicted, validation, test = accuracy_figures(pipeline, row)
    n, nan = pipeline.accuracy_images[1], float("nan")
    write_card(
        pipeline,
        folder,
        row,
        latencies=(
            latency_figure(row, table),
            latency_figure(row, in_float, str(float_arch(pipeline.searched_space, arch))),
        ),
        accuracies=(
            predicted,
            AccuracyFigure("validation, fake-quantized", row["promised_accuracy"], nan, nan, "", n),
            AccuracyFigure("validation, in float32 before it was quantized", row["float_accuracy"], nan, nan, "", n),
            validation,
            test,
        ),
        files=[*files, "quantized.npz", "quantized.json", CERTIFICATE_FILE],
        integer=IntegerFigure(
            policy=row["policy"],
            size_bytes=int(row["size_bytes"]),
            calibration=net.calibration,
            promised=row["promised_accuracy"],
            delivered=row["delivered_accuracy"],
            parity=certificate.is_met,
            verdict=certificate.verdict,
            certificate=CERTIFICATE_FILE,
        ),
    )
    return row


def certify_on_validation(pipeline: Pipeline, device: DeviceConfig, net: QuantizedNet) -> ParityCertificate:
    """What `device` makes of `net` on the validation images of the search, as many as fill its batches."""
    from hanax.devices import start_agent_at

    n = pipeline.accuracy_images[1] // device.batch * device.batch
    images, labels = pipeline.split.x_validation[:n], pipeline.split.y_validation[:n]
    start_agent = start_agent_at(device.find_place())
    return certify(net, device.spec(), net.normalise(images), labels, start_agent=start_agent)
