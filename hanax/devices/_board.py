"""Measuring from a bundle: what ``python3 run.py`` does on a machine without network, and the file that it leaves.

Standard library only, and of any Python from 3.8 on: this file travels in bundles. Its siblings there are the agent,
the client that asks it, and the measurement method's rules, the same files that Hanax itself uses.

The results are a JSONL file of events. Each line is on disk before the next measurement begins and carries a checksum
of itself and all lines before it: a line that was cut, changed, lost or moved is seen. After a power cut, the last line
may be torn; it is dropped, and what it was about is measured again.

==========  =======================================================================================================
event       fields beside ``event`` and ``check``
==========  =======================================================================================================
begin       format, manifest (sha256 of the bundle's manifest.json)
device      device, info (the agent's answer); each time that an agent starts
asked       device, arch; before a measurement
net         device, arch, pass (1, 2, ...), rounds (`RoundTimes`), stats (the agent's answer), batch, elapsed_ns
            (of its batch), measured_at
failure     device, arch, problem
==========  =======================================================================================================
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hanax.devices._agent_client import AgentClient, AgentError, ProcessTransport, refuse_constant
from hanax.devices._rounds import ImpossibleAnswerError, RoundTimes, check_round, interleaved_rounds

FORMAT = "hanax.results/1"
MANIFEST_FILE = "manifest.json"
RESULTS_FILE = "results.jsonl"
MODELS_FOLDER = "models"
AGENT_FILE = "hanax/devices/agent.py"


class ResultsError(ValueError):
    """A results file cannot be used; the message says where and why."""


class NetFailure(Exception):
    """One network could not be measured."""

    def __init__(self, arch: str, problem: str) -> None:
        super().__init__(problem)
        self.arch = arch


class DeviceName(NamedTuple):
    """What the agent's client needs to know of a device."""

    name: str


# ---- the results file ------------------------------------------------------------------------------------------------


