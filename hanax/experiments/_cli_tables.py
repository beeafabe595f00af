"""The part of the command line that is about tables: public data, and what one's own tables are worth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from hanax.experiments._cli_parts import Set, space_of

data = typer.Typer(help="Public benchmark data of others as tables.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]


@data.command("list")
def list_data(as_json: AsJson = False) -> None:
    """List the public data sets that can be imported: what each expects, where it is published, and its licence."""
    from hanax.devices.public import SOURCES

    if as_json:
        names = ("name", "title", "files", "url", "licence", "citation")
        listed = [{name: getattr(source, name) for name in names} for source in SOURCES.values()]
        typer.echo(json.dumps({"sources": listed}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what", "DIR holds", "source", "licence", show_lines=True)
    for source in SOURCES.values():
        table.add_row(source.name, source.title, source.files, source.url, source.licence)
    Console(highlight=False).print(table)


@data.command("import")
def import_data(
    name: Annotated[str, typer.Argument(help="Which one; see `hanax data list`.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with its files, as they were published.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and their summary, NAME.json.")],
    as_json: AsJson = False,
) -> None:
    """Turn public files into Parquet tables, and say what is in them and what is wrong with them.

    Nothing in the files is executed: pickles are decoded as plain data, archives are not unpacked to disk.
    """
    from hanax.devices.public import find_source, import_source, write_import

    source = find_source(name)
    imported = import_source(source, folder)
    summary = write_import(source, imported, out)
    if as_json:
        typer.echo(summary.read_text())
        return
    for table in imported.tables:
        typer.echo(f"{out / table.name}.parquet: {len(table.frame):,} rows of {', '.join(table.columns)}")
    for fact, value in imported.facts.items():
        typer.echo(f"  {fact}: {value}")
    for defect in imported.defects:
        typer.echo(f"  beware: {defect}")
    typer.echo(f"{summary}: columns with units, provenance ({source.licence}), checksums")


tables = typer.Typer(help="Merge, validate and describe tables of latencies and other costs.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Tables, Parquet files.")]


@tables.command()
def merge(
    files: Files,
    out: Annotated[Path, typer.Option(help="The merged table; must not exist.")],
    wins: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The one of FILE... whose rows count where others differ from them."),
    ] = None,
) -> None:
    """Merge tables of one space and one device; equal rows come once, differing ones are refused unless one wins."""
    from hanax.devices import merge_tables, open_table

    if out.exists():
        raise typer.BadParameter(f"{out} exists; merging replaces no table", param_hint="--out")
    opened = {str(file): open_table(file) for file in files}
    merged = merge_tables(opened, wins=None if wins is None else str(wins))
    merged.write(out)
    given = sum(len(table.frame) for table in opened.values())
    typer.echo(f"{out}: {len(merged.frame)} rows of {given} in {len(opened)} tables")


@tables.command()
def validate(
    files: Files,
    space: Annotated[
        str | None,
        typer.Option(help="Whose networks, for more checks: a run's folder, an experiment file, or the name of one."),
    ] = None,
    set_: Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with tables; the exit status is 1 if a table cannot be read or a row cannot be true."""
    from hanax.devices import Finding, open_table, validate_table

    search_space = None if space is None else space_of(space, set_ or ())
    found: dict[str, list[Finding]] = {}
    for file in files:
        try:
            found[str(file)] = validate_table(open_table(file), search_space)
        except (ValueError, OSError) as error:
            found[str(file)] = [Finding("error", str(error))]
    counted = [finding for findings in found.values() for finding in findings if strict or finding.severity == "error"]
    if as_json:
        listed = {name: [dataclasses.asdict(finding) for finding in findings] for name, findings in found.items()}
        typer.echo(json.dumps({"ok": not counted, "tables": listed}))
    else:
        for name, findings in found.items():
            typer.echo(f"{name}: " + ("nothing is wrong" if not findings else f"{len(findings)} finding(s)"))
            for finding in findings:
                typer.echo(f"  {finding}")
        if search_space is None:
            typer.echo("Without --space nothing was checked against the networks themselves.")
    if counted:
        raise typer.Exit(1)


@tables.command()
def describe(files: Files, as_json: AsJson = False) -> None:
    """Say what tables hold: how many rows, their range and intervals, of which device, when and under which load."""
    from hanax.devices import describe_table, open_table

    described = {str(file): describe_table(open_table(file)) for file in files}
    if as_json:
        typer.echo(json.dumps({"tables": described}))
        return
    from rich.console import Console
    from rich.table import Table

    for file, facts in described.items():
        table = Table("what", "value", title=file, title_justify="left")
        for name, value in facts.items():
            table.add_row(name.replace("_", " "), _shown(value))
        Console(highlight=False).print(table)


def _shown(value: object) -> str:
    """A value for people; a list of numbers is a range."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return " / ".join(_shown(part) for part in value)
    return str(value)
