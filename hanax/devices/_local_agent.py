"""Transport: an agent as a subprocess of this one, spoken to over its stdin and stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Protocol, runtime_checkable

from hanax.devices._specs import DeviceSpec

AGENT_FILE = Path(__file__).with_name("agent.py")
"""The agent's one file."""

MAX_ANSWER_BYTES = 1 << 24
STDERR_TAIL_BYTES = 2000
GRACE_S = 5.0


class AgentError(RuntimeError):
    """A device's agent could not be started, died, hung, or gave an answer that cannot be true.

    Attributes:
        device: Name of the device.
        request: What was asked of it, e.g. ``bench of 0.2.1``.
    """

    def __init__(self, device: str, request: str, problem: str, stderr_tail: str = "") -> None:
        said = f"its stderr ends:\n{stderr_tail}" if stderr_tail else "it wrote nothing to stderr"
        super().__init__(f"{device}: {request}: {problem}; {said}")
        self.device = device
        self.request = request


@runtime_checkable
class Agent(Protocol):
    """An agent in use, wherever it runs. Implementations are context managers: the agent lives inside the ``with``."""

    @property
    def spec(self) -> DeviceSpec:
        """The device it stands for."""

    def request(self, op: str, about: str = "", **fields: object) -> dict[str, Any]:
        """The agent's result for `op`; `about` names the model in errors. Raises AgentError."""

    def fail(self, op: str, about: str, problem: str) -> NoReturn:
        """Raise AgentError for an answer that cannot be true, with what the agent last wrote to stderr."""

    def __enter__(self) -> Agent: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def agent_command(spec: DeviceSpec, python: str = sys.executable) -> list[str]:
    """The command that starts the agent of `spec` in the environment of the interpreter `python`."""
    # -P: the folder of agent.py, which is inside this package, stays off the module path.
    return [python, "-P", "-u", str(AGENT_FILE), "--runtime", spec.runtime, "--threads", str(spec.threads)]


class LocalAgent:
    """An agent in a process of its own: a runtime's crash, hang or leak ends there.

    Args:
        spec: The device.
        command: Starts the agent; by default `agent_command` of `spec`, in this Python environment.
        timeout_s: Longest wait for any answer. The agent is killed after it.
    """

    def __init__(self, spec: DeviceSpec, *, command: Sequence[str] | None = None, timeout_s: float = 120.0) -> None:
        self.spec = spec
        self.command = tuple(command or agent_command(spec))
        self.timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr_reader: threading.Thread | None = None
        self._talker: threading.Thread | None = None
        self._stderr = b""
        self._n_requests = 0

    def __enter__(self) -> LocalAgent:
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us; the agent ends when we do
            )
        except OSError as error:
            raise AgentError(self.spec.name, "start", f"cannot run {self.command[0]}: {error}") from error
        self._stderr_reader = threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True)
        self._stderr_reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running()
        if kind is not None:
            self._kill()
        if not self._is_talking():
            _close(process.stdin)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._kill()
        if not self._is_talking():
            _close(process.stdout)
        if self._stderr_reader is not None:
            self._stderr_reader.join(GRACE_S)

    def _is_talking(self) -> bool:
        """Whether a request's thread still holds the pipes; the death of the agent ends it."""
        if self._talker is not None:
            self._talker.join(GRACE_S)
        return self._talker is not None and self._talker.is_alive()

    def request(self, op: str, about: str = "", **fields: object) -> dict[str, Any]:
        """The agent's result for `op`.

        Args:
            op: The operation; `hanax/devices/agent.py` lists them with their fields.
            about: The model that the request is about, for errors.

        Raises:
            AgentError: The agent died, did not answer in time, answered something else than a JSON answer to this
                request, or refused it.
            RuntimeError: Outside of the ``with`` block.
        """
        process = self._running()
        self._n_requests += 1
        line = json.dumps({"id": self._n_requests, "op": op, **fields}).encode() + b"\n"
        answer = self._exchange(process, line)
        if answer is None:
            self._kill()
            self.fail(op, about, f"no answer within {self.timeout_s:g} s; it was killed")
        if not answer.endswith(b"\n"):
            if len(answer) >= MAX_ANSWER_BYTES:
                self._kill()
                self.fail(op, about, f"it sent more than {MAX_ANSWER_BYTES} bytes without a line's end; it was killed")
            self.fail(op, about, f"it ended instead of answering ({self._exit_status(process)})")
        return self._result(op, about, answer)

    def fail(self, op: str, about: str, problem: str) -> NoReturn:
        """Raise AgentError with what the agent last wrote to stderr."""
        if self._process is not None and self._process.poll() is not None and self._stderr_reader is not None:
            self._stderr_reader.join(GRACE_S)  # dead: everything it wrote is on its way
        tail = self._stderr.decode("utf-8", errors="replace").strip()
        raise AgentError(self.spec.name, f"{op} of {about}" if about else op, problem, tail)

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes) -> bytes | None:
        """One line out, one line back (unfinished if the agent ends); None if that takes longer than the timeout.

        A thread of its own waits, so that neither an agent that does not read nor one that does not write can hold us.
        """
        answers: list[bytes] = []

        def talk() -> None:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except OSError:
                pass  # it is dead, which the end of its stdout tells better
            answers.append(process.stdout.readline(MAX_ANSWER_BYTES))

        self._talker = threading.Thread(target=talk, daemon=True)
        self._talker.start()
        self._talker.join(self.timeout_s)
        return answers[0] if answers else None

    def _result(self, op: str, about: str, line: bytes) -> dict[str, Any]:
        shown = line[:200].decode("utf-8", errors="replace").strip()
        try:
            answer = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            self.fail(op, about, f"its answer is not JSON ({error}): {shown!r}")
        if not isinstance(answer, dict) or answer.get("id") != self._n_requests:
            self.fail(op, about, f"expected the answer to request {self._n_requests}; got {shown!r}")
        if "error" in answer:
            self.fail(op, about, str(answer["error"]))
        if not isinstance(answer.get("result"), dict):
            self.fail(op, about, f"its answer has neither a result nor an error: {shown!r}")
        return dict(answer["result"])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(
                f"{self.spec.name}: the agent is not running; use it inside `with LocalAgent(spec) as agent`"
            )
        return self._process

    def _exit_status(self, process: subprocess.Popen[bytes]) -> str:
        try:
            status = process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return "it closed its stdout and went on; it was killed"
        return f"exit status {status}" if status >= 0 else f"killed by signal {-status}, {signal.strsignal(-status)}"

    def _kill(self) -> None:
        """End the agent at once, and what it started."""
        process = self._running()
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                self._stderr = (self._stderr + chunk)[-STDERR_TAIL_BYTES:]


def _close(stream: IO[bytes] | None) -> None:
    assert stream is not None
    with contextlib.suppress(OSError):  # unsent bytes of a request to a dead agent
        stream.close()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
