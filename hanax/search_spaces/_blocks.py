"""Block types: what a slot of a network can hold, at its largest, and how a choice of it lowers to operators.

A block is a frozen value without weights; `hanax.supernet` keeps, per block type, how weights are made and applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from hanax.search_spaces._graph import Activation, Operator, Shape

Choice = tuple[int, ...]
"""The value of each elastic parameter of a block, in the order of `Block.elastic`."""

OUTPUT = "output"
"""The name by which the flow of a block refers to its output."""


@runtime_checkable
class Block(Protocol):
    """A block type. Implementations are frozen dataclasses, so that equal blocks share what is compiled for them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int:
        """That of its fields, as of any frozen dataclass."""

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        """The block's elastic parameters with the values each may take, ascending."""

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        """Operators of the block for `choice`, reading tensor `source` of `shape`; the last one is its output."""


@runtime_checkable
class CellBlock(Block, Protocol):
    """A block in which what an elastic parameter sets reads what another sets; in other blocks they are in parallel."""

    @property
    def flow(self) -> tuple[tuple[str, str], ...]:
        """Pairs of elastic parameters, the first of which is read by the second.

        The first may also be `INPUT`, the block's input, and the second `OUTPUT`, the block's output.
        """


def make_divisible(value: int | float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, never losing more than a tenth (MobileNet's channel rounding)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def conv(
    name: str,
    source: str,
    shape: Shape,
    out_channels: int,
    *,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    has_bias: bool = False,
    has_norm: bool = True,
    activation: Activation = "none",
) -> Operator:
    """A convolution that reads `source` of `shape`, with a batch norm unless told otherwise."""
    height, width = (-(-extent // stride) for extent in shape[1:])
    return Operator(
        name, "conv", (source,), shape, (out_channels, height, width),
        kernel_size, stride, groups, has_bias, has_norm, activation,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConvBlock:
    """Convolution, batch norm, activation; nothing elastic. The stem of a network, for one."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    activation: Activation

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return {}

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        return [
            conv(f"{name}.conv", source, shape, self.out_channels,
                 kernel_size=self.kernel_size, stride=self.stride, activation=self.activation)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class MBConv:
    """MobileNetV3's inverted bottleneck with elastic kernel size and expansion (Cai et al., 2020, arXiv:1908.09791).

    1x1 expansion, depthwise convolution, squeeze-excite on the activated depthwise output, 1x1 projection; a residual
    where stride is 1 and the channels agree. With the single expansion ratio 1 there is no expansion convolution.
    """

    in_channels: int
    out_channels: int
    stride: int
    kernel_sizes: tuple[int, ...]
    expand_ratios: tuple[int, ...]
    activation: Activation
    has_squeeze_excite: bool

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return {"kernel_size": self.kernel_sizes, "expand_ratio": self.expand_ratios}

    @property
    def has_expansion(self) -> bool:
        """Whether there is a 1x1 expansion convolution."""
        return self.expand_ratios != (1,)

    @property
    def has_residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def mid_channels(self, expand_ratio: int) -> int:
        """Channels of the depthwise convolution."""
        return make_divisible(round(self.in_channels * expand_ratio))

    def squeeze_channels(self, expand_ratio: int) -> int:
        """Channels between the two squeeze-excite convolutions."""
        return make_divisible(self.mid_channels(expand_ratio) // 4)

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        kernel_size, expand_ratio = choice
        mid = self.mid_channels(expand_ratio)
        ops: list[Operator] = []
        if self.has_expansion:
            ops.append(conv(f"{name}.expand", source, shape, mid, activation=self.activation))
        ops.append(
            conv(f"{name}.depthwise", ops[-1].name if ops else source, ops[-1].out_shape if ops else shape, mid,
                 kernel_size=kernel_size, stride=self.stride, groups=mid, activation=self.activation)
        )  # fmt: skip
        if self.has_squeeze_excite:
            wide = ops[-1]
            squeeze = self.squeeze_channels(expand_ratio)
            pooled = (mid, 1, 1)
            pool = Operator(f"{name}.se.pool", "global_pool", (wide.name,), wide.out_shape, pooled)
            reduce = conv(f"{name}.se.reduce", pool.name, pooled, squeeze,
                          has_bias=True, has_norm=False, activation="relu")  # fmt: skip
            gate = conv(f"{name}.se.expand", reduce.name, reduce.out_shape, mid,
                        has_bias=True, has_norm=False, activation="hsigmoid")  # fmt: skip
            scale = Operator(f"{name}.se.scale", "multiply", (wide.name, gate.name), wide.out_shape, wide.out_shape)
            ops += [pool, reduce, gate, scale]
        ops.append(conv(f"{name}.project", ops[-1].name, ops[-1].out_shape, self.out_channels))
        if self.has_residual:
            ops.append(Operator(f"{name}.add", "add", (ops[-1].name, source), shape, shape))
        return ops


@dataclass(frozen=True, slots=True)
class Head:
    """MobileNetV3's head: 1x1 expansion, global mean, 1x1 feature mixing without norm, linear classifier."""

    in_channels: int
    wide_channels: int
    feature_channels: int
    n_classes: int
    activation: Activation

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return {}

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        wide = conv(f"{name}.expand", source, shape, self.wide_channels, activation=self.activation)
        pooled = (self.wide_channels, 1, 1)
        pool = Operator(f"{name}.pool", "global_pool", (wide.name,), wide.out_shape, pooled)
        mix = conv(f"{name}.mix", pool.name, pooled, self.feature_channels,
                   has_norm=False, activation=self.activation)  # fmt: skip
        classify = Operator(f"{name}.classify", "dense", (mix.name,), mix.out_shape, (self.n_classes, 1, 1),
                            has_bias=True)  # fmt: skip
        return [wide, pool, mix, classify]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Global mean and linear classifier; nothing elastic.

    Attributes:
        has_norm: A batch norm and a ReLU come first, as networks of pre-activated blocks need them at the end.
    """

    in_channels: int
    n_classes: int
    has_norm: bool = False

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return {}

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        ops: list[Operator] = []
        if self.has_norm:
            ops.append(Operator(f"{name}.norm", "identity", (source,), shape, shape, has_norm=True, activation="relu"))
        pooled = (self.in_channels, 1, 1)
        pool = Operator(f"{name}.pool", "global_pool", (ops[-1].name if ops else source,), shape, pooled)
        classify = Operator(f"{name}.classify", "dense", (pool.name,), pooled, (self.n_classes, 1, 1), has_bias=True)
        return [*ops, pool, classify]
