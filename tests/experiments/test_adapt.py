"""A predictor for a new device from few measurements: planned, measured, carried on, judged."""

from __future__ import annotations

import base64
import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
from command_line import TINY, CommandLine
from latency_rows import latency_row

from hanax.devices import (
    AgentError,
    CostDevice,
    CostTable,
    DeviceIdentity,
    DeviceSpec,
    LatencyTable,
    Ledger,
    Method,
    TableError,
    load_atlas,
)
from hanax.experiments import AdaptationCard, _adapt, _adaptation_plan, adapt, adapt_from_table, bundle_for_adapting
from hanax.experiments._adapt import find_sources, leave_out_itself
from hanax.experiments._adaptation_plan import Plan, PlanError
from hanax.experiments._sources import sources_of_tables
from hanax.predictors import PredictorCard, latency_features, load_predictor
from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError, mobilenet_v3

BRIEF = Method(warmup_runs=0, min_rounds=6, max_rounds=6, inner_ms=0.05, inner_runs=1)


class ScriptedAgent:
    """Runs models that are latencies in milliseconds, as text, in no time; it can break down after some models."""

    def __init__(self, spec: DeviceSpec, cpu_model: str = "Scripted CPU", models_left: float = math.inf) -> None:
        self.spec = spec
        self.models_left = models_left
        self._cpu_model = cpu_model
        self._latency_ns: dict[str, int] = {}

    def request(self, op: str, about: str = "", **fields: Any) -> dict[str, Any]:
        if op == "info":
            return {
                "protocol": 2, "runtime": self.spec.runtime, "runtime_version": "1", "threads": self.spec.threads,
                "cpu_model": self._cpu_model, "cores": 1,
            }  # fmt: skip
        if op == "put":
            self._latency_ns[fields["sha256"]] = round(1e6 * float(base64.b64decode(fields["base64"]).split()[0]))
        if op == "load":
            self.models_left -= 1
            if self.models_left < 0:
                self.fail(op, about, "it broke down")
        if op == "count":
            return {"instructions": self._latency_ns[fields["sha256"]] * 100 * fields["runs"]}
        if op == "bench":
            run = self._latency_ns[fields["sha256"]]
            runs = [run] * max(fields["inner_runs"], math.ceil(1e6 * fields["inner_ms"] / run))
            return {"runs_ns": runs, "wall_ns": sum(runs), "cpu_ns": sum(runs)}
        return {}

    def fail(self, op: str, about: str, problem: str) -> NoReturn:
        raise AgentError(self.spec.name, op, problem)

    def __enter__(self) -> ScriptedAgent:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def among_fewer_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be quick."""
    monkeypatch.setattr(_adaptation_plan, "N_CANDIDATES", 150)
    monkeypatch.setattr(_adapt, "N_JUDGED", 60)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_atlas().space


@pytest.fixture(scope="module")
def latency_ms(space: SearchSpace) -> Callable[[Arch], float]:
    """A device that pays for MACs and for every operator; below a millisecond, which is what may be claimed untried."""

    def of(arch: Arch) -> float:
        graph = space.graph(arch)
        return 1e-8 * graph.macs + 1e-3 * len(graph.operators)

    return of


@pytest.fixture(scope="module")
def few_tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small tables of three other devices, one of them called as the device that is measured."""
    folder = tmp_path_factory.mktemp("tables")
    names = ("litert-fp32", "ncnn-fp32", "onnxruntime-fp32")
    return [atlas_table(name, 60, folder / f"{name}.parquet") for name in names]


@pytest.fixture
def scripted(latency_ms: Callable[[Arch], float], few_tables: list[Path]) -> dict[str, Any]:
    return {
        "pool": few_tables,
        "start_agent": ScriptedAgent,
        "build_model": lambda arch: f"{latency_ms(arch):.9f} {arch}".encode(),
        "method": BRIEF,
    }


def atlas_table(device: str, n: int, path: Path, name: str = "") -> Path:
    """What the atlas says of a device, as a table."""
    atlas = load_atlas()
    column = [known.name for known in atlas.devices].index(device)
    identity = CostDevice(name or device)
    table = CostTable.empty(atlas.space, identity, "latency_ms").append(atlas.archs[:n], atlas.costs()[:n, column])
    table.write(path)
    return path


