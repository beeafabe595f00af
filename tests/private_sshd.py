"""An sshd of this user on loopback, with keys and a configuration of its own, on a free port."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from full_disk import limit_files

from hanax.devices._ssh_agent import SshPlace

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Server:
    folder: Path
    port: int

    @property
    def place(self) -> SshPlace:
        """This server, with the right key and host key, and this Python."""
        return SshPlace(
            "127.0.0.1",
            self.port,
            getpass.getuser(),
            sys.executable,
            str(self.folder / "user_key"),
            str(self.folder / "known_hosts"),
            str(self.folder / "agents"),
        )

    @property
    def url(self) -> str:
        """`place` as a person writes it."""
        at = self.place
        options = f"python={at.python}&key={at.key}&known_hosts={at.known_hosts}&folder={at.folder}"
        return f"ssh://{at.user}@{at.host}:{at.port}/?{options}"


def make_key(path: Path, passphrase: str = "") -> str:
    """Write a key pair; returns the public key's line."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.with_suffix(".pub").read_text()


@contextmanager
def private_sshd(folder: Path, file_limit: int | None = None) -> Iterator[Server]:
    """The server; skips the test where sshd or asyncssh is absent.

    Args:
        file_limit: Bytes a file there can grow to, as if the disk were full.
    """
    pytest.importorskip("asyncssh", reason="the extra ssh (asyncssh) is not installed")
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server here (Debian: apt-get install openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # a superuser's sshd insists on it
    host_key = make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(make_key(folder / "user_key"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "sshd_config").write_text(CONFIG.format(folder=folder, port=port))
    command = limit_files([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], file_limit)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        _wait_for(port, process, folder / "log")
        yield Server(folder, port)
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")
