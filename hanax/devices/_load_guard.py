"""The load guard: looks at what else a device's machine does, waits a stated time for quiet, and then says or refuses.

Other work disturbs a measurement even where it takes no time from it: it takes cache, memory bandwidth and clock speed.
So the guard looks at the share of the cores that everybody else has, not only at the time that was stolen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hanax.devices._local_agent import Agent
from hanax.devices._requests import agent_stats

WhenBusy = Literal["wait", "warn", "refuse"]


class BusyMachineError(RuntimeError):
    """A machine is too busy to be measured and refusing was asked for; the message says how busy."""


@dataclass(frozen=True, slots=True)
class LoadGuard:
    """How quiet a machine must be, and what to do when it is not.

    Attributes:
        when_busy: ``wait``: wait for quiet, then measure all the same and say so. ``warn``: measure at once and say so.
            ``refuse``: wait for quiet, then raise `BusyMachineError`; also when the quiet ends in between.
        wait_s: Longest wait, in all and not each time, so that a machine that never rests costs this much once.
        max_busy_share: Quiet is when others have at most this share of the cores the agent may run on.
        probe_s: How long a look at the machine takes.

    Raises:
        ValueError: A setting makes no sense; says which.
    """

    when_busy: WhenBusy = "wait"
    wait_s: float = 60.0
    max_busy_share: float = 0.1
    probe_s: float = 0.5

    def __post_init__(self) -> None:
        if self.when_busy not in ("wait", "warn", "refuse"):
            raise ValueError(f"when_busy must be wait, warn or refuse; got {self.when_busy!r}")
        if not 0 <= self.wait_s < float("inf"):
            raise ValueError(f"wait_s must be at least 0 and finite; got {self.wait_s}")
        if not 0 < self.max_busy_share <= 1:
            raise ValueError(f"max_busy_share must be above 0 and at most 1; got {self.max_busy_share}")
        if not 0 < self.probe_s < float("inf"):
            raise ValueError(f"probe_s must be a positive number; got {self.probe_s}")


class LoadWatch:
    """A guard on duty: over one collection, with what is left of its patience.

    Args:
        say: Gets a sentence whenever the machine turns out to be busy, or cannot say whether it is.
        sleep: Waits; for tests.
    """

    def __init__(
        self,
        guard: LoadGuard,
        say: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.guard = guard
        self._say = say
        self._sleep = sleep
        self._left_s = 0.0 if guard.when_busy == "warn" else guard.wait_s
        self._knows_unknown = False
        self._was_busy = False

    def settle(self, agent: Agent) -> None:
        """Return when the machine of `agent` is quiet, or when patience is at its end.

        Raises:
            BusyMachineError: It is still busy and the guard refuses.
            AgentError: The agent failed.
        """
        busy = self._probe(agent)
        if busy is None:
            if not self._knows_unknown:
                self._say(f"{agent.spec.name}: its system does not say what else it does; nothing is waited for")
            self._knows_unknown = True
            return
        if self._is_quiet(busy):
            self._was_busy = False
            return
        waited_s = 0.0
        if self._left_s > 0:
            self._say(f"{self._finding(agent, busy)}; waiting up to {self._left_s:.0f} s for quiet")
        while busy is not None and not self._is_quiet(busy) and self._left_s > 0:
            self._left_s -= self.guard.probe_s
            waited_s += self.guard.probe_s
            busy = self._probe(agent)
        if busy is None or self._is_quiet(busy):
            self._was_busy = False
            return
        self._still_busy(agent, f"{self._finding(agent, busy)}, after waiting {waited_s:.0f} s")

    def judge(self, agent: Agent, busy_share: float | None) -> None:
        """Take note of how busy others were while `agent` measured.

        Raises:
            BusyMachineError: Too busy, and the guard refuses.
        """
        if busy_share is not None and not self._is_quiet(busy_share):
            self._still_busy(agent, f"{self._finding(agent, busy_share)} while it was measured")

    def _still_busy(self, agent: Agent, finding: str) -> None:
        if self.guard.when_busy == "refuse":
            raise BusyMachineError(f"{finding}; nothing is measured like that, as was asked")
        if not self._was_busy:
            self._say(f"{finding}; measuring all the same: rounds with stolen time are rejected, others may be slow")
        self._was_busy = True

    def _finding(self, agent: Agent, busy_share: float) -> str:
        return (
            f"{agent.spec.name}: other processes have {busy_share:.0%} of the cores it may run on "
            f"(quiet is at most {self.guard.max_busy_share:.0%})"
        )

    def _is_quiet(self, busy_share: float) -> bool:
        return busy_share <= self.guard.max_busy_share

    def _probe(self, agent: Agent) -> float | None:
        """The busy share over a moment in which the agent itself rests; None where its system does not say."""
        if agent_stats(agent).busy_share is None:
            return None
        self._sleep(self.guard.probe_s)
        return agent_stats(agent).busy_share
