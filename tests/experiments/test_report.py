"""The report tells the truth: every net, every miss, no invented number, and nothing from outside the file."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from hanax.experiments._confirmed import Certified
from hanax.experiments._report import (
    WINNER_COLUMNS,
    DatasetSummary,
    DeviceReport,
    ReportData,
    SpaceSummary,
    duration,
    interval,
    ms,
    pareto_frame,
    percent,
    settings_lines,
    write_front_png,
    write_pareto_csv,
    write_pareto_parquet,
    write_report,
)
from hanax.predictors import PredictorCard
from hanax.searchers import Constraint

WEIRD = '<img src=x onerror="alert(1)"> & $x_1$ "q" \N{SNOWMAN} \U0001f9ea </script>'
CARD = PredictorCard(120, 0.98, 0.9, 0.031, 0.83, 0.97, 0.9, 0.91, 0.04, "ms")
CERTIFICATE = "The search found 99.9 % of the hypervolume."
SETTINGS = {"resolution": 28, "stage1.depth": 2, "stage1.block1.kernel_size": 3, "stage1.block2.kernel_size": 5}


def winner(arch: str, predicted_ms: float, measured_ms: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    error = predicted_ms / measured_ms - 1
    return {
        "arch": arch,
        "settings": SETTINGS,
        "macs": round(1e7 * predicted_ms),
        "params": 123_456,
        "predicted_latency_ms": predicted_ms,
        "predicted_latency_low_ms": 0.95 * predicted_ms,
        "predicted_latency_high_ms": 1.05 * predicted_ms,
        "measured_latency_ms": measured_ms,
        "measured_latency_low_ms": 0.99 * measured_ms,
        "measured_latency_high_ms": 1.01 * measured_ms,
        "latency_error": error,
        "predicted_accuracy": accuracy,
        "predicted_accuracy_low": accuracy - 0.01,
        "predicted_accuracy_high": accuracy + 0.01,
        "validation_accuracy": accuracy - 0.001,
        "test_accuracy": accuracy - 0.004,
        "test_accuracy_low": accuracy - 0.01,
        "test_accuracy_high": accuracy + 0.002,
        "model_path": f"models/{arch}.onnx",
        "reference": False,
        "missed": abs(error) > 0.15,
    } | changes


WINNERS = [
    winner("0.1.2", 0.3, 0.31, 0.90),
    winner("0.2.2", 0.412, 0.52, 0.913),
    winner("0.0.0", 0.2, 0.21, 0.88, reference=True),
    winner("1.2.2", 0.9, 0.88, 0.92, reference=True),
]


def device_report(
    name: str = "onnxruntime-fp32", winners: list[dict[str, Any]] = WINNERS, **changes: Any
) -> DeviceReport:
    latency_ms = np.linspace(0.2, 0.9, 12)
    table = pd.DataFrame(
        {
            "arch": [f"0.{number}" for number in range(12)],
            "latency_ms": latency_ms,
            "latency_low_ms": 0.99 * latency_ms,
            "latency_high_ms": 1.01 * latency_ms,
            "n_runs": 100,
            "rejected_rounds": 1,
            "converged": [True] * 11 + [False],
            "runtime": "onnxruntime",
            "runtime_version": "1.23.0",
            "precision": "fp32",
            "threads": 1,
            "batch": 1,
        }
    )
    searched = pd.DataFrame(
        {
            "arch": table["arch"],
            "predicted_accuracy": 0.88 + 0.05 * latency_ms,
            "predicted_latency_ms": latency_ms,
            "on_front": latency_ms > 0.5,
        }
    )
    history = pd.DataFrame({"evaluations": [100, 200], "hypervolume": [0.1, 0.2], "diversity": [0.9, np.nan]})
    limits = (Constraint("latency_ms", 0.6, None, "ms"),)
    frame = pd.DataFrame(winners)
    report = DeviceReport(name, "f00d", table, (), CARD, limits, searched, history, CERTIFICATE, frame)
    return replace(report, **changes)


def report_data(*devices: DeviceReport, **changes: Any) -> ReportData:
    devices = devices or (device_report(),)
    training = pd.DataFrame({"step": np.arange(1000), "loss_largest": np.linspace(2, 1, 1000), "images_per_s": 900.0})
    data = ReportData(
        title="A run",
        config={"seed": 0, "search": {"evaluations": 12}},
        environment={"hanax": "0.1.0", "cores": 2},
        dataset=DatasetSummary("digits", 1200, 200, 397, 10, (8, 8), "d161"),
        space=SpaceSummary("mobilenet_v3", 2 * 10**19, 28, "5bace"),
        training=training,
        rollbacks=0,
        accuracy_samples=pd.DataFrame({"arch": ["0.1", "0.2"], "accuracy": [0.9, 0.91]}),
        accuracy_card=replace(CARD, unit="fraction"),
        devices=devices,
        ledger={device.name: {"table": 1234, "winner": 4} for device in devices},
        images_used={"calibration": 256, "validation": 200, "test": 397},
        stage_seconds=(("data", 0.4), ("supernet", 75.0)),
    )
    return replace(data, **changes)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, the visible text, the JSON of the figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.text, self.figures_json = "", ""
        self._inside = ""
        self._in_row = False
        self.feed(path.read_text(encoding="utf-8").replace(get_plotlyjs(), ""))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = "figures" if ("id", "figures") in attrs else tag
        if tag == "tr":
            self.rows.append("")
            self._in_row = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""
        if tag == "tr":
            self._in_row = False

    def handle_data(self, data: str) -> None:
        if self._inside == "figures":
            self.figures_json += data
        elif not self._inside:
            self.text += data
            if self._in_row:
                self.rows[-1] += f" {data.strip()}"

    def row(self, start: str) -> str:
        """The first row whose text starts with `start`."""
        rows = [" ".join(row.split()) for row in self.rows]
        return next(row for row in rows if row.startswith(start))

    @property
    def figures(self) -> dict[str, Any]:
        return dict(json.loads(self.figures_json))


def page(data: ReportData, folder: Path) -> Page:
    write_report(data, folder / "report.html")
    return Page(folder / "report.html")


def test_the_page_loads_nothing_from_outside_and_forbids_it(tmp_path: Path) -> None:
    seen = page(report_data(), tmp_path)
    assert not [tag for tag, _ in seen.tags if tag in ("link", "iframe", "object", "embed", "img", "base")]
    assert not [attributes for _, attributes in seen.tags if "src" in attributes]
    assert all(attributes["href"].startswith("#") for tag, attributes in seen.tags if tag == "a")  # type: ignore[union-attr]
    policies = [tag["content"] for _, tag in seen.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and policies[0] is not None
    assert policies[0].startswith("default-src 'none'") and "http" not in policies[0]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    styles = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in styles and "@import" not in styles
    assert html.count("* plotly.js v") == 1


def test_a_hypervolume_that_never_changes_has_a_scale_of_its_own(tmp_path: Path) -> None:
    history = pd.DataFrame({"evaluations": [100, 200], "hypervolume": [0.01, 0.01], "diversity": [3.0, 4.0]})
    figures = page(report_data(device_report(history=history)), tmp_path).figures
    assert figures["hypervolume-0"]["layout"]["yaxis"]["range"] == [0, 0.02]
    assert "range" not in figures["diversity-0"]["layout"]["yaxis"]


def test_the_certificate_of_every_device_is_said_in_its_sentence(tmp_path: Path) -> None:
    seen = page(report_data(device_report("first"), device_report("second", certificate="Not known.")), tmp_path)
    text = " ".join(seen.text.split())
    assert f"first: {CERTIFICATE}" in text and "second: Not known." in text


def test_every_net_of_every_device_is_listed_with_its_settings(tmp_path: Path) -> None:
    seen = page(report_data(device_report("first"), device_report("second")), tmp_path)
    for net in WINNERS:
        assert seen.text.count(f"{net['arch']}\n") == 2
        assert seen.text.count(net["model_path"]) == 2
    assert seen.text.count("stage1: depth 2, kernel_size 3 5") == 2 * len(WINNERS)
    assert "reference" in seen.row("smallest") and "0.210" in seen.row("smallest")
    assert "reference" in seen.row("largest") and "0.880" in seen.row("largest")


def test_values_come_with_their_intervals(tmp_path: Path) -> None:
    seen = page(report_data(), tmp_path)
    dash = "\N{EN DASH}"
    row = seen.row("net 2")
    assert f"0.412 0.391 {dash} 0.433" in row
    assert f"0.520 0.515 {dash} 0.525" in row
    assert f"90.9 90.3 {dash} 91.5" in row


def test_a_miss_is_marked_in_words_and_in_style(tmp_path: Path) -> None:
    seen = page(report_data(), tmp_path)
    assert "Missed predicted 20.8 % too low" in seen.row("net 2")
    assert "Missed" not in seen.row("net 1")
    assert "2 nets on the front, 1 missed." in " ".join(seen.text.split())
    assert [tag["class"].split() for name, tag in seen.tags if name == "tr" and tag.get("class")].count(["missed"]) == 1  # type: ignore[union-attr]
    traces = {trace["name"]: trace for trace in seen.figures["front-0"]["data"]}
    assert traces["measured, missed"]["x"] == [0.52]
    assert "Missed" in traces["measured, missed"]["hovertext"][0]


def test_nets_that_may_be_better_by_chance_alone_are_named(tmp_path: Path) -> None:
    sure = [winner("0.1.2", 0.3, 0.31, 0.90), winner("0.2.2", 0.5, 0.52, 0.913)]  # to .902, and from .903 on
    assert "may be chance" not in page(report_data(device_report(winners=sure)), tmp_path).text
    nets = [*sure, winner("0.3", 0.4, 0.41, 0.905), winner("0.4", 0.6, 0.61, 0.896)]
    nets += [winner("0.5", 0.7, 0.7, 0.9, test_accuracy_low=math.nan), winner("0.0", 0.1, 0.1, 0.9, reference=True)]
    text = " ".join(page(report_data(device_report(winners=nets)), tmp_path).text.split())
    assert (
        "intervals of 2 of 3 slower nets overlap that of the fastest: what they gain in accuracy over it may be chance."
        in text
    )


def integer_winner(arch: str, policy: str, float_ms: float, delivered: float = 0.9, **changes: Any) -> dict[str, Any]:
    return winner(arch, 0.5, 0.5, 0.905) | {
        "policy": policy,
        "size_bytes": 12_345,
        "bit_operations": 10**9,
        "float_latency_ms": float_ms,
        "float_latency_low_ms": 0.99 * float_ms,
        "float_latency_high_ms": 1.01 * float_ms,
        "float_accuracy": 0.921,
        "promised_accuracy": 0.902,
        "delivered_accuracy": delivered,
        "parity": abs(delivered - 0.902) <= 0.005,
    } | changes  # fmt: skip


def test_integer_models_are_shown_with_their_bits_and_beside_float32(tmp_path: Path) -> None:
    nets = [integer_winner("0.1", "stem 8/8, stage1 4/8 6/8", 0.4), integer_winner("0.2", "8/8 throughout", 0.8)]
    seen = page(report_data(device_report("onnxruntime-int8", winners=nets)), tmp_path)
    text, row = " ".join(seen.text.split()), seen.row("net 1")
    assert "stem 8/8, stage1 4/8 6/8 12.3" in row and "0.400 0.396" in row and "92.1 90.2" in row
    assert "take 0.62 to 1.25 times as long here as the same networks in float32; they are slower for 1 of 2." in text
    assert "All 2 model files are as accurate as the fake-quantized networks" in text
    assert "PARITY" not in text


def test_a_model_file_that_is_not_as_accurate_as_what_was_searched_is_shouted_about(tmp_path: Path) -> None:
    nets = [integer_winner("0.1", "8/8 throughout", 0.8), integer_winner("0.2", "4/8 throughout", 0.8, 0.85)]
    data = report_data(device_report("onnxruntime-int8", winners=nets))
    seen = page(data, tmp_path)
    assert "PARITY FAILED for 1 of 2 models" in seen.text and "accuracy differs by up to 5.2 points" in " ".join(
        seen.text.split()
    )
    assert ("p", {"class": "alarm"}) in seen.tags
    assert "Parity failed" in seen.row("net 2") and "85.0 % accurate where 90.2 % was promised" in seen.row("net 2")
    assert "Parity" not in seen.row("net 1")
    frame = pareto_frame(data)
    assert list(frame["parity"]) == [True, False] and list(frame["policy"]) == ["8/8 throughout", "4/8 throughout"]


def test_columns_of_integer_models_are_all_there_or_none() -> None:
    assert set(pareto_frame(report_data()).columns) == {"device", *WINNER_COLUMNS}
    with pytest.raises(ValueError, match=r"winners lacks the columns \['size_bytes'"):
        device_report(winners=[winner("0.1", 0.5, 0.5, 0.9, policy="8/8 throughout")])


def test_the_training_in_number_formats_has_figures_of_its_own(tmp_path: Path) -> None:
    training = pd.DataFrame({"step": [0, 1], "loss_largest": [1.0, 0.5]})
    seen = page(report_data(quantized_training=training), tmp_path)
    assert "In number formats" in seen.text and seen.figures["quantized-0"]["data"][0]["y"] == [1.0, 0.5]
    assert "In number formats" not in page(report_data(), tmp_path).text


def test_a_broken_limit_is_named(tmp_path: Path) -> None:
    late = winner("0.1.1", 0.59, 0.61, 0.91, missed=True)
    seen = page(report_data(device_report(winners=[late])), tmp_path)
    assert "Missed predicted 3.3 % too low; breaks the limit of latency at most 0.6 ms" in seen.row("net 1")


def test_a_limit_certified_by_prediction_says_how_many_candidates_kept_it(tmp_path: Path) -> None:
    limit = Constraint("latency_ms", 0.6, None, "ms", probability=0.95)
    device = device_report(constraints=(limit,), certified=(Certified(limit, 22, 24),))
    text = " ".join(page(report_data(device), tmp_path).text.split())
    assert "Limits: latency at most 0.6 ms with probability 0.95." in text
    kept = "latency at most 0.6 ms with probability 0.95: 22 of 24 candidates keep it when measured (92 %,"
    assert f"Certified by prediction: {kept}" in text


def test_what_was_not_measured_says_so_and_is_not_drawn(tmp_path: Path) -> None:
    nothing = {name: np.nan for name in WINNER_COLUMNS if name.startswith(("measured", "test", "validation"))}
    unmeasured = winner("0.1.1", 0.5, math.nan, 0.91, **nothing, latency_error=math.nan, model_path=None)
    data = report_data(device_report(winners=[unmeasured]))
    seen = page(data, tmp_path)
    latency, accuracy = (
        "0.500 0.475 \N{EN DASH} 0.525 not measured",
        "91.0 90.0 \N{EN DASH} 92.0 not measured not measured",
    )
    assert seen.row("net 1") == f"net 1 5.00 123 {latency} {accuracy} not measured"
    assert "not exported" in seen.text
    assert "Not measured." in seen.text  # instead of the scatter
    names = [trace["name"] for trace in seen.figures["front-0"]["data"]]
    assert names == ["searched, predicted", "front, predicted", "predicted"]
    assert "Of 1 exported nets 1 lacks a measured point." in seen.text
    write_front_png(data, "onnxruntime-fp32", tmp_path / "front.png")


def test_a_predictor_without_figures_shows_no_number(tmp_path: Path) -> None:
    card = replace(CARD, spearman=math.nan, mape=math.nan, mean_interval_width=math.inf)
    unbounded = winner("0.1.1", 0.5, 0.51, 0.91, predicted_latency_low_ms=-math.inf, predicted_latency_high_ms=math.inf)
    seen = page(report_data(device_report(latency_card=card, winners=[unbounded])), tmp_path)
    row = seen.row("latency, onnxruntime-fp32")
    assert row.count("not measured") == 2
    assert "unbounded ms" in row
    assert "0.500 unbounded" in seen.row("net 1")


def test_weird_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    strange = winner(WEIRD, 0.3, 0.31, 0.9, settings={WEIRD: WEIRD}, model_path=WEIRD)
    device = device_report(WEIRD, [strange], lint_warnings=(WEIRD,))
    data = report_data(device, title=WEIRD, config={WEIRD: WEIRD}, environment={WEIRD: WEIRD})
    data = replace(data, dataset=replace(data.dataset, name=WEIRD), training=pd.DataFrame({"step": [1], WEIRD: [2.0]}))
    seen = page(data, tmp_path)
    assert not [attributes for tag, attributes in seen.tags if tag == "img" or "onerror" in attributes]
    assert seen.text.count(WEIRD) >= 8
    assert len([tag for tag, _ in seen.tags if tag == "script"]) == 3
    hover = seen.figures["front-0"]["data"][-1]["hovertext"][0]
    assert "<img" not in hover and "&lt;img" in hover
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_front_png(data, WEIRD, tmp_path / "front.png")


def test_counted_measurements_and_images_are_shown(tmp_path: Path) -> None:
    seen = page(report_data(), tmp_path)
    assert seen.row("onnxruntime-fp32 1,234") == "onnxruntime-fp32 1,234 4 1,238"
    assert seen.row("calibration") == "calibration 256"
    assert seen.row("supernet") == "supernet 1 min 15 s"
    assert seen.row("total 1") == "total 1 min 15 s"
    assert "2.0 \N{MULTIPLICATION SIGN} 10 19" in " ".join(seen.text.replace("10", "10 ").split())


def test_reliability_of_the_latency_table_is_shown(tmp_path: Path) -> None:
    row = page(report_data(), tmp_path).row("onnxruntime-fp32 onnxruntime")
    assert row == "onnxruntime-fp32 onnxruntime 1.23.0, fp32 1 1 12 1,200 2.0 2.0 12 1"


def test_whatever_training_logged_is_drawn(tmp_path: Path) -> None:
    training = pd.DataFrame(
        {"step": [1, 2], "loss_a": [2.0, np.nan], "loss_b": [3.0, 2.5], "phase": ["x", "y"], "speed": [1.0, 2.0]}
    )
    seen = page(report_data(training=training), tmp_path)
    figures = [figure for key, figure in seen.figures.items() if key.startswith("training")]
    assert [[line["name"] for line in figure["data"]] for figure in figures] == [["a", "b"], ["speed"]]
    assert figures[0]["data"][0]["y"] == [2.0, None]


def test_long_curves_are_averaged_and_large_clouds_thinned(tmp_path: Path) -> None:
    n = 10_000
    training = pd.DataFrame({"step": np.arange(n), "loss_largest": np.arange(n, dtype=float)})
    searched = pd.DataFrame(
        {"arch": "0.1", "predicted_accuracy": 0.9, "predicted_latency_ms": 0.5, "on_front": False}, index=range(n)
    )
    seen = page(report_data(device_report(searched=searched), training=training), tmp_path)
    curve = seen.figures["training-0"]["data"][0]
    assert len(curve["y"]) == 400 and curve["y"][0] == 12.0
    assert "Each point is the mean of 25 logged values." in seen.text
    assert len(seen.figures["front-0"]["data"][0]["x"]) <= 1500
    assert "of 10,000 architectures off the front are drawn" in seen.text


def test_csv_and_parquet_round_trip(tmp_path: Path) -> None:
    data = report_data(device_report("first"), device_report("second"))
    write_pareto_csv(data, tmp_path / "pareto.csv")
    write_pareto_parquet(data, tmp_path / "pareto.parquet")
    frame = pareto_frame(data)
    assert list(frame.columns) == ["device", *WINNER_COLUMNS] and len(frame) == 2 * len(WINNERS)
    assert json.loads(frame["settings"][0]) == SETTINGS
    from_csv = pd.read_csv(tmp_path / "pareto.csv", dtype={"arch": str})
    pd.testing.assert_frame_equal(from_csv, frame, rtol=1e-14)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "pareto.parquet"), frame, check_exact=True)


def test_the_front_is_a_png_of_a_known_device(tmp_path: Path) -> None:
    write_front_png(report_data(), "onnxruntime-fp32", tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as image:
        assert image.format == "PNG" and image.size == (1280, 880)
    with pytest.raises(ValueError, match=r"no device 'gpu' in this report; it has \['onnxruntime-fp32'\]"):
        write_front_png(report_data(), "gpu", tmp_path / "gpu.png")


def test_a_written_report_leaves_no_other_file(tmp_path: Path) -> None:
    for _ in range(2):
        write_report(report_data(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"onnxruntime-fp32: winners lacks the columns \['macs'\]"):
        device_report(winners=[{key: value for key, value in WINNERS[0].items() if key != "macs"}])


def test_an_error_that_contradicts_the_latencies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latency_error of 0\.1\.2 is 0\.0"):
        device_report(winners=[WINNERS[0] | {"latency_error": 0.0}])


def test_a_miss_cannot_be_hidden() -> None:
    with pytest.raises(ValueError, match=r"off by 20\.8%, more than the tolerance of 15\.0%, but it is not marked"):
        report_data(device_report(winners=[WINNERS[1] | {"missed": False}]))


def test_numbers_read_well() -> None:
    assert [ms(value) for value in (0.41234, 12.34, 1234.5, 0.0)] == ["0.412", "12.3", "1,234", "0.000"]
    assert [ms(math.nan), ms(math.inf)] == ["not measured", "unbounded"]
    assert [percent(0.9134), percent(math.nan)] == ["91.3", "not measured"]
    assert interval(0.1, math.nan, percent) == "no interval"
    assert [duration(4.21), duration(192), duration(3725), duration(59.97)] == [
        "4.2 s",
        "3 min 12 s",
        "1 h 02 min",
        "1 min 00 s",
    ]


def test_settings_are_grouped_by_part() -> None:
    assert settings_lines(SETTINGS) == ["resolution 28", "stage1: depth 2, kernel_size 3 5"]
