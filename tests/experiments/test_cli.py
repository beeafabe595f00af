"""The commands beside ``run``, on a finished run; and what they say to wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import CommandLine, TinyRun

pytestmark = pytest.mark.slow


def test_help_and_import_load_none_of_the_heavy_packages() -> None:
    program = (
        "import sys, hanax; from hanax.experiments._cli import app\n"
        "heavy = {'jax', 'flax', 'pandas', 'sklearn', 'onnx', 'optuna', 'pyarrow', 'plotly', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_status_lists_every_stage_as_done(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("status", tiny_run.folder, cwd=tmp_path)
    assert status == 0
    assert "10 of 10 stages done" in output


def test_report_writes_the_report_again(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    (tiny_run.folder / "report.html").unlink()
    status, output = command_line.run("report", tiny_run.folder, cwd=tmp_path)
    assert status == 0, output
    assert (tiny_run.folder / "report.html").exists()


def test_devices_as_json_has_the_promised_fields(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("devices", "--json", cwd=tmp_path)
    assert status == 0
    listed = json.loads(output)["devices"]
    assert {"onnxruntime-fp32", "xla-fp32"} <= {device["name"] for device in listed}
    assert all(set(device) == {"name", "kind", "available", "missing", "install"} for device in listed)


def test_search_on_tables_alone_keeps_a_bound(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "front.csv"
    status, output = command_line.run("search", tiny_run.folder, "--out", out, cwd=tmp_path)
    assert status == 0, output
    free = pd.read_csv(out, dtype={"arch": str})
    bound = float(free["latency_ms"].median())
    arguments = ["search", tiny_run.folder, "--out", out, "--at-most", f"latency_ms={bound}"]
    assert command_line.run(*arguments, cwd=tmp_path)[0] == 0
    bounded = pd.read_csv(out, dtype={"arch": str})
    assert len(bounded) and (bounded["latency_ms"] <= bound).all()
    assert (np.diff(bounded["latency_ms"]) >= 0).all()


def test_an_infeasible_bound_ends_with_the_closest_value(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = ["search", tiny_run.folder, "--out", tmp_path / "front.csv", "--at-most", "latency_ms=1e-6"]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 2
    assert "keeps latency_ms at most 1e-06 ms; the closest has 0.0" in output
    assert "Traceback" not in output


def test_extract_then_export_gives_the_model_of_the_run(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    winners = pd.read_parquet(tiny_run.folder / "pareto.parquet")
    row = winners.iloc[0]
    folder, model = tmp_path / "net", tmp_path / "net.onnx"
    status, output = command_line.run("extract", tiny_run.folder, "--arch", row["arch"], "--out", folder, cwd=tmp_path)
    assert status == 0, output
    status, output = command_line.run("export", folder, "--out", model, cwd=tmp_path)
    assert status == 0, output
    assert model.read_bytes() == (tiny_run.folder / row["model_path"]).read_bytes()


def test_collect_accuracy_agrees_with_the_run(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "accuracy.parquet"
    arguments = ["collect", "accuracy", tiny_run.folder, "--archs", "8", "--out", out, "--seed", "3"]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    ours = pd.read_parquet(tiny_run.folder / "stages" / "accuracy" / "accuracy.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(out), ours.iloc[:8].reset_index(drop=True))


def test_a_table_of_another_space_is_refused_with_both_fingerprints(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    from hanax.search_spaces import mobilenet_v3

    table = tiny_run.folder / "stages" / "latency" / "onnxruntime-fp32" / "table.parquet"
    other = tmp_path / "other.yaml"
    other.write_text(tiny_run.file.read_text().replace("depths: [1, 2]", "depths: [1]"))
    status, output = command_line.run(
        "run", other, "--out", tmp_path / "run", "--set", f"devices.0.table={table}", "--set", "supernet.epochs=0.1",
        cwd=tmp_path,
    )  # fmt: skip
    assert status == 2, output
    assert "fingerprint" in output and "Traceback" not in output
    spaces = {mobilenet_v3().fingerprint}
    assert not any(fingerprint in output for fingerprint in spaces)
    assert len({word.strip(";,.") for word in output.split() if len(word.strip(";,.")) == 16 and _is_hex(word)}) == 2


def _is_hex(word: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in word.strip(";,."))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "no experiment file none.yaml"),
        (["status", "."], "holds no run"),
        (["report", "."], "holds no run"),
        (["run", "quickstart.yaml", "--set", "devices.0.name=onnxrutime"], "did you mean 'onnxruntime-fp32'?"),
        (["run", "quickstart.yaml", "--set", "data.path=nowhere"], "nowhere"),
        (["run", "quickstart.yaml", "--set", "supernet.epoch=1"], "did you mean 'epochs'?"),
        (["run", "quickstart.yaml", "--set", "devices.0.table=t.parquet"], "there is no latency table t.parquet"),
        (["export", "nothing", "--out", "m.onnx"], "nothing"),
    ],
)
def test_wrong_input_ends_in_one_message_and_status_2(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], message: str
) -> None:
    source = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
    (tmp_path / "quickstart.yaml").write_text(source.read_text())
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 2, output
    assert message in output
    assert "Traceback" not in output
