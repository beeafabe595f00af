"""Measures the atlas that ships with Hanax: networks of one space on many devices, each device in two passes.

    python benchmarks/atlas.py collect --device onnxruntime-fp32 --out atlas/    # repeat for every device; resumable
    python benchmarks/atlas.py pack --out atlas/                                 # -> hanax/devices/atlas.parquet, docs/

400 networks: the largest, the smallest and random ones of Once-for-All's MobileNetV3 of width 0.5 at 32 x 32 pixels.
Every device is swept twice: the second sweep begins when the first has ended, in another order and with other random
inputs, and loads every model anew. The rank correlation of the two is the device's reliability. Where it is below .98,
`collect --again` adds two sweeps: all of them count, the medians of every other one taking the place of the two.
Other runtimes than Hanax's own are added with `hanax devices install NAME` first. On an idle core a device takes 5 to
15 minutes; nothing else should run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from hanax._files import write_atomically
from hanax.devices import (
    Atlas,
    AtlasDevice,
    CostTable,
    LatencyTable,
    Ledger,
    Method,
    collect_instructions,
    collect_latency,
    find_device,
)
from hanax.devices._atlas import ATLAS_FILE, atlas_space, combine_passes
from hanax.experiments._export import latency_model_builder
from hanax.experiments._fitting import draw_archs
from hanax.search_spaces import Arch

ROOT = Path(__file__).resolve().parents[1]
N_ARCHS = 400
SEED = 2024
BATCH = 200
"""Models in memory at once, which take turns: a disturbance of some seconds then meets all of them, not a dozen."""
METHOD = Method(target_relative_ci=0.02, max_rounds=19, inner_ms=5.0, min_rounds=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("--device", action="append", required=True)
    collecting.add_argument("--out", type=Path, required=True)
    collecting.add_argument("--archs", type=int, default=N_ARCHS)
    collecting.add_argument("--again", action="store_true", help="two more sweeps, where two were not reliable enough")
    collecting.add_argument("--core", type=int, help="run on this core alone")
    packing = commands.add_parser("pack")
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--remark", default="", help="what a reader should know of the conditions")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        arguments.out.mkdir(parents=True, exist_ok=True)
        if arguments.core is not None:
            os.sched_setaffinity(0, {arguments.core})
        for name in arguments.device:
            collect(name, arguments.archs, arguments.out, arguments.again)
    else:
        pack_atlas(arguments.out, arguments.remark)


def collect(name: str, n_archs: int, folder: Path, again: bool) -> None:
    """Two sweeps over all networks on one device; further ones if `again`."""
    space, spec = atlas_space(), find_device(name)
    archs = draw_archs(space, n_archs, [SEED])
    builder = latency_model_builder(space, spec.model_format, spec.batch, SEED)
    build = kept(builder, folder / "models" / spec.model_format)
    ledger = Ledger(folder / "ledger.jsonl")
    if spec.kind == "counted":
        for number in (1, 2):
            path = folder / f"{name}.count{number}.parquet"
            collect_instructions(space, archs, spec, build, path, ledger, on_progress=progress(f"{name} {number}"))
    else:
        path = folder / f"{name}.parquet"
        if again:
            path = folder / f"{name}.again{len(list(folder.glob(f'{name}.again*.parquet'))) + 1}.parquet"
        collect_latency(
            space, archs, spec, build, path, ledger,
            passes=2, method=METHOD, batch_size=BATCH, on_progress=progress(name),
        )  # fmt: skip


def progress(name: str) -> Callable[[int, int], None]:
    """Says how far the work called `name` is, twice a minute."""
    started = time.monotonic()
    said = -math.inf

    def say(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > 30 or done == total:
            said = time.monotonic()
            print(f"{name}: {done}/{total}, {said - started:.0f} s", flush=True)

    return say


def kept(build: Callable[[Arch], bytes], folder: Path) -> Callable[[Arch], bytes]:
    """`build`, which keeps its model files: the second pass and devices of the same format need them again."""
    folder.mkdir(parents=True, exist_ok=True)

    def build_once(arch: Arch) -> bytes:
        path = folder / str(arch)
        if not path.exists():
            write_atomically(path, build(arch))
        return path.read_bytes()

    return build_once


def pack_atlas(folder: Path, remark: str) -> None:
    """Join the devices, say how reliable they are, and write the file that ships and the picture for the docs."""
    names = sorted(path.stem for path in folder.glob("*.parquet") if "." not in path.stem)
    parts = [measured([folder / f"{name}.parquet", *sorted(folder.glob(f"{name}.again*.parquet"))]) for name in names]
    parts += [counted(folder, path.name.partition(".")[0]) for path in sorted(folder.glob("*.count1.parquet"))]
    method = {**asdict(METHOD), "batch_size": BATCH, "passes": 2, "seed": SEED, "remark": remark}
    frame = pd.concat([frame for _, frame in parts], ignore_index=True)
    atlas = Atlas(atlas_space(), tuple(device for device, _ in parts), frame, method)
    atlas.write(ATLAS_FILE)
    summarise(atlas)
    draw(atlas, ROOT / "docs" / "atlas-rank-correlations.png")


def measured(paths: Sequence[Path]) -> tuple[AtlasDevice, pd.DataFrame]:
    """A device's part of the atlas from its latency tables, which hold two sweeps each, in order of time.

    A pass is the median of every other sweep. If there are more than two, each is first brought to the level of all, as
    a machine's speed changes between them.
    """
    tables = [LatencyTable.read(path) for path in paths]
    frames = [table.frame.set_index("arch") for table in tables]
    archs = frames[0].index
    sweeps = np.concatenate([np.array(frame.loc[archs, "pass_latency_ms"].tolist()) for frame in frames], axis=1)
    if sweeps.shape[1] > 2:
        levels = np.median(sweeps, axis=0)
        sweeps *= np.exp(np.mean(np.log(levels))) / levels
    of_all = pd.concat(frames).groupby(level="arch")
    common = pd.DataFrame(
        {
            "low": of_all["latency_low_ms"].min(),
            "high": of_all["latency_high_ms"].max(),
            "converged": of_all["converged"].mean(),
            "measured_at": of_all["measured_at"].min(),
        }
    ).loc[archs]
    passes = [common.assign(cost=np.median(sweeps[:, half::2], axis=1)).reset_index(names="arch") for half in (0, 1)]
    passes[1]["measured_at"] = of_all["measured_at"].max().loc[archs].to_numpy()
    first = tables[0]
    name = paths[0].name.partition(".")[0]
    return combine_passes(name, "measured", "ms", first.device_description, first.device_fingerprint, passes)


def counted(folder: Path, name: str) -> tuple[AtlasDevice, pd.DataFrame]:
    """A device's part of the atlas from its two tables of instructions."""
    tables = [CostTable.read(folder / f"{name}.count{number}.parquet") for number in (1, 2)]
    passes = [
        pd.DataFrame({"arch": table.frame["arch"], "cost": table.costs()}).assign(
            low=table.costs(), high=table.costs(), converged=True, measured_at=""
        )
        for table in tables
    ]
    return combine_passes(
        name, "counted", "instructions", tables[0].device_description, tables[0].device_fingerprint, passes
    )


