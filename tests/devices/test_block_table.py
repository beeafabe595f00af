from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hanax._files import locked
from hanax.devices import (
    BLOCKS,
    COLUMNS,
    DEVICES,
    DeviceIdentity,
    DeviceMismatchError,
    DeviceTable,
    InUseError,
    LatencyTable,
    Ledger,
    Method,
    TableError,
    block_costs,
    block_nets,
    blocks_of,
    collect_blocks,
    compare_with_nets,
    overhead_ms,
    sum_of_blocks,
    unique_blocks,
)
from hanax.search_spaces import Arch, Graph, Operator, SearchSpace, SpaceMismatchError, mobilenet_v3, unique_rows
from hanax.supernet import random_weights, to_onnx

SPEC = DEVICES["onnxruntime-fp32"]
OVERHEAD_MS = 0.5


def operator_ms(op: Operator) -> float:
    return 1e-6 * op.macs + 1e-7 * op.traffic_values + 1e-3


def additive_ms(graph: Graph) -> float:
    """A device on which every operator costs the same wherever it is, and a run costs `OVERHEAD_MS`."""
    return OVERHEAD_MS + sum(operator_ms(op) for op in graph.operators if graph.input_shape != (1, 1, 1))


def row(latency_ms: float, half_width_ms: float = 0.01) -> dict[str, object]:
    texts = dict.fromkeys((name for name, kind in COLUMNS.items() if kind == "str"), "x")
    numbers = dict.fromkeys((name for name, kind in COLUMNS.items() if kind in ("float64", "int64")), 1)
    times = dict.fromkeys(("latency_ms", "min_ms", "p10_ms", "median_ms"), latency_ms)
    ends = {"latency_low_ms": latency_ms - half_width_ms, "latency_high_ms": latency_ms + half_width_ms}
    return {**texts, **numbers, **times, **ends, "converged": True}


def block_row(key: tuple[str, ...], latency_ms: float, half_width_ms: float = 0.01) -> dict[str, object]:
    named = dict(zip(BLOCKS.key, key, strict=True)) | row(latency_ms, half_width_ms)
    return {name: value for name, value in named.items() if name in BLOCKS.columns}


def blocks_on(latency_ms: Callable[[Graph], float], space: SearchSpace, identity: DeviceIdentity) -> DeviceTable:
    rows = [block_row(key, latency_ms(graph)) for key, graph in block_nets(space).items()]
    return DeviceTable.empty(BLOCKS, space, identity).append(rows)


def nets_on(
    latency_ms: Callable[[Graph], float], space: SearchSpace, identity: DeviceIdentity, archs: list[Arch]
) -> LatencyTable:
    rows = [row(latency_ms(space.graph(arch))) | {"arch": str(arch), "purpose": "table"} for arch in archs]
    return LatencyTable.empty(space, identity).append(rows)


@pytest.fixture(scope="module")
def archs(space: SearchSpace) -> list[Arch]:
    codes = space.sample(np.random.default_rng(3), 60)
    return space.decode(codes[unique_rows(codes)][:30])


# ---- which blocks ----------------------------------------------------------------------------------------------------


def test_equal_blocks_of_different_slots_are_one() -> None:
    space = mobilenet_v3(resolutions=(32,), n_classes=10, stem_stride=1)
    keys = unique_blocks(space)
    # Five stages: nine choices of the first block, and nine that the others share; stem, first block and head.
    assert len(keys) == 5 * 2 * 9 + 3
    assert {key.slot for key in keys if key.slot.startswith("stage1")} == {"stage1.block1", "stage1.block2"}


def test_every_block_of_every_network_is_among_the_unique_ones(space: SearchSpace, archs: list[Arch]) -> None:
    keys = set(unique_blocks(space))
    used = {key for arch in archs for key in blocks_of(space, arch)}
    assert used <= keys
    assert len(used) > 0.8 * len(keys)


def test_blocks_of_a_network_make_up_its_graph(space: SearchSpace, archs: list[Arch]) -> None:
    nets = block_nets(space)
    for arch in archs:
        macs = 0
        for key in blocks_of(space, arch):
            own = [op for op in nets[key.row].operators if not op.name.startswith(("carrier", "tail"))]
            macs += sum(op.macs for op in own)
        assert macs == space.graph(arch).macs


