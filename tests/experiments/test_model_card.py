"""A model card says what a model is, what it costs, how that was measured, and what is not known."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest

from hanax.experiments._model_card import (
    AccuracyFigure,
    IntegerFigure,
    LatencyFigure,
    ModelCardData,
    ModelFile,
    escape_markdown,
    write_model_card,
)

LATENCY = LatencyFigure(
    device="onnxruntime-fp32",
    device_fingerprint="f00d",
    hardware="Xeon, 2 cores",
    runtime="onnxruntime 1.23.0",
    precision="fp32",
    threads=1,
    batch=1,
    predicted_ms=0.412,
    predicted_low_ms=0.391,
    predicted_high_ms=0.433,
    measured_ms=0.405,
    measured_low_ms=0.402,
    measured_high_ms=0.409,
    how="median of 40 interleaved rounds after 10 warm-up runs",
    measured_at="2030-01-02T03:04:05Z",
)
CARD = ModelCardData(
    title="digits, net 1",
    arch="0.1.2",
    settings={"resolution": 8, "stage1.depth": 2},
    space_name="mobilenet_v3",
    space_fingerprint="5bace",
    input_shape=(1, 8, 8),
    mean=(0.306,),
    std=(0.377,),
    class_names=("zero", "one"),
    macs=1_234_567,
    params=45_678,
    latencies=(LATENCY,),
    accuracies=(AccuracyFigure("test", 0.913, 0.907, 0.918, "95 % Wilson", 10_000),),
    dataset_name="digits",
    dataset_fingerprint="d161",
    files=(ModelFile("0.1.2.onnx", "ab" * 32, 98_765),),
    hanax_version="0.1.0",
    limits=("Never tried on photographs.",),
)
DASH = "\N{EN DASH}"


def card_text(card: ModelCardData, folder: Path) -> str:
    write_model_card(card, folder / "README.md")
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_card_says_everything(tmp_path: Path) -> None:
    text = card_text(CARD, tmp_path)
    for expected in (
        "float32, N x 1 x 8 x 8",
        "| Mean | 0.306 |",
        "| Std | 0.377 |",
        "0: zero; 1: one",
        "1,234,567 multiply-accumulates per image (1.23 million), 45,678 parameters",
        "- resolution 8\n- stage1: depth 2\n",
        "`0.1.2`",
        f"| 1 | 1 | 0.412 (0.391 {DASH} 0.433) | 0.405 (0.402 {DASH} 0.409) |",
        "Measured on onnxruntime-fp32: median of 40 interleaved rounds after 10 warm-up runs, 2030-01-02T03:04:05Z.",
        f"| test | 10,000 | 91.3 | 90.7 {DASH} 91.8 | 95 % Wilson |",
        "| Data set | digits | `d161` |",
        "| Search space | mobilenet\\_v3 | `5bace` |",
        "| Device | onnxruntime-fp32 | `f00d` |",
        f"| 0.1.2.onnx | 98,765 | `{'ab' * 32}` |",
        "- Never tried on photographs.",
    ):
        assert expected in text


def test_tables_have_as_many_cells_in_each_row(tmp_path: Path) -> None:
    text = card_text(replace(CARD, latencies=(LATENCY, LATENCY)), tmp_path)
    for table in (part for part in text.split("\n\n") if part.startswith("|")):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    unmeasured = replace(LATENCY, measured_ms=math.nan, measured_low_ms=math.nan, measured_high_ms=math.nan)
    accuracy = AccuracyFigure("test", math.nan, math.nan, math.nan, "", 10_000)
    text = card_text(replace(CARD, latencies=(unmeasured,), accuracies=(accuracy,)), tmp_path)
    assert f"| 0.412 (0.391 {DASH} 0.433) | not measured |" in text
    assert "| test | 10,000 | not measured | no interval |" in text
    assert "Measured on" not in text and "nan" not in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a|b", r"a\|b"), ("<b>*x*</b>", r"\<b\>\*x\*\</b\>"), ("two\nlines", "two lines"), ("`c`", r"\`c\`")],
)
def test_markdown_in_names_is_shown_literally(given: str, shown: str, tmp_path: Path) -> None:
    assert escape_markdown(given) == shown
    assert shown in card_text(replace(CARD, dataset_name=given), tmp_path)


def test_a_file_is_described_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.onnx").write_bytes(b"model")
    described = ModelFile.of(tmp_path / "models" / "net.onnx", tmp_path)
    assert described == ModelFile("models/net.onnx", hashlib.sha256(b"model").hexdigest(), 5)


INTEGER = IntegerFigure("stem 8/8, stage1 4/8", 12_345, "minmax", 0.913, 0.911, True, "All is well", "certificate.json")


def test_the_card_of_an_integer_model_says_its_formats_and_that_its_file_keeps_the_promise(tmp_path: Path) -> None:
    write_model_card(replace(CARD, integer=INTEGER), tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text()
    assert (
        "stem 8/8, stage1 4/8" in text and "12,345 bytes" in text and "| Parity | kept, see certificate.json |" in text
    )
    assert "PARITY FAILED" not in text
    write_model_card(CARD, tmp_path / "float.md")
    assert "Number formats" not in (tmp_path / "float.md").read_text()


def test_a_card_begins_with_a_warning_where_the_file_does_not_keep_the_promise(tmp_path: Path) -> None:
    broken = replace(INTEGER, parity=False, verdict="It BREAKS parity: 80 %")
    write_model_card(replace(CARD, integer=broken), tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text()
    assert text.index("PARITY FAILED") < text.index("It BREAKS parity: 80 %.") < text.index("## Input and output")
