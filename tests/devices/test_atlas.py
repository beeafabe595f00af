from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hanax.devices import TableError, load_atlas
from hanax.devices._atlas import ATLAS_FILE, COLUMNS, Atlas, atlas_space, combine_passes
from hanax.search_spaces import SpaceMismatchError, mobilenet_v3


def one_pass(costs: list[float], **changes: Any) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "arch": [f"0.{index}" for index in range(len(costs))],
            "cost": costs,
            "low": [0.9 * cost for cost in costs],
            "high": [1.1 * cost for cost in costs],
            "converged": True,
            "measured_at": "2025-01-01T00:00:00+00:00",
        }
    )
    return frame.assign(**changes)


def combine(*passes: pd.DataFrame) -> tuple[Any, pd.DataFrame]:
    return combine_passes("device", "measured", "ms", "in words", "0123", passes)


def test_two_passes_become_one_cost_and_say_how_much_they_differ() -> None:
    first, second = one_pass([float(cost) for cost in range(1, 13)]), one_pass([4.0 * cost for cost in range(1, 13)])
    device, frame = combine(first, second)
    np.testing.assert_allclose(frame["cost"], 2.0 * np.arange(1, 13))
    np.testing.assert_allclose(frame["low"], 0.9 * np.arange(1, 13))
    np.testing.assert_allclose(frame["high"], 4.4 * np.arange(1, 13))
    assert list(frame.columns) == list(COLUMNS)
    assert (device.reliability, device.drift, device.n_archs) == (1.0, 4.0, 12)
    assert device.median_difference == pytest.approx(0.0)


def test_networks_in_another_order_are_a_low_reliability() -> None:
    costs = [float(cost) for cost in range(1, 13)]
    device, _ = combine(one_pass(costs), one_pass(costs[::-1]))
    assert device.reliability == pytest.approx(-1.0)


def test_passes_are_joined_by_architecture() -> None:
    costs = [float(cost) for cost in range(1, 13)]
    second = one_pass(costs)
    second = second.iloc[::-1].iloc[:-1]  # another order, the first network missing
    device, frame = combine(one_pass(costs), second)
    assert (device.reliability, device.n_archs) == (1.0, 11)
    np.testing.assert_allclose(frame["cost"], costs[1:])


def test_what_cannot_be_joined_is_refused() -> None:
    costs = [float(cost) for cost in range(1, 13)]
    with pytest.raises(ValueError, match="two passes are needed; got 1"):
        combine(one_pass(costs))
    with pytest.raises(ValueError, match="share 9 architectures; at least 10"):
        combine(one_pass(costs), one_pass(costs[:9]))


def test_the_atlas_that_ships_has_many_devices_that_are_reliable_and_differ() -> None:
    atlas = load_atlas()
    assert len(atlas.devices) >= 10
    assert len({device.name for device in atlas.devices}) == len(atlas.devices)
    assert all(device.n_archs == 400 and device.reliability >= 0.98 for device in atlas.devices)
    costs = atlas.costs()
    assert costs.shape == (400, len(atlas.devices))
    assert np.isfinite(costs).all() and (costs > 0).all()
    correlations = atlas.rank_correlations()
    pairs = {(a, b): correlations[a, b] for a, b in itertools.combinations(range(len(atlas.devices)), 2)}
    assert sum(value < 0.8 for value in pairs.values()) >= 6
    nearly_others = {b for (_, b), value in pairs.items() if value > 0.99}
    assert len(atlas.devices) - len(nearly_others) >= 10


def test_what_the_atlas_says_of_its_devices_follows_from_its_rows() -> None:
    atlas = load_atlas()
    for device in atlas.devices:
        rows = atlas.frame[atlas.frame["device"] == device.name]
        assert device.reliability == pytest.approx(rows["first_pass"].corr(rows["second_pass"], method="spearman"))
        assert ((rows["low"] <= rows["cost"]) & (rows["cost"] <= rows["high"])).all()
        np.testing.assert_allclose(rows["cost"] ** 2, rows["first_pass"] * rows["second_pass"])


def test_the_architectures_of_the_atlas_are_networks_of_its_space() -> None:
    atlas = load_atlas()
    space = atlas.space
    codes = space.encode(atlas.archs)
    np.testing.assert_array_equal(space.canonical(codes), codes)
    assert {space.largest, space.smallest} <= set(atlas.archs)
    assert len(set(atlas.archs)) == 400


def test_an_atlas_is_read_as_it_was_written(tmp_path: Path) -> None:
    atlas = load_atlas()
    atlas.write(tmp_path / "again.parquet")
    again = load_atlas(tmp_path / "again.parquet")
    pd.testing.assert_frame_equal(again.frame, atlas.frame)
    assert (again.devices, again.method, again.space) == (atlas.devices, atlas.method, atlas.space)


def test_what_is_no_atlas_or_another_spaces_is_refused(tmp_path: Path) -> None:
    atlas = load_atlas()
    other: Atlas = dataclasses.replace(atlas, space=mobilenet_v3())
    other.write(tmp_path / "other.parquet")
    with pytest.raises(SpaceMismatchError):
        load_atlas(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(TableError, match="not a readable Parquet file"):
        load_atlas(tmp_path / "text.parquet")
    atlas.frame.to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(TableError, match="not a latency atlas"):
        load_atlas(tmp_path / "plain.parquet")


def test_the_atlas_is_small_enough_to_ship() -> None:
    assert ATLAS_FILE.stat().st_size < 2_000_000
    assert atlas_space().fingerprint == load_atlas().space.fingerprint
