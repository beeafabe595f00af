"""Where files go, and files that survive a crash: each is its old or its new version, or lines that are whole.

Crashes are one danger to a file, a second process that writes to it is the other: see `locked`.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class InUseError(RuntimeError):
    """Another process works on a file or in a folder."""


def cache_folder() -> Path:
    """Where Hanax keeps what can be made again: ``$HANAX_CACHE``, by default ``~/.cache/hanax``."""
    return Path(os.environ.get("HANAX_CACHE") or Path.home() / ".cache" / "hanax")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: all of it or, after a crash at any moment, nothing of it.

    Raises:
        OSError: The folder does not exist or cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


@contextmanager
def locked(path: Path, lock: Path | None = None) -> Iterator[None]:
    """Keep other processes from `path`, a file that may be yet to come or a folder, while the block lasts.

    The lock ends with the process, however that ends. On Windows nothing is locked.

    Args:
        lock: The file that is locked, and stays; ``.NAME.lock`` beside `path` by default.

    Raises:
        InUseError: Another process has it; says which.
        OSError: The folder cannot be written to.
    """
    lock = path.with_name(f".{path.name}.lock") if lock is None else lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as stream:
        try:
            fcntl = importlib.import_module("fcntl")
        except ModuleNotFoundError:
            yield
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise InUseError(f"{path} is in use by process {holder}; wait for it or choose another") from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last one that a crash cut short is dropped, from the file too."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines
