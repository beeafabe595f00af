from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hanax.experiments import _reproduce_accuracy
from hanax.experiments._reproduce_accuracy import AccuracyData, load_macro, reproduce_accuracy
from hanax.search_spaces import graph_features, nas_bench_macro


def _made_up(folder: Path) -> AccuracyData:
    """Networks of NAS-Bench-Macro's space whose accuracies approach 93 % with every larger layer."""
    space = nas_bench_macro()
    codes = np.unique(space.sample(np.random.default_rng(0), 400), axis=0)
    accuracy = 93.0 - 20.0 * np.exp(-0.4 * codes.sum(axis=1))
    return AccuracyData(space, codes, accuracy + 0.05 * np.random.default_rng(1).normal(size=len(codes)), 3)


def test_macro_networks_have_the_macs_and_parameters_that_were_published() -> None:
    space = nas_bench_macro()
    names, sums = graph_features(space, space.encode([space.smallest, space.largest]))
    macs, params = sums[:, names.index("macs")], sums[:, names.index("params")]
    np.testing.assert_array_equal(macs, [7713280, 105660928])
    np.testing.assert_array_equal(params, [387882, 2932586])


def test_all_macro_networks_have_the_macs_and_parameters_of_the_published_file(
    shared_data: Callable[[str], Path],
) -> None:
    folder = shared_data("nas-bench-macro")
    data = load_macro(folder.parent)
    names, sums = graph_features(data.space, data.codes)
    from hanax.devices.public import find_source, import_source

    frame = import_source(find_source("nas-bench-macro"), folder).tables[0].frame
    for name in ("macs", "params"):
        np.testing.assert_array_equal(sums[:, names.index(name)], frame[name])


def test_every_method_is_scored_on_the_networks_that_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reproduce_accuracy, "N_STEPS", 3)
    monkeypatch.setattr(_reproduce_accuracy, "SAMPLE_SIZES", (50,))
    said: list[str] = []
    result = reproduce_accuracy("made-up", _made_up, Path(), 2, said.append)
    figures = {row.metric: row for row in result.rows}
    assert {"mae_50", "spearman_50", "coverage_90_50", "ridge_mae_50", "ridge_features_spearman_50", "mlp_mae_50",
            "chosen_mae_50", "unseen_half_ours_mae_50", "unseen_half_ridge_spearman_50"} <= set(figures)  # fmt: skip
    assert figures["mae_50"].ours < 0.5 * figures["ridge_mae_50"].ours
    assert figures["spearman_50"].worst <= figures["spearman_50"].ours <= 1.0
    assert figures["mae_50"].worst >= figures["mae_50"].ours
    assert 0.7 < figures["coverage_90_50"].ours < 1.0
    assert "mlp_coverage_90_50" not in figures and all(row.n == 50 for row in result.rows)
    assert len(said) == 2


def test_draws_are_random_and_nested() -> None:
    rows = np.arange(100, 300)
    small, large = (list(_reproduce_accuracy._draws(rows, n, 3)) for n in (20, 50))
    for one, other in zip(small, large, strict=True):
        np.testing.assert_array_equal(other[:20], one)
        assert len(np.unique(other)) == 50 and np.isin(other, rows).all()
    assert not np.array_equal(np.sort(small[0]), np.sort(small[1]))
