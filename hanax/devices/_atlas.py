"""The atlas: 400 networks of one space on thirteen devices, measured for Hanax and shipped with it.

It is what a predictor for a new device learns from before it has seen that device: how latencies of the same networks
differ from runtime to runtime. `docs/atlas.md` says how it was measured and how far it can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from hanax.devices._stored_table import read_table, write_table
from hanax.search_spaces import Arch, SearchSpace, mobilenet_v3

if TYPE_CHECKING:
    import pandas as pd

ATLAS_FILE = Path(__file__).with_name("atlas.parquet")
FORMAT = "hanax.atlas/1"

COLUMNS: dict[str, str] = {
    "device": "str",
    "arch": "str",
    "cost": "float64",
    "low": "float64",
    "high": "float64",
    "first_pass": "float64",
    "second_pass": "float64",
}
"""One row per device and architecture. `cost` is the geometric mean of the two passes, in the unit of the device;
`low` and `high` hold both passes' 95 % intervals. A pass is a sweep over all networks or, where two sweeps were not
reliable enough, the median of every other one of several."""


def atlas_space() -> SearchSpace:
    """Once-for-All's MobileNetV3 of width 0.5 for colour images of 32 x 32 pixels and 10 classes."""
    return mobilenet_v3(resolutions=(32,), n_classes=10, width_mult=0.5, stem_stride=1, stage_strides=(2, 2, 1, 1, 2))


@dataclass(frozen=True, slots=True)
class AtlasDevice:
    """One device of the atlas, and how well it was measured.

    Attributes:
        kind: ``measured`` or ``counted``, as in `DeviceSpec`.
        unit: Of its costs: ``ms`` or ``instructions``.
        identity: What was measured, in words: runtime and version, threads, batch, processor.
        fingerprint: Of the identity.
        n_archs: Networks with a cost.
        reliability: Spearman correlation of the two passes.
        median_difference: Median over networks of the relative difference between the passes, once the ratio of their
            medians (`drift`) is taken out.
        drift: Median over networks of second over first pass.
        converged_share: Share of measurements whose interval is as narrow as was asked for.
        measured_at: When the first and the last one was taken, UTC.
    """

    name: str
    kind: str
    unit: str
    identity: str
    fingerprint: str
    n_archs: int
    reliability: float
    median_difference: float
    drift: float
    converged_share: float
    measured_at: tuple[str, str]


@dataclass(frozen=True, eq=False)
class Atlas:
    """Costs of the same networks on many devices.

    Attributes:
        space: What the architectures belong to.
        devices: In the order of the columns of `costs`.
        frame: `COLUMNS`.
        method: How it was measured, settings and words.
    """

    space: SearchSpace
    devices: tuple[AtlasDevice, ...]
    frame: pd.DataFrame
    method: Mapping[str, Any]

    @property
    def archs(self) -> list[Arch]:
        """The architectures that every device has, in the order of the rows of `costs`."""
        return [Arch.parse(text) for text in self._wide().index]

    def costs(self) -> Float[np.ndarray, "archs devices"]:
        """What each architecture costs on each device, in that device's unit."""
        return self._wide().to_numpy(dtype=np.float64)

    def rank_correlations(self) -> Float[np.ndarray, "devices devices"]:
        """Spearman correlations between the devices, over the architectures."""
        ranks = self._wide().rank().to_numpy(dtype=np.float64)
        correlations: Float[np.ndarray, "devices devices"] = np.corrcoef(ranks, rowvar=False)
        return correlations

    def _wide(self) -> pd.DataFrame:
        wide = self.frame.pivot(index="arch", columns="device", values="cost")
        return wide[[device.name for device in self.devices]].dropna()

    def write(self, path: Path) -> None:
        """Store as Parquet, atomically.

        Raises:
            OSError: The folder cannot be written to.
        """
        fields = {
            "format": FORMAT,
            "space_fingerprint": self.space.fingerprint,
            "devices": [asdict(device) for device in self.devices],
            "method": dict(self.method),
        }
        write_table(path, self.frame, COLUMNS, fields)


def load_atlas(path: str | Path = ATLAS_FILE) -> Atlas:
    """The atlas that comes with Hanax, or another one that `Atlas.write` stored.

    Raises:
        FileNotFoundError: There is no file.
        TableError: It is not an atlas, or one of another space.
    """
    frame, fields = read_table(path, [FORMAT], "latency atlas")
    space = atlas_space()
    space.require(fields["space_fingerprint"], "the atlas")
    devices = tuple(
        AtlasDevice(**{**device, "measured_at": tuple(device["measured_at"])}) for device in fields["devices"]
    )
    return Atlas(space, devices, frame, fields["method"])


def combine_passes(
    name: str, kind: str, unit: str, identity: str, fingerprint: str, passes: Sequence[pd.DataFrame]
) -> tuple[AtlasDevice, pd.DataFrame]:
    """One device's part of the atlas from its two passes.

    Args:
        passes: Two frames with ``arch``, ``cost``, ``low``, ``high``, ``converged`` and ``measured_at``; architectures
            that only one of them has are left out.

    Raises:
        ValueError: There are not two passes, or they share fewer than 10 architectures.
    """
    import pandas as pd

    if len(passes) != 2:
        raise ValueError(f"{name}: two passes are needed; got {len(passes)}")
    first, second = (frame.set_index("arch") for frame in passes)
    archs = [arch for arch in first.index if arch in second.index]
    if len(archs) < 10:
        raise ValueError(f"{name}: the passes share {len(archs)} architectures; at least 10 are needed")
    first, second = first.loc[archs], second.loc[archs]
    ratio = second["cost"] / first["cost"]
    drift = float(ratio.median())
    frame = pd.DataFrame(
        {
            "device": name,
            "arch": archs,
            "cost": np.sqrt(first["cost"].to_numpy() * second["cost"].to_numpy()),
            "low": np.minimum(first["low"].to_numpy(), second["low"].to_numpy()),
            "high": np.maximum(first["high"].to_numpy(), second["high"].to_numpy()),
            "first_pass": first["cost"].to_numpy(),
            "second_pass": second["cost"].to_numpy(),
        }
    )
    times = sorted([*first["measured_at"], *second["measured_at"]])
    device = AtlasDevice(
        name, kind, unit, identity, fingerprint, len(archs),
        reliability=float(first["cost"].corr(second["cost"], method="spearman")),
        median_difference=float((ratio / drift - 1.0).abs().median()),
        drift=drift,
        converged_share=float(pd.concat([first["converged"], second["converged"]]).mean()),
        measured_at=(times[0], times[-1]),
    )  # fmt: skip
    return device, frame
