"""Which decision feeds which, against graphs worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hanax.search_spaces import (
    INPUT,
    OUTPUT,
    RESOLUTION,
    CellBlock,
    Condition,
    ConvBlock,
    Decision,
    MBConv,
    NasBench201Cell,
    SearchSpace,
    Slot,
    decision_graph,
    fbnet,
    mobilenet_v3,
    nas_bench_201,
)

SIDE = Decision(RESOLUTION, (8, 16))
STEM = Slot("stem", ConvBlock(3, 8, 3, 1, "relu"))


def edges_of(space: SearchSpace) -> set[tuple[str, str]]:
    """The entries of the graph by name, without those of the resolution."""
    names = [INPUT, *(decision.name for decision in space.decisions), OUTPUT]
    found = {(names[start], names[end]) for start, end in np.argwhere(decision_graph(space))}
    return {pair for pair in found if RESOLUTION not in pair}


def mbconv(kernel_sizes: tuple[int, ...], expand_ratios: tuple[int, ...]) -> MBConv:
    return MBConv(8, 8, 1, kernel_sizes, expand_ratios, "relu", False)


def space_of(decisions: list[Decision], slots: list[Slot]) -> SearchSpace:
    return SearchSpace("made here", 3, 2, (SIDE, *decisions), (STEM, *slots))


CELL_EDGES = {
    *((INPUT, f"edge0{end}") for end in (1, 2, 3)),
    ("edge01", "edge12"), ("edge01", "edge13"), ("edge02", "edge23"), ("edge12", "edge23"),
    *((f"edge{start}3", OUTPUT) for start in (0, 1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("cells_per_stage", [1, 5])
def test_equal_cells_make_the_graph_of_one(cells_per_stage: int) -> None:
    assert edges_of(nas_bench_201(cells_per_stage=cells_per_stage)) == CELL_EDGES


def test_layers_in_a_row_make_a_chain() -> None:
    names = [INPUT, *(f"layer{number}" for number in range(1, 23)), OUTPUT]
    assert edges_of(fbnet()) == set(itertools.pairwise(names))


def test_the_resolution_feeds_what_the_input_feeds() -> None:
    for space in (nas_bench_201(), fbnet(), mobilenet_v3(), mobilenet_v3(depths=(2,))):
        graph = decision_graph(space)
        column = 1 + space.column(RESOLUTION)
        expected = graph[0].copy()
        expected[column] = False
        assert graph.shape == (len(space.decisions) + 2,) * 2
        assert graph[0, column] and expected.any()
        assert np.array_equal(graph[column], expected)


def test_decisions_of_a_block_stand_in_parallel_and_a_block_that_may_be_absent_lets_through() -> None:
    two = Condition("depth", (2,))
    space = space_of(
        [
            Decision("depth", (1, 2)),
            Decision("first.kernel", (3, 5)),
            Decision("first.expand", (2, 3)),
            Decision("second.kernel", (3, 5), two),
            Decision("third.kernel", (3, 5)),
        ],
        [
            Slot("first", mbconv((3, 5), (2, 3)), ("first.kernel", "first.expand")),
            Slot("second", mbconv((3, 5), (2,)), ("second.kernel", 2), two),
            Slot("third", mbconv((3, 5), (2,)), ("third.kernel", 2)),
        ],
    )
    first, second = ("first.kernel", "first.expand"), ("second.kernel", "depth")
    assert edges_of(space) == {
        *((INPUT, name) for name in first),
        *((before, after) for before in first for after in second),
        *((before, "third.kernel") for before in (*first, *second)),
        ("third.kernel", OUTPUT),
    }


def test_slots_without_decisions_pass_on_and_decisions_without_a_slot_stand_alone() -> None:
    space = space_of(
        [Decision("kernel", (3, 5)), Decision("idle", (1, 2))],
        [
            Slot("fixed", mbconv((3,), (2,)), (3, 2)),
            Slot("elastic", mbconv((3, 5), (2,)), ("kernel", 2)),
            Slot("fixed again", mbconv((3,), (2,)), (3, 2)),
        ],
    )
    assert edges_of(space) == {(INPUT, "kernel"), ("kernel", OUTPUT)}
    assert edges_of(space_of([], [])) == {(INPUT, OUTPUT)}


def test_a_repeated_decision_feeds_later_ones_and_not_earlier_ones() -> None:
    space = space_of(
        [Decision(name, (3, 5)) for name in ("one", "two", "three")],
        [
            Slot(f"slot{place}", mbconv((3, 5), (2,)), (name, 2))
            for place, name in enumerate(("one", "two", "one", "three"))
        ],
    )
    assert edges_of(space) == {(INPUT, "one"), ("one", "two"), ("one", "three"), ("three", OUTPUT)}


def test_a_fixed_edge_of_a_cell_passes_on_what_it_reads() -> None:
    names = tuple(NasBench201Cell(8).elastic)
    free = ("edge02", "edge12", "edge13", "edge23")
    operators = tuple(range(5))
    settings: tuple[str | int, ...] = tuple(name if name in free else 1 for name in names)
    space = space_of([Decision(name, operators) for name in free], [Slot("cell", NasBench201Cell(8), settings)])
    # edge01 and edge03 are skips: the nodes 1 and 3 hold the input.
    assert edges_of(space) == {
        *((INPUT, name) for name in ("edge02", "edge12", "edge13")),
        ("edge02", "edge23"), ("edge12", "edge23"),
        ("edge13", OUTPUT), ("edge23", OUTPUT), (INPUT, OUTPUT),
    }  # fmt: skip


def test_only_blocks_with_a_flow_are_cells() -> None:
    assert isinstance(NasBench201Cell(8), CellBlock)
    assert not isinstance(mbconv((3,), (2,)), CellBlock)


@pytest.mark.parametrize("space", [nas_bench_201(), fbnet(), mobilenet_v3()], ids=lambda space: space.name)
def test_there_is_no_way_back_and_every_decision_lies_between_input_and_output(space: SearchSpace) -> None:
    graph = decision_graph(space)
    reach = np.eye(len(graph), dtype=bool) | graph
    for _ in range(int(np.ceil(np.log2(len(graph))))):
        reach = reach @ reach
    assert not (reach & reach.T & ~np.eye(len(graph), dtype=bool)).any()
    assert reach[0].all() and reach[:, -1].all()
