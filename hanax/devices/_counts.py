"""Counts as cost models: multiply-accumulates, parameters, and the peak of activation memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hanax.devices._cost_models import Setting
from hanax.search_spaces import Graph, Operator


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates for one image (1 MAC = 2 FLOPs), as `Operator.macs` counts them."""

    name: ClassVar[str] = "macs"
    description: ClassVar[str] = "multiply-accumulates of one image"
    source: ClassVar[str] = "counted from the graph"
    costs: ClassVar[tuple[str, ...]] = ("macs",)
    settings: ClassVar[tuple[Setting, ...]] = ()
    combine: ClassVar[Literal["sum", "max"]] = "sum"
    reads_names: ClassVar[bool] = False

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """The MACs of `operators`."""
        return (float(sum(op.macs for op in operators)),)


@dataclass(frozen=True, slots=True)
class Params:
    """Learned values, as `Operator.params` counts them."""

    name: ClassVar[str] = "params"
    description: ClassVar[str] = "learned values, scale and offset of batch norms among them"
    source: ClassVar[str] = "counted from the graph"
    costs: ClassVar[tuple[str, ...]] = ("params",)
    settings: ClassVar[tuple[Setting, ...]] = ()
    combine: ClassVar[Literal["sum", "max"]] = "sum"
    reads_names: ClassVar[bool] = False

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """The parameters of `operators`."""
        return (float(sum(op.params for op in operators)),)


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Most activation memory alive at once, as `Graph.peak_activation_bytes` counts it; weights are not in it.

    Between two blocks of a chain nothing but the tensor that joins them is alive, so the peak of the chain is the
    largest of its blocks' peaks.

    Attributes:
        bytes_per_value: Of an activation; 4 in float32, 1 in int8.
    """

    name: str
    bytes_per_value: int
    source: ClassVar[str] = "counted from the graph, executed in order with no operator in place"
    costs: ClassVar[tuple[str, ...]] = ("peak_bytes",)
    combine: ClassVar[Literal["sum", "max"]] = "max"
    reads_names: ClassVar[bool] = False

    @property
    def description(self) -> str:
        """What it computes."""
        return f"most activation memory alive at once for one image, {self.bytes_per_value} byte(s) a value"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The size of a value."""
        return (("bytes_per_value", self.bytes_per_value),)

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """The peak of `operators`."""
        graph = Graph(operators[0].in_shape, tuple(operators))
        return (float(graph.peak_activation_bytes(self.bytes_per_value)),)


COUNTS = (Macs(), Params(), PeakMemory("peak-memory", 4), PeakMemory("peak-memory-int8", 1))
