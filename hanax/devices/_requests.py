"""What may be asked of an agent, typed: every answer is checked before anyone computes with it.

Shapes: `r` runs of one round.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from hanax.devices._local_agent import Agent
from hanax.devices._rounds import ImpossibleAnswerError, RoundTimes, check_number, check_round, shortened

PROTOCOL = 2
"""The version of the agent's protocol that this client speaks."""


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
        busy_share: Share of the cores it may run on that others had since the last time it was asked, 0 to 1: other
            processes, interrupts, the hypervisor. None where its system does not say.
        busy_over_s: The time that `busy_share` is of; 0 where that is None.
    """

    peak_rss_bytes: int | None
    load_average: float | None
    busy_share: float | None
    busy_over_s: float


STAGES = ("preprocess", "copy", "compute", "postprocess")
"""From a byte image to the best class: the parts of an inference, in order."""


@dataclass(frozen=True, slots=True)
class StagesRound:
    """One model, run end to end again and again for a moment.

    Attributes:
        runs_ms: Duration of every part (`STAGES`) of every run.
        wall_ms: Time that passed.
        cpu_ms: CPU time that the agent's process got meanwhile, all threads together.
    """

    runs_ms: Float[np.ndarray, "r 4"]
    wall_ms: float
    cpu_ms: float

    @property
    def best_ms(self) -> float:
        """The fastest run, all parts together."""
        return float(self.runs_ms.sum(axis=1).min())

    @property
    def stolen_share(self) -> float:
        """As of a `Round`."""
        return max(0.0, 1.0 - self.cpu_ms / self.wall_ms)


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

    @classmethod
    def of(cls, times: RoundTimes) -> Round:
        """The round that was timed."""
        return cls(np.array(times.runs_ns, dtype=np.float64) / 1e6, times.wall_ns / 1e6, times.cpu_ns / 1e6)


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
        agent.fail("info", "", f"the package {result.get('package')} is missing in its environment")
    return DeviceIdentity(
        cpu_model=_text(agent, "info", result, "cpu_model"),
        cores=int(_number(agent, "info", result, "cores", at_least=1)),
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
    asked = time.perf_counter_ns()
    result = agent.request("bench", name, sha256=sha256, inner_ms=inner_ms, inner_runs=inner_runs)
    waited_ns = time.perf_counter_ns() - asked
    try:
        return Round.of(check_round(result, inner_ms, inner_runs, waited_ns))
    except ImpossibleAnswerError as error:
        agent.fail("bench", name, str(error))


def run_stages(
    agent: Agent, name: str, sha256: str, *, inner_ms: float, inner_runs: int, image_size: int
) -> StagesRound:
    """Run a loaded model end to end, from byte images of `image_size` pixels a side, as long as `run_round` does.

    Raises:
        AgentError: As of `run_round`; or the runtime's parts cannot be told apart.
    """
    asked = time.perf_counter_ns()
    result = agent.request(
        "stages", name, sha256=sha256, inner_ms=inner_ms, inner_runs=inner_runs, image_size=image_size
    )
    waited_ns = time.perf_counter_ns() - asked
    runs = result.get("runs_ns")
    try:
        for run in runs if isinstance(runs, list) else []:
            if not isinstance(run, list) or len(run) != len(STAGES):
                raise ImpossibleAnswerError(
                    f"a run must be {len(STAGES)} durations ({', '.join(STAGES)}); it is {shortened(run)}"
                )
            for part in run:
                check_number({"runs_ns": part}, "runs_ns", at_least=0)
        totals = [sum(run) for run in runs] if isinstance(runs, list) else runs
        times = check_round(result | {"runs_ns": totals}, inner_ms, inner_runs, waited_ns)
    except ImpossibleAnswerError as error:
        agent.fail("stages", name, str(error))
    return StagesRound(np.array(runs, dtype=np.float64) / 1e6, times.wall_ns / 1e6, times.cpu_ns / 1e6)


def count_runs(agent: Agent, name: str, sha256: str, runs: int) -> int:
    """Instructions of `runs` inferences of a loaded model together.

    Raises:
        AgentError: The agent cannot count, or the number cannot be true.
    """
    result = agent.request("count", name, sha256=sha256, runs=runs)
    instructions = _number(agent, "count", result, "instructions", at_least=1, about=name)
    if not instructions.is_integer():
        agent.fail("count", name, f"instructions must be a whole number; it is {instructions!r}")
    return int(instructions)


def run_model(
    agent: Agent, name: str, sha256: str, images: Float32[np.ndarray, "n c h w"]
) -> Float32[np.ndarray, "n classes"]:
    """What a loaded model computes for `images`, as many as it takes at a time: its only output.

    Raises:
        AgentError: The agent failed, or the answer is not one array of finite numbers per image.
    """
    content = base64.b64encode(np.ascontiguousarray(images, dtype="<f4").tobytes()).decode("ascii")
    result = agent.request("run", name, sha256=sha256, base64=content, shape=list(images.shape))
    try:
        (output,) = result["outputs"]
        values = np.frombuffer(base64.b64decode(output["base64"], validate=True), dtype="<f4")
        values = values.reshape(output["shape"]).reshape(len(images), -1).astype(np.float32)
    except (KeyError, TypeError, ValueError) as error:
        agent.fail("run", name, f"its answer is not one output per image ({error}); it is {shortened(result)}")
    if not np.isfinite(values).all():
        agent.fail("run", name, "its output is not finite")
    return values


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
    peak, load, busy = (
        None if result.get(key) is None else _number(agent, "stats", result, key, at_least=least)
        for key, least in (("peak_rss_bytes", 1), ("load_average", 0), ("busy_share", 0))
    )
    if busy is not None and busy > 1:
        agent.fail("stats", "", f"busy_share must be from 0 to 1; it is {busy:g}")
    over_s = 0.0 if busy is None else _number(agent, "stats", result, "busy_over_s", at_least=0)
    return AgentStats(None if peak is None else int(peak), load, busy, over_s)


def _number(agent: Agent, op: str, result: dict[str, Any], key: str, *, at_least: int, about: str = "") -> float:
    try:
        return check_number(result, key, at_least)
    except ImpossibleAnswerError as error:
        agent.fail(op, about, str(error))


def _text(agent: Agent, op: str, result: dict[str, Any], key: str) -> str:
    value = result.get(key)
    if not isinstance(value, str) or not value:
        agent.fail(op, "", f"{key} must be a text; it is {shortened(value)}")
    return value
