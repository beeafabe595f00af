"""NAS-Bench-201 latencies of HELP and EAGLE in one archive, 35 devices: what tasks across both sources need.

EAGLE's ten devices (Dudziak et al., 2020, arXiv:2007.08859) are published as pickles of their own project's classes;
this archive holds them as plain arrays.
"""

from __future__ import annotations

import numpy as np

from hanax.devices.public import _nas_bench_201 as nas_bench_201
from hanax.devices.public._folder import PublicDataError, PublicFolder
from hanax.devices.public._latency import device_defects, latency_tables
from hanax.devices.public._source import Imported

FILE = "nb201.npz"


def read_merged_latency(folder: PublicFolder) -> Imported:
    """Cells, latencies and devices of `FILE`."""
    arrays = folder.npz(FILE, ("arch", "op_names", "latency_ms", "devices", "device_source"))
    if tuple(arrays["op_names"]) != nas_bench_201.OPERATORS:
        raise PublicDataError(f"{FILE}: unknown operators {', '.join(arrays['op_names'])}")
    cells = nas_bench_201.cell_table("nb201_archs", nas_bench_201.check_cells(arrays["arch"], FILE))
    latency_ms = arrays["latency_ms"].astype(np.float64)
    devices = [str(device) for device in arrays["devices"]]
    if latency_ms.shape != (nas_bench_201.N_CELLS, len(devices)) or not (np.isnan(latency_ms) | (latency_ms > 0)).all():
        raise PublicDataError(f"{FILE}: latency_ms is not a positive number or NaN per cell and device")
    sources = {
        name: [d for d, s in zip(devices, arrays["device_source"], strict=True) if s == name]
        for name in ("HELP", "EAGLE")
    }
    latency, about = latency_tables("nb201", cells, devices, latency_ms, sources)
    without = ~cells.frame["has_path"].to_numpy(dtype=np.bool_)
    eagle = [devices.index(device) for device in sources["EAGLE"]]
    facts = {
        "cells": len(latency_ms),
        "devices": len(devices),
        "cells without a path": int(without.sum()),
        "of EAGLE's devices, not measured on just those cells": int(
            (np.isnan(latency_ms[:, eagle]) == without[:, None]).all(axis=0).sum()
        ),
    }
    return Imported((cells, latency, about), facts, tuple(device_defects("NAS-Bench-201", about)))
