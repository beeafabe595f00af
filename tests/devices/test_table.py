from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hanax.devices import COLUMNS, DeviceIdentity, DeviceMismatchError, LatencyTable, TableError
from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError, mobilenet_v3, unique_rows


def row(arch: Arch | str, latency_ms: float, spread: float = 0.01, **fields: object) -> dict[str, object]:
    return {
        "arch": str(arch),
        "latency_ms": latency_ms,
        "latency_low_ms": latency_ms * (1 - spread),
        "latency_high_ms": latency_ms * (1 + spread),
        "min_ms": latency_ms * 0.97,
        "p10_ms": latency_ms,
        "median_ms": latency_ms * 1.05,
        "iqr_ms": 0.0,
        "cpu_ms": latency_ms,
        "n_runs": 90,
        "n_rounds": 9,
        "rejected_rounds": 0,
        "converged": True,
        "device": "onnxruntime-fp32",
        "runtime": "onnxruntime",
        "runtime_version": "1.20.0",
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "load_average": float("nan"),
        "measured_at": "2025-01-01T00:00:00+00:00",
        "purpose": "table",
    } | fields


@pytest.fixture
def table(space: SearchSpace, identity: DeviceIdentity) -> LatencyTable:
    """Latencies that follow the MACs exactly, for thirty architectures and both extremes."""
    codes = space.sample(np.random.default_rng(0), 60)
    archs = [*space.decode(codes[unique_rows(codes)][:30]), space.largest]
    rows = [row(arch, space.graph(arch).macs / 1e6) for arch in dict.fromkeys(archs)]
    return LatencyTable.empty(space, identity).append(rows)


def changed(table: LatencyTable, arch: Arch | str, **fields: Any) -> LatencyTable:
    frame = table.frame.copy()
    for name, value in fields.items():
        frame.loc[frame["arch"] == str(arch), name] = value
    return dataclasses.replace(table, frame=frame)


# ---- storage ---------------------------------------------------------------------------------------------------------


def test_a_table_comes_back_from_parquet_as_it_was(table: LatencyTable, tmp_path: Path) -> None:
    table.write(tmp_path / "table.parquet")
    back = LatencyTable.read(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(back.frame, table.frame)
    for field in dataclasses.fields(LatencyTable):
        if field.name != "frame":
            assert getattr(back, field.name) == getattr(table, field.name)
    assert list(back.frame.columns) == list(COLUMNS)
    assert os.listdir(tmp_path) == ["table.parquet"]


def test_an_empty_table_comes_back_and_can_grow(space: SearchSpace, identity: DeviceIdentity, tmp_path: Path) -> None:
    LatencyTable.empty(space, identity).write(tmp_path / "table.parquet")
    back = LatencyTable.read(tmp_path / "table.parquet")
    assert len(back.frame) == 0
    grown = back.append([row(space.largest, 1.0)]).append(
        [row(space.smallest, 0.5), row(space.largest, 1.0, purpose="winner")]
    )
    assert grown.archs("table") == [space.largest, space.smallest]
    assert grown.archs("winner") == [space.largest]
    assert len(back.frame) == 0
    assert {name: str(kind) for name, kind in grown.frame.dtypes.items() if kind != grown.frame["arch"].dtype} == {
        name: kind for name, kind in COLUMNS.items() if kind != "str"
    }


def test_other_tools_find_the_fingerprints_in_the_file(table: LatencyTable, space: SearchSpace, tmp_path: Path) -> None:
    table.write(tmp_path / "table.parquet")
    metadata = pq.read_schema(tmp_path / "table.parquet").metadata[b"hanax"].decode()
    assert space.fingerprint in metadata
    assert table.device_fingerprint in metadata


def test_missing_columns_are_named(table: LatencyTable, tmp_path: Path) -> None:
    table.write(tmp_path / "table.parquet")
    stored = pq.read_table(tmp_path / "table.parquet")
    pq.write_table(stored.drop_columns(["iqr_ms", "threads"]), tmp_path / "less.parquet")
    with pytest.raises(TableError, match=r"less\.parquet: .*without column\(s\) iqr_ms, threads"):
        LatencyTable.read(tmp_path / "less.parquet")


def test_unknown_columns_are_named(table: LatencyTable) -> None:
    with pytest.raises(TableError, match=r"unknown column\(s\) latency_s; known: arch, latency_ms"):
        dataclasses.replace(table, frame=table.frame.assign(latency_s=1.0))


def test_files_that_are_no_latency_tables_are_refused(tmp_path: Path, table: LatencyTable) -> None:
    path = tmp_path / "table.parquet"
    with pytest.raises(FileNotFoundError):
        LatencyTable.read(path)
    path.write_bytes(b"")
    with pytest.raises(TableError, match="not a readable Parquet file"):
        LatencyTable.read(path)
    table.write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TableError, match="not a readable Parquet file"):
        LatencyTable.read(path)
    pq.write_table(pa.table({"arch": ["0"]}), path)
    with pytest.raises(TableError, match="Parquet but not a latency table"):
        LatencyTable.read(path)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latency_that_cannot_be_true_is_refused(value: float, table: LatencyTable) -> None:
    with pytest.raises(TableError, match=f"arch 0.1: latency_ms must be a positive finite number; it is {value}"):
        table.append([row("0.1", 1.0) | {"latency_ms": value}])


