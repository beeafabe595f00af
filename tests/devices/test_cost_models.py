"""Counts and rooflines, and what holds for every cost model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hanax.devices import (
    COST_MODELS,
    CostModel,
    DeviceProfile,
    ModelFileError,
    Roofline,
    UnknownDeviceError,
    code_costs,
    collect_costs,
    cost_column,
    cost_device,
    cost_model_names,
    device_statuses,
    find_cost_model,
    find_device,
    graph_costs,
    roofline_latency_s,
)
from hanax.search_spaces import INPUT, Graph, Operator, SearchSpace, fbnet, mobilenet_v3, nas_bench_201

in_each_model = pytest.mark.parametrize("model", COST_MODELS.values(), ids=COST_MODELS.keys())

CONV = Operator("conv", "conv", (INPUT,), (2, 4, 4), (3, 4, 4), kernel_size=3, has_norm=True)
POOL = Operator("pool", "global_pool", ("conv",), (3, 4, 4), (3, 1, 1))
DENSE = Operator("dense", "dense", ("pool",), (3, 1, 1), (5, 1, 1), has_bias=True)
SMALL = Graph((2, 4, 4), (CONV, POOL, DENSE))

CELLS = nas_bench_201(resolutions=(7, 8), stage_widths=(4, 6), cells_per_stage=2)
FBNET = fbnet(stages=((1, 8, 1), (2, 12, 2)), stem_width=8, head_width=24)


# ---- every model -----------------------------------------------------------------------------------------------------


@in_each_model
def test_costs_of_many_networks_are_those_of_each_graph(model: CostModel, space: SearchSpace) -> None:
    for each, n in ((space, 8), (mobilenet_v3(resolutions=(32, 40), stem_stride=1), 3), (CELLS, 8), (FBNET, 3)):
        codes = each.sample(np.random.default_rng(0), n)
        expected = [list(graph_costs(model, each.graph(arch)).values()) for arch in each.decode(codes)]
        np.testing.assert_allclose(code_costs(model, each, codes), expected, rtol=1e-12)


@in_each_model
def test_cells_that_compute_nothing_cost_what_their_graphs_cost(model: CostModel) -> None:
    codes = CELLS.encode([CELLS.smallest, CELLS.arch({"edge03": 1, "edge13": 0, "edge23": 0})])
    expected = [list(graph_costs(model, CELLS.graph(arch)).values()) for arch in CELLS.decode(codes)]
    costs = code_costs(model, CELLS, codes)
    np.testing.assert_allclose(costs, expected, rtol=1e-12)
    assert (costs > 0).all()


@in_each_model
def test_every_cost_is_positive_and_the_largest_network_costs_most(model: CostModel, space: SearchSpace) -> None:
    codes = space.encode([space.largest, space.smallest, *space.decode(space.sample(np.random.default_rng(1), 40))])
    costs = code_costs(model, space, codes)
    assert (costs > 0).all()
    assert (costs[0] == costs.max(axis=0)).all()
    assert (costs[1] == costs.min(axis=0)).all()


@in_each_model
def test_every_model_has_a_description_a_source_and_units(model: CostModel, space: SearchSpace) -> None:
    assert isinstance(model, CostModel)
    assert model.description and model.source
    assert find_cost_model(model.name) is model
    assert len(model.costs) == len(set(model.costs)) > 0
    assert str(cost_device(model)).startswith(model.name)


def test_no_two_models_have_one_fingerprint() -> None:
    prints = [cost_device(model).fingerprint for model in COST_MODELS.values()]
    assert len(set(prints)) == len(prints)


def test_a_modelled_table_holds_what_the_graphs_say(space: SearchSpace, tmp_path: Path) -> None:
    model = find_cost_model("roofline-cortex-a72")
    archs = space.decode(space.canonical(space.sample(np.random.default_rng(3), 5)))
    table = collect_costs(
        space,
        archs,
        cost_device(model),
        model.costs[0],
        lambda batch: code_costs(model, space, space.encode(batch))[:, 0],
        tmp_path / "table.parquet",
    )
    assert table.costs() == pytest.approx([graph_costs(model, space.graph(a))["latency_ms"] for a in table.archs()])
    assert "peak_macs_per_s 6000000000" in table.device_description


def test_a_cost_that_a_model_does_not_give_is_refused() -> None:
    model = find_cost_model("systolic-16x16-ws")
    assert [cost_column(model, name) for name in (None, "latency_ms", "energy_mj")] == [0, 0, 1]
    with pytest.raises(ValueError, match="systolic-16x16-ws gives latency_ms, energy_mj; asked for was macs"):
        cost_column(model, "macs")


# ---- names -----------------------------------------------------------------------------------------------------------


def test_cost_models_are_listed_with_what_they_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HANAX_BITFUSION", raising=False)
    statuses = {status.name: status for status in device_statuses() if status.kind == "modelled"}
    assert list(statuses) == cost_model_names()
    assert all(status.available == (name in COST_MODELS) for name, status in statuses.items())
    lacking = statuses["bitfusion-w8a8"]
    assert lacking.missing is not None and "github.com/mit-han-lab/apq" in lacking.missing
    assert lacking.install == "export HANAX_BITFUSION=PATH/TO/BitFusion_new.b1.dict"

    monkeypatch.setenv("HANAX_BITFUSION", str(tmp_path / "absent"))
    (absent,) = [status for status in device_statuses() if status.name == "bitfusion-w4a4"]
    assert absent.missing == f"the file that HANAX_BITFUSION names, {tmp_path / 'absent'}"
    (tmp_path / "absent").write_text("{}")
    assert all(status.available for status in device_statuses() if status.name.startswith("bitfusion"))


def test_a_cost_model_is_not_run_and_the_error_says_how_to_use_it() -> None:
    with pytest.raises(UnknownDeviceError, match=r"macs is a cost model.*`hanax collect latency --device macs`"):
        find_device("macs")
    with pytest.raises(UnknownDeviceError, match="did you mean 'roofline-cortex-a72'"):
        find_device("roofline-cortexa72")


def test_a_model_that_reads_a_file_asks_for_it_and_others_refuse_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HANAX_BITFUSION", raising=False)
    with pytest.raises(ModelFileError, match=r"bitfusion-w8a8 reads BitFusion_new.*HANAX_BITFUSION"):
        find_cost_model("bitfusion-w8a8")
    with pytest.raises(FileNotFoundError):
        find_cost_model("bitfusion-w8a8", tmp_path / "absent")
    with pytest.raises(ValueError, match="macs reads no file"):
        find_cost_model("macs", tmp_path)
    with pytest.raises(ValueError, match="no cost model 'mac'; known: macs, params"):
        find_cost_model("mac")


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_counts_of_a_small_network_are_those_counted_by_hand() -> None:
    assert graph_costs(COST_MODELS["macs"], SMALL) == {"macs": 3 * 4 * 4 * 2 * 9 + 3 * 5}
    assert graph_costs(COST_MODELS["params"], SMALL) == {"params": (3 * 2 * 9 + 2 * 3) + (3 * 5 + 5)}
    # While the convolution runs, its input and its output are alive.
    assert graph_costs(COST_MODELS["peak-memory"], SMALL) == {"peak_bytes": 4 * (2 * 16 + 3 * 16)}
    assert graph_costs(COST_MODELS["peak-memory-int8"], SMALL) == {"peak_bytes": 2 * 16 + 3 * 16}


# ---- roofline --------------------------------------------------------------------------------------------------------

PROFILE = DeviceProfile("test", "fp32", peak_macs_per_s=8e9, memory_bytes_per_s=2e9, source="made up")


def test_the_bound_is_the_memorys_left_of_the_ridge_and_the_peaks_right_of_it() -> None:
    ridge = PROFILE.peak_macs_per_s / PROFILE.memory_bytes_per_s  # MACs per byte
    traffic = 1e6
    assert roofline_latency_s(0.5 * ridge * traffic, traffic, PROFILE) == traffic / PROFILE.memory_bytes_per_s
    assert roofline_latency_s(2 * ridge * traffic, traffic, PROFILE) == 2 * traffic / PROFILE.memory_bytes_per_s
    assert roofline_latency_s(2 * ridge * traffic, traffic, PROFILE) == 2 * ridge * traffic / PROFILE.peak_macs_per_s


def test_the_roofline_of_a_small_network_is_the_one_computed_by_hand() -> None:
    fast = dataclasses.replace(PROFILE, peak_macs_per_s=1e15)
    conv, pool, dense = 2 * 16 + 60 + 3 * 16, 3 * 16 + 3, 3 + 20 + 5
    assert graph_costs(Roofline(fast), SMALL)["latency_ms"] == pytest.approx(1e3 * 4 * (conv + pool + dense) / 2e9)
    wide = dataclasses.replace(PROFILE, memory_bytes_per_s=1e15)
    assert graph_costs(Roofline(wide), SMALL)["latency_ms"] == pytest.approx(1e3 * (864 + 15) / 8e9, rel=1e-3)


def test_a_smaller_number_format_halves_the_traffic() -> None:
    slow = dataclasses.replace(PROFILE, peak_macs_per_s=1e15)
    latencies = [
        graph_costs(Roofline(dataclasses.replace(slow, dtype=dtype)), SMALL)["latency_ms"]
        for dtype in ("fp32", "fp16", "int8")
    ]
    assert latencies == pytest.approx([4 * latencies[2], 2 * latencies[2], latencies[2]])


@pytest.mark.parametrize("field", ["peak_macs_per_s", "memory_bytes_per_s"])
def test_a_rate_that_cannot_be_true_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"test: {field} must be positive; it is 0"):
        dataclasses.replace(PROFILE, **{field: 0.0})
