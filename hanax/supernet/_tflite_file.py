"""The file format of TensorFlow Lite, as far as networks of ours need it, written with nothing but ``flatbuffers``.

A model is a flatbuffer whose tables, slots and numbers are those of the public schema (``schema.fbs``, version 3, of
LiteRT): a field is known by its slot in its table, an operator by its code. Runtimes refuse operators of a version that
they do not know, so each has the lowest version that can do what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import flatbuffers
import numpy as np

SCHEMA_VERSION = 3
FILE_IDENTIFIER = b"TFL3"
DATA_ALIGNMENT = 16
"""The schema's, in bytes, for the contents of buffers."""


class Code(IntEnum):
    """The schema's ``BuiltinOperator``, where we use it."""

    ADD = 0
    CONV_2D = 3
    DEPTHWISE_CONV_2D = 4
    DEQUANTIZE = 6
    FULLY_CONNECTED = 9
    MUL = 18
    PAD = 34
    MEAN = 40
    QUANTIZE = 114
    HARD_SWISH = 117


OPTIONS = {
    Code.CONV_2D: 1,
    Code.DEPTHWISE_CONV_2D: 2,
    Code.FULLY_CONNECTED: 8,
    Code.ADD: 11,
    Code.MUL: 21,
    Code.MEAN: 27,
}
"""The member of the schema's union ``BuiltinOptions`` that each operator with options has."""

TENSOR_TYPES = {"float32": 0, "int32": 2, "int8": 9}
"""The schema's ``TensorType`` by numpy's name."""


class Activation(IntEnum):
    """The schema's ``ActivationFunctionType``: what can be fused into an operator."""

    NONE = 0
    RELU = 1
    RELU6 = 3


class Padding(IntEnum):
    """The schema's ``Padding``."""

    SAME = 0
    VALID = 1


@dataclass(frozen=True, slots=True)
class Quantization:
    """What stored integers stand for: ``scale * (stored - zero_point)``.

    Attributes:
        scales: One for the tensor, or one for each index along `axis`.
        zero_point: The same for all; 0 where there are several scales.
    """

    scales: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a model.

    Attributes:
        type: As in `TENSOR_TYPES`.
        data: Its values if they are constant, of that type.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray | None = None
    quantization: Quantization | None = None


Options = Mapping[int, int | bool | Activation | Padding]
"""Of an operator, by slot; those that are 0, False or left out are the schema's defaults."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operator applied to tensors, which are given by their numbers."""

    code: Code
    version: int
    inputs: tuple[int, ...]
    output: int
    options: Options


def write_tflite(tensors: Sequence[Tensor], calls: Sequence[Call], image: int, logits: int) -> bytes:
    """A model file: `calls` in the order of their execution, from the tensor `image` to the tensor `logits`.

    The same arguments give the same bytes.
    """
    sizes = sum(tensor.data.nbytes for tensor in tensors if tensor.data is not None)
    builder = flatbuffers.Builder(sizes + (1 << 16))
    constants = [tensor.data for tensor in tensors if tensor.data is not None]
    buffers = [_table(builder, {}), *(_buffer(builder, data) for data in constants)]  # the first is empty by contract
    kinds = sorted({(call.code, call.version) for call in calls})
    subgraph = _subgraph(builder, tensors, calls, kinds, image, logits)
    fields = {
        0: ("uint32", SCHEMA_VERSION),
        1: ("offset", _tables(builder, [_operator_code(builder, *kind) for kind in kinds])),
        2: ("offset", _tables(builder, [subgraph])),
        3: ("offset", builder.CreateString("hanax")),
        4: ("offset", _tables(builder, buffers)),
    }
    builder.Finish(_table(builder, fields), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def _subgraph(
    builder: flatbuffers.Builder,
    tensors: Sequence[Tensor],
    calls: Sequence[Call],
    kinds: Sequence[tuple[Code, int]],
    image: int,
    logits: int,
) -> int:
    n_constants = 0
    written = []
    for tensor in tensors:
        n_constants += tensor.data is not None
        written.append(_tensor(builder, tensor, 0 if tensor.data is None else n_constants))
    fields = {
        0: ("offset", _tables(builder, written)),
        1: ("offset", _numbers(builder, [image], np.int32)),
        2: ("offset", _numbers(builder, [logits], np.int32)),
        3: ("offset", _tables(builder, [_operator(builder, call, kinds) for call in calls])),
        4: ("offset", builder.CreateString("main")),
    }
    return _table(builder, fields)


def _tensor(builder: flatbuffers.Builder, tensor: Tensor, buffer: int) -> int:
    fields = {
        0: ("offset", _numbers(builder, tensor.shape, np.int32)),
        1: ("int8", TENSOR_TYPES[tensor.type]),
        2: ("uint32", buffer),
        3: ("offset", builder.CreateString(tensor.name)),
    }
    if (quantization := tensor.quantization) is not None:
        zero_points = [quantization.zero_point] * len(quantization.scales)
        of_quantization = {
            2: ("offset", _numbers(builder, quantization.scales, np.float32)),
            3: ("offset", _numbers(builder, zero_points, np.int64)),
            6: ("int32", quantization.axis),
        }
        fields[4] = ("offset", _table(builder, of_quantization))
    return _table(builder, fields)


def _operator(builder: flatbuffers.Builder, call: Call, kinds: Sequence[tuple[Code, int]]) -> int:
    fields = {
        0: ("uint32", kinds.index((call.code, call.version))),
        1: ("offset", _numbers(builder, call.inputs, np.int32)),
        2: ("offset", _numbers(builder, [call.output], np.int32)),
    }
    if call.code in OPTIONS:
        options = {slot: (_option_type(value), int(value)) for slot, value in call.options.items()}
        fields |= {3: ("uint8", OPTIONS[call.code]), 4: ("offset", _table(builder, options))}
    return _table(builder, fields)


def _option_type(value: int | bool | Activation | Padding) -> str:
    if isinstance(value, bool):
        return "bool"
    return "int8" if isinstance(value, IntEnum) else "int32"


def _operator_code(builder: flatbuffers.Builder, code: Code, version: int) -> int:
    # Slot 0 is where the code stood when it had to fit a byte; old readers look there.
    return _table(builder, {0: ("int8", code), 2: ("int32", version), 3: ("int32", code)})


def _buffer(builder: flatbuffers.Builder, data: np.ndarray) -> int:
    content = np.ascontiguousarray(data).astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    builder.Prep(DATA_ALIGNMENT, len(content))
    return _table(builder, {0: ("offset", builder.CreateByteVector(content))})


def _table(builder: flatbuffers.Builder, fields: Mapping[int, tuple[str, int]]) -> int:
    """Writes a table of scalars, and of offsets to what was written before; fields are known by slot."""
    prepend = {
        "bool": builder.PrependBoolSlot,
        "int8": builder.PrependInt8Slot,
        "int32": builder.PrependInt32Slot,
        "uint8": builder.PrependUint8Slot,
        "uint32": builder.PrependUint32Slot,
        "offset": builder.PrependUOffsetTRelativeSlot,
    }
    builder.StartObject(max(fields, default=-1) + 1)
    for slot, (kind, value) in fields.items():
        prepend[kind](slot, value, 0)
    return int(builder.EndObject())


def _tables(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _numbers(builder: flatbuffers.Builder, values: Sequence[int] | Sequence[float], dtype: type[np.number]) -> int:
    return int(builder.CreateNumpyVector(np.array(values, dtype=dtype)))
