"""Several tables of the same device as one. Nothing is averaged: a row comes from one table, as it was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from hanax.devices._cost_table import CostTable
from hanax.devices._stored_table import DeviceMismatchError, TableError
from hanax.devices._table import KEY, LatencyTable
from hanax.search_spaces import SpaceMismatchError

AnyTable = TypeVar("AnyTable", bound=LatencyTable | CostTable)


class ConflictError(TableError):
    """Two tables say different things about the same architecture."""


def merge_tables(tables: Mapping[str, AnyTable], *, wins: str | None = None) -> AnyTable:
    """One table with the rows of all of `tables`, in their order; rows that are equal in every column come once.

    Args:
        tables: By the name that errors use; of one space, one device and, for costs, one cost.
        wins: The name of the table whose rows count wherever others differ from them.

    Raises:
        SpaceMismatchError, DeviceMismatchError: The tables belong to different spaces or devices; names both.
        ConflictError: Two tables differ on an architecture, and neither is `wins`; names it and both tables.
        TableError: The tables are of different kinds, or hold different costs.
        ValueError: There are no tables, or `wins` is none of them.
    """
    if not tables or (wins is not None and wins not in tables):
        raise ValueError(f"wins must be one of the tables {', '.join(tables) or '(none)'}; got {wins!r}")
    names = sorted(tables, key=lambda name: name != wins)  # The winner's rows are there before others can differ.
    first = tables[names[0]]
    for name in names[1:]:
        _check_alike(names[0], first, name, tables[name])
    key = KEY if isinstance(first, LatencyTable) else ["arch"]
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    origin: dict[tuple[str, ...], str] = {}
    for name in names:
        for row in _records(tables[name]):
            which = tuple(row[column] for column in key)
            if which not in rows:
                rows[which], origin[which] = row, name
            elif origin[which] != wins and (differs := _differences(rows[which], row)):
                raise ConflictError(
                    f"{' '.join(map(repr, which))} differs between {origin[which]} and {name} in {', '.join(differs)}: "
                    f"{rows[which][differs[0]]!r} and {row[differs[0]]!r}; say which of the two wins, or measure again"
                )
    ordered = [tuple(row[column] for column in key) for name in tables for row in _records(tables[name])]
    frame = first.frame.iloc[:0].copy()
    if ordered:
        import pandas as pd

        frame = pd.DataFrame([rows[which] for which in dict.fromkeys(ordered)], columns=first.frame.columns)
        frame = frame.astype(first.frame.dtypes.to_dict())
    return dataclasses.replace(first, frame=frame)


def _check_alike(name: str, first: LatencyTable | CostTable, other_name: str, other: LatencyTable | CostTable) -> None:
    """Refuse to merge tables that do not belong together."""
    if type(first) is not type(other):
        raise TableError(f"{name} is a {type(first).__name__}, {other_name} a {type(other).__name__}")
    if isinstance(first, CostTable) and isinstance(other, CostTable) and first.cost != other.cost:
        raise TableError(f"{name} holds {first.cost}, {other_name} {other.cost}")
    if first.space_fingerprint != other.space_fingerprint:
        raise SpaceMismatchError(
            f"{name} belongs to the search space {first.space_name} with fingerprint {first.space_fingerprint}, "
            f"{other_name} to {other.space_name} with fingerprint {other.space_fingerprint}"
        )
    if first.device_fingerprint != other.device_fingerprint:
        raise DeviceMismatchError(
            f"{name} was made on {first.device_description} with fingerprint {first.device_fingerprint}, "
            f"{other_name} on {other.device_description} with fingerprint {other.device_fingerprint}"
        )


def _records(table: LatencyTable | CostTable) -> Sequence[dict[Any, Any]]:
    return table.frame.to_dict("records")


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The columns in which two rows differ; NaN equals NaN."""

    def both_missing(name: str) -> bool:
        return all(isinstance(value, float) and math.isnan(value) for value in (one[name], other[name]))

    return [name for name in one if one[name] != other[name] and not both_missing(name)]
