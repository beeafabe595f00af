"""A network in integers computes what the quantized supernet says of it, and its ONNX file computes just that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantized_networks import FLOAT_SPACE, N_VALIDATION, SPACE, policy, quantized, quantized_evaluator, random_params

from hanax.search_spaces import SpaceMismatchError, quantized_space, uniform_plan
from hanax.supernet import (
    Evaluator,
    IntegerKernel,
    QuantizedNet,
    run_onnx,
    to_integer_tflite,
    to_qdq_onnx,
)


def steps_apart(net: QuantizedNet, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The difference of each logit, in steps of the logits' own scale."""
    return np.abs(found - expected) / net.tensors[net.graph.operators[-1].name].scale


@pytest.mark.parametrize("seed", range(4))
def test_its_logits_are_those_of_the_quantized_supernet(seed: int) -> None:
    """To rounding: a sum that lies between two integers may fall to either, and what follows from one that did."""
    evaluator = quantized_evaluator()
    arch = SPACE.decode(SPACE.sample(np.random.default_rng(seed), 1))[0]
    net = evaluator.quantize(arch)
    expected = evaluator.logits(arch)
    found = net.logits(net.normalise(evaluator.split.x_validation[:N_VALIDATION]))
    steps = steps_apart(net, found, expected)
    assert (steps < 0.5).mean() > 0.95
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 4), (2, 3)])
def test_onnxruntime_computes_it_in_any_bits(weights: int, activations: int) -> None:
    net, images, _ = quantized(weights, activations)
    expected = net.deployed().logits(images)
    found = run_onnx(to_qdq_onnx(net, batch=None), images)
    steps = steps_apart(net, found, expected)
    assert (steps < 0.5).mean() > 0.95
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97


def test_integers_of_biases_change_logits_less_than_their_spread() -> None:
    for formats in ((8, 8), (4, 4)):
        net, images, _ = quantized(*formats)
        whole, rounded = net.logits(images), net.deployed().logits(images)
        assert np.sqrt(np.mean((whole - rounded) ** 2)) < 0.2 * whole.std()


def test_kernels_have_the_integers_of_their_format() -> None:
    net, _, _ = quantized(4, 4)
    for name, kernel in net.kernels.items():
        op = next(op for op in net.graph.operators if op.name == name)
        inner = op.has_norm and not name.startswith(("stem.", "head."))
        assert kernel.bits == (4 if inner else 8)
        assert np.abs(kernel.integers.astype(int)).max() <= (7 if inner else 64)
        assert (kernel.scales > 0).all() and np.isfinite(kernel.bias).all()


