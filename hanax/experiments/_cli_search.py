"""``hanax search``: a front from predictors and tables, or from a trained supernet; by one process or by many."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hanax.experiments._cli_parts import space_of, stop

if TYPE_CHECKING:
    import pandas as pd

    from hanax.experiments._progress import Terminal
    from hanax.experiments._research import Task

SHOWN = 20
"""Members of a front that are printed; the file has them all."""

COLUMNS = {
    "accuracy": ("accuracy, %", 100.0, ".2f"),
    "predicted_accuracy": ("predicted accuracy, %", 100.0, ".2f"),
    "latency_ms": ("predicted latency, ms", 1.0, ".4g"),
    "macs": ("MACs, M", 1e-6, ".2f"),
    "params": ("parameters, k", 1e-3, ".0f"),
    "size_bytes": ("size, kB", 1e-3, ".1f"),
    "bit_operations": ("bit operations, M", 1e-6, ".1f"),
    "bitfusion_latency_ms": ("BitFusion latency, ms", 1.0, ".4g"),
    "bitfusion_energy_mj": ("BitFusion energy, mJ", 1.0, ".4g"),
    "peak_activation_bytes": ("peak activations, KiB", 1 / 1024, ".1f"),
}
"""For each cost: what a table calls it, with its unit; the factor to that unit; and how it is written."""


def search(
    path: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The folder of a run; not needed with files and --space.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The front, a Parquet file, or CSV if it ends in .csv.")] = None,
    device: Annotated[str | None, typer.Option(help="Which device of the run; its first one by default.")] = None,
    accuracy: Annotated[
        Path | None, typer.Option(help="An accuracy table, or a predictor (.npz), in place of the run's.")
    ] = None,
    latency: Annotated[
        Path | None, typer.Option(help="A latency table, or a predictor (.npz), in place of the run's.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Without DIR: an experiment file, or the name of one with Hanax.")
    ] = None,
    evaluate: Annotated[
        Literal["predicted", "supernet"],
        typer.Option(help="How accurate a network is: as predicted, or by scoring each with the run's supernet."),
    ] = "predicted",
    objective: Annotated[
        list[str] | None, typer.Option(metavar="COST", help="A cost to trade off; give several. The run's by default.")
    ] = None,
    at_most: Annotated[
        list[str] | None, typer.Option(metavar="COST=VALUE", help="Bound a cost from above, e.g. latency_ms=2.5.")
    ] = None,
    at_least: Annotated[
        list[str] | None, typer.Option(metavar="COST=VALUE", help="Bound a cost from below, e.g. accuracy=0.9.")
    ] = None,
    searcher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="nsga2, or an Optuna sampler: linas (few evaluations), evolution, optuna-nsga2, tpe, random.",
        ),
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Networks to consider; in a study, over all who work on it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Workers of a study each derive their own from it.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="HANAX_STORAGE",
            help="Share the search: postgresql://USER@HOST/DATABASE, grpc://HOST:PORT, sqlite:///FILE or a file. "
            "Start the same command as often as you like, anywhere; stop and start it again whenever you like.",
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the shared study.")] = "hanax",
) -> None:
    """Search a front; nothing is trained and nothing is measured."""
    from hanax.experiments._progress import Terminal
    from hanax.experiments._research import Sources, make_task, search_alone

    sources = Sources(path, None if space is None else space_of(space, ()), device, accuracy, latency, evaluate)
    terminal = Terminal()
    try:
        with terminal.live():
            task = make_task(
                sources, objectives=objective or (), at_most=_bounds(at_most), at_least=_bounds(at_least),
                reporter=terminal,
            )  # fmt: skip
            seed = task.seed if seed is None else seed
            if storage is None:
                front = search_alone(task, searcher, evaluations, seed, terminal)
            else:
                front = _work(task, searcher, evaluations, seed, storage, study, terminal)
    except KeyboardInterrupt:
        stop("Stopped. Without --storage, nothing of a search is kept.")
    if out is not None:
        _write(out, front, task)
    _print(front, task)
    if out is not None:
        terminal.say(f"{out}: {len(front)} networks on the front")


def _work(
    task: Task, searcher: str | None, evaluations: int | None, seed: int, storage: str, study: str, terminal: Terminal
) -> pd.DataFrame:
    """The front of a shared study, when it is complete."""
    import optuna

    from hanax.experiments._research import N_REAL, open_study, search_together
    from hanax.searchers import hide_password

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    total, bar = evaluations or N_REAL, terminal.bar("networks of the study")
    own_seed = int.from_bytes(uuid.uuid4().bytes[:8], "little") ^ seed
    worker = open_study(task, searcher, evaluations, own_seed, storage, study)
    terminal.say(f"Study {study} at {hide_password(storage)}: worker in process {os.getpid()}")
    try:
        return search_together(task, worker, lambda done: bar(min(done, total), total))
    except KeyboardInterrupt:
        worker.close()
        again = shlex.join(["hanax", *map(hide_password, sys.argv[1:])])
        stop(f"Stopped. The study keeps what was evaluated; to go on:\n    {again}")
    finally:
        worker.close()


def _bounds(items: list[str] | None) -> dict[str, float]:
    bounds = {}
    for item in items or ():
        cost, separator, value = item.partition("=")
        try:
            bounds[cost] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise typer.BadParameter(f"{item!r}: expected COST=VALUE, such as latency_ms=2.5")
    return bounds


def _write(out: Path, front: pd.DataFrame, task: Task) -> None:
    from hanax._files import write_atomically
    from hanax.experiments._frames import write_frame

    if out.suffix == ".csv":
        write_atomically(out, front.to_csv(index=False).encode())
    else:
        facts: Mapping[str, Any] = {"units": {part.name: part.unit for part in task.problem.objectives}, **task.origin}
        write_frame(out, front, task.problem.space, **facts)


def _print(front: pd.DataFrame, task: Task) -> None:
    """The front as a table; well-spread members of a long one."""
    from rich.console import Console
    from rich.table import Table

    from hanax.searchers import spread_along_front

    losses = task.problem.losses({name: front[name].to_numpy() for name in front.columns if name != "arch"})
    rows = front.iloc[spread_along_front(losses, SHOWN)] if len(front) > SHOWN else front
    title = f"Front of {len(front)} networks" + (f", {len(rows)} of them" if len(rows) < len(front) else "")
    table = Table(title=title, title_justify="left")
    table.add_column("arch", overflow="fold")
    known = [COLUMNS.get(name, (name, 1.0, ".4g")) for name in front.columns if name != "arch"]
    for header, _, _ in known:
        table.add_column(header, justify="right")
    for arch, *values in rows.itertuples(index=False):
        cells = [format(value * factor, form) for value, (_, factor, form) in zip(values, known, strict=True)]
        table.add_row(arch, *cells)
    Console(highlight=False).print(table)
