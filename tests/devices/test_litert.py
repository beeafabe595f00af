"""LiteRT, with XNNPACK and without, computes from our TFLite files what the network computes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from networks import GRAPHS, case

from hanax.devices import DEVICES, RUNTIMES, AgentError, LocalAgent, check_parity, load_model, run_model, runtime_python
from hanax.supernet import to_tflite, to_tflite_int8

MAX_ERROR = 1e-4
"""Of a logit in float32, where the logits spread over about 20."""

MAX_RELATIVE_RMS = 0.2
"""In int8, as a share of the logits' spread: with random weights, the errors of some thirty operators add up."""

PYTHON = runtime_python(RUNTIMES["litert"])
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="the Python package ai_edge_litert is missing; `hanax devices install litert-fp32` adds it"
)


@pytest.fixture(scope="module", params=["litert-fp32", "litert-no-delegate-fp32"])
def float_agent(request: pytest.FixtureRequest) -> Iterator[LocalAgent]:
    with LocalAgent(DEVICES[request.param]) as agent:
        yield agent


@pytest.fixture(scope="module", params=["litert-int8", "litert-no-delegate-int8"])
def integer_agent(request: pytest.FixtureRequest) -> Iterator[LocalAgent]:
    with LocalAgent(DEVICES[request.param]) as agent:
        yield agent


@cache
def integer_model(name: str, brightness: float = 1.0) -> bytes:
    """With scales for images so many times as bright."""
    graph, weights, images, _ = case(name)
    return to_tflite_int8(graph, weights, np.float32(brightness) * images)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_float_model_computes_what_the_network_computes(float_agent: LocalAgent, name: str) -> None:
    graph, weights, images, logits = case(name)
    assert check_parity(float_agent, name, to_tflite(graph, weights), images, logits).max_error <= MAX_ERROR


@pytest.mark.parametrize("name", GRAPHS)
def test_an_integer_model_computes_nearly_what_the_network_computes(integer_agent: LocalAgent, name: str) -> None:
    _, _, images, logits = case(name)
    assert 0 < check_parity(integer_agent, name, integer_model(name), images, logits).relative_rms <= MAX_RELATIVE_RMS


@pytest.mark.parametrize("name", ["random 0", "random 1"])
def test_scales_for_brighter_images_cost_accuracy(integer_agent: LocalAgent, name: str) -> None:
    _, _, images, logits = case(name)
    fine, coarse = (
        check_parity(integer_agent, name, integer_model(name, brightness), images, logits) for brightness in (1.0, 8.0)
    )
    assert fine.relative_rms < coarse.relative_rms / 2


def test_a_model_of_several_images_computes_the_same(float_agent: LocalAgent) -> None:
    graph, weights, images, logits = case("random 0")
    sha256 = load_model(float_agent, "four", to_tflite(graph, weights, batch=4), (4, *graph.input_shape), seed=0)
    np.testing.assert_allclose(run_model(float_agent, "four", sha256, images[:4]), logits[:4], atol=MAX_ERROR)


def test_images_of_another_shape_are_refused(float_agent: LocalAgent) -> None:
    graph, weights, _, _ = case("5 channels of 3 px")
    with pytest.raises(AgentError, match=r"the model takes \[1, 3, 3, 5\], NHWC; got images of \[1, 5, 3, 4\], NCHW"):
        load_model(float_agent, "model", to_tflite(graph, weights), (1, 5, 3, 4), seed=0)


def test_xnnpack_executes_all_but_hard_swish_in_integers(tmp_path: Path) -> None:
    graph, weights, _, _ = case("random 0")
    (tmp_path / "fp32").write_bytes(to_tflite(graph, weights))
    (tmp_path / "int8").write_bytes(integer_model("random 0"))
    code = (
        "import collections, json, sys\nfrom ai_edge_litert.interpreter import Interpreter\n"
        "def count(path):\n    interpreter = Interpreter(path, num_threads=1)\n    interpreter.allocate_tensors()\n"
        "    return collections.Counter(op['op_name'] for op in interpreter._get_ops_details())\n"
        "print(json.dumps([count(path) for path in sys.argv[1:]]))"
    )
    command = [str(PYTHON), "-P", "-c", code, str(tmp_path / "fp32"), str(tmp_path / "int8")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    in_floats, in_integers = json.loads(ran.stdout)
    assert in_floats["DELEGATE"] == 1, "the network is one part"
    assert in_integers["DELEGATE"] == in_integers["HARD_SWISH"] + 1, "hard swishes alone cut it"
