"""What one process works on is refused to every other, and is free again when that process is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hanax._files import InUseError, locked

HOLDER = """
import sys
from pathlib import Path
from hanax._files import locked

with locked(*map(Path, sys.argv[1:])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("lock", [None, ".lock"])
def test_a_process_that_is_killed_gives_up_what_it_had_locked(lock: str | None, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table.parquet"
    locks = [] if lock is None else [tmp_path / lock]
    command = [sys.executable, "-c", HOLDER, str(path), *map(str, locks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = pytest.raises(InUseError, match=rf"{path} is in use by process {holder.pid}; wait for it")
        with refused, locked(path, *locks):
            pass
        with locked(path.with_name("another")):
            pass
        holder.kill()
    with locked(path, *locks):
        pass


def test_a_lock_ends_with_its_block_whatever_ends_that(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with locked(tmp_path):
        pass
