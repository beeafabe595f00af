"""The report of a run: one offline HTML file, the front as a PNG figure, and the shipped nets as CSV and Parquet.

Everything that is shown comes from `ReportData`, a plain value. A number that was never measured is NaN in it and reads
"not measured" in the report, never 0.
"""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from hanax._files import write_atomically

if TYPE_CHECKING:
    from hanax.experiments._confirmed import Certified
    from hanax.predictors import PredictorCard
    from hanax.searchers import Constraint

NOT_MEASURED = "not measured"
NOT_PREDICTED = "not predicted"
UNBOUNDED = "unbounded"

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_CLOUD_POINTS = 1500
_MAX_CURVE_POINTS = 400
_PNG_COLORS = {"--predicted": "#0072b2", "--measured": "#1b7f5c", "--missed": "#c2410c", "--muted": "#5b6570"}
_PNG_MARKERS = {"circle": "o", "diamond": "D", "square": "s"}

_SEARCHED_COLUMNS = ("arch", "predicted_accuracy", "predicted_latency_ms", "on_front")
_HISTORY_COLUMNS = ("evaluations", "hypervolume", "diversity")
_TABLE_COLUMNS = (
    "arch",
    "latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "n_runs",
    "rejected_rounds",
    "converged",
    "runtime",
    "runtime_version",
    "precision",
    "threads",
    "batch",
)
WINNER_COLUMNS = (
    "arch",
    "settings",
    "macs",
    "params",
    "predicted_latency_ms",
    "predicted_latency_low_ms",
    "predicted_latency_high_ms",
    "measured_latency_ms",
    "measured_latency_low_ms",
    "measured_latency_high_ms",
    "latency_error",
    "predicted_accuracy",
    "predicted_accuracy_low",
    "predicted_accuracy_high",
    "validation_accuracy",
    "test_accuracy",
    "test_accuracy_low",
    "test_accuracy_high",
    "model_path",
    "reference",
    "missed",
)

INTEGER_COLUMNS = (
    "policy",
    "size_bytes",
    "bit_operations",
    "float_latency_ms",
    "float_latency_low_ms",
    "float_latency_high_ms",
    "float_accuracy",
    "promised_accuracy",
    "delivered_accuracy",
    "parity",
)
"""Of winners that are integer models, beside `WINNER_COLUMNS`."""

Record = dict[str, Any]
Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """The images of a run.

    Attributes:
        image_size: Height and width in pixels.
    """

    name: str
    n_train: int
    n_validation: int
    n_test: int
    n_classes: int
    image_size: tuple[int, int]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SpaceSummary:
    """The search space of a run; `size` is its number of distinct architectures."""

    name: str
    size: int
    n_decisions: int
    fingerprint: str


