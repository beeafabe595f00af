"""What may be asked of an agent, typed: every answer is checked before anyone computes with it.

Shapes: `r` runs of one round.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from hanax.devices._local_agent import Agent

PROTOCOL = 1
"""The version of the agent's protocol that this client speaks."""

CLOCK_TOLERANCE = 0.01
"""Two machines' clocks may tick this much apart, as a share."""


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What makes two measurements comparable: same machine, same runtime, same way to use it."""

    cpu_model: str
    cores: int
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    batch: int

    @property
    def fingerprint(self) -> str:
        """Hash of all fields, 16 hexadecimal digits. Latency tables carry it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return (
            f"{self.runtime} {self.runtime_version} {self.precision}, {self.threads} thread(s), batch {self.batch}, "
            f"on {self.cpu_model} with {self.cores} core(s)"
        )


@dataclass(frozen=True, slots=True)
class AgentStats:
    """State of an agent's process and machine.

    Attributes:
        peak_rss_bytes: Most memory its process has had resident; None where its system does not say.
        load_average: Runnable processes over the last minute; None where its system does not say.
    """

    peak_rss_bytes: int | None
    load_average: float | None


@dataclass(frozen=True, slots=True)
class Round:
    """One model, run again and again for a moment.

    Attributes:
        runs_ms: Duration of every run.
        wall_ms: Time that passed.
        cpu_ms: CPU time that the agent's process got meanwhile, all threads together.
    """

    runs_ms: Float[np.ndarray, " r"]
    wall_ms: float
    cpu_ms: float

    @property
    def best_ms(self) -> float:
        """The fastest run."""
        return float(self.runs_ms.min())

    @property
    def stolen_share(self) -> float:
        """Share of the time in which the process did not compute: somebody else had the core, or it waited.

        Several threads hide it: they can get more CPU time than time passes.
        """
        return max(0.0, 1.0 - self.cpu_ms / self.wall_ms)


def identify(agent: Agent) -> DeviceIdentity:
    """The device behind `agent`.

    Raises:
        AgentError: Its runtime is not installed, or the agent is not the one that its spec describes.
    """
    result = agent.request("info")
    if result.get("protocol") != PROTOCOL:
        agent.fail("info", "", f"it speaks protocol {result.get('protocol')!r}; this is Hanax with {PROTOCOL}")
    for key, expected in (("runtime", agent.spec.runtime), ("threads", agent.spec.threads)):
        if result.get(key) != expected:
            agent.fail("info", "", f"its {key} is {result.get(key)!r}; {agent.spec.name} means {expected!r}")
    if result.get("runtime_version") is None:
        agent.fail("info", "", f"the Python package {result.get('package')} is missing in its environment")
    return DeviceIdentity(
        cpu_model=_text(agent, "info", result, "cpu_model"),
        cores=int(_number(agent, "info", "", result, "cores", at_least=1)),
        runtime=agent.spec.runtime,
        runtime_version=_text(agent, "info", result, "runtime_version"),
        precision=agent.spec.precision,
        threads=agent.spec.threads,
        batch=agent.spec.batch,
    )


def load_model(agent: Agent, name: str, model: bytes, input_shape: Sequence[int], seed: int) -> str:
    """Send `model`, have it compiled and run once on random normal input; returns its sha256, which names it there.

    Args:
        name: For errors.
        input_shape: ``(batch, channels, height, width)``.
        seed: Of the random input.

    Raises:
        AgentError: The model did not arrive, load or run.
    """
    sha256 = hashlib.sha256(model).hexdigest()
    agent.request("put", name, sha256=sha256, base64=base64.b64encode(model).decode("ascii"))
    agent.request("load", name, sha256=sha256, input_shape=list(input_shape), seed=seed)
    return sha256


def run_round(agent: Agent, name: str, sha256: str, *, inner_ms: float, inner_runs: int) -> Round:
    """Run a loaded model for at least `inner_ms` and at least `inner_runs` times.

    Raises:
        AgentError: The numbers cannot be true: not positive, not finite, fewer than asked for, runs that take longer
            than the round, or a round that takes longer than it took to wait for it.
    """
    asked = time.perf_counter()
    result = agent.request("bench", name, sha256=sha256, inner_ms=inner_ms, inner_runs=inner_runs)
    waited_ms = (time.perf_counter() - asked) * 1e3
    runs = result.get("runs_ns")
    if not isinstance(runs, list) or len(runs) < inner_runs:
        agent.fail("bench", name, f"runs_ns must be a list of {inner_runs} or more durations; it is {_short(runs)}")
    for run in runs:
        _number(agent, "bench", name, {"runs_ns": run}, "runs_ns", at_least=1)
    wall_ms = _number(agent, "bench", name, result, "wall_ns", at_least=1) / 1e6
    cpu_ms = _number(agent, "bench", name, result, "cpu_ns", at_least=0) / 1e6
    runs_ms = np.array(runs, dtype=np.float64) / 1e6
    if not inner_ms * (1 - CLOCK_TOLERANCE) <= wall_ms <= waited_ms * (1 + CLOCK_TOLERANCE) + 1:
        agent.fail(
            "bench",
            name,
            f"it reports a round of {wall_ms:g} ms; {inner_ms:g} ms were asked and {waited_ms:.3f} waited",
        )
    if runs_ms.sum() > wall_ms * (1 + 1e-6):
        agent.fail("bench", name, f"it reports runs of {runs_ms.sum():g} ms together in a round of {wall_ms:g} ms")
    return Round(runs_ms, wall_ms, cpu_ms)


def unload_model(agent: Agent, name: str, sha256: str) -> None:
    """Have a model forgotten.

    Raises:
        AgentError: The agent failed.
    """
    agent.request("unload", name, sha256=sha256)


def agent_stats(agent: Agent) -> AgentStats:
    """Memory and load where the agent runs.

    Raises:
        AgentError: The agent failed, or the numbers cannot be true.
    """
    result = agent.request("stats")
    peak, load = (
        None if result.get(key) is None else _number(agent, "stats", "", result, key, at_least=least)
        for key, least in (("peak_rss_bytes", 1), ("load_average", 0))
    )
    return AgentStats(None if peak is None else int(peak), load)


def _number(agent: Agent, op: str, about: str, result: dict[str, Any], key: str, *, at_least: int) -> float:
    value = result.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < at_least:
        agent.fail(op, about, f"{key} must be a finite number of at least {at_least}; it is {_short(value)}")
    return float(value)


def _text(agent: Agent, op: str, result: dict[str, Any], key: str) -> str:
    value = result.get(key)
    if not isinstance(value, str) or not value:
        agent.fail(op, "", f"{key} must be a text; it is {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
