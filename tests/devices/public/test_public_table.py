from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hanax.devices import LatencyTable, TableError
from hanax.devices.public import Column, Provenance, PublicDataError, PublicTable, _latency
from hanax.search_spaces import SearchSpace, SpaceMismatchError

COLUMNS = {
    "arch": Column("str", "options"),
    "latency_ms": Column("float64", "how long", "ms"),
    "layers": Column("int64", "how many", "layers"),
    "is_odd": Column("bool", "whether"),
}
DECISIONS = {"first": ("a", "b"), "second": (3, 5, 7)}


@pytest.fixture
def table() -> PublicTable:
    frame = pd.DataFrame(
        {
            "arch": ["0.2", "1.0", "0.2"],
            "latency_ms": [1.5, np.nan, 2.5],
            "layers": [1, 2, 3],
            "is_odd": [True, False, True],
        }
    )
    provenance = Provenance("x", "https://example.org", "MIT", "A paper", "hanax 0", {"a.csv": "00"})
    return PublicTable("x", frame, COLUMNS, DECISIONS, provenance=provenance)


def test_a_table_comes_back_with_its_columns_decisions_and_provenance(table: PublicTable, tmp_path: Path) -> None:
    table.write(tmp_path / "x.parquet")
    back = PublicTable.read(tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(back.frame, table.frame)
    assert back.columns == COLUMNS
    assert back.provenance == table.provenance
    assert {name: tuple(options) for name, options in back.decisions.items()} == DECISIONS


def test_the_same_table_gives_the_same_bytes(table: PublicTable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        table.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_codes_are_the_options_of_every_row(table: PublicTable) -> None:
    assert table.codes().tolist() == [[0, 2], [1, 0], [0, 2]]
    without = PublicTable("y", table.frame[["layers"]], {"layers": COLUMNS["layers"]})
    with pytest.raises(PublicDataError, match="table y has no column arch; it has layers"):
        without.codes()


def test_columns_are_those_that_are_documented_and_of_their_type(table: PublicTable) -> None:
    with pytest.raises(PublicDataError, match=r"table x has the columns arch, .* is_odd, more; it should have arch"):
        dataclasses.replace(table, frame=table.frame.assign(more=1))
    with pytest.raises(PublicDataError, match="table x: layers is float64; it should be int64"):
        dataclasses.replace(table, frame=table.frame.assign(layers=1.0))


def test_a_table_of_no_space_of_ours_is_refused_for_one(table: PublicTable, space: SearchSpace) -> None:
    with pytest.raises(SpaceMismatchError, match="the public table x belongs to the search space"):
        table.for_space(space)


def test_other_files_are_refused(table: PublicTable, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"arch": ["0"]}), path)
    with pytest.raises(TableError, match="Parquet but not a table of public data"):
        PublicTable.read(path)
    table.write(path)
    with pytest.raises(TableError, match="Parquet but not a latency table"):
        LatencyTable.read(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match="not a readable Parquet file"):
        PublicTable.read(path)


# ---- defects of latencies --------------------------------------------------------------------------------------------


@pytest.fixture
def planted() -> tuple[PublicTable, PublicTable]:
    """Latencies of 200 architectures, the last without a path, on devices that each have a defect."""
    rng = np.random.default_rng(0)
    macs = np.arange(1, 201) * 1000
    frame = pd.DataFrame({"arch": [str(i) for i in range(200)], "macs": macs, "has_path": [True] * 199 + [False]})
    columns = {"arch": Column("str", "x"), "macs": Column("int64", "x"), "has_path": Column("bool", "x")}
    archs = PublicTable("x_archs", frame, columns, {"index": tuple(range(200))})
    clean = macs / 1e4 + 1 + rng.uniform(0, 1, 200)
    missing = np.where(np.arange(200) < 3, np.nan, rng.permutation(clean))
    away = np.where(np.arange(200) == 199, 0.01, rng.permutation(clean))
    latency_ms = np.column_stack([clean, clean * 1.001, np.round(rng.permutation(clean)), missing, away])
    names = ["clean", "double", "whole", "missing", "away"]
    return _latency.latency_tables("x", archs, names, latency_ms, {"test": ("clean",)})


def test_every_planted_defect_of_a_device_is_found_and_no_other(planted: tuple[PublicTable, PublicTable]) -> None:
    found = _latency.device_defects("x", planted[1])
    assert len(found) == 4
    assert found[0].startswith("x: whole milliseconds only, so many ties: whole (")
    assert "below 0.1 ms: away (1 rows)" in found[1]
    assert found[2] == "x: not measured: missing (3 rows)"
    assert found[3] == "x: clean and double have a rank correlation of 1.0000: count them as one device"


def test_flags_say_what_a_latency_is_worth(planted: tuple[PublicTable, PublicTable]) -> None:
    flags = planted[0].frame.set_index(["device", "index"])["flag"]
    assert flags["missing", 0] == "not measured"
    assert flags["away", 199] == "optimised away"
    assert flags["clean", 199] == "no path"
    assert flags["clean", 0] == ""
    assert (flags != "").sum() == 3 + 1 + 4


def test_rank_correlation_leaves_out_what_is_missing_and_shares_ranks_of_ties() -> None:
    x = np.array([1.0, 2, 3, np.nan, 4])
    assert _latency.spearman(x, np.array([10.0, 20, 30, 5, np.nan])) == pytest.approx(1)
    assert _latency.spearman(x, np.array([1.0, 1, 2, 9, 2])) == pytest.approx(0.8944, abs=1e-4)


def test_listing_the_sources_loads_no_heavy_package() -> None:
    heavy = "{'jax', 'pandas', 'pyarrow', 'scipy', 'sklearn', 'onnx'}"
    program = f"import sys, hanax.devices.public; print(*sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
