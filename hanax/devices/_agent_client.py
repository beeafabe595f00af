"""Asking an agent: a JSON line out, one back, over any transport; and the transport that is a process of this machine.

Standard library only, and of any Python from 3.8 on: this file travels in bundles, to boards that have nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Generic, NoReturn, Protocol, TypeVar, runtime_checkable

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


class TransportError(RuntimeError):
    """An agent cannot be reached; the text says why, and what would help."""


@runtime_checkable
class Transport(Protocol):
    """How bytes get to an agent and back, and how it is started and ended. Used once, by one thread."""

    def start(self) -> None:
        """Start the agent. Raises TransportError."""

    def exchange(self, line: bytes, timeout_s: float) -> bytes | None:
        """One line out, one line back; None if that takes longer than `timeout_s`.

        The answer lacks its line's end if the agent ended, or if it reached `MAX_ANSWER_BYTES` without one.
        """

    def kill(self) -> None:
        """End the agent at once, and what it started; nothing if it has ended."""

    def close(self) -> None:
        """Tell the agent that nothing more will be asked, wait until it has ended, or kill it after `GRACE_S`."""

    def ending(self) -> str:
        """How the agent ended, after an answer that lacks its end."""

    def stderr_tail(self) -> str:
        """What the agent last wrote to stderr."""


@runtime_checkable
class Named(Protocol):
    """What a client needs to know of a device."""

    @property
    def name(self) -> str:
        """For errors."""


SpecT = TypeVar("SpecT", bound=Named)


class AgentClient(Generic[SpecT]):
    """An agent behind a transport. It lives inside the ``with``; an error there kills it.

    Args:
        spec: The device it stands for.
        transport: The way to it.
        timeout_s: Longest wait for any answer. The agent is killed after it.
    """

    def __init__(self, spec: SpecT, transport: Transport, timeout_s: float = 120.0) -> None:
        self.spec = spec
        self.timeout_s = timeout_s
        self._transport = transport
        self._is_started = False
        self._n_requests = 0

    def __enter__(self) -> AgentClient[SpecT]:
        try:
            self._transport.start()
        except TransportError as error:
            raise AgentError(self.spec.name, "start", str(error), self._transport.stderr_tail()) from error
        self._is_started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._transport.kill()
        self._transport.close()

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
        if not self._is_started:
            name = type(self).__name__
            raise RuntimeError(
                f"{self.spec.name}: the agent is not running; use it inside `with {name}(spec, ...) as agent`"
            )
        self._n_requests += 1
        line = json.dumps({"id": self._n_requests, "op": op, **fields}).encode() + b"\n"
        answer = self._transport.exchange(line, self.timeout_s)
        if answer is None:
            self._transport.kill()
            self.fail(op, about, f"no answer within {self.timeout_s:g} s; it was killed")
        if not answer.endswith(b"\n"):
            if len(answer) >= MAX_ANSWER_BYTES:
                self._transport.kill()
                self.fail(op, about, f"it sent more than {MAX_ANSWER_BYTES} bytes without a line's end; it was killed")
            self.fail(op, about, f"it ended instead of answering ({self._transport.ending()})")
        return self._result(op, about, answer)

    def fail(self, op: str, about: str, problem: str) -> NoReturn:
        """Raise AgentError with what the agent last wrote to stderr."""
        request = f"{op} of {about}" if about else op
        raise AgentError(self.spec.name, request, problem, self._transport.stderr_tail())

    def _result(self, op: str, about: str, line: bytes) -> dict[str, Any]:
        shown = line[:200].decode("utf-8", errors="replace").strip()
        try:
            answer = json.loads(line, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            self.fail(op, about, f"its answer is not JSON ({error}): {shown!r}")
        if not isinstance(answer, dict) or answer.get("id") != self._n_requests:
            self.fail(op, about, f"expected the answer to request {self._n_requests}; got {shown!r}")
        if "error" in answer:
            self.fail(op, about, str(answer["error"]))
        if not isinstance(answer.get("result"), dict):
            self.fail(op, about, f"its answer has neither a result nor an error: {shown!r}")
        return dict(answer["result"])


class ProcessTransport:
    """An agent as a subprocess of this one, spoken to over its stdin and stdout.

    Args:
        command: Starts the agent.
        meanings: What an exit status of the command means, where that helps: appended to `ending`.
    """

    def __init__(self, command: Sequence[str], meanings: dict[int, str] | None = None) -> None:
        self.command = tuple(command)
        self.meanings = meanings or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr_reader: threading.Thread | None = None
        self._talker: threading.Thread | None = None
        self._stderr = b""

    def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C is for us, and the agent ends when we do."""
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise TransportError(f"cannot run {self.command[0]}: {error}") from error
        self._stderr_reader = threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True)
        self._stderr_reader.start()

    def exchange(self, line: bytes, timeout_s: float) -> bytes | None:
        """A thread of its own waits: neither an agent that does not read nor one that does not write can hold us."""
        process, answers = self._started(), []

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
        self._talker.join(timeout_s)
        return answers[0] if answers else None

    def kill(self) -> None:
        """Kill the process and those that it started."""
        process = self._started()
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()

    def close(self) -> None:
        """Close its stdin and wait for it; the death of the agent ends a request's thread that holds the pipes."""
        process = self._started()
        if not self._is_talking():
            _close(process.stdin)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        if not self._is_talking():
            _close(process.stdout)
        if self._stderr_reader is not None:
            self._stderr_reader.join(GRACE_S)

    def ending(self) -> str:
        """Its exit status or signal."""
        try:
            status = self._started().wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it closed its stdout and went on; it was killed"
        if status < 0:
            return f"killed by signal {-status}, {signal.strsignal(-status)}"
        return f"exit status {status}" + (f": {self.meanings[status]}" if status in self.meanings else "")

    def stderr_tail(self) -> str:
        """What it last wrote to stderr; all of it once the process is dead."""
        if self._process is not None and self._process.poll() is not None and self._stderr_reader is not None:
            self._stderr_reader.join(GRACE_S)
        return self._stderr.decode("utf-8", errors="replace").strip()

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "start comes first"
        return self._process

    def _is_talking(self) -> bool:
        if self._talker is not None:
            self._talker.join(GRACE_S)
        return self._talker is not None and self._talker.is_alive()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                self._stderr = (self._stderr + chunk)[-STDERR_TAIL_BYTES:]


def _close(stream: IO[bytes] | None) -> None:
    assert stream is not None
    with contextlib.suppress(OSError):  # unsent bytes of a request to a dead agent
        stream.close()


def refuse_constant(name: str) -> NoReturn:
    """For `json.loads`: NaN and the infinities, which JSON does not have, are errors."""
    raise ValueError(f"{name} is not a number")
