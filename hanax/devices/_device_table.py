"""Tables of any measurements on one device for one space, and collecting them: in batches, resumable, counted.

`LatencyTable` has a class of its own for what is particular to it; this is for the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hanax._files import locked
from hanax.devices._ledger import Ledger
from hanax.devices._local_agent import Agent
from hanax.devices._requests import DeviceIdentity, identify
from hanax.devices._specs import DeviceSpec
from hanax.devices._stored_table import (
    TableError,
    check_columns,
    check_positive,
    read_table,
    require_device,
    write_table,
)
from hanax.search_spaces import SearchSpace, Shape

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TableKind:
    """What a kind of table holds.

    Attributes:
        what: For people, such as ``block table``.
        format: In the metadata of its files.
        columns: Name and type of every column.
        key: The columns that name a row; texts.
        positive: Columns that must be above 0 and finite.
    """

    what: str
    format: str
    columns: Mapping[str, str]
    key: tuple[str, ...]
    positive: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """Measurements on one device for one space.

    Raises:
        TableError: A column is missing or unknown, two rows have one key, or a value cannot be true.
    """

    kind: TableKind
    frame: pd.DataFrame
    space_fingerprint: str
    device_fingerprint: str
    space_name: str = ""
    device_description: str = ""

    def __post_init__(self) -> None:
        kind = self.kind
        check_columns(self.frame, list(kind.columns), kind.what)
        if (again := self.frame.duplicated(list(kind.key))).any():
            raise TableError(f"{kind.what} with two rows for {self.keys()[int(np.flatnonzero(again)[0])]}")
        check_positive(self.frame, kind.positive, kind.key)

    @classmethod
    def empty(cls, kind: TableKind, space: SearchSpace, device: DeviceIdentity) -> DeviceTable:
        """The table before anything was measured."""
        return cls(kind, _frame(kind, []), space.fingerprint, device.fingerprint, space.name, str(device))

    @classmethod
    def read(cls, kind: TableKind, path: str | Path) -> DeviceTable:
        """The table that `write` stored.

        Raises:
            FileNotFoundError: There is no file.
            TableError: It is damaged or of another kind.
        """
        frame, fields = read_table(path, [kind.format], kind.what)
        del fields["format"]
        try:
            return cls(kind, frame, **fields)
        except TableError as error:
            raise TableError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Store as Parquet, atomically.

        Raises:
            OSError: The folder cannot be written to.
        """
        names = ("space_fingerprint", "device_fingerprint", "space_name", "device_description")
        fields = {"format": self.kind.format} | {name: getattr(self, name) for name in names}
        write_table(path, self.frame, self.kind.columns, fields)

    def append(self, rows: Sequence[Mapping[str, object]]) -> DeviceTable:
        """This table with `rows` after its own.

        Raises:
            TableError: As for any table.
        """
        import pandas as pd

        added = _frame(self.kind, rows)
        frame = pd.concat([self.frame, added], ignore_index=True) if len(self.frame) else added
        return dataclasses.replace(self, frame=frame)

    def keys(self) -> list[tuple[str, ...]]:
        """The key of every row, in order."""
        return [tuple(row) for row in self.frame[list(self.kind.key)].itertuples(index=False)]

    def for_space(self, space: SearchSpace) -> DeviceTable:
        """This table, if it belongs to `space`; else `SpaceMismatchError`."""
        space.require(self.space_fingerprint, f"the {self.kind.what} of space {self.space_name or '(unnamed)'}")
        return self

    def for_device(self, device: DeviceIdentity) -> DeviceTable:
        """This table, if it belongs to `device`; else `DeviceMismatchError`."""
        require_device(device, self.device_fingerprint, self.device_description, self.kind.what)
        return self


@dataclass(frozen=True)
class Net:
    """A network to measure.

    Attributes:
        key: Its row's key.
        input_shape: Of one image.
        build: Makes the model file.
    """

    key: tuple[str, ...]
    input_shape: Shape
    build: Callable[[], bytes]

    @property
    def name(self) -> str:
        """For errors and the ledger."""
        return " ".join(part for part in self.key if part)


MeasureBatch = Callable[
    [Agent, Mapping[str, bytes], Mapping[str, Sequence[int]], "Progress | None"], Mapping[str, Mapping[str, object]]
]


def collect_rows(
    kind: TableKind,
    space: SearchSpace,
    nets: Sequence[Net],
    device: DeviceSpec,
    measure_batch: MeasureBatch,
    table_path: str | Path,
    ledger: Ledger,
    purpose: str,
    *,
    batch_size: int,
    start_agent: Callable[[DeviceSpec], Agent],
    on_progress: Progress | None,
) -> DeviceTable:
    """The table at `table_path` with a row for each of `nets`, measuring those that it lacks, batch by batch.

    Args:
        measure_batch: From an agent, model files, shapes and progress to the columns of a row, besides its key, by the
            network's name.

    Raises:
        AgentError: The device failed; the table keeps the batches before.
        BusyMachineError: As well, if `measure_batch` refuses a busy machine.
        SpaceMismatchError, DeviceMismatchError, TableError: The table at `table_path` is another's, or none.
        InUseError: Another process measures into the same table.
        OSError: The table or the ledger cannot be written; found out before anything is measured.
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    path = Path(table_path)
    with locked(path):
        known = DeviceTable.read(kind, path).for_space(space) if path.exists() else None
        with start_agent(device) as agent:
            identity = identify(agent)
            table = DeviceTable.empty(kind, space, identity) if known is None else known.for_device(identity)
            table.write(path)
            measured = set(table.keys())
            missing = [net for net in nets if net.key not in measured]
            n_known = len(nets) - len(missing)
            if on_progress is not None:
                on_progress(n_known, len(nets))
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                models = {net.name: net.build() for net in batch}
                shapes = {net.name: (device.batch, *net.input_shape) for net in batch}
                for net in batch:
                    ledger.record(device.name, net.name, purpose)
                rows = measure_batch(agent, models, shapes, _shifted(on_progress, n_known + start, len(nets)))
                table = table.append(
                    [dict(zip(kind.key, net.key, strict=True)) | dict(rows[net.name]) for net in batch]
                )
                table.write(path)
    return table


def _shifted(on_progress: Progress | None, n_before: int, n_all: int) -> Progress | None:
    return None if on_progress is None else lambda done, _: on_progress(n_before + done, n_all)


def _frame(kind: TableKind, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame([dict(row) for row in rows], columns=None if rows else list(kind.columns))
    return frame.astype(cast(Any, {name: dtype for name, dtype in kind.columns.items() if name in frame.columns}))
