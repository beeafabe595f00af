"""DyNAS-T's search traces (Cummings et al., 2022, arXiv:2205.10358) on the Once-for-All supernet of width 1.0."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from hanax.devices.public._csv import read_csv
from hanax.devices.public._folder import PublicDataError, PublicFolder
from hanax.devices.public._ofa import encode_ofa, macs_and_params
from hanax.devices.public._public_table import ARCH, MACS, PARAMS, Column, PublicTable, arch_texts
from hanax.devices.public._source import Imported
from hanax.search_spaces import mobilenet_v3

TRACES = {
    "mbnv3w10_evonsga2_acc_macs.csv": "nsga2",
    "mbnv3w10_evounsga3_acc_macs_params.csv": "unsga3",
    "mbnv3w10_linasnsga2_acc_macs.csv": "linas",
}
OF_ACCURACY_ALONE = {"mbnv3w10_evoga_acc.csv": "ga", "mbnv3w10_linasga_acc.csv": "linas_ga"}
"""Traces of searches with one objective, in the same form; read where they are."""
PUBLISHED = {
    "Sub-network": "str",
    "Date": "str",
    "Model Parameters": "int64",
    "Latency (ms)": "float64",
    "MACs": "int64",
    "Top-1 Acc (%)": "float64",
}
COLUMNS = {
    "search": Column("str", "search algorithm: nsga2, unsga3, linas; ga and linas_ga look at accuracy alone"),
    "step": Column("int64", "position in the search, from 0"),
    "arch": ARCH,
    "macs": MACS,
    "params": PARAMS,
    "top1": Column("float64", "ImageNet validation accuracy with weights of the supernet", "%"),
    "evaluated_at": Column("str", "when, as the source notes it"),
}


def read_dynas_t(folder: PublicFolder) -> Imported:
    """One table of all evaluations, each search in its order."""
    import pandas as pd

    space = mobilenet_v3(resolutions=(224,))
    frames, defects = [], []
    there = folder.names(".")
    for file, search in (TRACES | {name: of for name, of in OF_ACCURACY_ALONE.items() if name in there}).items():
        where = str(folder.path / file)
        trace = read_csv(folder, file, PUBLISHED)
        records = [_record(text, where) for text in trace["Sub-network"]]
        codes = encode_ofa(space, records, [record["r"][0] for record in records], where)
        accuracy = trace["Top-1 Acc (%)"].to_numpy()
        if not ((accuracy > 0) & (accuracy <= 100)).all():
            raise PublicDataError(f"{where}: a top-1 accuracy is no percentage")
        wrong = int((macs_and_params(space, codes)["macs"] != trace["MACs"]).sum())
        if wrong:
            defects.append(f"{file}: the MACs of {wrong} networks are not those of the network in the same row")
        if (trace["Latency (ms)"] == 0).all():
            defects.append(f"{file}: all latencies are 0, a placeholder; the column is left out")
        frames.append(
            pd.DataFrame(
                {
                    "search": search,
                    "step": np.arange(len(trace)),
                    "arch": arch_texts(codes),
                    "macs": trace["MACs"],
                    "params": trace["Model Parameters"],
                    "top1": accuracy,
                    "evaluated_at": trace["Date"],
                }
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    n_again = int(frame.duplicated(["search", "arch"]).sum())
    if n_again:
        defects.append(f"{n_again} evaluations repeat a network of the same search, under other inactive options")
    decisions = {decision.name: decision.options for decision in space.decisions}
    facts = {
        "evaluations": len(frame),
        "different networks": int(frame["arch"].nunique()),
        **{f"evaluations of {search}": len(rows) for search, rows in frame.groupby("search", sort=False)},
        "highest top-1, %": round(float(frame["top1"].max()), 2),
    }
    table = PublicTable("dynas_t", frame, COLUMNS, decisions, space.fingerprint)
    return Imported((table,), facts, tuple(defects))


def _record(text: str, where: str) -> dict[str, Any]:
    """The lists of a record, which the source writes as a Python literal."""
    try:
        record = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise PublicDataError(f"{where}: {text[:60]!r} is not a record: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("r"), list) or len(record["r"]) != 1:
        raise PublicDataError(f"{where}: {text[:60]!r} is not a record with one resolution")
    return record
