from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import hanax.devices.agent
from hanax.devices import DEVICES, AgentError, LocalAgent, agent_command, agent_stats, identify, measure
from hanax.devices import _agent_client as agent_client
from hanax.devices._measure import Method

AGENT = Path(hanax.devices.agent.__file__)
SPEC = DEVICES["onnxruntime-fp32"]
SHAPE = {"model": (1, 1, 8, 8)}
BRIEF = Method(warmup_runs=1, min_rounds=6, max_rounds=6, inner_ms=0.1)


def talk(requests: list[object], command: list[str]) -> list[dict[str, object]]:
    lines = "".join(f"{request if isinstance(request, str) else json.dumps(request)}\n" for request in requests)
    ran = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def put_request(model: bytes, sha256: str | None = None) -> dict[str, object]:
    digest = sha256 or hashlib.sha256(model).hexdigest()
    return {"id": 1, "op": "put", "sha256": digest, "base64": base64.b64encode(model).decode()}


# ---- the agent itself ------------------------------------------------------------------------------------------------


def test_a_bare_python_can_run_the_agent_and_is_told_what_is_missing() -> None:
    bare = [sys.executable, "-I", "-S", "-u", str(AGENT), "--runtime", "onnxruntime", "--threads", "1"]
    put = put_request(b"model")
    load = {"id": 2, "op": "load", "sha256": put["sha256"], "input_shape": [1], "seed": 0}
    info, received, loaded, ended = talk([{"id": 0, "op": "info"}, put, load, {"id": 3, "op": "quit"}], bare)
    assert info["result"]["runtime_version"] is None  # type: ignore[index]
    assert info["result"]["package"] == "onnxruntime"  # type: ignore[index]
    assert received["result"] == {"bytes": 5}
    assert "the Python package onnxruntime is missing" in str(loaded["error"])
    assert ended == {"id": 3, "result": {}}


def test_the_agent_uses_the_standard_library_only() -> None:
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print([m for m in ('numpy', 'hanax') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code, str(AGENT)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ("not JSON", "not a request: 'not JSON"),
        ([1, 2], "not a request"),
        ({"id": 1, "op": "reboot"}, "unknown operation 'reboot'; there are info, put, load, run"),
        ({"id": 1, "op": "put"}, "TypeError"),
        ({"id": 1, "op": "put", "sha256": "0", "base64": "?"}, "not base64"),
        (put_request(b"model", sha256="0" * 64), "wrong checksum: 5 bytes"),
        ({"id": 1, "op": "load", "sha256": "0", "input_shape": [1], "seed": 0}, "no model of sha256 0 was put"),
        ({"id": 1, "op": "bench", "sha256": "0", "inner_ms": 1, "inner_runs": 1}, "no model of sha256 0 is loaded"),
    ],
)
def test_a_wrong_request_gets_an_error_and_the_next_one_an_answer(request_: object, error: str) -> None:
    wrong, right = talk([request_, {"id": 2, "op": "stats"}], agent_command(SPEC))
    assert error in str(wrong["error"])
    assert right["id"] == 2
    assert "result" in right


def test_what_libraries_print_does_not_end_up_between_the_answers() -> None:
    noisy = (
        f"import runpy, os\nagent = runpy.run_path({str(AGENT)!r})\n"
        "def info(self):\n    print('chatter')\n    os.write(1, b'more chatter')\n    return {}\n"
        "agent['Agent'].info = info\nagent['main'](['--runtime', 'xla'])"
    )
    assert talk([{"id": 1, "op": "info"}], [sys.executable, "-c", noisy]) == [{"id": 1, "result": {}}]


def test_memory_is_that_of_the_agent_not_of_its_parent() -> None:
    ballast = bytearray(400 << 20)
    with LocalAgent(SPEC) as agent:
        stats = agent_stats(agent)
    assert len(ballast) == 400 << 20
    assert stats.peak_rss_bytes is not None
    assert 1 << 20 < stats.peak_rss_bytes < 200 << 20


def test_a_model_whose_output_is_not_finite_is_refused(matmul_model: Callable[..., bytes]) -> None:
    with LocalAgent(SPEC) as agent, pytest.raises(AgentError, match=r"load of model: .* is not finite"):
        measure(agent, {"model": matmul_model(2, 8, scale=3e38)}, SHAPE, BRIEF)


def test_a_file_that_is_no_model_is_refused_with_the_runtimes_words() -> None:
    with LocalAgent(SPEC) as agent, pytest.raises(AgentError, match=r"onnxruntime-fp32: load of model: .*rotobuf"):
        measure(agent, {"model": b"not a model"}, SHAPE, BRIEF)


def test_a_wrong_input_shape_is_refused(matmul_model: Callable[..., bytes]) -> None:
    with LocalAgent(SPEC) as agent, pytest.raises(AgentError, match="load of model"):
        measure(agent, {"model": matmul_model(1, 8)}, {"model": (1, 1, 8, 9)}, BRIEF)


def test_an_agent_without_its_runtime_is_refused() -> None:
    command = [sys.executable, "-I", "-S", *agent_command(SPEC)[1:]]
    with LocalAgent(SPEC, command=command) as agent, pytest.raises(AgentError, match="package onnxruntime is missing"):
        identify(agent)


# ---- agents that fail or lie -----------------------------------------------------------------------------------------

