"""The analytic systolic array of Hanax against ZigZag (Mei et al., 2021, doi:10.1109/TC.2021.3059962).

    python benchmarks/systolic_vs_zigzag.py [--env DIR]

installs zigzag-dse into a virtual environment of its own and prints, for six layers on a 16 x 16 weight-stationary
array with the same memories and prices, the cycles and the energy that each finds. Some minutes on one core.

They are not the same model. ZigZag searches for the best order of loops and adds to the cycles of work the stalls on
each port, and the first load and last store, which nothing hides; ours takes the published timing of a fold, with its
skew and its loading of weights, and the longer of work and transfers. The cycles of work alone are therefore compared
as well.

With zigzag-dse 3.9.1:

| layer | work, cycles: ours / ZigZag | in all, cycles: ours / ZigZag | ratio | energy, uJ: ours / ZigZag |
|---|---|---|---|---|
| 1x1, 32 -> 64, 28 x 28 | 7,744 / 6,272 | 9,664 / 11,005 | 0.88 | 18.1 / 15.4 |
| 1x1, 96 -> 24, 56 x 56 | 46,464 / 37,632 | 47,328 / 47,070 | 1.01 | 92.2 / 74.3 |
| 1x1, 160 -> 960, 7 x 7 | 57,000 / 29,400 | 57,000 / 33,321 | 1.71 | 67.2 / 47.6 |
| 3x3, 3 -> 16, stride 2, 112 x 112 | 7,744 / 9,408 | 11,030 / 15,178 | 0.73 | 19.3 / 17.0 |
| 3x3, 64 -> 64, 14 x 14 | 34,848 / 28,224 | 34,848 / 31,819 | 1.10 | 43.0 / 23.4 |
| depthwise 3x3, 96, 28 x 28 | 79,680 / 75,264 | 79,680 / 85,268 | 0.93 | 29.2 / 26.5 |

The third is where loading the weights, which the published timing of a fold does not hide, takes as long as the work.
This is no independent check: the comparison is why our model may cut the stream into parts. Without, partial sums left
the buffer in three of the six layers, and the geometric mean of the ratios was 2.69 (.93 to 9.80); it is 1.02.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

from hanax.devices import SystolicArray
from hanax.search_spaces import Operator

REQUIREMENTS = ("zigzag-dse==3.9.1", "six")
DEFAULT_DIRECTORY = Path.home() / ".cache/hanax/zigzag-env"
WORKER = Path(__file__).with_name("_zigzag_worker.py")

DRAM_BITS_PER_CYCLE = 64
CLOCK_HZ = 500e6
ARRAY = SystolicArray(
    "16x16", 16, 16, 2**17, DRAM_BITS_PER_CYCLE / 8 * CLOCK_HZ, CLOCK_HZ, "weight_stationary"
)  # fmt: skip


def conv(name: str, in_channels: int, out_channels: int, side: int, kernel: int, stride: int, groups: int) -> Operator:
    in_shape, out_shape = (in_channels, side, side), (out_channels, side // stride, side // stride)
    return Operator(name, "conv", ("input",), in_shape, out_shape, kernel, stride, groups)


LAYERS = (
    conv("1x1, 32 -> 64, 28 x 28", 32, 64, 28, 1, 1, 1),
    conv("1x1, 96 -> 24, 56 x 56", 96, 24, 56, 1, 1, 1),
    conv("1x1, 160 -> 960, 7 x 7", 160, 960, 7, 1, 1, 1),
    conv("3x3, 3 -> 16, stride 2, 112 x 112", 3, 16, 112, 3, 2, 1),
    conv("3x3, 64 -> 64, 14 x 14", 64, 64, 14, 3, 1, 1),
    conv("depthwise 3x3, 96, 28 x 28", 96, 96, 28, 3, 1, 96),
)


def prepare_environment(directory: Path) -> Path:
    """The Python of a virtual environment at `directory` that holds `REQUIREMENTS`; made if it is not there."""
    if not (directory / "pyvenv.cfg").exists():
        if directory.exists() and any(directory.iterdir()):
            raise SystemExit(f"{directory} is not empty and not a virtual environment; give another --env")
        venv.create(directory, with_pip=True)
    python = directory / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True, stdout=sys.stderr)
    return python


def task() -> dict[str, object]:
    """What the worker needs to know, with hops in the price of a MAC, since ZigZag has no price for them."""
    price = ARRAY.technology
    array = {
        "rows": ARRAY.rows,
        "columns": ARRAY.columns,
        "buffer_bytes": ARRAY.buffer_bytes,
        "buffer_pj_per_byte": price.buffer_pj_per_byte * math.sqrt(ARRAY.buffer_bytes / 2**15),
        "dram_pj_per_byte": price.dram_pj_per_byte,
        "dram_bits_per_cycle": DRAM_BITS_PER_CYCLE,
        "register_pj": price.register_pj,
        "mac_pj": price.mac_pj + 2 * price.hop_pj,
    }
    layers = [
        {
            "G": op.groups,
            "K": op.out_shape[0] // op.groups,
            "C": op.in_shape[0] // op.groups,
            "OY": op.out_shape[1],
            "OX": op.out_shape[2],
            "FY": op.kernel_size,
            "FX": op.kernel_size,
            "stride": op.stride,
        }
        for op in LAYERS
    ]
    return {"array": array, "layers": layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=DEFAULT_DIRECTORY, help="the virtual environment")
    python = prepare_environment(parser.parse_args().env)
    ran = subprocess.run([python, WORKER], input=json.dumps(task()), stdout=subprocess.PIPE, text=True, check=True)
    theirs = json.loads(ran.stdout)
    print(f"{ARRAY.description}; {REQUIREMENTS[0]}\n")
    print("| layer | work, cycles: ours / ZigZag | in all, cycles: ours / ZigZag | ratio | energy, uJ: ours / ZigZag |")
    print("|---|---|---|---|---|")
    ratios = []
    for op, found in zip(LAYERS, theirs, strict=True):
        ours = ARRAY.layer(op)
        cycles = ours.latency_ms / 1e3 * CLOCK_HZ
        ratios.append(cycles / found["cycles"])
        print(
            f"| {op.name} | {ours.compute_cycles:,} / {found['ideal_cycles']:,.0f} | {cycles:,.0f} / "
            f"{found['cycles']:,.0f} | {ratios[-1]:.2f} | {1e3 * ours.energy_mj:.1f} / {found['energy_pj'] / 1e6:.1f} |"
        )
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"\nratio of all cycles: geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, {spread}")


if __name__ == "__main__":
    main()
