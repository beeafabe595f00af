"""Latency tables: measured rows with a fixed schema, tied to one search space and one device, stored as Parquet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from hanax.devices._reliability import Reliability, compare_passes
from hanax.devices._requests import DeviceIdentity
from hanax.devices._stored_table import (
    TableError,
    check_columns,
    check_positive,
    read_table,
    require_device,
    write_table,
)
from hanax.search_spaces import Arch, SearchSpace, graph_features, precision_columns

if TYPE_CHECKING:
    import pandas as pd

Purpose = Literal["table", "held-out", "winner"]
"""Why a row was measured: to learn from, to judge what was learned, or to confirm a result of a search."""

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
    "busy_share": "float64",
    "measured_at": "str",
    "purpose": "str",
    "pass_latency_ms": "list",
}
"""Name and type of every column, in order. `Measurement` says what they mean.

``pass_latency_ms`` holds the latency that each pass found, in order; `combine_passes` says what the other columns hold
when there are several. A row without it is the first pass, one without ``busy_share`` does not know it: so tables of
format 1, which had neither, are read.
"""

KEY = ["arch", "purpose"]
POSITIVE = ["latency_ms", "latency_low_ms", "latency_high_ms", "min_ms", "p10_ms", "median_ms"]

FORMAT = "hanax.latency_table/2"
FIRST_FORMAT = "hanax.latency_table/1"

OUTLIER_SIGMAS = 6.0
LEAST_SIGMA = 0.02
"""Differences below this, in log latency, are never what makes an outlier."""
FEWEST_ROWS_FOR_OUTLIERS = 10
FEWEST_EQUAL = 3
MANY_EQUAL = 0.05
"""So many rows of exactly the same latency, and this share of all, are no chance."""
MOST_INVERSIONS = 10
"""Worst ones that are told one by one."""
UNSTEADY = 1.5
"""A typical run takes at most this many times the latency, on a machine that is left alone."""


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
        TableError: A column is missing or unknown, an architecture has two rows for one purpose, a latency is not
            a positive finite number, or the latencies of the passes are not those that `latency_ms` combines.
    """

    frame: pd.DataFrame
    space_fingerprint: str
    device_fingerprint: str
    space_name: str = ""
    device_description: str = ""

    def __post_init__(self) -> None:
        check_columns(self.frame, list(COLUMNS), "latency table")
        if (again := self.frame.duplicated(KEY)).any():
            arch, purpose = self.frame.loc[again, KEY].iloc[0]
            raise TableError(f"latency table with two rows for arch {arch}, purpose {purpose!r}")
        check_positive(self.frame, POSITIVE)
        for arch, latency, of_passes in self.frame[["arch", "latency_ms", "pass_latency_ms"]].itertuples(index=False):
            if len(of_passes) == 0 or not math.isclose(_geometric_mean(of_passes), latency, rel_tol=1e-9):
                raise TableError(
                    f"arch {arch}: latency_ms is {latency}; the passes found {list(of_passes)}, "
                    "whose geometric mean it must be"
                )

    @classmethod
    def empty(cls, space: SearchSpace, device: DeviceIdentity) -> LatencyTable:
        """The table of `space` on `device` before anything was measured."""
        return cls.of(space.name, space.fingerprint, device)

    @classmethod
    def of(cls, space_name: str, space_fingerprint: str, device: DeviceIdentity) -> LatencyTable:
        """The table before anything was measured of a space that is not at hand, but for its fingerprint."""
        return cls(_frame([]), space_fingerprint, device.fingerprint, space_name, str(device))

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """The table that `write` stored.

        Raises:
            FileNotFoundError: There is no file.
            TableError: It is damaged or not a latency table.
        """
        frame, fields = read_table(path, [FORMAT, FIRST_FORMAT], "latency table")
        if fields.pop("format") == FIRST_FORMAT:
            frame = _completed(frame)
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
        write_table(path, self.frame, COLUMNS, {"format": FORMAT} | fields)

    def append(self, rows: Sequence[Mapping[str, object]]) -> LatencyTable:
        """This table with `rows` after its own.

        Args:
            rows: Each has all of `COLUMNS`; ``pass_latency_ms`` and ``busy_share`` may be left out.

        Raises:
            TableError: As for any table; an architecture that is there already for the same purpose.
        """
        import pandas as pd

        if not rows:
            return self
        added = _frame(rows)
        frame = pd.concat([self.frame, added], ignore_index=True) if len(self.frame) else added
        return dataclasses.replace(self, frame=frame)

    def add_pass(self, rows: Sequence[Mapping[str, object]]) -> LatencyTable:
        """This table with one more pass over the architectures of `rows`, combined with those it has.

        Raises:
            TableError: The table does not have one of the architectures for the same purpose yet.
        """
        frame = self.frame.copy()
        place = {key: index for index, key in enumerate(zip(*(frame[name] for name in KEY), strict=True))}
        records: list[dict[Any, Any]] = frame.to_dict("records")
        for row in rows:
            key = tuple(row[name] for name in KEY)
            if key not in place:
                raise TableError(f"arch {key[0]}, purpose {key[1]!r} has no pass yet that another could follow")
            records[place[key]] = combine_passes(records[place[key]], row)
        return dataclasses.replace(self, frame=_frame(records))

    def archs(self, purpose: Purpose, passes: int = 1) -> list[Arch]:
        """The architectures measured for `purpose` in at least so many passes, in the order of the rows."""
        wanted = (self.frame["purpose"] == purpose) & (self.frame["pass_latency_ms"].map(len) >= passes)
        return [Arch.parse(text) for text in self.frame.loc[wanted, "arch"]]

    def reliability(self, purpose: Purpose = "table") -> Reliability | None:
        """How well the first two passes agree; None before two architectures have been measured twice."""
        rows = self.frame[(self.frame["purpose"] == purpose) & (self.frame["pass_latency_ms"].map(len) >= 2)]
        if len(rows) < 2:
            return None
        first, second = (np.array([float(of[step]) for of in rows["pass_latency_ms"]]) for step in (0, 1))
        half = (rows["latency_high_ms"] - rows["latency_low_ms"]).to_numpy() / 2 / rows["latency_ms"].to_numpy()
        return compare_passes(
            first,
            second,
            rows["arch"].to_list(),
            half_widths=half,
            rejected_share=float(rows["rejected_rounds"].sum() / (rows["rejected_rounds"] + rows["n_rounds"]).sum()),
            unconverged_share=float(1 - rows["converged"].mean()),
            busy_share=float(rows["busy_share"].median()),
        )

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
        require_device(device, self.device_fingerprint, self.device_description, "latency table")
        return self

    def lint(self, space: SearchSpace) -> list[str]:
        """What is suspicious about the rows, in sentences; empty if nothing is.

        Rows that did not reach the confidence asked for; passes that disagree by more than the others do; many
        networks with the very same latency; networks whose typical run is far slower than their fastest ones; outliers
        of a fit to MACs, operators and memory traffic; and networks that contain another one, being at least as large
        in every decision and in the same number formats, yet are faster than it with intervals that do not overlap.

        Raises:
            SpaceMismatchError: The table belongs to another space.
        """
        self.for_space(space)
        return [
            *self._unconverged(),
            *self._constant(),
            *self._unsteady(),
            *self._disagreeing(),
            *self._outliers(space),
            *self._inversions(space),
        ]

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

    def _constant(self) -> list[str]:
        """A clock does not read the same to the last digit for different networks; a broken device does."""
        counts = self.frame["latency_ms"].value_counts()
        if counts.empty or counts.iloc[0] < max(FEWEST_EQUAL, MANY_EQUAL * len(self.frame)):
            return []
        return [
            f"{counts.iloc[0]} of {len(self.frame)} rows have exactly the same latency, {counts.index[0]} ms: "
            "a clock that is too coarse, or a device that does not measure"
        ]

    def _unsteady(self) -> list[str]:
        rows = self.frame[self.frame["median_ms"] > UNSTEADY * self.frame["latency_ms"]]
        if rows.empty:
            return []
        ratio = rows["median_ms"] / rows["latency_ms"]
        worst = rows.iloc[int(ratio.to_numpy().argmax())]
        return [
            f"in {len(rows)} of {len(self.frame)} rows the typical run takes more than {UNSTEADY:g} times the fastest "
            f"of its round: the machine was disturbed or changed its speed; most of all in {worst['arch']} "
            f"({worst['median_ms']:.4g} against {worst['latency_ms']:.4g} ms)"
        ]

    def _disagreeing(self) -> list[str]:
        rows = self.frame[self.frame["pass_latency_ms"].map(len) >= 2]
        if len(rows) < 2:
            return []
        logs = np.log([[of[0], of[1]] for of in rows["pass_latency_ms"]])
        change = logs[:, 1] - logs[:, 0]
        change -= np.median(change)
        sigma = max(LEAST_SIGMA, 1.4826 * float(np.median(np.abs(change))))
        return [
            f"{rows['arch'].iloc[row]}: {np.exp(logs[row, 0]):.4g} ms in the first pass and "
            f"{np.exp(logs[row, 1]):.4g} ms in the second, {abs(change[row]) / sigma:.0f} sigma from how the others "
            "changed"
            for row in np.flatnonzero(np.abs(change) > OUTLIER_SIGMAS * sigma)
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
        formats = precision_columns(space)  # more bits need not take longer
        low, high = (self.frame[name].to_numpy(dtype=np.float64) for name in ("latency_low_ms", "latency_high_ms"))
        arch = self.frame["arch"].to_list()
        pairs: list[tuple[int, int]] = []
        for large in range(len(marked)):
            is_inside = (marked <= marked[large]).all(axis=1) & (marked != marked[large]).any(axis=1)
            is_inside &= ((marked == marked[large]) | (marked < 0))[:, formats].all(axis=1)
            pairs += [(large, small) for small in np.flatnonzero(is_inside & (high[large] < low)).tolist()]
        pairs.sort(key=lambda pair: high[pair[0]] / low[pair[1]])
        found = [
            f"{arch[large]} contains {arch[small]} and is faster: {low[large]:.4g} to {high[large]:.4g} ms against "
            f"{low[small]:.4g} to {high[small]:.4g} ms"
            for large, small in pairs[:MOST_INVERSIONS]
        ]
        if len(pairs) > MOST_INVERSIONS:
            found.append(f"and {len(pairs) - MOST_INVERSIONS} more pairs like these, less far apart")
        return found


def combine_passes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The row of an architecture that was measured again: `before` holds the passes so far, `after` one more.

    * ``latency_ms``: geometric mean of the passes' latencies. What changes between passes is mostly the machine's
      speed, a factor, and neither pass is the true one.
    * ``latency_low_ms`` and ``latency_high_ms``: the passes' 95 % intervals and all between them. If the latency itself
      differed between passes, this holds the (geometric) mean of the true latencies with at least 95 %: it can only be
      missed above if the pass with the largest true latency misses its own, which happens in 2.5 %; and so below.
    * ``min_ms``: the least; counts of runs and rounds: sums; ``converged``: in all passes; ``load_average`` and
      ``busy_share``: the largest; ``measured_at``: the last.
    * ``p10_ms``, ``median_ms``, ``iqr_ms``, ``cpu_ms``: means over the passes, each weighted by its runs, since the
      runs are not kept.
    """
    passes = [*before["pass_latency_ms"], float(after["latency_ms"])]
    weight = after["n_runs"] / (before["n_runs"] + after["n_runs"])
    combined = dict(before) | {"pass_latency_ms": passes, "latency_ms": _geometric_mean(passes)}
    combined["latency_low_ms"] = min(before["latency_low_ms"], after["latency_low_ms"])
    combined["latency_high_ms"] = max(before["latency_high_ms"], after["latency_high_ms"])
    combined["min_ms"] = min(before["min_ms"], after["min_ms"])
    for name in ("n_runs", "n_rounds", "rejected_rounds"):
        combined[name] = before[name] + after[name]
    for name in ("p10_ms", "median_ms", "iqr_ms", "cpu_ms"):
        combined[name] = (1 - weight) * before[name] + weight * after[name]
    for name in ("load_average", "busy_share"):
        combined[name] = float(np.fmax(before[name], after.get(name, np.nan)))
    combined["converged"] = bool(before["converged"] and after["converged"])
    combined["measured_at"] = after["measured_at"]
    return combined


def _geometric_mean(values: Sequence[float] | np.ndarray) -> float:
    return float(values[0]) if len(values) == 1 else float(np.exp(np.mean(np.log(values))))


def _frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    import pandas as pd

    frame = _completed(pd.DataFrame([dict(row) for row in rows], columns=None if rows else list(COLUMNS)))
    known: dict[Any, Any] = {name: kind for name, kind in COLUMNS.items() if name in frame.columns and kind != "list"}
    return frame.astype(known)


def _completed(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with what a row may leave out, in the order of `COLUMNS`."""
    if "latency_ms" not in frame.columns:
        return frame
    if "busy_share" not in frame.columns:
        frame = frame.assign(busy_share=np.nan)
    if "pass_latency_ms" not in frame.columns:
        alone: Any = [[float(latency)] for latency in frame["latency_ms"]]
        frame = frame.assign(pass_latency_ms=alone)
    order = [name for name in COLUMNS if name in frame.columns]
    return frame[[*order, *(name for name in frame.columns if name not in COLUMNS)]]


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
