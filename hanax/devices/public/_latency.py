"""Latencies of many architectures on many devices, and the defects that such published columns have.

Shapes: `n` architectures, `m` devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float64

from hanax.devices.public._folder import PublicDataError
from hanax.devices.public._public_table import ARCH, INDEX, Column, PublicTable

if TYPE_CHECKING:
    import pandas as pd

LEAST_MS = 0.1
"""A network of these spaces that seems to take less was optimised away: it computes nothing from the image."""
FEW_VALUES = 100
NEAR_DUPLICATE = 0.995
"""Two devices whose rank correlation is at least this are one device for a predictor."""

LATENCY_COLUMNS = {
    "index": INDEX,
    "arch": ARCH,
    "device": Column("str", "device as the source names it; a last number, if any, is the batch size"),
    "latency_ms": Column("float64", "latency of one inference of the whole batch; missing if not measured", "ms"),
    "flag": Column(
        "str",
        "empty; or 'not measured'; or 'optimised away': no path and below 0.1 ms; or 'no path': the output does not "
        "depend on the input, so that a compiler may drop any part of the network",
    ),
}
DEVICE_COLUMNS = {
    "device": LATENCY_COLUMNS["device"],
    "group": Column("str", "train, valid or test in the source's experiments; or the source, where two were merged"),
    "n_measured": Column("int64", "architectures with a latency"),
    "n_missing": Column("int64", "architectures without one"),
    "n_optimised_away": Column("int64", "architectures without a path that took less than 0.1 ms"),
    "n_values": Column(
        "int64", "different latencies in single precision; few of them are ties that hold rank correlations below 1"
    ),
    "whole_ms": Column("bool", "whether all latencies are whole milliseconds"),
    "min_ms": Column("float64", "the shortest latency", "ms"),
    "median_ms": Column("float64", "the median latency", "ms"),
    "max_ms": Column("float64", "the longest latency", "ms"),
    "macs_spearman": Column("float64", "rank correlation of MACs with latency, all architectures that were measured"),
    "nearest_device": Column("str", "the other device with the highest rank correlation"),
    "nearest_spearman": Column("float64", "that rank correlation"),
    "near_duplicate": Column("bool", "whether it is at least 0.995: not a device of its own"),
}


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Rank correlation of the pairs in which neither is NaN; ties share their mean rank."""
    from scipy.stats import rankdata

    both = np.isfinite(x) & np.isfinite(y)
    return float(np.corrcoef(rankdata(x[both]), rankdata(y[both]))[0, 1])


def check_latencies(values: object, n: int, where: str) -> Float64[np.ndarray, " n"]:
    """`values` as an array, if they are `n` positive numbers.

    Raises:
        PublicDataError: They are not.
    """
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise PublicDataError(f"{where} is not a list of numbers")
    if len(values) != n:
        raise PublicDataError(f"{where} holds {len(values)} latencies for {n} architectures")
    try:
        latency = np.array(values, dtype=np.float64)
    except OverflowError as error:
        raise PublicDataError(f"{where}: {error}") from error
    wrong = np.flatnonzero(~(np.isfinite(latency) & (latency > 0)))
    if len(wrong):
        raise PublicDataError(f"{where}: latency {wrong[0]} is {latency[wrong[0]]}; it must be a positive number")
    return latency


