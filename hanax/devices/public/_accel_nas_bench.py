"""Accel-NASBench (Ahmad et al., 2024, arXiv:2404.08005): MnasNet networks, ImageNet accuracy and accelerators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hanax.devices.public._folder import PublicDataError, PublicFolder, parse_json, tar_gz_members
from hanax.devices.public._public_table import ARCH, MACS, PARAMS, Column, PublicTable
from hanax.devices.public._source import Imported

if TYPE_CHECKING:
    import pandas as pd

FILE = "anb_dataset_jsons.tar.gz"
N_FILES = 5138

BLOCKS = range(7)
DECISIONS: dict[str, tuple[int, ...]] = {
    f"block{block}_{letter}": (1, 2, 3, 4) if (block, letter) == (5, "l") else options
    for block in BLOCKS
    for letter, options in {"e": (1, 4, 6), "k": (3, 5), "l": (1, 2, 3), "se": (0, 1)}.items()
}
"""Per block: expansion, kernel size, layers, squeeze-and-excitation."""

DEVICES = ("a100", "3090", "tpuv2", "tpuv3", "zcu102", "vck190")
WITH_LATENCY = ("zcu102", "vck190")

ARCH_COLUMNS = {
    "record": Column("int64", "number of the source's file"),
    "arch": ARCH,
    "macs": MACS,
    "params": PARAMS,
    "top1": Column("float64", "ImageNet validation accuracy after the source's short (proxy) training", "%"),
    "top5": Column("float64", "the same, among the five likeliest classes", "%"),
    "train_time_s": Column("float64", "duration of that training", "s"),
}
PERFORMANCE_COLUMNS = {
    "record": ARCH_COLUMNS["record"],
    "arch": ARCH,
    "device": Column("str", "accelerator"),
    "throughput_images_per_s": Column("float64", "mean throughput; missing if not measured", "images/s"),
    "throughput_std_images_per_s": Column("float64", "its standard deviation, where there is one", "images/s"),
    "latency_ms": Column("float64", "mean latency of one image, FPGA boards only", "ms"),
}


def read_accel_nas_bench(folder: PublicFolder) -> Imported:
    """A table of networks and a table of their performance on six accelerators."""
    import pandas as pd

    where = str(folder.path / FILE)
    archs, performances = [], []
    for name, content in tar_gz_members(folder.read(FILE), where):
        member = f"{where}: {name}"
        number = name.rpartition("/")[2].removeprefix("result_").removesuffix(".json")
        if not number.isdigit():
            raise PublicDataError(f"{member} is not a file result_N.json")
        try:
            arch, performance = _record(int(number), parse_json(content, member), member)
        except (KeyError, TypeError, AttributeError) as error:
            raise PublicDataError(f"{member}: it lacks {error}") from error
        archs.append(arch)
        performances += performance
    if not archs:
        raise PublicDataError(f"{where} holds no record")
    frame = _numbers(pd.DataFrame(archs), ARCH_COLUMNS, where, may_miss=False)
    frame = frame.sort_values("record", ignore_index=True)
    if frame["record"].duplicated().any():
        raise PublicDataError(
            f"{where}: two files are record {frame.loc[frame['record'].duplicated(), 'record'].iloc[0]}"
        )
    measured = _numbers(pd.DataFrame(performances), PERFORMANCE_COLUMNS, where, may_miss=True)
    measured = measured.sort_values("record", ignore_index=True, kind="stable")
    missing = measured[measured["throughput_images_per_s"].isna()].groupby("device", sort=False).size()
    again = int(frame["arch"].duplicated().sum())
    spread = frame.groupby("arch")["top1"].agg(lambda values: values.max() - values.min()).max()
    defects = [f"{device}: {count} networks without a throughput" for device, count in missing.items()]
    if again:
        defects.append(
            f"{again} records repeat the network of another one; their top-1 differs by up to {spread:.2f} points"
        )
    if len(frame) != N_FILES:
        defects.append(f"{len(frame)} records; the published archive holds {N_FILES}")
    tables = (
        PublicTable("accel_nas_bench_archs", frame, ARCH_COLUMNS, DECISIONS),
        PublicTable("accel_nas_bench_performance", measured, PERFORMANCE_COLUMNS, DECISIONS),
    )
    facts: dict[str, int | float | str] = {
        "records": len(frame),
        "different networks": len(frame) - again,
        "devices": len(DEVICES),
        "lowest and highest top-1, %": f"{frame['top1'].min():.2f} to {frame['top1'].max():.2f}",
    }
    return Imported(tables, facts, tuple(defects))


def _record(number: int, record: Any, where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row of networks and one row per device; null, for what was not measured, is NaN."""
    options = record["architecture"]
    if list(options) != list(DECISIONS):
        raise PublicDataError(f"{where}: the decisions are {', '.join(options)}; they should be {', '.join(DECISIONS)}")
    if wrong := [name for name, offered in DECISIONS.items() if options[name] not in offered]:
        raise PublicDataError(f"{where}: {wrong[0]} is {options[wrong[0]]!r}; it can be {DECISIONS[wrong[0]]}")
    arch = ".".join(str(offered.index(options[name])) for name, offered in DECISIONS.items())
    metrics, model, perf = record["metrics"], record["model_info"], record["platform_perf"]
    row = {
        "record": number,
        "arch": arch,
        "macs": model["macs"] * 1e6,
        "params": model["params"] * 1e6,
        "top1": metrics["val_top1"],
        "top5": metrics["val_top5"],
        "train_time_s": metrics["train_time"],
    }
    rows = [
        {
            "record": number,
            "arch": arch,
            "device": device,
            "throughput_images_per_s": perf[f"throughput_{device}"]["throughput_mean"],
            "throughput_std_images_per_s": perf[f"throughput_{device}"]["throughput_std"],
            "latency_ms": perf[f"latency_{device}"]["latency_mean"] if device in WITH_LATENCY else None,
        }
        for device in DEVICES
    ]
    return row, rows


def _numbers(frame: pd.DataFrame, columns: Mapping[str, Column], where: str, *, may_miss: bool) -> pd.DataFrame:
    """`frame` with its columns of numbers as such, all of them positive.

    Raises:
        PublicDataError: One is not.
    """
    for name, column in columns.items():
        if column.kind == "str" or name == "record":
            continue
        try:
            values = frame[name].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PublicDataError(f"{where}: {name} is not a number everywhere: {error}") from error
        wrong = np.flatnonzero(~((np.isfinite(values) & (values > 0)) | (may_miss & np.isnan(values))))
        if len(wrong):
            record = frame["record"].iloc[wrong[0]]
            raise PublicDataError(f"{where}: record {record}: {name} is {values[wrong[0]]}; it should be positive")
        frame[name] = np.round(values).astype(np.int64) if column.kind == "int64" else values
    return frame
