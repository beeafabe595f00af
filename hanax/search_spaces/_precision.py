"""Number formats of weights and activations as decisions of a search space.

A format is an int, so that it can be an option of a decision and a traced value: 2 to 8 are integers of so many bits,
`minifloat` numbers floating-point formats of few bits, and `FLOAT32` is no quantization at all. That is also the order
of the options of a decision, the last of which counts as the largest network: minifloats come after all integers, and
among themselves by their bits of exponent, then of mantissa.

A *policy* is one pair of formats (weights, activations) per slot. It says this of the operators of the slot's block:

* The kernel of an operator with a batch norm is in the weight format, and what that operator reads in the activation
  format.
* All other kernels (squeeze-excite, the last layers of a head), and the tensors that no operator with a batch norm
  reads, are in 8 bits: they are few, and integer runtimes need them in some format.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from hanax.search_spaces._arch import Arch
from hanax.search_spaces._graph import INPUT, Graph, Operator
from hanax.search_spaces._space import Decision, PlacedBlock, Precision, SearchSpace, Slot

INT8 = 8
FLOAT32 = 1000
"""No quantization."""

LEAST_BITS, MOST_BITS = 2, 8
"""Of an integer format."""
_MINIFLOAT = 100


def minifloat(exponent_bits: int, mantissa_bits: int) -> int:
    """The format ExMy: a sign, `exponent_bits` and `mantissa_bits`, with subnormal numbers and bias 2^(x-1) - 1.

    Its finite values are those of the type of that name in ``ml_dtypes`` (``float8_e4m3fn`` for E4M3, whose largest is
    448, as in OFP8; ``float8_e5m2``, ``float8_e3m4``, ``float6_e2m3fn``, ``float6_e3m2fn``, ``float4_e2m1fn``); where
    there is none, all codes are finite.

    Raises:
        ValueError: There are not 1 to 5 bits of exponent, not 0 to 5 of mantissa, or not 3 to 8 bits in all.
    """
    bits = 1 + exponent_bits + mantissa_bits
    if not (1 <= exponent_bits <= 5 and 0 <= mantissa_bits <= 5 and 3 <= bits <= 8):
        raise ValueError(
            "a minifloat has 1 to 5 bits of exponent, 0 to 5 of mantissa, and 3 to 8 in all with its sign; "
            f"got E{exponent_bits}M{mantissa_bits}, {bits} bits"
        )
    return _MINIFLOAT + 10 * exponent_bits + mantissa_bits


def number_format(name: str | int) -> int:
    """The format called `name`: ``int4``, ``e4m3``, ``float32``; a format itself is returned as it is.

    Raises:
        ValueError: There is none of this name.
    """
    if isinstance(name, str):
        if name == "float32":
            return FLOAT32
        if (found := re.fullmatch(r"int(\d+)", name)) and LEAST_BITS <= int(found[1]) <= MOST_BITS:
            return int(found[1])
        if found := re.fullmatch(r"e(\d)m(\d)", name.lower()):
            return minifloat(int(found[1]), int(found[2]))
    elif name == FLOAT32 or LEAST_BITS <= name <= MOST_BITS:
        return name
    elif name > _MINIFLOAT and name < FLOAT32:
        return minifloat(*divmod(name - _MINIFLOAT, 10))
    raise ValueError(
        f"there is no number format {name!r}; there are int{LEAST_BITS} to int{MOST_BITS}, minifloats such as e4m3, "
        "and float32"
    )


def format_name(code: int) -> str:
    """The name of a format, see `number_format`."""
    number_format(code)
    if code == FLOAT32:
        return "float32"
    if code > _MINIFLOAT:
        exponent_bits, mantissa_bits = divmod(code - _MINIFLOAT, 10)
        return f"e{exponent_bits}m{mantissa_bits}"
    return f"int{code}"


def format_bits(code: int) -> int:
    """Bits that a value takes in a format."""
    number_format(code)
    if code == FLOAT32:
        return 32
    return code if code <= MOST_BITS else 1 + sum(divmod(code - _MINIFLOAT, 10))


def quantized_space(
    space: SearchSpace,
    *,
    weights: Sequence[str | int] = (4, 6, 8),
    activations: Sequence[str | int] = (4, 6, 8),
    granularity: Literal["block", "network"] = "block",
    ends: tuple[str | int, str | int] = (INT8, INT8),
) -> SearchSpace:
    """`space` with the precision of its blocks among the decisions, after all others.

    Every slot but the first and the last has two decisions, ``SLOT.weight_bits`` and ``SLOT.activation_bits``; those of
    a slot that is absent do not count, as any other of its decisions. With `granularity` ``network`` there are two in
    all, ``weight_bits`` and ``activation_bits``. With one format each it is the special case of one precision for all.

    Args:
        weights: Formats for weights, as names or codes.
        activations: Formats for activations.
        ends: Weight and activation format of the first and the last slot, which are the most sensitive (Zhou et al.,
            2016, arXiv:1606.06160, section 3.3).

    Raises:
        ValueError: An unknown format; or `space` has decisions about precision already.
    """
    if any(slot.precision is not None for slot in space.slots):
        raise ValueError(f"{space.name} decides about precision already; start from the space without")
    formats = {
        "weight_bits": tuple(sorted({number_format(name) for name in weights})),
        "activation_bits": tuple(sorted({number_format(name) for name in activations})),
    }
    fixed = (number_format(ends[0]), number_format(ends[1]))
    decisions: dict[str, Decision] = {}

    def setting(slot: Slot, kind: str) -> str:
        name = kind if granularity == "network" else f"{slot.name}.{kind}"
        decisions[name] = Decision(name, formats[kind], None if granularity == "network" else slot.when)
        return name

    slots = []
    for slot in space.slots:
        is_end = slot in (space.slots[0], space.slots[-1])
        precision: tuple[str | int, str | int] = (
            fixed if is_end else (setting(slot, "weight_bits"), setting(slot, "activation_bits"))
        )
        slots.append(dataclasses.replace(slot, precision=precision))
    return dataclasses.replace(
        space,
        name=f"{space.name}, quantized",
        decisions=(*space.decisions, *decisions.values()),
        slots=tuple(slots),
    )


def float_space(space: SearchSpace) -> SearchSpace:
    """`space` without precision: what `quantized_space` was given, but for the name."""
    return dataclasses.replace(
        space,
        name=space.name.removesuffix(", quantized"),
        decisions=tuple(space.decisions[column] for column in architecture_columns(space)),
        slots=tuple(dataclasses.replace(slot, precision=None) for slot in space.slots),
    )


def precision_columns(space: SearchSpace) -> list[int]:
    """Positions in the codes of the decisions about precision alone."""
    names = {name for slot in space.slots for name in slot.precision or () if isinstance(name, str)}
    return [column for column, decision in enumerate(space.decisions) if decision.name in names]


def format_options(space: SearchSpace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The formats on offer for weights and for activations in a quantized `space`, the same wherever they are decided.

    Raises:
        ValueError: `space` decides about no formats.
    """
    decisions = [space.decisions[column] for column in precision_columns(space)]
    if not decisions:
        raise ValueError(f"{space.name} offers no formats; make a space that does by quantized_space")
    weights, activations = (
        next(decision.options for decision in decisions if decision.name.endswith(kind))
        for kind in ("weight_bits", "activation_bits")
    )
    return weights, activations


