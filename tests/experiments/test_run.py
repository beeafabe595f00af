"""Whole runs on real images and a real runtime: what they leave, and what killing them does not change."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import CommandLine, TinyRun

from hanax.devices import Ledger

pytestmark = pytest.mark.slow

STAGES = [
    "data",
    "supernet",
    "accuracy",
    "accuracy-predictor",
    "latency/onnxruntime-fp32",
    "latency-predictor/onnxruntime-fp32",
    "search/onnxruntime-fp32",
    "confirm/onnxruntime-fp32",
    "ship/onnxruntime-fp32",
    "report",
]


def predicted_front(run: Path) -> pd.DataFrame:
    searched = pd.read_parquet(run / "stages" / "search" / "onnxruntime-fp32" / "searched.parquet")
    return searched[searched["on_front"]].reset_index(drop=True)


def test_a_run_says_in_report_and_table_why_its_front_cannot_be_certified(tiny_run: TinyRun) -> None:
    """Its limit is certified: it bounds a quantile, which does not add up over blocks."""
    search = tiny_run.folder / "stages" / "search" / "onnxruntime-fp32"
    certificate = json.loads((search / "certificate.json").read_text())
    assert certificate["additive"] is None and not certificate["warm_start"]
    assert "there is a constraint on latency_ms_p90, which is no objective" in certificate["sentence"]
    assert certificate["sentence"] in (tiny_run.folder / "report.html").read_text()
    assert certificate["sentence"] in " ".join(tiny_run.output.split())


def test_a_run_leaves_a_report_a_front_and_models_that_do_what_the_table_says(tiny_run: TinyRun) -> None:
    import onnxruntime
    from sklearn.datasets import load_digits

    folder = tiny_run.folder
    winners = pd.read_parquet(folder / "pareto.parquet")
    assert len(winners) >= 2
    assert set(winners.loc[winners["reference"], "arch"]) <= set(winners["arch"])
    assert (folder / "report.html").stat().st_size > 1_000_000
    assert (folder / "devices" / "onnxruntime-fp32" / "front.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((folder / "stages" / "data" / "data.json").read_text())
    assert facts["n_classes"] == len(load_digits().target_names)
    searched = pd.read_parquet(folder / "stages" / "search" / "onnxruntime-fp32" / "searched.parquet")
    assert (searched["latency_ms_p90"] >= searched["latency_ms"]).all()
    n = int(searched["on_front"].sum())
    assert f"{min(n, 4)} of {min(n, 4)} candidates keep it when measured (100 %" in (folder / "report.html").read_text()
    for row in winners.to_dict("records"):
        model = folder / row["model_path"]
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"image": np.zeros((1, 1, 8, 8), np.float32)})
        assert logits.shape == (1, 10)
        assert (model.parent / "card.md").exists()
        assert row["test_accuracy_low"] <= row["test_accuracy"] <= row["test_accuracy_high"]
        assert row["measured_latency_low_ms"] <= row["measured_latency_ms"] <= row["measured_latency_high_ms"]
        assert row["latency_error"] == pytest.approx(row["predicted_latency_ms"] / row["measured_latency_ms"] - 1)


def test_every_latency_asked_of_the_device_is_in_the_ledger(tiny_run: TinyRun) -> None:
    tables = {
        "table": tiny_run.folder / "stages" / "latency" / "onnxruntime-fp32" / "table.parquet",
        "winner": tiny_run.folder / "stages" / "confirm" / "onnxruntime-fp32" / "table.parquet",
    }
    counted = Ledger(tiny_run.folder / "ledger.jsonl").counts()["onnxruntime-fp32"]
    assert counted == {purpose: len(pd.read_parquet(path)) for purpose, path in tables.items()}


def test_a_finished_run_does_nothing_more(tiny_run: TinyRun, command_line: CommandLine) -> None:
    before = (tiny_run.folder / "ledger.jsonl").read_text()
    status, output = command_line.run("run", tiny_run.file, "--out", tiny_run.folder, cwd=tiny_run.file.parent)
    assert status == 0, output
    assert output.count("done before") == len(STAGES)
    assert (tiny_run.folder / "ledger.jsonl").read_text() == before


def has_log(folder: Path) -> bool:
    return any(log.stat().st_size for log in folder.rglob("*.jsonl"))


def test_a_run_killed_in_every_stage_ends_with_the_same_front(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    """The latency table is the first run's: a clock never gives the same numbers twice, all else must be the same."""
    table = tiny_run.folder / "stages" / "latency" / "onnxruntime-fp32" / "table.parquet"
    arguments = ["run", tiny_run.file, "--out", tmp_path / "run", "--set", f"devices.0.table={table}"]
    killed = []
    for stage in STAGES:
        process = command_line.start(*arguments, cwd=tmp_path)
        started = tmp_path / "run" / "stages" / stage / "started.json"
        done = started.with_name("done.json")
        while process.poll() is None and not started.exists():
            time.sleep(0.005)
        if stage in ("supernet", "accuracy", "confirm/onnxruntime-fp32"):  # kill them with part of their work done
            while process.poll() is None and not done.exists() and not has_log(started.parent):
                time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed.append((stage, done.exists()))
        process.communicate()
    assert {"supernet", "accuracy", "confirm/onnxruntime-fp32"} <= {stage for stage, was_done in killed if not was_done}
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    pd.testing.assert_frame_equal(predicted_front(tmp_path / "run"), predicted_front(tiny_run.folder))
    confirmed = [
        pd.read_parquet(run / "stages" / "confirm" / "onnxruntime-fp32" / "confirmed.parquet")[
            ["arch", "validation_accuracy", "predicted_latency_ms", "predicted_accuracy", "macs"]
        ]
        for run in (tmp_path / "run", tiny_run.folder)
    ]
    pd.testing.assert_frame_equal(*confirmed)


def test_a_latency_table_killed_half_way_is_completed_without_measuring_anything_twice(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "table.parquet"
    arguments = ["collect", "latency", "--space", tiny_run.folder, "--device", "onnxruntime-fp32", "--archs", "30"]
    arguments += ["--out", out, "--target-relative-ci", "0.2", "--wait-for-idle", "0", "--passes", "1"]
    process = command_line.start(*arguments, cwd=tmp_path)
    while process.poll() is None and (not out.exists() or len(pd.read_parquet(out)) == 0):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = pd.read_parquet(out)
    assert 0 < len(before) < 30
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    after = pd.read_parquet(out)
    assert len(after) == 30
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    asked = [entry["arch"] for entry in Ledger(tmp_path / "table.ledger.jsonl").entries()]
    assert max(asked.count(arch) for arch in before["arch"]) == 1


def test_ctrl_c_says_how_to_go_on(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    process = command_line.start("run", tiny_run.file, "--out", tmp_path / "run", cwd=tmp_path)
    while process.poll() is None and not (tmp_path / "run" / "stages" / "supernet" / "started.json").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"to go on:\n    hanax run {tiny_run.file} --out {tmp_path / 'run'}" in output


def test_from_stage_repeats_it_and_those_after_it(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    arguments = ["run", tiny_run.file, "--out", tiny_run.folder, "--from", "report"]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    assert output.count("done before") == len(STAGES) - 1
    status, output = command_line.run(*arguments[:-1], "repport", cwd=tmp_path)
    assert status == 2
    assert "--from repport: no such stage; there are data, supernet" in output
