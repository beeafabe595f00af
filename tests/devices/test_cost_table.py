from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hanax.devices import CostDevice, CostTable, DeviceMismatchError, LatencyTable, TableError, collect_costs
from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError, mobilenet_v3, unique_rows

DEVICE = CostDevice("qemu-test", (("version", "9.1"), ("threads", 1)))


@pytest.fixture
def archs(space: SearchSpace) -> list[Arch]:
    codes = space.sample(np.random.default_rng(1), 30)
    return space.decode(codes[unique_rows(codes)][:9])


@pytest.fixture
def table(space: SearchSpace, archs: list[Arch]) -> CostTable:
    return CostTable.empty(space, DEVICE, "instructions").append(archs, np.arange(1, 10) * 1e6)


def test_a_cost_table_comes_back_from_parquet_as_it_was(table: CostTable, archs: list[Arch], tmp_path: Path) -> None:
    table.write(tmp_path / "table.parquet")
    back = CostTable.read(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(back.frame, table.frame)
    assert back.archs() == archs
    assert back.costs().tolist() == (np.arange(1, 10) * 1e6).tolist()
    for field in dataclasses.fields(CostTable):
        if field.name != "frame":
            assert getattr(back, field.name) == getattr(table, field.name)
    assert os.listdir(tmp_path) == ["table.parquet"]


def test_an_empty_cost_table_comes_back_and_can_grow(space: SearchSpace, tmp_path: Path) -> None:
    CostTable.empty(space, DEVICE, "latency_ms").write(tmp_path / "table.parquet")
    back = CostTable.read(tmp_path / "table.parquet")
    assert back.archs() == []
    assert back.append([space.largest], [2.0]).append([], []).costs().tolist() == [2.0]


def test_the_two_kinds_of_table_are_told_apart(table: CostTable, tmp_path: Path) -> None:
    table.write(tmp_path / "table.parquet")
    with pytest.raises(TableError, match=r"not a latency table: its metadata says format 'hanax\.cost_table/1'"):
        LatencyTable.read(tmp_path / "table.parquet")


@pytest.mark.parametrize("cost", ["latency", "latency_s", "energy", "macs_ratio", ""])
def test_a_cost_without_a_known_unit_is_refused(cost: str, space: SearchSpace) -> None:
    with pytest.raises(TableError, match="ends in its unit"):
        CostTable.empty(space, DEVICE, cost)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cost_that_cannot_be_true_is_refused(value: float, table: CostTable, space: SearchSpace) -> None:
    with pytest.raises(TableError, match=f"instructions must be a positive finite number; it is {value}"):
        table.append([space.largest], [value])


def test_an_architecture_has_one_cost(table: CostTable, archs: list[Arch]) -> None:
    with pytest.raises(TableError, match=f"two rows for arch {archs[3]}"):
        table.append([archs[3]], [1.0])


def test_as_many_costs_as_architectures_are_needed(table: CostTable, space: SearchSpace) -> None:
    with pytest.raises(TableError, match=r"1 architectures need so many costs; got an array of shape \(2,\)"):
        table.append([space.largest], [1.0, 2.0])


def test_a_table_of_another_space_device_or_cost_is_refused(table: CostTable, space: SearchSpace) -> None:
    assert table.for_space(space).for_device(DEVICE, "instructions") is table
    with pytest.raises(SpaceMismatchError, match=space.fingerprint):
        table.for_space(mobilenet_v3())
    other = dataclasses.replace(DEVICE, settings=(("version", "9.2"), ("threads", 1)))
    with pytest.raises(DeviceMismatchError, match=f"{DEVICE.fingerprint}.*{other.fingerprint}"):
        table.for_device(other, "instructions")
    with pytest.raises(TableError, match="holds instructions; asked for was macs"):
        table.for_device(DEVICE, "macs")


def test_every_setting_counts_for_the_fingerprint_and_their_order_does_not() -> None:
    assert CostDevice("a", (("x", 1), ("y", 2))).fingerprint == CostDevice("a", (("y", 2), ("x", 1))).fingerprint
    different = [CostDevice("a"), CostDevice("b"), CostDevice("a", (("x", 1),)), CostDevice("a", (("x", 2),))]
    assert len({device.fingerprint for device in different}) == len(different)


def test_a_collection_that_stopped_half_way_goes_on_and_asks_for_nothing_twice(
    space: SearchSpace, archs: list[Arch], tmp_path: Path
) -> None:
    path = tmp_path / "tables" / "costs.parquet"
    asked: list[Arch] = []
    interruptions = [archs[4]]

    def costs_of(batch: list[Arch]) -> list[float]:
        if interruptions and interruptions[0] in batch:
            interruptions.clear()
            raise KeyboardInterrupt
        asked.extend(batch)
        return [space.graph(arch).macs for arch in batch]

    with pytest.raises(KeyboardInterrupt):
        collect_costs(space, archs, DEVICE, "macs", costs_of, path, batch_size=2)
    assert CostTable.read(path).archs() == archs[:4]
    progress: list[tuple[int, int]] = []
    table = collect_costs(
        space, [*archs, archs[0]], DEVICE, "macs", costs_of, path, on_progress=lambda *at: progress.append(at)
    )
    assert asked == archs == table.archs()
    assert CostTable.read(path).costs().tolist() == [space.graph(arch).macs for arch in archs]
    assert progress == [(4, 9), (9, 9)]


def test_a_wrong_cost_keeps_the_batches_before(space: SearchSpace, archs: list[Arch], tmp_path: Path) -> None:
    path = tmp_path / "costs.parquet"
    with pytest.raises(TableError, match=f"arch {archs[3]}: macs must be a positive finite number"):
        collect_costs(
            space, archs, DEVICE, "macs", lambda batch: [float(arch != archs[3]) for arch in batch], path, batch_size=3
        )
    assert CostTable.read(path).archs() == archs[:3]


def test_another_devices_table_is_refused_before_anything_is_asked_for(
    space: SearchSpace, archs: list[Arch], table: CostTable, tmp_path: Path
) -> None:
    def must_not_ask(batch: list[Arch]) -> list[float]:
        raise AssertionError("nothing may be asked for")

    table.write(tmp_path / "table.parquet")
    with pytest.raises(DeviceMismatchError):
        collect_costs(space, archs, CostDevice("x"), "instructions", must_not_ask, tmp_path / "table.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        collect_costs(space, archs, DEVICE, "macs", must_not_ask, tmp_path / "file" / "table.parquet")