def architecture_columns(space: SearchSpace) -> list[int]:
    """Positions in the codes of all other decisions: these columns alone are codes of `float_space`."""
    about_precision = set(precision_columns(space))
    return [column for column in range(len(space.decisions)) if column not in about_precision]


def float_arch(space: SearchSpace, arch: Arch) -> Arch:
    """The architecture of `arch` in `float_space`."""
    return Arch(tuple(arch.choices[column] for column in architecture_columns(space)))


def with_precision(
    space: SearchSpace, codes: Int[np.ndarray, "n d"], weights: str | int, activations: str | int
) -> Int[np.ndarray, "n e"]:
    """Canonical codes in `space` of the architectures `codes` of its `float_space`, with one precision everywhere.

    Raises:
        ValueError: A format that some decision does not offer.
    """
    wanted = {"weight_bits": number_format(weights), "activation_bits": number_format(activations)}
    made = np.zeros((len(codes), len(space.decisions)), dtype=np.int32)
    made[:, architecture_columns(space)] = codes
    for column in precision_columns(space):
        decision = space.decisions[column]
        value = wanted[decision.name.rpartition(".")[2]]
        if value not in decision.options:
            offered = ", ".join(map(format_name, decision.options))
            raise ValueError(f"{decision.name}: {format_name(value)} is not offered; {space.name} offers {offered}")
        made[:, column] = decision.options.index(value)
    return space.canonical(made)


