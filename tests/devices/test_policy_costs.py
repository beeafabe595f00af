"""Costs of policies: sums over operators in their formats, whatever the number of networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hanax.devices import (
    BitFusion,
    BitFusionTable,
    BitOperations,
    ModelSize,
    PeakMemory,
    code_costs,
    find_cost_model,
    graph_costs,
    kernel_precisions,
    policy_costs,
)
from hanax.search_spaces import (
    SearchSpace,
    architecture_columns,
    float_space,
    format_bits,
    mobilenet_v3,
    nas_bench_201,
    precision_columns,
    quantized_space,
    with_precision,
)

PLAIN = mobilenet_v3(
    resolutions=(24, 32), n_classes=10, stem_stride=1, stage_widths=(16, 24), stage_strides=(1, 2),
    stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), depths=(1, 2), kernel_sizes=(3, 5),
    head_width=64, feature_width=64,
)  # fmt: skip
SPACE = quantized_space(PLAIN)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return SPACE.sample(np.random.default_rng(0), 24)


@pytest.fixture(scope="module")
def table(shared_data: Callable[[str], Path]) -> BitFusionTable:
    return BitFusionTable.read(shared_data("apq/BitFusion_new.b1.dict"))


def test_a_policy_costs_the_sum_over_the_operators_in_their_formats(codes: np.ndarray) -> None:
    costs = policy_costs(SPACE, codes)
    for row, arch in enumerate(SPACE.decode(codes[:15])):
        bits = kernel_precisions(SPACE, arch)
        operators = [op for op in SPACE.graph(arch).operators if op.is_weighted]
        assert costs["bit_operations"][row] == sum(op.macs * math.prod(bits[op.name]) for op in operators)
        n_biases = sum(op.out_shape[0] for op in operators if op.has_bias or op.has_norm)
        n_scales = sum(op.out_shape[0] for op in operators)
        kernels = sum(math.ceil(math.prod(op.kernel_shape) * bits[op.name][0] / 8) for op in operators)
        assert costs["size_bytes"][row] == kernels + 4 * n_biases + 4 * n_scales


def test_bitfusion_costs_a_policy_the_sum_of_its_layers(table: BitFusionTable, codes: np.ndarray) -> None:
    costs = policy_costs(SPACE, codes, table)
    for row, arch in enumerate(SPACE.decode(codes[:15])):
        found = table.graph_cost(SPACE.graph(arch), kernel_precisions(SPACE, arch))
        assert costs["latency_ms"][row] == pytest.approx(found.latency_ms, rel=1e-12)
        assert costs["energy_mj"][row] == pytest.approx(found.energy_mj, rel=1e-12)


def test_int8_everywhere_costs_what_the_models_without_a_policy_say(table: BitFusionTable) -> None:
    plain = PLAIN.sample(np.random.default_rng(1), 30)
    codes = with_precision(SPACE, plain, "int8", "int8")
    costs = policy_costs(SPACE, codes, table)
    int8 = code_costs(BitFusion(table, (8, 8)), PLAIN, plain)
    np.testing.assert_allclose(np.column_stack([costs["latency_ms"], costs["energy_mj"]]), int8, rtol=1e-12)
    macs = code_costs(find_cost_model("macs"), PLAIN, plain)[:, 0]
    np.testing.assert_array_equal(costs["bit_operations"], 64 * macs)


def test_more_bits_never_cost_fewer_bytes_or_bit_operations(codes: np.ndarray) -> None:
    before = policy_costs(SPACE, codes)
    active = SPACE.active(codes)
    for column in precision_columns(SPACE):
        rows = active[:, column] & (codes[:, column] < SPACE.option_counts[column] - 1)
        more = codes.copy()
        more[rows, column] += 1
        after = policy_costs(SPACE, more)
        is_weight = SPACE.decisions[column].name.endswith("weight_bits")
        assert (after["bit_operations"][rows] > before["bit_operations"][rows]).all()
        assert (after["size_bytes"][rows] > before["size_bytes"][rows]).all() == is_weight
        assert (after["size_bytes"][rows] >= before["size_bytes"][rows]).all()
        assert (after["bit_operations"][~rows] == before["bit_operations"][~rows]).all()


def test_minifloats_count_their_bits_and_float32_its_thirty_two() -> None:
    space = quantized_space(PLAIN, weights=("int4", "e4m3", "float32"), activations=("int8", "float32"))
    plain = PLAIN.encode([PLAIN.largest])
    size, operations = {}, {}
    for weights in ("int4", "e4m3", "float32"):
        costs = policy_costs(space, with_precision(space, plain, weights, "int8"))
        size[weights], operations[weights] = costs["size_bytes"][0], costs["bit_operations"][0]
    graph = PLAIN.graph(PLAIN.largest)
    kernels = [op for op in graph.operators if op.has_norm and op.name[:5] not in ("stem.", "head.")]
    n_values = sum(math.prod(op.kernel_shape) for op in kernels)
    n_channels = sum(op.out_shape[0] for op in kernels)
    # In a block that is not quantized nothing is, what otherwise is in 8 bits not either.
    others = [op for op in graph.operators if op.is_weighted and not op.has_norm and op.name[:5] != "head."]
    n_other_values = sum(math.prod(op.kernel_shape) for op in others)
    n_other_channels = sum(op.out_shape[0] for op in others)
    assert size["e4m3"] - size["int4"] == n_values * 4 / 8
    assert size["float32"] - size["e4m3"] == (n_values + n_other_values) * 24 / 8 - 4 * (
        n_channels + n_other_channels
    ), "no scales"
    assert operations["float32"] - operations["int4"] == 8 * (
        28 * sum(op.macs for op in kernels) + 24 * sum(op.macs for op in others)
    )


def test_without_a_policy_everything_is_in_float32(table: BitFusionTable) -> None:
    plain = PLAIN.encode([PLAIN.largest])
    graph = PLAIN.graph(PLAIN.largest)
    costs = policy_costs(PLAIN, plain)
    assert costs["bit_operations"][0] == 1024 * graph.macs == graph_costs(BitOperations(), graph)["bit_operations"]
    assert costs["size_bytes"][0] == graph_costs(ModelSize(), graph)["size_bytes"]
    # The scale of a batch norm is in the kernel, its offset is the bias; head.mix has neither.
    n_scales = sum(op.out_shape[0] for op in graph.operators if op.has_norm)
    assert costs["size_bytes"][0] == 4 * (graph.params - n_scales)
    assert graph_costs(ModelSize(), nas_bench_201().graph(nas_bench_201().smallest))["size_bytes"] > 0
    with pytest.raises(ValueError, match="only the codes of a quantized space hold"):
        policy_costs(PLAIN, plain, table)


def test_bitfusion_refuses_formats_that_its_file_lacks_and_fixed_bits_beside_a_policy(table: BitFusionTable) -> None:
    space = quantized_space(PLAIN, weights=("int2", "int8"))
    with pytest.raises(ValueError, match=r"has W/A bits .*\(4, 4\).*; asked for was \(2, 4\)"):
        policy_costs(space, space.encode([space.smallest]), table)
    assert policy_costs(space, space.encode([space.smallest]))["size_bytes"][0] > 0
    with pytest.raises(ValueError, match=r"bitfusion-w8a8 costs all networks at its own bits.* use bitfusion"):
        code_costs(BitFusion(table), SPACE, SPACE.encode([SPACE.smallest]))


def test_models_that_know_no_formats_cost_the_architecture_alone(codes: np.ndarray) -> None:
    plain = codes[:, architecture_columns(SPACE)]
    for model in (find_cost_model("macs"), PeakMemory("peak", 1)):
        np.testing.assert_array_equal(code_costs(model, SPACE, codes), code_costs(model, PLAIN, plain))


def test_a_policy_of_one_decision_for_the_whole_network_costs_as_block_by_block() -> None:
    whole = quantized_space(PLAIN, granularity="network")
    plain = PLAIN.sample(np.random.default_rng(2), 5)
    for weights, activations in itertools.product((4, 8), (6, 8)):
        costs = [policy_costs(space, with_precision(space, plain, weights, activations)) for space in (SPACE, whole)]
        np.testing.assert_array_equal(costs[0]["size_bytes"], costs[1]["size_bytes"])
        np.testing.assert_array_equal(costs[0]["bit_operations"], costs[1]["bit_operations"])


def test_the_device_named_bitfusion_reads_the_policy(shared_data: Callable[[str], Path], codes: np.ndarray) -> None:
    path = shared_data("apq/BitFusion_new.b1.dict")
    model = find_cost_model("bitfusion", path)
    assert isinstance(model, BitFusion) and model.name == "bitfusion"
    expected = policy_costs(SPACE, codes, model.table)["latency_ms"]
    np.testing.assert_array_equal(code_costs(model, SPACE, codes)[:, 0], expected)


def test_formats_of_kernels_are_those_of_the_slots() -> None:
    space: SearchSpace = quantized_space(PLAIN, ends=("int6", "int6"))
    arch = space.arch({"stage1.block1.weight_bits": 4, "stage1.block1.activation_bits": 6})
    found = kernel_precisions(space, arch)
    assert found["stage1.block1.expand"] == (4, 6) and found["stem.conv"] == (6, 6)
    assert found["stage2.block1.se.reduce"] == (8, 8) == found["head.classify"]
    assert all(format_bits(code) == code for pair in found.values() for code in pair)
    assert float_space(space).fingerprint == PLAIN.fingerprint
