"""The cell space of NAS-Bench-201 (Dong & Yang, 2020, arXiv:2001.00326), any image size and number of classes.

Shapes: `n` cells, 6 edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int32

from hanax.search_spaces._blocks import OUTPUT, Choice, Classifier, ConvBlock, conv
from hanax.search_spaces._graph import INPUT, Operator, Shape
from hanax.search_spaces._renumber import renumber
from hanax.search_spaces._space import RESOLUTION, Decision, SearchSpace, Slot

NAS_BENCH_201_OPERATORS = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
"""What an edge can carry, in order of work; an edge's option is an index into this."""

OFFICIAL_OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The same in the order of the published files."""

NONE, SKIP, POOL, CONV_1X1, CONV_3X3 = range(len(NAS_BENCH_201_OPERATORS))

N_NODES = 4
EDGES = tuple((start, end) for end in range(1, N_NODES) for start in range(end))
"""From node, to node, in the order of the published cell strings; node 0 is a cell's input, the last its output."""

EDGE_NAMES = tuple(f"edge{start}{end}" for start, end in EDGES)


@dataclass(frozen=True, slots=True)
class NasBench201Cell:
    """Four nodes, each the sum of what the edges from all earlier nodes carry; the shape stays.

    A convolution is ReLU, convolution, batch norm. Every edge is lowered, whether the output depends on it or not: that
    is what the published MACs count. ``none`` adds nothing; a node that nothing else leads to is ``zeros``.
    """

    channels: int

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(EDGE_NAMES, tuple(range(len(NAS_BENCH_201_OPERATORS))))

    @property
    def flow(self) -> tuple[tuple[str, str], ...]:
        """An edge is read by those that start at the node where it ends."""
        edges = list(zip(EDGE_NAMES, EDGES, strict=True))
        reads = [(INPUT, name) for name, (start, _) in edges if start == 0]
        reads += [(name, reader) for name, (_, end) in edges for reader, (start, _) in edges if start == end]
        return (*reads, *((name, OUTPUT) for name, (_, end) in edges if end == N_NODES - 1))

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        ops: list[Operator] = []
        nodes = [source]
        options = dict(zip(EDGES, choice, strict=True))
        for end in range(1, N_NODES):
            total: str | None = None
            for start in range(end):
                if options[start, end] == NONE:
                    continue
                ops += _edge(f"{name}.edge{start}{end}", options[start, end], nodes[start], shape)
                carried = nodes[start] if options[start, end] == SKIP else ops[-1].name
                if total is not None:
                    ops.append(_sum(f"{name}.node{end}.add{start}", total, carried, shape))
                    carried = ops[-1].name
                total = carried
            if total is None:
                total = f"{name}.node{end}.zeros"
                ops.append(Operator(total, "zeros", (), shape, shape))
            nodes.append(total)
        if not ops or ops[-1].name != nodes[-1]:
            ops.append(Operator(f"{name}.output", "identity", (nodes[-1],), shape, shape))
        return ops


@lru_cache(maxsize=2**14)
def _edge(name: str, option: int, source: str, shape: Shape) -> tuple[Operator, ...]:
    """The operators of an edge that is not ``none``; a skip has none. Few differ over all cells, so they are kept."""
    if option == SKIP:
        return ()
    if option == POOL:
        return (Operator(name, "avg_pool", (source,), shape, shape, kernel_size=3),)
    relu = Operator(f"{name}.relu", "identity", (source,), shape, shape, activation="relu")
    return relu, conv(f"{name}.conv", relu.name, shape, shape[0], kernel_size=1 if option == CONV_1X1 else 3)


@lru_cache(maxsize=2**14)
def _sum(name: str, first: str, second: str, shape: Shape) -> Operator:
    return Operator(name, "add", (first, second), shape, shape)


@dataclass(frozen=True, slots=True)
class ResidualReduction:
    """Halves the map: two pre-activated 3x3 convolutions, beside the mean of 2x2 and a 1x1 convolution without norm."""

    in_channels: int
    out_channels: int

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return {}

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        relu = Operator(f"{name}.relu", "identity", (source,), shape, shape, activation="relu")
        first = conv(f"{name}.conv1", relu.name, shape, self.out_channels, kernel_size=3, stride=2, activation="relu")
        halved = first.out_shape
        second = conv(f"{name}.conv2", first.name, halved, self.out_channels, kernel_size=3)
        pooled = (self.in_channels, *halved[1:])
        pool = Operator(f"{name}.pool", "avg_pool", (source,), shape, pooled, kernel_size=2, stride=2)
        shortcut = conv(f"{name}.shortcut", pool.name, pooled, self.out_channels, has_norm=False)
        add = Operator(f"{name}.add", "add", (second.name, shortcut.name), halved, halved)
        return [relu, first, second, pool, shortcut, add]


def nas_bench_201(
    *,
    resolutions: Sequence[int] = (32,),
    n_classes: int = 10,
    image_channels: int = 3,
    stage_widths: Sequence[int] = (16, 32, 64),
    cells_per_stage: int = 5,
) -> SearchSpace:
    """NAS-Bench-201; the defaults are the published networks for CIFAR-10, 15,625 of them.

    A 3x3 stem, then stages of equal cells with a residual block between them that halves the map, then batch norm,
    ReLU, mean and classifier. Six decisions, ``edge01`` to ``edge23``, shape all the cells at once; their options are
    indices into `NAS_BENCH_201_OPERATORS`. Cells whose output does not depend on their input are networks of the space
    like others (there are 341 of them): the smallest one is such.

    Args:
        resolutions: Input heights and widths in pixels that the space offers.

    Raises:
        ValueError: There are no stages or no cells in them.
    """
    if not stage_widths or cells_per_stage < 1:
        raise ValueError(
            f"nas_bench_201 needs stages with cells; got stage_widths {tuple(stage_widths)}, "
            f"cells_per_stage {cells_per_stage}"
        )
    operators = tuple(range(len(NAS_BENCH_201_OPERATORS)))
    decisions = [Decision(RESOLUTION, tuple(sorted(resolutions)))]
    decisions += [Decision(name, operators) for name in EDGE_NAMES]
    channels = stage_widths[0]
    slots = [Slot("stem", ConvBlock(image_channels, channels, 3, 1, "none"))]
    for stage, width in enumerate(stage_widths, start=1):
        if stage > 1:
            slots.append(Slot(f"stage{stage}.reduction", ResidualReduction(channels, width)))
        channels = width
        slots += [
            Slot(f"stage{stage}.cell{number}", NasBench201Cell(width), EDGE_NAMES)
            for number in range(1, cells_per_stage + 1)
        ]
    slots.append(Slot("head", Classifier(channels, n_classes, has_norm=True)))
    return SearchSpace("nas_bench_201", image_channels, n_classes, tuple(decisions), tuple(slots))


def nas_bench_201_codes(
    operators: Int[np.ndarray, "n 6"], names: Sequence[str] = OFFICIAL_OPERATORS
) -> Int32[np.ndarray, "n 7"]:
    """Codes, at the first resolution, of the cells with these operators.

    Args:
        operators: Indices into `names`, one for each of the edges 0>1, 0>2, 1>2, 0>3, 1>3, 2>3.
        names: How they are numbered; by default as in the published files.

    Raises:
        ValueError: An index is out of range, or `names` are not those of the space.
    """
    return renumber(operators, names, NAS_BENCH_201_OPERATORS)
