"""What a table is worth: whether its rows can be true, and what it holds, in figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from hanax.devices import _cost_table, _table
from hanax.devices._cost_table import CostTable
from hanax.devices._stored_table import METADATA_KEY, TableError
from hanax.devices._table import LatencyTable, Purpose
from hanax.search_spaces import Arch, SearchSpace, graph_features

if TYPE_CHECKING:
    import pandas as pd

KINDS: dict[str, type[LatencyTable] | type[CostTable]] = {
    stored_format.partition("/")[0]: kind
    for stored_format, kind in ((_table.FORMAT, LatencyTable), (_cost_table.FORMAT, CostTable))
}
"""By the name of their format; which versions of it can be read is theirs to say."""

ONE_DEVICE = ("device", "runtime", "runtime_version", "precision", "threads", "batch")
"""Columns with one value, as a table is of one device."""

ASCENDING = (
    ("latency_low_ms", "latency_ms"),
    ("latency_ms", "latency_high_ms"),
    ("min_ms", "latency_ms"),
    ("min_ms", "p10_ms"),
    ("p10_ms", "median_ms"),
)
"""Pairs of columns of which the first cannot be above the second, by what a `Measurement` is."""
TOLERANCE = 1e-9

LEAST_MACS_PER_S, MOST_MACS_PER_S = 1e5, 1e16
"""No device that runs these networks is slower or faster, whatever the precision."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a table.

    Attributes:
        severity: ``error``: a row cannot be true; ``warning``: it may be, but look at it.
    """

    severity: Literal["error", "warning"]
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


def open_table(path: str | Path) -> LatencyTable | CostTable:
    """The table at `path`, of whichever kind it is.

    Raises:
        FileNotFoundError: There is no file.
        TableError: It is damaged, of no kind or version that this Hanax knows, or its rows cannot be true.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(pa.BufferReader(Path(path).read_bytes())).metadata or {}
        stored_format = json.loads(metadata.get(METADATA_KEY, b"{}")).get("format")
    except (pa.ArrowInvalid, ValueError, AttributeError) as error:
        raise TableError(f"{path} is not a readable table: {error}") from error
    kind = KINDS.get(str(stored_format).partition("/")[0])
    if kind is None:
        raise TableError(f"{path} is of format {stored_format!r}; known are {' and '.join(KINDS)}")
    try:
        return kind.read(path)
    except TypeError as error:
        raise TableError(f"{path}: its metadata does not fit its format {stored_format}: {error}") from error


def validate_table(
    table: LatencyTable | CostTable, space: SearchSpace | None = None, now: datetime | None = None
) -> list[Finding]:
    """What is wrong with `table`, errors first; empty if nothing is.

    Args:
        space: Its search space. With it, architectures are checked to be of the space, latencies against the networks'
            sizes, and `LatencyTable.lint` has its say.
        now: No row can be younger; the clock's time by default.

    Raises:
        SpaceMismatchError: The table belongs to another space.
    """
    if space is not None:
        table.for_space(space)
    errors = [*_archs(table, space)]
    warnings: list[str] = []
    if isinstance(table, LatencyTable):
        errors += [*_orders(table.frame), *_counts(table.frame), *_one_device(table.frame)]
        errors += _times(table.frame, now or datetime.now(UTC))
    if space is not None and not errors:
        errors += _rates(table, space)
        if isinstance(table, LatencyTable):
            warnings += table.lint(space)
    if table.frame.empty:
        warnings.append("the table has no rows")
    return [Finding("error", text) for text in errors] + [Finding("warning", text) for text in warnings]


def _archs(table: LatencyTable | CostTable, space: SearchSpace | None) -> list[str]:
    try:
        archs = [Arch.parse(text) for text in table.frame["arch"]]
        if space is not None:
            space.encode(archs)
    except ValueError as error:
        return [str(error)]
    lengths = sorted({len(arch.choices) for arch in archs})
    return (
        [f"architectures with {lengths[0]} and with {lengths[-1]} decisions in one table"] if len(lengths) > 1 else []
    )


def _orders(frame: pd.DataFrame) -> list[str]:
    found = []
    for lower, upper in ASCENDING:
        low, high = frame[lower].to_numpy(dtype=np.float64), frame[upper].to_numpy(dtype=np.float64)
        found += _wrong(frame, low > high * (1 + TOLERANCE), f"{lower} is above {upper}", lower, upper)
    return found


