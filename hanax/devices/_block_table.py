"""Block look-up tables: what each block of a space costs by itself, and the latency of a network as their sum.

A block is measured inside the smallest network that has it:

    image -> [carrier] -> block -> pool -> dense

The carrier is a 1x1 convolution that keeps the shape; it stands for the network before the block, so that the block
finds its input as it would there: just computed, in the runtime's own layout. Without it each block would pay for
bringing an image into that layout, which a network pays once. Pool and a dense layer of one output end the network, as
every format of models wants. What these cost is found by differences, not by repeating the block, since a block with a
stride or another number of channels cannot follow itself. With T for measured latencies and s for a shape:

    o          = T(dense of one value)            what a run costs before any work
    carrier(s) = T(two carriers) - T(one carrier)
    tail(s)    = T(one carrier) - carrier(s) - o
    block      = T(net) - carrier(in) - tail(out) - o
    network    = o + sum of its blocks

The first block of a space takes the image itself and has no carrier; one that ends with a dense layer has no tail. What
every small network pays for its own input (a copy, the change of layout) is in ``tail`` as well, so that it cancels
from block to block and a sum holds it once, for the image. All of it is linear in T, so intervals follow from those of
T, taken as independent: half-widths add as squares.

The sum knows nothing of what a runtime fuses or caches across blocks; `compare_with_nets` measures what that means.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hanax.devices._device_table import DeviceTable, Net, Progress, TableKind, collect_rows
from hanax.devices._ledger import Ledger
from hanax.devices._load_guard import LoadWatch
from hanax.devices._local_agent import Agent, LocalAgent
from hanax.devices._measure import DEFAULT_METHOD, Method, measure
from hanax.devices._specs import DeviceSpec
from hanax.devices._stored_table import DeviceMismatchError, TableError
from hanax.devices._table import COLUMNS as LATENCY_COLUMNS
from hanax.devices._table import POSITIVE, LatencyTable
from hanax.search_spaces import INPUT, RESOLUTION, Arch, Choice, Graph, Operator, PlacedBlock, SearchSpace, Shape

_KEY = ("net", "slot", "choice", "input_shape")
_MEASURED = {name: kind for name, kind in LATENCY_COLUMNS.items() if name not in ("arch", "purpose", "pass_latency_ms")}

BLOCKS = TableKind("block table", "hanax.block_table/1", dict.fromkeys(_KEY, "str") | _MEASURED, _KEY, tuple(POSITIVE))
"""A row per network measured: ``net`` is ``empty``, ``carrier``, ``two carriers`` or ``block``; the other parts of the
key are those of its block (the first slot that holds the same one) and the shape of the input. The other columns are
those of a `Measurement`, of the whole small network."""

EMPTY = ("empty", "", "", "1x1x1")

Terms = dict[tuple[str, ...], float]
"""A linear combination of measured latencies, by key."""


@dataclass(frozen=True, slots=True)
class BlockKey:
    """A block as it is met in a network.

    Attributes:
        slot: The first slot of the space that holds the same block.
        choice: The values of its elastic parameters.
        input_shape: Of its input.
    """

    slot: str
    choice: Choice
    input_shape: Shape

    @property
    def row(self) -> tuple[str, ...]:
        """Its key in the table."""
        return ("block", self.slot, ".".join(map(str, self.choice)), _text(self.input_shape))


@dataclass(frozen=True, slots=True)
class BlockCost:
    """The latency of one block, and half the width of its 95 % interval; can be below 0 where noise is larger."""

    block_ms: float
    half_width_ms: float


@dataclass(frozen=True, slots=True)
class SumError:
    """How far sums of blocks are from networks measured whole.

    Attributes:
        n: Networks compared.
        mape: Mean of the absolute relative errors of the sums.
        bias: Mean of the relative errors: above 0 where sums are too large.
        spearman: Rank correlation; NaN where either is constant.
    """

    n: int
    mape: float
    bias: float
    spearman: float

    def __str__(self) -> str:
        return (
            f"sums of blocks against {self.n} networks measured whole: mean absolute error {self.mape:.2%}, bias "
            f"{self.bias:+.2%}, Spearman {self.spearman:.4f}"
        )


def unique_blocks(space: SearchSpace) -> list[BlockKey]:
    """Every different block that a network of `space` can hold, at every resolution, in order of first appearance.

    Equal blocks in different slots are one.
    """
    found: dict[BlockKey, None] = {}
    resolutions = space.decisions[space.column(RESOLUTION)].options
    shapes: dict[Shape, None] = dict.fromkeys((space.image_channels, side, side) for side in resolutions)
    options = {decision.name: decision.options for decision in space.decisions}
    for slot in space.slots:
        choices = list(itertools.product(*((s,) if isinstance(s, int) else options[s] for s in slot.settings)))
        after: dict[Shape, None] = {} if slot.when is None else dict(shapes)  # it may be absent
        for shape, choice in itertools.product(shapes, choices):
            found[_key(space, PlacedBlock(slot, choice), shape)] = None
            after[slot.block.lower(slot.name, choice, INPUT, shape)[-1].out_shape] = None
        shapes = after
    return list(found)


def blocks_of(space: SearchSpace, arch: Arch) -> list[BlockKey]:
    """The blocks of `arch`, in order."""
    keys, shape = [], space.input_shape(arch)
    for placed in space.blocks(arch):
        keys.append(_key(space, placed, shape))
        shape = placed.slot.block.lower(placed.slot.name, placed.choice, INPUT, shape)[-1].out_shape
    return keys


def block_nets(space: SearchSpace) -> dict[tuple[str, ...], Graph]:
    """All networks that a block table of `space` is made of, by key."""
    nets: dict[tuple[str, ...], Graph] = {EMPTY: Graph((1, 1, 1), (_dense(INPUT, (1, 1, 1)),))}
    for key in unique_blocks(space):
        operators: list[Operator] = []
        if _has_carrier(space, key):
            operators.append(_carrier("carrier", INPUT, key.input_shape))
        source = operators[-1].name if operators else INPUT
        operators += _lower(space, key, source)
        out = operators[-1].out_shape
        for shape in ([key.input_shape] if _has_carrier(space, key) else []) + ([out] if _has_tail(operators) else []):
            first, second = _carrier("carrier", INPUT, shape), _carrier("carrier2", "carrier", shape)
            nets[_carriers(1, shape)] = Graph(shape, (first, *_tail("carrier", shape)))
            nets[_carriers(2, shape)] = Graph(shape, (first, second, *_tail("carrier2", shape)))
        if _has_tail(operators):
            operators += _tail(operators[-1].name, out)
        nets[key.row] = Graph(key.input_shape, tuple(operators))
    return nets


def collect_blocks(
    space: SearchSpace,
    device: DeviceSpec,
    build_model: Callable[[Graph], bytes],
    table_path: str | Path,
    ledger: Ledger,
    *,
    method: Method = DEFAULT_METHOD,
    batch_size: int = 24,
    start_agent: Callable[[DeviceSpec], Agent] = LocalAgent,
    on_progress: Progress | None = None,
    watch: LoadWatch | None = None,
) -> DeviceTable:
    """The block table at `table_path`, measuring what it lacks; resumable like `collect_latency`.

    Args:
        build_model: The model file of a network, in ``device.model_format``, for ``device.batch`` images.

    Raises:
        As of `hanax.devices.collect_latency`.
    """

    def measure_batch(
        agent: Agent,
        models: Mapping[str, bytes],
        shapes: Mapping[str, Sequence[int]],
        progress: Progress | None,
    ) -> Mapping[str, Mapping[str, object]]:
        found = measure(agent, models, shapes, method, progress, watch)
        return {name: asdict(measurement) for name, measurement in found.items()}

    def net(key: tuple[str, ...], graph: Graph) -> Net:
        return Net(key, graph.input_shape, lambda: build_model(graph))

    nets = [net(key, graph) for key, graph in block_nets(space).items()]
    return collect_rows(
        BLOCKS, space, nets, device, measure_batch, table_path, ledger, "block",
        batch_size=batch_size, start_agent=start_agent, on_progress=on_progress,
    )  # fmt: skip


def overhead_ms(table: DeviceTable) -> float:
    """What a run costs before any work.

    Raises:
        TableError: It was not measured yet.
    """
    return _evaluate(_measured(table), {EMPTY: 1.0}).block_ms


def block_costs(table: DeviceTable, space: SearchSpace) -> dict[BlockKey, BlockCost]:
    """The latency of every block by itself.

    Raises:
        SpaceMismatchError: The table belongs to another space.
        TableError: It is not complete.
    """
    measured = _measured(table.for_space(space))
    return {key: _evaluate(measured, _terms(space, key)) for key in unique_blocks(space)}


def sum_of_blocks(table: DeviceTable, space: SearchSpace, archs: Sequence[Arch]) -> Float[np.ndarray, " n"]:
    """Latencies of `archs` in ms, as the sum of their blocks and the overhead of a run.

    Raises:
        SpaceMismatchError: The table belongs to another space.
        TableError: It is not complete.
    """
    costs, overhead = block_costs(table, space), overhead_ms(table)
    sums = [overhead + sum(costs[key].block_ms for key in blocks_of(space, arch)) for arch in archs]
    return np.array(sums, dtype=np.float64)


def compare_with_nets(table: DeviceTable, space: SearchSpace, whole: LatencyTable) -> SumError:
    """The error of the sums against the networks of `whole`.

    Raises:
        SpaceMismatchError, DeviceMismatchError: The tables belong to different spaces or devices.
        TableError: The block table is not complete, or `whole` is empty.
    """
    from scipy.stats import spearmanr

    whole.for_space(space)
    if table.device_fingerprint != whole.device_fingerprint:
        raise DeviceMismatchError(
            f"the block table was measured on {table.device_description} with fingerprint "
            f"{table.device_fingerprint}, the networks on {whole.device_description} with fingerprint "
            f"{whole.device_fingerprint}"
        )
    rows = whole.frame[whole.frame["purpose"] == "table"]
    if rows.empty:
        raise TableError("the table of whole networks has no rows to compare with")
    sums = sum_of_blocks(table, space, [Arch.parse(text) for text in rows["arch"]])
    latency = rows["latency_ms"].to_numpy(dtype=np.float64)
    relative = sums / latency - 1.0
    varies = len(sums) > 1 and np.ptp(sums) > 0 and np.ptp(latency) > 0
    spearman = float(spearmanr(sums, latency).statistic) if varies else math.nan
    return SumError(len(sums), float(np.abs(relative).mean()), float(relative.mean()), spearman)


def _terms(space: SearchSpace, key: BlockKey) -> Terms:
    """``T(net) - carrier(in) - tail(out) - o`` in measured latencies; what cancels is gone."""
    operators = _lower(space, key, INPUT)
    terms: Terms = {key.row: 1.0, EMPTY: -1.0}

    def add(row: tuple[str, ...], factor: float) -> None:
        terms[row] = terms.get(row, 0.0) + factor

    if _has_carrier(space, key):
        add(_carriers(2, key.input_shape), -1.0)
        add(_carriers(1, key.input_shape), 1.0)
    if _has_tail(operators):
        out = operators[-1].out_shape
        add(_carriers(1, out), -2.0)
        add(_carriers(2, out), 1.0)
        add(EMPTY, 1.0)
    return {row: factor for row, factor in terms.items() if factor}


def _measured(table: DeviceTable) -> dict[tuple[str, ...], tuple[float, float]]:
    """Latency and half-width of its interval, in ms, of every network in the table."""
    frame = table.frame
    half_widths = (frame["latency_high_ms"] - frame["latency_low_ms"]) / 2
    return dict(zip(table.keys(), zip(frame["latency_ms"], half_widths, strict=True), strict=True))


def _evaluate(measured: Mapping[tuple[str, ...], tuple[float, float]], terms: Terms) -> BlockCost:
    if missing := [key for key in terms if key not in measured]:
        raise TableError(
            f"the block table is not complete: {' '.join(part for part in missing[0] if part)} was not measured; "
            "`hanax collect blocks` goes on with it"
        )
    return BlockCost(
        block_ms=sum(factor * measured[key][0] for key, factor in terms.items()),
        half_width_ms=math.hypot(*(factor * measured[key][1] for key, factor in terms.items())),
    )


def _key(space: SearchSpace, placed: PlacedBlock, shape: Shape) -> BlockKey:
    """The first slot stands for itself alone: it is the one that reads the image."""
    first, *others = space.slots
    same = placed.slot if placed.slot == first else next(slot for slot in others if slot.block == placed.slot.block)
    return BlockKey(same.name, placed.choice, shape)


def _lower(space: SearchSpace, key: BlockKey, source: str) -> list[Operator]:
    (slot,) = (slot for slot in space.slots if slot.name == key.slot)
    return slot.block.lower(slot.name, key.choice, source, key.input_shape)


def _has_carrier(space: SearchSpace, key: BlockKey) -> bool:
    return key.slot != space.slots[0].name


def _has_tail(operators: Sequence[Operator]) -> bool:
    return operators[-1].kind != "dense"


def _carrier(name: str, source: str, shape: Shape) -> Operator:
    return Operator(name, "conv", (source,), shape, shape, has_norm=True, activation="relu")


def _tail(source: str, shape: Shape) -> list[Operator]:
    pooled = (shape[0], 1, 1)
    return [Operator("tail.pool", "global_pool", (source,), shape, pooled), _dense("tail.pool", pooled)]


def _dense(source: str, shape: Shape) -> Operator:
    return Operator("tail.dense", "dense", (source,), shape, (1, 1, 1), has_bias=True)


def _carriers(n: int, shape: Shape) -> tuple[str, ...]:
    return ("carrier" if n == 1 else "two carriers", "", "", _text(shape))


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
