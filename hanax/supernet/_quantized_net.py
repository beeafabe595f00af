"""One architecture in integers: what quantization hands over, and what integer models are written from.

A `QuantizedNet` has a kernel of integers, with a scale per output channel, for every operator with weights, batch norms
folded into scale and bias, and a scale and a zero point for every tensor. Where its tensors are quantized says the top
of ``_quantized_blocks.py``; operator by operator:

* the network's input and the output of every operator, after its activation;
* what is before a hard swish, under the name ``OPERATOR.raw``, in 8 bits from -3 on;
* a hard sigmoid in 8 bits from 0 to 1, whatever its range.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8, Int32, UInt8

from hanax._files import write_atomically
from hanax.search_spaces import (
    INPUT,
    INT8,
    Activation,
    Arch,
    Graph,
    Operator,
    PrecisionPlan,
    SearchSpace,
    format_name,
    uniform_plan,
)
from hanax.supernet._chain import prepare
from hanax.supernet._fake_quant import (
    LARGEST_KERNEL,
    Calibration,
    activation_range,
    activation_scale,
    kernel_scale,
    quantize,
)
from hanax.supernet._folded_net import apply_operator, network_input, raw_name, tensor_names
from hanax.supernet._layers import BATCH_NORM_EPSILON, activate
from hanax.supernet._subnet import Subnet, graph_of
from hanax.supernet._weights import Weights, check_weights, n_classes

LARGEST_BIAS = 2**30
"""Half of what int32 holds, in units of a kernel's and its input's scale: the rest is for what is added to it."""

ROWS = 64
"""Output channels of a kernel that are rounded at a time."""

CHUNK = 256
"""Images at a time, to bound the memory of `QuantizedNet.logits`."""

HARD_SWISH_START = -3.0
"""Below, a hard swish is 0."""


@dataclass(frozen=True, slots=True)
class Levels:
    """How a tensor becomes integers: ``clip(round(x / scale) + zero_point, 0, 2^bits - 1)``.

    Attributes:
        bits: Of the integers, which are not negative.
        scale: Positive, a float32.
        zero_point: The integer that stands for 0.
    """

    bits: int
    scale: float
    zero_point: int

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    def spread(self) -> tuple[float, float]:
        """The real values of the least and of the largest integer."""
        return -self.zero_point * self.scale, (self.highest - self.zero_point) * self.scale


@dataclass(frozen=True)
class IntegerKernel:
    """Kernel and bias of one operator, its batch norm folded.

    Attributes:
        bits: Of the integers, which are symmetric around 0.
        integers: In the shape of the operator's kernel; what they stand for is ``integers * scales``, by channel.
        scales: Per output channel; positive, once `for_input` has been asked.
        bias: Per output channel, real.
    """

    bits: int
    integers: Int8[np.ndarray, "c_out ..."]
    scales: Float32[np.ndarray, " c_out"]
    bias: Float32[np.ndarray, " c_out"]

    @property
    def values(self) -> Float32[np.ndarray, "c_out ..."]:
        """What the integers stand for."""
        values: Float32[np.ndarray, "c_out ..."] = self.integers * _along(self.scales, self.integers)
        return values

    def for_input(self, input_scale: float, least_scale: float = 0.0) -> IntegerKernel:
        """The kernel for an input of that scale: such that its bias fits int32 at the scale of the products.

        Where a channel's kernel is nearly 0, so that it does not, the channel's scale is raised; also to `least_scale`.
        """
        least = np.maximum(np.abs(self.bias, dtype=np.float64) / (input_scale * LARGEST_BIAS), least_scale)
        raised = np.maximum(self.scales, least.astype(np.float32))
        raised[raised < np.finfo(np.float32).tiny] = 1.0
        integers = np.rint(self.integers * _along(self.scales / raised, self.integers)).astype(np.int8)
        return dataclasses.replace(self, integers=integers, scales=raised)

    def widened(self) -> IntegerKernel:
        """The same values in larger integers, as far as int8 kernels go: so the bias's own unit is finer."""
        times = LARGEST_KERNEL // ((1 << (self.bits - 1)) - 1)
        factor = 1 << max(0, times.bit_length() - 1)
        return dataclasses.replace(self, integers=self.integers * np.int8(factor), scales=self.scales / factor)

    def gated(self) -> IntegerKernel:
        """The kernel after which levels from 0 to 1 are all that is left of a hard sigmoid, ``clip(x / 6 + 1/2)``."""
        scales, bias = (self.scales / 6).astype(np.float32), (self.bias / 6 + 0.5).astype(np.float32)
        return dataclasses.replace(self, scales=scales, bias=bias)

    def bias_scales(self, input_scale: float) -> Float32[np.ndarray, " c_out"]:
        """Scale of the products with an input of that scale, and so of the bias, per output channel."""
        return (self.scales.astype(np.float64) * input_scale).astype(np.float32)

    def bias_integers(self, input_scale: float) -> Int32[np.ndarray, " c_out"]:
        """The bias in integers of `bias_scales`."""
        return np.rint(self.bias / self.bias_scales(input_scale).astype(np.float64)).astype(np.int32)


