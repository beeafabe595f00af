"""HELP's latencies (Lee et al., 2021, arXiv:2106.08630): NAS-Bench-201 cells, FBNet and Once-for-All networks.

Shapes: `n` architectures, `m` devices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int64

from hanax.devices.public import _nas_bench_201 as nas_bench_201
from hanax.devices.public._folder import PublicDataError, PublicFolder
from hanax.devices.public._latency import check_latencies, device_defects, latency_tables, spearman
from hanax.devices.public._ofa import encode_ofa, macs_and_params
from hanax.devices.public._plain_pickle import read_pt
from hanax.devices.public._public_table import ARCH, INDEX, MACS, PARAMS, Column, PublicTable, arch_texts
from hanax.devices.public._source import Imported
from hanax.search_spaces import mobilenet_v3

SPLITS = {
    "nasbench201": {
        "train": (
            *("1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r"),
            *("samsung_a50", "pixel3", "essential_ph_1", "samsung_s7"),
        ),
        "valid": ("titanx_1", "titanx_32", "titanx_256", "gold_6240"),
        "test": ("titan_rtx_256", "gold_6226", "fpga", "pixel2", "raspi4", "eyeriss"),
    },
    "fbnet": {
        "train": (
            *("1080ti_1", "1080ti_32", "1080ti_64", "silver_4114", "silver_4210r"),
            *("samsung_a50", "pixel3", "essential_ph_1", "samsung_s7"),
        ),
        "valid": ("titanx_1", "titanx_32", "titanx_64", "gold_6240"),
        "test": ("fpga", "raspi4", "eyeriss"),
    },
    "ofa": {
        "train": tuple(f"{card}_{batch}" for card in ("2080ti", "titan_xp", "v100") for batch in (1, 32, 64)),
        "valid": ("titan_rtx_1", "titan_rtx_32"),
        "test": ("titan_rtx_64",),
    },
}
"""The devices of HELP's own experiments; their files must be there. Others may be."""

N_POOL = {"nasbench201": 900, "fbnet": 4000, "ofa": 4000}
"""The first architectures are the pool that HELP learns from; the thousand after them are its queries."""
N_QUERY = 1000

FBNET_OPERATORS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
FBNET_STAGES = ((1, 16, 1), (4, 24, 1), (4, 32, 2), (4, 64, 2), (4, 112, 1), (4, 184, 2), (1, 352, 1))
"""Layers, channels and first stride of each stage, as HW-NAS-Bench (Li et al., 2021, arXiv:2103.10584) sets them."""
FBNET_STEM, FBNET_HEAD, FBNET_CLASSES, FBNET_SIDE = 16, 1504, 100, 32

REFERENCE = Column("bool", "whether it is one of the ten whose latencies are HELP's embedding of a device")


def read_help(folder: PublicFolder) -> Imported:
    """Architectures, latencies and devices of the three spaces."""
    tables: list[PublicTable] = []
    facts: dict[str, int | float | str] = {}
    defects: list[str] = []
    for space, name, read in (
        ("nasbench201", "NAS-Bench-201", _cells),
        ("fbnet", "FBNet", _fbnet_archs),
        ("ofa", "OFA", _ofa_archs),
    ):
        archs = _with_references(read(folder), folder, space)
        devices = _devices(folder, space)
        n = len(archs.frame)
        files = [f"{space}/latency/{device}.pt" for device in devices]
        latency_ms = np.column_stack([check_latencies(_pt(folder, file), n, file) for file in files])
        latency, about = latency_tables(f"help_{space}", archs, devices, latency_ms, SPLITS[space])
        tables += [archs, latency, about]
        facts |= {f"{name} architectures": n, f"{name} devices": len(devices)}
        if "has_path" in archs.columns:
            facts[f"{name} cells without a path"] = int((~archs.frame["has_path"]).sum())
        macs = archs.frame["macs"].to_numpy(dtype=np.float64)
        trimmed = []
        for device in SPLITS[space]["test"]:
            column = latency_ms[:, devices.index(device)]
            query = trimmed_query(column, N_POOL[space])
            trimmed.append(spearman(macs[query], column[query]))
        facts[f"{name} rank correlation of MACs, HELP's test devices and trimmed queries"] = round(
            float(np.mean(trimmed)), 3
        )
        defects += device_defects(name, about)
    return Imported(tuple(tables), facts, tuple(defects))


def trimmed_query(latency_ms: Float64[np.ndarray, " n"], n_pool: int) -> Int64[np.ndarray, " q"]:
    """HELP's query architectures on one device: the middle 80 % by its latency of the thousand after the pool."""
    query = np.arange(n_pool, min(n_pool + N_QUERY, len(latency_ms)))
    order = query[np.argsort(latency_ms[query], kind="stable")]
    return order[int(len(query) * 0.1) : int(len(query) * 0.9)]


def _pt(folder: PublicFolder, name: str) -> Any:
    return read_pt(folder.read(name), str(folder.path / name))


def _devices(folder: PublicFolder, space: str) -> list[str]:
    """The devices that have a file, those of HELP's experiments among them."""
    there = [name.removesuffix(".pt") for name in folder.names(f"{space}/latency", ".pt")]
    needed = {device for devices in SPLITS[space].values() for device in devices}
    if missing := sorted(needed - set(there)):
        others = ", ".join(sorted(set(there) - needed)) or "none"
        raise PublicDataError(
            f"{folder.path / space / 'latency'} lacks {', '.join(f'{device}.pt' for device in missing)}, which HELP's "
            f"experiments use; devices there that they do not use: {others}"
        )
    return there


