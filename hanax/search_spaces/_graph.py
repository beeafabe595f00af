"""The one lowering of an architecture: a list of typed operators, in execution order.

Costs (MACs, parameters, peak memory), the ONNX and Flax nets, look-up keys and predictor features are all read from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, int, int]
"""Channels, height, width of one image's tensor."""

Kind = Literal["conv", "dense", "global_pool", "avg_pool", "multiply", "add", "identity", "shuffle", "zeros"]
Activation = Literal["none", "relu", "hswish", "hsigmoid"]

INPUT = "input"
"""The name by which operators refer to the network's input."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator with everything fused into it: what its kind computes, then bias, then batch norm, then activation.

    Attributes:
        name: Unique in its graph; names the operator's output and its weights, e.g. ``stage2.block1.depthwise``.
        kind: ``conv`` pads by ``kernel_size // 2`` on every side; ``multiply`` scales its first input's channels by
            its second input, shape (channels, 1, 1); ``global_pool`` is the mean over height and width; ``avg_pool``
            the mean over a window, which starts ``(kernel_size - 1) // 2`` before its output's place, of the values
            inside the map; ``identity`` is its input, for the norm or activation that follows, or under another name;
            ``shuffle`` takes channels from its `groups` groups in turn (Zhang et al., 2018, arXiv:1707.01083);
            ``zeros`` reads nothing.
        inputs: Names of the operators (or `INPUT`) it reads.
        in_shape: Shape of the first input; of ``zeros``, that of the output.
        out_shape: Shape of the output.
        has_bias: A learned bias of its own (not the one that folding a batch norm leaves).
        has_norm: A batch norm follows.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    in_shape: Shape
    out_shape: Shape
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    has_bias: bool = False
    has_norm: bool = False
    activation: Activation = "none"

    @property
    def is_weighted(self) -> bool:
        """Whether the operator has a kernel."""
        return self.kind in ("conv", "dense")

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution of each channel by itself."""
        return self.kind == "conv" and self.groups == self.in_shape[0] > 1

    @property
    def is_alias(self) -> bool:
        """Whether its output is its input under another name: nothing is computed and no memory taken."""
        return self.kind == "identity" and not self.has_norm and self.activation == "none"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """``(out, in / groups, height, width)`` of a convolution, ``(out, in)`` of a dense layer, else ``()``."""
        if self.kind == "conv":
            return (self.out_shape[0], self.in_shape[0] // self.groups, self.kernel_size, self.kernel_size)
        if self.kind == "dense":
            return (self.out_shape[0], self.in_shape[0])
        return ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the kernel for one image; all else (bias, norm, activation, pools, ...) counts 0."""
        if not self.is_weighted:
            return 0
        per_value = 1
        for extent in self.kernel_shape[1:]:
            per_value *= extent
        return per_value * size_of(self.out_shape)

    @property
    def params(self) -> int:
        """Learned values: kernel, bias, and scale and offset of the batch norm (not its running statistics)."""
        kernel = int(self.is_weighted)
        for extent in self.kernel_shape:
            kernel *= extent
        return kernel + self.out_shape[0] * (int(self.has_bias) + 2 * int(self.has_norm))

    @property
    def traffic_values(self) -> int:
        """Values read and written for one image when nothing is cached: inputs, kernel, output."""
        if self.is_alias:
            return 0
        if self.kind == "zeros":
            return size_of(self.out_shape)
        second = self.in_shape[0] if self.kind == "multiply" else size_of(self.in_shape) if self.kind == "add" else 0
        return size_of(self.in_shape) + second + self.params + size_of(self.out_shape)


@dataclass(frozen=True, slots=True)
class Graph:
    """A network as operators in execution order; the last one's output is the network's.

    Raises:
        ValueError: An operator reads a name that no earlier operator produced, or nothing though it is not ``zeros``,
            or a name is used twice.
    """

    input_shape: Shape
    operators: tuple[Operator, ...]

    def __post_init__(self) -> None:
        shapes = {INPUT: self.input_shape}
        for op in self.operators:
            for name in op.inputs:
                if name not in shapes:
                    raise ValueError(f"{op.name} reads {name!r}, which no earlier operator produces")
            if bool(op.inputs) == (op.kind == "zeros"):
                reads = ", ".join(op.inputs) or "nothing"
                raise ValueError(
                    f"{op.name}, of kind {op.kind}, reads {reads}; zeros reads nothing, all others something"
                )
            if op.inputs and shapes[op.inputs[0]] != op.in_shape:
                raise ValueError(f"{op.name} expects shape {op.in_shape}; {op.inputs[0]} gives {shapes[op.inputs[0]]}")
            if op.name in shapes:
                raise ValueError(f"two operators are named {op.name!r}")
            shapes[op.name] = op.out_shape

    @property
    def output_shape(self) -> Shape:
        """Shape of the last operator's output, ``(classes, 1, 1)`` for a classifier."""
        return self.operators[-1].out_shape

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image (1 MAC = 2 FLOPs)."""
        return sum(op.macs for op in self.operators)

    @property
    def params(self) -> int:
        """Learned values, batch-norm scales and offsets included."""
        return sum(op.params for op in self.operators)

    def peak_activation_bytes(self, bytes_per_value: int = 4) -> int:
        """Most activation memory alive at once, for one image, executing in order with no operator in place.

        A tensor lives from the operator that makes it to the last one that reads it, also under another name.
        """
        tensor = {INPUT: INPUT}
        for op in self.operators:
            tensor[op.name] = tensor[op.inputs[0]] if op.is_alias else op.name
        last_use = {tensor[name]: step for step, op in enumerate(self.operators) for name in op.inputs}
        alive = {INPUT: size_of(self.input_shape)} if INPUT in last_use else {}
        peak = 0
        for step, op in enumerate(self.operators):
            if not op.is_alias:
                alive[op.name] = size_of(op.out_shape)
            peak = max(peak, sum(alive.values()))
            alive = {name: size for name, size in alive.items() if last_use.get(name, -1) > step}
        return peak * bytes_per_value


def live_operators(operators: Sequence[Operator], source: str = INPUT) -> list[Operator]:
    """Those of `operators` that lie on a path from `source` to the output of the last one; ``zeros`` never do.

    All others could be left out, or replaced by constants, without a change of what is computed.
    """
    reached = {source}
    for op in operators:
        if not reached.isdisjoint(op.inputs):
            reached.add(op.name)
    needed = {operators[-1].name}
    for op in reversed(operators):
        if op.name in needed:
            needed.update(op.inputs)
    return [op for op in operators if op.name in reached and op.name in needed]


def longest_path(operators: Sequence[Operator], source: str = INPUT) -> int:
    """Most operators, mere other names aside, on a path from `source` to the last one's output; 0 if there is none."""
    depth = {source: 0}
    for op in operators:
        before = [depth[name] for name in op.inputs if name in depth]
        if before:
            depth[op.name] = max(before) + int(not op.is_alias)
    return depth.get(operators[-1].name, 0)


def size_of(shape: Shape) -> int:
    """Number of values in a tensor of `shape`."""
    return shape[0] * shape[1] * shape[2]
