"""What `hanax reproduce` gives: published figures beside ours, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from hanax._files import write_atomically

PACKAGES = ("hanax", "jax", "numpy", "optuna", "scikit-learn", "scipy")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        published: What was published; None where nothing was.
        ours: Mean over draws (and devices), unless `metric` or the title says otherwise.
        spread: Standard deviation over draws.
        worst: Of single draws on single devices.
        n: Measurements (on the new device), or draws where those are what is counted.
    """

    metric: str
    published: float | None
    ours: float
    spread: float | None
    worst: float | None
    n: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """All figures of one experiment, and how long it took."""

    name: str
    title: str
    rows: Sequence[Row]
    wall_s: float

    def write(self, path: Path) -> None:
        """Store as JSON, atomically."""
        versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
        record = {
            "name": self.name,
            "title": self.title,
            "wall_s": self.wall_s,
            "versions": versions,
            "rows": [asdict(row) for row in self.rows],
        }
        write_atomically(path, json.dumps(record, indent=1).encode())


@contextmanager
def one_process_per_core() -> Iterator[ProcessPoolExecutor]:
    """Processes that share the work, with one thread each."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)
    try:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
            yield processes
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
