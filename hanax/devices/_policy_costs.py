"""What the number formats of a network cost: bytes of the model, and operations on bits.

A graph says nothing about formats, so these models are told the precision of the block beside its operators; which
operator has which format says `operator_precision`. Without a precision everything is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from hanax.devices._bitfusion import BitFusion, BitFusionTable
from hanax.devices._cost_models import CostModel, Setting, code_costs
from hanax.search_spaces import (
    FLOAT32,
    Arch,
    Operator,
    Precision,
    SearchSpace,
    format_bits,
    operator_precision,
    precision_plan,
)

BYTES_PER_BIAS = 4
"""An int32 or float32 per output channel."""
BYTES_PER_SCALE = 4
"""A float32 per output channel of a quantized kernel."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Bytes of the weights of a model whose batch norms are folded into its kernels.

    Counted are: the values of each kernel in its format, packed, to whole bytes per kernel; 4 bytes for the bias of
    each output channel of an operator with a bias or a batch norm; 4 for the scale of each output channel of a kernel
    that is quantized; 8 per channel for a batch norm without a kernel before it. Not counted are scales and zero points
    of tensors (a few bytes each) and what a file format adds.
    """

    name: ClassVar[str] = "model-size"
    description: ClassVar[str] = "bytes of kernels in their formats, of biases and of scales"
    source: ClassVar[str] = "counted from the graph and the policy"
    costs: ClassVar[tuple[str, ...]] = ("size_bytes",)
    settings: ClassVar[tuple[Setting, ...]] = ()
    combine: ClassVar[Literal["sum", "max"]] = "sum"
    reads_names: ClassVar[bool] = False

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """The bytes of `operators` in float32."""
        return self.costs_under(operators, None)

    def costs_under(self, operators: list[Operator], precision: Precision | None) -> tuple[float, ...]:
        """The bytes of the operators of a block of that precision."""
        return (float(sum(_operator_bytes(op, operator_precision(op, precision)[0]) for op in operators)),)


def _operator_bytes(op: Operator, kernel_format: int) -> int:
    channels = op.out_shape[0]
    if not op.is_weighted:
        return 2 * BYTES_PER_BIAS * channels * op.has_norm
    per_channel = BYTES_PER_BIAS * (op.has_bias or op.has_norm) + BYTES_PER_SCALE * (kernel_format != FLOAT32)
    return math.ceil(math.prod(op.kernel_shape) * format_bits(kernel_format) / 8) + per_channel * channels


@dataclass(frozen=True, slots=True)
class BitOperations:
    """BitOPs: multiply-accumulates of one image, each times the bits of its weight and of its activation.

    So Uhlich et al. (2020, arXiv:1905.11452) and others count; 1 MAC in int8 is 64, one in float32 is 1024.
    """

    name: ClassVar[str] = "bit-operations"
    description: ClassVar[str] = "multiply-accumulates of one image times the bits of weights and of activations"
    source: ClassVar[str] = "counted from the graph and the policy"
    costs: ClassVar[tuple[str, ...]] = ("bit_operations",)
    settings: ClassVar[tuple[Setting, ...]] = ()
    combine: ClassVar[Literal["sum", "max"]] = "sum"
    reads_names: ClassVar[bool] = False

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """The bit operations of `operators` in float32."""
        return self.costs_under(operators, None)

    def costs_under(self, operators: list[Operator], precision: Precision | None) -> tuple[float, ...]:
        """The bit operations of the operators of a block of that precision."""
        return (float(sum(op.macs * math.prod(operator_bits(op, precision)) for op in operators)),)


def operator_bits(op: Operator, precision: Precision | None) -> tuple[int, int]:
    """Bits of the kernel of `op` and of what it reads, in a block of `precision`."""
    weights, activations = operator_precision(op, precision)
    return format_bits(weights), format_bits(activations)


def kernel_precisions(space: SearchSpace, arch: Arch) -> dict[str, Precision]:
    """Format of the kernel and of what it is applied to, by operator with a kernel, in the network of `arch`.

    Raises:
        ValueError: `space` does not decide about precision.
    """
    plan = precision_plan(space, arch)
    return {
        op.name: (plan.kernels[op.name], plan.tensors[op.inputs[0]])
        for op in space.graph(arch).operators
        if op.is_weighted
    }


def policy_costs(
    space: SearchSpace, codes: Int[np.ndarray, "n d"], table: BitFusionTable | None = None
) -> Mapping[str, Float[np.ndarray, " n"]]:
    """``size_bytes`` and ``bit_operations`` of many networks, each with its policy, as `ModelSize` and `BitOperations`.

    Args:
        space: A quantized space; of another one, everything is in float32.
        codes: The networks.
        table: Gives ``latency_ms`` and ``energy_mj`` on BitFusion, too.

    Raises:
        ValueError: `table` has no rows for a format, or `space` does not decide about precision.
    """
    costs: dict[str, Float[np.ndarray, " n"]] = {}
    models: list[CostModel] = [ModelSize(), BitOperations()]
    for model in models if table is None else [*models, BitFusion(table, None)]:
        costs.update(zip(model.costs, code_costs(model, space, codes).T, strict=True))
    return costs
