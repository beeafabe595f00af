"""Transport: an agent on another machine, over SSH (asyncssh, the extra ``ssh``).

The other machine needs an SSH server with sftp, a Python with the runtime, and nothing of Hanax: the agent's one file
is copied there. Host keys are verified, always; a person adds an unknown one, never this code. Keys or ssh-agent log
in, never passwords. The remote command line is quoted part by part.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import getpass
import hashlib
import importlib
import secrets
import shlex
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hanax.devices import _agent_client
from hanax.devices._agent_client import AgentClient, TransportError
from hanax.devices._local_agent import AGENT_FILE, agent_options
from hanax.devices._specs import DeviceSpec

CONNECT_TIMEOUT_S = 20.0
KEEPALIVE_S = 5.0
"""A connection on which three questions after so many seconds of silence stay unanswered is lost."""

CACHE_FOLDER = ".cache/hanax-agent"
"""Where agents lie on the other machine, relative to the user's home."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class SshPlace:
    """Another machine and how to get there.

    Attributes:
        port: As ``~/.ssh/config`` says, or 22, if None; likewise the user.
        python: The interpreter there that has the runtime.
        key: A private key file; ssh-agent and the files that ssh itself would try, if None.
        known_hosts: The file of host keys to trust.
        folder: For the agent; relative to the user's home.
    """

    host: str
    port: int | None = None
    user: str | None = None
    python: str = "python3"
    key: str | None = None
    known_hosts: str = "~/.ssh/known_hosts"
    folder: str = CACHE_FOLDER

    @property
    def known_hosts_file(self) -> Path:
        """`known_hosts`, absolute."""
        return Path(self.known_hosts).expanduser()


class SshAgent(AgentClient[DeviceSpec]):
    """An agent on another machine; a lost connection, like a crash there, ends in an AgentError.

    Args:
        spec: The device.
        place: The machine.
        timeout_s: Longest wait for any answer. The agent is killed after it.
    """

    def __init__(self, spec: DeviceSpec, place: SshPlace, *, timeout_s: float = 120.0) -> None:
        super().__init__(spec, SshTransport(place, AGENT_FILE.read_bytes(), agent_options(spec)), timeout_s)


