from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from latency_rows import latency_row

from hanax.devices import (
    CostDevice,
    CostTable,
    DeviceIdentity,
    LatencyTable,
    TableError,
    describe_table,
    open_table,
    validate_table,
)
from hanax.search_spaces import SearchSpace, SpaceMismatchError, mobilenet_v3, unique_rows


@pytest.fixture
def table(space: SearchSpace, identity: DeviceIdentity) -> LatencyTable:
    """Latencies that follow the MACs exactly."""
    codes = space.sample(np.random.default_rng(0), 60)
    archs = [*space.decode(codes[unique_rows(codes)][:20]), space.largest]
    rows = [latency_row(arch, space.graph(arch).macs / 1e6) for arch in dict.fromkeys(archs)]
    return LatencyTable.empty(space, identity).append(rows)


def changed(table: LatencyTable, **values: Any) -> LatencyTable:
    """`table` with other values in its second row."""
    frame = table.frame.copy()
    for name, value in values.items():
        frame.loc[1, name] = value
    return dataclasses.replace(table, frame=frame)


def test_a_good_table_has_no_findings(table: LatencyTable, space: SearchSpace) -> None:
    assert validate_table(table) == []
    assert validate_table(table, space) == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"latency_low_ms": 1e6}, "latency_low_ms is above latency_ms in 1 of 21 rows; arch {arch} has latency_low_ms"),
        ({"latency_high_ms": 1e-6}, "latency_ms is above latency_high_ms in 1 of 21 rows"),
        ({"min_ms": 1e3, "p10_ms": 1e3, "median_ms": 1e3}, "min_ms is above latency_ms in 1 of 21 rows"),
        ({"p10_ms": 1e3}, "p10_ms is above median_ms in 1 of 21 rows"),
        ({"n_rounds": 0}, "n_rounds must be 1 or more in 1 of 21 rows; arch {arch} has n_rounds 0"),
        ({"n_runs": 2}, "fewer runs than rounds in 1 of 21 rows; arch {arch} has n_runs 2, n_rounds 9"),
        ({"rejected_rounds": -1}, "rejected_rounds must be 0 or more"),
        ({"iqr_ms": float("nan")}, "iqr_ms must be 0 or more in 1 of 21 rows; arch {arch} has iqr_ms nan"),
        ({"cpu_ms": -1.0}, "cpu_ms must be 0 or more"),
        (
            {"purpose": "fun"},
            "purpose must be one of table, held-out, winner in 1 of 21 rows; arch {arch} has purpose fun",
        ),
        ({"threads": 2}, "threads has several values in a table of one device: 1, 2"),
        ({"runtime_version": "9"}, "runtime_version has several values in a table of one device: 1.20.0, 9"),
        ({"measured_at": "yesterday"}, "arch {arch}: measured_at 'yesterday' is no ISO 8601 time"),
        ({"measured_at": "2025-01-01T00:00:00"}, "measured_at '2025-01-01T00:00:00' has no time zone"),
        ({"measured_at": "2999-01-01T00:00:00+00:00"}, "measured_at '2999-01-01T00:00:00+00:00' lies in the future"),
        ({"arch": "a.b"}, "not an architecture: 'a.b'"),
        ({"arch": "1.2"}, "architectures with 2 and with"),
    ],
)
def test_rows_that_cannot_be_true_are_errors(values: dict[str, Any], complaint: str, table: LatencyTable) -> None:
    arch = table.frame["arch"][1]
    (finding,) = validate_table(changed(table, **values), now=datetime(2026, 1, 1, tzinfo=UTC))
    assert finding.severity == "error"
    assert complaint.format(arch=arch) in str(finding)


def test_lint_of_a_table_gives_warnings_if_the_space_is_known(table: LatencyTable, space: SearchSpace) -> None:
    odd = changed(table, converged=False)
    assert validate_table(odd) == []
    (finding,) = validate_table(odd, space)
    assert finding.severity == "warning"
    assert "1 of 21 rows did not converge" in finding.text


def test_latencies_in_another_unit_are_an_error(space: SearchSpace, identity: DeviceIdentity) -> None:
    table = LatencyTable.empty(space, identity).append([latency_row(space.largest, 1e-12)])
    (finding,) = validate_table(table, space)
    assert finding.severity == "error"
    assert "is the unit right?" in finding.text