def test_an_architecture_has_one_row_for_each_purpose(table: LatencyTable, space: SearchSpace) -> None:
    with pytest.raises(TableError, match=f"two rows for arch {space.largest}, purpose 'table'"):
        table.append([row(space.largest, 1.0)])


def test_a_killed_process_leaves_a_readable_table(tmp_path: Path, table: LatencyTable) -> None:
    path = tmp_path / "table.parquet"
    table.write(path)
    code = (
        "import sys\nfrom hanax.devices import LatencyTable\ntable = LatencyTable.read(sys.argv[1])\n"
        "while True:\n    table.write(sys.argv[1])\n    print(flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
            assert len(LatencyTable.read(path).frame) == len(table.frame)
        process.send_signal(signal.SIGKILL)
    assert len(LatencyTable.read(path).frame) == len(table.frame)


def test_a_write_that_fails_leaves_the_old_table(
    tmp_path: Path, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    table.write(path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        table.append([row("0.1", 1.0)]).write(path)
    assert len(LatencyTable.read(path).frame) == len(table.frame)


# ---- belonging -------------------------------------------------------------------------------------------------------


def test_a_table_of_another_space_is_refused_with_both_fingerprints(table: LatencyTable, space: SearchSpace) -> None:
    assert table.for_space(space) is table
    other = mobilenet_v3()
    with pytest.raises(SpaceMismatchError) as error:
        table.for_space(other)
    assert space.fingerprint in str(error.value)
    assert other.fingerprint in str(error.value)


@pytest.mark.parametrize(
    "change", [{"cpu_model": "Other"}, {"cores": 4}, {"runtime_version": "2"}, {"threads": 2}, {"batch": 8}]
)
def test_a_table_of_another_device_is_refused_with_both_fingerprints(
    change: dict[str, Any], table: LatencyTable, identity: DeviceIdentity
) -> None:
    assert table.for_device(identity) is table
    other = dataclasses.replace(identity, **change)
    with pytest.raises(DeviceMismatchError) as error:
        table.for_device(other)
    assert identity.fingerprint in str(error.value)
    assert other.fingerprint in str(error.value)


# ---- lint ------------------------------------------------------------------------------------------------------------


def test_a_clean_table_has_no_findings(table: LatencyTable, space: SearchSpace) -> None:
    assert table.lint(space) == []


@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_lint_finds_a_planted_outlier(factor: float, table: LatencyTable, space: SearchSpace) -> None:
    arch = table.frame["arch"].iloc[7]
    latency = factor * table.frame["latency_ms"].iloc[7]
    wide = changed(table, arch, latency_ms=latency, latency_low_ms=1e-3, latency_high_ms=1e3)
    (finding,) = wide.lint(space)
    assert finding.startswith(f"{arch}: ")
    assert "times what its size suggests" in finding


def test_lint_finds_a_network_that_is_faster_than_one_inside_it(table: LatencyTable, space: SearchSpace) -> None:
    second = table.frame["latency_ms"].nlargest(2).iloc[1]
    fast = 0.95 * second
    planted = changed(table, space.largest, latency_ms=fast, latency_low_ms=0.99 * fast, latency_high_ms=1.01 * fast)
    assert any(finding.startswith(f"{space.largest} contains ") for finding in planted.lint(space))
    overlapping = changed(planted, space.largest, latency_high_ms=second)
    assert not any(" contains " in finding for finding in overlapping.lint(space))


def test_a_network_is_inside_another_only_if_no_decision_is_larger(
    space: SearchSpace, identity: DeviceIdentity
) -> None:
    deep, wide = space.arch({"stage1.block1.kernel_size": 3}), space.arch({"stage2.depth": 1})
    table = LatencyTable.empty(space, identity).append([row(deep, 1.0), row(wide, 2.0)])
    assert table.lint(space) == []


def test_lint_reports_rows_that_did_not_converge(table: LatencyTable, space: SearchSpace) -> None:
    (finding,) = changed(table, space.largest, converged=False, rejected_rounds=17).lint(space)
    assert f"1 of {len(table.frame)} rows did not converge" in finding
    assert "+-1.0%" in finding
    assert f"of {space.largest} (17 rounds rejected" in finding


def test_lint_refuses_another_space(table: LatencyTable) -> None:
    with pytest.raises(SpaceMismatchError):
        table.lint(mobilenet_v3())
