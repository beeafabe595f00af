from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn

import pytest

from hanax.devices import DEVICES, AgentError, BusyMachineError, DeviceSpec, LoadGuard, LoadWatch
from hanax.devices.agent import BusyShare


class BusyAgent:
    """Its machine is as busy as scripted, one value per look; the last one stays."""

    def __init__(self, *shares: float | None) -> None:
        self.shares = list(shares)
        self.asked = 0

    @property
    def spec(self) -> DeviceSpec:
        return DEVICES["onnxruntime-fp32"]

    def request(self, op: str, about: str = "", **fields: object) -> dict[str, Any]:
        assert op == "stats"
        self.asked += 1
        # Two requests a look: the first only starts the clock.
        share = self.shares[min((self.asked - 1) // 2, len(self.shares) - 1)]
        return {"peak_rss_bytes": 1, "load_average": 1.0, "busy_share": share, "busy_over_s": 0.5}

    def fail(self, op: str, about: str, problem: str) -> NoReturn:
        raise AgentError("scripted", op, problem)

    def __enter__(self) -> BusyAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Duty:
    """A watch whose sentences and naps are recorded."""

    def __init__(self, guard: LoadGuard) -> None:
        self.said: list[str] = []
        self.slept_s = 0.0
        self.watch = LoadWatch(guard, self.said.append, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds


def test_a_quiet_machine_is_measured_at_once_without_a_word() -> None:
    duty = Duty(LoadGuard())
    duty.watch.settle(BusyAgent(0.1))
    assert (duty.said, duty.slept_s) == ([], 0.5)


def test_a_busy_machine_is_waited_for_until_it_is_quiet() -> None:
    duty = Duty(LoadGuard(wait_s=60.0))
    agent = BusyAgent(0.9, 0.8, 0.05)
    duty.watch.settle(agent)
    assert duty.slept_s == 1.5
    assert duty.said == [
        "onnxruntime-fp32: other processes have 90% of the cores it may run on (quiet is at most 10%); waiting up to "
        "60 s for quiet"
    ]


def test_a_machine_that_never_rests_is_waited_for_once_in_all_and_then_measured_with_one_warning() -> None:
    duty = Duty(LoadGuard(wait_s=10.0))
    for _ in range(5):
        duty.watch.settle(BusyAgent(0.6))
    assert duty.slept_s == 10 + 5 * 0.5
    assert len(duty.said) == 2
    assert "60%" in duty.said[1]
    assert "after waiting 10 s; measuring all the same" in duty.said[1]


def test_a_machine_that_turns_busy_again_is_spoken_of_again() -> None:
    duty = Duty(LoadGuard("warn"))
    for share in (0.6, 0.6, 0.0, 0.7):
        duty.watch.settle(BusyAgent(share))
    assert [text.split(" of the cores")[0][-3:] for text in duty.said] == ["60%", "70%"]


def test_warn_does_not_wait() -> None:
    duty = Duty(LoadGuard("warn", wait_s=60.0))
    duty.watch.settle(BusyAgent(0.6))
    assert duty.slept_s == 0.5
    assert "after waiting 0 s; measuring all the same" in duty.said[0]


def test_refuse_waits_and_then_raises() -> None:
    duty = Duty(LoadGuard("refuse", wait_s=2.0))
    duty.watch.settle(BusyAgent(0.6, 0.0))
    with pytest.raises(BusyMachineError, match=r"other processes have 60% .* nothing is measured like that"):
        duty.watch.settle(BusyAgent(0.6))
    assert duty.slept_s <= 2 + 2 * 0.5


def test_a_machine_that_got_busy_while_it_was_measured_is_judged() -> None:
    duty = Duty(LoadGuard("warn"))
    for share in (0.05, None, 0.3):
        duty.watch.judge(BusyAgent(0.0), share)
    assert len(duty.said) == 1
    assert "30% of the cores" in duty.said[0]
    assert "while it was measured" in duty.said[0]
    with pytest.raises(BusyMachineError, match="while it was measured"):
        Duty(LoadGuard("refuse")).watch.judge(BusyAgent(0.0), 0.3)


def test_a_system_that_does_not_say_is_not_waited_for_and_that_is_said_once() -> None:
    duty = Duty(LoadGuard("refuse"))
    for _ in range(3):
        duty.watch.settle(BusyAgent(None))
    assert duty.slept_s == 0
    assert duty.said == ["onnxruntime-fp32: its system does not say what else it does; nothing is waited for"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"when_busy": "hope"}, "(?s)when_busy.*hope"),
        ({"wait_s": float("inf")}, "wait_s must be at least 0 and finite; got inf"),
        ({"max_busy_share": 0.0}, "max_busy_share must be above 0 and at most 1; got 0.0"),
        ({"probe_s": 0.0}, "probe_s must be a positive number; got 0.0"),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LoadGuard(**wrong)


# ---- what the agent sees of the machine ------------------------------------------------------------------------------


class ScriptedShare(BusyShare):
    """Counters and cores as scripted."""

    def __init__(self, cores: Sequence[int], *counters: tuple[float, float | None, float]) -> None:
        self.script: Iterator[tuple[float, float | None, float]] = iter(counters)
        self.allowed = cores
        super().__init__()

    def counters(self) -> tuple[float, float | None, float]:
        return next(self.script)

    def cores(self) -> Sequence[int]:
        return self.allowed


def test_the_busy_share_is_what_others_took_of_the_cores_that_the_agent_may_use() -> None:
    share = ScriptedShare([0, 3], (100.0, 50.0, 2.0), (110.0, 62.0, 9.0), (112.0, 63.0, 10.0))
    assert share.since_last() == (0.25, 10.0)  # 12 s busy, 7 of them its own, of 2 cores times 10 s
    assert share.since_last() == (0.0, 2.0)


def test_a_system_that_hides_its_counters_gives_no_share() -> None:
    assert ScriptedShare([0], (0.0, None, 0.0), (4.0, None, 1.0)).since_last() == (None, 4.0)


SPIN = "import os; os.sched_setaffinity(0, {%d})\nwhile True: pass"
NEEDS_PROC = pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system has no /proc/stat")


class OneCore(BusyShare):
    """Looks at one core only."""

    def cores(self) -> Sequence[int]:
        return [min(os.sched_getaffinity(0))]


@NEEDS_PROC
def test_a_process_of_somebody_else_that_spins_on_the_agents_core_is_seen() -> None:
    start = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=-3).pid)"
    spin = SPIN % min(os.sched_getaffinity(0))
    # Its parent ends at once, so that it is no descendant of this process.
    started = subprocess.run([sys.executable, "-c", start, spin], stdout=subprocess.PIPE, check=True)
    try:
        share = OneCore()
        time.sleep(0.5)
        busy, over_s = share.since_last()
    finally:
        os.kill(int(started.stdout), signal.SIGKILL)
    assert busy is not None
    assert busy > 0.5
    assert over_s >= 0.5


@NEEDS_PROC
def test_work_of_a_process_that_the_agent_started_is_its_own() -> None:
    share = OneCore()
    with subprocess.Popen([sys.executable, "-c", SPIN % min(os.sched_getaffinity(0))]) as process:
        deadline = time.monotonic() + 30
        own_s = 0.0
        while own_s < 0.1 and time.monotonic() < deadline:
            time.sleep(0.05)
            own_s = share.counters()[2] - share.last[2]
        process.kill()
    assert own_s >= 0.1