def test_architectures_of_another_space_are_an_error(table: LatencyTable, space: SearchSpace) -> None:
    arch = table.frame["arch"][1]
    findings = validate_table(changed(table, arch="9" + arch[1:]), space)
    assert [finding.severity for finding in findings] == ["error"]
    with pytest.raises(SpaceMismatchError):
        validate_table(table, mobilenet_v3())


def test_an_empty_table_is_a_warning(space: SearchSpace, identity: DeviceIdentity) -> None:
    (finding,) = validate_table(LatencyTable.empty(space, identity), space)
    assert str(finding) == "warning: the table has no rows"


def test_costs_are_checked_too(space: SearchSpace) -> None:
    costs = CostTable.empty(space, CostDevice("model"), "latency_ms").append(
        [space.largest, space.smallest], [2.0, 1.0]
    )
    assert validate_table(costs, space) == []
    absurd = CostTable.empty(space, CostDevice("model"), "latency_ms").append([space.largest], [1e-12])
    assert "is the unit right?" in str(validate_table(absurd, space)[0])
    counted = CostTable.empty(space, CostDevice("qemu"), "instructions").append([space.largest], [1e9])
    assert validate_table(counted, space) == []


# ---- opening ---------------------------------------------------------------------------------------------------------


def test_a_file_is_opened_as_the_kind_that_it_is(table: LatencyTable, space: SearchSpace, tmp_path: Path) -> None:
    table.write(tmp_path / "a.parquet")
    assert isinstance(open_table(tmp_path / "a.parquet"), LatencyTable)
    CostTable.empty(space, CostDevice("x"), "macs").write(tmp_path / "b.parquet")
    assert isinstance(open_table(tmp_path / "b.parquet"), CostTable)


def test_files_of_no_known_kind_are_refused(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(TableError, match=r"x\.parquet is not a readable table"):
        open_table(path)
    pq.write_table(pa.table({"arch": ["0"]}), path)
    with pytest.raises(TableError, match=r"x\.parquet is of format None; known are hanax\.latency_table and"):
        open_table(path)
    table.write(path)
    stored = pq.read_table(path)
    for metadata, complaint in (
        ('{"format": "hanax.latency_table/99"}', "its metadata says format 'hanax.latency_table/99'"),
        ("[1]", "is not a readable table"),
        ("{", "is not a readable table"),
        (json.dumps({"format": "hanax.latency_table/1", "colour": "red"}), "its metadata does not fit its format"),
    ):
        pq.write_table(stored.replace_schema_metadata({b"hanax": metadata}), path)
        with pytest.raises(TableError, match=complaint):
            open_table(path)


# ---- describing ------------------------------------------------------------------------------------------------------


def test_a_description_says_what_a_table_holds(table: LatencyTable, identity: DeviceIdentity) -> None:
    odd = changed(table, converged=False, rejected_rounds=21, load_average=0.5, measured_at="2025-02-01T00:00:00+00:00")
    facts = describe_table(odd)
    assert facts["rows"] == 21
    assert facts["purposes"] == {"table": 21}
    assert (facts["identity"], facts["device"]) == (str(identity), "onnxruntime-fp32")
    assert (facts["runtime"], facts["runtime_version"], facts["threads"]) == ("onnxruntime", "1.20.0", 1)
    assert facts["half_width"] == pytest.approx([0.01, 0.01, 0.01])
    assert facts["converged_share"] == pytest.approx(20 / 21)
    assert facts["rejected_share"] == pytest.approx(21 / (21 + 21 * 9))
    assert facts["load_average"] == [0.5, 0.5, 0.5]
    assert facts["measured_at"] == ["2025-01-01T00:00:00+00:00", "2025-02-01T00:00:00+00:00"]
    low, middle, high = facts["latency_ms"]
    assert (low, high) == (odd.frame["latency_ms"].min(), odd.frame["latency_ms"].max())
    assert low < middle < high
    assert json.loads(json.dumps(facts)) == facts


def test_an_empty_table_and_costs_can_be_described(space: SearchSpace, identity: DeviceIdentity) -> None:
    assert describe_table(LatencyTable.empty(space, identity))["latency_ms"] is None
    costs = CostTable.empty(space, CostDevice("x"), "energy_mj").append([space.largest, space.smallest], [4.0, 2.0])
    assert describe_table(costs)["energy_mj"] == [2.0, 3.0, 4.0]
