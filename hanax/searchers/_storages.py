"""Where Optuna studies are kept: PostgreSQL or SQLite, a gRPC proxy in front of a database, a journal file."""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import socket
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

KINDS = "postgresql://USER@HOST/DATABASE, sqlite:///FILE, grpc://HOST:PORT, or the path of a journal file"

OPENING_LOCK = 4_826_173_590
"""Key of the PostgreSQL advisory lock under which tables are created: one process at a time must create them."""

CONNECT_TIMEOUT_S = 10

CONNECT_ARGUMENTS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "hanax",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
"""How psycopg connects; a server that vanished without a word is noticed within a minute."""

SERVER_THREADS = 32
"""Requests that a proxy answers at the same time; a worker makes two at most."""


class StorageError(RuntimeError):
    """A storage cannot be used or cannot be reached; the message never holds a password."""


def hide_password(text: str) -> str:
    """`text`, the name of a storage or a message about one, with the passwords of URLs replaced by ``***``."""
    text = re.sub(r"(://[^/:@\s]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", text)


def open_storage(text: str) -> BaseStorage:
    """The storage called `text`.

    Args:
        text: ``postgresql://USER@HOST/DATABASE`` (with ``:PASSWORD`` after the user; if not given, the password comes
            from ``PGPASSWORD`` or ``~/.pgpass``), ``sqlite:///FILE``, ``grpc://HOST:PORT`` of a proxy that
            `serve_storage` runs, or the path of a journal file, for the workers of one machine.

    Raises:
        ValueError: It is no such text.
        StorageError: It cannot be opened, or an optional package that it needs is missing (names the extra).
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _journal(Path(text))
    if scheme in ("postgresql", "postgresql+psycopg"):
        require_extra("postgresql", "psycopg")
        return _database(f"postgresql+psycopg://{rest}", CONNECT_ARGUMENTS, _alone_in_database)
    if scheme == "sqlite":
        return _database(text, {}, _alone_in_folder)
    if scheme == "grpc":
        return _proxy(rest)
    raise ValueError(f"storage {hide_password(text)}: unknown kind {scheme!r}; known: {KINDS}")


def require_extra(extra: str, module: str) -> None:
    """Refuse to go on without a package of an extra.

    Raises:
        StorageError: `module` cannot be imported; names `extra`.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        message = f"this storage needs the Python package {module}: python -m pip install 'hanax[{extra}]' ({error})"
        raise StorageError(message) from error


def serve_storage(text: str, host: str, port: int, on_message: Callable[[str], None]) -> None:
    """Run Optuna's gRPC proxy in front of the database `text` until a KeyboardInterrupt.

    Workers then reach the database as ``grpc://HOST:PORT``; hundreds of them share the few connections of the proxy.
    What they send is neither encrypted nor authenticated, so only trusted machines should reach `host`.

    Args:
        on_message: Told when the proxy starts, and when the database cannot be reached; requests wait meanwhile.

    Raises:
        ValueError: `text` is no database.
        StorageError: The database cannot be opened, or the port is taken.
    """
    require_extra("grpc", "grpc")
    from concurrent.futures import ThreadPoolExecutor

    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import run_grpc_proxy_server

    from hanax.searchers._patient_storage import PatientStorage

    name = hide_password(text)
    if not text.startswith(("postgresql", "sqlite")):
        raise ValueError(f"a proxy stands in front of a database, postgresql:// or sqlite:///; got {name}")
    storage = PatientStorage(open_storage(text), name, on_message)
    _require_free(host, port)
    on_message(f"serving {name} as grpc://{host}:{port}; Ctrl-C ends it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        run_grpc_proxy_server(storage, host=host, port=port, thread_pool=ThreadPoolExecutor(SERVER_THREADS))


def _require_free(host: str, port: int) -> None:
    """Refuse a port that is in use: gRPC would share it in silence, and answer every other request."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], address[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        raise StorageError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def is_outage(error: BaseException) -> bool:
    """Whether `error` says that a storage is away or busy for now, rather than that a request is wrong."""
    import sqlalchemy.exc

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            return True
        if isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.connection_invalidated:
            return True
        if _is_grpc_outage(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def reason(error: BaseException) -> str:
    """The first line of what is behind `error`, without passwords."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    cause = getattr(cause, "orig", None) or cause  # what the driver said, without SQLAlchemy's frame
    details = getattr(cause, "details", None)  # of a gRPC call
    lines = (str(details() if callable(details) else cause) or type(cause).__name__).splitlines()
    return hide_password(lines[0].strip())


def _is_grpc_outage(error: BaseException) -> bool:
    code = getattr(error, "code", None)
    return callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")


def _database(url: str, connect_arguments: dict[str, Any], alone: Callable[[Any], Any]) -> BaseStorage:
    import sqlalchemy
    from optuna.storages import RDBStorage, get_storage

    arguments = {"pool_pre_ping": True, "connect_args": connect_arguments}
    try:
        with alone(sqlalchemy.make_url(url)):
            # Optuna fills in templates, so braces of a password are doubled.
            database = RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=arguments)
    except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        raise StorageError(f"cannot open {hide_password(url.replace('+psycopg', '', 1))}: {reason(error)}") from None
    storage = get_storage(database)
    weakref.finalize(storage, database.engine.dispose)  # so that connections are closed, not dropped
    return storage


@contextmanager
def _alone_in_database(url: Any) -> Iterator[None]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, connect_args=CONNECT_ARGUMENTS, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({OPENING_LOCK})"))
        yield


@contextmanager
def _alone_in_folder(url: Any) -> Iterator[None]:
    """A lock on the folder: closing a file that SQLite has open would end SQLite's own locks on it."""
    folder = os.open(Path(url.database or ".").absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _proxy(address: str) -> BaseStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import GrpcStorageProxy

    host, separator, port = address.rstrip("/").rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError(f"storage grpc://{address}: expected grpc://HOST:PORT, such as grpc://192.168.0.1:13000")
    require_extra("grpc", "grpc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = GrpcStorageProxy(host=host, port=int(port))
    try:
        storage.wait_server_ready(timeout=CONNECT_TIMEOUT_S)
    except ConnectionError:
        raise StorageError(f"no proxy answers at grpc://{address}; `hanax storage serve` runs one") from None
    return storage


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        path.touch()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_FileLock(path)))  # type: ignore[arg-type]
    except OSError as error:
        raise StorageError(f"cannot open the journal {path}: {error.strerror}") from error


class _FileLock:
    """A lock that ends with the process that holds it, unlike Optuna's: theirs delay the others by half a minute."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def acquire(self) -> bool:
        """Wait for the lock; a lock of the journal itself, which nothing else locks."""
        file = os.open(self._path, os.O_RDONLY)
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file
        return True

    def release(self) -> None:
        """Give it back."""
        os.close(self._file)
