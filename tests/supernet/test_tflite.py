"""TFLite files hold what the schema says and integers that stand for the network's numbers; no runtime is needed.

What runtimes compute from them is tested in `tests/devices/test_litert.py`.
"""

from __future__ import annotations

import struct
from functools import cached_property

import numpy as np
import pytest
from networks import trained_like_weights

from hanax.search_spaces import INPUT, Graph, Operator, mobilenet_v3
from hanax.supernet._ranges import activation_ranges
from hanax.supernet._tflite import MAX_SCALE_RATIO, _margins, activation_scales, to_tflite, to_tflite_int8
from hanax.supernet._tflite_file import Code, Quantization
from hanax.supernet._weights import UncalibratedError, fold_batch_norm, random_weights

TINY = mobilenet_v3(
    resolutions=(8,), n_classes=5, image_channels=1, kernel_sizes=(3,), expand_ratios=(3,), depths=(1,), stem_width=8,
    stage_widths=(16,), stage_strides=(2,), stage_activations=("hswish",), stage_squeeze_excite=(True,),
    head_width=32, feature_width=32,
)  # fmt: skip
GRAPH = TINY.graph(TINY.smallest)
IMAGES = np.random.default_rng(1).standard_normal((8, *GRAPH.input_shape), dtype=np.float32)
TYPES = {0: np.float32, 2: np.int32, 9: np.int8}


WEIGHTS = trained_like_weights(GRAPH, 0)
FOLDED = fold_batch_norm(GRAPH, WEIGHTS)


class Table:
    """A table of a flatbuffer, read by the rules of the format alone."""

    def __init__(self, file: bytes, position: int) -> None:
        self.file, self.position = file, position
        self.vtable = position - struct.unpack_from("<i", file, position)[0]

    def at(self, slot: int) -> int | None:
        """Where the field of `slot` is; None if it is left out."""
        if 4 + 2 * slot >= struct.unpack_from("<H", self.file, self.vtable)[0]:
            return None
        offset = struct.unpack_from("<H", self.file, self.vtable + 4 + 2 * slot)[0]
        return self.position + offset if offset else None

    def scalar(self, slot: int, kind: str) -> int:
        at = self.at(slot)
        return 0 if at is None else int(struct.unpack_from(f"<{kind}", self.file, at)[0])

    def table(self, slot: int) -> Table:
        return Table(self.file, self.follow(self.at(slot)))

    def tables(self, slot: int) -> list[Table]:
        start = self.follow(self.at(slot))
        count = struct.unpack_from("<I", self.file, start)[0]
        return [Table(self.file, self.follow(start + 4 + 4 * index)) for index in range(count)]

    def vector(self, slot: int, dtype: str) -> np.ndarray:
        start = self.follow(self.at(slot))
        return np.frombuffer(self.file, dtype, struct.unpack_from("<I", self.file, start)[0], start + 4)

    def text(self, slot: int) -> str:
        return self.vector(slot, "u1").tobytes().decode()

    def follow(self, at: int | None) -> int:
        assert at is not None
        return at + int(struct.unpack_from("<I", self.file, at)[0])


class Model:
    """What a file says, by the slots of the schema."""

    def __init__(self, file: bytes) -> None:
        self.root = Table(file, struct.unpack_from("<I", file, 0)[0])
        self.buffers = self.root.tables(4)
        (self.subgraph,) = self.root.tables(2)

    @cached_property
    def tensors(self) -> list[Table]:
        return self.subgraph.tables(0)

    @cached_property
    def operators(self) -> list[tuple[Code, int, list[str], str, Table]]:
        """Code, version, names of inputs, name of the output, and the table."""
        codes = [(Code(code.scalar(3, "i")), code.scalar(2, "i")) for code in self.root.tables(1)]
        names = [tensor.text(3) for tensor in self.tensors]
        return [
            (
                *codes[operator.scalar(0, "I")],
                [names[number] for number in operator.vector(1, "<i4")],
                names[operator.vector(2, "<i4")[0]],
                operator,
            )
            for operator in self.subgraph.tables(3)
        ]

    def tensor(self, name: str) -> Table:
        (found,) = [tensor for tensor in self.tensors if tensor.text(3) == name]
        return found

    def data(self, name: str) -> np.ndarray:
        tensor = self.tensor(name)
        content = self.buffers[tensor.scalar(2, "I")].vector(0, "u1")
        return np.frombuffer(content.tobytes(), TYPES[tensor.scalar(1, "b")]).reshape(tensor.vector(0, "<i4"))

    def scales(self, name: str) -> tuple[np.ndarray, np.ndarray, int]:
        quantization = self.tensor(name).table(4)
        return quantization.vector(2, "<f4"), quantization.vector(3, "<i8"), quantization.scalar(6, "i")

    def real(self, name: str) -> np.ndarray:
        """The numbers that a tensor's integers stand for."""
        scales, zero_points, axis = self.scales(name)
        assert not zero_points.any()
        data = self.data(name)
        return data * np.expand_dims(scales, [other for other in range(data.ndim) if other != axis])