def latency_tables(
    prefix: str,
    archs: PublicTable,
    devices: Sequence[str],
    latency_ms: Float64[np.ndarray, "n m"],
    groups: Mapping[str, Sequence[str]],
) -> tuple[PublicTable, PublicTable]:
    """A table of latencies, one row per architecture and device, and a table of the devices with their defects.

    Args:
        archs: One row per row of `latency_ms`, with ``arch``, ``macs`` and, where it may be false, ``has_path``.
        latency_ms: NaN where nothing was measured.
        groups: Devices by their part in the source's experiments.
    """
    import pandas as pd

    n = len(archs.frame)
    path: Bool[np.ndarray, " n"] = (
        archs.frame["has_path"].to_numpy(dtype=np.bool_) if "has_path" in archs.columns else np.ones(n, dtype=np.bool_)
    )
    away = ~path[:, None] & (latency_ms < LEAST_MS)
    flags = np.where(np.isnan(latency_ms), "not measured", np.where(away, "optimised away", ""))
    flags = np.where((flags == "") & ~path[:, None], "no path", flags)
    frame = pd.DataFrame(
        {
            "index": np.tile(np.arange(n), len(devices)),
            "arch": np.tile(archs.frame["arch"].to_numpy(dtype=object), len(devices)),
            "device": np.repeat(np.array(devices, dtype=object), n),
            "latency_ms": latency_ms.T.ravel(),
            "flag": flags.T.ravel().astype(object),
        }
    )
    latency = PublicTable(f"{prefix}_latency", frame, LATENCY_COLUMNS, archs.decisions, archs.space_fingerprint)
    about = _device_frame(archs.frame["macs"].to_numpy(dtype=np.float64), devices, latency_ms, away, groups)
    return latency, PublicTable(f"{prefix}_devices", about, DEVICE_COLUMNS)


def _device_frame(
    macs: Float64[np.ndarray, " n"],
    devices: Sequence[str],
    latency_ms: Float64[np.ndarray, "n m"],
    away: Bool[np.ndarray, "n m"],
    groups: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    import pandas as pd
    from scipy.stats import rankdata

    everywhere = latency_ms[np.isfinite(latency_ms).all(axis=1)]
    alike = np.corrcoef(rankdata(everywhere, axis=0), rowvar=False)
    np.fill_diagonal(alike, -1.0)
    nearest = alike.argmax(axis=1)
    rows = []
    for position, device in enumerate(devices):
        column = latency_ms[:, position]
        known = column[np.isfinite(column)]
        rows.append(
            {
                "device": device,
                "group": next((name for name, members in groups.items() if device in members), ""),
                "n_measured": len(known),
                "n_missing": len(column) - len(known),
                "n_optimised_away": int(away[:, position].sum()),
                "n_values": len(np.unique(known.astype(np.float32))),
                "whole_ms": bool((known == np.round(known)).all()),
                "min_ms": known.min(),
                "median_ms": float(np.median(known)),
                "max_ms": known.max(),
                "macs_spearman": spearman(macs, column),
                "nearest_device": devices[nearest[position]],
                "nearest_spearman": alike[position, nearest[position]],
                "near_duplicate": bool(alike[position, nearest[position]] >= NEAR_DUPLICATE),
            }
        )
    return pd.DataFrame(rows)


def device_defects(space: str, devices: PublicTable) -> list[str]:
    """What is wrong with the columns of a table of devices, in sentences."""
    frame = devices.frame
    found = []
    if len(whole := frame[frame["whole_ms"]]):
        found.append(f"{space}: whole milliseconds only, so many ties: {_list(whole, 'n_values', 'values')}")
    if len(few := frame[(frame["n_values"] < FEW_VALUES) & ~frame["whole_ms"]]):
        found.append(f"{space}: few different latencies, so many ties: {_list(few, 'n_values', 'values')}")
    if len(away := frame[frame["n_optimised_away"] > 0]):
        listed = _list(away, "n_optimised_away", "rows")
        found.append(f"{space}: networks without a path were optimised away, below {LEAST_MS} ms: {listed}")
    if len(missing := frame[frame["n_missing"] > 0]):
        found.append(f"{space}: not measured: {_list(missing, 'n_missing', 'rows')}")
    pairs = {
        tuple(sorted((row["device"], row["nearest_device"]))): row["nearest_spearman"]
        for row in frame[frame["near_duplicate"]].to_dict("records")
    }
    found += [
        f"{space}: {one} and {other} have a rank correlation of {value:.4f}: count them as one device"
        for (one, other), value in sorted(pairs.items())
    ]
    return found


def _list(rows: pd.DataFrame, column: str, unit: str) -> str:
    return ", ".join(f"{row['device']} ({row[column]} {unit})" for row in rows.to_dict("records"))
