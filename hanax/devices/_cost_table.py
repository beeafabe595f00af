"""Cost tables: what no clock measured, counted or computed, one exact number per architecture, stored as Parquet."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from hanax.devices._stored_table import (
    Fingerprinted,
    TableError,
    check_columns,
    check_positive,
    read_table,
    require_device,
    write_table,
)
from hanax.search_spaces import Arch, SearchSpace

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "hanax.cost_table/1"

UNITS = ("ms", "mj", "bytes", "macs", "params", "instructions")
"""How the name of a cost may end. Those that count something may be the whole name."""


@dataclass(frozen=True, slots=True)
class CostDevice:
    """What gives costs without a clock: a cost model with its parameters, or a runtime whose instructions are counted.

    Attributes:
        name: As users name it.
        settings: Everything that decides the costs: parameters, versions, hashes of files; as ``(name, value)``.
    """

    name: str
    settings: tuple[tuple[str, str | int | float], ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of all fields, 16 hexadecimal digits. Cost tables carry it."""
        return hashlib.sha256(json.dumps([self.name, sorted(self.settings)]).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings)
        return f"{self.name} ({settings})" if settings else self.name


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of architectures of one space on one device.

    Attributes:
        frame: Columns ``arch`` and `cost`, one row per architecture.
        cost: The cost's name, which ends in its unit, one of `UNITS`: ``latency_ms``, ``instructions``, ...
        space_fingerprint: `SearchSpace.fingerprint` of the space.
        device_fingerprint: `CostDevice.fingerprint`, or that of any other device.
        space_name: For people.
        device_description: For people.

    Raises:
        TableError: The name of the cost has no unit, a column is missing or unknown, an architecture has two rows, or
            a cost is not a positive finite number.
    """

    frame: pd.DataFrame
    cost: str
    space_fingerprint: str
    device_fingerprint: str
    space_name: str = ""
    device_description: str = ""

    def __post_init__(self) -> None:
        if self.cost.rpartition("_")[2] not in UNITS:
            raise TableError(f"the name of a cost ends in its unit, one of {', '.join(UNITS)}; got {self.cost!r}")
        check_columns(self.frame, ["arch", self.cost], "cost table")
        if (again := self.frame.duplicated("arch")).any():
            raise TableError(f"cost table with two rows for arch {self.frame.loc[again, 'arch'].iloc[0]}")
        check_positive(self.frame, [self.cost])

    @classmethod
    def empty(cls, space: SearchSpace, device: Fingerprinted, cost: str) -> CostTable:
        """The table of `space` on `device` before any cost is known."""
        return cls(_frame([], cost, []), cost, space.fingerprint, device.fingerprint, space.name, str(device))

    @classmethod
    def read(cls, path: str | Path) -> CostTable:
        """The table that `write` stored.

        Raises:
            FileNotFoundError: There is no file.
            TableError: It is damaged or not a cost table.
        """
        frame, fields = read_table(path, [FORMAT], "cost table")
        del fields["format"]
        try:
            return cls(frame=frame, **fields)
        except TableError as error:
            raise TableError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Store as Parquet, atomically: a reader finds the old table or this one, even after a crash.

        Raises:
            OSError: The folder cannot be written to.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "frame"}
        write_table(path, self.frame, {"arch": "str", self.cost: "float64"}, {"format": FORMAT} | fields)

    def append(self, archs: Sequence[Arch], costs: ArrayLike) -> CostTable:
        """This table with the `costs` of `archs` after its own.

        Raises:
            TableError: As for any table; an architecture that is there already; another number of costs than archs.
        """
        import pandas as pd

        values = np.asarray(costs, dtype=np.float64)
        if values.shape != (len(archs),):
            raise TableError(f"{len(archs)} architectures need so many costs; got an array of shape {values.shape}")
        if not len(archs):
            return self
        added = _frame(archs, self.cost, values)
        frame = pd.concat([self.frame, added], ignore_index=True) if len(self.frame) else added
        return dataclasses.replace(self, frame=frame)

    def archs(self) -> list[Arch]:
        """The architectures whose cost is known, in the order of the rows."""
        return [Arch.parse(text) for text in self.frame["arch"]]

    def costs(self) -> Float[np.ndarray, " n"]:
        """Their costs, in the same order."""
        return self.frame[self.cost].to_numpy(dtype=np.float64)

    def for_space(self, space: SearchSpace) -> CostTable:
        """This table, if it belongs to `space`.

        Raises:
            SpaceMismatchError: It does not; names both fingerprints.
        """
        space.require(self.space_fingerprint, f"the cost table of space {self.space_name or '(unnamed)'}")
        return self

    def for_device(self, device: Fingerprinted, cost: str) -> CostTable:
        """This table, if it holds the `cost` on `device`.

        Raises:
            DeviceMismatchError: It belongs to another device; names both fingerprints.
            TableError: It holds another cost.
        """
        require_device(device, self.device_fingerprint, self.device_description, "cost table")
        if cost != self.cost:
            raise TableError(f"the cost table holds {self.cost}; asked for was {cost}")
        return self


def collect_costs(
    space: SearchSpace,
    archs: Sequence[Arch],
    device: Fingerprinted,
    cost: str,
    costs_of: Callable[[list[Arch]], ArrayLike],
    table_path: str | Path,
    *,
    batch_size: int = 12,
    on_progress: Callable[[int, int], None] | None = None,
) -> CostTable:
    """The table at `table_path` with rows for all of `archs`, asking for the costs that it lacks.

    The table is replaced after each batch, so that a crash or an error costs one batch at most; call again to go on.
    Architectures that are the same network (equal canonical codes) are asked for once.

    Args:
        cost: What the table holds, a name that ends in its unit.
        costs_of: The costs of a batch, in its order: from an agent that counts, or from a model. It notes in a ledger
            what it asks of a device.
        batch_size: Architectures per call of `costs_of`.
        on_progress: Called with the number of architectures done and of all.

    Raises:
        SpaceMismatchError, DeviceMismatchError: The table at `table_path` is another's.
        TableError: What is at `table_path` is not a table of this cost, or a cost cannot be true.
        OSError: The table cannot be written; found out before anything is asked for.
        ValueError: An arch is not of `space`, or `batch_size` is below 1.
        Exception: What `costs_of` raises; the table keeps the batches before.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    wanted = list(dict.fromkeys(space.decode(space.canonical(space.encode(archs)))))
    path = Path(table_path)
    if path.exists():
        table = CostTable.read(path).for_space(space).for_device(device, cost)
    else:
        table = CostTable.empty(space, device, cost)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write(path)
    known = set(table.archs())
    missing = [arch for arch in wanted if arch not in known]
    for start in range(0, len(missing), batch_size):
        if on_progress is not None:
            on_progress(len(wanted) - len(missing) + start, len(wanted))
        batch = missing[start : start + batch_size]
        table = table.append(batch, costs_of(batch))
        table.write(path)
    if on_progress is not None:
        on_progress(len(wanted), len(wanted))
    return table


def _frame(archs: Sequence[Arch], cost: str, costs: ArrayLike) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame({"arch": [str(arch) for arch in archs], cost: costs})
    return frame.astype({"arch": "str", cost: "float64"})
