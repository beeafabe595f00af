"""`hanax reproduce`: published results beside ours, on the public files that they were published for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hanax.experiments._reproduction import Reproduction

Say = Callable[[str], None]


def _help(name: str, data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_latency import N_DRAWS, reproduce_help

    return reproduce_help(name, data, 2 if quick else N_DRAWS, say)


def _atlas(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_latency import N_DRAWS, reproduce_atlas

    return reproduce_atlas(2 if quick else N_DRAWS, say)


def _nasflat(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_latency import N_DRAWS, reproduce_nasflat

    return reproduce_nasflat(data, 2 if quick else N_DRAWS, say)


def _nb201_pareto(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_search import DEVICES, N_SEEDS, reproduce_nb201_pareto

    return reproduce_nb201_pareto(data, 2 if quick else N_SEEDS, DEVICES[:2] if quick else DEVICES, say)


def _linas_hv(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_search import N_SEEDS, reproduce_linas_hv

    return reproduce_linas_hv(data, 2 if quick else N_SEEDS, say)


def _exact_front(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_exact import N_SEEDS, reproduce_exact

    return reproduce_exact(data, 1 if quick else N_SEEDS, say)


def _ofa_accuracy(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_accuracy import N_DRAWS, load_ofa, reproduce_accuracy

    return reproduce_accuracy("ofa-accuracy", load_ofa, data, 2 if quick else N_DRAWS, say)


def _macro_accuracy(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_accuracy import N_DRAWS, load_macro, reproduce_accuracy

    return reproduce_accuracy("macro-accuracy", load_macro, data, 2 if quick else N_DRAWS, say)


def _ofa_search(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_ofa_search import reproduce_ofa_search

    return reproduce_ofa_search(data, quick, say)


def _joint(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_joint import reproduce_joint

    return reproduce_joint(data, quick, say)


def _apq_transfer(data: Path, quick: bool, say: Say) -> Reproduction:
    from hanax.experiments._reproduce_apq import N_DRAWS, load_tables, reproduce_apq

    return reproduce_apq(load_tables, 2 if quick else N_DRAWS, say)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One thing that can be reproduced: in a sentence, and how, from the folder of the public files."""

    about: str
    run: Callable[[Path, bool, Say], Reproduction]


EXPERIMENTS: dict[str, Experiment] = {
    "help-nb201": Experiment(
        "Few-shot latency on NAS-Bench-201, HELP's protocol (Lee et al., 2021)", partial(_help, "nasbench201")
    ),
    "help-fbnet": Experiment("Few-shot latency on FBNet, HELP's protocol", partial(_help, "fbnet")),
    "atlas": Experiment(
        "Few-shot latency on the devices of Hanax's own atlas, leave one runtime out; needs no files", _atlas
    ),
    "nb201-pareto": Experiment(
        "Evaluations to the true front of NAS-Bench-201 on six devices; installs pymoo beside Hanax", _nb201_pareto
    ),
    "linas-hv": Experiment("Evaluations to the front of a recorded search (Cummings et al., 2022)", _linas_hv),
    "exact-front": Experiment(
        "The exact front of an additive surrogate of Once-for-All, and evolution's gap to it", _exact_front
    ),
    "ofa-search": Experiment(
        "Search by evolution beside the ofa package (Cai et al., 2020), which gets an environment of its own",
        _ofa_search,
    ),
    "joint-vs-sequential": Experiment(
        "Architecture and number formats searched together or in turn; takes hours, as it trains a supernet", _joint
    ),
    "nasflat": Experiment("Few-shot latency on twelve sets of devices (Akhauri & Abdelfattah, 2024)", _nasflat),
    "ofa-accuracy": Experiment(
        "Accuracy of Once-for-All subnets from 50 of them, on DyNAS-T's traces (Cummings et al., 2022)", _ofa_accuracy
    ),
    "macro-accuracy": Experiment(
        "Accuracy of all networks of NAS-Bench-Macro from 50 of them (Su et al., 2021)", _macro_accuracy
    ),
    "apq-transfer": Experiment(
        "Accuracy of quantized subnets by transfer from unquantized ones (Wang et al., 2020); needs no files",
        _apq_transfer,
    ),
}


def reproduce(
    name: Annotated[str | None, typer.Argument(help="The experiment; without one, all are listed.")] = None,
    data: Annotated[Path, typer.Option(help="The folder with the public files, such as help/.")] = Path("data"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file, too.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two draws in place of all: to see that it runs.")] = False,
) -> None:
    """Set a published result and simple methods beside ours."""
    if name is None:
        for known, experiment in EXPERIMENTS.items():
            typer.echo(f"{known:19} {experiment.about}")
        return
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment is called {name!r}; there are {', '.join(EXPERIMENTS)}")

    def say(text: str) -> None:
        typer.echo(text, err=True)

    result = EXPERIMENTS[name].run(data, quick, say)
    _print(result)
    if json_file is not None:
        result.write(json_file)
        typer.echo(f"{json_file}: all {len(result.rows)} figures")


def _print(result: Reproduction) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.title}; {result.wall_s:.0f} s")
    table.add_column("figure", no_wrap=True)
    for column in ("published", "ours", "spread over draws", "worst", "n", "unit"):
        table.add_column(column, justify="right")
    for row in result.rows:
        numbers = [
            "" if value is None else f"{value:.3f}" for value in (row.published, row.ours, row.spread, row.worst)
        ]
        table.add_row(row.metric, *numbers, "" if row.n is None else str(row.n), row.unit)
    # Into a file, at a width at which no figure is cut.
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
