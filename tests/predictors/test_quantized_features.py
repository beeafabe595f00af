"""Bits of a policy are in every feature that says something of costs or accuracies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hanax.predictors import (
    AccuracyPredictor,
    RidgePredictor,
    accuracy_feature_groups,
    accuracy_features,
    latency_features,
    predictor_features,
)
from hanax.predictors._accuracy_features import pooling
from hanax.search_spaces import (
    RESOLUTION,
    block_one_hot,
    decision_graph,
    fold_precise_blocks,
    format_bits,
    graph_features,
    mobilenet_v3,
    operator_precision,
    precision_columns,
    quantized_space,
)
from hanax.searchers import additive_groups, fit_additive

PLAIN = mobilenet_v3(
    resolutions=(24, 32), n_classes=10, stem_stride=1, stage_widths=(16, 24), stage_strides=(1, 2),
    stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), depths=(1, 2), kernel_sizes=(3, 5, 7),
    head_width=64, feature_width=64,
)  # fmt: skip
SPACE = quantized_space(PLAIN)
BITS = precision_columns(SPACE)


def interacting_cost(space: object, codes: np.ndarray) -> np.ndarray:
    """A cost that adds up over blocks, in each of which kernel size, width and both formats interact."""

    def summary(ops: list, precision: tuple[int, int] | None) -> list[float]:
        total = 0.0
        for op in ops:
            weights, activations = map(format_bits, operator_precision(op, precision))
            total += op.macs * np.sin(weights * activations) + op.params * np.cos(op.kernel_size * weights)
        return [abs(total)]

    return fold_precise_blocks(space, codes, summary, 1)[:, 0]


def test_costs_that_add_up_are_linear_in_joint_settings_with_their_precision() -> None:
    codes = SPACE.sample(np.random.default_rng(0), 1500)
    codes[:, SPACE.column(RESOLUTION)] = 0
    costs = interacting_cost(SPACE, codes)
    design = np.column_stack([block_one_hot(SPACE, codes), np.ones(len(codes))])
    weights, *_ = np.linalg.lstsq(design, costs, rcond=None)
    np.testing.assert_allclose(design @ weights, costs, rtol=1e-8)
    assert set(np.unique(design)) == {0.0, 1.0}


def test_the_exact_front_knows_that_the_precision_of_a_block_interacts_with_its_shape() -> None:
    groups = additive_groups(SPACE)
    assert ("stage1.block1.kernel_size", "stage1.block1.expand_ratio", "stage1.block1.weight_bits",
            "stage1.block1.activation_bits") in groups  # fmt: skip
    fits = fit_additive(
        SPACE,
        lambda codes: {"cost": interacting_cost(SPACE, codes)},
        ["cost"],
        per=(RESOLUTION,),
        n_random=100,
        n_checked=200,
    )
    assert fits["cost"].max_residual < 1e-6 * fits["cost"].magnitude


def test_sums_of_bits_are_those_over_the_operators() -> None:
    codes = SPACE.sample(np.random.default_rng(1), 10)
    names, sums = graph_features(SPACE, codes)
    plain_names, plain = graph_features(PLAIN, codes[:, : len(PLAIN.decisions)])
    assert names[: len(plain_names)] == plain_names
    np.testing.assert_array_equal(sums[:, : len(plain_names)], plain)
    for row, arch in enumerate(SPACE.decode(codes)):
        expected = 0
        for placed, ops in _lowered(arch):
            for op in ops:
                if op.is_weighted:
                    weights, activations = operator_precision(op, placed.precision)
                    expected += op.macs * weights * activations
        assert sums[row, names.index("bit_operations")] == expected


def _lowered(arch: object) -> list:
    by_block = {placed.slot.name: placed for placed in SPACE.blocks(arch)}
    graph = SPACE.graph(arch)
    return [
        (placed, [op for op in graph.operators if op.name.startswith(f"{name}.")]) for name, placed in by_block.items()
    ]


FEATURES = {
    "predictor_features": predictor_features,
    "accuracy_features": accuracy_features,
    "latency_features": latency_features,
    "block_one_hot": block_one_hot,
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_each_bit_decision_that_counts_changes_the_features_and_no_other_does(features: object) -> None:
    codes = SPACE.sample(np.random.default_rng(2), 6)
    before, active = features(SPACE, codes), SPACE.active(codes)
    others = np.repeat(codes[None], len(BITS), axis=0)
    for number, column in enumerate(BITS):
        others[number, :, column] = (codes[:, column] + 1) % SPACE.option_counts[column]
    after = features(SPACE, SPACE.canonical(others.reshape(-1, codes.shape[1]))).reshape(len(BITS), *before.shape)
    changed = np.abs(after - before).max(axis=2) > 0.05
    np.testing.assert_array_equal(changed.T, active[:, BITS])


@pytest.mark.parametrize("predictor", ["ridge", "accuracy"])
def test_changing_only_the_bits_changes_the_prediction(predictor: str) -> None:
    """In APQ's released code it did not: its predictor read the bits from a field that was never filled."""
    rng = np.random.default_rng(3)
    codes = SPACE.sample(rng, 80)
    bits = codes[:, precision_columns(SPACE)].sum(axis=1)
    y = 0.8 + 0.01 * bits + 0.002 * rng.standard_normal(len(codes))
    if predictor == "ridge":
        features, model = predictor_features, RidgePredictor()
    else:
        features, model = accuracy_features, AccuracyPredictor(accuracy_feature_groups(SPACE))
    model.fit(features(SPACE, codes), y)
    low, high = codes.copy(), codes.copy()
    low[:, precision_columns(SPACE)] = 0
    high[:, precision_columns(SPACE)] = 2
    predicted = [model.predict(features(SPACE, SPACE.canonical(each))) for each in (low, high)]
    assert (predicted[1] - predicted[0] > 0.02).all()


def test_precision_decisions_of_one_kind_are_added_up_per_stage_and_over_the_network() -> None:
    codes = SPACE.sample(np.random.default_rng(4), 20)
    counts = SPACE.one_hot(codes) @ pooling(SPACE)[1]
    active = SPACE.active(codes)
    for kind, option in itertools.product(("weight_bits", "activation_bits"), range(3)):
        columns = [c for c in precision_columns(SPACE) if SPACE.decisions[c].name.endswith(kind)]
        expected = ((codes[:, columns] == option) & active[:, columns]).sum(axis=1)
        assert any(np.array_equal(column, expected) for column in counts.T)


def test_in_the_graph_of_decisions_bits_stand_beside_the_shape_of_their_block() -> None:
    graph = decision_graph(SPACE)
    node = {decision.name: number for number, decision in enumerate(SPACE.decisions, start=1)}
    beside = node["stage2.block1.kernel_size"]
    for name in ("stage2.block1.weight_bits", "stage2.block1.activation_bits"):
        np.testing.assert_array_equal(graph[node[name]], graph[beside])
        np.testing.assert_array_equal(graph[:, node[name]], graph[:, beside])
    assert graph[:, 1:-1].any(axis=0).all() and graph[1:-1].any(axis=1).all()