def test_a_device_left_out_of_the_atlas_is_predicted_from_ten_of_its_networks(
    space: SearchSpace, tmp_path: Path
) -> None:
    table = atlas_table("mnn-fp32", 120, tmp_path / "mnn.parquet")
    made = adapt_from_table("mnn-fp32", table, out=tmp_path / "out")
    card = made.card
    assert card.left_out == ("mnn-fp32",)
    assert len(card.sources) == len(load_atlas().devices) - 1 and "mnn-fp32" not in card.sources
    assert (len(card.samples), len(card.held_out)) == (10, 110)
    assert (card.asked_samples, card.asked_held_out) == (10, 110)
    assert (card.cost, card.unit) == ("latency_ms", "ms")
    ours = card.on_held_out["this predictor"]
    assert ours.n == 110
    assert ours.spearman > 0.9
    assert ours.mape < 0.08

    loaded = load_predictor(made.path / "predictor.npz", space, "latency_ms")
    X = latency_features(space, space.encode([Arch.parse(text) for text in card.held_out]))
    np.testing.assert_array_equal(loaded.predict(X), made.predictor.predict(X))
    stored = json.loads((made.path / "card.json").read_text(), parse_constant=pytest.fail)
    assert stored["on_held_out"]["this predictor"]["spearman"] == ours.spearman
    assert stored["samples"] == list(card.samples)


def test_a_device_is_measured_as_planned_and_the_ledger_tells_apart_what_for(
    space: SearchSpace, latency_ms: Callable[[Arch], float], scripted: dict[str, Any], tmp_path: Path
) -> None:
    made = adapt("onnxruntime-fp32", out=tmp_path, held_out=20, **scripted)
    card, table = made.card, LatencyTable.read(tmp_path / "table.parquet")
    assert card.left_out == ("onnxruntime-fp32",)
    assert "Scripted CPU" in card.identity
    assert Ledger(tmp_path / "table.ledger.jsonl").counts() == {"onnxruntime-fp32": {"table": 10, "held-out": 20}}
    assert (card.asked_samples, card.asked_held_out) == (10, 20)
    assert [str(arch) for arch in table.archs("table")] == list(card.samples)
    assert [str(arch) for arch in table.archs("held-out")] == list(card.held_out)
    assert not set(card.samples) & set(card.held_out)
    assert card.on_held_out["this predictor"].spearman > 0.9
    assert len(card.proposals) == 5 and not set(card.proposals) & {*card.samples, *card.held_out}
    assert 0 < card.width_after < 1
    X = latency_features(space, space.encode([Arch.parse(text) for text in card.proposals]))
    measured = [latency_ms(Arch.parse(text)) for text in card.proposals]
    np.testing.assert_allclose(made.predictor.predict(X), measured, rtol=0.2)


def test_an_interrupted_measurement_goes_on_and_asks_for_nothing_twice(
    scripted: dict[str, Any], tmp_path: Path
) -> None:
    def breaks_down(spec: DeviceSpec) -> ScriptedAgent:
        return ScriptedAgent(spec, models_left=105)

    with pytest.raises(AgentError, match="it broke down"):
        adapt("onnxruntime-fp32", out=tmp_path, held_out=110, **scripted | {"start_agent": breaks_down})
    plan = (tmp_path / "plan.json").read_text()
    half = len(LatencyTable.read(tmp_path / "table.parquet").frame)
    assert half == 100  # a batch
    card = adapt("onnxruntime-fp32", out=tmp_path, held_out=110, **scripted).card
    assert (tmp_path / "plan.json").read_text() == plan
    assert (len(card.samples), len(card.held_out)) == (10, 110)
    known = set(LatencyTable.read(tmp_path / "table.parquet").frame["arch"][:half])
    asked = Counter(entry["arch"] for entry in Ledger(tmp_path / "table.ledger.jsonl").entries())
    assert {asked[arch] for arch in known} == {1}
    once_more = adapt("onnxruntime-fp32", out=tmp_path, held_out=110, **scripted).card
    assert once_more == card


