"""What a run ships: how a model file of an architecture is made, and what it is worth on images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hanax.experiments._export import count_correct, export
from hanax.search_spaces import Arch

if TYPE_CHECKING:
    from hanax.devices import DeviceSpec, LatencyTable
    from hanax.supernet import Evaluator

Columns = dict[str, Any]
"""Of a table with one row per architecture."""


class Products(Protocol):
    """What a run ships for one device."""

    def model(self, arch: Arch) -> bytes:
        """The model file of `arch` for the device."""

    def count_correct(self, arch: Arch, images: np.ndarray, labels: np.ndarray) -> int:
        """How many of the byte images (n, h, w, c) the exported model of `arch` classifies correctly."""

    def beside(self, archs: Sequence[Arch], folder: Path) -> Columns:
        """What else is worth knowing of candidates; what is measured for it is kept in `folder`."""


@dataclass(frozen=True, slots=True)
class FloatProducts:
    """Networks in float32, cut out of a supernet and calibrated."""

    evaluator: Evaluator
    spec: DeviceSpec

    def model(self, arch: Arch) -> bytes:
        """The model file of `arch` for the device."""
        return export(self.evaluator.extract(arch), self.spec.model_format, self.spec.batch)

    def count_correct(self, arch: Arch, images: np.ndarray, labels: np.ndarray) -> int:
        """How many of the byte images the exported model of `arch` classifies correctly."""
        return count_correct(self.evaluator.extract(arch), images, labels)

    def beside(self, archs: Sequence[Arch], folder: Path) -> Columns:
        """Nothing."""
        return {}


def measured_latencies(table: LatencyTable, archs: Sequence[Arch]) -> Columns:
    """Latencies of `archs` in ms with their intervals, in a table that has them all."""
    measured = table.frame.set_index("arch").loc[[str(arch) for arch in archs]]
    return {column: measured[column].to_numpy() for column in ("latency_ms", "latency_low_ms", "latency_high_ms")}
