"""One tiny finished run that the tests of this folder look at, and the means to make more."""

from __future__ import annotations

import os
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
    """A whole run, from the command line."""
    return finished_run(command_line, tmp_path_factory.mktemp("tiny"), TINY)
