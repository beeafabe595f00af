"""ncnn files are consistent in themselves; no runtime is needed.

What ncnn computes from them is tested in `tests/devices/test_ncnn.py`.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from networks import SPACE

from hanax.search_spaces import INPUT, Graph, Operator
from hanax.supernet._ncnn import to_ncnn
from hanax.supernet._weights import UncalibratedError, fold_batch_norm, random_weights

GRAPH = SPACE.graph(SPACE.largest)
WEIGHTS = random_weights(GRAPH, np.random.default_rng(0))
HALF = f"{0.5:.9e}"
SIXTH = f"{1 / 6:.9e}"


class Layer:
    """A line of ``model.param``."""

    def __init__(self, line: str) -> None:
        self.kind, self.name, n_inputs, n_outputs, *rest = line.split()
        end = int(n_inputs) + int(n_outputs)
        self.inputs, self.outputs = rest[: int(n_inputs)], rest[int(n_inputs) : end]
        self.parameters = dict(entry.split("=") for entry in rest[end:])


def read(model: bytes) -> tuple[list[str], list[Layer], bytes]:
    """The two lines that ``model.param`` begins with, its layers, and ``model.bin``."""
    with zipfile.ZipFile(io.BytesIO(model)) as files:
        assert files.namelist() == ["model.param", "model.bin"]
        assert {entry.compress_type for entry in files.infolist()} == {zipfile.ZIP_STORED}
        lines = files.read("model.param").decode().splitlines()
        return lines[:2], [Layer(line) for line in lines[2:]], files.read("model.bin")


def test_the_counts_are_those_of_the_layers_and_of_their_blobs() -> None:
    (magic, counts), layers, _ = read(to_ncnn(GRAPH, WEIGHTS))
    assert magic == "7767517"
    assert counts == f"{len(layers)} {sum(len(layer.outputs) for layer in layers)}"
    assert len({layer.name for layer in layers}) == len(layers)


def test_a_blob_is_written_once_and_read_once_after_that() -> None:
    unread: set[str] = set()
    written: set[str] = set()
    _, layers, _ = read(to_ncnn(GRAPH, WEIGHTS))
    for layer in layers:
        assert unread.issuperset(layer.inputs), f"{layer.name} reads what is not there, or somebody else's"
        unread.difference_update(layer.inputs)
        assert not written.intersection(layer.outputs)
        written.update(layer.outputs)
        unread.update(layer.outputs)
    assert unread == {"logits"}
    assert "Split" in {layer.kind for layer in layers}


def test_the_weights_are_the_folded_ones_in_the_order_of_the_layers() -> None:
    _, layers, content = read(to_ncnn(GRAPH, WEIGHTS))
    folded, position = fold_batch_norm(GRAPH, WEIGHTS), 0
    size_of = {"Convolution": "6", "ConvolutionDepthWise": "6", "InnerProduct": "2"}
    weighted = [layer for layer in layers if layer.kind in size_of]
    assert [layer.name for layer in weighted] == list(folded)
    for layer in weighted:
        kernel, bias = folded[layer.name]["kernel"], folded[layer.name]["bias"]
        assert layer.parameters["0"] == str(bias.size)
        assert layer.parameters[size_of[layer.kind]] == str(kernel.size)
        assert content[position : position + 4] == bytes(4), "raw float32"
        values = np.frombuffer(content, "<f4", kernel.size + bias.size, position + 4)
        np.testing.assert_array_equal(values, np.concatenate([kernel.ravel(), bias]))
        position += 4 + values.nbytes
    assert position == len(content)


def test_activations_are_fused_where_ncnn_fuses_them() -> None:
    _, layers, _ = read(to_ncnn(GRAPH, WEIGHTS))
    by_name = {layer.name: layer for layer in layers}
    for op in GRAPH.operators:
        parameters = by_name[op.name].parameters
        if op.activation == "relu":
            assert parameters["9"] == "1"
        elif op.activation == "hswish":
            assert (parameters["9"], parameters["-23310"]) == ("6", f"2,{SIXTH},{HALF}")
        elif op.is_weighted:
            assert "9" not in parameters
    gates = [layer for layer in layers if layer.kind == "HardSigmoid"]
    assert len(gates) == sum(op.activation == "hsigmoid" for op in GRAPH.operators)
    assert all(layer.parameters == {"0": SIXTH, "1": HALF} for layer in gates)


def test_what_cannot_be_fused_is_a_layer() -> None:
    graph = Graph(
        (2, 3, 3),
        (
            Operator("twice", "add", (INPUT, INPUT), (2, 3, 3), (2, 3, 3), activation="hswish"),
            Operator("squared", "multiply", ("twice", "twice"), (2, 3, 3), (2, 3, 3), activation="relu"),
            Operator("pool", "global_pool", ("squared",), (2, 3, 3), (2, 1, 1)),
            Operator("classify", "dense", ("pool",), (2, 1, 1), (3, 1, 1)),
        ),
    )
    _, layers, _ = read(to_ncnn(graph, random_weights(graph, np.random.default_rng(0))))
    assert [layer.kind for layer in layers] == [
        "Input", "Split", "BinaryOp", "HardSwish", "Split", "BinaryOp", "ReLU", "Pooling", "InnerProduct",
    ]  # fmt: skip


def test_the_same_network_gives_the_same_bytes_and_another_batch_others() -> None:
    assert to_ncnn(GRAPH, WEIGHTS) == to_ncnn(GRAPH, WEIGHTS)
    assert to_ncnn(GRAPH, WEIGHTS, batch=4) != to_ncnn(GRAPH, WEIGHTS)
    assert read(to_ncnn(GRAPH, WEIGHTS, batch=4))[2] == read(to_ncnn(GRAPH, WEIGHTS))[2]


def test_a_convolution_of_a_vector_that_ncnn_does_not_have_is_refused() -> None:
    graph = Graph(
        (2, 3, 3),
        (
            Operator("pool", "global_pool", (INPUT,), (2, 3, 3), (2, 1, 1)),
            Operator("wide", "conv", ("pool",), (2, 1, 1), (2, 1, 1), kernel_size=3),
            Operator("classify", "dense", ("wide",), (2, 1, 1), (3, 1, 1)),
        ),
    )
    with pytest.raises(ValueError, match="wide: ncnn has no 3x3 convolution in 1 groups of a pooled vector"):
        to_ncnn(graph, random_weights(graph, np.random.default_rng(0)))


def test_weights_without_statistics_are_refused() -> None:
    weights = {name: dict(entries) for name, entries in WEIGHTS.items()}
    del weights["stem.conv"]["variance"]
    with pytest.raises(UncalibratedError):
        to_ncnn(GRAPH, weights)
