"""A PostgreSQL server on loopback, with a folder, a port and a password of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "p{a}ss%40word"
"""As a URL spells it: braces, and an @ that is escaped."""


@dataclass(frozen=True)
class Server:
    programs: Path
    folder: Path
    port: int
    account: str | None

    @property
    def url(self) -> str:
        return f"postgresql://hanax:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        # The machine does not crash here, only the server does, so nothing need reach the disk.
        options = f"-c fsync=off -c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories="
        self._control("start", "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """As a crash does: nothing is tidied up, connections break."""
        self._control("stop", "-m", "immediate")

    def _control(self, *arguments: str) -> None:
        run_as(self.account, [str(self.programs / "pg_ctl"), "-D", str(self.folder / "data"), *arguments])


def run_as(account: str | None, command: list[str]) -> None:
    done = subprocess.run(
        command, user=account, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}"


def find_programs() -> Path:
    """The folder of initdb and pg_ctl; skips the test where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    for folder in [*reversed(debian), *([Path(on_path).resolve().parent] if on_path else [])]:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")


def find_account() -> str | None:
    """Whose the server is: PostgreSQL refuses to work for root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    pytest.skip("root has no other account to run PostgreSQL as (postgres, nobody)")


@contextmanager
def private_postgresql() -> Iterator[Server]:
    """The server; skips the test where PostgreSQL or psycopg is absent."""
    pytest.importorskip("psycopg", reason="the extra postgresql (psycopg) is not installed")
    programs, account = find_programs(), find_account()
    # Not below pytest's folder, which is closed to other accounts.
    folder = Path(tempfile.mkdtemp(prefix="hanax-postgresql-"))
    server = Server(programs, folder, free_port(), account)
    try:
        (folder / "password").write_text(PASSWORD.replace("%40", "@"))
        if account is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, account)
        run_as(account, [
            str(programs / "initdb"), "-D", str(folder / "data"), "-U", "hanax", "-A", "scram-sha-256",
            f"--pwfile={folder / 'password'}", "-E", "UTF8", "--no-sync",
        ])  # fmt: skip
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(0.02)
