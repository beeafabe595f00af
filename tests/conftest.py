"""What all tests share.

Shapes and types are checked while tests run: the hook must be there before hanax is imported for the first time, which
the conftest files of folders do. JAX is not imported here, as most tests do not need it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["hanax.search_spaces", "hanax.supernet", "hanax.devices"], "beartype.beartype")

os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # read by JAX when it is imported, here and in subprocesses

# In the background of a shell Ctrl-C is ignored, also by what tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every process that tests start would compile all of hanax anew

settings.register_profile("hanax", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("hanax")

DATA = Path(os.environ.get("HANAX_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers of pytest-xdist share the processors: threads of libraries that wait for each other busily on
    taken processors double the time of the tests. Workers inherit what is set here before they start.
    """
    n_workers = config.getoption("numprocesses", None)
    if n_workers:
        n_threads = str(max(1, (os.cpu_count() or 1) // n_workers))
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, n_threads)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """With ``--dist loadfile`` one of two workers takes all tests of the supernet, which share fixtures and compiled
    code: they are less than half of the work. With more workers the others would wait for that one.
    """
    if config.getoption("dist") != "loadfile" or config.getoption("numprocesses") != 2:
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            folder = "tests/supernet/"
            return folder if nodeid.startswith(folder) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The path of a file or folder below HANAX_DATA (default: ../shared/data); skips the test where it is absent."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{path} does not exist; set HANAX_DATA to the folder that holds {name}")
        return path

    return find