def operator_precision(op: Operator, precision: Precision | None) -> Precision:
    """Formats of the kernel of `op` and of what it reads, in a block of `precision`.

    What would be in 8 bits is not quantized either where the block's weights, or its activations, are not.
    """
    weights, activations = precision or (FLOAT32, FLOAT32)
    return (weights, activations) if op.has_norm else (_int8_unless_float(weights), _int8_unless_float(activations))


def _int8_unless_float(code: int) -> int:
    return FLOAT32 if code == FLOAT32 else INT8


@dataclasses.dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """The formats of one network, operator by operator.

    Attributes:
        kernels: Format of each kernel, by operator.
        tensors: Format of each tensor, by the name of what writes it (an operator or `INPUT`): the widest that an
            operator with a batch norm reads it in, or 8 bits where none does, as for the logits (`FLOAT32` if the
            block's activations are).
    """

    kernels: Mapping[str, int]
    tensors: Mapping[str, int]


def precision_plan(space: SearchSpace, arch: Arch) -> PrecisionPlan:
    """The formats of the network of `arch`; what of it is before a hard activation is in 8 bits, and not listed.

    Raises:
        ValueError: `space` does not decide about precision.
    """
    source, shape = INPUT, space.input_shape(arch)
    placed_operators: list[tuple[Operator, Precision]] = []
    for placed in space.blocks(arch):
        if placed.precision is None:
            raise ValueError(f"{space.name} says nothing about the precision of {placed.slot.name}")
        operators = placed.slot.block.lower(placed.slot.name, placed.choice, source, shape)
        placed_operators += [(op, placed.precision) for op in operators]
        source, shape = operators[-1].name, operators[-1].out_shape
    return _plan(placed_operators)


def uniform_plan(graph: Graph, weights: str | int = INT8, activations: str | int = INT8) -> PrecisionPlan:
    """One precision for all operators of `graph`, by the rules of a policy; with the defaults, int8 throughout."""
    precision = (number_format(weights), number_format(activations))
    return _plan([(op, precision) for op in graph.operators])


def _plan(placed: Sequence[tuple[Operator, Precision]]) -> PrecisionPlan:
    """The plan of operators with the precision of their blocks."""
    tensors = {INPUT: _int8_unless_float(placed[0][1][1])}
    tensors |= {op.name: _int8_unless_float(precision[1]) for op, precision in placed}
    read: dict[str, int] = {}
    for op, precision in placed:
        if op.has_norm and op.is_weighted:
            for name in op.inputs:
                read[name] = max(read.get(name, LEAST_BITS), precision[1], key=format_bits)
    kernels = {op.name: operator_precision(op, precision)[0] for op, precision in placed if op.is_weighted}
    return PrecisionPlan(kernels, tensors | read)


def policy_of(space: SearchSpace, arch: Arch) -> dict[str, Precision]:
    """Weight and activation format of every block of `arch` that there is, by slot.

    Raises:
        ValueError: `space` does not decide about precision.
    """
    placed: Sequence[PlacedBlock] = space.blocks(arch)
    policy = {block.slot.name: block.precision for block in placed if block.precision is not None}
    if len(policy) < len(placed):
        raise ValueError(f"{space.name} does not decide about precision")
    return policy
