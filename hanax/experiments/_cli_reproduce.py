"""`hanax reproduce`: published results beside ours, on the public files that they were published for."""

from __future__ import annotations

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
    "nasflat": Experiment("Few-shot latency on twelve sets of devices (Akhauri & Abdelfattah, 2024)", _nasflat),
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
            typer.echo(f"{known:14} {experiment.about}")
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
    Console(highlight=False).print(table)
