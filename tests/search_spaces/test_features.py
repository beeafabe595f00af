"""Features that are counted for whole populations equal those of each network's graph."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from hanax.search_spaces import (
    RESOLUTION,
    Condition,
    ConvBlock,
    Decision,
    Graph,
    MBConv,
    NasBench201Cell,
    Operator,
    SearchSpace,
    Slot,
    block_one_hot,
    fold_blocks,
    graph_features,
    live_features,
    live_operators,
    longest_path,
    mobilenet_v3,
    nas_bench_201,
    operator_class,
    operator_classes,
)

SMALL_IMAGES = mobilenet_v3(
    resolutions=(21, 28, 32),
    n_classes=10,
    image_channels=1,
    stem_stride=1,
    width_mult=0.5,
    stage_strides=(1, 2, 2, 1, 2),
)
ONLY_DEPTH = mobilenet_v3(resolutions=(32,), kernel_sizes=(3,), expand_ratios=(4,))
SPACES = {
    "published": mobilenet_v3(),
    "small images": SMALL_IMAGES,
    "only depth": ONLY_DEPTH,
    "always shallow": mobilenet_v3(depths=(2,)),
}
in_each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def graphs_of(space: SearchSpace, codes: np.ndarray) -> list[Graph]:
    return [space.graph(arch) for arch in space.decode(codes)]


@in_each_space
def test_graph_features_are_the_sums_over_each_graph(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), 15)
    names, features = graph_features(space, codes)
    assert len(set(names)) == len(names) == features.shape[1]
    columns = dict(zip(names, features.T, strict=True))
    graphs = graphs_of(space, codes)
    assert columns["macs"].tolist() == [graph.macs for graph in graphs]
    assert columns["params"].tolist() == [graph.params for graph in graphs]
    assert columns["traffic_values"].tolist() == [sum(op.traffic_values for op in graph.operators) for graph in graphs]
    assert columns["operators"].tolist() == [len(graph.operators) for graph in graphs]


@in_each_space
def test_classes_of_operators_share_out_the_counts_and_the_macs(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(1), 8)
    names, features = graph_features(space, codes)
    columns = dict(zip(names, features.T, strict=True))
    counts = sum(columns[name] for name in names if name.endswith(".count"))
    macs = sum(columns[name] for name in names if name.endswith(".macs"))
    assert np.array_equal(counts, columns["operators"])
    assert np.array_equal(macs, columns["macs"])
    for row, graph in enumerate(graphs_of(space, codes)):
        depthwise = Counter(f"depthwise{op.kernel_size}.count" for op in graph.operators if op.is_depthwise)
        assert {name: columns[name][row] for name in depthwise} == depthwise
        assert columns["add.count"][row] == sum(op.kind == "add" for op in graph.operators)


def test_names_of_features_do_not_depend_on_the_networks() -> None:
    space = SPACES["published"]
    smallest, largest = (graph_features(space, space.encode([arch]))[0] for arch in (space.smallest, space.largest))
    assert smallest == largest
    names, features = graph_features(space, space.encode([]))
    assert (names, features.shape) == (largest, (0, len(largest)))


@in_each_space
def test_macs_and_params_are_exactly_linear_in_block_choices_at_one_resolution(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(2), 500)
    codes[:, space.column(RESOLUTION)] = 0
    names, features = graph_features(space, codes)
    one_hot = block_one_hot(space, codes)
    design = np.concatenate([one_hot, np.ones((len(codes), 1))], axis=1)
    costs = features[:, [names.index("macs"), names.index("params")]]
    weights, *_ = np.linalg.lstsq(design, costs, rcond=None)
    np.testing.assert_allclose(design @ weights, costs, rtol=1e-9)


@in_each_space
def test_block_one_hot_marks_each_present_block_once(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(3), 15)
    one_hot = block_one_hot(space, codes)
    assert set(np.unique(one_hot)) <= {0.0, 1.0}
    varies = {slot.name for slot in space.slots if slot.when is not None}
    varies |= {
        slot.name
        for slot in space.slots
        if any(
            isinstance(setting, str) and len(space.decisions[space.column(setting)].options) > 1
            for setting in slot.settings
        )
    }
    present = [sum(placed.slot.name in varies for placed in space.blocks(arch)) for arch in space.decode(codes)]
    assert one_hot.sum(axis=1).tolist() == present


@pytest.mark.parametrize("space", [SMALL_IMAGES, ONLY_DEPTH], ids=["small images", "only depth"])
def test_networks_of_one_resolution_differ_in_their_block_one_hot(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(4), 200)
    codes[:, space.column(RESOLUTION)] = 0
    assert len(np.unique(block_one_hot(space, codes), axis=0)) == len(np.unique(codes, axis=0))


def test_a_space_without_block_choices_has_no_block_columns() -> None:
    space = mobilenet_v3(resolutions=(24, 32), kernel_sizes=(3,), expand_ratios=(4,), depths=(2,))
    assert block_one_hot(space, space.sample(np.random.default_rng(0), 3)).shape == (3, 0)


# ---- joint settings --------------------------------------------------------------------------------------------------


@in_each_space
def test_slots_with_few_joint_settings_have_a_column_for_each_in_order(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(5), 40)
    active = space.active(codes)
    columns = []
    for slot in space.slots:
        names = [setting for setting in slot.settings if isinstance(setting, str)]
        options = [range(len(space.decisions[space.column(name)].options)) for name in names]
        settings = list(itertools.product(*options))
        if len(settings) == 1 and slot.when is None:
            continue
        present = np.ones(len(codes), dtype=bool) if slot.when is None else space.holds(slot.when, codes, active)
        chosen = codes[:, [space.column(name) for name in names]]
        columns += [present & (chosen == setting).all(axis=1) for setting in settings]
    expected = np.array(columns, dtype=float).reshape(-1, len(codes)).T
    assert np.array_equal(block_one_hot(space, codes), expected)


def three_slots(when: Condition | None) -> SearchSpace:
    """A cell of which two edges are fixed and four are decided, its twin, and a block with a decision of its own."""
    names = ("one", "two", "three", "four")
    cell = Slot("cell", NasBench201Cell(8), (*names, 3, 4))
    kernel = MBConv(8, 8, 1, (3, 5), (2,), "relu", False)
    return SearchSpace(
        "three slots",
        image_channels=3,
        n_classes=2,
        decisions=(
            Decision(RESOLUTION, (8,)),
            Decision("depth", (1, 2)),
            *(Decision(name, tuple(range(5))) for name in names),
            Decision("kernel", (3, 5)),
        ),
        slots=(
            Slot("stem", ConvBlock(3, 8, 3, 1, "relu")),
            cell,
            Slot("twin", cell.block, cell.settings, when),
            Slot("last", kernel, ("kernel", 2)),
        ),
    )


def test_slots_with_many_joint_settings_have_a_column_for_each_joint_setting_of_two_decisions() -> None:
    space = three_slots(None)
    codes = space.sample(np.random.default_rng(6), 300)
    one_hot = block_one_hot(space, codes)
    chosen = codes[:, 2:6]
    expected = [
        (chosen[:, first] == option) & (chosen[:, second] == other)
        for first, second in itertools.combinations(range(4), 2)
        for option, other in itertools.product(range(5), repeat=2)
    ]
    assert np.array_equal(one_hot[:, :-2], np.array(expected).T)
    assert np.array_equal(one_hot[:, -2:], codes[:, [6]] == [0, 1])


def test_a_slot_with_the_decisions_of_another_has_columns_of_its_own_only_where_it_may_be_absent() -> None:
    space = three_slots(Condition("depth", (2,)))
    codes = space.sample(np.random.default_rng(7), 300)
    one_hot = block_one_hot(space, codes)
    n_pairs = 6 * 25
    assert one_hot.shape[1] == 2 * n_pairs + 2
    is_there = codes[:, [space.column("depth")]] == 1
    assert np.array_equal(one_hot[:, n_pairs : 2 * n_pairs], one_hot[:, :n_pairs] * is_there)


# ---- folding ---------------------------------------------------------------------------------------------------------


def test_equal_blocks_in_several_slots_are_summarised_once() -> None:
    space = nas_bench_201(resolutions=(7, 8), stage_widths=(4, 6), cells_per_stage=3)
    codes = space.sample(np.random.default_rng(8), 30)
    n_shapes = 2 * 2  # two resolutions, two stages
    met: list[tuple[str, ...]] = []

    def summary(ops: list[Operator]) -> list[float]:
        met.append(tuple(op.name for op in ops))
        return [len(ops)]

    counts = fold_blocks(space, codes, summary, 1)[:, 0]
    assert counts.tolist() == [len(graph.operators) for graph in graphs_of(space, codes)]
    cells = [names for names in met if "cell" in names[0]]
    n_different = len(np.unique(codes, axis=0)), len(np.unique(codes[:, 1:], axis=0))
    assert 2 * n_different[1] <= len(cells) == 2 * n_different[0] <= n_shapes * n_different[1]
    assert all(names[0].startswith(("stage1.cell1.", "stage2.cell1.")) for names in cells)


def test_blocks_are_kept_apart_where_names_are_read() -> None:
    space = nas_bench_201(resolutions=(8,), stage_widths=(4,), cells_per_stage=3)
    codes = space.encode([space.largest])

    def named_after_the_second(ops: list[Operator]) -> list[float]:
        return [sum(op.name.startswith("stage1.cell2.") for op in ops)]

    n_operators = sum(op.name.startswith("stage1.cell2.") for op in space.graph(space.largest).operators)
    assert fold_blocks(space, codes, named_after_the_second, 1, reads_names=True)[0, 0] == n_operators > 0


@in_each_space
def test_all_operators_of_a_mobilenet_v3_are_live(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(9), 6)
    names, features = live_features(space, codes)
    sums = dict(zip(*_transposed(graph_features(space, codes)), strict=True))
    live = dict(zip(*_transposed((names, features)), strict=True))
    assert np.array_equal(live["live_macs"], sums["macs"])
    assert np.array_equal(live["live_operators"], sums["operators"])
    for label in operator_classes(space):
        assert np.array_equal(live[f"live_{label}.count"], sums[f"{label}.count"])
    for row, graph in enumerate(graphs_of(space, codes)):
        assert live_operators(graph.operators) == list(graph.operators)
        assert live["depth"][row] == longest_path(graph.operators)


def _transposed(named: tuple[list[str], np.ndarray]) -> tuple[list[str], np.ndarray]:
    return named[0], named[1].T


def test_classes_of_a_space_are_those_of_its_networks() -> None:
    space = nas_bench_201(resolutions=(8,), stage_widths=(4, 6), cells_per_stage=1)
    found = set()
    for arch in space.decode(space.sample(np.random.default_rng(10), 400)):
        found |= {(operator_class(op), op.is_weighted) for op in space.graph(arch).operators}
    assert dict(sorted(found)) == operator_classes(space)
    assert set(operator_classes(space)) == {
        "add", "avg_pool2", "avg_pool3", "conv1", "conv3", "dense", "global_pool", "identity", "norm", "relu", "zeros"
    }  # fmt: skip
