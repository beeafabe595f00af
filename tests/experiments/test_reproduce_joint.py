"""Joint and sequential search: equal numbers of evaluations, each made once, and figures that follow from fronts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hanax.devices import BitFusionTable
from hanax.experiments._reproduce_joint import (
    METHODS,
    SEARCHES,
    KeptAccuracies,
    Outcome,
    Task,
    comparison_rows,
    known_columns,
)
from hanax.search_spaces import (
    Arch,
    architecture_columns,
    mobilenet_v3,
    policy_of,
    precision_columns,
    quantized_space,
    with_precision,
)

PLAIN = mobilenet_v3(
    resolutions=(24,), n_classes=10, stem_stride=1, stage_widths=(16, 24), stage_strides=(1, 2),
    stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), depths=(1, 2), head_width=64,
    feature_width=64,
)  # fmt: skip
SPACE = quantized_space(PLAIN)
BITS = precision_columns(SPACE)


class Counted:
    """Made-up accuracies: larger networks and more bits are better."""

    def __init__(self, columns: list[int]) -> None:
        self.columns, self.asked = columns, list[bytes]()

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        self.asked += [row.tobytes() for row in codes]
        return 0.86 + 0.004 * codes[:, self.columns].mean(axis=1) + 0.02 * codes[:, 1:].mean(axis=1)


@pytest.fixture(scope="module")
def table(shared_data: Callable[[str], Path]) -> BitFusionTable:
    return BitFusionTable.read(shared_data("apq/BitFusion_new.b1.dict"))


def make_task(table: BitFusionTable) -> Task:
    return Task(SPACE, table, Counted(BITS), Counted([0]), Counted(BITS), 0.15)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_makes_as_many_evaluations_and_none_twice(
    method: str, table: BitFusionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanax.experiments._reproduce_joint.CANDIDATES", 500)
    task, n = make_task(table), 22
    codes, losses = SEARCHES[method](task, n, 0)
    quantized, in_float = task.accuracies.asked, task.float_accuracies.asked
    assert len(quantized) + len(in_float) == n
    assert len(set(quantized)) == len(quantized) == len(codes) and len(set(in_float)) == len(in_float)
    assert len(in_float) == (n // 2 if method == "sequential" else 0)
    np.testing.assert_array_equal(codes, SPACE.canonical(codes))
    np.testing.assert_allclose(losses, make_task(table).losses(codes))
    uniform = {(8, 8)} if method == "int8" else {(8, 8), (4, 8), (4, 6)}
    policies = [policy_of(SPACE, arch).items() for arch in SPACE.decode(codes)]
    inner = [{precision for slot, precision in policy if slot not in ("stem", "head")} for policy in policies]
    assert uniform <= {next(iter(formats)) for formats in inner if len(formats) == 1}
    if method == "sequential":
        found = {row.tobytes() for row in codes[:, architecture_columns(SPACE)]}
        assert found <= set(in_float), "policies are given to architectures that the first search evaluated"
    if method == "joint":
        again, _ = SEARCHES[method](make_task(table), n, 0)
        np.testing.assert_array_equal(again, codes)


def test_what_predictors_know_of_a_network_in_int8_is_that_of_its_architecture(table: BitFusionTable) -> None:
    task = make_task(table)
    codes = with_precision(SPACE, PLAIN.encode([PLAIN.largest]), 8, 8)
    latency, macs, bit_operations, kernel_bits, weight_error, activation_error = known_columns(task, codes)[0]
    graph = PLAIN.graph(PLAIN.largest)
    assert latency == pytest.approx(np.log(task.reference[1]))
    assert macs == pytest.approx(np.log(graph.macs))
    assert bit_operations == pytest.approx(np.log(64 * graph.macs))
    assert kernel_bits < np.log(8 * graph.params)
    assert weight_error == activation_error == 4.0**-4


def test_figures_follow_from_the_fronts(table: BitFusionTable) -> None:
    task = make_task(table)
    worst_error, latency = task.reference
    codes = with_precision(SPACE, PLAIN.encode([PLAIN.largest]), 8, 8)

    def outcome(error: float, held_out: float) -> Outcome:
        losses = np.array([[error * worst_error, 0.05 * latency]])
        return Outcome(codes, losses, np.array([[held_out * worst_error, 0.05 * latency]]))

    outcomes = {
        "joint": [outcome(0.5, 0.6), outcome(0.6, 0.8)],
        "sequential": [outcome(0.6, 0.7), outcome(0.5, 0.9)],
        "int8": [outcome(0.7, 0.5), outcome(0.7, 0.5)],
    }
    rows = {row.metric: row for row in comparison_rows(task, outcomes, 24)}
    assert (rows["wins_of_2"].ours, rows["wins_over_int8_of_2"].ours) == (1, 2)
    assert (rows["wins_of_2_held_out"].ours, rows["wins_over_int8_of_2_held_out"].ours) == (2, 0)
    assert rows["hv_joint"].ours == pytest.approx(0.45 * 0.95)
    assert rows["hv_joint"].worst == pytest.approx(0.4 * 0.95)
    assert rows["hv_joint"].spread == pytest.approx(0.05 * 0.95)
    assert rows["accuracy_at_10_int8"].ours == pytest.approx(100 * (1 - 0.7 * worst_error))
    shares = [rows[f"latency_{origin}"].ours for origin in ("exact", "interpolated", "extrapolated")]
    assert sum(shares) == pytest.approx(1)


def test_accuracies_are_found_out_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanax.supernet.supernet_fingerprint", lambda params: "0" * 16)
    scored: list[Arch] = []

    def correct(archs: list[Arch], on_scored: Callable[[Arch, int, np.ndarray], None]) -> None:
        for arch in archs:
            scored.append(arch)
            on_scored(arch, 0, np.arange(8) < sum(arch.choices) % 8)

    evaluator = SimpleNamespace(space=PLAIN, params={}, n_calibration=4, n_validation=8, correct=correct)
    codes = np.unique(PLAIN.sample(np.random.default_rng(0), 5), axis=0)
    expected = codes.sum(axis=1) % 8 / 8
    accuracies = KeptAccuracies(evaluator, "some", tmp_path)
    np.testing.assert_array_equal(accuracies(codes[:2]), expected[:2])
    np.testing.assert_array_equal(accuracies(codes[[1, 1, 2]]), expected[[1, 1, 2]])
    np.testing.assert_array_equal(KeptAccuracies(evaluator, "some", tmp_path)(codes), expected)
    assert len(scored) == len(set(scored)) == len(codes)
