"""The part of the command line for machines without network: a zip goes there, a file comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hanax.experiments._cli_parts import Set, SpaceOption, space_of


def bundle(
    space: SpaceOption,
    device: Annotated[list[str], typer.Option(help="What to measure on; may be repeated; see `hanax devices`.")],
    out: Annotated[Path, typer.Option(help="The zip.")],
    archs: Annotated[int, typer.Option(min=2, help="Networks to measure, the ends among them.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Decides which networks.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images per inference.")] = 1,
    target_relative_ci: Annotated[float, typer.Option(help="As for `hanax collect latency`.")] = 0.02,
    passes: Annotated[int, typer.Option(min=1, help="As for `hanax collect latency`.")] = 2,
    set_: Set = None,
) -> None:
    """Write a zip with which a machine without network measures; `hanax import-results` reads what comes back."""
    from hanax.devices import Method, write_bundle
    from hanax.experiments._config import DeviceConfig
    from hanax.experiments._export import latency_model_builder
    from hanax.experiments._fitting import draw_archs
    from hanax.experiments._progress import Terminal

    specs = [DeviceConfig(name=name, threads=threads, batch=batch).spec() for name in device]
    search_space = space_of(space, set_ or ())
    builders = {spec.name: latency_model_builder(search_space, spec.model_format, spec.batch, seed) for spec in specs}
    drawn = draw_archs(search_space, archs, [seed, 11])
    terminal = Terminal()
    with terminal.live():
        write_bundle(
            out,
            search_space,
            drawn,
            specs,
            lambda spec, arch: builders[spec.name](arch),
            seed=seed,
            method=Method(target_relative_ci=target_relative_ci),
            passes=passes,
            on_progress=terminal.bar("models built"),
        )
    size_mb = out.stat().st_size / 1e6
    terminal.say(
        f"{out}: {len(drawn)} networks for {', '.join(device)}, {size_mb:.1f} MB. Unpack it on the machine to measure "
        f"and run `python3 run.py` (README.txt says more); what it gives is read with\n"
        f"    hanax import-results results.jsonl --bundle {out} --out DIR"
    )


def import_results(
    results: Annotated[Path, typer.Argument(help="The results.jsonl that run.py of a bundle wrote.")],
    bundle: Annotated[Path, typer.Option(help="The zip that was sent.")],
    out: Annotated[
        Path, typer.Option(help="A folder for a table per device, or a .parquet file; what exists is completed.")
    ],
) -> None:
    """Check what came back from a machine without network, and make latency tables of it."""
    from hanax.devices import import_results as import_tables

    found, tables = import_tables(results, bundle, out)
    for device, (path, table) in tables.items():
        low, high = table.frame["latency_ms"].min(), table.frame["latency_ms"].max()
        typer.echo(f"{path}: {len(table.frame)} networks on {device}, {low:.3f} to {high:.3f} ms")
        typer.echo(f"    measured on {found.identities[device]}")
        reliability = table.reliability()
        typer.echo("    measured once, so its reliability is unknown" if reliability is None else f"    {reliability}")
    for (device, arch), problem in found.failures.items():
        typer.echo(f"left out: {device}: {arch}: {problem}")
    for device, archs in found.missing.items():
        if archs:
            typer.echo(f"not measured in every pass on {device}: {', '.join(map(str, archs))}")
    if found.torn:
        typer.echo("the last line of the results was cut short, by a power cut or in copying; it is not counted")
