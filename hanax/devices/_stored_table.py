"""What tables share: Parquet files that carry JSON metadata, and costs that can be true."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from hanax._files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

METADATA_KEY = b"hanax"


class TableError(ValueError):
    """A table cannot be read, or its rows cannot be true."""


class DeviceMismatchError(ValueError):
    """A table belongs to another device: machine, runtime, its version, or the way it is used."""


@runtime_checkable
class Fingerprinted(Protocol):
    """What tables of a device are tied to; ``str`` describes it to people."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that makes two of its costs comparable."""


def read_table(path: str | Path, formats: Sequence[str], what: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows that `write_table` stored, and their metadata with the ``format`` among it.

    Args:
        formats: Those that the caller understands.
        what: Such a table, for errors.

    Raises:
        FileNotFoundError: There is no file.
        TableError: It is damaged, or of none of `formats`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = pq.read_table(pa.BufferReader(Path(path).read_bytes()))
    except pa.ArrowInvalid as error:
        raise TableError(f"{path} is not a readable Parquet file: {error}") from error
    metadata = (stored.schema.metadata or {}).get(METADATA_KEY)
    fields = json.loads(metadata) if metadata else {}
    if fields.get("format") not in formats:
        raise TableError(
            f"{path} is Parquet but not a {what}: its metadata says format {fields.get('format')!r}; "
            f"{' and '.join(map(repr, formats))} can be read"
        )
    frame = stored.to_pandas()
    for field in stored.schema:
        if pa.types.is_list(field.type):  # pandas reads lists as arrays
            frame[field.name] = [[float(value) for value in values] for values in frame[field.name]]
    return frame, fields


def write_table(
    path: str | Path, frame: pd.DataFrame, columns: Mapping[str, str], metadata: Mapping[str, object]
) -> None:
    """Store as Parquet, atomically: a reader finds the old table or this one, even after a crash.

    Args:
        columns: Name and type of every column: ``str``, ``float64``, ``int64``, ``bool`` or ``list`` (of float64).
        metadata: The ``format``, and what else belongs to the whole table; JSON.

    Raises:
        OSError: The folder cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"str": pa.string(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
    types["list"] = pa.list_(pa.float64())
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    stored = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    stored = stored.replace_schema_metadata({**stored.schema.metadata, METADATA_KEY: json.dumps(metadata)})
    sink = pa.BufferOutputStream()
    pq.write_table(stored, sink)
    write_atomically(Path(path), sink.getvalue().to_pybytes())


def require_device(device: Fingerprinted, fingerprint: str, description: str, what: str) -> None:
    """Refuse a table, `what`, that belongs to a device with another `fingerprint` than `device`.

    Raises:
        DeviceMismatchError: Names both devices and both fingerprints.
    """
    if fingerprint != device.fingerprint:
        raise DeviceMismatchError(
            f"the {what} was made on {description or '(undescribed)'} with fingerprint {fingerprint}; "
            f"the device here is {device} with fingerprint {device.fingerprint}"
        )


def check_columns(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse rows that lack one of `columns` or have others.

    Raises:
        TableError: Names those that are missing or unknown.
    """
    found = list(frame.columns)
    if missing := [name for name in columns if name not in found]:
        raise TableError(f"{what} without column(s) {', '.join(missing)}; it has {', '.join(found)}")
    if unknown := [name for name in found if name not in columns]:
        raise TableError(f"{what} with unknown column(s) {', '.join(unknown)}; known: {', '.join(columns)}")


def check_positive(frame: pd.DataFrame, names: Sequence[str], key: Sequence[str] = ("arch",)) -> None:
    """Refuse costs that cannot be true.

    Args:
        key: The columns that say whose they are.

    Raises:
        TableError: A value in the columns `names` is not a positive finite number; says whose.
    """
    for name in names:
        values = frame[name].to_numpy(dtype=np.float64)
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            whose = ", ".join(f"{part} {frame[part].iloc[wrong[0]]}" for part in key if frame[part].iloc[wrong[0]])
            raise TableError(f"{whose}: {name} must be a positive finite number; it is {values[wrong[0]]}")