@dataclass(frozen=True)
class QuantizedNet:
    """One architecture as integers; needs nothing of the supernet any more.

    Attributes:
        kernels: By operator.
        tensors: By the name of what writes them: an operator, `INPUT`, or `raw_name`.
        space_fingerprint: Of the space that `arch` belongs to.
        input_mean: Mean per channel that inputs are normalised with, for pixels in [0, 1].
        input_std: Standard deviation per channel, likewise.
        n_calibration: Training images that ranges and batch-norm statistics come from.
        calibration: How ranges were found, see `activation_range`.

    Raises:
        ValueError: Kernels or tensors are not those of the graph.
    """

    arch: Arch
    graph: Graph
    kernels: Mapping[str, IntegerKernel]
    tensors: Mapping[str, Levels]
    space_fingerprint: str
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    n_calibration: int
    calibration: Calibration

    def __post_init__(self) -> None:
        n_classes(self.graph)
        expected = {op.name: op.kernel_shape for op in self.graph.operators if op.is_weighted}
        given = {name: kernel.integers.shape for name, kernel in self.kernels.items()}
        if given != expected:
            wrong = sorted(name for name in given.keys() | expected if given.get(name) != expected.get(name))
            raise ValueError(
                f"the kernels do not fit the network: {wrong[0]} has shape {given.get(wrong[0])}, expected "
                f"{expected.get(wrong[0])}"
            )
        if missing := [name for name in tensor_names(self.graph) if name not in self.tensors]:
            raise ValueError(f"the network needs levels for {', '.join(missing[:10])}; there are none")

    @classmethod
    def of(
        cls,
        subnet: Subnet,
        images: Float32[np.ndarray, "n c h w"],
        plan: PrecisionPlan | None = None,
        calibration: Calibration = "minmax",
    ) -> QuantizedNet:
        """`subnet` after post-training quantization: nothing is learned.

        Ranges are found from the input on, each with everything before it quantized.

        Args:
            images: Normalised; ranges come from what the network computes for them.
            plan: The formats; by default int8 throughout.
            calibration: How the range of a tensor is chosen from its values.

        Raises:
            ValueError: There are no images, or `plan` has other formats than integers of 2 to 8 bits.
        """
        if len(images) == 0:
            raise ValueError("ranges come from images; there are none")
        plan = plan or uniform_plan(subnet.graph)
        check_integers(plan)
        integers = {
            op.name: (
                plan.kernels[op.name],
                *quantized_kernel(subnet.weights[op.name]["kernel"], plan.kernels[op.name]),
            )
            for op in subnet.graph.operators
            if op.is_weighted
        }
        ranges: dict[str, Range] = {}
        folded = _fold(subnet.graph, subnet.weights, integers)

        def point(name: str, x: Array, activation: Activation) -> Array:
            bits = plan.tensors.get(name, INT8)
            y, low, high = _calibrate(x, activation, jnp.asarray(bits, jnp.int32), calibration)
            ranges[name] = (float(low), float(high))
            rounded: Array = _quantize(y, "none", *_numbers(_levels(subnet.graph, name, bits, ranges[name])))
            return rounded

        _walk(subnet.graph, folded, network_input(images), point)
        return assemble(
            subnet.arch, subnet.graph, subnet.weights, plan, integers, ranges,
            space_fingerprint=subnet.space_fingerprint, input_mean=subnet.input_mean, input_std=subnet.input_std,
            n_calibration=len(images), calibration=calibration,
        )  # fmt: skip

    def deployed(self) -> QuantizedNet:
        """The network with its biases in integers, of the scale of the products that they are added to.

        What integer models hold, and so what runtimes compute, to the rounding of a sum that lies between two integers.
        """
        kernels = dict(self.kernels)
        for op in self.graph.operators:
            if op.is_weighted:
                scale = self.tensors[op.inputs[0]].scale
                kernel = self.kernels[op.name].widened().for_input(scale)
                # A hard sigmoid in integers has its 3 in the bias.
                offset = np.float32(3 if op.activation == "hsigmoid" else 0)
                shifted = dataclasses.replace(kernel, bias=kernel.bias + offset).for_input(scale)
                bias = shifted.bias_integers(scale) * shifted.bias_scales(scale) - offset
                kernels[op.name] = dataclasses.replace(shifted, bias=bias.astype(np.float32))
        return dataclasses.replace(self, kernels=kernels)

    @property
    def plan(self) -> PrecisionPlan:
        """The formats."""
        names = [INPUT, *(op.name for op in self.graph.operators)]
        kernels = {name: kernel.bits for name, kernel in self.kernels.items()}
        return PrecisionPlan(kernels, {name: self.tensors[name].bits for name in names})

    @property
    def size_bytes(self) -> int:
        """Bytes of the kernels, packed to their bits, and of their scales and biases, 32 bits each.

        Operators without a bias or a batch norm have no biases.
        """
        total = 0
        for op in self.graph.operators:
            if op.is_weighted:
                kernel = self.kernels[op.name]
                per_channel = 8 if op.has_bias or op.has_norm else 4
                total += -(-kernel.integers.size * kernel.bits // 8) + per_channel * len(kernel.scales)
        return total

    def normalise(self, images: UInt8[np.ndarray, "n h w channels"]) -> Float32[np.ndarray, "n c h w"]:
        """Byte images as the network takes them: resized to its input, normalised, channels first."""
        mean, std = (np.array(values, np.float32) for values in (self.input_mean, self.input_std))
        side = self.graph.input_shape[1]
        parts = [
            np.asarray(prepare(images[start : start + CHUNK], mean, std, side)).transpose(3, 0, 1, 2)
            for start in range(0, len(images), CHUNK)
        ]
        return np.ascontiguousarray(np.concatenate(parts))

    def logits(self, images: Float32[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n classes"]:
        """What the network computes for normalised `images`, in float32 between its quantization points.

        An integer runtime computes this but for the rounding of biases, see `deployed`.
        """
        points = {name: _numbers(levels) for name, levels in self.tensors.items()}
        weights = {name: (kernel.values, kernel.bias) for name, kernel in self.kernels.items()}

        def point(name: str, x: Array, activation: Activation) -> Array:
            rounded: Array = _quantize(x, activation, *points[name])
            return rounded

        found = []
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            # A last chunk of another size would have everything compiled anew.
            short = min(CHUNK, len(images)) - len(chunk)
            filled = np.pad(chunk, ((0, short), *((0, 0),) * 3), mode="edge")
            found.append(np.asarray(_walk(self.graph, weights, network_input(filled), point))[: len(chunk)])
        return np.concatenate(found)

    def save(self, directory: Path) -> None:
        """Write ``quantized.npz`` and ``quantized.json`` into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{name}/{entry}": getattr(kernel, entry)
            for name, kernel in self.kernels.items()
            for entry in ("integers", "scales", "bias")
        }
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        write_atomically(directory / "quantized.npz", file.getvalue())
        description = {
            "arch": str(self.arch),
            "space_fingerprint": self.space_fingerprint,
            "input_mean": self.input_mean,
            "input_std": self.input_std,
            "n_calibration": self.n_calibration,
            "calibration": self.calibration,
            "kernel_bits": {name: kernel.bits for name, kernel in self.kernels.items()},
            "tensors": {name: dataclasses.asdict(levels) for name, levels in self.tensors.items()},
            "graph": dataclasses.asdict(self.graph),
        }
        write_atomically(directory / "quantized.json", json.dumps(description, indent=1).encode())

    @classmethod
    def load(cls, directory: Path, space: SearchSpace | None = None) -> QuantizedNet:
        """Read what `save` wrote.

        Args:
            directory: The folder.
            space: The space it must be of; any, if None.

        Raises:
            FileNotFoundError: There is no quantized network in `directory`.
            SpaceMismatchError: It belongs to another space than `space`.
            ValueError: The files are damaged or do not fit together.
        """
        description = json.loads((directory / "quantized.json").read_text())
        if space is not None:
            space.require(description["space_fingerprint"], f"quantized network {directory}")
        path = directory / "quantized.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                kernels = {
                    name: IntegerKernel(bits, *(arrays[f"{name}/{entry}"] for entry in ("integers", "scales", "bias")))
                    for name, bits in description["kernel_bits"].items()
                }
        except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{path} is not complete, or not of {directory / 'quantized.json'}: {error}") from error
        return cls(
            arch=Arch.parse(description["arch"]),
            graph=graph_of(description["graph"]),
            kernels=kernels,
            tensors={name: Levels(**fields) for name, fields in description["tensors"].items()},
            space_fingerprint=description["space_fingerprint"],
            input_mean=tuple(description["input_mean"]),
            input_std=tuple(description["input_std"]),
            n_calibration=description["n_calibration"],
            calibration=description["calibration"],
        )


Range = tuple[float, float]
"""Between which values a tensor lies."""

Integers = tuple[int, np.ndarray, np.ndarray]
"""Bits, integers and scales per output channel of a kernel before its batch norm is folded."""


def check_integers(plan: PrecisionPlan) -> None:
    """Refuse formats that no integer runtime has.

    Raises:
        ValueError: Names the first one.
    """
    for what, formats in (("kernel of", plan.kernels), ("tensor", plan.tensors)):
        for name, code in formats.items():
            if code > INT8:
                raise ValueError(
                    f"the {what} {name} is in {format_name(code)}, which is not deployable as integers; formats int2 "
                    "to int8 are"
                )


def quantized_kernel(
    kernel: Float32[np.ndarray, "c_out ..."], bits: int, factor: float | Array = 1.0
) -> tuple[Int8[np.ndarray, "c_out ..."], Float32[np.ndarray, " c_out"]]:
    """The integers of `kernel` and the scale of each output channel, as `quantize_kernel` rounds them.

    Args:
        factor: What the scales are multiplied by, see `learned_factor`.
    """
    flat = kernel.reshape(len(kernel), -1)
    n_rows = -(-len(flat) // ROWS) * ROWS
    # Zeros change nothing: what is compiled for a few shapes rounds kernels of all.
    padded = np.pad(flat, ((0, n_rows - len(flat)), (0, _power_of_two(flat.shape[1]) - flat.shape[1])))
    rounded = [
        _round_kernel(padded[start : start + ROWS], jnp.asarray(bits, jnp.int32), jnp.float32(factor))
        for start in range(0, n_rows, ROWS)
    ]
    integers = np.concatenate([np.asarray(part) for part, _ in rounded])[: len(flat), : flat.shape[1]]
    scales = np.concatenate([np.asarray(part)[:, 0] for _, part in rounded])[: len(flat)]
    return integers.reshape(kernel.shape).astype(np.int8), scales


def nearest_integers(
    kernel: Float32[np.ndarray, "c_out ..."], bias: Float32[np.ndarray, " c_out"], largest: int
) -> IntegerKernel:
    """A kernel in int8 whose channels' largest values become the integer `largest`; nothing is searched for.

    The scale of a channel of zeros is 0, until `IntegerKernel.for_input` decides it.
    """
    channels = kernel.reshape(len(kernel), -1).astype(np.float64)
    scales = (np.abs(channels).max(axis=1) / largest).astype(np.float32)
    divisors = np.where(scales < np.finfo(np.float32).tiny, 1.0, scales)[:, None]
    integers = np.rint(channels / divisors).clip(-largest, largest).astype(np.int8)
    return IntegerKernel(INT8, integers.reshape(kernel.shape), scales, bias)


def _power_of_two(least: int) -> int:
    return 1 << max(4, (least - 1).bit_length())


@jax.jit
def _round_kernel(kernel: Array, bits: Array, factor: Array) -> tuple[Array, Array]:
    scale, largest = kernel_scale(kernel, bits)
    scale = scale * factor
    return jnp.round(quantize(kernel, scale, -largest, largest, bits) / scale), scale


def assemble(
    arch: Arch,
    graph: Graph,
    weights: Weights,
    plan: PrecisionPlan,
    integers: Mapping[str, Integers],
    ranges: Mapping[str, Range],
    *,
    space_fingerprint: str,
    input_mean: tuple[float, ...],
    input_std: tuple[float, ...],
    n_calibration: int,
    calibration: Calibration,
) -> QuantizedNet:
    """The network of rounded kernels and found ranges, batch norms folded.

    Args:
        weights: Calibrated.
        integers: Of the kernels before folding, by operator.
        ranges: Of all that `tensor_names` names, but hard sigmoids.
    """
    tensors = tensor_levels(graph, plan, ranges)
    kernels = {}
    for op in graph.operators:
        if op.is_weighted:
            kernels[op.name] = _integer_kernel(op, weights[op.name], integers[op.name], tensors[op.inputs[0]].scale)
    return QuantizedNet(
        arch, graph, kernels, tensors, space_fingerprint, input_mean, input_std, n_calibration, calibration
    )


def _gain_and_bias(op: Operator, entries: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What folding the batch norm of `op` multiplies its channels by, and its bias after that; float64."""
    values = {name: array.astype(np.float64) for name, array in entries.items() if name != "kernel"}
    bias = values.get("bias", np.zeros(op.out_shape[0]))
    if not op.has_norm:
        return np.ones(op.out_shape[0]), bias
    gain = values["scale"] / np.sqrt(values["variance"] + BATCH_NORM_EPSILON)
    return gain, (bias - values["mean"]) * gain + values["offset"]


def _integer_kernel(
    op: Operator, entries: Mapping[str, np.ndarray], integers: Integers, input_scale: float
) -> IntegerKernel:
    """The kernel with its batch norm folded: the sign of the gain goes into the integers, its size into the scales."""
    bits, values, scales = integers
    gain, bias = _gain_and_bias(op, entries)
    signed = (values * _along(np.where(gain < 0, -1, 1), values)).astype(np.int8)
    folded = IntegerKernel(bits, signed, (scales * np.abs(gain)).astype(np.float32), bias.astype(np.float32))
    return folded.for_input(input_scale)


def _fold(graph: Graph, weights: Weights, integers: Mapping[str, Integers]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel, of what its integers stand for, and bias of every operator, batch norms folded."""
    check_weights(graph, weights)
    folded = {}
    for op in graph.operators:
        if op.is_weighted:
            _, values, scales = integers[op.name]
            gain, bias = _gain_and_bias(op, weights[op.name])
            folded[op.name] = (
                (values * _along(scales * gain, values)).astype(np.float32),
                bias.astype(np.float32),
            )
    return folded


def _along(channels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`channels` in the shape of the kernel's axes."""
    return channels.reshape(-1, *(1,) * (kernel.ndim - 1))


def tensor_levels(graph: Graph, plan: PrecisionPlan, ranges: Mapping[str, Range]) -> dict[str, Levels]:
    """The levels of all tensors of a network; `ranges` are of all that `tensor_names` names, but hard sigmoids."""
    return {name: _levels(graph, name, plan.tensors.get(name, INT8), ranges.get(name)) for name in tensor_names(graph)}


def _levels(graph: Graph, name: str, bits: int, found: Range | None) -> Levels:
    """The levels of a tensor with the range `found`, which what hard activations make constant takes no part of."""
    activations = {op.name: op.activation for op in graph.operators}
    if activations.get(name) == "hsigmoid":
        found = (0.0, 1.0)
    assert found is not None, "only hard sigmoids need no range"
    low, high = found
    if name not in activations and name != INPUT:
        low = max(low, HARD_SWISH_START)
    return levels_of(bits, low, high)


def levels_of(bits: int, low: float, high: float) -> Levels:
    """The levels that span `low` to `high` and 0."""
    scale, lowest, _ = activation_scale(jnp.float32(low), jnp.float32(high), bits)
    return Levels(bits, float(scale), int(-lowest))


def _numbers(levels: Levels) -> tuple[Array, Array, Array, Array]:
    """Scale, lowest and highest number in units of it, and format, as `quantize` takes them."""
    lowest, highest = -levels.zero_point, levels.highest - levels.zero_point
    return (
        jnp.float32(levels.scale), jnp.float32(lowest), jnp.float32(highest), jnp.asarray(levels.bits, jnp.int32)
    )  # fmt: skip


Point = Callable[[str, Array, Activation], Array]
"""``(name, x, activation) -> y``: what becomes of a tensor at its quantization point, after its activation."""


def _walk(
    graph: Graph, weights: Mapping[str, tuple[np.ndarray, np.ndarray]], x: Float[Array, "c h w n"], point: Point
) -> Float[Array, "n classes"]:
    """The network's output for `x`, operator by operator: what is compiled for one network serves others."""
    values = {INPUT: point(INPUT, x, "none")}
    for op in graph.operators:
        kernel, bias = weights.get(op.name, (None, None))
        alike = dataclasses.replace(op, name="", inputs=(), has_bias=False, has_norm=False, activation="none")
        y = _apply(alike, kernel, bias, [values[name] for name in op.inputs])
        if op.activation == "hswish":
            y = point(raw_name(op.name), y, "none")
        values[op.name] = point(op.name, y, op.activation)
    return values[graph.operators[-1].name][:, 0, 0, :].T


_apply = jax.jit(apply_operator, static_argnames="op")


@partial(jax.jit, static_argnames="activation")
def _quantize(x: Array, activation: Activation, scale: Array, lowest: Array, highest: Array, bits: Array) -> Array:
    return quantize(activate(x, activation), scale, lowest, highest, bits)


@partial(jax.jit, static_argnames=("activation", "method"))
def _calibrate(x: Array, activation: Activation, bits: Array, method: Calibration) -> tuple[Array, Array, Array]:
    y = activate(x, activation)
    return y, *activation_range(y, bits, method)
