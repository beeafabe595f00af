"""From the folder of a run to its report: everything that is shown is read from the results of the stages."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pandas as pd

from hanax.devices import LatencyTable, Ledger
from hanax.experiments._config import DeviceConfig, Experiment, make_experiment
from hanax.experiments._confirmed import certified_outcomes
from hanax.experiments._fitting import COVERAGE, LATENCY_TOLERANCE, load_card, timed_codes, timed_space
from hanax.experiments._folder import QUANTIZED_SUPERNET, RunFolderError, stage_folder, stage_states
from hanax.experiments._frames import read_frame
from hanax.experiments._report import (
    INTEGER_COLUMNS,
    WINNER_COLUMNS,
    DatasetSummary,
    DeviceReport,
    ReportData,
    SpaceSummary,
    write_front_png,
    write_pareto_csv,
    write_pareto_parquet,
    write_report,
)
from hanax.search_spaces import Arch, SearchSpace

LEAST_DRIFT = 0.05
"""Change of the device's speed between the two measurements that is worth a warning, a fraction."""

EXPERIMENT_FILE = "experiment.json"
ENVIRONMENT_FILE = "environment.json"


def read_experiment(path: Path) -> Experiment:
    """The experiment that the run in folder `path` carries out.

    Raises:
        RunFolderError: There is no run in it.
    """
    file = path / EXPERIMENT_FILE
    if not file.exists():
        raise RunFolderError(f"{path} holds no run; start one with `hanax run FILE --out {path}`")
    return make_experiment(json.loads(file.read_text()), str(file))


def read_space(path: Path) -> SearchSpace:
    """The search space of the run in folder `path`, without number formats.

    Raises:
        RunFolderError: There is no run in it, or it has not looked at the data yet.
    """
    experiment = read_experiment(path)
    facts = _facts(path)
    return experiment.space.build(facts["image_size"][0], facts["channels"], facts["n_classes"])


def read_searched_space(path: Path) -> SearchSpace:
    """What the run in folder `path` searches: `read_space`, with number formats if it quantizes.

    Raises:
        RunFolderError: As of `read_space`.
    """
    return read_experiment(path).searched_space(read_space(path))


def _facts(path: Path) -> dict[str, Any]:
    file = stage_folder(path, "data") / "data.json"
    if not file.exists():
        raise RunFolderError(f"the run in {path} has not read its images yet; go on with `hanax run`")
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def write_outputs(path: Path) -> None:
    """Write ``report.html``, ``pareto.csv``, ``pareto.parquet`` and a figure per device into the run's folder."""
    data = gather(path)
    write_report(data, path / "report.html")
    write_pareto_csv(data, path / "pareto.csv")
    write_pareto_parquet(data, path / "pareto.parquet")
    for device in data.devices:
        write_front_png(data, device.name, path / "devices" / device.name / "front.png")


def gather(path: Path) -> ReportData:
    """Everything that the report of the run in folder `path` shows.

    Raises:
        RunFolderError: A stage that it needs is not done.
    """
    unfinished = [name for name, state, _ in stage_states(path) if state != "done" and name != "report"]
    if unfinished:
        raise RunFolderError(f"the run in {path} is not finished: {', '.join(unfinished)}; go on with `hanax run`")
    experiment, facts, space = read_experiment(path), _facts(path), read_searched_space(path)
    training = _read_training(path, "supernet")
    quantized = None
    if any(name == QUANTIZED_SUPERNET for name, _, _ in stage_states(path)):
        quantized = _read_training(path, QUANTIZED_SUPERNET)
    accuracy, measured_on = read_frame(stage_folder(path, "accuracy") / "accuracy.parquet", space)
    return ReportData(
        title=experiment.name,
        config=experiment.model_dump(mode="json"),
        environment=json.loads((path / ENVIRONMENT_FILE).read_text()),
        dataset=DatasetSummary(
            facts["name"], facts["n_train"], facts["n_validation"], facts["n_test"], facts["n_classes"],
            (facts["image_size"][0], facts["image_size"][1]), facts["fingerprint"],
        ),
        space=SpaceSummary(space.name, space.size, len(space.decisions), space.fingerprint),
        training=training.drop(columns=["rollbacks"]),
        rollbacks=sum(int(part["rollbacks"].max()) for part in (training, quantized) if part is not None),
        accuracy_samples=accuracy,
        accuracy_card=load_card(stage_folder(path, "accuracy-predictor")),
        devices=tuple(_device(path, experiment, device, space) for device in experiment.devices),
        ledger=Ledger(path / "ledger.jsonl").counts(),
        images_used={
            "training": facts["n_train"],
            "calibration (of the training images)": measured_on["n_calibration"],
            "validation": facts["n_validation"],
            "test": facts["n_test"],
        },
        stage_seconds=tuple((name, seconds) for name, _, seconds in stage_states(path) if name != "report"),
        quantized_training=None if quantized is None else quantized.drop(columns=["rollbacks"]),
        latency_tolerance=LATENCY_TOLERANCE,
        prediction_coverage=COVERAGE,
    )  # fmt: skip