def test_more_samples_are_those_that_were_proposed(scripted: dict[str, Any], tmp_path: Path) -> None:
    first = adapt("onnxruntime-fp32", out=tmp_path, held_out=5, **scripted).card
    second = adapt("onnxruntime-fp32", out=tmp_path, samples=13, held_out=8, **scripted).card
    assert second.samples == (*first.samples, *first.proposals[:3])
    assert second.held_out[:5] == first.held_out and len(second.held_out) == 8
    assert (second.asked_samples, second.asked_held_out) == (13, 8)
    with pytest.raises(PlanError, match=r"has 13 networks to learn from, 8 to judge by .* but not 10, 8 and seed 0"):
        adapt("onnxruntime-fp32", out=tmp_path, samples=10, held_out=8, **scripted)
    with pytest.raises(PlanError, match="is for onnxruntime-fp32, not for tract-fp32; choose another folder"):
        adapt("tract-fp32", out=tmp_path, samples=13, held_out=8, **scripted)


def test_a_device_that_counts_is_learned_in_its_own_unit(scripted: dict[str, Any], tmp_path: Path) -> None:
    card = adapt("ncnn-aarch64-instructions", out=tmp_path, held_out=6, **scripted).card
    assert (card.cost, card.unit) == ("instructions", "instructions")
    assert card.left_out == ()
    assert Ledger(tmp_path / "table.ledger.jsonl").counts() == {
        "ncnn-aarch64-instructions": {"table": 10, "held-out": 6}
    }
    assert (card.asked_samples, card.asked_held_out) == (10, 6)
    assert card.on_held_out["this predictor"].mape < 0.2


def test_without_held_out_networks_the_samples_judge_each_other(scripted: dict[str, Any], tmp_path: Path) -> None:
    card = adapt("onnxruntime-fp32", out=tmp_path, held_out=0, **scripted).card
    assert card.on_held_out == {} and card.held_out == ()
    assert card.leave_one_out["this predictor"].n == 10
    assert card.leave_one_out["this predictor"].spearman > 0.8
    assert not any("other networks" in line for line in card.lines())


def test_the_device_itself_is_known_by_its_fingerprint_or_by_its_name(tmp_path: Path) -> None:
    atlas = find_sources(None, ())
    twin = next(device for device in atlas.devices if device.name == "ncnn-fp32")
    known, left_out = leave_out_itself(atlas, "my board", twin.fingerprint, keep_same_name=True)
    assert left_out == ("ncnn-fp32",) and len(known.devices) == len(atlas.devices) - 1
    assert leave_out_itself(atlas, "ncnn-fp32", "another", keep_same_name=False)[1] == ("ncnn-fp32",)
    assert leave_out_itself(atlas, "ncnn-fp32", "another", keep_same_name=True)[1] == ()
    alone = sources_of_tables([atlas_table("mnn-fp32", 30, tmp_path / "only.parquet")], atlas.space)
    with pytest.raises(ValueError, match=r"has no device but only, which is only itself or called the same"):
        leave_out_itself(alone, "only", "", keep_same_name=False)


def test_tables_of_other_devices_make_a_pool_with_holes(space: SearchSpace, tmp_path: Path) -> None:
    identity = DeviceIdentity("CPU", 1, "tract", "1", "fp32", 1, 1)
    archs = load_atlas().archs
    rows = [latency_row(arch, 1.0 + number) for number, arch in enumerate(archs[20:50])]
    rows += [latency_row(arch, 1.0, purpose="winner") for arch in archs[60:70]]
    LatencyTable.empty(space, identity).append(rows).write(tmp_path / "b.parquet")
    paths = [atlas_table("mnn-fp32", 40, tmp_path / "a.parquet"), tmp_path / "b.parquet"]
    sources = sources_of_tables(paths, space)
    assert [device.name for device in sources.devices] == ["a", "b"]
    assert sources.devices[1].fingerprint == identity.fingerprint
    assert len(sources.archs) == 50  # what confirmed winners of a search is not learned from
    known = np.isfinite(sources.costs)
    assert known.sum(axis=0).tolist() == [40, 30]
    alone = sources.without(["a"])
    assert alone.archs == tuple(archs[20:50])
    assert alone.pool.costs[:, 0].tolist() == [1.0 + number for number in range(30)]