@dataclass(frozen=True)
class DeviceReport:
    """What happened on one device.

    Attributes:
        latency_table: The measured table, with the columns of `hanax.devices.LatencyTable`.
        lint_warnings: What `LatencyTable.lint` found.
        constraints: Limits that the search had to keep.
        certified: How those of them that were to be kept with a probability fared when measured.
        searched: Every architecture the search evaluated: ``arch``, ``predicted_accuracy``, ``predicted_latency_ms``,
            ``on_front`` (bool).
        history: ``evaluations``, ``hypervolume``, ``diversity``, one row per step of the search.
        certificate: How far the search is from the exact optimum, in a sentence.
        winners: One row per shipped net, with `WINNER_COLUMNS`. ``latency_error`` is ``predicted / measured - 1``,
            ``settings`` a mapping from decision to option, ``model_path`` relative to the report. ``reference`` marks
            the largest and smallest subnet, which are always shown; ``missed`` a net whose measured latency is off by
            more than the tolerance, or that breaks a constraint. What was not measured is NaN. Where they are integer
            models, they also have `INTEGER_COLUMNS`: ``policy`` in words, ``float_...`` of the same architecture in
            float32 (latency on the same machine, accuracy on validation images), ``promised_accuracy`` of the
            fake-quantized network and ``delivered_accuracy`` of the model file on the same images, and ``parity``,
            whether these two agree.

    Raises:
        ValueError: A frame lacks a column, or ``latency_error`` contradicts the two latencies.
    """

    name: str
    fingerprint: str
    latency_table: pd.DataFrame
    lint_warnings: tuple[str, ...]
    latency_card: PredictorCard
    constraints: tuple[Constraint, ...]
    searched: pd.DataFrame
    history: pd.DataFrame
    certificate: str
    winners: pd.DataFrame
    certified: tuple[Certified, ...] = ()

    def __post_init__(self) -> None:
        _check_columns(f"{self.name}: latency_table", self.latency_table, _TABLE_COLUMNS)
        _check_columns(f"{self.name}: searched", self.searched, _SEARCHED_COLUMNS)
        _check_columns(f"{self.name}: history", self.history, _HISTORY_COLUMNS)
        _check_columns(f"{self.name}: winners", self.winners, WINNER_COLUMNS)
        if self.is_integer:
            _check_columns(f"{self.name}: winners", self.winners, INTEGER_COLUMNS)
        for net in _records(self.winners):
            error = net["predicted_latency_ms"] / net["measured_latency_ms"] - 1
            if not np.isclose(net["latency_error"], error, rtol=0, atol=1e-6, equal_nan=True):
                raise ValueError(
                    f"{self.name}: latency_error of {net['arch']} is {net['latency_error']}; "
                    f"predicted / measured - 1 is {error}"
                )

    @property
    def is_integer(self) -> bool:
        """Whether what ships are integer models."""
        return "policy" in self.winners.columns


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        config: The experiment as plain values; shown as YAML.
        environment: Versions of hanax, jax and onnxruntime, cpu, cores, memory, ...: shown in this order.
        training: One row per logged step: ``step`` and any numeric columns; those named ``loss_*`` share a figure.
        quantized_training: The same of the training in number formats, if there was one.
        rollbacks: How often training went back to a checkpoint because of a value that was not finite.
        accuracy_samples: ``arch`` and ``accuracy`` (fraction of the validation images) of the evaluated subnets.
        ledger: Latencies asked of each device, by purpose: ``{"onnxruntime-fp32": {"table": 120, "winner": 10}}``.
        images_used: Number of images by purpose: ``calibration``, ``validation``, ``test``.
        stage_seconds: Stages in the order they ran, each with its duration.
        latency_tolerance: Largest ``abs(latency_error)`` that is not a miss, a fraction.
        prediction_coverage: Nominal coverage of the predictors' intervals, a fraction.

    Raises:
        ValueError: A net is off by more than the tolerance, yet not marked as missed.
    """

    title: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    dataset: DatasetSummary
    space: SpaceSummary
    training: pd.DataFrame
    rollbacks: int
    accuracy_samples: pd.DataFrame
    accuracy_card: PredictorCard
    devices: tuple[DeviceReport, ...]
    ledger: Mapping[str, Mapping[str, int]]
    images_used: Mapping[str, int]
    stage_seconds: tuple[tuple[str, float], ...]
    quantized_training: pd.DataFrame | None = None
    latency_tolerance: float = 0.15
    prediction_coverage: float = 0.9

    def __post_init__(self) -> None:
        _check_columns("accuracy_samples", self.accuracy_samples, ("arch", "accuracy"))
        for device in self.devices:
            for net in _records(device.winners):
                if abs(net["latency_error"]) > self.latency_tolerance and not net["missed"]:
                    raise ValueError(
                        f"{device.name}: the latency of {net['arch']} is off by {abs(net['latency_error']):.1%}, more "
                        f"than the tolerance of {self.latency_tolerance:.1%}, but it is not marked as missed"
                    )

    def device(self, name: str) -> DeviceReport:
        """The device called `name`.

        Raises:
            ValueError: There is none.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise ValueError(f"no device {name!r} in this report; it has {[device.name for device in self.devices]}")


def write_report(data: ReportData, path: Path) -> None:
    """Write `data` as one HTML file that needs nothing but itself: no network, no other file."""
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False}
    templates.globals.update(
        count=count,
        duration=duration,
        interval=interval,
        ms=ms,
        percent=percent,
        significant=significant,
        correlation=correlation,
    )
    panels = _panels(data)
    text = templates.get_template("report.html.j2").render(
        data=data,
        nets={device.name: _nets(device) for device in data.devices},
        tables={device.name: _reliability(device) for device in data.devices},
        purposes=sorted({purpose for counts in data.ledger.values() for purpose in counts}),
        limits={device.name: [limit_text(limit) for limit in device.constraints] for device in data.devices},
        certified={
            device.name: [f"{limit_text(one.constraint)}: {one.words}." for one in device.certified]
            for device in data.devices
        },
        integers={device.name: integer_words(device) for device in data.devices if device.is_integer},
        by_chance={device.name: chance_words(device) for device in data.devices},
        panels=panels,
        figures={panel.key: panel.figure for group in panels.values() for panel in group},
        config_yaml=yaml.safe_dump(dict(data.config), sort_keys=False, allow_unicode=True),
        space_size=_space_size(data.space.size),
        not_predicted=NOT_PREDICTED,
        plotly_js=get_plotlyjs(),
    )
    write_atomically(path, text.encode())


