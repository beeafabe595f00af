from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine

from hanax.devices.public import HELP_SPLITS
from hanax.experiments._latency_benchmark import HiddenDevice, LatencyData, spearman
from hanax.experiments._reproduce_exact import reproduce_exact
from hanax.experiments._reproduce_latency import TASKS, _Results, reproduce_atlas
from hanax.experiments._reproduction import Reproduction, Row


def test_a_hidden_device_counts_what_was_measured_and_scores_the_rest() -> None:
    latency_ms = np.arange(1.0, 2001.0)
    device = HiddenDevice(latency_ms)
    np.testing.assert_array_equal(device.measure(np.array([3, 5, 3])), [4.0, 6.0, 4.0])
    device.measure(np.array([5, 7]))
    assert device.n_measured == 3
    query = device.trimmed_query(900)
    np.testing.assert_array_equal(query, np.arange(1000, 1800))
    np.testing.assert_array_equal(device.band(np.arange(100)), np.arange(10, 90))
    perfect = device.score(query, latency_ms[query], (latency_ms[query] - 1, latency_ms[query] + 1))
    assert (perfect.spearman, perfect.mape, perfect.within_5_percent, perfect.coverage) == (pytest.approx(1.0), 0, 1, 1)
    off = device.score(query, 1.08 * latency_ms[query], (latency_ms[query] + 1, latency_ms[query] + 2))
    assert off.spearman == pytest.approx(1.0) and off.mape == pytest.approx(0.08)
    assert (off.within_5_percent, off.within_10_percent, off.coverage) == (0.0, 1.0, 0.0)


def test_a_hidden_device_shows_its_latencies_to_nobody() -> None:
    assert not [name for name in vars(HiddenDevice(np.ones(3))) if not name.startswith("_HiddenDevice__")]


def test_what_did_not_run_on_a_device_is_neither_measured_nor_asked() -> None:
    device = HiddenDevice(np.array([1.0, np.nan, 2.0]))
    np.testing.assert_array_equal(device.can_be_measured(np.arange(3)), [0, 2])


def test_a_constant_prediction_ranks_nothing() -> None:
    assert spearman(np.ones(4), np.arange(4.0)) == 0.0


def test_no_task_trains_on_its_test_devices() -> None:
    assert len(TASKS) == 12
    for task in TASKS.values():
        assert not set(task.train) & set(task.test)
    assert TASKS["ND"].test == HELP_SPLITS["nasbench201"]["test"]


def test_a_pool_holds_the_source_devices_alone() -> None:
    from hanax.predictors import latency_features
    from hanax.search_spaces import fbnet

    space = fbnet()
    codes = space.sample(np.random.default_rng(0), 20)
    latency_ms = np.arange(60.0).reshape(20, 3) + 1
    X = latency_features(space, codes)
    data = LatencyData(space, X, np.ones(20), latency_ms, ("a", "b", "c"), np.arange(3))
    pool = data.pool(np.array([4, 2]), ("c", "a"))
    assert pool.devices == ("c", "a")
    np.testing.assert_array_equal(pool.costs, latency_ms[[4, 2]][:, [2, 0]])
    np.testing.assert_array_equal(pool.X, X[[4, 2]])


def test_rows_say_mean_spread_and_the_worst_draw_of_any_device() -> None:
    device = HiddenDevice(np.array([1.0, 2.0, 3.0]))
    results = _Results()
    rows = np.arange(3)
    for name, orders in (("one", ([1, 2, 3], [1, 2, 3])), ("two", ([3, 2, 1], [1, 2, 3]))):
        results.add("ours_n10", name, [device.score(rows, np.array(order, dtype=float)) for order in orders])
    row = results.row("ours_n10", "ours", 0.5)
    assert (row.published, row.ours, row.worst, row.n) == (0.5, pytest.approx(0.5), pytest.approx(-1.0), 10)
    assert row.spread == pytest.approx(0.5)  # draws have the means 0 and 1
    assert results.median_row("median", "ours_n10").ours == pytest.approx(0.5)


def test_the_json_has_the_rows_and_the_versions(tmp_path: Path) -> None:
    row = Row("ours_n10", None, 0.9, 0.01, 0.8, 10, "spearman")
    Reproduction("name", "title", [row], 1.5).write(tmp_path / "out.json")
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["name"] == "name" and record["wall_s"] == 1.5 and "jax" in record["versions"]
    assert record["rows"] == [
        {
            "metric": "ours_n10",
            "published": None,
            "ours": 0.9,
            "spread": 0.01,
            "worst": 0.8,
            "n": 10,
            "unit": "spearman",
        }
    ]


@pytest.mark.slow
def test_a_device_of_the_atlas_is_predicted_from_other_runtimes() -> None:
    """The promise of the atlas: ten measurements rank the networks of a runtime that it was without."""
    said: list[str] = []
    result = reproduce_atlas(1, said.append)
    figures = {row.metric: row for row in result.rows}
    assert figures["median_n10"].ours >= 0.95
    assert figures["ours_n10"].ours > figures["scratch_n10"].ours
    assert len(said) >= 10


def test_evolution_is_measured_against_the_exact_front(shared_data, monkeypatch) -> None:
    folder = shared_data("dynas-t")
    monkeypatch.setattr("hanax.experiments._reproduce_exact.EVALUATIONS", 300)
    monkeypatch.setattr("hanax.experiments._reproduce_exact.RESOLUTIONS", ((224,),))
    result = reproduce_exact(folder.parent, 1, lambda text: None)
    figures = {row.metric: row.ours for row in result.rows}
    assert figures["fit_residual_1_resolution"] < 0.01
    assert figures["exact_points_1_resolution"] > 1000
    assert 0 < figures["nsga2_hypervolume_gap_1_resolution"] < 50
    assert 0 < figures["nsga2_accuracy_gap_1_resolution"] < 5


def test_without_a_name_the_experiments_are_listed(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("reproduce", cwd=tmp_path)
    assert status == 0
    for name in ("help-nb201", "nasflat", "atlas", "exact-front", "ofa-search", "nb201-pareto", "macro-accuracy"):
        assert name in output


def test_an_unknown_experiment_and_a_wrong_folder_are_named(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("reproduce", "help", cwd=tmp_path)
    assert status != 0 and "no experiment is called 'help'; there are help-nb201" in output
    status, output = command_line.run("reproduce", "help-fbnet", "--data", tmp_path, cwd=tmp_path)
    assert status != 0 and str(tmp_path / "help") in output