def test_tables_that_do_not_fit_are_refused_by_name(space: SearchSpace, tmp_path: Path) -> None:
    table = atlas_table("mnn-fp32", 20, tmp_path / "a.parquet")
    other = mobilenet_v3(resolutions=(48,), n_classes=10)
    with pytest.raises(SpaceMismatchError, match=rf"{space.fingerprint}.*{other.fingerprint}"):
        sources_of_tables([table], other)
    (tmp_path / "again").mkdir()
    with pytest.raises(TableError, match="two tables are called a"):
        sources_of_tables([table, atlas_table("mnn-fp32", 20, tmp_path / "again" / "a.parquet")], space)
    CostTable.empty(space, CostDevice("x"), "latency_ms").write(tmp_path / "empty.parquet")
    with pytest.raises(TableError, match=r"empty\.parquet holds no costs"):
        sources_of_tables([tmp_path / "empty.parquet"], space)
    with pytest.raises(ValueError, match=rf"{space.fingerprint}; this is .* {other.fingerprint}\. Give tables"):
        find_sources(other, ())
    with pytest.raises(ValueError, match="has 3 networks to learn from; at least 5"):
        adapt_from_table("a", atlas_table("mnn-fp32", 3, tmp_path / "three.parquet"), out=tmp_path / "out")
    with pytest.raises(ValueError, match="at least 5 networks to learn from and 0 to judge by; got 4 and 0"):
        adapt_from_table("a", table, out=tmp_path / "out", samples=4)


