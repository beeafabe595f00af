"""Files of JSON lines, to which results are added one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hanax._files import write_atomically


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
