"""BitFusion: the sum of the file's rows, and an estimate that is never silent for what the file lacks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hanax.devices import BitFusion, BitFusionTable, TableError, code_costs, cost_device, graph_costs
from hanax.search_spaces import INPUT, Graph, Operator, SearchSpace, mobilenet_v3, nas_bench_201

SIZES = (4, 8, 16)
CHANNELS = (8, 16, 24, 48)
BITS = ((4, 4), (4, 8), (8, 8))


def law(layer: tuple[int, ...], bits: tuple[int, int]) -> dict[str, float]:
    """Made-up costs that add up over MACs, values and channels, as the fit assumes."""
    in_channels, out_channels, side, kernel, stride, _, groups = layer
    pixels = (side // stride) ** 2
    if groups > 1:
        return {
            "latency": 1e-6 * in_channels * pixels * kernel**2 * sum(bits) + 1e-3,
            "energy": 1e-6 * in_channels * (pixels + side**2),
        }
    macs = pixels * in_channels * out_channels
    return {
        "latency": 1e-8 * macs * sum(bits) + 1e-7 * pixels * out_channels,
        "energy": 1e-8 * macs + 1e-5 * in_channels + 1e-3,
    }


def made_up_rows() -> dict[str, dict[str, float]]:
    layers: list[tuple[int, ...]] = [
        (a, b, s, 1, 1, 0, 1) for a, b in itertools.permutations(CHANNELS, 2) for s in SIZES
    ]
    layers += [(c, c, s, k, stride, k // 2, c) for c in CHANNELS for s in SIZES for k in (3, 5) for stride in (1, 2)]
    rows = {f"{layer}-W{w}A{a}": law(layer, (w, a)) for layer in layers for w, a in BITS}
    return rows | {"head": {"latency": 0.3, "energy": 0.5}, "tail": {"latency": 0.1, "energy": 0.2}}


def write(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def table(tmp_path: Path) -> BitFusionTable:
    return BitFusionTable.read(write(tmp_path / "made_up.dict", made_up_rows()))


@pytest.fixture(scope="module")
def public(shared_data: Callable[[str], Path]) -> BitFusionTable:
    return BitFusionTable.read(shared_data("apq/BitFusion_new.b1.dict"))


def bottleneck(side: int, narrow: int, wide: int, kernel: int) -> Graph:
    """Expansion, depthwise convolution, projection, residual."""
    inner, outer = (wide, side, side), (narrow, side, side)
    return Graph(
        outer,
        (
            Operator("expand", "conv", (INPUT,), outer, inner, has_norm=True),
            Operator("depthwise", "conv", ("expand",), inner, inner, kernel, groups=wide, has_norm=True),
            Operator("project", "conv", ("depthwise",), inner, outer, has_norm=True),
            Operator("add", "add", ("project", INPUT), outer, outer),
        ),
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_layer_of_the_file_and_no_more(table: BitFusionTable) -> None:
    assert len(table.rows) == len(made_up_rows()) - 2
    assert table.bits == sorted(BITS)
    assert len(table.sha256) == 64


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"a": 1}',
        '{"(1, 2)-W4A4": {"latency": 1, "energy": 1}}',
        '{"(1, 2, 3, 1, 1, 0, 1)-W4A4": {"latency": 1}}',
        '{"(1, 2, 3, 1, 1, 0, 1)-W4A4": {"latency": -1, "energy": 1}}',
        '{"(1, 2, 3, 1, 1, 0, 1)-W4A4": {"latency": NaN, "energy": 1}}',
        '{"(1, 2, 3, 1, 1, 0, 1)-4": {"latency": 1, "energy": 1}}',
        '{"__import__(1)-W4A4": {"latency": 1, "energy": 1}}',
    ],
)
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(content)
    with pytest.raises(TableError, match=r"other is not BitFusion_new\.b1\.dict"):
        BitFusionTable.read(tmp_path / "other")


# ---- costs -----------------------------------------------------------------------------------------------------------


def test_a_network_costs_the_sum_of_its_rows(table: BitFusionTable) -> None:
    rows, cost = made_up_rows(), table.graph_cost(bottleneck(8, 8, 24, 5), (4, 8))
    layers = [(8, 24, 8, 1, 1, 0, 1), (24, 24, 8, 5, 1, 2, 24), (24, 8, 8, 1, 1, 0, 1)]
    assert cost.latency_ms == pytest.approx(sum(rows[f"{layer}-W4A8"]["latency"] for layer in layers), rel=1e-12)
    assert cost.energy_mj == pytest.approx(sum(rows[f"{layer}-W4A8"]["energy"] for layer in layers), rel=1e-12)
    assert (cost.exact_share, cost.interpolated_share, cost.extrapolated_share) == (1, 0, 0)


def test_every_operator_may_have_bits_of_its_own(table: BitFusionTable) -> None:
    graph = bottleneck(8, 8, 24, 5)
    mixed = table.graph_cost(graph, {"expand": (8, 8), "depthwise": (4, 4), "project": (4, 8)})
    weighted = zip(graph.operators[:3], [(8, 8), (4, 4), (4, 8)], strict=True)
    alone = [table.layer_cost(op, bits)[0][0] for op, bits in weighted]
    assert mixed.latency_ms == pytest.approx(sum(alone))
    with pytest.raises(ValueError, match="no bits are given for project; there are some for expand, depthwise"):
        table.graph_cost(graph, {"expand": (8, 8), "depthwise": (4, 4)})
    with pytest.raises(ValueError, match=r"has W/A bits .*; asked for was \(2, 8\)"):
        table.graph_cost(graph, (2, 8))


def test_the_fit_finds_the_law_behind_the_rows_and_says_what_it_estimated(table: BitFusionTable) -> None:
    graph = bottleneck(12, 8, 32, 3)
    cost = table.graph_cost(graph, (8, 8))
    layers = [(8, 32, 12, 1, 1, 0, 1), (32, 32, 12, 3, 1, 1, 32), (32, 8, 12, 1, 1, 0, 1)]
    assert cost.latency_ms == pytest.approx(sum(law(layer, (8, 8))["latency"] for layer in layers), rel=1e-6)
    assert cost.energy_mj == pytest.approx(sum(law(layer, (8, 8))["energy"] for layer in layers), rel=1e-6)
    assert (cost.exact_share, cost.interpolated_share, cost.extrapolated_share) == (0, 1, 0)
    assert all(error.p90 < 1e-6 for error in table.fit_errors().values())


def test_what_lies_outside_the_rows_is_called_extrapolated(table: BitFusionTable) -> None:
    def share(op: Operator) -> str:
        return table.layer_cost(op, (8, 8))[1]

    assert share(Operator("wide", "conv", (INPUT,), (8, 8, 8), (512, 8, 8))) == "extrapolated"
    assert share(Operator("stem", "conv", (INPUT,), (3, 16, 16), (16, 8, 8), kernel_size=3, stride=2)) == "extrapolated"
    assert share(Operator("dense", "dense", (INPUT,), (16, 1, 1), (8, 1, 1))) == "extrapolated"
    large = Operator("dw", "conv", (INPUT,), (16, 8, 8), (16, 8, 8), kernel_size=7, groups=16)
    assert share(large) == "extrapolated"
    shares = table.graph_cost(mobilenet_v3(resolutions=(64,)).graph(mobilenet_v3(resolutions=(64,)).largest), (8, 8))
    assert shares.exact_share + shares.interpolated_share + shares.extrapolated_share == pytest.approx(1)


def test_an_estimate_never_falls_when_a_layer_grows(table: BitFusionTable) -> None:
    def costs(in_channels: int, out_channels: int, side: int) -> np.ndarray:
        op = Operator("op", "conv", (INPUT,), (in_channels, side, side), (out_channels, side, side))
        return np.array(table.layer_cost(op, (4, 8))[0])

    for shape in [(10, 10, 5), (100, 7, 9), (2, 300, 40)]:
        for axis in range(3):
            larger = [extent + (position == axis) for position, extent in enumerate(shape)]
            assert (costs(*larger) >= costs(*shape)).all()


def test_as_a_cost_model_it_gives_the_same_for_many_networks(table: BitFusionTable, space: SearchSpace) -> None:
    names = {op.name for op in space.graph(space.largest).operators if op.is_weighted}
    mixed = {name: (4, 8) if "depthwise" in name else (8, 8) for name in names}
    codes = space.sample(np.random.default_rng(0), 6)
    for model in (BitFusion(table, (4, 4)), BitFusion(table, mixed)):
        graphs = [space.graph(arch) for arch in space.decode(codes)]
        found = [table.graph_cost(graph, model.bits) for graph in graphs]
        np.testing.assert_allclose(code_costs(model, space, codes), [(c.latency_ms, c.energy_mj) for c in found])
        assert graph_costs(model, graphs[0])["energy_mj"] == pytest.approx(found[0].energy_mj)
    assert BitFusion(table, (4, 4)).name == "bitfusion-w4a4"
    prints = {cost_device(BitFusion(table, bits)).fingerprint for bits in (*BITS, mixed)}
    assert len(prints) == 4


def test_equal_blocks_of_different_slots_have_the_bits_of_their_own_names(table: BitFusionTable) -> None:
    cells = nas_bench_201(resolutions=(8,), stage_widths=(8,), cells_per_stage=2)
    codes = cells.encode([cells.largest])
    names = [op.name for op in cells.graph(cells.largest).operators if op.is_weighted]
    mixed = {name: (4, 8) if "cell2" in name else (8, 8) for name in names}
    found = table.graph_cost(cells.graph(cells.largest), mixed)
    np.testing.assert_allclose(code_costs(BitFusion(table, mixed), cells, codes), [(found.latency_ms, found.energy_mj)])
    assert found.latency_ms != pytest.approx(table.graph_cost(cells.graph(cells.largest), (8, 8)).latency_ms)


# ---- the public file -------------------------------------------------------------------------------------------------


def apq_network() -> Graph:
    """A network of APQ's space at 224 pixels, without head and tail: 21 blocks of expansion 6 and kernel 5."""
    widths, sides, strides = [16, 24, 40, 80, 96, 192, 320], [112, 56, 28, 14, 14, 7], [2, 2, 2, 1, 2, 1]
    ops: list[Operator] = []
    shape, source = (16, 112, 112), INPUT
    for stage, (width, side, stride) in enumerate(zip(widths[1:], sides, strides, strict=True)):
        assert shape[1] == side
        for block in range(4 if stage < 5 else 1):
            step = stride if block == 0 else 1
            wide = (6 * shape[0], *shape[1:])
            small = (wide[0], shape[1] // step, shape[2] // step)
            name = f"{stage}.{block}"
            ops += [
                Operator(f"{name}.expand", "conv", (source,), shape, wide),
                Operator(f"{name}.depthwise", "conv", (f"{name}.expand",), wide, small, 5, step, wide[0]),
                Operator(f"{name}.project", "conv", (f"{name}.depthwise",), small, (width, *small[1:])),
            ]
            shape, source = (width, *small[1:]), f"{name}.project"
    return Graph((16, 112, 112), tuple(ops))


def test_a_network_of_apq_costs_the_sum_of_the_public_rows(
    public: BitFusionTable, shared_data: Callable[[str], Path]
) -> None:
    assert len(public.rows) == 6567
    rows = json.loads(shared_data("apq/BitFusion_new.b1.dict").read_text())
    graph = apq_network()
    layers = [
        (op.in_shape[0], op.out_shape[0], op.in_shape[1], op.kernel_size, op.stride, op.kernel_size // 2, op.groups)
        for op in graph.operators
    ]
    for w, a in itertools.product((4, 6, 8), repeat=2):
        keys = [f"{layer}-W{w}A{a}" for layer in layers]
        cost = public.graph_cost(graph, (w, a))
        assert cost.latency_ms == pytest.approx(sum(rows[key]["latency"] for key in keys), rel=1e-12)
        assert cost.energy_mj == pytest.approx(sum(rows[key]["energy"] for key in keys), rel=1e-12)
        assert cost.exact_share == 1


def test_more_bits_cost_a_network_more(public: BitFusionTable) -> None:
    space = mobilenet_v3(resolutions=(160, 224))
    for arch in (space.largest, space.smallest):
        costs = {bits: public.graph_cost(space.graph(arch), bits) for bits in public.bits}
        for (w, a), cost in costs.items():
            for more in ((w + 2, a), (w, a + 2)):
                if more in costs:
                    assert costs[more].latency_ms > cost.latency_ms
        assert costs[8, 8].energy_mj > costs[6, 6].energy_mj > costs[4, 4].energy_mj


def test_layers_at_other_sizes_are_estimated_as_well_as_the_module_says(public: BitFusionTable) -> None:
    errors = public.fit_errors(leave_out="size")
    assert errors["pointwise.latency_ms"].n_rows == 3015
    assert errors["depthwise.latency_ms"].n_rows == 3552
    found = {name: (round(error.median, 2), round(error.p90, 2)) for name, error in errors.items()}
    expected = {
        "pointwise.latency_ms": (0.11, 0.37),
        "pointwise.energy_mj": (0.13, 0.39),
        "depthwise.latency_ms": (0.02, 0.07),
        "depthwise.energy_mj": (0.23, 0.51),
    }
    assert {name: pytest.approx(of, abs=0.011) for name, of in found.items()} == expected


@pytest.mark.slow
def test_layers_between_the_rows_are_estimated_as_well_as_the_module_says(public: BitFusionTable) -> None:
    found = {name: (round(error.median, 2), round(error.p90, 2)) for name, error in public.fit_errors().items()}
    expected = {
        "pointwise.latency_ms": (0.06, 0.15),
        "pointwise.energy_mj": (0.06, 0.16),
        "depthwise.latency_ms": (0.01, 0.05),
        "depthwise.energy_mj": (0.12, 0.24),
    }
    assert {name: pytest.approx(of, abs=0.011) for name, of in found.items()} == expected