FP32, INT8 = to_tflite(GRAPH, WEIGHTS), to_tflite_int8(GRAPH, WEIGHTS, IMAGES)


@pytest.mark.parametrize("file", [FP32, INT8], ids=["fp32", "int8"])
def test_a_file_is_a_flatbuffer_of_the_third_schema(file: bytes) -> None:
    assert file[4:8] == b"TFL3"
    model = Model(file)
    assert model.root.scalar(0, "I") == 3
    assert model.buffers[0].at(0) is None, "buffer 0 means that a tensor has no data"
    for buffer in model.buffers[1:]:
        start = buffer.follow(buffer.at(0)) + 4
        assert start % 16 == 0, "data are aligned as the schema asks"
    (image,), (logits,) = (model.subgraph.vector(slot, "<i4") for slot in (1, 2))
    assert model.tensors[image].vector(0, "<i4").tolist() == [1, 8, 8, 1]
    assert model.tensors[logits].vector(0, "<i4").tolist() == [1, 5]
    assert all(model.tensors[end].scalar(1, "b") == 0 for end in (image, logits)), "both ends are float32"


@pytest.mark.parametrize("file", [FP32, INT8], ids=["fp32", "int8"])
def test_tensors_are_written_once_and_before_they_are_read(file: bytes) -> None:
    model = Model(file)
    constants = {tensor.text(3) for tensor in model.tensors if tensor.scalar(2, "I")}
    written = constants | {"image"}
    for _, _, inputs, output, _ in model.operators:
        assert written.issuperset(inputs)
        assert output not in written
        written.add(output)
    assert written == {tensor.text(3) for tensor in model.tensors}


def test_operators_are_those_of_the_graph() -> None:
    block = [Code.CONV_2D, Code.HARD_SWISH, Code.PAD, Code.DEPTHWISE_CONV_2D, Code.HARD_SWISH]
    first = [Code.PAD, Code.CONV_2D, Code.HARD_SWISH, Code.DEPTHWISE_CONV_2D, Code.CONV_2D, Code.ADD]
    project_and_head = [
        Code.MUL, Code.CONV_2D, Code.CONV_2D, Code.HARD_SWISH, Code.MEAN, Code.CONV_2D, Code.HARD_SWISH,
        Code.FULLY_CONNECTED,
    ]  # fmt: skip
    gate = [Code.MEAN, Code.CONV_2D, Code.CONV_2D]
    assert [operator[0] for operator in Model(FP32).operators] == [*first, *block, *gate, Code.MUL, *project_and_head]
    in_integers = [Code.QUANTIZE, *first, *block, *gate, *project_and_head, Code.DEQUANTIZE]
    assert [operator[0] for operator in Model(INT8).operators] == in_integers


def test_kernels_are_those_of_the_folded_network_in_tflites_order() -> None:
    model = Model(FP32)
    for op in GRAPH.operators:
        if op.is_weighted:
            kernel, bias = FOLDED[op.name]["kernel"], FOLDED[op.name]["bias"]
            order = () if op.kind == "dense" else (1, 2, 3, 0) if op.is_depthwise else (0, 2, 3, 1)
            np.testing.assert_array_equal(model.data(f"{op.name}.kernel"), kernel.transpose(order) if order else kernel)
            shift = 3.0 if op.activation == "hsigmoid" else 0.0
            np.testing.assert_array_equal(model.data(f"{op.name}.bias"), bias + np.float32(shift))


