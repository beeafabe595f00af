"""`hanax reproduce`: published results beside ours, on the public files that they were published for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hanax.experiments._reproduction import Reproduction

EXPERIMENTS = {
    "help-nb201": "Few-shot latency on NAS-Bench-201, HELP's protocol (Lee et al., 2021)",
    "help-fbnet": "Few-shot latency on FBNet, HELP's protocol",
    "atlas": "Few-shot latency on the devices of Hanax's own atlas, leave one runtime out; needs no files",
    "nasflat": "Few-shot latency on twelve sets of devices (Akhauri & Abdelfattah, 2024)",
}


def reproduce(
    name: Annotated[str | None, typer.Argument(help="The experiment; without one, all are listed.")] = None,
    data: Annotated[Path, typer.Option(help="The folder with the public files, such as help/.")] = Path("data"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file, too.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two draws in place of twenty: to see that it runs.")] = False,
) -> None:
    """Set a published result and simple methods beside ours."""
    if name is None:
        for known, about in EXPERIMENTS.items():
            typer.echo(f"{known:12} {about}")
        return
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment is called {name!r}; there are {', '.join(EXPERIMENTS)}")
    from hanax.experiments._reproduce_latency import N_DRAWS, reproduce_atlas, reproduce_help, reproduce_nasflat

    n_draws = 2 if quick else N_DRAWS

    def say(text: str) -> None:
        typer.echo(text, err=True)

    if name == "atlas":
        result = reproduce_atlas(n_draws, say)
    elif name == "nasflat":
        result = reproduce_nasflat(data, n_draws, say)
    else:
        result = reproduce_help({"help-nb201": "nasbench201", "help-fbnet": "fbnet"}[name], data, n_draws, say)
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
