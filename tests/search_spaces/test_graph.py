"""Costs of a graph against figures worked out by hand."""

from __future__ import annotations

import pytest

from hanax.search_spaces import INPUT, Graph, Operator, Shape, live_operators, longest_path

IMAGE: Shape = (3, 8, 8)


def conv(
    name: str, source: str, in_shape: Shape, out_shape: Shape, kernel_size: int = 1, stride: int = 1, groups: int = 1
) -> Operator:
    return Operator(name, "conv", (source,), in_shape, out_shape, kernel_size, stride, groups, has_norm=True)


STEM = conv("stem", INPUT, IMAGE, (4, 4, 4), kernel_size=3, stride=2)
DEPTHWISE = conv("depthwise", "stem", (4, 4, 4), (4, 4, 4), kernel_size=5, groups=4)
ADD = Operator("add", "add", ("depthwise", "stem"), (4, 4, 4), (4, 4, 4))
POOL = Operator("pool", "global_pool", ("add",), (4, 4, 4), (4, 1, 1))
GATE = Operator("gate", "conv", ("pool",), (4, 1, 1), (4, 1, 1), has_bias=True, activation="hsigmoid")
SCALE = Operator("scale", "multiply", ("add", "gate"), (4, 4, 4), (4, 4, 4))
MEAN = Operator("mean", "global_pool", ("scale",), (4, 4, 4), (4, 1, 1))
CLASSIFY = Operator("classify", "dense", ("mean",), (4, 1, 1), (10, 1, 1), has_bias=True)
SMALL = Graph(IMAGE, (STEM, DEPTHWISE, ADD, POOL, GATE, SCALE, MEAN, CLASSIFY))

MACS = {"stem": 3 * 9 * 64, "depthwise": 25 * 64, "gate": 4 * 4, "classify": 4 * 10}
PARAMS = {"stem": 3 * 9 * 4 + 2 * 4, "depthwise": 25 * 4 + 2 * 4, "gate": 16 + 4, "classify": 40 + 10}


def test_macs_and_parameters_of_a_small_net_are_as_worked_out_by_hand() -> None:
    assert {op.name: op.macs for op in SMALL.operators if op.macs} == MACS
    assert {op.name: op.params for op in SMALL.operators if op.params} == PARAMS
    assert SMALL.macs == 1728 + 1600 + 16 + 40
    assert SMALL.params == 116 + 108 + 20 + 50
    assert SMALL.output_shape == (10, 1, 1)


def test_kernel_shapes_are_those_of_onnx() -> None:
    shapes = {op.name: op.kernel_shape for op in SMALL.operators if op.is_weighted}
    assert shapes == {"stem": (4, 3, 3, 3), "depthwise": (4, 1, 5, 5), "gate": (4, 4, 1, 1), "classify": (10, 4)}
    assert ADD.kernel_shape == ()


def test_only_a_convolution_of_each_channel_by_itself_is_depthwise() -> None:
    assert [op.name for op in SMALL.operators if op.is_depthwise] == ["depthwise"]
    assert not conv("grouped", INPUT, (4, 4, 4), (4, 4, 4), groups=2).is_depthwise
    assert not conv("gray", INPUT, (1, 4, 4), (4, 4, 4)).is_depthwise


def test_traffic_counts_every_input_the_kernel_and_the_output() -> None:
    assert STEM.traffic_values == 3 * 64 + 116 + 64
    assert ADD.traffic_values == 64 + 64 + 64
    assert SCALE.traffic_values == 64 + 4 + 64
    assert POOL.traffic_values == 64 + 4
    assert CLASSIFY.traffic_values == 4 + 50 + 10


def inverted_residual(has_residual: bool) -> Graph:
    """MobileNetV2's block (Sandler et al., 2018, arXiv:1801.04381): 8 channels of 8 x 8, expansion 6."""
    narrow, wide = (8, 8, 8), (48, 8, 8)
    ops = [
        conv("expand", INPUT, narrow, wide),
        conv("depthwise", "expand", wide, wide, kernel_size=3, groups=48),
        conv("project", "depthwise", wide, narrow),
    ]
    if has_residual:
        ops.append(Operator("add", "add", ("project", INPUT), narrow, narrow))
    return Graph(narrow, tuple(ops))


def test_a_residual_keeps_its_source_alive_through_the_block() -> None:
    narrow, wide = 8 * 64, 48 * 64
    assert inverted_residual(False).peak_activation_bytes() == 4 * (wide + wide)
    assert inverted_residual(True).peak_activation_bytes() == 4 * (narrow + wide + wide)
    assert inverted_residual(True).peak_activation_bytes(bytes_per_value=1) == narrow + wide + wide


def test_peak_memory_of_the_small_net_is_at_its_first_operator() -> None:
    assert SMALL.peak_activation_bytes() == 4 * (3 * 64 + 64)


