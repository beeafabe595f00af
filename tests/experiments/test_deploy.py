"""Integer networks on real runtimes: certificates say how far they are from the fake-quantized network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from quantized_networks import FLOAT_SPACE, N_VALIDATION, quantized, quantized_evaluator

from hanax.devices import DEVICES, RUNTIMES, Method, runtime_python
from hanax.experiments._deploy import deploy_quantized, float_twin
from hanax.experiments._parity_certificate import ParityCertificate, Tolerances, certify
from hanax.supernet import Evaluator, to_qdq_onnx

METHOD = Method(warmup_runs=1, min_rounds=6, max_rounds=6, inner_ms=1.0, inner_runs=1)
LOOSE = Tolerances(accuracy_points=10.0, equal_classes=0.8)
"""For 48 images and random weights, whose logits small errors change far more than those of trained ones."""


@pytest.mark.parametrize("device", ["onnxruntime-int8", "openvino-int8", "litert-int8"])
def test_every_runtime_computes_the_fake_quantized_network(device: str) -> None:
    if runtime_python(RUNTIMES[DEVICES[device].runtime]) is None:
        pytest.skip(f"the runtime is missing; `hanax devices install {device}` adds it")
    net, images, labels = quantized(8, 8)
    expected = net.deployed().logits(images)
    certificate = certify(net, DEVICES[device], images, labels, expected=expected, tolerances=LOOSE)
    assert certificate.is_met
    assert certificate.rms_difference < (0.01 if device == "onnxruntime-int8" else 0.2)


@pytest.mark.parametrize(("device", "activations"), [("onnxruntime-int8", 4), ("openvino-int8", 8)])
def test_runtimes_compute_weights_of_four_bits_and_onnxruntime_activations_too(device: str, activations: int) -> None:
    if runtime_python(RUNTIMES[DEVICES[device].runtime]) is None:
        pytest.skip(f"the runtime is missing; `hanax devices install {device}` adds it")
    net, images, labels = quantized(4, activations)
    expected = net.deployed().logits(images)
    certificate = certify(net, DEVICES[device], images, labels, expected=expected, tolerances=LOOSE)
    assert certificate.is_met
    assert certificate.rms_difference < (0.01 if device == "onnxruntime-int8" else 0.2)


def test_a_certificate_finds_a_model_that_computes_something_else(tmp_path: Path) -> None:
    net, images, labels = quantized(8, 8)
    kernels = dict(net.kernels)
    kernels["head.classify"] = dataclasses.replace(
        kernels["head.classify"], integers=-kernels["head.classify"].integers
    )
    wrong = dataclasses.replace(net, kernels=kernels)
    certificate = certify(net, DEVICES["onnxruntime-int8"], images, labels, model=to_qdq_onnx(wrong))
    assert not certificate.is_met
    assert "BREAKS parity" in certificate.verdict
    just_allowed = dataclasses.replace(
        certificate, reference_accuracy=0.9475, runtime_accuracy=0.9525, equal_classes=0.995
    )
    assert just_allowed.difference_points > 0.5 and just_allowed.is_met
    certificate.save(tmp_path / "parity.json")
    assert ParityCertificate.load(tmp_path / "parity.json") == certificate
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is no parity certificate"):
        ParityCertificate.load(tmp_path / "other.json")


def test_a_deployment_leaves_models_certificates_and_both_latencies(tmp_path: Path) -> None:
    net, _, _ = quantized(8, 8)
    evaluator = quantized_evaluator()
    split = evaluator.split
    params = {
        slot: {name: arrays for name, arrays in weights.items() if name != "steps"}
        for slot, weights in evaluator.params.items()
    }
    float_evaluator = Evaluator(FLOAT_SPACE, params, split, n_calibration=64, n_validation=N_VALIDATION)
    images, labels = split.x_validation[:N_VALIDATION], split.y_validation[:N_VALIDATION]
    device = DEVICES["onnxruntime-int8"]
    (row,) = deploy_quantized(
        net, float_evaluator.extract(FLOAT_SPACE.largest), [device], images, labels, tmp_path, method=METHOD
    )
    expected = float_evaluator.accuracies([FLOAT_SPACE.largest])[0]
    assert row.float_accuracy == pytest.approx(expected, abs=1e-9)
    assert row.reference_accuracy == (net.logits(net.normalise(images)).argmax(axis=1) == labels).mean()
    assert 0 < row.latency_low_ms <= row.latency_ms <= row.latency_high_ms
    assert 0 < row.float_latency_low_ms <= row.float_latency_ms <= row.float_latency_high_ms
    assert (tmp_path / row.model).stat().st_size == row.model_bytes
    assert (tmp_path / row.float_model).stat().st_size == row.float_model_bytes
    certificate = ParityCertificate.load(tmp_path / "parity-onnxruntime-int8.json")
    assert certificate.runtime_accuracy == row.runtime_accuracy
    assert json.loads((tmp_path / "deployment.json").read_text())["rows"] == [dataclasses.asdict(row)]


def test_where_integers_are_slower_the_words_say_so() -> None:
    from hanax.experiments._deploy import DeployedRow

    values = {field.name: 0.5 for field in dataclasses.fields(DeployedRow)}
    row = DeployedRow(**values | {"device": "d", "runtime": "r", "runtime_version": "1", "converged": True})
    slower = dataclasses.replace(row, latency_ms=2.0, latency_low_ms=1.9, latency_high_ms=2.1)
    assert "SLOWER than float32, which is 4.00 times as fast" in slower.words
    faster = dataclasses.replace(row, latency_ms=0.1, latency_low_ms=0.1, latency_high_ms=0.1)
    assert "5.00 times as fast as float32" in faster.words
    assert "as fast as float32, as far as the measurement can tell" in row.words


def test_only_devices_of_fixed_integers_deploy_them() -> None:
    assert float_twin(DEVICES["openvino-int8"]) == DEVICES["openvino-fp32"]
    with pytest.raises(ValueError, match="onnxruntime-fp32 runs models in fp32; an integer network is deployed on"):
        float_twin(DEVICES["onnxruntime-fp32"])
    with pytest.raises(ValueError, match="a certificate needs a label for each image"):
        certify(quantized(8, 8)[0], DEVICES["onnxruntime-int8"], np.zeros((2, 1, 8, 8), np.float32), np.zeros(1, int))
