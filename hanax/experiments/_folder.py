"""The folder of a run: stages that are done once, go on after a crash, and are redone when what they need changed.

A stage is known by its key, a hash of its settings and of the keys of the stages it needs. ``stages/NAME/done.json`` is
written last and atomically, so a stage is either finished under its key or not. What an unfinished stage left is
kept when its key is the same (it resumes from it) and deleted when it is not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from hanax._files import InUseError, locked, write_atomically

FORMAT = 1
"""Part of every key; raised when a stage's result changes its meaning."""

QUANTIZED_SUPERNET = "quantized-supernet"
"""The stage in which a supernet is trained on in number formats; only some runs have it."""

StageState = Literal["done", "unfinished", "out of date", "not started"]


class RunFolderError(RuntimeError):
    """The folder of a run cannot be used."""


@dataclass(frozen=True)
class Stage:
    """A step of a run.

    Attributes:
        name: Also the name of its folder; may contain ``/``.
        settings: Everything in the configuration and the data that decides the result; JSON values.
        needs: Names of the stages whose results it reads.
        run: Does the work in the folder it is given; must be able to resume from what an interrupted call left there.
    """

    name: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...]
    run: Callable[[Path], None]


class RunFolder:
    """A run's folder, locked for one process; a context manager.

    Raises:
        RunFolderError: It cannot be created or written to, or another process works in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> RunFolder:
        self._lock = locked(self.path, self.path / ".lock")
        try:
            self._lock.__enter__()
        except InUseError as error:
            raise RunFolderError(str(error)) from None
        except OSError as error:
            raise RunFolderError(
                f"cannot write to the run folder {self.path}: {error.strerror}; choose another with --out"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return stage_folder(self.path, name)

    def is_done(self, stage: Stage, key: str) -> bool:
        """Whether `stage` is done under `key`."""
        return bool(_read(self.stage(stage.name) / "done.json").get("key") == key)

    def execute(self, stage: Stage, key: str) -> bool:
        """Do `stage` unless it is done under `key`; returns whether anything was done."""
        folder = self.stage(stage.name)
        if self.is_done(stage, key):
            return False
        if folder.exists() and _read(folder / "started.json").get("key") != key:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        earlier_s = float(_read(folder / "started.json").get("seconds", 0.0))
        started = time.monotonic()
        _write(folder / "started.json", {"key": key, "seconds": earlier_s})
        try:
            stage.run(folder)
        finally:
            seconds = earlier_s + time.monotonic() - started
            _write(folder / "started.json", {"key": key, "seconds": seconds})
        _write(folder / "done.json", {"key": key, "seconds": round(seconds, 2)})
        return True

    def forget(self, names: Sequence[str]) -> None:
        """Delete the results of stages, so that they are done again."""
        for name in names:
            shutil.rmtree(self.stage(name), ignore_errors=True)

    def write_plan(self, stages: Sequence[Stage]) -> None:
        """Note which stages there are, for `stage_states`."""
        plan = [{"name": name, "key": key} for name, key in stage_keys(stages).items()]
        write_atomically(self.path / "plan.json", json.dumps(plan, indent=1).encode())


def stage_folder(run: Path, name: str) -> Path:
    """Where the stage called `name` keeps its results in the folder of a run."""
    return run / "stages" / name


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """The key of every stage, in order."""
    keys: dict[str, str] = {}
    for stage in stages:
        content = [FORMAT, stage.name, dict(stage.settings), [keys[name] for name in stage.needs]]
        keys[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return keys


def stage_states(run: Path) -> list[tuple[str, StageState, float]]:
    """Name, state and seconds of every stage of the run in folder `run`.

    Raises:
        RunFolderError: There is no run in it.
    """
    try:
        plan = json.loads((run / "plan.json").read_text())
    except FileNotFoundError:
        raise RunFolderError(f"{run} holds no run; start one with `hanax run FILE --out {run}`") from None
    return [(entry["name"], *_state(run, entry["name"], entry["key"])) for entry in plan]


def _state(run: Path, name: str, key: str) -> tuple[StageState, float]:
    done, started = (_read(stage_folder(run, name) / file) for file in ("done.json", "started.json"))
    if done:
        return ("done" if done["key"] == key else "out of date"), float(done["seconds"])
    if started:
        return ("unfinished" if started["key"] == key else "out of date"), float(started["seconds"])
    return "not started", 0.0


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content).encode())
