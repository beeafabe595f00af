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
from latency_rows import latency_row as row

from hanax.devices import COLUMNS, DeviceIdentity, DeviceMismatchError, LatencyTable, TableError
from hanax.search_spaces import (
    Arch,
    SearchSpace,
    SpaceMismatchError,
    mobilenet_v3,
    quantized_space,
    unique_rows,
    with_precision,
)


@pytest.fixture
def table(space: SearchSpace, identity: DeviceIdentity) -> LatencyTable:
    """Latencies that follow the MACs exactly, for thirty architectures and both extremes."""
    codes = space.sample(np.random.default_rng(0), 60)
    archs = [*space.decode(codes[unique_rows(codes)][:30]), space.largest]
    rows = [row(arch, space.graph(arch).macs / 1e6) for arch in dict.fromkeys(archs)]
    return LatencyTable.empty(space, identity).append(rows)


def changed(table: LatencyTable, arch: Arch | str, **fields: Any) -> LatencyTable:
    frame = table.frame.copy()
    if "latency_ms" in fields:
        fields |= {"median_ms": fields["latency_ms"], "pass_latency_ms": [fields["latency_ms"]]}
    (place,) = np.flatnonzero(frame["arch"] == str(arch))
    for name, value in fields.items():
        frame.at[place, name] = value
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
    numbers = {name: kind for name, kind in COLUMNS.items() if kind not in ("str", "list")}
    assert {name: str(grown.frame.dtypes[name]) for name in numbers} == numbers


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


# ---- passes ----------------------------------------------------------------------------------------------------------


def test_a_second_pass_is_combined_as_the_table_says(space: SearchSpace, identity: DeviceIdentity) -> None:
    arch = space.largest
    first = row(arch, 1.0, spread=0.02, n_runs=90, rejected_rounds=1, busy_share=0.5, load_average=1.0)
    second = row(arch, 1.21, spread=0.01, n_runs=30, converged=False, busy_share=float("nan"), measured_at="later")
    table = LatencyTable.empty(space, identity).append([first]).add_pass([second])
    (found,) = table.frame.to_dict("records")
    assert found["pass_latency_ms"] == [1.0, 1.21]
    assert found["latency_ms"] == pytest.approx(1.1)  # the geometric mean
    assert (found["latency_low_ms"], found["latency_high_ms"]) == (0.98, 1.21 * 1.01)
    assert found["min_ms"] == 0.97
    assert found["median_ms"] == pytest.approx((90 * 1.05 + 30 * 1.05 * 1.21) / 120)
    assert (found["n_runs"], found["n_rounds"], found["rejected_rounds"], found["converged"]) == (120, 18, 1, False)
    assert (found["busy_share"], found["load_average"], found["measured_at"]) == (0.5, 1.0, "later")
    assert table.archs("table", passes=2) == [arch]
    third = table.add_pass([row(arch, 1.21)])
    assert third.frame["latency_ms"].iloc[0] == pytest.approx(1.4641 ** (1 / 3))


