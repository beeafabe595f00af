"""One tiny finished run that the tests of this folder look at, and the means to make more."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress

import pytest
from command_line import TINY, CommandLine, TinyRun, finished_run

from hanax._files import cache_folder


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """Workers of pytest-xdist share the cache, as several processes of a user do.

    Native kernels are in the user's own cache: compiling them takes half a minute.
    """
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"
    cache.mkdir(exist_ok=True)
    native = cache_folder() / "native"
    native.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (cache / "native").symlink_to(native)
    return CommandLine(cache)


@pytest.fixture(scope="session")
def tiny_run(command_line: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A whole run, from the command line; workers make one together, and have a copy each."""
    made = command_line.cache.with_name("tiny")
    made.mkdir(exist_ok=True)
    with (made / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if not (made / "output").exists():
            (made / "output").write_text(finished_run(command_line, made, TINY).output)
    home = shutil.copytree(made, tmp_path_factory.mktemp("tiny"), dirs_exist_ok=True)
    return TinyRun(home / "tiny.yaml", home / "run", (home / "output").read_text())
