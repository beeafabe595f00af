"""Public data as tidy tables: every column documented, and where each number came from kept beside it.

Shapes: `n` rows, `d` decisions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int32

from hanax.devices._stored_table import read_table, write_table
from hanax.devices.public._folder import PublicDataError
from hanax.search_spaces import Arch, SearchSpace

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "hanax.public_table/1"


@dataclass(frozen=True, slots=True)
class Column:
    """What a column holds.

    Attributes:
        kind: Its type. Only a ``float64`` may be missing (NaN).
        unit: ``""`` where there is none.
    """

    kind: Literal["str", "int64", "float64", "bool"]
    meaning: str
    unit: str = ""


ARCH = Column("str", "the option taken at each decision, as indices joined by dots; the decisions are in the metadata")
INDEX = Column("int64", "position of the architecture in the source's files, from 0; its experiments go by it")
MACS = Column("int64", "multiply-accumulates of one inference, batch 1", "MACs")
PARAMS = Column("int64", "trainable parameters", "parameters")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a table came from.

    Attributes:
        source: Name of the source, as in `SOURCES`.
        url: Where its files are published.
        licence: Of the files, as published.
        citation: What to cite.
        importer: Version of Hanax that made the table.
        files: The sha256 of each file that was read, by its path below the folder given.
    """

    source: str
    url: str
    licence: str
    citation: str
    importer: str
    files: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class PublicTable:
    """Facts measured by others.

    Attributes:
        name: Also the stem of its file.
        columns: What each column of `frame` holds, in order.
        decisions: Options of each decision of the column ``arch``, in its order; empty for tables without one.
        space_fingerprint: `SearchSpace.fingerprint` where ``arch`` is of a space that Hanax has; otherwise ``""``.
        provenance: None before the table is written.

    Raises:
        PublicDataError: A column is missing, undocumented, or not of its type.
    """

    name: str
    frame: pd.DataFrame
    columns: Mapping[str, Column]
    decisions: Mapping[str, Sequence[int | str]] = dataclasses.field(default_factory=dict)
    space_fingerprint: str = ""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        if list(self.frame.columns) != list(self.columns):
            raise PublicDataError(
                f"table {self.name} has the columns {', '.join(self.frame.columns)}; "
                f"it should have {', '.join(self.columns)}"
            )
        for name, column in self.columns.items():
            kind = self.frame[name].dtype.kind
            if kind not in {"str": "OUT", "int64": "i", "float64": "f", "bool": "b"}[column.kind]:
                raise PublicDataError(
                    f"table {self.name}: {name} is {self.frame[name].dtype}; it should be {column.kind}"
                )

    def codes(self) -> Int32[np.ndarray, "n d"]:
        """The column ``arch`` as option indices.

        Raises:
            PublicDataError: The table has no such column.
        """
        if "arch" not in self.columns:
            raise PublicDataError(f"table {self.name} has no column arch; it has {', '.join(self.columns)}")
        import pandas as pd

        rows, texts = pd.factorize(self.frame["arch"])
        known = np.array([Arch.parse(text).choices for text in texts], dtype=np.int32)
        codes: Int32[np.ndarray, "n d"] = known.reshape(-1, len(self.decisions))[rows]
        return codes

    def for_space(self, space: SearchSpace) -> PublicTable:
        """This table, if ``arch`` is of `space`.

        Raises:
            SpaceMismatchError: It is not; names both fingerprints.
        """
        space.require(self.space_fingerprint, f"the public table {self.name}")
        return self

    def write(self, path: Path) -> None:
        """Store as Parquet, atomically; the same table gives the same bytes.

        Raises:
            OSError: The folder cannot be written to.
        """
        kinds = {name: column.kind for name, column in self.columns.items()}
        write_table(path, self.frame, kinds, {"format": FORMAT, **_facts(self)})

    @classmethod
    def read(cls, path: Path) -> PublicTable:
        """The table that `write` stored.

        Raises:
            FileNotFoundError: There is no file.
            TableError: It is damaged or no such table.
        """
        frame, facts = read_table(path, [FORMAT], "table of public data")
        del facts["format"]
        facts["columns"] = {name: Column(**column) for name, column in facts["columns"].items()}
        facts["provenance"] = Provenance(**facts["provenance"]) if facts["provenance"] else None
        return cls(frame=frame, **facts)

    def describe(self) -> dict[str, Any]:
        """What the table is, as JSON values: columns, decisions, number of rows."""
        return {"rows": len(self.frame), **_facts(self)}


def _facts(table: PublicTable) -> dict[str, Any]:
    return {
        "name": table.name,
        "columns": {name: dataclasses.asdict(column) for name, column in table.columns.items()},
        "decisions": {name: list(options) for name, options in table.decisions.items()},
        "space_fingerprint": table.space_fingerprint,
        "provenance": dataclasses.asdict(table.provenance) if table.provenance else None,
    }


def arch_texts(codes: Int32[np.ndarray, "n d"]) -> list[str]:
    """The text form of each row of `codes`."""
    return [str(Arch(tuple(row))) for row in codes.tolist()]