def test_integers_stand_for_the_kernels_to_half_a_step_of_their_channel() -> None:
    model = Model(INT8)
    for op in GRAPH.operators:
        if op.is_weighted:
            kernel, bias = FOLDED[op.name]["kernel"], FOLDED[op.name]["bias"]
            if op.activation == "hsigmoid":
                kernel, bias = kernel / 6, bias / 6 + 0.5
            axis = 3 if op.is_depthwise else 0
            found = np.moveaxis(model.real(f"{op.name}.kernel"), axis, 0)
            wanted = np.moveaxis(kernel.transpose(1, 2, 3, 0), 3, 0) if op.is_depthwise else kernel
            wanted = wanted if op.is_depthwise or op.kind == "dense" else kernel.transpose(0, 2, 3, 1)
            scales, _, of_axis = model.scales(f"{op.name}.kernel")
            assert of_axis == axis
            assert len(scales) == op.out_shape[0]
            steps = np.abs(found - wanted) / np.expand_dims(scales, list(range(1, wanted.ndim)))
            assert steps.max() <= 0.5 + 1e-4
            assert np.abs(model.data(f"{op.name}.kernel")).max() == 127
            of_bias, _, _ = model.scales(f"{op.name}.bias")
            assert (np.abs(model.real(f"{op.name}.bias") - bias) <= 0.5 * of_bias + 1e-6 * np.abs(bias)).all()


def test_a_bias_counts_in_steps_of_input_times_kernel() -> None:
    model = Model(INT8)
    weighted = [Code.CONV_2D, Code.DEPTHWISE_CONV_2D, Code.FULLY_CONNECTED]
    found = [inputs for code, _, inputs, _, _ in model.operators if code in weighted]
    assert len(found) == sum(op.is_weighted for op in GRAPH.operators)
    for source, kernel, bias in found:
        product = model.scales(source)[0] * model.scales(kernel)[0]
        np.testing.assert_allclose(model.scales(bias)[0], product, rtol=1e-6)


def test_every_version_is_that_in_which_the_operator_came_to_take_int8() -> None:
    versions = {code: version for code, version, *_ in Model(INT8).operators}
    assert versions == {
        Code.QUANTIZE: 1, Code.PAD: 2, Code.CONV_2D: 3, Code.HARD_SWISH: 1, Code.DEPTHWISE_CONV_2D: 3, Code.ADD: 2,
        Code.MEAN: 2, Code.MUL: 2, Code.FULLY_CONNECTED: 4, Code.DEQUANTIZE: 2,
    }  # fmt: skip
    assert {version for _, version, *_ in Model(FP32).operators} == {1}


