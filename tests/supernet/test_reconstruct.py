"""Post-training quantization of one network: errors that never rise, moments that agree, accuracy that comes back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hanax.search_spaces import INPUT, Graph, Operator, mobilenet_v3, number_format, uniform_plan
from hanax.supernet import (
    FoldedNet,
    RoundedNet,
    StaticNet,
    Subnet,
    correct_biases,
    fold_batch_norm,
    random_weights,
    reconstruct,
    reestimate_norms,
    round_to_nearest,
    run_onnx,
    to_qdq_onnx,
)

N_IMAGES = 48
SPACE = mobilenet_v3(resolutions=(9,), image_channels=2, n_classes=5)


def graph() -> Graph:
    """Every kind of layer with a kernel, a gate, and a residual, in few shapes."""
    narrow, wide, gate = (8, 5, 5), (16, 5, 5), (16, 1, 1)
    return Graph(
        (2, 9, 9),
        (
            Operator("stem", "conv", (INPUT,), (2, 9, 9), narrow, 3, 2, has_norm=True, activation="relu"),
            Operator("expand", "conv", ("stem",), narrow, wide, has_norm=True, activation="hswish"),
            Operator("depthwise", "conv", ("expand",), wide, wide, 3, 1, 16, has_norm=True, activation="relu"),
            Operator("pool", "global_pool", ("depthwise",), wide, gate),
            Operator("gate", "conv", ("pool",), gate, gate, has_bias=True, activation="hsigmoid"),
            Operator("scaled", "multiply", ("depthwise", "gate"), wide, wide),
            Operator("project", "conv", ("scaled",), wide, narrow, has_norm=True),
            Operator("add", "add", ("project", "stem"), narrow, narrow),
            Operator("mean", "global_pool", ("add",), narrow, (8, 1, 1)),
            Operator("classify", "dense", ("mean",), (8, 1, 1), (5, 1, 1), has_bias=True),
        ),
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((N_IMAGES, 2, 9, 9), dtype=np.float32)


def random_net(seed: int) -> FoldedNet:
    rng = np.random.default_rng(seed)
    weights = random_weights(graph(), rng)
    for entries in weights.values():
        for name in sorted(entries.keys() - {"kernel"}):
            entries[name] = rng.uniform(0.5, 1.5, entries[name].shape).astype(np.float32)
    return FoldedNet(graph(), fold_batch_norm(graph(), weights))


@pytest.fixture(scope="module")
def net() -> FoldedNet:
    return random_net(0)


@pytest.fixture(scope="module")
def nearest(net: FoldedNet, images: np.ndarray) -> RoundedNet:
    return round_to_nearest(net, uniform_plan(net.graph, "int4", "int4"), images)


@pytest.fixture(scope="module")
def reconstructed(net: FoldedNet, images: np.ndarray) -> RoundedNet:
    return reconstruct(net, uniform_plan(net.graph, "int4", "int4"), images, n_epochs=20)


@pytest.fixture(scope="module")
def exact(net: FoldedNet, images: np.ndarray) -> np.ndarray:
    return float_logits(net, images)


def float_logits(net: FoldedNet, images: np.ndarray) -> np.ndarray:
    """Logits of the float network."""
    unnormed = Graph(net.graph.input_shape, tuple(dataclasses.replace(op, has_norm=False, has_bias=op.is_weighted)
                                                  for op in net.graph.operators))  # fmt: skip
    return np.asarray(StaticNet(unnormed, net.weights)(images))


def error(rounded: RoundedNet, exact: np.ndarray, images: np.ndarray) -> float:
    """Squared error of the logits as a share of their variance."""
    return float(np.square(rounded.logits(images) - exact).mean() / exact.var())


@pytest.fixture(scope="module")
def several(images: np.ndarray) -> list[tuple[RoundedNet, RoundedNet, np.ndarray]]:
    """Of three networks: rounded to nearest, reconstructed, and the logits in float32."""
    plan = uniform_plan(graph(), "int4", "int4")
    nets = [random_net(seed) for seed in range(3)]
    return [
        (round_to_nearest(net, plan, images), reconstruct(net, plan, images, n_epochs=20), float_logits(net, images))
        for net in nets
    ]


def test_reconstruction_never_raises_an_error_and_lowers_most(
    several: list[tuple[RoundedNet, RoundedNet, np.ndarray]],
) -> None:
    for _, reconstructed, _ in several:
        assert set(reconstructed.errors) == {"stem", "expand", "depthwise", "gate", "project", "classify"}
        for before, after in reconstructed.errors.values():
            assert after <= before * (1 + 1e-5)
        assert "depthwise" in str(reconstructed)
    for name in ("expand", "depthwise", "project"):
        ratios = [after / before for _, reconstructed, _ in several for before, after in [reconstructed.errors[name]]]
        assert np.mean(ratios) < 0.95, name


def test_reconstruction_brings_the_logits_nearer(
    several: list[tuple[RoundedNet, RoundedNet, np.ndarray]], images: np.ndarray
) -> None:
    ratios = []
    for nearest, reconstructed, exact in several:
        assert error(nearest, exact, images) > 0.001
        ratios.append(error(reconstructed, exact, images) / error(nearest, exact, images))
    assert max(ratios) < 0.8, ratios


@pytest.mark.parametrize("kind", ["nearest", "reconstructed", "norms"])
def test_kernels_hold_no_more_than_the_numbers_of_their_formats(
    kind: str, net: FoldedNet, nearest: RoundedNet, reconstructed: RoundedNet, images: np.ndarray
) -> None:
    rounded = {"nearest": nearest, "reconstructed": reconstructed}.get(kind) or reestimate_norms(net, nearest, images)
    for name, entries in rounded.weights.items():
        scale = entries["scale"].reshape(-1, *[1] * (entries["kernel"].ndim - 1))
        integers = entries["kernel"] / scale
        assert integers == pytest.approx(np.rint(integers), abs=1e-3)
        assert np.abs(integers).max() < (64.5 if name in ("gate", "classify") else 7.5)


def test_corrected_biases_give_every_channel_its_mean(
    net: FoldedNet, nearest: RoundedNet, exact: np.ndarray, images: np.ndarray
) -> None:
    corrected = correct_biases(net, nearest, images)
    bias, before = (np.abs((each.logits(images) - exact).mean(axis=0)).max() for each in (corrected, nearest))
    assert bias < 0.2 * before
    for name in ("depthwise", "project"):
        before, after = corrected.errors[name]
        assert after < before
        assert (corrected.weights[name]["kernel"] == nearest.weights[name]["kernel"]).all()


def test_reestimated_norms_leave_the_integers_and_what_has_no_norm(
    net: FoldedNet, nearest: RoundedNet, images: np.ndarray
) -> None:
    adapted = reestimate_norms(net, nearest, images)
    for name in ("gate", "classify"):
        assert (adapted.weights[name]["bias"] == nearest.weights[name]["bias"]).all()
    for name in ("stem", "depthwise"):
        old, new = nearest.weights[name], adapted.weights[name]
        gain = new["scale"] / old["scale"]
        assert new["kernel"] == pytest.approx(old["kernel"] * gain.reshape(-1, 1, 1, 1), rel=1e-5)
        assert not (gain == 1).all()


def test_a_network_that_is_not_rounded_is_not_changed(net: FoldedNet, exact: np.ndarray, images: np.ndarray) -> None:
    plan = uniform_plan(net.graph, "float32", "float32")
    kernels = dict.fromkeys(plan.kernels, 1000)
    tensors = dict.fromkeys(plan.tensors, 1000)
    plan = dataclasses.replace(plan, kernels=kernels, tensors=tensors | {"expand.raw": 1000})
    rounded = correct_biases(net, round_to_nearest(net, plan, images), images)
    assert rounded.logits(images) == pytest.approx(exact, rel=1e-3, abs=1e-3)
    assert max(after for _, after in rounded.errors.values()) < 1e-9


def subnet() -> Subnet:
    """One of the same graph."""
    rng = np.random.default_rng(2)
    return Subnet(SPACE.largest, graph(), random_weights(graph(), rng), SPACE.fingerprint, (0.5, 0.5), (0.2, 0.2), 8)


def test_a_reconstructed_network_computes_the_same_in_integers(reconstructed: RoundedNet, images: np.ndarray) -> None:
    net = reconstructed.in_integers(subnet())
    assert net.n_calibration == N_IMAGES and net.arch == SPACE.largest
    assert {kernel.bits for kernel in net.kernels.values()} == {4, 8}
    step = net.tensors["classify"].scale
    assert np.abs(net.logits(images) - reconstructed.logits(images)).max() < 0.5 * step
    in_onnx = run_onnx(to_qdq_onnx(net, batch=None), images)
    assert (np.abs(in_onnx - net.deployed().logits(images)) < 0.5 * step).mean() > 0.95


def test_other_networks_and_formats_do_not_become_integers(net: FoldedNet, nearest: RoundedNet) -> None:
    other = dataclasses.replace(nearest, graph=Graph(net.graph.input_shape, net.graph.operators[:-1]))
    with pytest.raises(ValueError, match="another network than the one that was rounded"):
        other.in_integers(subnet())
    formats = dataclasses.replace(nearest.plan, kernels=dict.fromkeys(nearest.plan.kernels, number_format("e4m3")))
    with pytest.raises(ValueError, match="not deployable as integers"):
        dataclasses.replace(nearest, plan=formats).in_integers(subnet())


def test_accuracy_is_the_share_of_right_classes(nearest: RoundedNet, images: np.ndarray) -> None:
    labels = nearest.logits(images).argmax(axis=1)
    labels[:12] = (labels[:12] + 1) % 5
    assert nearest.accuracy(images, labels, chunk=20) == pytest.approx(0.75)


def test_what_cannot_be_reconstructed_is_refused(net: FoldedNet, nearest: RoundedNet, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="there are none"):
        reconstruct(net, nearest.plan, images[:0])
    with pytest.raises(ValueError, match="n_epochs must be at least 1"):
        reconstruct(net, nearest.plan, images, n_epochs=0)
    with pytest.raises(ValueError, match="none for stem"):
        round_to_nearest(net, dataclasses.replace(nearest.plan, kernels={}), images)
    with pytest.raises(ValueError, match="there are none"):
        correct_biases(net, nearest, images[:0])
