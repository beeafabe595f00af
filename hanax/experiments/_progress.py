"""What a person sees while a run works: one line per stage, and a bar with the time left in the long ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Progress = Callable[[int, int], None]
"""Called with how many parts are done, and of how many."""

PLAIN_INTERVAL_S = 15.0
"""Time between two lines of a stage where there is no terminal to draw a bar on."""


class Reporter(Protocol):
    """Shows how a run gets on."""

    def say(self, text: str) -> None:
        """Show a line."""

    def bar(self, label: str) -> Progress:
        """A new bar; call what comes back as the work proceeds."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def bar(self, label: str) -> Progress:
        """Return a function that does nothing."""
        return lambda done, total: None


class Terminal:
    """Lines and bars by rich on a terminal; plain lines with the time left where the output goes elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)
        self._bars: object = None

    def say(self, text: str) -> None:
        """Show a line."""
        self._console.print(text, markup=False)

    def bar(self, label: str) -> Progress:
        """A bar or, without a terminal, a line every `PLAIN_INTERVAL_S`."""
        return self._rich_bar(label) if self._console.is_terminal else self._plain_bar(label)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the bars on the screen meanwhile."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        with self._progress:
            yield

    def _rich_bar(self, label: str) -> Progress:
        task = self._progress.add_task(label, total=None)

        def advance(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total, visible=done < total)

        return advance

    def _plain_bar(self, label: str) -> Progress:
        first: int | None = None
        started = last_said = 0.0

        def advance(done: int, total: int) -> None:
            nonlocal first, started, last_said
            now = time.monotonic()
            if first is None:
                first, started, last_said = done, now, now
            if now - last_said < PLAIN_INTERVAL_S or done >= total:
                return
            last_said = now
            left = (now - started) / max(done - first, 1) * (total - done)
            self.say(f"    {label}: {done} of {total}, {duration(now - started)} so far, about {duration(left)} left")

        return advance


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
