"""Published protocols of few-shot latency prediction: what may be known, what is measured, what is scored.

A predictor gets the source devices' costs and what it asks of the new device, which is counted; the rest of the new
device's costs stays with `HiddenDevice`, which scores predictions itself. So nothing can be chosen on a test device.

Shapes: `n` architectures, `f` features, `m` devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from hanax.devices.public import find_source, import_source, trimmed_query
from hanax.predictors import SourcePool, latency_feature_groups, latency_features
from hanax.search_spaces import SearchSpace, fbnet, fbnet_codes, graph_features, nas_bench_201, nas_bench_201_codes

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

EAGLE = {
    "edge_tpu": "embedded_tpu_edge_tpu_int8",
    "i7_7820x": "desktop_cpu_core_i7_7820x_fp32",
    "gtx_1080ti_fp32": "desktop_gpu_gtx_1080ti_fp32",
    "jetson_nano_fp16": "embedded_gpu_jetson_nano_fp16",
    "jetson_nano_fp32": "embedded_gpu_jetson_nano_fp32",
    "mcpu_855": "mobile_cpu_snapdragon_855_kryo_485_int8",
    "mdsp_675": "mobile_dsp_snapdragon_675_hexagon_685_int8",
    "mdsp_855": "mobile_dsp_snapdragon_855_hexagon_690_int8",
    "mgpu_675": "mobile_gpu_snapdragon_675_adreno_612_int8",
    "mgpu_855": "mobile_gpu_snapdragon_855_adreno_640_int8",
}
"""Short names of EAGLE's devices."""


@dataclass(frozen=True, eq=False)
class LatencyData:
    """Latencies of many architectures of one space on many devices.

    Attributes:
        X: `latency_features`, shape (n, f).
        macs: Shape (n,).
        latency_ms: Shape (n, m); NaN where not measured.
        references: Rows of HELP's ten reference architectures.
    """

    space: SearchSpace
    X: Floats
    macs: Floats
    latency_ms: Floats
    devices: tuple[str, ...]
    references: Indices

    def pool(self, rows: Indices, devices: Sequence[str]) -> SourcePool:
        """What a predictor may know: costs of the architectures at `rows` on `devices`."""
        groups = latency_feature_groups(self.space)
        columns = [self.devices.index(name) for name in devices]
        return SourcePool(
            self.space.fingerprint,
            groups,
            self.X[rows],
            self.latency_ms[np.ix_(rows, np.array(columns))],
            tuple(devices),
        )

    def hidden(self, device: str) -> HiddenDevice:
        """A new device, of which nothing is known but what is measured."""
        return HiddenDevice(self.latency_ms[:, self.devices.index(device)])


class HiddenDevice:
    """A device that answers measurements and scores predictions, and tells nothing else.

    Attributes:
        n_measured: Different architectures measured so far.
    """

    def __init__(self, latency_ms: Floats) -> None:
        self.__latency_ms = latency_ms
        self.__measured = np.zeros(len(latency_ms), dtype=np.bool_)

    @property
    def n_measured(self) -> int:
        return int(self.__measured.sum())

    def can_be_measured(self, rows: Indices) -> Indices:
        """Those of `rows` that run on this device at all."""
        return rows[np.isfinite(self.__latency_ms[rows])]

    def measure(self, rows: Indices) -> Floats:
        """Latencies of the architectures at `rows`, in ms; counted."""
        self.__measured[rows] = True
        return self.__latency_ms[rows]

    def trimmed_query(self, n_pool: int) -> Indices:
        """HELP's test architectures: the middle 80 % by the new device's latency of the thousand after the pool."""
        return trimmed_query(self.__latency_ms, n_pool)

    def band(self, rows: Indices) -> Indices:
        """HELP's choice of what may be a sample: the middle 80 % of `rows` by the new device's own latency."""
        order = rows[np.argsort(self.__latency_ms[rows], kind="stable")]
        return order[int(0.1 * len(rows)) : int(0.9 * len(rows))]

    def score(self, rows: Indices, predicted: Floats, bounds: tuple[Floats, Floats] | None = None) -> Score:
        """How good predictions for `rows` are."""
        truth = self.__latency_ms[rows]
        error = np.abs(predicted / truth - 1.0)
        covered = np.nan
        if bounds is not None:
            covered = float(np.mean((bounds[0] <= truth) & (truth <= bounds[1])))
        return Score(
            spearman(predicted, truth), float(error.mean()), float(np.median(error)), float(np.mean(error <= 0.05)),
            float(np.mean(error <= 0.10)), covered,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """Quality of predictions on one device: rank correlation, relative errors, and the share inside intervals."""

    spearman: float
    mape: float
    median_error: float
    within_5_percent: float
    within_10_percent: float
    coverage: float


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation, ties sharing their mean rank; 0 where one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def load_help_data(folder: Path, name: str) -> LatencyData:
    """HELP's latencies of ``nasbench201`` or ``fbnet`` from the folder ``help`` of the public files.

    Raises:
        PublicDataError: The files are not there or not HELP's.
    """
    imported = import_source(find_source("help"), folder / "help")
    tables = {table.name: table for table in imported.tables}
    archs, latency = tables[f"help_{name}_archs"], tables[f"help_{name}_latency"]
    wide = latency.frame.pivot(index="index", columns="device", values="latency_ms")
    references = np.flatnonzero(archs.frame["is_reference"].to_numpy())
    codes = archs.codes()
    return _data(name, codes, wide.to_numpy(dtype=np.float64), tuple(wide.columns), references)


def load_merged_data(folder: Path) -> LatencyData:
    """NAS-Bench-201 on the 35 devices of HELP and EAGLE, from the folder ``latency`` of the public files.

    Raises:
        PublicDataError: The file is not there or not as it should be.
    """
    imported = import_source(find_source("nb201-latency"), folder / "latency")
    tables = {table.name: table for table in imported.tables}
    wide = tables["nb201_latency"].frame.pivot(index="index", columns="device", values="latency_ms")
    short = {long: name for name, long in EAGLE.items()}
    devices = tuple(short.get(name, name) for name in wide.columns)
    codes = tables["nb201_archs"].codes()
    return _data("nasbench201", codes, wide.to_numpy(dtype=np.float64), devices, np.zeros(0, dtype=np.int64))


def _data(
    name: str, official: NDArray[np.int32], latency_ms: Floats, devices: tuple[str, ...], references: Indices
) -> LatencyData:
    space, codes = (
        (nas_bench_201(), nas_bench_201_codes(official)) if name == "nasbench201" else (fbnet(), fbnet_codes(official))
    )
    return LatencyData(space, latency_features(space, codes), macs_of(space, codes), latency_ms, devices, references)


def macs_of(space: SearchSpace, codes: NDArray[np.int32]) -> Floats:
    """Multiply-accumulates of each network, shape (n,)."""
    names, sums = graph_features(space, codes)
    return np.asarray(sums[:, names.index("macs")])
