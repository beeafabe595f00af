"""The analytic systolic array: known answers by hand, and what must hold for any layer."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanax.devices import SystolicArray
from hanax.search_spaces import INPUT, Operator

ARRAY = SystolicArray("test", 8, 4, 6 * 2**20, 1e12, 1e9, "output_stationary")
Flow = Literal["output_stationary", "weight_stationary", "input_stationary"]
DATAFLOWS: tuple[Flow, ...] = ("output_stationary", "weight_stationary", "input_stationary")
in_each_dataflow = pytest.mark.parametrize("dataflow", DATAFLOWS)


def conv(in_channels: int, out_channels: int, side: int, kernel: int = 1, groups: int = 1, stride: int = 1) -> Operator:
    out = -(-side // stride)
    return Operator(
        "conv", "conv", (INPUT,), (in_channels, side, side), (out_channels, out, out), kernel, stride, groups
    )


def using(dataflow: Flow, **changes: object) -> SystolicArray:
    return dataclasses.replace(ARRAY, dataflow=dataflow, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dataflow, folds, steps",
    # 16 pixels, 12 filters, 20 values per filter on 8 rows and 4 columns.
    [("output_stationary", 2 * 3, 20), ("weight_stationary", 3 * 3, 16), ("input_stationary", 3 * 4, 12)],
)
def test_cycles_are_those_of_the_published_equation(dataflow: Flow, folds: int, steps: int) -> None:
    layer = using(dataflow).layer(conv(20, 12, 4))
    assert layer.compute_cycles == folds * (2 * 8 + 4 + steps - 2)
    assert layer.utilization == pytest.approx(16 * 12 * 20 / (layer.compute_cycles * 32))
    assert layer.latency_ms == pytest.approx(layer.compute_cycles / 1e6)


def test_buffer_traffic_is_the_one_counted_by_hand() -> None:
    # Weights stay: 20 x 12 once; 20 x 16 inputs for each of 3 column folds; 12 x 16 outputs, whose partial sums of 4
    # bytes leave and come back between 3 row folds.
    layer = using("weight_stationary").layer(conv(20, 12, 4))
    assert layer.buffer_bytes == 240 + 3 * 320 + 192 * (1 + 2 * 4 * 2)
    assert layer.dram_bytes == 240 + 320 + 192
    outputs_stay = using("output_stationary").layer(conv(20, 12, 4))
    assert outputs_stay.buffer_bytes == 192 + 3 * 320 + 2 * 240


def test_energy_is_the_sum_of_accesses_times_their_prices() -> None:
    layer, price = using("weight_stationary").layer(conv(20, 12, 4)), ARRAY.technology
    buffer_pj = price.buffer_pj_per_byte * (ARRAY.buffer_bytes / 2**15) ** 0.5
    per_mac = price.mac_pj + 2 * price.hop_pj + price.register_pj
    expected_pj = 3840 * per_mac + layer.buffer_bytes * buffer_pj + layer.dram_bytes * price.dram_pj_per_byte
    assert layer.energy_mj == pytest.approx(expected_pj / 1e9)


def test_a_small_buffer_makes_operands_come_again() -> None:
    op = conv(64, 64, 32)
    compulsory = 64 * 32 * 32 + 64 * 64 + 64 * 32 * 32
    for dataflow in DATAFLOWS:
        traffic = [using(dataflow, buffer_bytes=2**size).layer(op).dram_bytes for size in range(8, 24)]
        assert traffic == sorted(traffic, reverse=True)
        assert traffic[-1] == compulsory < traffic[0]


@given(
    in_channels=st.integers(1, 70),
    out_channels=st.integers(1, 70),
    side=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 5]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    size=st.integers(6, 20),
    dataflow=st.sampled_from(DATAFLOWS),
)
def test_no_layer_beats_the_array_the_memory_or_arithmetic(
    in_channels: int, out_channels: int, side: int, kernel: int, rows: int, columns: int, size: int, dataflow: Flow
) -> None:
    array = using(dataflow, rows=rows, columns=columns, buffer_bytes=2**size, bandwidth_bytes_per_s=1e9)
    op = conv(in_channels, out_channels, side, kernel)
    layer = array.layer(op)
    assert layer.macs == op.macs
    assert 0 < layer.utilization <= 1
    assert layer.latency_ms >= 1e3 * op.macs / (rows * columns * array.clock_hz) * (1 - 1e-9)
    compulsory = in_channels * side**2 + op.params + out_channels * side**2
    assert layer.dram_bytes >= compulsory
    assert layer.latency_ms >= 1e3 * layer.dram_bytes / array.bandwidth_bytes_per_s * (1 - 1e-9)


@in_each_dataflow
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    pixels=st.integers(1, 3),
    n=st.integers(1, 3),
    k=st.integers(1, 3),
)
def test_more_elements_are_never_slower_where_they_can_all_be_used(
    dataflow: Flow, rows: int, columns: int, pixels: int, n: int, k: int
) -> None:
    # Every extent is a multiple of the largest array.
    op = conv(64 * k, 64 * n, 8 * pixels)
    small = using(dataflow, rows=2**rows, columns=2**columns).layer(op)
    for change in ({"rows": 2 ** (rows + 1)}, {"columns": 2 ** (columns + 1)}):
        large = using(dataflow, **{"rows": 2**rows, "columns": 2**columns} | change).layer(op)
        assert large.compute_cycles <= small.compute_cycles


@in_each_dataflow
def test_depthwise_convolutions_leave_the_array_idle(dataflow: Flow) -> None:
    array = using(dataflow, rows=16, columns=16)
    dense, depthwise = array.layer(conv(96, 96, 28, 3)), array.layer(conv(96, 96, 28, 3, groups=96))
    assert depthwise.macs * 96 == dense.macs
    assert depthwise.utilization < 1 / 16
    assert depthwise.utilization < 0.2 * dense.utilization


def test_a_slow_memory_decides_and_a_fast_one_does_not() -> None:
    op = conv(64, 64, 16)
    slow, fast = (using("output_stationary", bandwidth_bytes_per_s=rate).layer(op) for rate in (1e6, 1e15))
    assert slow.latency_ms == pytest.approx(1e3 * slow.dram_bytes / 1e6)
    assert fast.latency_ms == pytest.approx(1e3 * fast.compute_cycles / 1e9)
    assert slow.energy_mj == fast.energy_mj


def test_operators_without_a_kernel_take_their_transfers() -> None:
    add = Operator("add", "add", ("a", "b"), (8, 4, 4), (8, 4, 4))
    layer = using("output_stationary", bandwidth_bytes_per_s=1e6).layer(add)
    assert (layer.macs, layer.compute_cycles, layer.utilization) == (0, 0, 0.0)
    assert layer.dram_bytes == 3 * 128
    assert layer.latency_ms == pytest.approx(0.384)


def test_area_grows_with_elements_and_buffer() -> None:
    price = ARRAY.technology
    without = dataclasses.replace(ARRAY, buffer_bytes=1)
    assert without.area_mm2 == pytest.approx(
        (32 * (price.mac_um2 + 48 * price.register_um2_per_bit) + price.buffer_um2_per_byte) / 1e6
    )
    assert ARRAY.area_mm2 - without.area_mm2 == pytest.approx((6 * 2**20 - 1) * price.buffer_um2_per_byte / 1e6)
    assert dataclasses.replace(ARRAY, rows=16).area_mm2 > ARRAY.area_mm2


@pytest.mark.parametrize("field", ["rows", "columns", "buffer_bytes", "bandwidth_bytes_per_s", "clock_hz"])
def test_a_parameter_that_cannot_be_true_is_refused(field: str) -> None:
    zero = 0 * getattr(ARRAY, field)
    with pytest.raises(ValueError, match=f"test: {field} must be positive; it is 0"):
        dataclasses.replace(ARRAY, **{field: zero})
