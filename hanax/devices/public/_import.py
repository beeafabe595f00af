"""The public data sets that can be imported, and importing one of them."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path

import hanax
from hanax._files import write_atomically
from hanax.devices.public._accel_nas_bench import read_accel_nas_bench
from hanax.devices.public._bitfusion import read_bitfusion
from hanax.devices.public._dynas_t import read_dynas_t
from hanax.devices.public._folder import PublicFolder
from hanax.devices.public._hat import read_hat
from hanax.devices.public._help import read_help
from hanax.devices.public._merged_latency import read_merged_latency
from hanax.devices.public._nas_bench_201 import read_accuracies
from hanax.devices.public._nas_bench_macro import read_nas_bench_macro
from hanax.devices.public._public_table import Provenance
from hanax.devices.public._source import Imported, Source
from hanax.devices.public._spaceevo import read_spaceevo

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "help",
            "Latencies: NAS-Bench-201 (15,625 cells, 25 devices), FBNet (5,000 x 27), Once-for-All (5,000 x 12)",
            "nasbench201/, fbnet/ and ofa/ with .pt files: the folder `data` of the repository",
            "https://github.com/HayeonLee/HELP",
            "MIT",
            "Lee et al., 2021, HELP, arXiv:2106.08630; latencies partly of HW-NAS-Bench, arXiv:2103.10584",
            read_help,
        ),
        Source(
            "nb201-latency",
            "Latencies of NAS-Bench-201's 15,625 cells on the 35 devices of HELP and EAGLE together",
            "nb201.npz",
            "https://github.com/HayeonLee/HELP and https://github.com/SamsungLabs/eagle",
            "MIT (HELP), Apache-2.0 (EAGLE)",
            "Lee et al., 2021, arXiv:2106.08630; Dudziak et al., 2020, BRP-NAS, arXiv:2007.08859",
            read_merged_latency,
        ),
        Source(
            "nas-bench-201",
            "Test accuracies of NAS-Bench-201's 15,625 cells on CIFAR-10, CIFAR-100 and ImageNet16-120",
            "nb201_acc.npz",
            "https://github.com/D-X-Y/NAS-Bench-201",
            "MIT",
            "Dong & Yang, 2020, NAS-Bench-201, arXiv:2001.00326",
            read_accuracies,
        ),
        Source(
            "hat",
            "Encoder and decoder latencies of transformers: 8 sets of 2,000 (Raspberry Pi, Xeon, Titan Xp)",
            "TASK_DEVICE_all.csv, eight of them: the folder `latency_dataset` of the repository",
            "https://github.com/mit-han-lab/hardware-aware-transformers",
            "MIT",
            "Wang et al., 2020, HAT, arXiv:2005.14187",
            read_hat,
        ),
        Source(
            "accel-nas-bench",
            "ImageNet accuracy of 5,138 MnasNet networks, and their throughput or latency on six accelerators",
            "anb_dataset_jsons.tar.gz: the folder `anb_dataset` of the repository",
            "https://github.com/afzalxo/Accel-NASBench",
            "Apache-2.0",
            "Ahmad et al., 2024, Accel-NASBench, arXiv:2404.08005",
            read_accel_nas_bench,
        ),
        Source(
            "nas-bench-macro",
            "CIFAR-10 accuracy of all 6,561 networks of eight layers, three seeds each",
            "nas-bench-macro_cifar10.json",
            "https://github.com/xiusu/NAS-Bench-Macro",
            "Apache-2.0",
            "Su et al., 2021, NAS-Bench-Macro, arXiv:2103.11922",
            read_nas_bench_macro,
        ),
        Source(
            "dynas-t",
            "Search traces on the Once-for-All supernet: ImageNet accuracy, MACs and parameters, in order",
            "mbnv3w10_*.csv, three to five of them: the folder `notebooks/data` of the repository",
            "https://github.com/IntelLabs/DyNAS-T",
            "Apache-2.0, with a research-use note",
            "Cummings et al., 2022, DyNAS-T, arXiv:2205.10358",
            read_dynas_t,
        ),
        Source(
            "bitfusion",
            "Simulated latency and energy of 6,567 layers at 4, 6 and 8 bits on the BitFusion accelerator",
            "BitFusion_new.b1.dict: the folder `lut` of the repository",
            "https://github.com/mit-han-lab/apq",
            "BSD-2-Clause",
            "Wang et al., 2020, APQ, arXiv:2006.08509; Sharma et al., 2018, Bit Fusion, arXiv:1712.01507",
            read_bitfusion,
        ),
        Source(
            "spaceevo",
            "Predicted INT8 latency and distillation loss of 342,000 sampled stages (Pixel 4, Xeon VNNI)",
            "block_lut.tar.gz",
            "https://github.com/microsoft/Moonlit",
            "MIT",
            "Wang et al., 2023, SpaceEvo, arXiv:2303.08308",
            read_spaceevo,
        ),
    )
}
"""By name."""


def find_source(name: str) -> Source:
    """The source called `name`.

    Raises:
        ValueError: There is none; names those there are and the nearest one.
    """
    if name in SOURCES:
        return SOURCES[name]
    nearest = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"no public data set is called {name!r}; there are {', '.join(SOURCES)}{hint}")


def import_source(source: Source, folder: Path) -> Imported:
    """The tables that the public files in `folder` give, each with its provenance.

    Nothing in the files is executed, and nothing is written.

    Raises:
        PublicDataError: A file is missing, damaged, or not what its name says.
    """
    files = PublicFolder(folder)
    imported = source.read(files)
    provenance = Provenance(
        source.name, source.url, source.licence, source.citation, f"hanax {hanax.__version__}", dict(files.checksums)
    )
    tables = tuple(dataclasses.replace(table, provenance=provenance) for table in imported.tables)
    return dataclasses.replace(imported, tables=tables)


def write_import(source: Source, imported: Imported, out: Path) -> Path:
    """Store each table as ``NAME.parquet`` in `out`, and a summary of all of them as JSON; returns the summary's path.

    Raises:
        OSError: The folder cannot be made or written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    for table in imported.tables:
        table.write(out / f"{table.name}.parquet")
    tables = {table.name: table.describe() for table in imported.tables}
    provenance = next(table.pop("provenance") for table in tables.values())
    summary = {
        "provenance": provenance,
        "facts": dict(imported.facts),
        "defects": list(imported.defects),
        "tables": tables,
    }
    path = out / f"{source.name}.json"
    write_atomically(path, json.dumps(summary, indent=2).encode())
    return path