def pareto_frame(data: ReportData) -> pd.DataFrame:
    """The shipped nets of all devices, one row each: ``device``, then `WINNER_COLUMNS` with ``settings`` as JSON.

    Then `INTEGER_COLUMNS`, where they are integer models.
    """
    columns = [*WINNER_COLUMNS, *(INTEGER_COLUMNS if any(device.is_integer for device in data.devices) else ())]
    frames = [device.winners.reindex(columns=columns).assign(device=device.name) for device in data.devices]
    frame = pd.concat(frames, ignore_index=True)
    frame["settings"] = [json.dumps(dict(settings)) for settings in frame["settings"]]
    return frame[["device", *columns]]


def write_pareto_csv(data: ReportData, path: Path) -> None:
    """Write `pareto_frame` as CSV; what was not measured is an empty field."""
    write_atomically(path, pareto_frame(data).to_csv(index=False).encode())


def write_pareto_parquet(data: ReportData, path: Path) -> None:
    """Write `pareto_frame` as Parquet."""
    buffer = io.BytesIO()
    pareto_frame(data).to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def write_front_png(data: ReportData, device_name: str, path: Path) -> None:
    """Draw the front of one device, predicted and measured, 1280 x 880 pixels.

    Raises:
        ValueError: The report has no such device.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    device = data.device(device_name)
    canvas = Canvas(figsize=(8, 5.5), dpi=160, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    front = _front(device)
    cloud = _cloud(device)
    axes.scatter(
        cloud["predicted_latency_ms"],
        100 * cloud["predicted_accuracy"],
        s=4,
        color="#b8c0c8",
        label="searched, predicted",
    )
    axes.plot(
        front["predicted_latency_ms"],
        100 * front["predicted_accuracy"],
        color=_PNG_COLORS["--predicted"],
        linewidth=1,
        drawstyle="steps-post",
        label="front, predicted",
    )
    for points in _front_points(_nets(device)):
        color = _PNG_COLORS[points.color]
        axes.errorbar(
            [points.x.of(net) for net in points.nets],
            [points.y.of(net) for net in points.nets],
            xerr=[[points.x.below(net) for net in points.nets], [points.x.above(net) for net in points.nets]],
            yerr=[[points.y.below(net) for net in points.nets], [points.y.above(net) for net in points.nets]],
            fmt=_PNG_MARKERS[points.symbol],
            color=color,
            markerfacecolor="white" if points.hollow else color,
            markersize=6,
            elinewidth=0.8,
            capsize=2,
            label=points.label,
        )
    for constraint in device.constraints:
        if constraint.name == "latency_ms" and constraint.at_most is not None:
            axes.axvline(constraint.at_most, color=_PNG_COLORS["--muted"], linestyle=":", label="latency limit")
    axes.set_xlabel("Latency (ms)")
    axes.set_ylabel("Accuracy (%)")
    axes.set_title(_with_glyphs(f"{data.title}: {device.name}"), loc="left", parse_math=False, wrap=True)
    axes.grid(color="#e5e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


# Numbers as text


def significant(value: float, digits: int = 3, absent: str = NOT_MEASURED) -> str:
    """`value` with at least `digits` significant digits: ``0.412``, ``12.3``, ``5,481``."""
    if _is_absent(value):
        return absent
    if math.isinf(value):
        return UNBOUNDED
    decimals = digits if value == 0 else digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}"


def ms(value: float, absent: str = NOT_MEASURED) -> str:
    """A latency in ms, without its unit."""
    return significant(value, absent=absent)


def percent(value: float, absent: str = NOT_MEASURED) -> str:
    """A fraction in per cent, without its unit: ``91.3``."""
    return absent if _is_absent(value) else f"{100 * value:.1f}"


def correlation(value: float) -> str:
    """A correlation coefficient, three decimals."""
    return NOT_MEASURED if _is_absent(value) else f"{value:.3f}"


def count(value: int) -> str:
    """A whole number: ``54,000``."""
    return f"{value:,}"


def interval(low: float, high: float, form: Callable[[float], str]) -> str:
    """Both ends of an interval: ``0.405 to 0.420``, with a dash."""
    if _is_absent(low) or _is_absent(high):
        return "no interval"
    return UNBOUNDED if math.isinf(low) or math.isinf(high) else f"{form(low)} \N{EN DASH} {form(high)}"


def duration(seconds: float) -> str:
    """A time: ``4.2 s``, ``3 min 12 s``, ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def limit_text(limit: Constraint) -> str:
    """A constraint in words: ``latency at most 0.5 ms``, with its probability if it is certified."""
    bounds = [("at most", limit.at_most), ("at least", limit.at_least)]
    words = " and ".join(f"{word} {bound:g} {limit.unit}".rstrip() for word, bound in bounds if bound is not None)
    certified = "" if limit.probability is None else f" with probability {limit.probability:.10g}"
    return f"{limit.name.removesuffix(f'_{limit.unit}')} {words}{certified}"


