"""An analytic model of a systolic array: cycles, memory traffic, energy and area of int8 layers.

Timing. A layer is a matrix product of M output pixels, N filters and K values per filter, one per group. It is laid
on an array of R x C processing elements as S_R x S_C of its extents and streams the third one, T:

==================  =======  =======  =======
dataflow            S_R      S_C      T
==================  =======  =======  =======
output_stationary   M        N        K
weight_stationary   K        N        M
input_stationary    K        M        N
==================  =======  =======  =======

A fold (one tile of R x C) takes ``2 R + C + T - 2`` cycles: R to load or to drain what is stationary, R + C - 2 until
the skewed streams reach the last element, T of work; ``ceil(S_R / R) ceil(S_C / C)`` folds follow each other
(Samajdar et al., 2020, doi:10.1109/ISPASS48437.2020.00016). A depthwise convolution is one
such product per channel, with N = 1: most of the array idles. Folds of different groups do not share the array.

Traffic. The tensors come from DRAM and the output goes back there. The buffer has three equal parts for inputs,
weights and outputs, each double, so that transfers hide behind work and the slower of the two decides. An operand moves
once if its part of the buffer holds what is needed again, else once per pass. Folds run row by row or column by column,
and T may be streamed in parts, each with all folds and their loading, so that less has to be kept; the fastest of these
schedules counts. Partial sums that have to leave come back as 4 bytes each.

Energy is that of MACs, registers, hops between elements, buffer and DRAM, each access times its price (the form of
Chen et al., 2016, Eyeriss, doi:10.1109/ISCA.2016.40, and of Timeloop); leakage, clock and control are not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from hanax.devices._cost_models import Setting
from hanax.search_spaces import Operator

Dataflow = Literal["output_stationary", "weight_stationary", "input_stationary"]

VALUE_BYTES = 1
"""Of a weight or an activation."""
SUM_BYTES = 4
"""Of a partial sum."""


@dataclass(frozen=True, slots=True)
class Technology:
    """Prices of one process: picojoules per event, square micrometres per part.

    Attributes:
        mac_pj: An int8 product, added to 32 bits.
        register_pj: Reading or writing a value in a processing element.
        hop_pj: Handing a value to a neighbour.
        buffer_pj_per_byte: Of a buffer of 32 KiB; others cost by the root of their size.
        dram_pj_per_byte: Off-chip memory.
        mac_um2: An 8-bit multiplier and a 32-bit adder.
        register_um2_per_bit: A flip-flop.
        buffer_um2_per_byte: SRAM with its periphery.
        source: Where the figures are from.
    """

    technology: str
    mac_pj: float
    register_pj: float
    hop_pj: float
    buffer_pj_per_byte: float
    dram_pj_per_byte: float
    mac_um2: float
    register_um2_per_bit: float
    buffer_um2_per_byte: float
    source: str


CMOS_45NM = Technology(
    "45nm",
    mac_pj=0.3,
    register_pj=0.3,
    hop_pj=0.6,
    buffer_pj_per_byte=2.5,
    dram_pj_per_byte=160.0,
    mac_um2=282.0 + 137.0,
    register_um2_per_bit=4.522,
    buffer_um2_per_byte=8 * 0.346 * 2,
    source="Energy: Horowitz, 2014, doi:10.1109/ISSCC.2014.6757323 (45 nm, 0.9 V: 8-bit product .2 pJ, 32-bit sum "
    ".1 pJ, 64 bits from 32 KB 20 pJ, from 8 KB 10 pJ, from 1 MB 100 pJ, from DRAM 1.3 nJ at least); registers at 1 "
    "and hops at 2 MACs (Eyeriss, 2016, table IV). Area: Dally, NIPS tutorial 2015 (TSMC 45 nm: 8-bit multiplier "
    "282 um2, 32-bit adder 137 um2); DFF_X1 of the NanGate 45 nm library; an SRAM cell of .346 um2 (Mistry et al., "
    "2007, doi:10.1109/IEDM.2007.4418914), of which we assume that it fills half of a buffer",
)


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one operator costs on an array.

    Attributes:
        compute_cycles: Of all folds; 0 for operators without a kernel.
        dram_bytes: Moved from and to off-chip memory.
        buffer_bytes: Moved from and to the buffer by the array.
        latency_ms: The longer of work and transfer.
        utilization: MACs over those that the array could do in `compute_cycles`.
    """

    macs: int
    compute_cycles: int
    dram_bytes: int
    buffer_bytes: int
    latency_ms: float
    energy_mj: float
    utilization: float


