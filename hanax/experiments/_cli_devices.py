"""The part of the command line that is about devices: what there is, how to add it, and whether it computes right."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hanax.experiments._cli_parts import DeviceName, On, device_config

devices = typer.Typer(help="List what can be measured here; install and check runtimes.")


@devices.callback(invoke_without_command=True)
def list_devices(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """List what can be measured here, what is missing, and the command that adds it."""
    if context.invoked_subcommand is not None:
        return
    import dataclasses

    from hanax.devices import device_statuses

    statuses = device_statuses()
    if as_json:
        typer.echo(json.dumps({"devices": [dataclasses.asdict(status) for status in statuses]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("device", no_wrap=True)
    for name in ("kind", "available", "missing", "to add it"):
        table.add_column(name, overflow="fold")
    for status in statuses:
        available = "yes" if status.available else "no"
        table.add_row(status.name, status.kind, available, status.missing or "", status.install or "")
    console = Console(highlight=False)
    console.print(table)
    from hanax.supernet import native_status

    native = native_status()
    kernels = "native" if native.available else "plain XLA"
    console.print(f"The supernet is trained and scored with {kernels} kernels: {native.reason}", soft_wrap=True)


@devices.command()
def install(device: DeviceName) -> None:
    """Install what a device needs, in an environment of its own, and say where."""
    from hanax.devices import RUNTIMES, find_device, install_runtime

    runtime = RUNTIMES[find_device(device).runtime]
    python = install_runtime(runtime, lambda text: typer.echo(f"{text} ..."))
    typer.echo(f"{device}: {runtime.name} is installed for {python}")


@devices.command()
def check(
    device: DeviceName,
    images: Annotated[int, typer.Option(min=1, help="Random images to compare on.")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    on: On = None,
) -> None:
    """Say how far what a device computes is from the network itself, on a small one with random weights."""
    from hanax.devices import check_parity, start_agent_at
    from hanax.experiments._export import parity_case

    config = device_config(device, on)
    spec = config.spec()
    model, inputs, expected = parity_case(spec, images * spec.batch, seed)
    with start_agent_at(config.find_place())(spec) as agent:
        parity = check_parity(agent, "a small network", model, inputs, expected)
    typer.echo(
        f"{spec.name}: {parity.n_images} images; largest difference of a logit {parity.max_error:.2g}, root mean "
        f"square {parity.relative_rms:.2%} of the logits' spread"
    )
