"""A whole run that searches number formats: what it ships, what it proves, and what other commands make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from command_line import QUANTIZED_TINY, TINY, CommandLine, TinyRun, finished_run

from hanax.experiments import Experiment, make_experiment
from hanax.experiments._after import find_float_arch
from hanax.experiments._fitting import costs_of, latency_predictor_features, timed_space
from hanax.experiments._folder import stage_keys, stage_states
from hanax.experiments._pipeline import Pipeline
from hanax.experiments._progress import Silent
from hanax.experiments._quantized_products import policy_text
from hanax.experiments._research import Sources, make_task, search_alone
from hanax.search_spaces import Arch, float_arch, mobilenet_v3, policy_of, quantized_space, with_precision

DEVICE = "onnxruntime-int8"


def experiment_of(text: str, **sections: object) -> Experiment:
    return make_experiment({"name": "tiny"} | yaml.safe_load(text) | sections, "here")


def pipeline_of(experiment: Experiment, path: Path) -> Pipeline:
    from hanax.supernet import load_images

    return Pipeline(experiment, path, load_images("digits"), Silent())


def test_a_run_that_does_not_quantize_keeps_its_finished_stages_and_one_that_does_shares_its_supernet() -> None:
    plain = stage_keys(pipeline_of(experiment_of(TINY), Path("none")).stages())
    # As they were before runs could quantize.
    assert (plain["supernet"], plain["accuracy"]) == ("5d367a57ef398356", "ced203b1fb4c39df")
    assert (plain["ship/onnxruntime-fp32"], plain["report"]) == ("08988137f99e57a4", "600dc1eac7f3e6c3")

    def keys(**quantization: object) -> dict[str, str]:
        devices = [{"name": DEVICE, "archs": 16}]
        experiment = experiment_of(TINY, quantization=quantization, devices=devices)
        return stage_keys(pipeline_of(experiment, Path("none")).stages())

    quantized, by_network, post_training = keys(), keys(granularity="network"), keys(epochs=0)
    assert list(quantized)[:4] == ["data", "supernet", "quantized-supernet", "accuracy"]
    assert quantized["supernet"] == plain["supernet"] and quantized["accuracy"] != plain["accuracy"]
    assert by_network["quantized-supernet"] != quantized["quantized-supernet"]
    assert "quantized-supernet" not in post_training and post_training["accuracy"] != plain["accuracy"]
    timed = f"latency/{DEVICE}"
    assert keys(weights=["int8"], activations=["int8"])[timed] == keys(activations=["int8"])[timed] != quantized[timed]


SPACE = mobilenet_v3(
    resolutions=(8,),
    n_classes=10,
    stem_width=8,
    stage_widths=(8, 8),
    stage_strides=(1, 2),
    stage_activations=("relu", "hswish"),
    stage_squeeze_excite=(False, True),
    depths=(1, 2),
    head_width=16,
    feature_width=16,
)


def test_weights_of_fewer_bits_are_not_timed_apart_but_activations_are() -> None:
    weights = quantized_space(SPACE, activations=("int8",))
    assert timed_space(weights).fingerprint == SPACE.fingerprint
    codes = with_precision(weights, SPACE.encode([SPACE.largest] * 2), "int8", "int8")
    codes[1] = with_precision(weights, SPACE.encode([SPACE.largest]), "int4", "int8")
    features = latency_predictor_features(weights, codes)
    np.testing.assert_array_equal(features[0], features[1])
    both = quantized_space(SPACE)
    assert timed_space(both) == both
    assert timed_space(SPACE).fingerprint == SPACE.fingerprint


def test_a_policy_is_written_per_block_unless_it_is_the_same_throughout() -> None:
    space = quantized_space(SPACE)
    (same,) = space.decode(with_precision(space, SPACE.encode([SPACE.largest]), "int8", "int8"))
    assert policy_text(space, same) == "8/8 throughout"
    (mixed,) = space.decode(with_precision(space, SPACE.encode([SPACE.largest]), "int4", "int6"))
    slots = list(policy_of(space, mixed))
    text = policy_text(space, mixed)
    assert text.startswith(f"{slots[0]} 8/8, ") and text.endswith(f"{slots[-1]} 8/8")
    assert "stage1 4/6 4/6, stage2 4/6 4/6" in text


class Constant:
    def predict(self, features: np.ndarray) -> np.ndarray:
        return np.ones(len(features))


def test_bits_lower_what_a_network_costs_in_bytes_and_on_bitfusion(
    shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANAX_BITFUSION", str(shared_data("apq/BitFusion_new.b1.dict")))
    space, archs = quantized_space(SPACE), SPACE.encode([SPACE.largest])
    codes = np.concatenate([with_precision(space, archs, bits, bits) for bits in ("int4", "int8")])
    costs = costs_of(space, Constant(), Constant(), on_bitfusion=True)(codes)
    for name in ("size_bytes", "bit_operations", "bitfusion_latency_ms"):
        assert 0 < costs[name][0] < costs[name][1], name
    assert (costs["bitfusion_energy_mj"] > 0).all()  # in the file, fewer bits do not always take less
    assert costs["macs"][0] == costs["macs"][1]
    other = quantized_space(SPACE, weights=("int5",))
    with pytest.raises(ValueError, match="asked for was"):
        costs_of(other, Constant(), Constant(), on_bitfusion=True)(other.encode([other.largest]))


@pytest.fixture(scope="module")
def run(command_line: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return finished_run(command_line, tmp_path_factory.mktemp("quantized"), QUANTIZED_TINY)


@pytest.mark.slow
def test_a_run_ends_with_certified_integer_models_beside_float32(run: TinyRun) -> None:
    from sklearn.datasets import load_digits

    from hanax.experiments._parity_certificate import ParityCertificate
    from hanax.supernet import QuantizedNet, run_onnx

    winners = pd.read_parquet(run.folder / "pareto.parquet")
    assert len(winners) >= 2
    report = (run.folder / "report.html").read_text()
    assert "times as long here as the same networks in float32" in report and "In number formats" in report
    for row in winners.to_dict("records"):
        folder = (run.folder / row["model_path"]).parent
        net, certificate = QuantizedNet.load(folder), ParityCertificate.load(folder / "certificate.json")
        assert str(net.arch) == row["arch"] == certificate.arch
        assert certificate.runtime_accuracy == row["delivered_accuracy"]
        assert certificate.reference_accuracy == pytest.approx(row["promised_accuracy"], abs=0.01)
        assert certificate.is_met == row["parity"]
        assert net.size_bytes == row["size_bytes"]
        assert row["float_latency_ms"] > 0 and row["measured_latency_ms"] > 0
        assert row["policy"] in (folder / "card.md").read_text() and row["policy"] in report
        images = net.normalise(load_digits().images[:5, :, :, None].astype(np.uint8) * 15)
        logits = np.concatenate([run_onnx((folder / "model.onnx").read_bytes(), images[[n]]) for n in range(5)])
        np.testing.assert_allclose(logits, net.logits(images), atol=0.2 * np.abs(logits).max())
    if not winners["parity"].all():
        assert "PARITY FAILED" in report and "PARITY FAILED" in run.output
    counted = [json.loads(line)["device"] for line in (run.folder / "ledger.jsonl").read_text().splitlines()]
    assert set(counted) == {DEVICE, "onnxruntime-fp32"}


@pytest.mark.slow
def test_a_finished_run_does_nothing_more(run: TinyRun, command_line: CommandLine) -> None:
    before = (run.folder / "ledger.jsonl").read_text()
    status, output = command_line.run("run", run.file, "--out", run.folder, cwd=run.file.parent)
    assert status == 0, output
    states = stage_states(run.folder)
    assert {state for _, state, _ in states} == {"done"}
    assert output.count("done before") == len(states) == 11
    assert (run.folder / "ledger.jsonl").read_text() == before


@pytest.mark.slow
def test_a_quantized_run_is_searched_again_and_its_networks_are_extracted_in_integers(
    run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    from hanax.supernet import QuantizedNet

    task = make_task(Sources(run.folder), objectives=("accuracy", "size_bytes"), reporter=Silent())
    front = search_alone(task, None, 60, 0, Silent())
    assert list(front["size_bytes"]) and (front["size_bytes"] > 0).all()
    arch = str(front["arch"].iloc[0])
    status, output = command_line.run("extract", run.folder, "--arch", arch, "--out", tmp_path / "net", cwd=tmp_path)
    assert status == 0, output
    assert "in integers (" in output
    assert QuantizedNet.load(tmp_path / "net", task.problem.space).arch == Arch.parse(arch)


def test_what_is_trained_in_float32_refuses_an_architecture_with_formats_and_says_what_it_is_without() -> None:
    pipeline = pipeline_of(experiment_of(QUANTIZED_TINY), Path("none"))
    space = pipeline.searched_space
    with pytest.raises(ValueError, match=f"trained in float32: give {float_arch(space, space.largest)}, which it is"):
        find_float_arch(pipeline, space.largest)
    assert find_float_arch(pipeline, "largest") == pipeline.space.largest