def _counts(frame: pd.DataFrame) -> list[str]:
    found = []
    for name, least in (
        ("n_rounds", 1),
        ("rejected_rounds", 0),
        ("threads", 1),
        ("batch", 1),
        ("iqr_ms", 0),
        ("cpu_ms", 0),
    ):
        values = frame[name].to_numpy(dtype=np.float64)
        found += _wrong(frame, ~(np.isfinite(values) & (values >= least)), f"{name} must be {least} or more", name)
    fewer = (frame["n_runs"] < frame["n_rounds"]).to_numpy()
    found += _wrong(frame, fewer, "fewer runs than rounds", "n_runs", "n_rounds")
    unknown = ~frame["purpose"].isin(get_args(Purpose)).to_numpy()
    return found + _wrong(frame, unknown, f"purpose must be one of {', '.join(get_args(Purpose))}", "purpose")


def _one_device(frame: pd.DataFrame) -> list[str]:
    return [
        f"{name} has several values in a table of one device: {', '.join(map(str, frame[name].unique()[:4]))}"
        for name in ONE_DEVICE
        if frame[name].nunique(dropna=False) > 1
    ]


def _times(frame: pd.DataFrame, now: datetime) -> list[str]:
    def problem(text: str) -> str | None:
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            return "is no ISO 8601 time"
        if time.tzinfo is None:
            return "has no time zone"
        return "lies in the future" if time > now else None

    problems = [(arch, text, problem(text)) for arch, text in zip(frame["arch"], frame["measured_at"], strict=True)]
    return [f"arch {arch}: measured_at {text!r} {why}" for arch, text, why in problems if why is not None][:1]


def _rates(table: LatencyTable | CostTable, space: SearchSpace) -> list[str]:
    """Latencies that no device can have, given what there is to compute."""
    frame = table.frame
    name = "latency_ms" if isinstance(table, LatencyTable) else table.cost
    if name != "latency_ms" or frame.empty:
        return []
    names, sums = graph_features(space, space.encode([Arch.parse(text) for text in frame["arch"]]))
    macs = sums[:, names.index("macs")] * (frame["batch"].to_numpy() if "batch" in frame else 1)
    rate = macs / (frame[name].to_numpy(dtype=np.float64) / 1e3)
    wrong = (rate < LEAST_MACS_PER_S) | (rate > MOST_MACS_PER_S)
    return [
        f"arch {frame['arch'].iloc[row]}: {frame[name].iloc[row]:.4g} ms for {macs[row]:.4g} MACs is {rate[row]:.2g} "
        f"MACs a second; devices do {LEAST_MACS_PER_S:.0e} to {MOST_MACS_PER_S:.0e}: is the unit right?"
        for row in np.flatnonzero(wrong)[:1]
    ]


def _wrong(frame: pd.DataFrame, rows: np.ndarray, what: str, *columns: str) -> list[str]:
    """One sentence about all wrong `rows`, with the first as the example."""
    where = np.flatnonzero(rows)
    if not len(where):
        return []
    first = frame.iloc[int(where[0])]
    shown = ", ".join(f"{name} {first[name]}" for name in columns)
    return [f"{what} in {len(where)} of {len(frame)} rows; arch {first['arch']} has {shown}"]


def describe_table(table: LatencyTable | CostTable) -> dict[str, Any]:
    """What `table` holds, as JSON values.

    Ranges are smallest, median and largest. ``half_width`` is that of the 95 % intervals, as a share of the latency.
    """
    frame = table.frame
    facts: dict[str, Any] = {
        "kind": type(table).__name__,
        "space": table.space_name,
        "space_fingerprint": table.space_fingerprint,
        "identity": table.device_description,
        "device_fingerprint": table.device_fingerprint,
        "rows": len(frame),
    }
    if isinstance(table, CostTable):
        return facts | {table.cost: _range(frame[table.cost])}
    half_width = (frame["latency_high_ms"] - frame["latency_low_ms"]) / 2 / frame["latency_ms"]
    rounds = int(frame["n_rounds"].sum())
    rejected = int(frame["rejected_rounds"].sum())
    return facts | {
        "purposes": {str(purpose): len(rows) for purpose, rows in frame.groupby("purpose")},
        **{name: _only(frame[name]) for name in ONE_DEVICE},
        "latency_ms": _range(frame["latency_ms"]),
        "half_width": _range(half_width),
        "converged_share": float(frame["converged"].mean()) if len(frame) else None,
        "rounds": rounds,
        "rejected_share": rejected / (rounds + rejected) if rounds + rejected else None,
        "load_average": _range(frame["load_average"]),
        "measured_at": [min(frame["measured_at"]), max(frame["measured_at"])] if len(frame) else None,
    }


def _range(values: pd.Series[Any]) -> list[float] | None:
    known = values.to_numpy(dtype=np.float64)
    known = known[np.isfinite(known)]
    return [float(known.min()), float(np.median(known)), float(known.max())] if len(known) else None


def _only(values: pd.Series[Any]) -> Any:
    """The value that all rows have, or the list of those there are."""
    there: Sequence[Any] = values.unique().tolist()
    return there[0] if len(there) == 1 else there
