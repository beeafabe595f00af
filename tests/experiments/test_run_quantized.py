"""The supernet of a run in number formats: where its weights are from, what tables say, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import CommandLine, trained_run
from typer.testing import CliRunner

from hanax.experiments import Formats, quantize_supernet, quantized_evaluator
from hanax.experiments._accuracies import AccuracyTableError, collect_accuracy
from hanax.experiments._cli import app
from hanax.experiments._fitting import draw_archs
from hanax.experiments._folder import QUANTIZED_SUPERNET
from hanax.experiments._frames import read_frame
from hanax.experiments._pipeline import Pipeline
from hanax.experiments._progress import Silent
from hanax.experiments._run_quantized import quantized_supernet, read_archs
from hanax.search_spaces import SpaceMismatchError, quantized_space
from hanax.supernet import load_supernet, supernet_fingerprint, with_steps

SMALL = (
    "space.stage_widths=[8]", "space.stage_strides=[1]", "space.stage_activations=[relu]", "space.depths=[1]",
    "space.stage_squeeze_excite=[false]", "space.expand_ratios=[3]", "space.kernel_sizes=[3]",
    "supernet.epochs=0.5", "supernet.watch_epochs=0",
)  # fmt: skip
SETTINGS = ("watch_epochs=0", "n_random_subnets=1")
FORMATS = Formats(("int8", "int4"), ("int8",))


class Said(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def pipeline(command_line: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Of a run that has come as far as its float supernet."""
    with trained_run(command_line, tmp_path_factory.mktemp("quantized"), SMALL) as made:
        yield made


