"""FBNet: its networks cost what HW-NAS-Bench's cost, and its layers are the operators of their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hanax.devices.public._help import FBNET_OPERATORS as PUBLISHED_OPERATORS
from hanax.devices.public._help import fbnet_macs_and_params
from hanax.search_spaces import (
    FBNET_OPERATORS,
    INPUT,
    RESOLUTION,
    Arch,
    FBNetLayer,
    Operator,
    fbnet,
    fbnet_codes,
    graph_features,
    live_features,
    live_operators,
    longest_path,
)

SPACE = fbnet()
N_LAYERS = 22


def lower(layer: FBNetLayer, operator: str) -> list[Operator]:
    return layer.lower("layer", (FBNET_OPERATORS.index(operator),), INPUT, (layer.in_channels, 8, 8))


def published(seed: int, n: int) -> np.ndarray:
    """Networks in the published numbering; among them each operator in every layer, and nothing but one operator."""
    rng = np.random.default_rng(seed)
    alone = np.repeat(np.arange(9)[:, None], N_LAYERS, axis=1)
    return np.concatenate([alone, rng.integers(0, 9, size=(n, N_LAYERS))]).astype(np.int32)


# ---- costs -----------------------------------------------------------------------------------------------------------


def test_macs_and_params_are_those_of_the_published_networks() -> None:
    operators = published(0, 5000)
    names, features = graph_features(SPACE, fbnet_codes(operators))
    columns = dict(zip(names, features.T, strict=True))
    macs, params = fbnet_macs_and_params(operators)
    assert np.array_equal(columns["macs"], macs)
    assert np.array_equal(columns["params"], params)


def test_what_is_counted_for_many_networks_is_what_each_graph_has() -> None:
    codes = fbnet_codes(published(1, 12))
    names, features = graph_features(SPACE, codes)
    live_names, live = live_features(SPACE, codes)
    for row, arch in enumerate(SPACE.decode(codes)):
        graph = SPACE.graph(arch)
        columns = dict(zip(names, features[row], strict=True)) | dict(zip(live_names, live[row], strict=True))
        assert columns["macs"] == columns["live_macs"] == graph.macs
        assert columns["params"] == graph.params
        assert columns["traffic_values"] == sum(op.traffic_values for op in graph.operators)
        assert columns["operators"] == columns["live_operators"] == len(graph.operators)
        assert columns["shuffle.count"] == sum(op.kind == "shuffle" for op in graph.operators)
        assert columns["grouped1.count"] == 2 * columns["shuffle.count"]
        assert columns["depth"] == longest_path(graph.operators)
        assert live_operators(graph.operators) == list(graph.operators)


# ---- what layers are -------------------------------------------------------------------------------------------------


def test_an_operator_is_what_its_name_says() -> None:
    layer = FBNetLayer(8, 8, 1)
    for operator in FBNET_OPERATORS[1:]:
        kernel, expansion, *grouped = operator.split("_")
        ops = {op.name.removeprefix("layer."): op for op in lower(layer, operator)}
        assert list(ops) == ["expand", *["shuffle"] * bool(grouped), "depthwise", "project", "add"]
        mid, groups = 8 * int(expansion[1:]), 2 if grouped else 1
        assert (ops["expand"].out_shape[0], ops["expand"].groups) == (mid, groups)
        assert (ops["depthwise"].kernel_size, ops["depthwise"].is_depthwise) == (int(kernel[1:]), True)
        assert (ops["project"].groups, ops["project"].activation) == (groups, "none")
        assert ops["add"].inputs == ("layer.project", INPUT)


def test_groups_are_shuffled_between_expansion_and_depthwise_convolution() -> None:
    ops = {op.name: op for op in lower(FBNetLayer(8, 8, 1), "k3_e1_g2")}
    assert ops["layer.shuffle"].inputs == ("layer.expand",)
    assert ops["layer.depthwise"].inputs == ("layer.shuffle",)
    assert (ops["layer.shuffle"].groups, ops["layer.shuffle"].params, ops["layer.shuffle"].macs) == (2, 0, 0)


@pytest.mark.parametrize(("channels", "stride"), [(8, 2), (12, 1), (12, 2)])
def test_a_skip_that_changes_the_shape_is_a_convolution_and_no_layer_that_does_has_a_residual(
    channels: int, stride: int
) -> None:
    layer = FBNetLayer(8, channels, stride)
    (skip,) = lower(layer, "skip")
    assert (skip.kind, skip.kernel_size, skip.activation) == ("conv", 1, "relu")
    assert skip.out_shape == (channels, 8 // stride, 8 // stride)
    assert lower(layer, "k5_e3")[-1].name == "layer.project"
    assert lower(layer, "k5_e3")[-1].out_shape == skip.out_shape


def test_a_skip_that_keeps_the_shape_costs_nothing() -> None:
    (skip,) = lower(FBNetLayer(8, 8, 1), "skip")
    assert (skip.macs, skip.params, skip.traffic_values) == (0, 0, 0)


# ---- the space -------------------------------------------------------------------------------------------------------


def test_the_space_has_22_layers_of_9_operators() -> None:
    assert SPACE.size == 9**22
    assert [decision.name for decision in SPACE.decisions] == [RESOLUTION, *(f"layer{n}" for n in range(1, 23))]
    shapes = {op.name: op.out_shape for op in SPACE.graph(SPACE.largest).operators}
    ends = [shapes[f"layer{number}.project"] for number in (1, 5, 9, 13, 17, 21, 22)]
    assert ends == [
        (16, 32, 32), (24, 32, 32), (32, 16, 16), (64, 8, 8), (112, 8, 8), (184, 4, 4), (352, 4, 4)
    ]  # fmt: skip
    assert shapes["wide.conv"] == (1504, 4, 4)
    assert shapes["head.classify"] == (100, 1, 1)


def test_operators_are_in_order_of_work_where_a_skip_is_no_convolution_and_the_last_is_the_largest() -> None:
    largest = SPACE.largest.choices
    for layer in range(1, N_LAYERS + 1):
        graphs = [SPACE.graph(Arch((*largest[:layer], option, *largest[layer + 1 :]))) for option in range(9)]
        for cost in ([graph.macs for graph in graphs], [graph.params for graph in graphs]):
            assert cost[1:] == sorted(cost[1:])
            assert cost[0] < cost[3]
            assert max(cost) == cost[-1]
            if SPACE.slots[layer].block.keeps_shape:  # type: ignore[attr-defined]
                assert cost == sorted(cost)


def test_sampled_and_mutated_networks_are_networks_of_the_space() -> None:
    rng = np.random.default_rng(2)
    codes = SPACE.sample(rng, 500)
    mutants = SPACE.mutate(rng, codes, 0.2)
    for made in (codes, mutants):
        assert np.array_equal(SPACE.canonical(made), made)
        assert len(np.unique(made, axis=0)) == 500
    assert (mutants != codes).any(axis=1).all()


# ---- the published numbering -----------------------------------------------------------------------------------------


def test_published_operators_keep_their_names() -> None:
    operators = published(3, 20)
    codes = fbnet_codes(operators)
    assert codes.shape == (29, 23)
    names = np.array(PUBLISHED_OPERATORS)[operators]
    assert np.array_equal(np.array(FBNET_OPERATORS)[codes[:, 1:]], names)
    assert np.array_equal(fbnet_codes(codes[:, 1:], FBNET_OPERATORS), codes)
    with pytest.raises(ValueError, match="indices from 0 to 8; there is 0 or 9"):
        fbnet_codes(np.array([[0] * 21 + [9]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ((0, 16, 1),)}, r"a stage needs a layer and an even number of channels; got \(\(0, 16, 1\),\)"),
        ({"stages": ((1, 15, 1),)}, r"an even number of channels; got \(\(1, 15, 1\),\)"),
        ({"stem_width": 7}, "the stem needs an even number of channels; got 7"),
    ],
)
def test_arguments_that_make_no_space_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fbnet(**arguments)
