"""NAS-Bench-201: its networks cost what the published files say, and compute what its cells mean."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hanax.devices.public import _nas_bench_201 as published
from hanax.search_spaces import (
    INPUT,
    NAS_BENCH_201_OPERATORS,
    RESOLUTION,
    NasBench201Cell,
    Operator,
    ResidualReduction,
    block_one_hot,
    graph_features,
    live_features,
    live_operators,
    longest_path,
    nas_bench_201,
    nas_bench_201_codes,
)

SPACE = nas_bench_201()
EVERY_CELL = np.array(list(itertools.product(range(5), repeat=6)), dtype=np.int32)
"""In the numbering of the published files."""

SMALL = nas_bench_201(resolutions=(7, 8), stage_widths=(4, 6), cells_per_stage=2, n_classes=3, image_channels=1)
SHAPE = (2, 3, 3)
CELL = NasBench201Cell(2)
NONE, SKIP, POOL, CONV_1X1, CONV_3X3 = range(5)


def lower(**edges: int) -> list[Operator]:
    """The operators of a cell with these edges and no others."""
    return CELL.lower("cell", tuple(edges.get(name, NONE) for name in CELL.elastic), INPUT, SHAPE)


@pytest.fixture(scope="module")
def every_cell() -> dict[str, np.ndarray]:
    """The columns of `graph_features` for every cell, in the order of `EVERY_CELL`."""
    names, features = graph_features(SPACE, nas_bench_201_codes(EVERY_CELL))
    return dict(zip(names, features.T, strict=True))


# ---- costs -----------------------------------------------------------------------------------------------------------


def test_macs_and_params_of_every_cell_are_the_published_ones(every_cell: dict[str, np.ndarray]) -> None:
    macs, params = published.macs_and_params(EVERY_CELL)
    # The published MACs count the bias of the classifier, one for each class.
    assert np.array_equal(every_cell["macs"] + published.N_CLASSES, macs)
    assert np.array_equal(every_cell["params"], params)


def test_macs_and_params_of_every_cell_are_those_of_the_published_file(
    every_cell: dict[str, np.ndarray], shared_data: Callable[[str], Path]
) -> None:
    with np.load(shared_data("latency/nb201.npz")) as file:
        row = file["arch"].astype(np.int64) @ 5 ** np.arange(5, -1, -1)
        assert tuple(file["op_names"]) == published.OPERATORS and len(np.unique(row)) == len(EVERY_CELL)
        assert np.array_equal(every_cell["macs"][row] + published.N_CLASSES, file["flops"])
        assert np.array_equal(every_cell["params"][row], file["params"])


def test_the_largest_network_has_the_published_size() -> None:
    graph = SPACE.graph(SPACE.largest)
    assert graph.params == 1_531_546  # 1.531546 MB in the published files
    assert graph.macs + published.N_CLASSES == 220_119_690  # 220.11969 M


def test_what_is_counted_for_many_networks_is_what_each_graph_has(every_cell: dict[str, np.ndarray]) -> None:
    rows = np.random.default_rng(0).choice(len(EVERY_CELL), 12, replace=False)
    for row, arch in zip(rows, SPACE.decode(nas_bench_201_codes(EVERY_CELL[rows])), strict=True):
        graph = SPACE.graph(arch)
        assert every_cell["macs"][row] == graph.macs
        assert every_cell["params"][row] == graph.params
        assert every_cell["traffic_values"][row] == sum(op.traffic_values for op in graph.operators)
        assert every_cell["operators"][row] == len(graph.operators)
        pools = sum(op.kind == "avg_pool" and op.kernel_size == 3 for op in graph.operators)
        assert every_cell["avg_pool3.count"][row] == pools == 15 * (EVERY_CELL[row] == 4).sum()


# ---- what cells mean -------------------------------------------------------------------------------------------------


def evaluated(ops: list[Operator], gain: dict[str, int], value: int) -> int:
    """What the operators make of the number `value` if each multiplies by its gain; sums are exact."""
    values = {INPUT: value}
    for op in ops:
        if op.kind == "zeros":
            values[op.name] = 0
        elif op.kind == "add":
            values[op.name] = values[op.inputs[0]] + values[op.inputs[1]]
        elif op.is_alias or op.name.endswith(".relu"):
            values[op.name] = values[op.inputs[0]]
        else:
            edge = op.name.removeprefix("cell.").removesuffix(".conv")
            values[op.name] = gain[edge] * values[op.inputs[0]]
    return values[ops[-1].name]


def test_a_cell_is_the_sum_over_its_paths_of_the_operators_along_them() -> None:
    rng = np.random.default_rng(1)
    for choice in EVERY_CELL[rng.choice(len(EVERY_CELL), 500, replace=False)]:
        gain = {name: int(rng.integers(2, 10**6)) for name in CELL.elastic}
        carries = {
            name: 0 if option == NONE else 1 if option == SKIP else gain[name]
            for name, option in zip(CELL.elastic, choice, strict=True)
        }
        nodes = [1, 0, 0, 0]
        for end in (1, 2, 3):
            nodes[end] = sum(nodes[start] * carries[f"edge{start}{end}"] for start in range(end))
        ops = CELL.lower("cell", tuple(choice.tolist()), INPUT, SHAPE)
        assert evaluated(ops, gain, 1) == nodes[3]


def test_an_edge_lowers_to_the_operators_of_its_name() -> None:
    relu, conv = lower(edge03=CONV_3X3)[-2:]
    assert (relu.kind, relu.activation, relu.inputs) == ("identity", "relu", (INPUT,))
    assert (conv.kernel_size, conv.has_norm, conv.activation, conv.inputs) == (3, True, "none", (relu.name,))
    assert lower(edge03=CONV_1X1)[-1].kernel_size == 1
    pool = lower(edge03=POOL)[-1]
    assert (pool.kind, pool.kernel_size, pool.stride, pool.out_shape) == ("avg_pool", 3, 1, SHAPE)
    assert [op.kind for op in lower(edge03=SKIP)] == ["zeros", "zeros", "identity"]
    assert [op.kind for op in lower()] == ["zeros", "zeros", "zeros"]


def test_edges_that_nothing_depends_on_are_lowered_all_the_same() -> None:
    ops = lower(edge01=CONV_3X3, edge03=SKIP)
    assert sum(op.macs for op in ops) == 9 * 2 * 2 * 9
    assert [op.name for op in live_operators(ops)] == ["cell.output"]


def test_the_output_of_a_cell_is_its_last_operator() -> None:
    shortcut = lower(edge01=CONV_1X1, edge02=CONV_1X1, edge13=SKIP)
    assert (shortcut[-1].kind, shortcut[-1].inputs) == ("identity", ("cell.edge01.conv",))


def test_a_reduction_halves_the_map_also_an_odd_one() -> None:
    for side, halved in ((8, 4), (7, 4)):
        ops = ResidualReduction(4, 6).lower("block", (), INPUT, (4, side, side))
        assert ops[-1].out_shape == (6, halved, halved)
        assert {op.name: op.out_shape for op in ops}["block.pool"] == (4, halved, halved)


# ---- live operators --------------------------------------------------------------------------------------------------


def test_a_cell_has_live_operators_where_the_published_files_see_a_path() -> None:
    codes = nas_bench_201_codes(EVERY_CELL)[:, 1:]
    is_live = [bool(live_operators(CELL.lower("cell", choice, INPUT, SHAPE))) for choice in map(tuple, codes.tolist())]
    assert np.array_equal(is_live, published.has_path(EVERY_CELL))
    assert is_live.count(False) == 341


def test_operators_behind_zeros_or_before_nothing_are_not_live() -> None:
    behind_zeros = lower(edge12=CONV_3X3, edge23=CONV_3X3)
    assert live_operators(behind_zeros) == []
    assert longest_path(behind_zeros) == 0
    one_of_two = lower(edge03=CONV_3X3, edge13=CONV_1X1)
    assert [op.name for op in live_operators(one_of_two)] == ["cell.edge03.relu", "cell.edge03.conv", "cell.node3.add1"]
    assert longest_path(one_of_two) == 3


def test_the_longest_path_counts_what_computes() -> None:
    assert longest_path(lower(edge03=SKIP)) == 0
    assert longest_path(lower(edge01=CONV_3X3, edge12=POOL, edge23=CONV_1X1)) == 5
    assert longest_path(lower(**dict.fromkeys(CELL.elastic, CONV_3X3))) == 8


def test_live_features_are_those_of_whole_networks_without_dead_cells() -> None:
    codes = SMALL.sample(np.random.default_rng(2), 60)
    names, features = live_features(SMALL, codes)
    n_alive = 0
    for arch, row in zip(SMALL.decode(codes), features, strict=True):
        ops = list(SMALL.graph(arch).operators)
        live = live_operators(ops)
        if not live:
            continue
        n_alive += 1
        found = dict(zip(names, row, strict=True))
        assert found["live_operators"] == len(live)
        assert found["live_macs"] == sum(op.macs for op in live)
        assert found["depth"] == longest_path(ops)
        assert found["live_add.count"] == sum(op.kind == "add" for op in live)
    assert n_alive > 40


# ---- the space -------------------------------------------------------------------------------------------------------


def test_the_space_is_one_cell_in_fifteen_places() -> None:
    assert SPACE.size == 15_625
    assert nas_bench_201(resolutions=(16, 32)).size == 2 * 15_625
    assert [decision.name for decision in SPACE.decisions] == [RESOLUTION, *published.DECISIONS]
    cells = [slot for slot in SPACE.slots if isinstance(slot.block, NasBench201Cell)]
    assert [slot.block.channels for slot in cells] == [16] * 5 + [32] * 5 + [64] * 5  # type: ignore[attr-defined]
    assert {slot.settings for slot in cells} == {tuple(published.DECISIONS)}
    shapes = {op.name: op.out_shape for op in SPACE.graph(SPACE.largest).operators}
    assert [shapes[f"stage{stage}.cell5.node3.add2"] for stage in (1, 2, 3)] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_operators_are_in_order_of_work() -> None:
    for edge in published.DECISIONS:
        base = {RESOLUTION: 32} | dict.fromkeys(published.DECISIONS, CONV_3X3)
        graphs = [SPACE.graph(SPACE.arch(base | {edge: option})) for option in range(5)]
        work = [(graph.macs, graph.params) for graph in graphs]
        assert work == sorted(work)


def test_sampled_mutated_and_crossed_cells_are_cells_of_the_space() -> None:
    rng = np.random.default_rng(3)
    codes = SPACE.sample(rng, 4000)
    assert len(np.unique(codes, axis=0)) > 3000
    mutants = SPACE.mutate(rng, codes, 0.0)
    assert ((mutants != codes).sum(axis=1) == 1).all() and (mutants[:, 0] == 0).all()
    children = SPACE.crossover(rng, codes, codes[::-1])
    for made in (codes, mutants, children):
        assert np.array_equal(SPACE.canonical(made), made)
        assert SPACE.encode(SPACE.decode(made[:20])).tolist() == made[:20].tolist()


def test_joint_columns_are_the_pairs_of_edges_each_once() -> None:
    codes = SPACE.sample(np.random.default_rng(4), 300)
    one_hot = block_one_hot(SPACE, codes)
    assert one_hot.shape == (300, 15 * 25)
    edges = codes[:, 1:]
    expected = [
        (edges[:, first] == option) & (edges[:, second] == other)
        for first, second in itertools.combinations(range(6), 2)
        for option in range(5)
        for other in range(5)
    ]
    assert np.array_equal(one_hot, np.array(expected).T)


# ---- the published numbering -----------------------------------------------------------------------------------------


def test_published_operators_keep_their_names() -> None:
    codes = nas_bench_201_codes(EVERY_CELL)
    assert SPACE.canonical(codes).tolist() == codes.tolist()
    assert len(np.unique(codes, axis=0)) == len(EVERY_CELL)
    for row in np.random.default_rng(5).choice(len(EVERY_CELL), 50):
        names = [published.OPERATORS[index] for index in EVERY_CELL[row]]
        assert [NAS_BENCH_201_OPERATORS[option] for option in codes[row, 1:]] == names
        assert published.parse_cell(published.cell_text(EVERY_CELL[row].tolist())) == tuple(EVERY_CELL[row].tolist())
    same = nas_bench_201_codes(codes[:, 1:], NAS_BENCH_201_OPERATORS)
    assert np.array_equal(same, codes)
    assert nas_bench_201_codes(EVERY_CELL[:0]).shape == (0, 7)


@pytest.mark.parametrize(
    ("operators", "names", "message"),
    [
        ([[0, 0, 0, 0, 0, 5]], published.OPERATORS, "indices from 0 to 4; there is 0 or 5"),
        ([[0, -1, 0, 0, 0, 0]], published.OPERATORS, "indices from 0 to 4; there is -1 or 0"),
        ([[0] * 6], ("none", "skip"), "the operators of this space are none, skip_connect, .*; got none, skip"),
    ],
)
def test_operators_that_are_none_of_the_space_are_refused(operators: Any, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nas_bench_201_codes(np.array(operators), names)


@pytest.mark.parametrize("arguments", [{"stage_widths": ()}, {"cells_per_stage": 0}])
def test_a_space_without_cells_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nas_bench_201 needs stages with cells; got"):
        nas_bench_201(**arguments)
