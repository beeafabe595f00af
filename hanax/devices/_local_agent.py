"""What an agent is to those who ask it, and the agent that is a process of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, runtime_checkable

from hanax.devices._agent_client import AgentClient, ProcessTransport
from hanax.devices._agent_client import AgentError as AgentError
from hanax.devices._runtimes import RUNTIMES, RuntimeMissingError, runtime_python
from hanax.devices._specs import DeviceSpec, install_command

AGENT_FILE = Path(__file__).with_name("agent.py")
"""The agent's one file."""


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


def agent_command(spec: DeviceSpec, python: str | None = None) -> list[str]:
    """The command that starts the agent of `spec`.

    Args:
        python: The interpreter; by default the one that has the runtime, here or in a worker.

    Raises:
        RuntimeMissingError: No interpreter has the runtime.
    """
    runtime = RUNTIMES[spec.runtime]
    if python is None:
        python = runtime_python(runtime)
        if python is None:
            raise RuntimeMissingError(f"{spec.name}: {runtime.what} is missing; `{install_command(spec)}` adds it")
    # -P: the folder of agent.py, which is inside this package, stays off the module path.
    command = [python, "-P", "-u", str(AGENT_FILE), *agent_options(spec)]
    return [*command, "--node-path", str(runtime.worker / "node_modules")] if runtime.npm else command


def agent_options(spec: DeviceSpec) -> list[str]:
    """What the agent of `spec` is told on its command line."""
    return ["--runtime", spec.runtime, "--threads", str(spec.threads)]


class LocalAgent(AgentClient[DeviceSpec]):
    """An agent in a process of its own: a runtime's crash, hang or leak ends there.

    Args:
        spec: The device.
        command: Starts the agent; by default `agent_command` of `spec`.
        timeout_s: Longest wait for any answer. The agent is killed after it.
    """

    def __init__(self, spec: DeviceSpec, *, command: Sequence[str] | None = None, timeout_s: float = 120.0) -> None:
        self.command = tuple(command or agent_command(spec))
        super().__init__(spec, ProcessTransport(self.command), timeout_s)