LIES = {
    "negative": ("result['runs_ns'][0] = -5", "runs_ns must be a finite number of at least 1; it is -5"),
    "zero": ("result['runs_ns'][0] = 0", "runs_ns must be a finite number of at least 1; it is 0"),
    "not a number": ("result['runs_ns'][0] = float('nan')", "not JSON .NaN is not a number"),
    "infinite": ("result['wall_ns'] = float('inf')", "not JSON .Infinity is not a number"),
    "text": ("result['runs_ns'][0] = 'fast'", "runs_ns must be a finite number of at least 1; it is 'fast'"),
    "true": ("result['runs_ns'][0] = True", "it is True"),
    "no list": ("result['runs_ns'] = 17", "runs_ns must be a list"),
    "nothing": ("result.clear()", "runs_ns must be a list of 1 or more durations; it is None"),
    "no CPU time": ("del result['cpu_ns']", "cpu_ns must be a finite number of at least 0; it is None"),
    "negative CPU time": ("result['cpu_ns'] = -1", "cpu_ns must be a finite number of at least 0; it is -1"),
    "too long": ("result['wall_ns'] = 10**12", "reports a round of 1e.06 ms"),
    "too short": ("if request['inner_ms']: result['wall_ns'] = 10", "reports a round of 1e-05 ms; 0.1 ms were asked"),
    "impossible sum": ("result['runs_ns'] *= 9", "runs of .* ms together in a round of"),
    "refusal": ("answer = {'id': request['id'], 'error': 'no space left'}", "no space left"),
    "no result": ("del answer['result']", "neither a result nor an error"),
    "another request's": ("answer['id'] = 77", "expected the answer to request"),
    "no answer": ("answer = 5", "expected the answer to request"),
    "babble": ("print('Hello! I am a device.')", "not JSON .*Hello! I am a device"),
    "not text": (r"os.write(1, b'\xff\xfe\n')", "not JSON"),
    "deep": ("print('[' * 100000)", "not JSON"),
    "exit": ("sys.exit('out of memory')", r"exit status 1.*(?s:.*)out of memory"),
    "crash": ("os.kill(os.getpid(), 9)", "killed by signal 9"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_agent_that_lies_or_dies_ends_in_an_error(lie: str, lying_agent: Callable[..., LocalAgent]) -> None:
    code, message = LIES[lie]
    with lying_agent(code) as agent, pytest.raises(AgentError, match=message) as error:
        measure(agent, {"model": b"bytes"}, SHAPE, BRIEF)
    assert str(error.value).startswith("onnxruntime-fp32: bench of model: ")
    assert (error.value.device, error.value.request) == ("onnxruntime-fp32", "bench of model")


def test_the_error_shows_what_the_agent_last_wrote_to_stderr(lying_agent: Callable[..., LocalAgent]) -> None:
    lie = "print('x' * 100000 + 'last words', file=sys.stderr)\nsys.exit(3)"
    with lying_agent(lie) as agent, pytest.raises(AgentError, match="exit status 3") as error:
        measure(agent, {"model": b"bytes"}, SHAPE, BRIEF)
    assert str(error.value).endswith("last words")
    assert len(str(error.value)) < 3000


def test_an_honest_fake_passes(lying_agent: Callable[..., LocalAgent]) -> None:
    with lying_agent("pass") as agent:
        assert measure(agent, {"model": b"bytes"}, SHAPE, BRIEF)["model"].latency_ms >= 0.1


def test_a_hanging_agent_is_killed_after_the_timeout(lying_agent: Callable[..., LocalAgent]) -> None:
    started = time.monotonic()
    with (
        lying_agent("time.sleep(1000)", timeout_s=1.0) as agent,
        pytest.raises(AgentError, match="no answer within 1 s"),
    ):
        measure(agent, {"model": b"bytes"}, SHAPE, BRIEF)
    assert time.monotonic() - started < 30


def test_an_agent_that_does_not_read_is_killed_after_the_timeout(lying_agent: Callable[..., LocalAgent]) -> None:
    deaf = lying_agent("print(json.dumps(answer), flush=True)\ntime.sleep(1000)", op="info", timeout_s=2.0)
    with deaf as agent, pytest.raises(AgentError, match="put of model: no answer within 2 s"):
        measure(agent, {"model": bytes(1 << 20)}, SHAPE, BRIEF)


def test_an_agent_that_never_ends_its_line_is_killed(
    lying_agent: Callable[..., LocalAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "MAX_ANSWER_BYTES", 1 << 12)
    with (
        lying_agent("while True: sys.stdout.write('x' * 1000)") as agent,
        pytest.raises(AgentError, match="line's end"),
    ):
        measure(agent, {"model": b"bytes"}, SHAPE, BRIEF)


def test_an_agent_that_closes_its_stdout_is_killed(
    lying_agent: Callable[..., LocalAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "GRACE_S", 0.2)
    with lying_agent("os.close(1)\ntime.sleep(1000)") as agent, pytest.raises(AgentError, match="closed its stdout"):
        measure(agent, {"model": b"bytes"}, SHAPE, BRIEF)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("result['protocol'] = 1", "speaks protocol 1"),
        ("result['runtime'] = 'xla'", "its runtime is 'xla'; onnxruntime-fp32 means 'onnxruntime'"),
        ("result['threads'] = 4", "its threads is 4"),
        ("result['cpu_model'] = 5", "cpu_model must be a text"),
        ("result['cores'] = 0", "cores must be a finite number of at least 1; it is 0"),
    ],
)
def test_an_agent_that_is_another_device_is_refused(
    lie: str, message: str, lying_agent: Callable[..., LocalAgent]
) -> None:
    with lying_agent(lie, op="info") as agent, pytest.raises(AgentError, match=message):
        identify(agent)


def test_a_command_that_does_not_exist_is_named() -> None:
    with (
        pytest.raises(AgentError, match="start: cannot run no-such-program"),
        LocalAgent(SPEC, command=["no-such-program"]),
    ):
        pass


def test_an_agent_outside_its_with_block_is_a_programming_error() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        LocalAgent(SPEC).request("info")
