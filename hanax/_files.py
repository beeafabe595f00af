"""Where files go, and files that survive a crash: each is its old or its new version, or lines that are whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