def test_a_slot_that_some_networks_skip_does_not_hide_the_shapes_before_it(space: SearchSpace) -> None:
    shapes = {key.input_shape for key in unique_blocks(space) if key.slot == "stage2.block1"}
    assert shapes == {(8, 8, 8), (8, 16, 16)}


def test_the_small_networks_are_networks_that_any_format_takes(space: SearchSpace) -> None:
    for key, graph in block_nets(space).items():
        assert graph.operators[-1].kind == "dense", key
        assert to_onnx(graph, random_weights(graph, np.random.default_rng(0)))


# ---- costs, on a device that is additive -----------------------------------------------------------------------------


def test_costs_are_exact_where_latency_is_additive(
    space: SearchSpace, identity: DeviceIdentity, archs: list[Arch]
) -> None:
    table = blocks_on(additive_ms, space, identity)
    assert overhead_ms(table) == OVERHEAD_MS
    nets = block_nets(space)
    for key, cost in block_costs(table, space).items():
        own = [op for op in nets[key.row].operators if not op.name.startswith(("carrier", "tail"))]
        assert cost.block_ms == pytest.approx(sum(map(operator_ms, own)))
    sums = sum_of_blocks(table, space, archs)
    assert sums == pytest.approx([additive_ms(space.graph(arch)) for arch in archs])
    error = compare_with_nets(table, space, nets_on(additive_ms, space, identity, archs))
    assert (error.n, error.spearman) == (30, 1.0)
    assert error.mape == pytest.approx(0.0, abs=1e-9)


def test_what_a_network_pays_once_for_its_image_is_counted_once(
    space: SearchSpace, identity: DeviceIdentity, archs: list[Arch]
) -> None:
    """Such as bringing it into a runtime's own layout: every small network pays for its own input as well."""

    def latency_ms(graph: Graph) -> float:
        is_empty = graph.input_shape == (1, 1, 1)
        return additive_ms(graph) + (0.0 if is_empty else 1e-3 * float(np.prod(graph.input_shape)))

    table = blocks_on(latency_ms, space, identity)
    error = compare_with_nets(table, space, nets_on(latency_ms, space, identity, archs))
    assert error.mape == pytest.approx(0.0, abs=1e-9)


def test_the_error_of_sums_has_its_known_bias(space: SearchSpace, identity: DeviceIdentity, archs: list[Arch]) -> None:
    table = blocks_on(additive_ms, space, identity)
    slower = nets_on(lambda graph: 1.25 * additive_ms(graph), space, identity, archs)
    error = compare_with_nets(table, space, slower)
    assert (error.mape, error.bias) == (pytest.approx(0.2), pytest.approx(-0.2))
    assert str(error) == (
        "sums of blocks against 30 networks measured whole: mean absolute error 20.00%, bias -20.00%, Spearman 1.0000"
    )


def test_intervals_of_a_block_add_as_squares_and_shared_terms_cancel(
    space: SearchSpace, identity: DeviceIdentity
) -> None:
    costs = block_costs(blocks_on(additive_ms, space, identity), space)
    residual = next(cost for key, cost in costs.items() if key.slot == "stage2.block2")
    strided = next(cost for key, cost in costs.items() if key.slot == "stage2.block1")
    # Same shape in and out: net less one carrier. Else: net, two and one carriers before, two and twice one after.
    assert residual.half_width_ms == pytest.approx(0.01 * 2**0.5)
    assert strided.half_width_ms == pytest.approx(0.01 * (1 + 1 + 1 + 4 + 1) ** 0.5)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_table_that_is_not_complete_says_what_it_lacks(space: SearchSpace, identity: DeviceIdentity) -> None:
    table = blocks_on(additive_ms, space, identity)
    half = dataclasses.replace(table, frame=table.frame.iloc[:5])
    with pytest.raises(TableError, match=r"is not complete: .* was not measured; `hanax collect blocks` goes on"):
        block_costs(half, space)


