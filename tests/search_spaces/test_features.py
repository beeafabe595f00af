"""Features that are counted for whole populations equal those of each network's graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hanax.search_spaces import RESOLUTION, Graph, SearchSpace, block_one_hot, graph_features, mobilenet_v3

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
