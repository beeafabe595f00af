"""NAS-Bench-201 (Dong & Yang, 2020, arXiv:2001.00326): its cells, and their accuracies after 200 epochs.

A cell has four nodes; node 0 is its input, node 3 its output. Each of the six edges carries one of five operators.
Shapes: `n` cells, 6 edges.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from hanax.devices.public._folder import PublicDataError, PublicFolder
from hanax.devices.public._public_table import ARCH, INDEX, MACS, PARAMS, Column, PublicTable, arch_texts
from hanax.devices.public._source import Imported

OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node, to node; in the order of the published cell strings."""
N_CELLS = len(OPERATORS) ** len(EDGES)
DECISIONS = {f"edge{start}{end}": OPERATORS for start, end in EDGES}

CELLS_PER_STAGE = 5
STAGES = ((16, 32), (32, 16), (64, 8))
"""Channels and map side, in pixels, of the three stages on CIFAR-10."""
N_CLASSES = 10

CELL_COLUMNS = {
    "index": INDEX,
    "arch": ARCH,
    "cell": Column("str", "the cell as the official files write it"),
    "has_path": Column("bool", "whether some path without `none` leads from the cell's input to its output"),
    "macs": MACS,
    "params": PARAMS,
}


def parse_cell(text: str) -> tuple[int, ...]:
    """The operator index of each edge of a cell string such as ``|nor_conv_3x3~0|+|none~0|none~1|+|...|``.

    Raises:
        ValueError: The text is no such string.
    """
    found = re.findall(r"([a-z0-9_]+)~(\d)", text)
    names = [name for name, _ in found]
    if not set(names) <= set(OPERATORS) or len(names) != len(EDGES) or text != cell_text(map(OPERATORS.index, names)):
        raise ValueError(f"not a cell of NAS-Bench-201: {text!r}")
    return tuple(map(OPERATORS.index, names))


def cell_text(operators: Sequence[int] | map[int]) -> str:
    """The string of a cell with these operator indices, one per edge."""
    incoming: dict[int, list[str]] = {1: [], 2: [], 3: []}
    for (start, end), operator in zip(EDGES, operators, strict=True):
        incoming[end].append(f"{OPERATORS[operator]}~{start}")
    return "+".join(f"|{'|'.join(edges)}|" for edges in incoming.values())


def has_path(codes: Int[np.ndarray, "n 6"]) -> Bool[np.ndarray, " n"]:
    """Whether the output of each cell depends on its input at all."""
    carries = codes != OPERATORS.index("none")
    reached = {0: np.ones(len(codes), dtype=np.bool_)}
    for node in (1, 2, 3):
        into = [reached[start] & carries[:, edge] for edge, (start, end) in enumerate(EDGES) if end == node]
        reached[node] = np.logical_or.reduce(into)
    return reached[3]


