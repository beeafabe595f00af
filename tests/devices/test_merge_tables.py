from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from latency_rows import latency_row

from hanax.devices import (
    ConflictError,
    CostDevice,
    CostTable,
    DeviceIdentity,
    DeviceMismatchError,
    LatencyTable,
    TableError,
    merge_tables,
)
from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError, mobilenet_v3

SPACE = mobilenet_v3()


@pytest.fixture
def table(space: SearchSpace, identity: DeviceIdentity) -> Callable[..., LatencyTable]:
    def build(**latencies: float) -> LatencyTable:
        rows = [latency_row(name.removeprefix("a"), value) for name, value in latencies.items()]
        return LatencyTable.empty(space, identity).append(rows)

    return build


def test_a_merged_table_has_the_rows_of_all_in_their_order(table: Callable[..., LatencyTable]) -> None:
    merged = merge_tables({"x": table(a3=1.0, a1=2.0), "y": table(a2=3.0)})
    assert merged.frame["arch"].tolist() == ["3", "1", "2"]
    pd.testing.assert_frame_equal(merged.frame, table(a3=1.0, a1=2.0, a2=3.0).frame)
    assert merged.device_fingerprint == table().device_fingerprint


def test_equal_rows_come_once_also_where_a_value_is_missing(table: Callable[..., LatencyTable]) -> None:
    both = table(a1=1.0, a2=2.0)
    assert both.frame["load_average"].isna().all()
    merged = merge_tables({"x": both, "y": table(a2=2.0, a3=3.0)})
    assert merged.frame["arch"].tolist() == ["1", "2", "3"]


def test_rows_that_differ_are_refused_by_name_and_never_averaged(table: Callable[..., LatencyTable]) -> None:
    with pytest.raises(ConflictError) as error:
        merge_tables({"x": table(a1=1.0, a2=2.0), "y": table(a2=2.5)})
    text = str(error.value)
    assert text.startswith("'2' 'table' differs between x and y in latency_ms, latency_low_ms, ")
    assert "2.0 and 2.5; say which of the two wins" in text


@pytest.mark.parametrize(("wins", "expected"), [("x", [1.0, 2.0, 9.0]), ("y", [1.0, 2.5, 9.0])])
def test_the_table_that_wins_gives_the_rows_that_differ(
    wins: str, expected: list[float], table: Callable[..., LatencyTable]
) -> None:
    merged = merge_tables({"x": table(a1=1.0, a2=2.0), "y": table(a2=2.5, a3=9.0)}, wins=wins)
    assert merged.frame["arch"].tolist() == ["1", "2", "3"]
    assert merged.frame["latency_ms"].tolist() == expected


def test_a_winner_does_not_settle_what_two_others_dispute(table: Callable[..., LatencyTable]) -> None:
    tables = {"x": table(a1=1.0), "y": table(a2=2.0), "z": table(a2=3.0)}
    with pytest.raises(ConflictError, match="'2' 'table' differs between y and z"):
        merge_tables(tables, wins="x")


def test_only_tables_that_belong_together_are_merged(
    table: Callable[..., LatencyTable], space: SearchSpace, identity: DeviceIdentity
) -> None:
    other_device = dataclasses.replace(identity, threads=2)
    with pytest.raises(DeviceMismatchError, match=f"(?s){identity.fingerprint}.*{other_device.fingerprint}"):
        merge_tables({"x": table(), "y": LatencyTable.empty(space, other_device)})
    with pytest.raises(SpaceMismatchError, match=f"(?s){space.fingerprint}.*{SPACE.fingerprint}"):
        merge_tables({"x": table(), "y": LatencyTable.empty(SPACE, identity)})
    costs = CostTable.empty(space, identity, "energy_mj")
    with pytest.raises(TableError, match="x is a LatencyTable, y a CostTable"):
        merge_tables({"x": table(), "y": costs})
    with pytest.raises(TableError, match="x holds energy_mj, y latency_ms"):
        merge_tables({"x": costs, "y": CostTable.empty(space, identity, "latency_ms")})
    with pytest.raises(ValueError, match="wins must be one of the tables x; got 'y'"):
        merge_tables({"x": table()}, wins="y")
    with pytest.raises(ValueError, match=r"wins must be one of the tables \(none\)"):
        merge_tables({})


@given(st.lists(st.dictionaries(st.integers(0, 9), st.integers(1, 3), max_size=6), min_size=1, max_size=4))
def test_merging_is_the_union_or_names_a_real_conflict(parts: list[dict[int, int]]) -> None:
    device = CostDevice("x")
    tables = {
        str(number): CostTable.empty(SPACE, device, "instructions").append(
            [Arch((arch,)) for arch in part], np.array(list(part.values()), dtype=np.float64)
        )
        for number, part in enumerate(parts)
    }
    values = {arch: {part[arch] for part in parts if arch in part} for arch in range(10)}
    if any(len(of) > 1 for of in values.values()):
        with pytest.raises(ConflictError):
            merge_tables(tables)
        merged = merge_tables({"0": tables["0"]}, wins="0")
        assert len(merged.frame) == len(parts[0])
        return
    merged = merge_tables(tables)
    assert dict(zip(merged.archs(), merged.costs(), strict=True)) == {
        Arch((arch,)): of.pop() for arch, of in values.items() if of
    }