def integer_words(device: DeviceReport) -> list[str]:
    """What integer models are worth on a device, in sentences: their time beside float32's, and failures of parity."""
    nets = device.winners[~device.winners["reference"].astype(bool)]
    nets = device.winners if nets.empty else nets
    ratio = (nets["measured_latency_ms"] / nets["float_latency_ms"]).dropna()
    words = []
    if len(ratio):
        slower = int((ratio > 1.0).sum())
        words.append(
            f"Integer models take {ratio.min():.2f} to {ratio.max():.2f} times as long here as the same networks in "
            f"float32; they are slower for {slower or 'none'} of {len(ratio)}."
        )
    failed = device.winners[~device.winners["parity"].astype(bool)]
    if len(failed):
        points = 100 * (failed["delivered_accuracy"] - failed["promised_accuracy"]).abs().max()
        words.append(
            f"PARITY FAILED for {len(failed)} of {len(device.winners)} models: the model file does not do what the "
            f"fake-quantized network did that was searched; its accuracy differs by up to {points:.1f} points. Do not "
            "deploy them before you know why."
        )
    else:
        words.append(
            f"All {len(device.winners)} model files are as accurate as the fake-quantized networks that were searched."
        )
    return words


def chance_words(device: DeviceReport) -> str:
    """A warning, if nets on the front may be better than the fastest by chance alone: if intervals overlap."""
    nets = device.winners[~device.winners["reference"].astype(bool)]
    nets = nets.dropna(subset=["measured_latency_ms", "test_accuracy_low", "test_accuracy_high"])
    if len(nets) < 2:
        return ""
    nets = nets.sort_values("measured_latency_ms")
    fastest, slower = nets.iloc[0], nets.iloc[1:]
    alike = int((slower["test_accuracy_low"] <= fastest["test_accuracy_high"]).sum())
    if alike == 0:
        return ""
    return (
        f"On the test images the intervals of {alike} of {len(slower)} slower nets overlap that of the fastest: what "
        "they gain in accuracy over it may be chance."
    )


def settings_lines(settings: Mapping[str, Any]) -> list[str]:
    """Settings in few lines, one per part of the net: ``stage1: depth 2, kernel_size 3 5, expand_ratio 4 6``."""
    parts: dict[str, dict[str, list[str]]] = {}
    for name, option in settings.items():
        part, _, leaf = name.rpartition(".")
        parts.setdefault(part.partition(".")[0], {}).setdefault(leaf, []).append(str(option))
    lines = []
    for part, leaves in parts.items():
        words = ", ".join(f"{leaf} {' '.join(options)}" for leaf, options in leaves.items())
        lines.append(f"{part}: {words}" if part else words)
    return lines