def test_tensors_that_nobody_reads_any_more_are_dropped() -> None:
    shape = (1, 4, 4)
    chain = [conv("conv0", INPUT, shape, shape)]
    chain += [conv(f"conv{step}", f"conv{step - 1}", shape, shape) for step in range(1, 10)]
    assert Graph(shape, tuple(chain)).peak_activation_bytes() == 4 * (16 + 16)
    long_skip = Operator("add", "add", ("conv9", "conv0"), shape, shape)
    assert Graph(shape, (*chain, long_skip)).peak_activation_bytes() == 4 * (16 + 16 + 16)


def test_pools_shuffles_and_activations_cost_what_they_read_and_write() -> None:
    shape, half = (4, 6, 6), (4, 3, 3)
    pool = Operator("pool", "avg_pool", (INPUT,), shape, half, kernel_size=2, stride=2)
    shuffle = Operator("shuffle", "shuffle", (INPUT,), shape, shape, groups=2)
    relu = Operator("relu", "identity", (INPUT,), shape, shape, activation="relu")
    norm = Operator("norm", "identity", (INPUT,), shape, shape, has_norm=True, activation="relu")
    zeros = Operator("zeros", "zeros", (), shape, shape)
    alias = Operator("alias", "identity", (INPUT,), shape, shape)
    ops = [pool, shuffle, relu, norm, zeros, alias]
    assert [op.macs for op in ops] == [0] * 6
    assert [op.params for op in ops] == [0, 0, 0, 2 * 4, 0, 0]
    assert [op.traffic_values for op in ops] == [144 + 36, 144 + 144, 144 + 144, 144 + 8 + 144, 144, 0]
    assert [op.is_alias for op in ops] == [False] * 5 + [True]
    assert [op.kernel_shape for op in ops] == [()] * 6


def test_another_name_takes_no_memory_and_keeps_the_tensor_alive() -> None:
    shape = (1, 4, 4)
    alias = Operator("alias", "identity", (INPUT,), shape, shape)
    second = conv("second", "alias", shape, shape)
    third = conv("third", "second", shape, shape)
    assert Graph(shape, (alias,)).peak_activation_bytes() == 4 * 16
    assert Graph(shape, (alias, second, third)).peak_activation_bytes() == 4 * (16 + 16)
    long_skip = Operator("add", "add", ("third", "alias"), shape, shape)
    assert Graph(shape, (alias, second, third, long_skip)).peak_activation_bytes() == 4 * (16 + 16 + 16)


def test_an_input_that_nobody_reads_takes_no_memory() -> None:
    assert Graph((8, 4, 4), (Operator("zeros", "zeros", (), (1, 4, 4), (1, 4, 4)),)).peak_activation_bytes() == 4 * 16


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_every_operator_of_a_net_without_dead_ends_is_live() -> None:
    assert live_operators(SMALL.operators) == list(SMALL.operators)
    assert longest_path(SMALL.operators) == 8
    assert longest_path(inverted_residual(True).operators) == 4


def test_dead_ends_and_constants_are_not_live() -> None:
    shape = (1, 4, 4)
    zeros = Operator("zeros", "zeros", (), shape, shape)
    ops = [
        conv("first", INPUT, shape, shape),
        conv("unread", "first", shape, shape),
        zeros,
        conv("constant", "zeros", shape, shape),
        Operator("sum", "add", ("first", "constant"), shape, shape),
    ]
    assert [op.name for op in live_operators(ops)] == ["first", "sum"]
    assert longest_path(ops) == 2
    assert (live_operators([zeros]), longest_path([zeros])) == ([], 0)


def test_paths_start_at_the_tensor_that_is_asked_for() -> None:
    block = inverted_residual(True).operators[1:]
    assert [op.name for op in live_operators(block, "expand")] == ["depthwise", "project", "add"]
    assert longest_path(block, "expand") == 3


INVALID: dict[str, tuple[list[Operator], str]] = {
    "a name that nothing produces": (
        [STEM, conv("next", "steam", (4, 4, 4), (4, 4, 4))],
        "next reads 'steam', which no earlier operator produces",
    ),
    "a name of a later operator": ([DEPTHWISE, STEM], "depthwise reads 'stem', which no earlier operator produces"),
    "another shape than it is given": (
        [STEM, conv("next", "stem", (8, 4, 4), (4, 4, 4))],
        r"next expects shape \(8, 4, 4\); stem gives \(4, 4, 4\)",
    ),
    "a name used twice": ([STEM, conv("stem", "stem", (4, 4, 4), (4, 4, 4))], "two operators are named 'stem'"),
    "an operator that reads nothing": (
        [Operator("add", "add", (), IMAGE, IMAGE)],
        "add, of kind add, reads nothing; zeros reads nothing, all others something",
    ),
    "zeros that read": (
        [Operator("zeros", "zeros", (INPUT,), IMAGE, IMAGE)],
        "zeros, of kind zeros, reads input; zeros reads nothing",
    ),
    "the name of the input": ([conv(INPUT, INPUT, IMAGE, IMAGE)], "two operators are named 'input'"),
}


@pytest.mark.parametrize("case", INVALID.values(), ids=INVALID.keys())
def test_a_graph_that_cannot_run_is_refused(case: tuple[list[Operator], str]) -> None:
    operators, message = case
    with pytest.raises(ValueError, match=message):
        Graph(IMAGE, tuple(operators))