def macs_and_params(codes: Int[np.ndarray, "n 6"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """MACs and parameters of the whole CIFAR-10 networks, every edge computed whether it matters or not.

    A 3x3 stem, five cells per stage, a residual block before the second and third, and a classifier. The MACs are the
    FLOPs that the official files give; normalisation is not counted.
    """
    convs = {
        kernel_size: (codes == OPERATORS.index(f"nor_conv_{kernel_size}x{kernel_size}")).sum(axis=1)
        for kernel_size in (1, 3)
    }
    first, side = STAGES[0]
    last = STAGES[-1][0]
    macs = np.full(len(codes), 3 * 9 * first * side**2 + last * N_CLASSES + N_CLASSES, dtype=np.int64)
    params = np.full(len(codes), 3 * 9 * first + 2 * first + 2 * last + last * N_CLASSES + N_CLASSES, dtype=np.int64)
    for channels, side in STAGES:
        for kernel_size, count in convs.items():
            weights = kernel_size**2 * channels**2
            macs += CELLS_PER_STAGE * count * weights * side**2
            params += CELLS_PER_STAGE * count * (weights + 2 * channels)
    for (before, _), (channels, side) in itertools.pairwise(STAGES):
        weights = 9 * before * channels + 9 * channels**2 + before * channels
        macs += weights * side**2
        params += weights + 4 * channels
    return macs, params


def cell_table(name: str, codes: Int32[np.ndarray, "n 6"]) -> PublicTable:
    """The cells in official order, with what follows from their strings alone."""
    import pandas as pd

    macs, params = macs_and_params(codes)
    frame = pd.DataFrame(
        {
            "index": np.arange(len(codes)),
            "arch": arch_texts(codes),
            "cell": [cell_text(row) for row in codes.tolist()],
            "has_path": has_path(codes),
            "macs": macs,
            "params": params,
        }
    )
    return PublicTable(name, frame, CELL_COLUMNS, DECISIONS)


def check_cells(codes: np.ndarray, where: str) -> Int32[np.ndarray, "n 6"]:
    """`codes`, if they are all cells of the benchmark, each once.

    Raises:
        PublicDataError: They are not.
    """
    if codes.shape != (N_CELLS, len(EDGES)) or codes.dtype.kind not in "iu":
        raise PublicDataError(f"{where}: {codes.dtype} {codes.shape} in place of integers ({N_CELLS}, {len(EDGES)})")
    if codes.min() < 0 or codes.max() >= len(OPERATORS):
        raise PublicDataError(
            f"{where}: operators are 0 to {len(OPERATORS) - 1}; there is {codes.min()}, {codes.max()}"
        )
    if (n_different := len(np.unique(codes, axis=0))) != N_CELLS:
        raise PublicDataError(f"{where}: {n_different} different cells in place of {N_CELLS}")
    return codes.astype(np.int32)


DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "ImageNet16-120": "imagenet16_120"}
ACCURACY_FILE = "nb201_acc.npz"


def read_accuracies(folder: PublicFolder) -> Imported:
    """Test accuracies of all cells, from the arrays of `ACCURACY_FILE`."""
    arrays = folder.npz(ACCURACY_FILE, ("arch", "op_names", "datasets", "test_acc_200ep"))
    if tuple(arrays["op_names"]) != OPERATORS or tuple(arrays["datasets"]) != tuple(DATASETS):
        raise PublicDataError(
            f"{ACCURACY_FILE} has the operators {', '.join(arrays['op_names'])} and data sets "
            f"{', '.join(arrays['datasets'])}; they should be {', '.join(OPERATORS)} and {', '.join(DATASETS)}"
        )
    codes = check_cells(arrays["arch"], ACCURACY_FILE)
    percent = arrays["test_acc_200ep"].astype(np.float64)
    if percent.shape != (N_CELLS, len(DATASETS)) or not ((percent > 0) & (percent <= 100)).all():
        raise PublicDataError(f"{ACCURACY_FILE}: the accuracies are not {N_CELLS} x {len(DATASETS)} percentages")
    cells = cell_table("nas_bench_201_accuracy", codes)
    columns = dict(CELL_COLUMNS)
    frame = cells.frame
    for position, (published, name) in enumerate(DATASETS.items()):
        meaning = f"test accuracy on {published} after 200 epochs, mean over the published seeds"
        columns[f"{name}_accuracy"] = Column("float64", meaning, "%")
        frame = frame.assign(**{f"{name}_accuracy": percent[:, position]})
    best = frame.iloc[int(percent[:, 0].argmax())]
    without = int((~frame["has_path"]).sum())
    return Imported(
        tables=(PublicTable(cells.name, frame, columns, DECISIONS),),
        facts={
            "cells": N_CELLS,
            "cells without a path": without,
            "best CIFAR-10 accuracy, %": round(float(best["cifar10_accuracy"]), 2),
            "best cell on CIFAR-10": best["cell"],
        },
        defects=(f"{without} cells have no path from input to output: their accuracy is that of guessing",),
    )