def summarise(atlas: Atlas) -> None:
    """Print the devices, and the pairs that are least and most alike."""
    for device in atlas.devices:
        costs = atlas.frame.loc[atlas.frame["device"] == device.name, "cost"]
        print(
            f"{device.name:32} {device.n_archs} nets  {costs.min():9.3f} to {costs.max():9.3f} {device.unit:12}"
            f" reliability {device.reliability:.4f}  passes differ {device.median_difference:.2%}"
            f"  drift {device.drift:.3f}  converged {device.converged_share:.0%}"
        )
    correlations = atlas.rank_correlations()
    pairs = sorted(
        (float(correlations[a, b]), atlas.devices[a].name, atlas.devices[b].name)
        for a, b in itertools.combinations(range(len(atlas.devices)), 2)
    )
    below = sum(value < 0.8 for value, _, _ in pairs)
    print(json.dumps({"pairs": len(pairs), "below_0.8": below, "above_0.99": sum(v > 0.99 for v, _, _ in pairs)}))
    for value, a, b in [*pairs[:10], *pairs[-5:]]:
        print(f"  {value:.3f}  {a} - {b}")


def draw(atlas: Atlas, path: Path) -> None:
    """The rank correlations between devices as a picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    correlations = atlas.rank_correlations()
    names = [device.name for device in atlas.devices]
    size = 1.8 + 0.55 * len(names)
    figure, axes = pyplot.subplots(figsize=(size + 1, size), layout="constrained")
    image = axes.imshow(correlations, vmin=min(0.4, correlations.min()), vmax=1.0, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(correlations):
        color = "white" if value < 0.75 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label="Spearman correlation of costs", shrink=0.8)
    axes.set_title(f"{len(atlas.archs)} networks on {len(names)} devices")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