def _is_absent(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _space_size(size: int) -> tuple[str, int]:
    """Mantissa and exponent; the exponent is 0 for a size that is short enough to be written out."""
    if size < 10**7:
        return count(size), 0
    exponent = len(str(size)) - 1
    return f"{size / 10**exponent:.1f}", exponent


def _with_glyphs(text: str) -> str:
    """`text` with ``?`` for every character that matplotlib's own font cannot draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(character if font.get_char_index(ord(character)) else "?" for character in text)


# The nets of a device


def _records(frame: pd.DataFrame) -> list[Record]:
    return cast(list[Record], frame.to_dict("records"))


def _check_columns(owner: str, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{owner} lacks the columns {missing}; it has {list(frame.columns)}")


def _nets(device: DeviceReport) -> list[Record]:
    """The winners, fastest first, then the references, each with ``label``, ``verdict`` and ``lines`` of settings."""
    nets = _records(device.winners.sort_values(["reference", "predicted_latency_ms", "macs"]))
    macs = [net["macs"] for net in nets]
    for number, net in enumerate(nets, start=1):
        size = "largest" if net["macs"] == max(macs) else "smallest" if net["macs"] == min(macs) else "reference"
        net["label"] = size if net["reference"] else f"net {number}"
        net["verdict"] = _verdict(net, device.constraints)
        net["lines"] = settings_lines(net["settings"])
    return nets


def _verdict(net: Record, constraints: Sequence[Constraint]) -> str:
    """What the measurement says about the prediction and the limits, in words."""
    words = [_latency_words(net["latency_error"])]
    if not net.get("parity", True):
        words.append(
            f"the model file is {percent(net['delivered_accuracy'])} % accurate where "
            f"{percent(net['promised_accuracy'])} % was promised"
        )
    measured: Record = {
        "latency_ms": net["measured_latency_ms"],
        "accuracy": net["validation_accuracy"],
        "macs": net["macs"],
        "params": net["params"],
        **{name: net[name] for name in ("size_bytes", "bit_operations") if name in net},
    }
    for limit in constraints:
        value = measured.get(limit.name, math.nan)
        if (limit.at_most is not None and value > limit.at_most) or (
            limit.at_least is not None and value < limit.at_least
        ):
            words.append(f"breaks the limit of {limit_text(limit)}")
    return "; ".join(words)


def _latency_words(error: float) -> str:
    if _is_absent(error):
        return NOT_MEASURED
    if abs(error) < 0.0005:
        return "predicted within 0.05 %"
    return f"predicted {100 * abs(error):.1f} % {'too high' if error > 0 else 'too low'}"


@dataclass(frozen=True, slots=True)
class _Axis:
    """Columns that place a net on one axis of a figure: ``value``, ``low`` and ``high``, multiplied by `scale`."""

    value: str
    low: str
    high: str
    scale: float = 1.0

    def of(self, net: Record) -> float:
        return self.scale * float(net[self.value])

    def below(self, net: Record) -> float:
        """Distance from the value to the low end of its interval; 0 without a bounded one, so that no bar is drawn."""
        return _finite(self.scale * (net[self.value] - net[self.low]))

    def above(self, net: Record) -> float:
        """Distance from the value to the high end of its interval; 0 without a bounded one."""
        return _finite(self.scale * (net[self.high] - net[self.value]))


def _finite(distance: float) -> float:
    return float(np.nan_to_num(distance, posinf=0.0))


_PREDICTED_LATENCY = _Axis("predicted_latency_ms", "predicted_latency_low_ms", "predicted_latency_high_ms")
_MEASURED_LATENCY = _Axis("measured_latency_ms", "measured_latency_low_ms", "measured_latency_high_ms")
_PREDICTED_ACCURACY = _Axis("predicted_accuracy", "predicted_accuracy_low", "predicted_accuracy_high", 100.0)
_TEST_ACCURACY = _Axis("test_accuracy", "test_accuracy_low", "test_accuracy_high", 100.0)


@dataclass(frozen=True, slots=True)
class _Points:
    """Nets that a figure shows alike; those that lack a coordinate are left out of ``nets``.

    Attributes:
        color: Name of a CSS variable.
        symbol: Marker, as plotly.js calls it.
        hollow: Whether only the outline of the marker is drawn.
    """

    label: str
    nets: list[Record]
    x: _Axis
    y: _Axis
    color: str
    symbol: str
    hollow: bool = False


def _points(
    label: str,
    nets: Sequence[Record],
    x: _Axis,
    y: _Axis,
    color: str,
    symbol: str,
    hollow: bool = False,
) -> _Points:
    placed = [net for net in nets if not math.isnan(x.of(net) + y.of(net))]
    return _Points(label, placed, x, y, color, symbol, hollow)


def _front_points(nets: Sequence[Record]) -> list[_Points]:
    """The groups of nets in the figure of a front; none is empty."""
    reference = [net for net in nets if net["reference"] and not net["missed"]]
    missed = [net for net in nets if net["missed"]]
    shipped = [net for net in nets if not net["reference"] and not net["missed"]]
    measured = (_MEASURED_LATENCY, _TEST_ACCURACY)
    groups = [
        _points("predicted", nets, _PREDICTED_LATENCY, _PREDICTED_ACCURACY, "--predicted", "circle", hollow=True),
        _points("measured", shipped, *measured, "--measured", "circle"),
        _points("measured, missed", missed, *measured, "--missed", "diamond"),
        _points("largest and smallest, measured", reference, *measured, "--muted", "square"),
    ]
    return [group for group in groups if group.nets]


def _front(device: DeviceReport) -> pd.DataFrame:
    """Evaluated architectures on the front, fastest first."""
    return device.searched[device.searched["on_front"].astype(bool)].sort_values("predicted_latency_ms")


def _cloud(device: DeviceReport) -> pd.DataFrame:
    """Evaluated architectures off the front, evenly thinned."""
    cloud = device.searched[~device.searched["on_front"].astype(bool)]
    return cloud.iloc[:: max(1, math.ceil(len(cloud) / _MAX_CLOUD_POINTS))]


def _reliability(device: DeviceReport) -> Record:
    """Figures about how well a latency table was measured."""
    table = device.latency_table
    unique = {column: ", ".join(sorted({str(value) for value in table[column]})) for column in _TABLE_COLUMNS[-5:]}
    return unique | {
        "rows": len(table),
        "runs": int(table["n_runs"].sum()),
        "median_width": float(_relative_width(table).median()),
        "widest": float(_relative_width(table).max()),
        "rejected_rounds": int(table["rejected_rounds"].sum()),
        "unconverged": int((~table["converged"].astype(bool)).sum()),
    }


def _relative_width(table: pd.DataFrame) -> pd.Series[float]:
    return (table["latency_high_ms"] - table["latency_low_ms"]) / table["latency_ms"]


# Figures for plotly.js. A colour is the name of a CSS variable, which the page resolves to its light or dark value.


@dataclass(frozen=True, slots=True)
class _Panel:
    """One figure of the page.

    Attributes:
        key: Identifies the figure within the page.
        note: What is seen, in words; also what a screen reader says.
        figure: ``data`` and ``layout`` of plotly.js.
        wide: Whether the figure takes the whole width of the page.
    """

    key: str
    title: str
    note: str
    figure: Figure
    wide: bool = False


def _panels(data: ReportData) -> dict[str, list[_Panel]]:
    """The figures of each section of the page."""
    numbered = list(enumerate(data.devices))
    return {
        "front": [_front_panel(device, key, wide=len(numbered) == 1) for key, device in numbered],
        "scatter": [
            _scatter_panel(device, key, data.latency_tolerance)
            for key, device in numbered
            if device.winners["measured_latency_ms"].notna().any()
        ],
        "history": [panel for key, device in numbered for panel in _history_panels(device, key)],
        "training": list(_training_panels(data.training, "training")),
        "quantized_training": []
        if data.quantized_training is None
        else list(_training_panels(data.quantized_training, "quantized")),
        "predictors": [_histogram_panel("accuracies", "Accuracy samples", *_accuracy_histogram(data))],
        "tables": [
            _histogram_panel(f"width-{key}", device.name, *_width_histogram(device))
            for key, device in numbered
            if len(device.latency_table)
        ],
    }


def _layout(x_title: str, y_title: str, **changes: Any) -> Figure:
    font = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "color": "--ink"}
    axis = {
        "color": "--muted",
        "gridcolor": "--grid",
        "linecolor": "--line",
        "zeroline": False,
        "showline": True,
        "automargin": True,
    }
    return {
        "paper_bgcolor": "--card",
        "plot_bgcolor": "--card",
        "font": font | {"size": 12},
        "margin": {"l": 56, "r": 16, "t": 32, "b": 52},
        "height": 300,
        "hoverlabel": {"align": "left", "bgcolor": "--card", "bordercolor": "--line", "font": font},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "xaxis": axis | {"title": {"text": x_title, "standoff": 8}},
        "yaxis": axis | {"title": {"text": y_title, "standoff": 8}},
    } | changes


def _front_panel(device: DeviceReport, key: int, *, wide: bool) -> _Panel:
    nets = _nets(device)
    cloud = _cloud(device)
    front = _front(device)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "searched, predicted",
            "x": _numbers(cloud["predicted_latency_ms"]),
            "y": _numbers(100 * cloud["predicted_accuracy"]),
            "marker": {"size": 3, "color": "--dots"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "front, predicted",
            "x": _numbers(front["predicted_latency_ms"]),
            "y": _numbers(100 * front["predicted_accuracy"]),
            "line": {"width": 1.2, "shape": "hv", "color": "--predicted"},
            "marker": {"size": 4, "color": "--predicted"},
            "hovertemplate": "%{x:.3~g} ms, %{y:.1f} %, predicted<extra></extra>",
        },
    ]
    traces += [_error_bars(points) for points in _front_points(nets)]
    layout = _layout("Latency (ms)", "Accuracy (%)", height=520 if wide else 440, hovermode="closest")
    for limit in device.constraints:
        if limit.name == "latency_ms" and limit.at_most is not None:
            layout |= _limit_line(limit.at_most)
    not_drawn = sum(_is_absent(net["measured_latency_ms"]) or _is_absent(net["test_accuracy"]) for net in nets)
    note = (
        f"{count(len(cloud))} of {count(len(device.searched) - len(front))} architectures off the front are drawn; "
        f"{count(len(front))} are on it. "
        f"Of {len(nets)} exported nets {not_drawn or 'none'} lack{'s' if not_drawn == 1 else ''} a measured point. "
        "Point at a net to see its settings."
    )
    return _Panel(f"front-{key}", device.name, note, {"data": traces, "layout": layout}, wide)


def _error_bars(points: _Points) -> Figure:
    def bar(axis: _Axis) -> Figure:
        ends = {
            "array": [axis.above(net) for net in points.nets],
            "arrayminus": [axis.below(net) for net in points.nets],
        }
        return ends | {"type": "data", "symmetric": False, "color": points.color, "thickness": 1, "width": 3}

    marker = {"symbol": points.symbol, "size": 9, "color": "--card" if points.hollow else points.color}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": points.label,
        "x": [points.x.of(net) for net in points.nets],
        "y": [points.y.of(net) for net in points.nets],
        "error_x": bar(points.x),
        "error_y": bar(points.y),
        "marker": marker | {"line": {"width": 1.6, "color": points.color}},
        "hovertext": [_hover_text(net) for net in points.nets],
        "hoverinfo": "text",
    }


def _hover_text(net: Record) -> str:
    """All about one net; plotly.js reads a little HTML in it, so everything that comes from outside is escaped."""
    predicted_ms, predicted_accuracy = net["predicted_latency_ms"], net["predicted_accuracy"]
    lines = [
        f"Latency (ms): predicted {ms(predicted_ms, NOT_PREDICTED)}, measured {ms(net['measured_latency_ms'])}",
        f"Accuracy (%): predicted {percent(predicted_accuracy, NOT_PREDICTED)}, test {percent(net['test_accuracy'])}",
        f"Missed: {net['verdict']}" if net["missed"] else f"Latency {net['verdict']}",
        *net["lines"],
    ]
    return "<br>".join([f"<b>{net['label']}</b>", *map(html.escape, lines)])


def _limit_line(latency_ms: float) -> Figure:
    line = {"type": "line", "x0": latency_ms, "x1": latency_ms, "yref": "paper", "y0": 0, "y1": 1}
    label = {"x": latency_ms, "yref": "paper", "y": 1, "text": f"limit {latency_ms:g} ms", "showarrow": False}
    return {
        "shapes": [line | {"line": {"color": "--muted", "dash": "dot", "width": 1.5}}],
        "annotations": [label | {"xanchor": "left", "yanchor": "top", "font": {"color": "--muted"}}],
    }


def _scatter_panel(device: DeviceReport, key: int, tolerance: float) -> _Panel:
    measured = [net for net in _nets(device) if not _is_absent(net["measured_latency_ms"])]
    ends = [
        end
        for net in measured
        for axis in (_MEASURED_LATENCY, _PREDICTED_LATENCY)
        for end in (axis.of(net), axis.of(net) - axis.below(net), axis.of(net) + axis.above(net))
    ]
    # The axes are logarithmic: an interval that a poor predictor lets reach 0 or below has its end off the picture.
    low, high = 0.93 * min(end for end in ends if end > 0), 1.07 * max(ends)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "name": f"within {100 * tolerance:g} %",
            "x": [low, high, high, low],
            "y": [low * (1 - tolerance), high * (1 - tolerance), high * (1 + tolerance), low * (1 + tolerance)],
            "mode": "lines",
            "fill": "toself",
            "fillcolor": "--band",
            "line": {"width": 0, "color": "--band"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "name": "equal",
            "mode": "lines",
            "x": [low, high],
            "y": [low, high],
            "line": {"width": 1, "dash": "dot", "color": "--muted"},
            "hoverinfo": "skip",
        },
    ]
    axes = (_MEASURED_LATENCY, _PREDICTED_LATENCY)
    kept = [net for net in measured if not net["missed"]]
    missed = [net for net in measured if net["missed"]]
    groups = (
        _points("not missed", kept, *axes, "--measured", "circle"),
        _points("missed", missed, *axes, "--missed", "diamond"),
    )
    traces += [_error_bars(points) for points in groups if points.nets]
    layout = _layout("Measured latency (ms)", "Predicted latency (ms)", height=400, hovermode="closest")
    scale = {"type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": _log_ticks(low, high)}
    layout |= {name: layout[name] | scale for name in ("xaxis", "yaxis")}
    note = f"{len(measured)} nets measured, {len(missed)} missed. Above the diagonal the prediction was too high."
    return _Panel(f"scatter-{key}", device.name, note, {"data": traces, "layout": layout})


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in ``low..high``, about evenly spaced on a logarithmic axis."""
    steps = (1, 1.5, 2, 3, 4, 5, 7) if high < 20 * low else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [step * 10**decade for decade in decades for step in steps if low <= step * 10**decade <= high]


def _history_panels(device: DeviceReport, key: int) -> list[_Panel]:
    panels = []
    for column, color in (("hypervolume", "--predicted"), ("diversity", "--measured")):
        layout = _layout("Evaluations", column.capitalize(), showlegend=False)
        lowest, highest = device.history[column].min(), device.history[column].max()
        if 0 < highest <= lowest * (1 + 1e-9):  # plotly.js would draw 0.01 that never changes on an axis from -1 to 1
            layout["yaxis"] = layout["yaxis"] | {"range": [0, 2 * highest]}
        lines = [_line(column, device.history["evaluations"], device.history[column], color)]
        note = f"{column.capitalize()} of the search over its evaluations."
        figure = {"data": lines, "layout": layout}
        panels.append(_Panel(f"{column}-{key}", f"{device.name}: {column}", note, figure))
    return panels


def _training_panels(training: pd.DataFrame, key: str) -> Iterator[_Panel]:
    numeric = training.select_dtypes("number")
    x_name = next((name for name in ("step", "epoch") if name in numeric.columns), None)
    x_all = numeric[x_name] if x_name else pd.Series(np.arange(len(numeric)), dtype=float)
    groups: dict[str, list[str]] = {}
    for column in numeric.columns:
        if column not in ("step", "epoch") and numeric[column].notna().any():
            groups.setdefault("loss" if column.startswith("loss_") else column, []).append(column)
    per_point = max(1, math.ceil(len(numeric) / _MAX_CURVE_POINTS))
    bins = np.arange(len(numeric)) // per_point
    note = "Every logged value." if per_point == 1 else f"Each point is the mean of {per_point} logged values."
    x = x_all.groupby(bins).mean()
    for number, (group, columns) in enumerate(groups.items()):
        lines = [
            _line(column.removeprefix("loss_").replace("_", " "), x, numeric[column].groupby(bins).mean(), color)
            for column, color in zip(columns, _cycle("--series-", 4), strict=False)
        ]
        title = group.replace("_", " ").capitalize()
        layout = _layout((x_name or "logged value").capitalize(), title, showlegend=len(lines) > 1)
        wide = number == 0 and len(groups) % 2 == 1
        yield _Panel(f"{key}-{number}", title, note, {"data": lines, "layout": layout}, wide)


def _cycle(prefix: str, n: int) -> Iterator[str]:
    while True:
        yield from (f"{prefix}{number}" for number in range(1, n + 1))


def _line(name: str, x: pd.Series[Any], y: pd.Series[Any], color: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": html.escape(name),
        "x": _numbers(x),
        "y": _numbers(y),
        "line": {"width": 1.6, "color": color},
    }


def _histogram_panel(key: str, title: str, values: list[float | None], x_title: str, note: str) -> _Panel:
    figure = {
        "data": [{"type": "histogram", "x": values, "nbinsx": 30, "marker": {"color": "--predicted"}}],
        "layout": _layout(x_title, "Architectures", bargap=0.06),
    }
    return _Panel(key, title, note, figure)


def _accuracy_histogram(data: ReportData) -> tuple[list[float | None], str, str]:
    accuracy = 100 * data.accuracy_samples["accuracy"]
    note = f"{count(len(accuracy))} subnets, evaluated on the validation images; median {accuracy.median():.1f} %."
    return _numbers(accuracy), "Validation accuracy (%)", note


def _width_histogram(device: DeviceReport) -> tuple[list[float | None], str, str]:
    width = 100 * _relative_width(device.latency_table)
    note = f"Median {width.median():.1f} %, widest {width.max():.1f} % of the latency."
    return _numbers(width), "Width of the 95 % interval (% of latency)", note


def _numbers(values: pd.Series[Any]) -> list[float | None]:
    """`values` for JSON, which has no NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]