def test_passes_come_back_from_parquet(table: LatencyTable, tmp_path: Path) -> None:
    twice = table.add_pass([row(arch, 1.01 * latency) for arch, latency in table.frame[["arch", "latency_ms"]].values])
    twice.write(tmp_path / "table.parquet")
    back = LatencyTable.read(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(back.frame, twice.frame)
    assert back.archs("table", passes=2) == table.archs("table")
    reliability = back.reliability()
    assert reliability is not None
    assert reliability.spearman == 1.0
    assert reliability.drift == pytest.approx(1.01)


def test_a_table_measured_once_has_no_reliability(table: LatencyTable) -> None:
    assert table.reliability() is None
    assert table.archs("table", passes=2) == []


def test_a_pass_over_what_was_never_measured_is_refused(table: LatencyTable) -> None:
    with pytest.raises(TableError, match=r"arch 0.1, purpose 'table' has no pass yet"):
        table.add_pass([row("0.1", 1.0)])


def test_a_latency_that_is_not_that_of_its_passes_is_refused(table: LatencyTable) -> None:
    with pytest.raises(TableError, match=r"arch 0.1: latency_ms is 2.0; the passes found \[1.0, 1.0\]"):
        table.append([row("0.1", 2.0, pass_latency_ms=[1.0, 1.0])])
    with pytest.raises(TableError, match=r"the passes found \[\]"):
        table.append([row("0.1", 2.0, pass_latency_ms=[])])


def test_tables_of_the_first_format_are_read(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    table.write(path)
    stored = pq.read_table(path)
    metadata = {b"hanax": stored.schema.metadata[b"hanax"].replace(b"latency_table/2", b"latency_table/1")}
    old = stored.drop_columns(["pass_latency_ms", "busy_share"]).replace_schema_metadata(metadata)
    pq.write_table(old, path)
    back = LatencyTable.read(path)
    assert back.frame["pass_latency_ms"].tolist() == [[latency] for latency in table.frame["latency_ms"]]
    assert back.frame["busy_share"].isna().all()
    assert list(back.frame.columns) == list(COLUMNS)
    pq.write_table(old.replace_schema_metadata({b"hanax": b'{"format": "hanax.latency_table/9"}'}), path)
    with pytest.raises(TableError, match=r"says format 'hanax.latency_table/9'; 'hanax.latency_table/2' and"):
        LatencyTable.read(path)


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


def test_lint_does_not_expect_more_bits_to_take_longer(space: SearchSpace, identity: DeviceIdentity) -> None:
    """On onnxruntime activations of fewer bits do: they are cut off at their last level."""
    quantized, archs = quantized_space(space), space.encode([space.largest])
    ends = [quantized.decode(with_precision(quantized, archs, bits, bits))[0] for bits in ("int4", "int8")]
    rows = [row(arch, latency_ms) for arch, latency_ms in zip(ends, (2.0, 1.0), strict=True)]
    table = LatencyTable.empty(quantized, identity).append(rows)
    assert not any(" contains " in finding for finding in table.lint(quantized))


def test_lint_tells_the_worst_inversions_one_by_one_and_counts_the_others(
    table: LatencyTable, space: SearchSpace
) -> None:
    planted = changed(table, space.largest, latency_ms=1e-3, latency_low_ms=1e-3, latency_high_ms=1e-3)
    findings = [finding for finding in planted.lint(space) if finding.startswith(f"{space.largest} contains ")]
    slowest = table.frame["latency_ms"].nlargest(2).index[1]
    assert len(findings) == 10
    assert table.frame["arch"][slowest] in findings[0]
    assert "and 20 more pairs like these, less far apart" in planted.lint(space)


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


def test_lint_finds_a_network_whose_passes_disagree(table: LatencyTable, space: SearchSpace) -> None:
    factors = np.full(len(table.frame), 1.03)  # what all of them changed by is no finding
    factors[5] = 1.4
    latencies = table.frame["latency_ms"].to_numpy() * factors
    archs = table.frame["arch"].to_list()
    twice = table.add_pass([row(arch, latency) for arch, latency in zip(archs, latencies, strict=True)])
    (finding,) = [text for text in twice.lint(space) if "in the second" in text]
    assert finding.startswith(f"{archs[5]}: ")


def test_lint_finds_a_device_that_gives_the_same_number_for_everything(table: LatencyTable, space: SearchSpace) -> None:
    two = changed(changed(table, space.largest, latency_ms=0.5), table.frame["arch"].iloc[3], latency_ms=0.5)
    assert not any("exactly the same latency" in finding for finding in two.lint(space))
    three = changed(two, table.frame["arch"].iloc[4], latency_ms=0.5)
    assert any("3 of 31 rows have exactly the same latency, 0.5 ms" in finding for finding in three.lint(space))


def test_lint_finds_rows_whose_typical_run_is_far_from_the_fastest(table: LatencyTable, space: SearchSpace) -> None:
    (finding,) = changed(table, space.largest, median_ms=1e3).lint(space)
    assert finding.startswith(f"in 1 of {len(table.frame)} rows the typical run takes more than 1.5 times")
    assert str(space.largest) in finding


def test_lint_refuses_another_space(table: LatencyTable) -> None:
    with pytest.raises(SpaceMismatchError):
        table.lint(mobilenet_v3())
