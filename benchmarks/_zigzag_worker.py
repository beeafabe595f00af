"""Cycles and energy that ZigZag finds for layers on a weight-stationary array; runs in an environment of its own.

Reads one JSON object from stdin (``array`` and ``layers``, as benchmarks/systolic_vs_zigzag.py makes them) and writes a
JSON list to stdout: per layer the total latency in cycles, the ideal one, and the energy in pJ.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from zigzag.api import get_hardware_performance_zigzag


def port(name: str, kind: str, least: int, most: int, *allocation: str) -> dict[str, Any]:
    bandwidth = {"bandwidth_min": least, "bandwidth_max": most}
    return {"name": name, "type": kind, **bandwidth, "allocation": list(allocation)}


def accelerator(array: dict[str, Any]) -> dict[str, Any]:
    """A register for a weight in each element, one buffer with a port per operand, and DRAM behind a single port."""
    rows, columns, wide = array["rows"], array["columns"], 8 * 4 * array["columns"]
    # Prices in pJ per access of `bandwidth_min` bits.
    word = 64
    buffer_pj = array["buffer_pj_per_byte"] * word / 8
    dram_bits = array["dram_bits_per_cycle"]
    dram_pj = array["dram_pj_per_byte"] * dram_bits / 8
    register = {
        "size": 8,
        "r_cost": array["register_pj"],
        "w_cost": array["register_pj"],
        "area": 0.0,
        "latency": 1,
        "operands": ["I2"],
        "ports": [port("r_port_1", "read", 8, 8, "I2, tl"), port("w_port_1", "write", 8, 8, "I2, fh")],
        "served_dimensions": [],
    }
    reads = [port(f"r_port_{n}", "read", word, wide, *of) for n, of in enumerate(
        [["I1, tl"], ["I2, tl"], ["O, tl", "O, th"]], 1)]  # fmt: skip
    writes = [port(f"w_port_{n}", "write", word, wide, *of) for n, of in enumerate(
        [["I1, fh"], ["I2, fh"], ["O, fl", "O, fh"]], 1)]  # fmt: skip
    buffer = {
        "size": 8 * array["buffer_bytes"],
        "r_cost": buffer_pj,
        "w_cost": buffer_pj,
        "area": 0.0,
        "latency": 1,
        "operands": ["I1", "I2", "O"],
        "ports": reads + writes,
        "served_dimensions": ["D1", "D2"],
    }
    every = [f"{operand}, {way}" for operand in ("I1", "I2") for way in ("fh", "tl")]
    every += [f"O, {way}" for way in ("fh", "tl", "fl", "th")]
    dram = {
        "size": 10_000_000_000,
        "r_cost": dram_pj,
        "w_cost": dram_pj,
        "area": 0.0,
        "latency": 1,
        "operands": ["I1", "I2", "O"],
        "ports": [port("rw_port_1", "read_write", dram_bits, dram_bits, *every)],
        "served_dimensions": ["D1", "D2"],
    }
    return {
        "name": "array",
        "memories": {"register": register, "buffer": buffer, "dram": dram},
        "operational_array": {
            "unit_energy": array["mac_pj"],
            "unit_area": 1.0,
            "dimensions": ["D1", "D2"],
            "sizes": [columns, rows],
            "systolic_dimensions": ["D1", "D2"],
        },
    }


def mapping(array: dict[str, Any], layer: dict[str, int]) -> list[dict[str, Any]]:
    """Filters across the columns; the kernel's values down the rows, as far as whole dimensions fit."""
    channels = min(layer["C"], array["rows"])
    across = [f"K, {min(layer['K'], array['columns'])}"]
    down = [f"C, {channels}"] if channels > 1 else []
    room = array["rows"] // channels
    for dimension in ("FX", "FY"):
        if 1 < layer[dimension] <= room:
            down.append(f"{dimension}, {layer[dimension]}")
            room //= layer[dimension]
    links = {"O": "O", "W": "I2", "I": "I1"}
    spatial = {"D1": across, "D2": down or ["C, 1"]}
    return [{"name": "default", "spatial_mapping": spatial, "memory_operand_links": links}]


def workload(layer: dict[str, int]) -> list[dict[str, Any]]:
    dimensions = ["B", "G", "K", "C", "OY", "OX", "FY", "FX"]
    stride, pad = layer["stride"], layer["FX"] // 2
    side = (layer["OX"] - 1) * stride + layer["FX"] - 2 * pad
    return [
        {
            "id": 0,
            "name": "layer",
            "operator_type": "Conv",
            "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
            "dimension_relations": [f"ix={stride}*ox+1*fx", f"iy={stride}*oy+1*fy"],
            "loop_dims": dimensions,
            "loop_sizes": [layer.get(name, 1) for name in dimensions],
            "operand_precision": {"W": 8, "I": 8, "O": 32, "O_final": 8},
            "operand_source": {"W": 0, "I": 0},
            "pr_loop_dims": ["IX", "IY"],
            "pr_loop_sizes": [side, side],
            "padding": [[pad, pad], [pad, pad]],
        }
    ]


def main() -> None:
    task = json.load(sys.stdin)
    found = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        paths = {name: str(Path(folder, f"{name}.yaml")) for name in ("accelerator", "mapping", "workload")}
        for layer in task["layers"]:
            parts = {
                "accelerator": accelerator(task["array"]),
                "mapping": mapping(task["array"], layer),
                "workload": workload(layer),
            }
            for name, content in parts.items():
                Path(paths[name]).write_text(yaml.safe_dump(content, sort_keys=False))
            energy_pj, cycles, details = get_hardware_performance_zigzag(
                paths["workload"],
                paths["accelerator"],
                paths["mapping"],
                dump_folder=str(Path(folder, "out")),
                loma_show_progress_bar=False,
            )
            evaluation = details[0][1][0][0]
            found.append({"cycles": cycles, "ideal_cycles": evaluation.ideal_temporal_cycle, "energy_pj": energy_pj})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
