from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hanax.devices import DEVICES, DeviceIdentity, LocalAgent
from hanax.search_spaces import SearchSpace, mobilenet_v3

SPACE: dict[str, Any] = {
    "resolutions": (8, 16),
    "n_classes": 4,
    "image_channels": 1,
    "kernel_sizes": (3, 5),
    "expand_ratios": (3, 6),
    "depths": (1, 2),
    "stem_width": 8,
    "stem_stride": 1,
    "stage_widths": (8, 16),
    "stage_strides": (1, 2),
    "stage_activations": ("relu", "hswish"),
    "stage_squeeze_excite": (False, True),
    "head_width": 16,
    "feature_width": 16,
}

FAKE_AGENT = """
import json, os, sys, time

def honest(request):
    op = request["op"]
    if op == "info":
        machine = {"cpu_model": "x", "cores": 2}
        return {"protocol": 2, "runtime": "onnxruntime", "runtime_version": "1", "threads": 1, **machine}
    if op == "bench":
        started = now = time.perf_counter_ns()
        runs = []
        while now < started + request["inner_ms"] * 1e6 or len(runs) < request["inner_runs"]:
            time.sleep(1e-4)
            runs.append(time.perf_counter_ns() - now)
            now += runs[-1]
        return {"runs_ns": runs, "wall_ns": now - started, "cpu_ns": now - started}
    if op == "stats":
        return {"peak_rss_bytes": 1000, "load_average": 0.5}
    return {}

for line in sys.stdin:
    request = json.loads(line)
    answer = {"id": request["id"], "result": honest(request)}
    result = answer["result"]
    if request["op"] == %(op)r:
%(lie)s
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return mobilenet_v3(**SPACE)


@pytest.fixture(scope="session")
def space_code() -> str:
    """The `space` fixture as an expression, for scripts."""
    return f"mobilenet_v3(**{SPACE!r})"


@pytest.fixture(scope="session")
def identity() -> DeviceIdentity:
    return DeviceIdentity("Test CPU", 2, "onnxruntime", "1.20.0", "fp32", 1, 1)


@pytest.fixture(scope="session")
def matmul_model() -> Callable[..., bytes]:
    """An ONNX file that multiplies its input, shape (1, channels, side, side), by a square matrix `n` times."""

    def build(n: int, side: int, channels: int = 1, scale: float = 1.0) -> bytes:
        matrix = np.full((side, side), scale / side, dtype=np.float32)
        names = ["image", *(f"product{step}" for step in range(1, n + 1))]
        graph = helper.make_graph(
            [helper.make_node("MatMul", [a, "matrix"], [b]) for a, b in itertools.pairwise(names)],
            "products",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, side, side])],
            [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [1, channels, side, side])],
            [numpy_helper.from_array(matrix, "matrix")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())

    return build


@pytest.fixture(scope="session")
def lying_program() -> Callable[..., str]:
    """The source of an agent that executes `lie` (Python that may change `answer` and `result`) when asked for `op`."""

    def build(lie: str, op: str = "bench") -> str:
        return FAKE_AGENT % {"op": op, "lie": "\n".join(f"        {line}" for line in lie.splitlines())}

    return build


@pytest.fixture
def lying_agent(lying_program: Callable[..., str], tmp_path: Path) -> Callable[..., LocalAgent]:
    """The agent of `lying_program`, in a process of this machine."""

    def build(lie: str, op: str = "bench", timeout_s: float = 20.0) -> LocalAgent:
        script = tmp_path / "fake_agent.py"
        script.write_text(lying_program(lie, op))
        command = [sys.executable, "-u", str(script)]
        return LocalAgent(DEVICES["onnxruntime-fp32"], command=command, timeout_s=timeout_s)

    return build
