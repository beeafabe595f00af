"""Whether the worker that evaluates a trial still lives: what it signs its trials with, and who may call it dead."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

WORKER = "worker"
"""User attribute of a trial: who evaluates it, as `signature` gives it."""

HEARTBEAT = "heartbeat"
"""User attribute of a running trial: a number that its worker raises from time to time."""

HEARTBEAT_S = 10.0
"""Time between two heartbeats."""

MISSED_BEATS = 6
"""A worker that is this many heartbeats late is dead, unless the storage was away."""


def signature(name: str, heartbeat_s: float) -> dict[str, Any]:
    """What a worker called `name` in this process signs its trials with."""
    process = os.getpid()
    return {
        "name": name,
        "host": socket.gethostname(),
        "process": process,
        "machine": _machine(),
        "started": _start(process),
        "heartbeat_s": heartbeat_s,
    }


def is_gone(signed: Mapping[str, Any]) -> bool:
    """Whether the process with this signature was one of this machine and is no more; False where nobody here knows."""
    return bool(
        signed["machine"] is not None
        and signed["machine"] == _machine()
        and _start(signed["process"]) != signed["started"]
    )


class Watch:
    """Finds running trials whose worker is dead.

    A worker of this machine is dead when its process is. Any other one is when its heartbeat has not changed for
    `MISSED_BEATS` of its intervals by this process's own clock, so that clocks need not agree. Time during which the
    storage was away counts for nobody.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def dead(self, running: Sequence[FrozenTrial], back_since: float) -> list[FrozenTrial]:
        """The ones of `running`, all the running trials of others, whose worker is dead.

        Args:
            back_since: When the storage was last found back, by the monotonic clock.
        """
        now = time.monotonic()
        seen, self._seen = self._seen, {}
        dead = []
        for trial in running:
            signed = trial.user_attrs.get(WORKER)
            sign_of_life = (signed, trial.user_attrs.get(HEARTBEAT), len(trial.params))
            last, since = seen.get(trial.number, (None, now))
            since = max(since, back_since) if last == sign_of_life else now
            self._seen[trial.number] = (sign_of_life, since)
            interval_s = HEARTBEAT_S if signed is None else signed["heartbeat_s"]
            if now - since > MISSED_BEATS * interval_s or (signed is not None and is_gone(signed)):
                dead.append(trial)
        return dead


def _machine() -> str | None:
    """What is the same for processes that see each other by number; None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    except OSError:
        return None


def _start(process: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
