"""Architectures as TensorFlow Lite models, in float32 and in int8, written operator by operator from the graph.

The layout is NHWC, batch norms are folded, ReLU is fused into what it follows. Where the format offers several forms,
the one is taken that XNNPACK, the default delegate, executes itself: each operator that it leaves to TFLite's own
kernels cuts the network.

* Padding: ``SAME`` pads by ``kernel_size // 2`` on every side unless an even extent is halved. Then a ``PAD`` comes
  before a ``VALID`` convolution.
* Hard sigmoid in float32: 3 in the bias, ``RELU6`` fused, then ``MUL`` by 1/6. XNNPACK leaves ``RELU_0_TO_1`` alone.
* Hard sigmoid in int8: kernel and bias divided by 6, 1/2 in the bias; the output's integers end at 0 and 1, where they
  saturate. It takes no operator.
* Hard swish in int8 is ``HARD_SWISH``, which XNNPACK leaves alone too: it is what every int8 MobileNetV3 has, and three
  operators would have to stand for it.

Shapes: a tensor of (channels, height, width) in the graph is (batch, height, width, channels) here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from hanax.search_spaces import INPUT, INT8, Graph, Operator, Shape
from hanax.supernet._quantized_net import IntegerKernel, QuantizedNet, nearest_integers
from hanax.supernet._ranges import Ranges, activation_ranges
from hanax.supernet._tflite_file import Activation, Call, Code, Options, Padding, Quantization, Tensor, write_tflite
from hanax.supernet._weights import Weights, fold_batch_norm, n_classes

LEAST, MOST = -128, 127
WEIGHT_LEVELS = 127
"""Kernels use -127 to 127, symmetric, as TFLite wants them."""

MAX_SCALE_RATIO = 64.0
"""Most by which the scale of an input may exceed that of the output. ``HARD_SWISH`` takes ratios below 128, ``ADD`` and
``MUL`` (the product of its inputs' scales) below 256 in XNNPACK."""

MIN_SCALE_RATIO = 1 / 512
"""Least share of an output's scale that an input of ``ADD`` may have; XNNPACK takes 1/1024 and more."""

LEAST_WIDTH = 1e-30
"""A narrower range holds nothing but 0, for which any scale does; its own would not be a normal float32."""

BIAS_BITS = 30
"""Least share of the output's scale, as a power of two, that a product's may have."""

VERSIONS = {
    "float32": {},
    "int8": {
        Code.ADD: 2,
        Code.CONV_2D: 3,
        Code.DEPTHWISE_CONV_2D: 3,
        Code.DEQUANTIZE: 2,
        Code.FULLY_CONNECTED: 4,
        Code.MUL: 2,
        Code.PAD: 2,
        Code.MEAN: 2,
    },
}
"""The versions in which operators came to take these types, where that was not the first."""

GROUPED_CONV_VERSION = 6


def to_tflite(graph: Graph, weights: Weights, *, batch: int = 1) -> bytes:
    """A TFLite model: float32 normalised images (batch, height, width, channels) in, logits (batch, classes) out.

    The same arguments give the same bytes.

    Raises:
        ValueError: The weights do not fit the graph, it does not end with a dense layer, or an operator has no form in
            TFLite.
        UncalibratedError: A batch norm has no statistics.
    """
    n_classes(graph)
    return _Writer(graph, fold_batch_norm(graph, weights), batch, None).write()


def to_tflite_int8(graph: Graph, weights: Weights, images: Float32[np.ndarray, "n c h w"], *, batch: int = 1) -> bytes:
    """As `to_tflite`, with all arithmetic in integers between a ``QUANTIZE`` and a ``DEQUANTIZE``.

    Kernels are int8 and symmetric with a scale per output channel, activations int8 with one scale and zero point per
    tensor, biases int32 (Jacob et al., 2018, arXiv:1712.05877; Krishnamoorthi, 2018, arXiv:1806.08342).

    Args:
        images: Normalised; the scale of an activation comes from its least and largest value over them.

    Raises:
        ValueError: As `to_tflite`; or there are no images.
        UncalibratedError: A batch norm has no statistics.
    """
    n_classes(graph)
    scales = activation_scales(graph, activation_ranges(graph, weights, images))
    return _Writer(graph, fold_batch_norm(graph, weights), batch, scales).write()


def to_integer_tflite(net: QuantizedNet, *, batch: int = 1) -> bytes:
    """A TFLite model of a quantized network, as of `to_tflite_int8`, with its integers and levels.

    Where an operator has no form in integers for the levels of its tensors, these are spread further apart, see
    `activation_scales`; such a model computes something else than the network.

    Raises:
        ValueError: An activation has fewer than 8 bits.
    """
    few = [name for name, levels in net.tensors.items() if levels.bits < INT8]
    if few:
        raise ValueError(
            f"activations of a TFLite model have 8 bits; {len(few)} of this network have fewer, the first {few[0]} "
            f"with {net.tensors[few[0]].bits}: export to ONNX, or quantize with int8 activations"
        )
    scales = activation_scales(net.graph, {name: levels.spread() for name, levels in net.tensors.items()})
    return _Writer(net.graph, {}, batch, scales, net.kernels).write()


def activation_scales(graph: Graph, ranges: Ranges) -> dict[str, Quantization]:
    """Scale and zero point of each tensor in `ranges`, such that every operator has a form in integers.

    What a hard activation makes constant needs no levels: values below -3 before a hard swish, hard sigmoids outside
    of 0 and 1.
    """
    ranges = dict(ranges)
    for op in graph.operators:
        own = f"{op.name}.raw" if op.activation == "hswish" else op.name
        if op.activation == "hsigmoid":
            ranges[own] = (0.0, 1.0)
        if op.activation == "hswish":
            ranges[own] = (max(ranges[own][0], -3.0), ranges[own][1])
        if op.kind == "multiply":
            product = _width(ranges, op.inputs[0]) * _width(ranges, op.inputs[1]) / (MOST - LEAST)
            _widen(ranges, own, product / MAX_SCALE_RATIO)
        if op.kind == "add":
            _widen(ranges, own, max(_width(ranges, name) for name in op.inputs) / MAX_SCALE_RATIO)
            for name in op.inputs:
                _widen(ranges, name, _width(ranges, own) * MIN_SCALE_RATIO)
        if op.activation == "hswish":
            _widen(ranges, op.name, _width(ranges, own) / MAX_SCALE_RATIO)
    return {name: _asymmetric(*bounds) for name, bounds in ranges.items()}


def _width(ranges: Ranges, name: str) -> float:
    low, high = ranges[name]
    return max(high, 0.0) - min(low, 0.0)


def _widen(ranges: Ranges, name: str, least: float) -> None:
    """Make the range of `name` at least that wide."""
    low = ranges[name][0]
    if _width(ranges, name) < least:
        ranges[name] = (low, min(low, 0.0) + least)


def _asymmetric(low: float, high: float) -> Quantization:
    """The int8 numbers that hold `low`, `high` and, exactly, 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (MOST - LEAST) if high - low > LEAST_WIDTH else 1.0
    return Quantization((scale,), zero_point=round(LEAST - low / scale))


class _Writer:
    """Collects the tensors and operators of one model.

    Args:
        folded: Kernels and biases by operator; not needed where there are `kernels`.
        scales: Of each activation, as `activation_scales` gives them; None for float32.
        kernels: In integers; by default they are made of `folded`.
    """

    def __init__(
        self,
        graph: Graph,
        folded: Weights,
        batch: int,
        scales: dict[str, Quantization] | None,
        kernels: Mapping[str, IntegerKernel] | None = None,
    ) -> None:
        self.graph, self.folded, self.batch, self.scales, self.kernels = graph, folded, batch, scales, kernels
        self.tensors: list[Tensor] = []
        self.calls: list[Call] = []
        self.numbers: dict[str, int] = {}

    def write(self) -> bytes:
        """The model file."""
        image = self._add(Tensor("image", self._shape(self.graph.input_shape), "float32"))
        self.numbers[INPUT] = image
        if self.scales is not None:
            self._call(Code.QUANTIZE, (image,), self._activation(INPUT, self.graph.input_shape))
        for op in self.graph.operators:
            self._lower(op)
        logits = self.numbers[self.graph.operators[-1].name]
        if self.scales is not None:
            logits = self._call(Code.DEQUANTIZE, (logits,), Tensor("logits", self.tensors[logits].shape, "float32"))
        return write_tflite(self.tensors, self.calls, image, logits)

    def _lower(self, op: Operator) -> None:
        """Adds the operators that `op` is here: its own, and its activation where that cannot be fused."""
        is_gate = op.activation == "hsigmoid"
        if (is_gate and not op.is_weighted) or (op.activation == "relu" and op.kind == "global_pool"):
            raise ValueError(f"{op.name}: {op.activation} after a {op.kind} has no form in TFLite")
        is_whole = op.activation in ("none", "relu") or (is_gate and self.scales is not None)
        output = self._activation(op.name if is_whole else f"{op.name}.raw", op.out_shape)
        fused = Activation.RELU if op.activation == "relu" else Activation.NONE
        if is_gate and not is_whole:
            fused = Activation.RELU6
        inputs = tuple(self.numbers[name] for name in op.inputs)
        if op.is_weighted:
            raw = self._weighted(op, inputs[0], output, fused)
        elif op.kind == "global_pool":
            axes = self._constant("height and width", np.array([1, 2], np.int32))
            raw = self._call(Code.MEAN, (*inputs, axes), output, {0: True})
        else:
            raw = self._call(Code.ADD if op.kind == "add" else Code.MUL, inputs, output, {0: fused})
        if op.activation == "hswish":
            self._call(Code.HARD_SWISH, (raw,), self._activation(op.name, op.out_shape))
        elif not is_whole:
            sixth = self._constant("a sixth", np.array([1 / 6], np.float32))
            self._call(Code.MUL, (raw, sixth), self._activation(op.name, op.out_shape), {0: Activation.NONE})

    def _weighted(self, op: Operator, source: int, output: Tensor, fused: Activation) -> int:
        if self.scales is not None:
            integer = self._integers(op, output)
            kernel, bias, scales = integer.integers, integer.bias, integer.scales
        else:
            kernel, bias, scales = self.folded[op.name]["kernel"], self.folded[op.name]["bias"], None
            bias = bias + 3 if op.activation == "hsigmoid" else bias
        if op.kind == "dense":
            constants = self._constants(op, kernel, bias, scales, axis=0)
            logits = dataclasses.replace(output, shape=(self.batch, op.out_shape[0]))
            return self._call(Code.FULLY_CONNECTED, (source, *constants), logits, {0: fused})
        source, padding = self._pad(op, source)
        common = {0: padding, 1: op.stride, 2: op.stride}
        if op.is_depthwise:
            constants = self._constants(op, kernel.transpose(1, 2, 3, 0), bias, scales, axis=3)
            options = common | {3: op.out_shape[0] // op.in_shape[0], 4: fused}
            return self._call(Code.DEPTHWISE_CONV_2D, (source, *constants), output, options)
        constants = self._constants(op, kernel.transpose(0, 2, 3, 1), bias, scales, axis=0)
        version = GROUPED_CONV_VERSION if op.groups > 1 else None
        return self._call(Code.CONV_2D, (source, *constants), output, common | {3: fused}, version)

    def _integers(self, op: Operator, output: Tensor) -> IntegerKernel:
        """Kernel and bias of an operator in integers, with a hard sigmoid among them if it has one."""
        assert self.scales is not None and output.quantization is not None, "with scales, every activation has one"
        (of_input,), (of_output,) = self.scales[op.inputs[0]].scales, output.quantization.scales
        if self.kernels is not None:
            kernel = self.kernels[op.name].widened()
        else:
            kernel = nearest_integers(self.folded[op.name]["kernel"], self.folded[op.name]["bias"], WEIGHT_LEVELS)
        # A smaller scale could not be seen in the output: in kernels of zeros or nearly so, this decides.
        visible = of_output / of_input * 2.0**-BIAS_BITS
        return (kernel.gated() if op.activation == "hsigmoid" else kernel).for_input(of_input, visible)

    def _constants(
        self, op: Operator, kernel: np.ndarray, bias: np.ndarray, scales: np.ndarray | None, axis: int
    ) -> tuple[int, int]:
        """Kernel and bias of an operator as tensors; `axis` of the kernel is that of its output channels."""
        of_kernel = of_bias = None
        if self.scales is not None and scales is not None:
            along_input = self.scales[op.inputs[0]].scales[0] * scales.astype(np.float64)
            of_kernel, of_bias = (
                Quantization(tuple(scales.tolist()), axis=axis),
                Quantization(tuple(along_input.tolist())),
            )
            bias = np.rint(bias / along_input).astype(np.int32)
        return (
            self._constant(f"{op.name}.kernel", kernel, of_kernel),
            self._constant(f"{op.name}.bias", bias, of_bias),
        )

    def _pad(self, op: Operator, source: int) -> tuple[int, Padding]:
        """What a convolution reads, padded before where it must be, and how it pads by itself."""
        margins = _margins(op)
        if margins is None:
            return source, Padding.SAME
        height, width = (given + sum(pair) for given, pair in zip(op.in_shape[1:], margins, strict=True))
        padded = dataclasses.replace(
            self.tensors[source], name=f"{op.name}.padded", shape=self._shape((op.in_shape[0], height, width))
        )
        constant = self._constant(f"{op.name}.margins", np.array([(0, 0), *margins, (0, 0)], np.int32))
        return self._call(Code.PAD, (source, constant), padded), Padding.VALID

    @property
    def _type(self) -> str:
        return "float32" if self.scales is None else "int8"

    def _shape(self, shape: Shape) -> tuple[int, int, int, int]:
        channels, height, width = shape
        return self.batch, height, width, channels

    def _activation(self, name: str, shape: Shape) -> Tensor:
        quantization = None if self.scales is None else self.scales[name]
        return Tensor(name, self._shape(shape), self._type, None, quantization)

    def _constant(self, name: str, data: np.ndarray, quantization: Quantization | None = None) -> int:
        """The number of a constant tensor; one that several operators read is kept once."""
        if name not in self.numbers:
            self._add(Tensor(name, data.shape, data.dtype.name, data, quantization))
        return self.numbers[name]

    def _add(self, tensor: Tensor) -> int:
        self.numbers[tensor.name] = len(self.tensors)
        self.tensors.append(tensor)
        return self.numbers[tensor.name]

    def _call(
        self,
        code: Code,
        inputs: tuple[int, ...],
        output: Tensor,
        options: Options = MappingProxyType({}),
        version: int | None = None,
    ) -> int:
        """Adds an operator and its output; returns the output's number."""
        number = self._add(output)
        self.calls.append(Call(code, version or VERSIONS[self._type].get(code, 1), inputs, number, options))
        return number


def _margins(op: Operator) -> list[tuple[int, int]] | None:
    """What to pad above and below, and left and right; None if TFLite's ``SAME`` is just that.

    Zeros that no output reads, below and right of an even extent that is halved, are left out.
    """
    before = op.kernel_size // 2
    needed = [
        max((results - 1) * op.stride + op.kernel_size - given, 0)
        for given, results in zip(op.in_shape[1:], op.out_shape[1:], strict=True)
    ]
    if all(total // 2 == before for total in needed):  # SAME puts the smaller half before
        return None
    return [(before, max(total - before, 0)) for total in needed]
