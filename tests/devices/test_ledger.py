from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hanax.devices import Ledger
from hanax.search_spaces import Arch

FIRST, SECOND = Arch((0, 1)), Arch((1, 1))


def test_a_ledger_counts_by_device_and_purpose(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new folder" / "ledger.jsonl")
    assert ledger.counts() == {}
    for device, arch, purpose in [
        ("a", FIRST, "table"),
        ("a", SECOND, "table"),
        ("b", FIRST, "table"),
        ("a", FIRST, "winner"),
    ]:
        ledger.record(device, arch, purpose)
    assert ledger.counts() == {"a": {"table": 2, "winner": 1}, "b": {"table": 1}}
    assert [entry["arch"] for entry in ledger.entries()] == ["0.1", "1.1", "0.1", "0.1"]
    assert Ledger(ledger.path).counts() == ledger.counts()


def test_a_torn_last_line_is_not_counted_and_is_shown(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("a", FIRST, "table")
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + whole[:20])
    assert ledger.counts() == {"a": {"table": 1}}
    assert ledger.torn() == [whole[:20].decode()]


def test_a_record_after_a_torn_line_is_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_bytes(b'{"device": "a", "ar')
    ledger.record("a", SECOND, "table")
    assert ledger.counts() == {"a": {"table": 1}}
    assert ledger.torn() == ['{"device": "a", "ar']


def test_a_killed_process_leaves_a_readable_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = (
        "import sys\nfrom hanax.devices import Ledger\nfrom hanax.search_spaces import Arch\n"
        "ledger = Ledger(sys.argv[1])\nwhile True: ledger.record('a', Arch((0, 1)), 'table')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists() or path.stat().st_size < 2000:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    ledger = Ledger(path)
    n_lines = path.read_bytes().count(b"\n")
    assert ledger.counts() == {"a": {"table": n_lines}}
    assert len(ledger.torn()) <= 1


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Ledger(tmp_path / "file" / "ledger.jsonl").record("a", FIRST, "table")
