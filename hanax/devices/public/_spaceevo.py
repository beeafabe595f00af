"""SpaceEvo's block tables (Wang et al., 2023, arXiv:2303.08308): INT8 latency and distillation loss of stages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from hanax.devices.public._csv import parse_csv
from hanax.devices.public._folder import PublicDataError, PublicFolder, tar_gz_members
from hanax.devices.public._public_table import Column, PublicTable
from hanax.devices.public._source import Imported

if TYPE_CHECKING:
    import pandas as pd

FILE = "block_lut.tar.gz"
MEMBER = re.compile(r"(?:.*/)?(mobilew|onnxw)/stage(\d+)_(\d+)_(\d+)\.csv")
DEVICES = {"mobilew": "pixel4_int8", "onnxw": "xeon_vnni_int8"}
BLOCK_TYPES = {
    "mobilew": ("mbv1_dual", "mbv2", "mbv3", "resnet", "fused_mb_se", "mbv3_k3", "mbv2_k3"),
    "onnxw": ("mbv1_dual", "mbv2", "mbv3", "resnet", "resnet_se", "fused_mb"),
}
N_FILES, N_ROWS = 342, 1000

PUBLISHED = {"blocks": "str", "input": "str"} | dict.fromkeys(("loss", "mmacs", "mparams", "latency_ms"), "float64")
COLUMNS = {
    "device": Column("str", "pixel4_int8 (space mobilew) or xeon_vnni_int8 (space onnxw)"),
    "stage": Column("int64", "stage of the network, from 1"),
    "block_type": Column("str", "kind of block that the stage is made of"),
    "width_window": Column("int64", "which range of widths the stage draws from"),
    "blocks": Column("str", "kernel size, output channels and expansion of each block, as published: 3#32#None_5#48#6"),
    "n_blocks": Column("int64", "blocks of the stage", "blocks"),
    "resolution": Column("int64", "input resolution of the whole network", "px"),
    "in_channels": Column("int64", "channels of the stage's input", "channels"),
    "in_side": Column("int64", "height and width of the stage's input", "px"),
    "loss": Column("float64", "distillation loss of the quantised stage against its teacher's stage"),
    "macs": Column("float64", "multiply-accumulates; published in millions with four decimals, as FLOPs", "MACs"),
    "params": Column("float64", "parameters; published in millions with four decimals", "parameters"),
    "latency_ms": Column("float64", "INT8 latency that the source's predictor gives the stage", "ms"),
}
SHAPE = re.compile(r"1x(\d+)x(\d+)x(\d+)")
BLOCK = re.compile(r"\d+#\d+#(?:None|[\d.]+)")
RESOLUTIONS = (160, 192, 224)
RESOLUTION_OF_SIDE = {side // 2**halvings: side for side in RESOLUTIONS for halvings in range(6)}


def read_spaceevo(folder: PublicFolder) -> Imported:
    """One table of all samples, in the archive's order."""
    import pandas as pd

    where = str(folder.path / FILE)
    frames: list[pd.DataFrame] = []
    defects = ["the latencies are what the source's predictor of blocks gives, not measurements of these stages"]
    for name, content in tar_gz_members(folder.read(FILE), where):
        found = MEMBER.fullmatch(name)
        if found is None:
            raise PublicDataError(f"{where}: the member {name} is not SPACE/stageN_TYPE_WINDOW.csv")
        space, (stage, block_type, window) = found[1], map(int, found.groups()[1:])
        if block_type >= len(BLOCK_TYPES[space]):
            raise PublicDataError(f"{where}: {name}: {space} has block types 0 to {len(BLOCK_TYPES[space]) - 1}")
        frames.append(
            _samples(content, f"{where}: {name}").assign(
                device=DEVICES[space], stage=stage, block_type=BLOCK_TYPES[space][block_type], width_window=window
            )
        )
        if len(frames[-1]) != N_ROWS:
            defects.append(f"{name} holds {len(frames[-1])} samples; the published file holds {N_ROWS}")
    if not frames:
        raise PublicDataError(f"{where} holds no table")
    if len(frames) != N_FILES:
        defects.append(f"{len(frames)} tables; the published archive holds {N_FILES}")
    frame = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    stages = ["device", "stage", "block_type", "width_window", "blocks", "in_channels", "in_side"]
    if again := int(frame.duplicated(stages).sum()):
        defects.append(f"{again} samples repeat the blocks and input of another one of their stage")
    facts = {
        "samples": len(frame),
        "tables": len(frames),
        **{f"samples of {device}": int((frame["device"] == device).sum()) for device in DEVICES.values()},
        "longest latency of a stage, ms": float(frame["latency_ms"].max()),
    }
    return Imported((PublicTable("spaceevo_blocks", frame, COLUMNS),), facts, tuple(defects))


def _samples(content: bytes, where: str) -> pd.DataFrame:
    """The rows of one member, but for the columns that its name gives."""
    frame = parse_csv(content, where, PUBLISHED, has_names=False)
    shapes = frame["input"].str.extract(SHAPE.pattern + "$")
    is_stage = frame["blocks"].str.fullmatch(f"{BLOCK.pattern}(?:_{BLOCK.pattern})*")
    costs = frame[["loss", "mmacs", "mparams", "latency_ms"]].to_numpy()
    fine = shapes.notna().all(axis=1) & is_stage & (np.isfinite(costs) & (costs > 0)).all(axis=1)
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise PublicDataError(f"{where}: row {row + 1} is no sample: {', '.join(map(str, frame.iloc[row]))}")
    sides = shapes[1].astype("int64")
    if not (shapes[1] == shapes[2]).all() or not sides.isin(RESOLUTION_OF_SIDE).all():
        raise PublicDataError(f"{where}: an input is not square or of none of the resolutions {RESOLUTIONS}")
    return frame.assign(
        n_blocks=frame["blocks"].str.count("_") + 1,
        resolution=sides.map(RESOLUTION_OF_SIDE),
        in_channels=shapes[0].astype("int64"),
        in_side=sides,
        macs=frame["mmacs"] * 1e6,
        params=frame["mparams"] * 1e6,
    )