def _read_training(path: Path, stage: str) -> pd.DataFrame:
    return pd.read_json(stage_folder(path, stage) / "metrics.jsonl", lines=True)


def _device(path: Path, experiment: Experiment, device: DeviceConfig, space: SearchSpace) -> DeviceReport:
    table = LatencyTable.read(stage_folder(path, f"latency/{device.label}") / "table.parquet")
    searched, _ = read_frame(stage_folder(path, f"search/{device.label}") / "searched.parquet", space)
    history, _ = read_frame(stage_folder(path, f"search/{device.label}") / "history.parquet", space)
    winners, _ = read_frame(stage_folder(path, f"ship/{device.label}") / "shipped.parquet", space)
    winners["settings"] = winners["settings"].map(json.loads)
    columns = list(WINNER_COLUMNS)
    confirmed = LatencyTable.read(stage_folder(path, f"confirm/{device.label}") / "table.parquet").frame
    if experiment.quantization is not None:
        columns += INTEGER_COLUMNS
        codes = timed_codes(space, space.encode([Arch.parse(arch) for arch in confirmed["arch"]]))
        confirmed = confirmed.assign(arch=[str(arch) for arch in timed_space(space).decode(codes)])
    candidates, _ = read_frame(stage_folder(path, f"confirm/{device.label}") / "confirmed.parquet", space)
    chosen = candidates[candidates["arch"].isin(searched["arch"][searched["on_front"]])]
    constraints = experiment.constraints(device)
    return DeviceReport(
        name=device.label,
        fingerprint=table.device_fingerprint,
        latency_table=table.frame,
        lint_warnings=(*drift(table.frame, confirmed), *table.lint(timed_space(space))),
        latency_card=load_card(stage_folder(path, f"latency-predictor/{device.label}")),
        constraints=constraints,
        certified=certified_outcomes(chosen, constraints),
        searched=searched.rename(columns={"accuracy": "predicted_accuracy", "latency_ms": "predicted_latency_ms"}),
        history=history,
        certificate=read_certificate(path, device.label),
        winners=winners[columns],
    )


def read_certificate(path: Path, device: str) -> str:
    """What is known of the optimum of a search of the run in folder `path`, in a sentence."""
    file = stage_folder(path, f"search/{device}") / "certificate.json"
    return str(json.loads(file.read_text())["sentence"])


def drift(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """A sentence if the device itself was faster or slower when the winners were measured than for the table.

    Judged by the networks that both have, the largest and the smallest among them; empty if there is no such network.
    """
    pair = before.set_index("arch")["latency_ms"].to_frame("before").join(
        after.groupby("arch")["latency_ms"].median().rename("after"), how="inner"
    )  # fmt: skip
    if pair.empty:
        return []
    ratio = float((pair["after"] / pair["before"]).median())
    if abs(ratio - 1.0) <= LEAST_DRIFT:
        return []
    return [
        f"the device drifted: the same {len(pair)} networks took {ratio:.2f} times as long when the winners were "
        "measured as when the table was; every prediction is off by that factor"
    ]


def environment() -> dict[str, str]:
    """What a run's numbers depend on outside its file: versions and machine."""
    from importlib.metadata import version

    packages = ("hanax", "jax", "jaxlib", "flax", "optax", "optuna", "numpy", "onnx", "onnxruntime")
    facts = {name: version(name) for name in packages}
    facts["python"] = platform.python_version()
    facts["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts["cpu"] = _cpu_model()
    facts["cores"] = str(os.cpu_count())
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    return facts


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