def test_files_hold_activations_of_few_bits_and_kernels_up_to_64() -> None:
    net, _, _ = quantized(4, 4)
    graph = onnx.load_from_string(to_qdq_onnx(net)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kernels = [array for name, array in constants.items() if name.endswith("kernel.integers")]
    assert {array.dtype for array in kernels} == {np.dtype(np.int8)}
    assert max(np.abs(array.astype(int)).max() for array in kernels) <= 64
    cut = [name for name in constants if name.endswith(".highest")]
    assert len(cut) == sum(levels.bits < 8 for levels in net.tensors.values()) > 0
    assert all(constants[name] == 15 for name in cut)


def test_the_same_network_gives_the_same_bytes() -> None:
    first, second = (quantized_evaluator().quantize(policy(8, 8)) for _ in range(2))
    assert to_qdq_onnx(first) == to_qdq_onnx(second)
    assert to_integer_tflite(first) == to_integer_tflite(second)


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    net, _, _ = quantized(4, 4)
    net.save(tmp_path)
    loaded = QuantizedNet.load(tmp_path, SPACE)
    assert to_qdq_onnx(loaded) == to_qdq_onnx(net)
    assert (loaded.graph, loaded.tensors, loaded.plan, loaded.arch) == (net.graph, net.tensors, net.plan, net.arch)
    for name, kernel in net.kernels.items():
        for entry in ("integers", "scales", "bias"):
            np.testing.assert_array_equal(getattr(loaded.kernels[name], entry), getattr(kernel, entry))
    with pytest.raises(SpaceMismatchError, match="belongs to the search space with fingerprint"):
        QuantizedNet.load(tmp_path, FLOAT_SPACE)
    (tmp_path / "quantized.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is not complete, or not of"):
        QuantizedNet.load(tmp_path)


def test_a_channel_whose_kernel_is_nearly_zero_keeps_its_bias() -> None:
    """Its bias would not fit into int32 at the scale of its products."""
    integers = np.ones((3, 2), np.int8)
    scales = np.array([1e-12, 0.0, 0.5], np.float32)
    kernel = IntegerKernel(8, integers, scales, np.array([0.7, 0.0, 3.0], np.float32)).for_input(0.1)
    assert kernel.bias_integers(0.1) * kernel.bias_scales(0.1) == pytest.approx([0.7, 0.0, 3.0], rel=1e-4, abs=0.03)
    np.testing.assert_array_equal(kernel.integers[2], [1, 1])
    assert np.abs(kernel.values[:2]).max() < 1e-6 or not kernel.integers[:1].any()


@pytest.mark.parametrize(("bits", "largest"), [(2, 64), (3, 48), (4, 56), (5, 60), (6, 62), (7, 63), (8, 64)])
def test_kernels_of_few_bits_keep_their_values_in_larger_integers(bits: int, largest: int) -> None:
    integers = np.array([[min(2 ** (bits - 1) - 1, 64), -1]], np.int8)
    kernel = IntegerKernel(bits, integers, np.array([0.3], np.float32), np.zeros(1, np.float32))
    assert np.abs(kernel.widened().integers.astype(int)).max() == largest
    np.testing.assert_array_equal(kernel.widened().values, kernel.values)


def test_size_counts_packed_kernels_scales_and_biases() -> None:
    for formats in ((8, 8), (4, 4)):
        net, _, _ = quantized(*formats)
        expected = sum(
            -(-int(np.prod(op.kernel_shape)) * net.plan.kernels[op.name] // 8)
            + (8 if op.has_bias or op.has_norm else 4) * op.out_shape[0]
            for op in net.graph.operators
            if op.is_weighted
        )
        assert net.size_bytes == expected


def test_a_float_network_is_quantized_after_training() -> None:
    evaluator = quantized_evaluator()
    params = random_params(FLOAT_SPACE, 0)
    given = Evaluator(FLOAT_SPACE, params, evaluator.split, n_calibration=64, n_validation=N_VALIDATION)
    subnet = given.extract(FLOAT_SPACE.largest)
    _, images, _ = quantized(8, 8)
    expected = given.logits(FLOAT_SPACE.largest)
    error = {}
    for bits in (4, 8):
        found = QuantizedNet.of(subnet, images, uniform_plan(subnet.graph, bits, bits)).logits(images)
        error[bits] = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert 0 < error[8] < 0.15
    assert error[4] > error[8]
    with pytest.raises(ValueError, match="ranges come from images; there are none"):
        QuantizedNet.of(subnet, images[:0])
    with pytest.raises(ValueError, match=r"conv is in e4m3, which is not deployable as integers; formats int2 to int8"):
        QuantizedNet.of(subnet, images, uniform_plan(subnet.graph, "e4m3"))


def test_what_has_no_integers_is_refused() -> None:
    evaluator = quantized_evaluator()
    space = quantized_space(FLOAT_SPACE, weights=("float32",), activations=("int8",))
    other = Evaluator(space, evaluator.params, evaluator.split, n_calibration=64, n_validation=N_VALIDATION)
    with pytest.raises(ValueError, match=r"is in float32, which is not deployable as integers; formats int2 to int8"):
        other.quantize(space.largest)
    with pytest.raises(ValueError, match=r"is quantized, and extract\(\) makes those that compute in float"):
        evaluator.extract(SPACE.largest)
    with pytest.raises(ValueError, match=r"activations of a TFLite model have 8 bits; .* of this network have fewer"):
        to_integer_tflite(quantized(4, 4)[0])
