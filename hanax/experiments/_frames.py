"""Result tables of a run as Parquet, tied to their search space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from hanax._files import write_atomically
from hanax.search_spaces import SearchSpace

METADATA_KEY = b"hanax.frame"


def write_frame(path: Path, frame: pd.DataFrame, space: SearchSpace, **facts: Any) -> None:
    """Store `frame` atomically, with the fingerprint of `space` and `facts` (JSON values)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = json.dumps({"space_fingerprint": space.fingerprint, **facts})
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA_KEY: metadata})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def read_frame(path: Path, space: SearchSpace) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The frame that `write_frame` stored, and its facts.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is not such a table.
        SpaceMismatchError: It belongs to another space.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    stored = (table.schema.metadata or {}).get(METADATA_KEY)
    if stored is None:
        raise ValueError(f"{path} is Parquet, but not a table of a Hanax run")
    facts = json.loads(stored)
    space.require(facts.pop("space_fingerprint"), str(path))
    return table.to_pandas(), facts