@dataclass(frozen=True, slots=True)
class SystolicArray:
    """An accelerator of `rows` x `columns` int8 processing elements; its module describes the model.

    Operators without a kernel (pool, add, scale) take the time and the energy of their transfers.

    Attributes:
        buffer_bytes: On-chip memory, all of it.
        bandwidth_bytes_per_s: To off-chip memory.
        clock_hz: Each element does one multiply-accumulate a cycle.

    Raises:
        ValueError: A parameter is not positive.
    """

    name: str
    rows: int
    columns: int
    buffer_bytes: int
    bandwidth_bytes_per_s: float
    clock_hz: float
    dataflow: Dataflow
    technology: Technology = CMOS_45NM
    costs: ClassVar[tuple[str, ...]] = ("latency_ms", "energy_mj")
    combine: ClassVar[Literal["sum", "max"]] = "sum"
    reads_names: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "buffer_bytes", "bandwidth_bytes_per_s", "clock_hz"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{self.name}: {name} must be positive; it is {getattr(self, name)}")

    @property
    def description(self) -> str:
        """Its parameters, and the area that follows."""
        return (
            f"{self.rows} x {self.columns} int8 array, {self.dataflow.replace('_', ' ')}, "
            f"{self.buffer_bytes / 1024:g} KiB, {self.bandwidth_bytes_per_s / 1e9:g} GB/s, "
            f"{self.clock_hz / 1e6:g} MHz: {self.area_mm2:.2g} mm2"
        )

    @property
    def source(self) -> str:
        """That of the equations and of the prices."""
        return f"SCALE-Sim's timing (Samajdar et al., 2020); {self.technology.source}"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Its parameters, and the prices."""
        return (
            ("rows", self.rows),
            ("columns", self.columns),
            ("buffer_bytes", self.buffer_bytes),
            ("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s),
            ("clock_hz", self.clock_hz),
            ("dataflow", self.dataflow),
            *((price.name, getattr(self.technology, price.name)) for price in fields(self.technology)[:-1]),
        )

    @property
    def area_mm2(self) -> float:
        """Processing elements (a MAC, registers for two values and a partial sum) and buffer."""
        register_bits = 8 * (2 * VALUE_BYTES + SUM_BYTES)
        element_um2 = self.technology.mac_um2 + register_bits * self.technology.register_um2_per_bit
        buffer_um2 = self.buffer_bytes * self.technology.buffer_um2_per_byte
        return (self.rows * self.columns * element_um2 + buffer_um2) / 1e6

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """Latency in ms and energy in mJ of `operators`, one after the other."""
        layers = [self.layer(op) for op in operators]
        return sum(layer.latency_ms for layer in layers), sum(layer.energy_mj for layer in layers)

    def layer(self, op: Operator) -> LayerCost:
        """The costs of one operator, for one image."""
        if op.is_weighted:
            cycles, buffer_bytes, dram_bytes = self._best_schedule(op)
        else:
            cycles, buffer_bytes, dram_bytes = 0, 0, VALUE_BYTES * op.traffic_values
        price = self.technology
        buffer_pj_per_byte = price.buffer_pj_per_byte * math.sqrt(self.buffer_bytes / 2**15)
        # Per MAC two operands stream in from neighbours and the one that is stationary is in a register.
        energy_pj = (
            op.macs * (price.mac_pj + 2 * price.hop_pj + price.register_pj)
            + buffer_bytes * buffer_pj_per_byte
            + dram_bytes * price.dram_pj_per_byte
        )
        return LayerCost(
            macs=op.macs,
            compute_cycles=cycles,
            dram_bytes=dram_bytes,
            buffer_bytes=buffer_bytes,
            latency_ms=1e3 * self._latency_s(cycles, dram_bytes),
            energy_mj=energy_pj / 1e9,
            utilization=op.macs / (cycles * self.rows * self.columns) if cycles else 0.0,
        )

    def _latency_s(self, cycles: int, dram_bytes: int) -> float:
        return max(cycles / self.clock_hz, dram_bytes / self.bandwidth_bytes_per_s)

    def _best_schedule(self, op: Operator) -> tuple[int, int, int]:
        """Cycles, bytes between buffer and array, and bytes between DRAM and buffer, of the fastest schedule."""
        m, n, k = op.out_shape[1] * op.out_shape[2], op.out_shape[0] // op.groups, math.prod(op.kernel_shape[1:])
        product = _Product(
            self, {"input": math.prod(op.in_shape) // op.groups, "weight": n * k, "output": m * n}, m, n, k
        )
        compulsory = sum(product.values.values()) * VALUE_BYTES
        found = []
        for split in range(product.steps.bit_length()):
            found += [product.schedule(2**split, rows_first) for rows_first in (True, False)]
            if min(dram_bytes for _, _, dram_bytes in found) == compulsory:
                break
        best = min(found, key=lambda costs: (self._latency_s(costs[0], costs[2]), costs[2], costs[1]))
        return op.groups * best[0], op.groups * best[1], op.groups * best[2]


class _Product:
    """The matrix product of one group on an array: what is laid where.

    Attributes:
        values: Of each tensor in DRAM.
        held: The operand that stays in the array.
        along_rows: The one that streams along the rows, and is needed again for each column of folds.
        along_columns: The one that streams along the columns, and is needed again for each row of folds.
    """

    def __init__(self, array: SystolicArray, values: dict[str, int], m: int, n: int, k: int) -> None:
        self.array, self.values = array, values
        self.s_r, self.s_c, self.steps, self.held, self.along_rows, self.along_columns = {
            "output_stationary": (m, n, k, "output", "input", "weight"),
            "weight_stationary": (k, n, m, "weight", "input", "output"),
            "input_stationary": (k, m, n, "input", "weight", "output"),
        }[array.dataflow]
        self.row_folds, self.column_folds = -(-self.s_r // array.rows), -(-self.s_c // array.columns)

    def schedule(self, parts: int, rows_first: bool) -> tuple[int, int, int]:
        """Cycles, buffer bytes and DRAM bytes, streaming in so many `parts`.

        Args:
            rows_first: All folds of a row follow each other, so what streams along the rows has to stay for one row of
                folds only; else so has what streams along the columns, for one column of folds.
        """
        array, values = self.array, self.values
        fold_cycles = 2 * array.rows + array.columns + -(-self.steps // parts) - 2
        buffer_bytes = (
            _moved_bytes(self.held, self.s_r * self.s_c, parts)
            + _moved_bytes(self.along_rows, self.s_r * self.steps, self.column_folds)
            + _moved_bytes(self.along_columns, self.s_c * self.steps, self.row_folds)
        )
        passes = {self.held: parts, self.along_rows: self.column_folds, self.along_columns: self.row_folds}
        share = {
            self.held: 1,
            self.along_rows: parts * (self.row_folds if rows_first else 1),
            self.along_columns: parts * (1 if rows_first else self.column_folds),
        }
        dram_bytes = sum(
            _moved_bytes(operand, values[operand], 1 if self._fits(operand, share[operand]) else passes[operand])
            for operand in values
        )
        return fold_cycles * parts * self.row_folds * self.column_folds, buffer_bytes, dram_bytes

    def _fits(self, operand: str, share: int) -> bool:
        """Whether half of the operand's third of the buffer holds 1 / `share` of it; outputs stay as partial sums."""
        size = SUM_BYTES if operand == "output" else VALUE_BYTES
        return self.values[operand] / share * size <= self.array.buffer_bytes / 6


def _moved_bytes(operand: str, values: int, passes: int) -> int:
    """Bytes moved in all: an input or weight comes once per pass; an output's partial sums go out and come back."""
    if operand == "output":
        return values * (VALUE_BYTES + 2 * SUM_BYTES * (passes - 1))
    return values * VALUE_BYTES * passes


SYSTOLIC_ARRAYS = (
    SystolicArray("systolic-16x16-ws", 16, 16, 2**17, 3.2e9, 500e6, "weight_stationary"),
    SystolicArray("systolic-16x16-os", 16, 16, 2**17, 3.2e9, 500e6, "output_stationary"),
    SystolicArray("systolic-16x16-is", 16, 16, 2**17, 3.2e9, 500e6, "input_stationary"),
    SystolicArray("systolic-64x64-ws", 64, 64, 2**20, 12.8e9, 700e6, "weight_stationary"),
)
"""Examples of a small and a large one; they are no products."""
