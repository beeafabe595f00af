"""The measurement ledger: every latency that was asked of a device, counted."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from hanax.search_spaces import Arch


class Ledger:
    """A JSONL file with one line per measurement asked for, written before the device is asked.

    A crash may therefore leave a line for a measurement that did not finish, which was asked all the same, but never a
    measurement without a line. A line that a crash tore was not yet acted upon: it is not counted, and `torn` shows it.

    Args:
        path: The file; it and its folder come into being with the first record.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def record(self, device: str, arch: Arch | str, purpose: str) -> None:
        """Count one measurement of `arch` on the device called `device`; on disk when this returns.

        Args:
            arch: Or the name of a network that is none, such as a block by itself.

        Raises:
            OSError: The file cannot be written.
        """
        entry = {
            "device": device,
            "arch": str(arch),
            "purpose": purpose,
            "asked_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(entry).encode() + b"\n"
        with self.path.open("a+b") as stream:
            if self._ends_torn():
                line = b"\n" + line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def entries(self) -> list[dict[str, str]]:
        """All whole records, in order: device, arch, purpose, asked_at. Empty if there is no file yet."""
        return [entry for entry in map(_parse, self._lines()) if entry is not None]

    def torn(self) -> list[str]:
        """The lines that are not records, left by a crash while they were written."""
        return [line.decode("utf-8", errors="replace") for line in self._lines() if _parse(line) is None]

    def counts(self) -> dict[str, dict[str, int]]:
        """For each device, for each purpose, the number of measurements asked for."""
        counts: dict[str, dict[str, int]] = {}
        for entry in self.entries():
            of_device = counts.setdefault(entry["device"], {})
            of_device[entry["purpose"]] = of_device.get(entry["purpose"], 0) + 1
        return counts

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines() if self.path.exists() else []

    def _ends_torn(self) -> bool:
        with self.path.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                return False
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"


def _parse(line: bytes) -> dict[str, str] | None:
    """The record in `line`, None if it is torn."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(entry, dict) and {"device", "arch", "purpose", "asked_at"} <= entry.keys()
    return entry if whole else None
