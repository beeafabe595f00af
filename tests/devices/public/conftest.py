from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from hanax.devices.public import SOURCES, Imported, PublicTable, import_source

FOLDERS = {"nb201-latency": "latency", "bitfusion": "apq"}
"""Where the data folder calls a source by another name."""


@pytest.fixture(scope="session")
def imported(shared_data: Callable[[str], Path]) -> Callable[[str], Imported]:
    """What a source's published files give; skips the test where they are absent."""

    @cache
    def read(name: str) -> Imported:
        return import_source(SOURCES[name], shared_data(FOLDERS.get(name, name)))

    return read


@pytest.fixture(scope="session")
def public_table(imported: Callable[[str], Imported]) -> Callable[[str, str], PublicTable]:
    """One table of a source, by its name."""

    def find(source: str, name: str) -> PublicTable:
        return next(table for table in imported(source).tables if table.name == name)

    return find


@pytest.fixture(scope="session")
def pt_file() -> Callable[[bytes], bytes]:
    """A file of ``torch.save`` around a pickle."""

    def wrap(data: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
        return file.getvalue()

    return wrap