class SshTransport:
    """A Python program on another machine, spoken to over the stdin and stdout of an SSH session.

    asyncssh runs in an event loop on a thread of its own; every wait of the caller has an end.

    Args:
        program: The program's one file; copied under its checksum, and reused if it is there.
        arguments: Of its command line.
    """

    def __init__(self, place: SshPlace, program: bytes, arguments: Sequence[str]) -> None:
        self.place = place
        self.program = program
        self.arguments = tuple(arguments)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._asyncssh: Any = None
        self._connection: Any = None
        self._process: Any = None
        self._stderr_reader: concurrent.futures.Future[None] | None = None
        self._pid = 0
        self._received = bytearray()
        self._stderr = b""
        self._loss = ""

    def start(self) -> None:
        """Connect, copy the program, and start it."""
        try:
            self._asyncssh = importlib.import_module("asyncssh")
        except ModuleNotFoundError as error:
            raise TransportError(
                "the Python package asyncssh is missing; `python -m pip install 'hanax[ssh]'` adds it"
            ) from error
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._call(self._connect(), CONNECT_TIMEOUT_S + 1.0)
            path = self._call(self._put_program(), CONNECT_TIMEOUT_S)
            self._process = self._call(self._run(path), CONNECT_TIMEOUT_S)
            self._stderr_reader = asyncio.run_coroutine_threadsafe(self._read_stderr(), self._loop)
        except BaseException as error:
            self._end_loop()
            if isinstance(error, TimeoutError):
                raise TransportError(f"{self._where} did not answer within {CONNECT_TIMEOUT_S:g} s") from error
            raise

    def exchange(self, line: bytes, timeout_s: float) -> bytes | None:
        """Awaited on the loop's thread, and cancelled when it takes too long."""
        try:
            return self._call(self._talk(line), timeout_s)
        except TimeoutError:
            return None

    def kill(self) -> None:
        """Kill the program and those that it started; nothing can be done once the connection is lost."""
        with contextlib.suppress(TimeoutError):
            self._call(self._kill(), _agent_client.GRACE_S)

    def close(self) -> None:
        """End the program's stdin, wait for it, and close the connection."""
        try:
            self._call(self._finish(), _agent_client.GRACE_S)
        except TimeoutError:
            self.kill()
        self._end_loop()

    def ending(self) -> str:
        """Exit status or signal of the program, or that the connection was lost."""
        with contextlib.suppress(TimeoutError):
            self._call(self._wait_closed(), _agent_client.GRACE_S)
        if self._process.exit_signal is not None:
            return f"killed by signal {self._process.exit_signal[0]}"
        status = self._process.exit_status
        if status is None and (self._loss or self._connection.is_closed()):
            return f"the connection to {self._where} was lost" + (f": {self._loss}" if self._loss else "")
        if status is None:
            self.kill()
            return "it closed its stdout and went on; it was killed"
        if status in (126, 127):
            return (
                f"exit status {status}: {self.place.python!r} cannot be run there; name the Python that has the "
                "runtime with python=PATH in the place"
            )
        return f"exit status {status}"

    def stderr_tail(self) -> str:
        """What the program last wrote to stderr; all of it once it has ended."""
        if self._stderr_reader is not None and self._process.is_closing():
            with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
                self._stderr_reader.result(_agent_client.GRACE_S)
        return self._stderr.decode("utf-8", errors="replace").strip()

    # ---- on the loop's thread ------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        place, asyncssh = self.place, self._asyncssh
        given: dict[str, Any] = {"port": place.port, "username": place.user}
        if place.key is not None:
            given |= {"client_keys": [str(Path(place.key).expanduser())], "agent_path": None}
        try:
            # Given in any case: the default may be what a configuration file says, which can be "verify nothing".
            known_hosts = asyncssh.import_known_hosts(self._known_hosts_text())
            self._connection = await asyncssh.connect(
                place.host,
                known_hosts=known_hosts,
                preferred_auth="publickey",
                password_auth=False,
                kbdint_auth=False,
                connect_timeout=CONNECT_TIMEOUT_S,
                keepalive_interval=KEEPALIVE_S,
                **{name: value for name, value in given.items() if value is not None or name == "agent_path"},
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise TransportError(self._host_key_problem(str(error))) from error
        except asyncssh.PermissionDenied as error:
            tried = f"with the key {place.key}" if place.key else "with the keys of ssh-agent and ~/.ssh"
            raise TransportError(
                f"{self._where} refused the login {tried} ({error}); its ~/.ssh/authorized_keys must hold the public "
                "key, which `ssh-copy-id` puts there; passwords are not used"
            ) from error
        except asyncssh.KeyImportError as error:
            raise TransportError(
                f"the key {place.key} cannot be used ({error}); `ssh-add {place.key or ''}` gives an encrypted one to "
                "ssh-agent: then leave key= away"
            ) from error
        except TimeoutError as error:
            raise TransportError(f"no connection to {self._where} within {CONNECT_TIMEOUT_S:g} s") from error
        except (OSError, asyncssh.Error, ValueError) as error:
            raise TransportError(f"cannot connect to {self._where}: {error}") from error

    async def _put_program(self) -> str:
        """The program's path there. Written beside it and moved, so no crash leaves half of it under its name."""
        asyncssh, folder = self._asyncssh, self.place.folder
        digest = hashlib.sha256(self.program).hexdigest()
        try:
            async with self._connection.start_sftp_client() as sftp:
                await sftp.makedirs(folder, asyncssh.SFTPAttrs(permissions=0o700), exist_ok=True)
                absolute = await sftp.realpath(folder)
                path = f"{absolute}/{digest}.py"
                if await sftp.exists(path) and await _sha256_there(sftp, path) == digest:
                    return path
                partial = f"{absolute}/.{digest}.{secrets.token_hex(8)}"
                try:
                    async with sftp.open(partial, "wb") as stream:
                        await stream.write(self.program)
                    await sftp.posix_rename(partial, path)
                except BaseException:
                    with contextlib.suppress(asyncssh.Error, OSError):
                        await sftp.remove(partial)
                    raise
                return path
        except asyncssh.ChannelOpenError as error:
            raise TransportError(
                f"{self._where} offers no sftp ({error}); Debian has it in the package openssh-sftp-server"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise TransportError(
                f"cannot copy the agent to {folder!r} on {self._where} ({error}); is the disk full, or the folder not "
                "yours? folder=PATH in the place chooses another"
            ) from error

    async def _run(self, path: str) -> Any:
        # Any login shell hands this to sh, which says its process number and becomes the program.
        program = [self.place.python, "-u", path, *self.arguments]
        command = shlex.join(["exec", "sh", "-c", 'echo $$; exec "$0" "$@"', *program])
        try:
            process = await self._connection.create_process(command, encoding=None)
            said = await process.stdout.readline()
        except (self._asyncssh.Error, OSError) as error:
            raise TransportError(f"{self._where} does not run commands: {error}") from error
        if not said.strip().isdigit():
            raise TransportError(
                f"{self._where} does not run commands as expected: instead of a process number it says "
                f"{said[:200].decode('utf-8', errors='replace')!r}; does its shell print something at login?"
            )
        self._pid = int(said)
        return process

    async def _talk(self, line: bytes) -> bytes:
        lost = (self._asyncssh.Error, OSError)
        try:
            self._process.stdin.write(line)
            await self._process.stdin.drain()
        except lost:
            pass  # it is dead, which the end of its stdout tells better
        seen = 0
        while (end := self._received.find(b"\n", seen)) < 0 and len(self._received) < _agent_client.MAX_ANSWER_BYTES:
            seen = len(self._received)
            try:
                chunk = await self._process.stdout.read(1 << 16)
            except lost as error:
                self._loss, chunk = str(error), b""
            if not chunk:
                break
            self._received += chunk
        size = end + 1 if end >= 0 else len(self._received)
        answer = bytes(self._received[:size])
        del self._received[:size]
        return answer

    async def _read_stderr(self) -> None:
        with contextlib.suppress(self._asyncssh.Error, OSError):
            while chunk := await self._process.stderr.read(1 << 16):
                self._stderr = (self._stderr + chunk)[-_agent_client.STDERR_TAIL_BYTES :]

    async def _wait_closed(self) -> None:
        await self._process.wait_closed()

    async def _finish(self) -> None:
        with contextlib.suppress(self._asyncssh.Error, OSError):
            self._process.stdin.write_eof()
        await self._process.wait_closed()

    async def _kill(self) -> None:
        # Not with the protocol's own signals: OpenSSH refuses them for the superuser, and small servers lack them.
        with contextlib.suppress(self._asyncssh.Error, OSError):
            await self._connection.run(f"kill -s KILL -- -{self._pid} || kill -s KILL {self._pid}")
            try:
                await asyncio.wait_for(self._process.wait_closed(), 0.5)  # what it wrote last is on its way
            except TimeoutError:
                self._process.channel.abort()  # much is: nobody will read it

    # ---- around it -----------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        user = f"{self.place.user}@" if self.place.user else ""
        return f"{user}{self.place.host}" + (f":{self.place.port}" if self.place.port else "")

    def _call(self, work: Coroutine[Any, Any, ResultT], timeout_s: float) -> ResultT:
        """The result of `work` on the loop's thread. Raises TimeoutError, and cancels it, when it takes too long."""
        assert self._loop is not None, "start comes first"
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def _end_loop(self) -> None:
        """Close the connection, then the loop; waits a moment for the server's goodbye."""

        async def end() -> None:
            if self._connection is not None:
                self._connection.abort()
                await self._connection.wait_closed()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with contextlib.suppress(TimeoutError):
            self._call(end(), _agent_client.GRACE_S)
        assert self._loop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_agent_client.GRACE_S)
        if not self._thread.is_alive():
            self._loop.close()

    def _known_hosts_text(self) -> str:
        try:
            return self.place.known_hosts_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _host_key_problem(self, reason: str) -> str:
        place, file = self.place, self.place.known_hosts_file
        port = place.port or 22
        known = self._asyncssh.import_known_hosts(self._known_hosts_text())
        keys, authorities, *_ = known.match(place.host, "", None if port == 22 else port)
        if keys or authorities:
            name = place.host if port == 22 else f"[{place.host}]:{port}"
            return (
                f"the host key of {self._where} is not the one in {file} ({reason}): another machine answers at this "
                f"address, or its key was renewed. If you know that it was, `ssh-keygen -f {shlex.quote(str(file))} -R "
                f"{shlex.quote(name)}` forgets the old one"
            )
        options = "" if file == Path("~/.ssh/known_hosts").expanduser() else f"-o UserKnownHostsFile={file} "
        user = place.user or getpass.getuser()
        return (
            f"the host key of {self._where} is unknown: {file} does not hold it. To add it, connect once with "
            f"`ssh {options}-p {port} {shlex.quote(f'{user}@{place.host}')}` and compare the fingerprint that it shows "
            "with the machine's own before you answer yes"
        )


async def _sha256_there(sftp: Any, path: str) -> str:
    async with sftp.open(path, "rb") as stream:
        return hashlib.sha256(await stream.read()).hexdigest()
