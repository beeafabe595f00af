"""What is known of other devices, from the atlas or from tables: what a predictor for a new device learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from hanax.devices import CostTable, LatencyTable, TableError, load_atlas, open_table
from hanax.search_spaces import Arch, SearchSpace

if TYPE_CHECKING:
    from hanax.predictors import SourcePool


@dataclass(frozen=True)
class SourceDevice:
    """A device whose costs are known.

    Attributes:
        fingerprint: Of what it is, as tables carry it.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Sources:
    """Costs of networks of one space on several devices.

    Attributes:
        archs: Canonical, in the order of the rows of `costs`.
        costs: Each column in the unit of its device; NaN where not measured.
        origin: Where they are from, in words.
    """

    space: SearchSpace
    archs: tuple[Arch, ...]
    devices: tuple[SourceDevice, ...]
    costs: Float[np.ndarray, "archs devices"]
    origin: str

    def without(self, names: Collection[str]) -> Sources:
        """These without the devices called `names`, and without the networks that are known of no other device."""
        kept = np.flatnonzero([device.name not in names for device in self.devices])
        rows = np.flatnonzero(np.isfinite(self.costs[:, kept]).any(axis=1))
        return dataclasses.replace(
            self,
            archs=tuple(self.archs[row] for row in rows),
            devices=tuple(self.devices[column] for column in kept),
            costs=self.costs[np.ix_(rows, kept)],
        )

    @cached_property
    def pool(self) -> SourcePool:
        """The same with the features of the networks, for predictors.

        Raises:
            ValueError: A device has fewer than two costs.
        """
        from hanax.predictors import SourcePool, latency_feature_groups, latency_features

        return SourcePool(
            space_fingerprint=self.space.fingerprint,
            groups=latency_feature_groups(self.space),
            X=latency_features(self.space, self.space.encode(self.archs)),
            costs=self.costs,
            devices=tuple(device.name for device in self.devices),
        )


def sources_of_atlas() -> Sources:
    """The devices of the atlas that comes with Hanax."""
    atlas = load_atlas()
    return Sources(
        atlas.space,
        tuple(atlas.archs),
        tuple(SourceDevice(device.name, device.fingerprint) for device in atlas.devices),
        atlas.costs(),
        "the atlas that comes with Hanax",
    )


def sources_of_tables(paths: Sequence[str | Path], space: SearchSpace) -> Sources:
    """The devices of tables of `space`, one each, called as their files are.

    Raises:
        FileNotFoundError: There is no such file.
        TableError: It is not a table, holds no costs, or two files have one name.
        SpaceMismatchError: A table belongs to another space; names both fingerprints.
        ValueError: There are no tables.
    """
    if not paths:
        raise ValueError("sources need one table or more; got none")
    columns: dict[str, dict[Arch, float]] = {}
    devices = []
    for path in map(Path, paths):
        table = open_table(path).for_space(space)
        if path.stem in columns:
            raise TableError(f"two tables are called {path.stem}; source devices are called as their files are")
        columns[path.stem] = costs_of_table(table, space)
        if not columns[path.stem]:
            raise TableError(f"{path} holds no costs to learn from")
        devices.append(SourceDevice(path.stem, table.device_fingerprint))
    archs = tuple(dict.fromkeys(arch for column in columns.values() for arch in column))
    costs = np.array([[column.get(arch, np.nan) for column in columns.values()] for arch in archs])
    names = ", ".join(map(str, paths))
    return Sources(space, archs, tuple(devices), costs, f"{len(devices)} table(s): {names}")


def costs_of_table(table: LatencyTable | CostTable, space: SearchSpace) -> dict[Arch, float]:
    """Costs by canonical architecture; what was measured to confirm a search's winners is left out: it was chosen."""
    frame = table.frame
    if isinstance(table, LatencyTable):
        frame = frame[frame["purpose"] != "winner"]
    archs = space.decode(space.canonical(space.encode([Arch.parse(text) for text in frame["arch"]])))
    return dict(zip(archs, frame[cost_name(table)].astype(float).tolist(), strict=True))


def cost_name(table: LatencyTable | CostTable) -> str:
    """The column that holds what networks cost; it ends in the unit."""
    return "latency_ms" if isinstance(table, LatencyTable) else table.cost
