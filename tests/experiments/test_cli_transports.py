"""Devices that are elsewhere, from the command line: over ssh, and by a zip that goes and a file that comes back."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import TINY, CommandLine
from private_sshd import Server, private_sshd

from hanax.devices import LatencyTable, Ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


def test_a_table_is_collected_over_ssh_and_its_device_says_where(
    command_line: CommandLine, server: Server, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "table.parquet"
    arguments = ["collect", "latency", "--space", tiny, "--device", "onnxruntime-fp32", "--archs", "3", "--out", out]
    quick = ["--target-relative-ci", "0.5", "--busy", "warn", "--passes", "1"]
    status, output = command_line.run(*arguments, *quick, "--on", server.url, cwd=tmp_path)
    assert status == 0, output
    name = f"onnxruntime-fp32@127.0.0.1-{server.port}"
    table = LatencyTable.read(out)
    assert table.frame["device"].tolist() == [name] * 3
    assert Ledger(tmp_path / "table.ledger.jsonl").counts() == {name: {"table": 3}}
    assert f"3 networks on {name}" in output


def test_parity_is_checked_over_ssh(command_line: CommandLine, server: Server, tmp_path: Path) -> None:
    status, output = command_line.run("devices", "check", "onnxruntime-fp32", "--on", server.url, cwd=tmp_path)
    assert status == 0, output
    assert f"onnxruntime-fp32@127.0.0.1-{server.port}: 8 images; largest difference of a logit" in output


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ssh://me:secret@pi/", "use a key"),
        ("ssh://127.0.0.1:1/", "cannot connect to 127.0.0.1:1"),
    ],
)
def test_a_wrong_place_ends_in_one_message(
    command_line: CommandLine, tiny: Path, tmp_path: Path, place: str, message: str
) -> None:
    pytest.importorskip("asyncssh", reason="the extra ssh (asyncssh) is not installed")
    arguments = ["collect", "latency", "--space", tiny, "--device", "onnxruntime-fp32", "--out", tmp_path / "t.parquet"]
    status, output = command_line.run(*arguments, "--on", place, cwd=tmp_path)
    assert status == 2
    assert message in output
    assert "Traceback" not in output and "secret" not in output


def test_a_bundle_goes_out_and_its_results_become_tables(command_line: CommandLine, tiny: Path, tmp_path: Path) -> None:
    sent, board = tmp_path / "bundle.zip", tmp_path / "board"
    arguments = ["bundle", "--space", tiny, "--device", "onnxruntime-fp32", "--device", "xla-fp32", "--out", sent]
    status, output = command_line.run(*arguments, "--archs", "3", "--target-relative-ci", "0.5", cwd=tmp_path)
    assert status == 0, output
    assert "hanax import-results results.jsonl --bundle" in output
    with zipfile.ZipFile(sent) as archive:
        archive.extractall(board)
    for device in ("onnxruntime-fp32", "xla-fp32"):
        ran = subprocess.run(
            [sys.executable, "-I", "run.py", "--device", device], cwd=board, capture_output=True, text=True, check=False
        )
        assert f"{device}, pass 2: 3 of 3 networks done" in ran.stdout, ran.stdout + ran.stderr
    results = board / "results.jsonl"
    status, output = command_line.run(
        "import-results", results, "--bundle", sent, "--out", tmp_path / "tables", cwd=tmp_path
    )
    assert status == 0, output
    for device in ("onnxruntime-fp32", "xla-fp32"):
        table = LatencyTable.read(tmp_path / "tables" / f"{device}.parquet")
        assert len(table.archs("table", passes=2)) == 3
        assert f"{device}.parquet: 3 networks on {device}" in output

    results.write_bytes(results.read_bytes().replace(b'"wall_ns": 1', b'"wall_ns": 2', 1))
    status, output = command_line.run(
        "import-results", results, "--bundle", sent, "--out", tmp_path / "forged", cwd=tmp_path
    )
    assert status == 2
    assert "was changed, or a line before it is missing" in output
    assert not (tmp_path / "forged").exists()
