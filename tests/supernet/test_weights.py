"""Weights are checked by name, folded exactly, and saved whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hanax.search_spaces import INPUT, Graph, Operator, SearchSpace, fbnet, mobilenet_v3, nas_bench_201
from hanax.supernet import (
    StaticNet,
    init_params,
    to_mlir,
    to_ncnn,
    to_onnx,
    to_stablehlo,
    to_tflite,
    to_tflite_int8,
)
from hanax.supernet._weights import (
    UncalibratedError,
    Weights,
    check_weights,
    fold_batch_norm,
    load_weights,
    random_weights,
    save_weights,
)

SPACE = mobilenet_v3(
    resolutions=(14,), n_classes=5, image_channels=1, kernel_sizes=(3,), expand_ratios=(3,), depths=(1, 2),
    stem_width=8, stage_widths=(8, 16), stage_strides=(1, 2), stage_activations=("relu", "hswish"),
    stage_squeeze_excite=(False, True), head_width=32, feature_width=32,
)  # fmt: skip
GRAPH = SPACE.graph(SPACE.largest)


@pytest.fixture
def weights() -> Weights:
    return random_weights(GRAPH, np.random.default_rng(0))


def test_random_weights_are_the_weights_of_the_graph(weights: Weights) -> None:
    check_weights(GRAPH, weights)
    learned = [a for entries in weights.values() for name, a in entries.items() if name not in ("mean", "variance")]
    assert sum(array.size for array in learned) == GRAPH.params


def test_random_kernels_have_the_variance_that_keeps_the_scale_of_activations(weights: Weights) -> None:
    kernel = weights["head.expand"]["kernel"]
    assert kernel.var() == pytest.approx(2 / kernel.shape[1], rel=0.2)
    again = random_weights(GRAPH, np.random.default_rng(0))
    np.testing.assert_array_equal(again["head.expand"]["kernel"], kernel)


def test_everything_that_does_not_fit_is_named_at_once(weights: Weights) -> None:
    del weights["stem.conv"]["scale"]
    weights["head.mix"]["bias"] = np.zeros(32, dtype=np.float32)
    weights["elsewhere"] = {"kernel": np.zeros(1, dtype=np.float32)}
    weights["head.classify"]["bias"] = np.zeros(6, dtype=np.float32)
    weights["head.classify"]["kernel"] = weights["head.classify"]["kernel"].astype(np.float64)
    with pytest.raises(ValueError) as error:
        check_weights(GRAPH, weights)
    for part in (
        "stem.conv.scale is missing",
        "head.mix.bias is not part of the network",
        "elsewhere.kernel is not part of the network",
        "head.classify.bias is float32 (6,), expected float32 (5,)",
        "head.classify.kernel is float64 (5, 32), expected float32 (5, 32)",
    ):
        assert part in str(error.value)


def test_a_long_list_of_problems_is_cut_and_counted(weights: Weights) -> None:
    entries = sum(len(entries) for entries in weights.values())
    statistics = 2 * sum(op.has_norm for op in GRAPH.operators)
    with pytest.raises(ValueError, match=f"and {entries - statistics - 10} more"):
        check_weights(GRAPH, {})


@pytest.mark.parametrize("statistic", ["mean", "variance"])
def test_weights_without_statistics_are_refused_as_uncalibrated(weights: Weights, statistic: str) -> None:
    del weights["stem.conv"][statistic]
    with pytest.raises(UncalibratedError, match=r"1 batch norms have no mean and variance, the first after stem\.conv"):
        check_weights(GRAPH, weights)
    with pytest.raises(UncalibratedError):
        fold_batch_norm(GRAPH, weights)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_folded_convolution_computes_what_convolution_and_batch_norm_computed(has_bias: bool) -> None:
    rng = np.random.default_rng(1)
    op = Operator("mix", "conv", (INPUT,), (6, 1, 1), (4, 1, 1), has_bias=has_bias, has_norm=True)
    graph = Graph((6, 1, 1), (op,))
    weights = random_weights(graph, rng)
    entries = weights["mix"]
    for entry in sorted(entries.keys() - {"kernel"}):
        entries[entry] = rng.uniform(0.5, 2, 4).astype(np.float32)
    x = rng.standard_normal((10, 6))
    y = x @ entries["kernel"][:, :, 0, 0].T + entries.get("bias", 0)
    expected = (y - entries["mean"]) / np.sqrt(entries["variance"] + 1e-5) * entries["scale"] + entries["offset"]
    folded = fold_batch_norm(graph, weights)["mix"]
    np.testing.assert_allclose(x @ folded["kernel"][:, :, 0, 0].T + folded["bias"], expected, rtol=1e-5, atol=1e-6)


def test_folding_leaves_a_kernel_and_a_bias_for_every_weighted_operator(weights: Weights) -> None:
    folded = fold_batch_norm(GRAPH, weights)
    shapes = {op.name: (op.kernel_shape, op.out_shape[:1]) for op in GRAPH.operators if op.is_weighted}
    assert {name: (entries["kernel"].shape, entries["bias"].shape) for name, entries in folded.items()} == shapes
    assert all(len(entries) == 2 for entries in folded.values())


def test_saved_weights_come_back_unchanged(weights: Weights, tmp_path: Path) -> None:
    save_weights(tmp_path / "net.npz", weights)
    loaded = load_weights(tmp_path / "net.npz")
    assert {name: list(entries) for name, entries in loaded.items()} == {n: list(e) for n, e in weights.items()}
    for name, entries in weights.items():
        for entry, array in entries.items():
            np.testing.assert_array_equal(loaded[name][entry], array, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


def test_an_interrupted_save_leaves_the_old_file(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.npz"
    save_weights(path, weights)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, random_weights(GRAPH, np.random.default_rng(1)))
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other arrays", "one array", "flipped byte"])
def test_a_damaged_or_foreign_file_is_refused_by_name(weights: Weights, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "net.npz"
    save_weights(path, weights)
    whole = path.read_bytes()
    if damage == "other arrays":
        np.savez(path, x_train=np.zeros(3))
    elif damage == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        contents = {"truncated": whole[:middle], "empty": b"", "text": b"weights", "flipped byte": flipped}
        path.write_bytes(contents[damage])
    with pytest.raises(ValueError, match=r"net\.npz is not a complete file of weights"):
        load_weights(path)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"net\.npz"):
        load_weights(tmp_path / "net.npz")


SHAPE = (4, 4, 4)
WITHOUT_FORM = {
    "avg_pool": Operator("odd", "avg_pool", (INPUT,), SHAPE, SHAPE, kernel_size=3),
    "identity": Operator("odd", "identity", (INPUT,), SHAPE, SHAPE, has_norm=True),
    "shuffle": Operator("odd", "shuffle", (INPUT,), SHAPE, SHAPE, groups=2),
    "zeros": Operator("odd", "zeros", (), SHAPE, SHAPE),
}
MAKERS: dict[str, Callable[[Graph], object]] = {
    "random_weights": lambda graph: random_weights(graph, np.random.default_rng(0)),
    "check_weights": lambda graph: check_weights(graph, {}),
    "fold_batch_norm": lambda graph: fold_batch_norm(graph, {}),
    "StaticNet": lambda graph: StaticNet(graph, {}),
    "to_onnx": lambda graph: to_onnx(graph, {}),
    "to_ncnn": lambda graph: to_ncnn(graph, {}),
    "to_tflite": lambda graph: to_tflite(graph, {}),
    "to_tflite_int8": lambda graph: to_tflite_int8(graph, {}, np.zeros((1, *SHAPE), np.float32)),
    "to_stablehlo": lambda graph: to_stablehlo(graph, {}),
    "to_mlir": lambda graph: to_mlir(graph, {}),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("kind", WITHOUT_FORM)
def test_kinds_of_operators_without_a_form_are_refused_by_name_everywhere(
    kind: str, make: Callable[[Graph], object]
) -> None:
    pool = Operator("pool", "global_pool", ("odd",), SHAPE, (4, 1, 1))
    classify = Operator("classify", "dense", ("pool",), (4, 1, 1), (3, 1, 1), has_bias=True)
    message = f"odd is an operator of kind {kind}, which .* cannot have yet; they are made of conv, dense, global_pool"
    with pytest.raises(ValueError, match=message):
        make(Graph(SHAPE, (WITHOUT_FORM[kind], pool, classify)))


@pytest.mark.parametrize(("space", "block"), [(nas_bench_201(), "NasBench201Cell"), (fbnet(), "FBNetLayer")])
def test_a_space_without_a_supernet_is_refused_by_the_name_of_its_block(space: SearchSpace, block: str) -> None:
    with pytest.raises(TypeError, match=f"no weights are known for blocks of type {block}; known: ConvBlock, MBConv"):
        init_params(space, 0)


def test_a_network_of_known_kinds_has_weights_whatever_its_space() -> None:
    space = fbnet(stages=((1, 8, 1), (2, 12, 2)), stem_width=8, head_width=24)
    graph = space.graph(space.largest)
    assert sum(array.size for entries in random_weights(graph, np.random.default_rng(0)).values()
               for name, array in entries.items() if name not in ("mean", "variance")) == graph.params  # fmt: skip
