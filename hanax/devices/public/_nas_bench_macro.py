"""NAS-Bench-Macro (Su et al., 2021, arXiv:2103.11922): all 6,561 nets of eight layers, trained three times."""

from __future__ import annotations

import math
from typing import Any

from hanax.devices.public._folder import PublicDataError, PublicFolder, check_positive
from hanax.devices.public._public_table import ARCH, MACS, PARAMS, Column, PublicTable
from hanax.devices.public._source import Imported

FILE = "nas-bench-macro_cifar10.json"
N_LAYERS, N_SEEDS = 8, 3
OPERATORS = ("identity", "mbconv_k3_e3", "mbconv_k5_e6")
DECISIONS = {f"layer{number}": OPERATORS for number in range(1, N_LAYERS + 1)}

COLUMNS = {
    "arch": ARCH,
    "macs": MACS,
    "params": PARAMS,
    "accuracy": Column("float64", "CIFAR-10 test accuracy, mean over the seeds", "%"),
    **{f"accuracy_seed{seed}": Column("float64", "the same, of one training", "%") for seed in range(N_SEEDS)},
}


def read_nas_bench_macro(folder: PublicFolder) -> Imported:
    """One table, in lexicographic order of the architectures."""
    import pandas as pd

    where = str(folder.path / FILE)
    records = folder.json(FILE)
    if not isinstance(records, dict) or not records:
        raise PublicDataError(f"{where} is not an object of architectures")
    try:
        rows = [_row(text, records[text], where) for text in sorted(records)]
    except (KeyError, TypeError, AttributeError) as error:
        raise PublicDataError(f"{where}: a record lacks {error}") from error
    frame = pd.DataFrame(rows)
    n_space = len(OPERATORS) ** N_LAYERS
    best = frame.iloc[int(frame["accuracy"].to_numpy().argmax())]
    noise = frame[[f"accuracy_seed{seed}" for seed in range(N_SEEDS)]].std(axis=1).mean()
    facts = {
        "architectures": len(frame),
        "best accuracy, %": round(float(best["accuracy"]), 2),
        "best architecture": best["arch"],
        "standard deviation over seeds, mean, points": round(float(noise), 3),
    }
    defects = () if len(frame) == n_space else (f"{len(frame)} architectures; the space has {n_space}",)
    return Imported((PublicTable("nas_bench_macro", frame, COLUMNS, DECISIONS),), facts, defects)


def _row(text: str, record: Any, where: str) -> dict[str, Any]:
    if len(text) != N_LAYERS or not set(text) <= set("012"):
        raise PublicDataError(f"{where}: {text!r} is not {N_LAYERS} digits from 0 to {len(OPERATORS) - 1}")
    accuracies = record["test_acc"]
    if len(accuracies) != N_SEEDS or not all(type(a) is float and 0 < a <= 100 for a in accuracies):
        raise PublicDataError(f"{where}: {text} has the accuracies {accuracies}; they should be {N_SEEDS} percentages")
    mean = math.fsum(accuracies) / N_SEEDS
    if abs(mean - record["mean_acc"]) > 1e-6:
        raise PublicDataError(f"{where}: {text} has mean {record['mean_acc']}; its accuracies have {mean}")
    return {
        "arch": ".".join(text),
        "macs": int(
            check_positive(record["flops"], "flops", f"{where}: {text}")
        ),  # Called FLOPs there; a layer's weights times its map show that they are MACs.
        "params": int(check_positive(record["params"], "params", f"{where}: {text}")),
        "accuracy": mean,
        **{f"accuracy_seed{seed}": value for seed, value in enumerate(accuracies)},
    }