def test_padded_zeros_stand_for_zero() -> None:
    model = Model(INT8)
    (source, margins), padded = next((inputs, output) for code, _, inputs, output, _ in model.operators if code == 34)
    assert [part.tolist() for part in model.scales(source)[:2]] == [part.tolist() for part in model.scales(padded)[:2]]
    assert model.data(margins).tolist() == [[0, 0], [1, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_network_gives_the_same_bytes(batch: int) -> None:
    assert to_tflite(GRAPH, WEIGHTS, batch=batch) == to_tflite(GRAPH, WEIGHTS, batch=batch)
    first, second = (to_tflite_int8(GRAPH, WEIGHTS, IMAGES, batch=batch) for _ in range(2))
    assert first == second
    assert Model(first).tensor("image").vector(0, "<i4").tolist() == [batch, 8, 8, 1]


@pytest.mark.parametrize(
    ("extent", "kernel_size", "stride", "margins"),
    [
        (8, 3, 1, None), (7, 5, 1, None), (7, 3, 2, None), (9, 7, 2, None), (8, 1, 2, None), (1, 3, 1, None),
        (8, 3, 2, (1, 0)), (8, 5, 2, (2, 1)), (8, 7, 2, (3, 2)), (2, 7, 2, (3, 2)), (1, 3, 2, None),
        (10, 3, 3, None), (9, 3, 3, (1, 0)),
    ],
)  # fmt: skip
def test_zeros_are_written_where_same_would_put_them_elsewhere(
    extent: int, kernel_size: int, stride: int, margins: tuple[int, int] | None
) -> None:
    out = -(-extent // stride)
    op = Operator("conv", "conv", (INPUT,), (1, extent, extent), (1, out, out), kernel_size, stride)
    assert _margins(op) == (None if margins is None else [margins] * 2)


def scales_of(*operators: Operator, **ranges: tuple[float, float]) -> dict[str, Quantization]:
    return activation_scales(
        Graph((1, 2, 2), operators), {name.replace("_", "."): pair for name, pair in ranges.items()}
    )


def test_a_scale_spans_the_range_and_holds_zero_exactly() -> None:
    for low, high in [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0), (0.0, 1e-40)]:
        of_input = scales_of(Operator("pool", "global_pool", (INPUT,), (1, 2, 2), (1, 1, 1)), input=(low, high))[INPUT]
        (scale,), zero = of_input.scales, of_input.zero_point
        assert -128 <= zero <= 127
        assert scale > 0
        assert scale * (-128 - zero) <= min(low, 0) + scale / 2 + 1e-9
        assert scale * (127 - zero) >= max(high, 0) - scale / 2 - 1e-9


def test_no_level_is_spent_on_what_a_hard_activation_makes_constant() -> None:
    swish = Operator("swish", "conv", (INPUT,), (1, 2, 2), (1, 2, 2), activation="hswish")
    gate = Operator("gate", "conv", ("swish",), (1, 2, 2), (1, 2, 2), activation="hsigmoid")
    ranges = {"input": (-1.0, 1.0), "swish_raw": (-40.0, 5.0), "swish": (-0.375, 5.0), "gate": (0.2, 0.3)}
    scales = scales_of(swish, gate, **ranges)
    assert scales["swish.raw"].scales[0] == pytest.approx(8 / 255)
    assert scales["gate"] == Quantization((1 / 255,), zero_point=-128)


def test_scales_stay_where_every_operator_has_integer_arithmetic() -> None:
    swish = Operator("swish", "conv", (INPUT,), (1, 2, 2), (1, 2, 2), activation="hswish")
    tiny = {"input": (-1.0, 1.0), "swish_raw": (-3.0, -2.9999), "swish": (-5e-5, 0.0)}
    scales = scales_of(swish, **tiny)
    assert scales["swish.raw"].scales[0] / scales["swish"].scales[0] <= MAX_SCALE_RATIO * (1 + 1e-9)

    total = Operator("total", "add", (INPUT, INPUT), (1, 2, 2), (1, 2, 2))
    assert scales_of(total, input=(-1.0, 1.0), total=(0.0, 1e-9))["total"].scales[0] >= 2 / 255 / MAX_SCALE_RATIO
    scales = scales_of(total, input=(0.0, 1e-9), total=(0.0, 1.0))
    assert scales[INPUT].scales[0] / scales["total"].scales[0] >= 1 / 1024

    product = Operator("product", "multiply", (INPUT, INPUT), (1, 2, 2), (1, 2, 2))
    scales = scales_of(product, input=(-100.0, 100.0), product=(0.0, 1e-9))
    assert scales[INPUT].scales[0] ** 2 / scales["product"].scales[0] <= MAX_SCALE_RATIO * (1 + 1e-9)


def test_a_dead_channel_keeps_its_bias() -> None:
    weights = {name: dict(entries) for name, entries in WEIGHTS.items()}
    weights["stem.conv"]["kernel"] = weights["stem.conv"]["kernel"].copy()
    weights["stem.conv"]["kernel"][2] = 0
    model = Model(to_tflite_int8(GRAPH, weights, IMAGES))
    scales, _, _ = model.scales("stem.conv.kernel")
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert not model.data("stem.conv.kernel")[2].any()
    wanted = fold_batch_norm(GRAPH, weights)["stem.conv"]["bias"][2]
    assert model.real("stem.conv.bias")[2] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("kind", "activation"), [("add", "hsigmoid"), ("global_pool", "relu")])
def test_a_form_that_tflite_does_not_have_is_refused(kind: str, activation: str) -> None:
    inputs = (INPUT,) * (2 if kind == "add" else 1)
    graph = Graph(
        (2, 1, 1),
        (
            Operator("odd", kind, inputs, (2, 1, 1), (2, 1, 1), activation=activation),  # type: ignore[arg-type]
            Operator("classify", "dense", ("odd",), (2, 1, 1), (3, 1, 1)),
        ),
    )
    with pytest.raises(ValueError, match=f"odd: {activation} after a {kind} has no form in TFLite"):
        to_tflite(graph, random_weights(graph, np.random.default_rng(0)))


def test_weights_without_statistics_are_refused() -> None:
    weights = {name: dict(entries) for name, entries in WEIGHTS.items()}
    del weights["stem.conv"]["variance"]
    with pytest.raises(UncalibratedError):
        to_tflite(GRAPH, weights)
    with pytest.raises(UncalibratedError):
        to_tflite_int8(GRAPH, weights, IMAGES)


def test_scales_come_from_the_images() -> None:
    one, ten = (Model(to_tflite_int8(GRAPH, WEIGHTS, factor * IMAGES)).scales("input")[0] for factor in (1, 10))
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-6)
    ranges = activation_ranges(GRAPH, WEIGHTS, IMAGES)
    assert activation_scales(GRAPH, ranges)["input"].scales[0] == pytest.approx(one[0], rel=1e-6)
