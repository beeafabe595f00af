"""The card that goes with an exported model: what it is, what it costs, how that was measured, and its limits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanax._files import write_atomically
from hanax.experiments._report import (
    _TEMPLATES,
    NOT_PREDICTED,
    count,
    interval,
    ms,
    percent,
    settings_lines,
    significant,
)


@dataclass(frozen=True, slots=True)
class LatencyFigure:
    """Latency of a model on one device, in ms; NaN where it was not predicted or not measured.

    Attributes:
        how: How it was measured in one sentence, e.g. ``median of 40 interleaved rounds after 10 warm-up runs``.
        measured_at: UTC time in ISO format; empty without a measurement.
    """

    device: str
    device_fingerprint: str
    hardware: str
    runtime: str
    precision: str
    threads: int
    batch: int
    predicted_ms: float
    predicted_low_ms: float
    predicted_high_ms: float
    measured_ms: float
    measured_low_ms: float
    measured_high_ms: float
    how: str
    measured_at: str


@dataclass(frozen=True, slots=True)
class AccuracyFigure:
    """Accuracy of a model on one split of the data.

    Attributes:
        split: What was evaluated, e.g. ``test`` or ``validation (predicted)``.
        accuracy: A fraction; NaN if it was not measured.
        low: Lower end of the interval, a fraction; NaN without one.
        high: Upper end of the interval, a fraction; NaN without one.
        interval: What the interval is, e.g. ``95 % Wilson``; empty without one.
        n_images: How many images were evaluated.
    """

    split: str
    accuracy: float
    low: float
    high: float
    interval: str
    n_images: int


@dataclass(frozen=True, slots=True)
class IntegerFigure:
    """What an integer model is in, and whether its file keeps what was promised of it.

    Attributes:
        policy: Formats of weights and activations, in words.
        size_bytes: Of the weights, packed to their bits, with scales and biases.
        calibration: How the ranges of tensors were found.
        promised: Accuracy of the fake-quantized network that was searched, a fraction.
        delivered: Accuracy of the model file on the same images, a fraction.
        parity: Whether the file does what the fake-quantized network does.
        verdict: The same in a sentence, with what was allowed.
        certificate: File with the details, relative to the card.
    """

    policy: str
    size_bytes: int
    calibration: str
    promised: float
    delivered: float
    parity: bool
    verdict: str
    certificate: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of the model.

    Attributes:
        name: Relative to the card.
        sha256: Hexadecimal.
    """

    name: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path, folder: Path) -> ModelFile:
        """The file at `path`, described for a card in `folder`."""
        content = path.read_bytes()
        return cls(path.relative_to(folder).as_posix(), hashlib.sha256(content).hexdigest(), len(content))


@dataclass(frozen=True, slots=True)
class ModelCardData:
    """Everything a model card says.

    Attributes:
        settings: Option taken at each decision that counts, by name.
        input_shape: Channels, height, width.
        mean: Per channel, of pixel values in [0, 1].
        std: Per channel, of pixel values in [0, 1].
        class_names: In the order of the logits.
        limits: What the model should not be trusted with beyond the limits that every card states.
        integer: About an integer model; None for one in float32.
    """

    title: str
    arch: str
    settings: Mapping[str, Any]
    space_name: str
    space_fingerprint: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    macs: int
    params: int
    latencies: tuple[LatencyFigure, ...]
    accuracies: tuple[AccuracyFigure, ...]
    dataset_name: str
    dataset_fingerprint: str
    files: tuple[ModelFile, ...]
    hanax_version: str
    limits: tuple[str, ...] = ()
    integer: IntegerFigure | None = None


def write_model_card(data: ModelCardData, path: Path) -> None:
    """Write the card of one model as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,  # Markdown, not HTML: the filter `md` escapes both
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["md"] = escape_markdown
    templates.globals.update(count=count, interval=interval, ms=ms, percent=percent, significant=significant)
    text = templates.get_template("model_card.md.j2").render(
        card=data, settings=settings_lines(data.settings), not_predicted=NOT_PREDICTED
    )
    write_atomically(path, text.encode())


def escape_markdown(text: object) -> str:
    """`text` as one line that Markdown shows literally, also within a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~$!])", r"\\\1", " ".join(str(text).split()))