def parse_results(content: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The events of a results file, and what a power cut left of a last line.

    Raises:
        ResultsError: A line is damaged; says which.
    """
    events: list[dict[str, Any]] = []
    check = ""
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return events, line
        try:
            event = json.loads(line, parse_constant=refuse_constant)
            found = event.pop("check")
            check = chained(check, event)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise ResultsError(f"line {number} is damaged: {error!r} in {line[:80]!r}") from error
        if found != check:
            raise ResultsError(
                f"line {number} was changed, or a line before it is missing: its checksum is {found!r}, and that of "
                f"what is there {check!r}"
            )
        events.append(event)
    return events, b""


def chained(check: str, event: dict[str, Any]) -> str:
    """The checksum of `event` after a line with checksum `check`."""
    return hashlib.sha256((check + json.dumps(event, sort_keys=True)).encode()).hexdigest()[:16]


class ResultsLog:
    """A results file that is being written. Use it inside a ``with``.

    Raises:
        ResultsError: The file is damaged, belongs to another bundle, or another process writes to it.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path, manifest_sha256: str) -> None:
        self.path = path
        self._manifest_sha256 = manifest_sha256
        self.n_passes: Counter[tuple[str, str]] = Counter()
        self.failed: set[tuple[str, str]] = set()
        self.n_batches = 0
        self._check = ""
        self._stream: FileIO | None = None

    def __enter__(self) -> ResultsLog:
        # Unbuffered: what a full disk refuses must not be written later, after the next line.
        self._stream = self.path.open("a+b", buffering=0)
        try:
            self._lock()
            self._resume()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stream is not None
        self._stream.close()

    def append(self, event: str, **fields: object) -> None:
        """Add an event; on disk when this returns. A line that could not be written whole is taken back."""
        assert self._stream is not None
        body = {"event": event, **fields}
        check = chained(self._check, body)
        size = self._stream.seek(0, os.SEEK_END)
        try:
            line = json.dumps({**body, "check": check}, allow_nan=False).encode() + b"\n"
            while line:
                line = line[self._stream.write(line) :]
            os.fsync(self._stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise
        self._check = check
        self._note(body)

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "net":
            self.n_passes[event["device"], event["arch"]] += 1
            self.n_batches = max(self.n_batches, event["batch"] + 1)
        elif event["event"] == "failure":
            self.failed.add((event["device"], event["arch"]))

    def _resume(self) -> None:
        assert self._stream is not None
        self._stream.seek(0)
        content = self._stream.read()
        events, torn = parse_results(content)
        if torn:
            self._stream.truncate(len(content) - len(torn))
        if not events:
            self.append("begin", format=FORMAT, manifest=self._manifest_sha256)
            return
        if events[0].get("event") != "begin" or events[0].get("manifest") != self._manifest_sha256:
            raise ResultsError(f"{self.path} holds the results of another bundle; move it away or use --results")
        for event in events:
            self._check = chained(self._check, event)
            self._note(event)

    def _lock(self) -> None:
        """Held until the process ends, however it does."""
        assert self._stream is not None
        try:
            fcntl = importlib.import_module("fcntl")
        except ModuleNotFoundError:
            return  # Windows
        try:
            fcntl.flock(self._stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResultsError(f"another run.py is writing to {self.path}") from error


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure_device(
    device: Mapping[str, Any],
    manifest: Mapping[str, Any],
    folder: Path,
    log: ResultsLog,
    command: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Measure the networks of `device` that `log` lacks, pass by pass; one that fails is noted and left out.

    Args:
        command: Starts the agent.

    Raises:
        AgentError: The device cannot be measured at all.
        OSError: The results cannot be written.
    """
    name = device["name"]
    nets = [net for net in manifest["nets"] if net["device"] == name]
    for number in range(1, manifest["passes"] + 1):
        # As drawn for the bundle in the first pass, in another order in each later one.
        order = nets if number == 1 else random.Random(f"{manifest['method']['seed']} {number}").sample(nets, len(nets))
        method = SimpleNamespace(**{**manifest["method"], "seed": manifest["method"]["seed"] + number - 1})
        measure_pass(device, number, order, manifest, method, folder, log, command, say)


def measure_pass(
    device: Mapping[str, Any],
    number: int,
    nets: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    method: Any,
    folder: Path,
    log: ResultsLog,
    command: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """One pass over `nets`, in batches, by an agent of its own; see `measure_device`."""
    name = device["name"]

    def missing() -> list[Mapping[str, Any]]:
        keys = [(name, net["arch"]) for net in nets]
        return [net for net, key in zip(nets, keys) if log.n_passes[key] < number and key not in log.failed]  # noqa: B905

    while missing():
        try:
            with AgentClient(DeviceName(name), ProcessTransport(command), manifest["timeout_s"]) as agent:
                info = agent.request("info")
                if info.get("runtime_version") is None:
                    agent.fail("info", "", f"`{sys.executable} -m pip install {device['install']}` is needed first")
                log.append("device", device=name, info=info)
                while batch := missing()[: manifest["batch_size"]]:
                    for event in measure_batch(agent, batch, folder, method, log):
                        log.append("net", device=name, **{"pass": number}, **event)
                    say(f"{name}, pass {number}: {len(nets) - len(missing())} of {len(nets)} networks done")
        except NetFailure as failure:
            log.append("failure", device=name, arch=failure.arch, problem=str(failure))
            say(f"{name}: network {failure.arch} is left out: {failure}")


def measure_batch(
    agent: AgentClient[DeviceName],
    nets: Sequence[Mapping[str, Any]],
    folder: Path,
    method: Any,
    log: ResultsLog,
) -> list[dict[str, Any]]:
    """The events of networks that are measured in turn. Raises NetFailure for the one that failed."""
    batch = log.n_batches
    for net in nets:
        log.append("asked", device=net["device"], arch=net["arch"])
    for net in nets:
        load(agent, net, folder, method.seed)
    models = {net["arch"]: net["model"] for net in nets}
    agent.request("stats")  # the share that others had of the machine is since then
    started = time.perf_counter_ns()

    def run_round(arch: str, inner_ms: float, inner_runs: int) -> RoundTimes:
        asked = time.perf_counter_ns()
        try:
            answer = agent.request("bench", arch, sha256=models[arch], inner_ms=inner_ms, inner_runs=inner_runs)
            return check_round(answer, inner_ms, inner_runs, time.perf_counter_ns() - asked)
        except (AgentError, ImpossibleAnswerError) as error:
            raise NetFailure(arch, str(error)) from error

    rounds = interleaved_rounds(list(models), method, run_round)
    elapsed_ns = time.perf_counter_ns() - started
    stats = agent.request("stats")
    for arch, model in models.items():
        agent.request("unload", arch, sha256=model)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - datetime.UTC needs Python 3.11
    return [
        {
            "arch": arch,
            "rounds": [round_._asdict() for round_ in rounds[arch]],
            "stats": stats,
            "batch": batch,
            "elapsed_ns": elapsed_ns,
            "measured_at": now,
        }
        for arch in models
    ]


def load(agent: AgentClient[DeviceName], net: Mapping[str, Any], folder: Path, seed: int) -> None:
    """Have a network's model loaded. The agent compares its checksum. Raises NetFailure."""
    path = folder / MODELS_FOLDER / net["model"]
    try:
        content = base64.b64encode(path.read_bytes()).decode("ascii")
        agent.request("put", net["arch"], sha256=net["model"], base64=content)
        agent.request("load", net["arch"], sha256=net["model"], input_shape=net["input_shape"], seed=seed)
    except (AgentError, OSError) as error:
        raise NetFailure(net["arch"], str(error)) from error


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Measure what the bundle in `folder` asks for; returns the exit status: 0 if all of it is done.

    Given again after an interruption, it goes on where it was.
    """
    parser = argparse.ArgumentParser(description="Measures the networks of this bundle on this machine; resumable.")
    parser.add_argument("--python", default=sys.executable, help="the Python that has the runtime; this one by default")
    parser.add_argument("--device", action="append", help="only this one of the bundle's devices; may be repeated")
    parser.add_argument("--retry", action="store_true", help="try networks again that failed and were left out")
    parser.add_argument("--results", type=Path, default=folder / RESULTS_FILE, help="the file to write")
    options = parser.parse_args(arguments)
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        manifest = json.loads(content)
    except (OSError, ValueError) as error:
        parser.error(f"{folder / MANIFEST_FILE} cannot be read ({error}); unpack the bundle again")
    names = [device["name"] for device in manifest["devices"]]
    if unknown := [name for name in options.device or () if name not in names]:
        parser.error(f"this bundle has no device {unknown[0]!r}; it has {', '.join(names)}")

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        with ResultsLog(options.results, hashlib.sha256(content).hexdigest()) as log:
            if options.retry:
                log.failed.clear()
            for device in manifest["devices"]:
                if device["name"] not in (options.device or names):
                    continue
                agent = [str(folder / AGENT_FILE), "--runtime", device["runtime"], "--threads", str(device["threads"])]
                try:
                    measure_device(device, manifest, folder, log, [options.python, "-B", "-u", *agent], say)
                except AgentError as error:
                    say(f"{device['name']} cannot be measured here: {error}")
            n_done, n_failed = sum(log.n_passes.values()), len(log.failed)
            n_all = len(manifest["nets"]) * manifest["passes"]
    except ResultsError as error:
        say(f"error: {options.results}: {error}")
        return 2
    except OSError as error:
        say(f"error: {options.results} cannot be written: {error}; what was measured before is kept")
        return 2
    except KeyboardInterrupt:
        say(f"Stopped. {options.results} keeps what was measured; give the same command to go on.")
        return 130
    left_out = f", {n_failed} networks were left out" if n_failed else ""
    say(f"{n_done} of {n_all} measurements are in {options.results}{left_out}. Bring that file back.")
    return 0 if n_done == n_all else 1