@pytest.fixture(scope="module")
def trained(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its supernet, trained on in `FORMATS`."""
    folder = tmp_path_factory.mktemp("trained") / "supernet"
    quantize_supernet(pipeline.path, out=folder, formats=FORMATS, epochs=0.2, overrides=SETTINGS)
    return folder


def test_formats_are_sorted_names_and_unknown_ones_are_refused() -> None:
    assert Formats(("int4", "int8", "int4"), ("int8",)) == FORMATS
    assert FORMATS.weights == ("int4", "int8")
    with pytest.raises(ValueError, match="there is no number format 'int9'"):
        Formats(weights=("int9",))
    with pytest.raises(ValueError, match="weights: give at least one number format"):
        Formats(weights=())


@pytest.mark.slow
def test_weights_are_those_of_a_folder_or_the_runs_own_or_else_not_trained(
    pipeline: Pipeline, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = quantized_space(pipeline.space, weights=(4, 8), activations=(8,))
    given = quantized_supernet(pipeline, folder=trained)
    assert given.space == space, "its card says the formats"
    assert supernet_fingerprint(given.params) == supernet_fingerprint(load_supernet(space, trained))
    assert "trained in number formats" in given.origin and str(trained) in given.origin

    calibrated = quantized_supernet(pipeline)
    assert "not trained in number formats (post-training quantization)" in calibrated.origin
    assert len(calibrated.space.decisions[-1].options) == 3
    assert supernet_fingerprint(calibrated.params) == supernet_fingerprint(with_steps(space, pipeline.params))

    folder_of = pipeline.folder
    monkeypatch.setattr(pipeline, "folder", lambda stage: trained if stage == QUANTIZED_SUPERNET else folder_of(stage))
    assert supernet_fingerprint(quantized_supernet(pipeline).params) == supernet_fingerprint(given.params)
    with pytest.raises(SpaceMismatchError):
        quantized_supernet(pipeline, formats=Formats())


@pytest.mark.slow
def test_the_card_says_in_what_and_from_what_it_was_trained(pipeline: Pipeline, trained: Path) -> None:
    card = json.loads((trained / "quantized.json").read_text())
    assert card["formats"] == {"weights": ["int4", "int8"], "activations": ["int8"], "granularity": "block"}
    assert card["float_fingerprint"] == supernet_fingerprint(pipeline.params)
    assert card["weights_fingerprint"] != card["float_fingerprint"]
    assert card["epochs"] == 0.2
    assert card["recipe"]["learning_rate"] == pytest.approx(0.1 * pipeline.experiment.supernet.learning_rate)
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    again = quantize_supernet(pipeline.path, out=trained, formats=FORMATS, epochs=0.2, overrides=SETTINGS)
    assert (trained / "metrics.jsonl").read_text().splitlines() == lines, "a finished training is not continued"
    assert again.weights_fingerprint == card["weights_fingerprint"]
    with pytest.raises(ValueError, match="differing in recipe"):
        quantize_supernet(pipeline.path, out=trained, formats=FORMATS, epochs=0.4, overrides=SETTINGS)


@pytest.mark.slow
def test_a_table_of_pairs_says_formats_and_calibration_and_is_completed_not_made_anew(
    pipeline: Pipeline, trained: Path, tmp_path: Path
) -> None:
    said, path = Said(), tmp_path / "pairs.parquet"
    evaluator = quantized_evaluator(pipeline, folder=trained, reporter=said)
    assert said.lines == [f"Supernet: {trained}, trained in number formats"]
    archs, data = draw_archs(evaluator.space, 4, [0, 10]), {"data_fingerprint": pipeline.dataset.fingerprint}
    collect_accuracy(evaluator, archs[:1], path, **data)
    frame = collect_accuracy(evaluator, archs, path, **data)
    np.testing.assert_array_equal(frame["accuracy"], evaluator.accuracies(archs))
    stored, facts = read_frame(path, evaluator.space)
    assert stored["arch"].tolist() == [str(arch) for arch in archs]
    expected = {"weight_bits": ["int4", "int8"], "activation_bits": ["int8"], "calibration": "minmax"}
    assert facts["collected"]["quantized"] == expected
    ledger = (tmp_path / "pairs.ledger.jsonl").read_text().splitlines()
    assert len(ledger) == 1 + len(archs), "none is scored twice"
    other = quantized_evaluator(pipeline, folder=trained, calibration="percentile")
    with pytest.raises(AccuracyTableError, match=r"'calibration': 'minmax'}, is .*'calibration': 'percentile'}"):
        collect_accuracy(other, archs, path, **data)
    with pytest.raises(ValueError, match="a race is between networks of equal MACs"):
        collect_accuracy(evaluator, archs, path, **data, race=True)

    run = CliRunner().invoke(app, ["collect", "accuracy", str(pipeline.path), "--quant", "--supernet", str(trained),
                                   "--from", str(path), "--out", str(tmp_path / "again.parquet")])  # fmt: skip
    assert run.exit_code == 0, run.output
    assert f"Supernet: {trained}, trained in number formats" in run.output
    again = pd.read_parquet(tmp_path / "again.parquet")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), frame.drop(columns="seconds"))


@pytest.mark.slow
def test_pairs_to_score_are_read_from_a_table_and_others_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    space = FORMATS.build(pipeline.space)
    archs = draw_archs(space, 4, [1])
    for suffix in (".csv", ".parquet"):
        path = tmp_path / f"pairs{suffix}"
        frame = pd.DataFrame({"arch": [str(arch) for arch in (*archs, archs[0])]})
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
        assert read_archs(path, space) == archs
    with pytest.raises(ValueError, match=r"row 0: .* is no architecture of"):
        read_archs(path, pipeline.space)
    frame.rename(columns={"arch": "net"}).to_parquet(path)
    with pytest.raises(ValueError, match="has no column arch; it has net"):
        read_archs(path, space)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quant"], "give either --archs"),
        (["--quant", "--archs", "4", "--race"], "--race compares networks of equal MACs"),
        (["--weights", "int8", "--archs", "4"], "go with --quant"),
        ([], "give --archs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        app, ["collect", "accuracy", str(tmp_path), "--out", str(tmp_path / "t.parquet"), *options]
    )
    assert run.exit_code == 2
    assert message in " ".join(run.output.replace("│", " ").split())
