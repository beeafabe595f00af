"""Latency tables: measured rows with a fixed schema, tied to one search space and one device, stored as Parquet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from hanax._files import write_atomically
from hanax.devices._requests import DeviceIdentity
from hanax.search_spaces import Arch, SearchSpace, graph_features

if TYPE_CHECKING:
    import pandas as pd

Purpose = Literal["table", "winner"]
"""Why a row was measured: to learn from, or to confirm a result of a search."""

COLUMNS: dict[str, str] = {
    "arch": "str",
    "latency_ms": "float64",
    "latency_low_ms": "float64",
    "latency_high_ms": "float64",
    "min_ms": "float64",
    "p10_ms": "float64",
    "median_ms": "float64",
    "iqr_ms": "float64",
    "cpu_ms": "float64",
    "n_runs": "int64",
    "n_rounds": "int64",
    "rejected_rounds": "int64",
    "converged": "bool",
    "device": "str",
    "runtime": "str",
    "runtime_version": "str",
    "precision": "str",
    "threads": "int64",
    "batch": "int64",
    "load_average": "float64",
    "measured_at": "str",
    "purpose": "str",
}
"""Name and type of every column, in order. `Measurement` says what they mean."""

KEY = ["arch", "purpose"]
POSITIVE = ["latency_ms", "latency_low_ms", "latency_high_ms", "min_ms", "p10_ms", "median_ms"]

METADATA_KEY = b"hanax"
FORMAT = "hanax.latency_table/1"

OUTLIER_SIGMAS = 6.0
LEAST_SIGMA = 0.02
"""Differences below this, in log latency, are never what makes an outlier."""
FEWEST_ROWS_FOR_OUTLIERS = 10


class TableError(ValueError):
    """A latency table cannot be read, or its rows cannot be true."""


class DeviceMismatchError(ValueError):
    """A latency table belongs to another device: machine, runtime, its version, or the way it is used."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Latencies of architectures of one space on one device.

    Attributes:
        frame: `COLUMNS`, one row per architecture and purpose.
        space_fingerprint: `SearchSpace.fingerprint` of the space.
        device_fingerprint: `DeviceIdentity.fingerprint` of the device.
        space_name: For people.
        device_description: For people.

    Raises:
        TableError: A column is missing or unknown, an architecture has two rows for one purpose, or a latency is not
            a positive finite number.
    """

    frame: pd.DataFrame
    space_fingerprint: str
    device_fingerprint: str
    space_name: str = ""
    device_description: str = ""

    def __post_init__(self) -> None:
        columns = list(self.frame.columns)
        if missing := [name for name in COLUMNS if name not in columns]:
            raise TableError(f"latency table without column(s) {', '.join(missing)}; it has {', '.join(columns)}")
        if unknown := [name for name in columns if name not in COLUMNS]:
            raise TableError(f"latency table with unknown column(s) {', '.join(unknown)}; known: {', '.join(COLUMNS)}")
        if (again := self.frame.duplicated(KEY)).any():
            arch, purpose = self.frame.loc[again, KEY].iloc[0]
            raise TableError(f"latency table with two rows for arch {arch}, purpose {purpose!r}")
        for name in POSITIVE:
            values = self.frame[name].to_numpy(dtype=np.float64)
            wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if len(wrong):
                arch = self.frame["arch"].iloc[wrong[0]]
                raise TableError(f"arch {arch}: {name} must be a positive finite number; it is {values[wrong[0]]}")

    @classmethod
    def empty(cls, space: SearchSpace, device: DeviceIdentity) -> LatencyTable:
        """The table of `space` on `device` before anything was measured."""
        return cls(_frame([]), space.fingerprint, device.fingerprint, space.name, str(device))

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """The table that `write` stored.

        Raises:
            FileNotFoundError: There is no file.
            TableError: It is damaged or not a latency table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            stored = pq.read_table(pa.BufferReader(Path(path).read_bytes()))
        except pa.ArrowInvalid as error:
            raise TableError(f"{path} is not a readable Parquet file: {error}") from error
        metadata = (stored.schema.metadata or {}).get(METADATA_KEY)
        fields = json.loads(metadata) if metadata else {}
        if fields.pop("format", None) != FORMAT:
            raise TableError(f"{path} is Parquet but not a latency table: it has no metadata {FORMAT!r}")
        try:
            return cls(frame=stored.to_pandas(), **fields)
        except TableError as error:
            raise TableError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Store as Parquet, atomically: a reader finds the old table or this one, even after a crash.

        Raises:
            OSError: The folder cannot be written to.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = {"format": FORMAT} | {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "frame"
        }
        types = {"str": pa.string(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
        schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
        stored = pa.Table.from_pandas(self.frame, schema=schema, preserve_index=False)
        stored = stored.replace_schema_metadata({**stored.schema.metadata, METADATA_KEY: json.dumps(fields)})
        sink = pa.BufferOutputStream()
        pq.write_table(stored, sink)
        write_atomically(Path(path), sink.getvalue().to_pybytes())

    def append(self, rows: Sequence[Mapping[str, object]]) -> LatencyTable:
        """This table with `rows` after its own; each has all of `COLUMNS`.

        Raises:
            TableError: As for any table; an architecture that is there already for the same purpose.
        """
        import pandas as pd

        if not rows:
            return self
        added = _frame(rows)
        frame = pd.concat([self.frame, added], ignore_index=True) if len(self.frame) else added
        return dataclasses.replace(self, frame=frame)

    def archs(self, purpose: Purpose) -> list[Arch]:
        """The architectures measured for `purpose`, in the order of the rows."""
        return [Arch.parse(text) for text in self.frame.loc[self.frame["purpose"] == purpose, "arch"]]

    def for_space(self, space: SearchSpace) -> LatencyTable:
        """This table, if it belongs to `space`.

        Raises:
            SpaceMismatchError: It does not; names both fingerprints.
        """
        space.require(self.space_fingerprint, f"the latency table of space {self.space_name or '(unnamed)'}")
        return self

    def for_device(self, device: DeviceIdentity) -> LatencyTable:
        """This table, if it belongs to `device`.

        Raises:
            DeviceMismatchError: It does not; names both fingerprints.
        """
        if self.device_fingerprint != device.fingerprint:
            raise DeviceMismatchError(
                f"the latency table was measured on {self.device_description or '(undescribed)'} with fingerprint "
                f"{self.device_fingerprint}; the device here is {device} with fingerprint {device.fingerprint}"
            )
        return self

    def lint(self, space: SearchSpace) -> list[str]:
        """What is suspicious about the rows, in sentences; empty if nothing is.

        Rows that did not reach the confidence asked for; outliers of a fit to MACs, operators and memory traffic; and
        networks that contain another one, being at least as large in every decision, yet are faster than it with
        intervals that do not overlap.

        Raises:
            SpaceMismatchError: The table belongs to another space.
        """
        self.for_space(space)
        return [*self._unconverged(), *self._outliers(space), *self._inversions(space)]

    def _unconverged(self) -> list[str]:
        rows = self.frame[~self.frame["converged"]]
        if rows.empty:
            return []
        spread = (rows["latency_high_ms"] - rows["latency_low_ms"]) / 2 / rows["latency_ms"]
        worst = rows.iloc[int(spread.to_numpy().argmax())]
        return [
            f"{len(rows)} of {len(self.frame)} rows did not converge; the widest interval is +-{spread.max():.1%}, "
            f"of {worst['arch']} ({worst['rejected_rounds']} rounds rejected, {worst['n_rounds']} used)"
        ]

    def _outliers(self, space: SearchSpace) -> list[str]:
        if len(self.frame) < FEWEST_ROWS_FOR_OUTLIERS:
            return []
        names, features = graph_features(space, space.encode([Arch.parse(text) for text in self.frame["arch"]]))
        size = np.log(features[:, [names.index(name) for name in ("macs", "operators", "traffic_values")]])
        latency = self.frame["latency_ms"].to_numpy(dtype=np.float64)
        residuals = np.log(latency) - _least_absolute_fit(size, np.log(latency))
        sigma = max(LEAST_SIGMA, 1.4826 * float(np.median(np.abs(residuals))))
        return [
            f"{self.frame['arch'].iloc[row]}: {latency[row]:.4g} ms is {np.exp(residuals[row]):.2f} times what its "
            f"size suggests, {abs(residuals[row]) / sigma:.0f} sigma from the other rows"
            for row in np.flatnonzero(np.abs(residuals) > OUTLIER_SIGMAS * sigma)
        ]

    def _inversions(self, space: SearchSpace) -> list[str]:
        codes = space.encode([Arch.parse(text) for text in self.frame["arch"]])
        marked = np.where(space.active(codes), codes, -1)
        low, high = (self.frame[name].to_numpy(dtype=np.float64) for name in ("latency_low_ms", "latency_high_ms"))
        arch = self.frame["arch"].to_list()
        found = []
        for large in range(len(marked)):
            is_inside = (marked <= marked[large]).all(axis=1) & (marked != marked[large]).any(axis=1)
            found += [
                f"{arch[large]} contains {arch[small]} and is faster: {low[large]:.4g} to {high[large]:.4g} ms against "
                f"{low[small]:.4g} to {high[small]:.4g} ms"
                for small in np.flatnonzero(is_inside & (high[large] < low))
            ]
        return found


def _frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame([dict(row) for row in rows], columns=None if rows else list(COLUMNS))
    known: dict[Any, Any] = {name: kind for name, kind in COLUMNS.items() if name in frame.columns}
    return frame.astype(known)


def _least_absolute_fit(x: Float[np.ndarray, "n f"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The linear fit with the least sum of absolute residuals, at `x`; a few wild values do not bend it.

    Iteratively reweighted least squares (Schlossmacher, 1973, doi:10.1080/01621459.1973.10481512).
    """
    design = np.column_stack([np.ones(len(x)), x - x.mean(axis=0)])
    weights = np.ones(len(y))
    for _ in range(30):
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(design * root[:, None], y * root)[0]
        weights = 1.0 / np.maximum(np.abs(y - design @ solution), 1e-6)
    fitted: Float[np.ndarray, " n"] = design @ solution
    return fitted