def test_tables_of_other_spaces_and_devices_are_refused(
    space: SearchSpace, identity: DeviceIdentity, archs: list[Arch]
) -> None:
    table = blocks_on(additive_ms, space, identity)
    with pytest.raises(SpaceMismatchError, match="the block table of space mobilenet_v3"):
        block_costs(table, mobilenet_v3())
    other = dataclasses.replace(identity, cores=64)
    with pytest.raises(DeviceMismatchError, match=r"the block table was m[a-z]+ on .* the networks on .* 64 core"):
        compare_with_nets(table, space, nets_on(additive_ms, space, other, archs))


def test_a_block_table_comes_back_from_parquet_and_is_no_latency_table(
    space: SearchSpace, identity: DeviceIdentity, tmp_path: Path
) -> None:
    table = blocks_on(additive_ms, space, identity)
    table.write(tmp_path / "blocks.parquet")
    back = DeviceTable.read(BLOCKS, tmp_path / "blocks.parquet")
    assert block_costs(back, space) == block_costs(table, space)
    assert back.for_device(identity) is back
    with pytest.raises(TableError, match=r"not a latency table: its metadata says format 'hanax.block_table/1'"):
        LatencyTable.read(tmp_path / "blocks.parquet")


def test_rows_that_cannot_be_true_are_refused(space: SearchSpace, identity: DeviceIdentity) -> None:
    table = DeviceTable.empty(BLOCKS, space, identity)
    key = ("block", "stem", "", "1x8x8")
    with pytest.raises(TableError, match=r"latency_ms must be a positive finite number; it is 0.0"):
        table.append([block_row(key, 0.0)])
    with pytest.raises(TableError, match=r"block table with two rows for .*stem"):
        table.append([block_row(key, 1.0), block_row(key, 1.0)])
    with pytest.raises(TableError, match=r"block table with unknown column\(s\) colour"):
        table.append([block_row(key, 1.0) | {"colour": "red"}])


def test_blocks_are_measured_by_onnxruntime_once_each_also_after_a_stop(tmp_path: Path) -> None:
    space = mobilenet_v3(
        resolutions=(16,), n_classes=4, image_channels=1, kernel_sizes=(3,), expand_ratios=(3,), depths=(1, 2),
        stem_width=8, stem_stride=1, stage_widths=(8,), stage_strides=(2,), stage_activations=("hswish",),
        stage_squeeze_excite=(True,), head_width=16, feature_width=16,
    )  # fmt: skip
    ledger, path = Ledger(tmp_path / "ledger.jsonl"), tmp_path / "blocks.parquet"
    brief = Method(warmup_runs=1, min_rounds=6, max_rounds=6, inner_ms=0.5)
    n_built = 0

    def build(graph: Graph) -> bytes:
        nonlocal n_built
        n_built += 1
        if n_built == 7:
            raise KeyboardInterrupt
        return to_onnx(graph, random_weights(graph, np.random.default_rng(0)))

    with locked(path), pytest.raises(InUseError, match=r"blocks\.parquet is in use by process \d+"):
        collect_blocks(space, SPEC, build, path, ledger, method=brief, batch_size=3)
    assert n_built == 0 and not ledger.entries()
    with pytest.raises(KeyboardInterrupt):
        collect_blocks(space, SPEC, build, path, ledger, method=brief, batch_size=3)
    assert len(DeviceTable.read(BLOCKS, path).frame) == 6
    progress: list[tuple[int, int]] = []
    table = collect_blocks(
        space, SPEC, build, path, ledger, method=brief, batch_size=5, on_progress=lambda *at: progress.append(at)
    )
    assert table.keys() == list(block_nets(space))
    assert (progress[0], progress[-1]) == ((6, len(table.frame)), (len(table.frame), len(table.frame)))
    asked = [entry["arch"] for entry in ledger.entries()]
    assert len(asked) == len(set(asked)) == len(table.frame)
    assert ledger.counts() == {SPEC.name: {"block": len(table.frame)}}
    assert overhead_ms(table) > 0
    assert (sum_of_blocks(table, space, [space.largest, space.smallest]) > overhead_ms(table)).all()
