"""Architectures as ncnn models, written layer by layer from the graph with batch norms folded.

An ncnn model is two files: ``model.param``, a text with a line per layer, and ``model.bin``, the weights in that order.
Layers are those that ncnn's own optimizer would leave: ReLU and hard swish are fused into the convolution or inner
product before them, and a 1x1 convolution of a pooled vector is an inner product.

A blob (ncnn's word for a tensor) has one reader; where the graph has several, a ``Split`` names a blob for each.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence

from hanax.search_spaces import INPUT, Activation, Graph, Operator
from hanax.supernet._weights import Weights, fold_batch_norm, n_classes

MAGIC = 7767517
"""What every ``.param`` file of the present format begins with."""

IMAGE, LOGITS = "image", "logits"

RAW_FLOAT32 = bytes(4)
"""Before a kernel in ``.bin``: what follows is float32 as it is."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The least date of a zip archive. No file has another, so that equal models are equal bytes."""

Parameter = int | float | tuple[float, ...]
Parameters = Mapping[int, Parameter]
"""Of a layer, by ncnn's number; those left out have ncnn's defaults."""

HARD = (1 / 6, 0.5)
"""Slope and offset of the hard sigmoid, alone or in a hard swish."""

FUSED: dict[Activation, Parameters] = {"none": {}, "relu": {9: 1}, "hswish": {9: 6, 10: HARD}}
"""What tells a layer with a kernel to activate its output."""

ACTIVATIONS: dict[Activation, tuple[str, Parameters]] = {
    "relu": ("ReLU", {}),
    "hswish": ("HardSwish", {0: HARD[0], 1: HARD[1]}),
    "hsigmoid": ("HardSigmoid", {0: HARD[0], 1: HARD[1]}),
}
"""Layers of their own that activate."""


def to_ncnn(graph: Graph, weights: Weights, *, batch: int = 1) -> bytes:
    """An ncnn model: a float32 normalised image (channels, height, width) as ``image`` in, ``logits`` (classes,) out.

    It is a zip archive, without compression, of ``model.param`` and ``model.bin``. The same arguments give the same
    bytes.

    Args:
        batch: Images to run one after another, as ncnn has no batches. The archive's comment says how many, so that
            models for other batches have other checksums.

    Raises:
        ValueError: The weights do not fit the graph, it does not end with a dense layer, or an operator has no form in
            ncnn.
        UncalibratedError: A batch norm has no statistics.
    """
    n_classes(graph)
    writer = _Writer(graph, fold_batch_norm(graph, weights))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as files:
        files.writestr(zipfile.ZipInfo("model.param", EPOCH), writer.param())
        files.writestr(zipfile.ZipInfo("model.bin", EPOCH), b"".join(writer.kernels))
        files.comment = f"batch {batch}".encode("ascii")
    return archive.getvalue()


class _Writer:
    """Collects the layers and the weights of one model."""

    def __init__(self, graph: Graph, folded: Weights) -> None:
        self.folded = folded
        self.lines: list[str] = []
        self.kernels: list[bytes] = []
        self.n_blobs = 0
        self.n_readers = Counter(name for op in graph.operators for name in op.inputs)
        self.unread: dict[str, list[str]] = {}  # by operator: the blobs that hold its output
        self.vectors: set[str] = set()  # operators whose output has no height and width
        channels, height, width = graph.input_shape
        self._layer("Input", IMAGE, (), (IMAGE,), {0: width, 1: height, 2: channels})
        self._share(INPUT, IMAGE)
        for op in graph.operators:
            self._lower(op, LOGITS if op is graph.operators[-1] else op.name)

    def param(self) -> bytes:
        """The content of ``model.param``."""
        return "\n".join([str(MAGIC), f"{len(self.lines)} {self.n_blobs}", *self.lines, ""]).encode("ascii")

    def _lower(self, op: Operator, blob: str) -> None:
        inputs = [self.unread[name].pop(0) for name in op.inputs]
        kind, parameters = self._layer_of(op)
        if kind in ("Pooling", "InnerProduct") or self.vectors.issuperset(op.inputs):
            self.vectors.add(op.name)
        if op.activation == "none" or (op.is_weighted and op.activation in FUSED):
            self._layer(kind, op.name, inputs, [blob], {**parameters, **FUSED[op.activation]})
        else:
            raw = f"{op.name}.raw"
            self._layer(kind, op.name, inputs, [raw], parameters)
            activation, parameters = ACTIVATIONS[op.activation]
            self._layer(activation, f"{op.name}.{op.activation}", [raw], [blob], parameters)
        self._share(op.name, blob)

    def _layer_of(self, op: Operator) -> tuple[str, Parameters]:
        """The kind of layer that `op` is, less its activation, with its parameters; keeps its weights."""
        if op.kind == "global_pool":
            return "Pooling", {0: 1, 4: 1}
        if not op.is_weighted:
            return "BinaryOp", {0: 0 if op.kind == "add" else 2}
        kernel, bias = (self.folded[op.name][entry].astype("<f4") for entry in ("kernel", "bias"))
        self.kernels += [RAW_FLOAT32, kernel.tobytes(), bias.tobytes()]
        width, is_vector = op.out_shape[0], op.inputs[0] in self.vectors
        if op.kind == "dense" or (is_vector and op.kernel_size == op.groups == 1):
            return "InnerProduct", {0: width, 1: 1, 2: kernel.size}
        if is_vector:
            raise ValueError(
                f"{op.name}: ncnn has no {op.kernel_size}x{op.kernel_size} convolution in {op.groups} groups of a "
                f"pooled vector; only 1x1 in one group, which is an inner product"
            )
        shape = {0: width, 1: op.kernel_size, 3: op.stride, 4: op.kernel_size // 2, 5: 1, 6: kernel.size}
        if op.groups == 1:
            return "Convolution", shape
        return "ConvolutionDepthWise", shape | {7: op.groups}

    def _share(self, name: str, blob: str) -> None:
        """Gives every reader of the operator `name` a blob."""
        n_readers = self.n_readers[name]
        self.unread[name] = [blob] if n_readers < 2 else [f"{blob}.copy{reader}" for reader in range(n_readers)]
        if n_readers > 1:
            self._layer("Split", f"{blob}.split", [blob], self.unread[name], {})

    def _layer(
        self, kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], parameters: Parameters
    ) -> None:
        self.n_blobs += len(outputs)
        counts = [str(len(inputs)), str(len(outputs))]
        entries = [_entry(number, value) for number, value in sorted(parameters.items())]
        self.lines.append(" ".join([kind, name, *counts, *inputs, *outputs, *entries]))


def _entry(number: int, value: Parameter) -> str:
    """A parameter as text. Floats have an exponent, by which ncnn knows them; arrays their own range of numbers."""
    if isinstance(value, tuple):
        return f"{-23300 - number}={','.join([str(len(value)), *(f'{element:.9e}' for element in value)])}"
    return f"{number}={value:.9e}" if isinstance(value, float) else f"{number}={value}"