def test_a_damaged_plan_is_refused_by_name(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = Plan("a", space.fingerprint, 0, (space.largest,), (space.smallest,))
    plan.write(path)
    assert Plan.read(path, "a", space) == plan
    other = mobilenet_v3(resolutions=(48,), n_classes=10)
    with pytest.raises(SpaceMismatchError, match=rf"plan.json .*{space.fingerprint}.*{other.fingerprint}"):
        Plan.read(path, "a", other)
    for content in ("", "[]", "{}", path.read_text()[:-20], path.read_text().replace("plan/1", "plan/9")):
        path.write_text(content)
        with pytest.raises(PlanError, match=r"plan\.json is not a plan of `hanax adapt`, or it is damaged"):
            Plan.read(path, "a", space)


def test_what_comes_back_from_a_bundle_is_learned_from_and_judged_by_as_planned(
    space: SearchSpace,
    latency_ms: Callable[[Arch], float],
    few_tables: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hanax.experiments._adapt.latency_model_builder", lambda *_: lambda arch: str(arch).encode())
    plan = bundle_for_adapting("onnxruntime-fp32", tmp_path / "b.zip", out=tmp_path, held_out=6, pool=few_tables)
    assert (tmp_path / "b.zip").exists()
    identity = DeviceIdentity("board", 4, "onnxruntime", "1", "fp32", 1, 1)
    came_back = [*plan.held_out, *plan.samples[1:]]  # all rows are of one purpose, and one network failed
    table = LatencyTable.empty(space, identity).append([latency_row(arch, latency_ms(arch)) for arch in came_back])
    table.write(tmp_path / "table.parquet")
    said: list[str] = []

    class Reporter:
        def say(self, text: str) -> None:
            said.append(text)

        def bar(self, label: str) -> Callable[[int, int], None]:
            return lambda done, total: None

    made = adapt_from_table(
        "onnxruntime-fp32", tmp_path / "table.parquet", out=tmp_path, pool=few_tables, reporter=Reporter()
    )
    assert made.card.samples == tuple(map(str, plan.samples[1:]))
    assert made.card.held_out == tuple(map(str, plan.held_out))
    assert f"no measurement of 1 of the 10 networks to learn from: {plan.samples[0]}" in said[0]
    more = bundle_for_adapting(
        "onnxruntime-fp32", tmp_path / "more.zip", out=tmp_path, samples=12, held_out=6, pool=few_tables
    )
    assert more.samples[:10] == plan.samples and more.samples[10:] == tuple(map(Arch.parse, made.card.proposals[:2]))
    with zipfile.ZipFile(tmp_path / "more.zip") as archive:
        nets = json.loads(archive.read("manifest.json"))["nets"]
    assert {net["arch"] for net in nets} == {str(plan.samples[0]), *map(str, more.samples[10:])}


def test_the_card_says_everything_in_words_and_units() -> None:
    figures = PredictorCard(30, 0.9712, 0.87, 0.0321, 0.8, 0.9667, 0.9, 0.9, 0.084, "ms")
    alone = PredictorCard(10, math.nan, math.nan, 0.2, 0.1, 0.4, 0.9, 1.0, math.inf, "ms")
    card = AdaptationCard(
        device="tract-fp32", identity="tract 1 on CPU", device_fingerprint="d", cost="latency_ms", unit="ms",
        space="mobilenet_v3", space_fingerprint="s", origin="the atlas that comes with Hanax", sources=("a", "b"),
        n_source_archs=400, left_out=("tract-fp32",), most_alike="b", pool_fingerprint="p", predictor="P", coverage=0.9,
        samples=("0.1",) * 10, held_out=("0.2",) * 30, on_held_out={"this predictor": figures},
        leave_one_out={"this predictor": alone}, asked_samples=10, asked_held_out=30, proposals=("1.1", "1.2"),
        width_after=0.75,
    )  # fmt: skip
    text = "\n".join(card.lines())
    for part in (
        "A predictor of latency_ms on tract-fp32, for networks of mobilenet_v3",
        "learned from 10 networks measured on it and, before that, 400 networks on 2 other device(s), from the atlas",
        "as the device itself or called the same: tract-fp32",
        "On 30 other networks, which it has not seen:",
        "0.971", "3.2%", "80%", "97%", "+-0.042 ms holds 27 of 30",
        "On the 10 networks it learned from, each left out in turn:",
        "Asked of the device in all: 10 measurement(s) to learn from, 30 to judge by.",
        "These 2 would help most if they were measured next; with all of them the intervals should be 25% narrower:",
        "  1.1", "  1.2",
    ):  # fmt: skip
        assert part in text
    stored = card.as_json()
    assert stored["leave_one_out"]["this predictor"]["spearman"] is None
    assert stored["leave_one_out"]["this predictor"]["mean_interval_width"] is None
    assert set(stored) == set(AdaptationCard.__dataclass_fields__)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["macs"], "macs is computed for any network"),
        (["onnxruntime-fp32", "--table", "t", "--on", "ssh://a/"], "--table has the measurements already"),
        (["onnxruntime-fp32", "--bundle", "b", "--on", "ssh://a/"], "--on reaches one"),
        (["onnxruntime-fp32", "--set", "a=b"], "no --space is given"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hanax.experiments._cli import app

    result = CliRunner().invoke(app, ["adapt", *arguments, "--out", str(tmp_path / "o")], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output


def test_from_the_command_line_a_table_becomes_a_predictor_and_its_card(few_tables: list[Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hanax.experiments._cli import app

    table = atlas_table("ncnn-fp32", 40, tmp_path / "ncnn.parquet", "my ncnn")
    arguments = ["adapt", "ncnn-fp32", "--table", str(table), "--out", str(tmp_path / "out")]
    arguments += [part for path in few_tables for part in ("--pool", str(path))]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "A predictor of latency_ms on ncnn-fp32, for networks of mobilenet_v3" in result.output
    assert "On 30 other networks" in result.output
    assert (tmp_path / "out" / "predictor.npz").exists()


@pytest.mark.slow
def test_a_real_runtime_is_learned_from_tables_of_its_own_space(command_line: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    for device in ("macs", "params"):
        arguments = ["collect", "latency", "--space", file, "--device", device, "--archs", "60"]
        status, output = command_line.run(*arguments, "--out", tmp_path / f"{device}.parquet", cwd=tmp_path)
        assert status == 0, output
    arguments = [
        "adapt", "onnxruntime-fp32", "--space", file, "--pool", "macs.parquet", "--pool", "params.parquet",
        "--out", "out", "--samples", "8", "--held-out", "4", "--target-relative-ci", "0.3", "--wait-for-idle", "0",
    ]  # fmt: skip
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    assert "Asked of the device in all: 8 measurement(s) to learn from, 4 to judge by." in output
    assert len(pd.read_parquet(tmp_path / "out" / "table.parquet")) == 12