def _with_references(archs: PublicTable, folder: PublicFolder, space: str) -> PublicTable:
    """`archs` with a column that says which are HELP's reference architectures."""
    name = f"{space}/hardware_embedding_index.pt"
    indices = _pt(folder, name)
    n = len(archs.frame)
    if not isinstance(indices, list) or not all(type(index) is int and 0 <= index < n for index in indices):
        raise PublicDataError(f"{folder.path / name} is not a list of indices below {n}")
    is_reference = np.zeros(n, dtype=np.bool_)
    is_reference[indices] = True
    frame = archs.frame.assign(is_reference=is_reference)
    return PublicTable(
        archs.name, frame, {**archs.columns, "is_reference": REFERENCE}, archs.decisions, archs.space_fingerprint
    )


def _cells(folder: PublicFolder) -> PublicTable:
    """The cells of NAS-Bench-201 in official order."""
    name = "nasbench201/str_arch2idx.pt"
    index_of = _pt(folder, name)
    where = str(folder.path / name)
    if (
        not isinstance(index_of, dict)
        or not all(type(cell) is str and type(index) is int for cell, index in index_of.items())
        or sorted(index_of.values()) != list(range(nas_bench_201.N_CELLS))
    ):
        raise PublicDataError(f"{where} does not give each of {nas_bench_201.N_CELLS} cells an index of its own")
    try:
        codes = np.array([nas_bench_201.parse_cell(cell) for cell in sorted(index_of, key=index_of.__getitem__)])
    except ValueError as error:
        raise PublicDataError(f"{where}: {error}") from error
    return nas_bench_201.cell_table("help_nasbench201_archs", nas_bench_201.check_cells(codes, where))


def _fbnet_archs(folder: PublicFolder) -> PublicTable:
    import pandas as pd

    name = "fbnet/metainfo.pt"
    where = str(folder.path / name)
    rows = [_field(record, "op_idx_list", where) for record in _field(_pt(folder, name), "arch", where)]
    n_layers = sum(layers for layers, _, _ in FBNET_STAGES)
    n_operators = len(FBNET_OPERATORS)
    if not all(len(row) == n_layers and all(type(op) is int and 0 <= op < n_operators for op in row) for row in rows):
        raise PublicDataError(f"{where}: each architecture should be {n_layers} operators from 0 to {n_operators - 1}")
    codes = np.array(rows, dtype=np.int32)
    macs, params = fbnet_macs_and_params(codes)
    columns = {"index": INDEX, "arch": ARCH, "macs": MACS, "params": PARAMS}
    frame = pd.DataFrame({"index": np.arange(len(codes)), "arch": arch_texts(codes), "macs": macs, "params": params})
    decisions = {f"layer{number}": FBNET_OPERATORS for number in range(1, n_layers + 1)}
    return PublicTable("help_fbnet_archs", frame, columns, decisions)


def fbnet_macs_and_params(codes: Int[np.ndarray, "n l"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """MACs and parameters of HW-NAS-Bench's CIFAR-100 FBNet with these operators, normalisation not among the MACs."""
    side = FBNET_SIDE
    last = FBNET_STAGES[-1][1]
    macs = np.full(len(codes), 27 * FBNET_STEM * side**2, dtype=np.int64)
    params = np.full(len(codes), 27 * FBNET_STEM + 2 * FBNET_STEM, dtype=np.int64)
    before, layer = FBNET_STEM, 0
    for n_layers, channels, first_stride in FBNET_STAGES:
        for stride in (first_stride, *[1] * (n_layers - 1)):
            after = side // stride
            costs = np.array([_fbnet_costs(operator, before, channels, side, after) for operator in FBNET_OPERATORS])
            macs += costs[codes[:, layer], 0]
            params += costs[codes[:, layer], 1]
            before, side, layer = channels, after, layer + 1
    macs += last * FBNET_HEAD * side**2 + FBNET_HEAD * FBNET_CLASSES
    params += last * FBNET_HEAD + 2 * FBNET_HEAD + FBNET_HEAD * FBNET_CLASSES + FBNET_CLASSES
    return macs, params


def _fbnet_costs(operator: str, before: int, channels: int, side: int, after: int) -> tuple[int, int]:
    """MACs and parameters of one layer; a skip that changes the shape is a 1x1 convolution."""
    if operator == "skip":
        weights = 0 if (before, side) == (channels, after) else before * channels
        return weights * after**2, weights + (2 * channels if weights else 0)
    kernel, expansion, *grouped = operator.split("_")
    kernel_size, middle, groups = int(kernel[1:]), before * int(expansion[1:]), 2 if grouped else 1
    expand, depthwise, project = before * middle // groups, kernel_size**2 * middle, middle * channels // groups
    macs = expand * side**2 + (depthwise + project) * after**2
    return macs, expand + depthwise + project + 4 * middle + 2 * channels


def _ofa_archs(folder: PublicFolder) -> PublicTable:
    """Once-for-All networks; HELP builds them at width 1.2."""
    import pandas as pd

    name = "ofa/ofa_archs.pt"
    where = str(folder.path / name)
    space = mobilenet_v3(width_mult=1.2)
    records = _field(_pt(folder, name), "arch", where)
    resolutions = [record.get("r") if isinstance(record, dict) else None for record in records]
    codes = encode_ofa(space, records, resolutions, where)
    columns = {"index": INDEX, "arch": ARCH, "macs": MACS, "params": PARAMS}
    frame = pd.DataFrame({"index": np.arange(len(codes)), "arch": arch_texts(codes)} | macs_and_params(space, codes))
    decisions = {decision.name: decision.options for decision in space.decisions}
    return PublicTable("help_ofa_archs", frame, columns, decisions, space.fingerprint)


def _field(record: Any, key: str, where: str) -> Any:
    """The list at `key` of `record`."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, list):
        raise PublicDataError(f"{where}: there should be a list {key!r}; there is {type(value).__name__}")
    return value
