"""What the files of the command line share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from hanax.experiments._config import DeviceConfig

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the file, e.g. supernet.epochs=5."),
]
DeviceName = Annotated[str, typer.Argument(metavar="DEVICE", help="Its name; see `hanax devices`.")]
On = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Where the device is, if not here: ssh://user@host:port/?python=PATH or adb://SERIAL?python=PATH.",
    ),
]
SpaceOption = Annotated[
    str,
    typer.Option("--space", help="Whose networks: a run's folder, an experiment file, or the name of one with Hanax."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="What to measure on; see `hanax devices`.")]
OutOption = Annotated[Path, typer.Option("--out", help="The table, a Parquet file; one that exists is completed.")]


def stop(text: str) -> NoReturn:
    """Say `text` and end at once, with the exit status of an interrupt.

    Without the interpreter's clean-up: threads that still compile or compute would come back to a Python that is gone,
    and abort. Nothing is lost, as results are complete on disk or not there, whenever a process ends.
    """
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    os._exit(130)


def space_of(text: str, overrides: list[str] | tuple[()]) -> Any:
    """The search space of a run's folder or of an experiment file."""
    from hanax.experiments._config import load_experiment
    from hanax.experiments._gather import read_space
    from hanax.supernet import load_images

    if Path(text).is_dir():
        return read_space(Path(text))
    experiment = load_experiment(text, overrides)
    return experiment.build_space(load_images(experiment.data.path, image_size=experiment.data.image_size))


def device_config(device: str, on: str | None, threads: int = 1, batch: int = 1) -> DeviceConfig:
    """The device called `device`, at the place `on`, if that is one: its own error is shorter than a section's."""
    from hanax.devices import find_place
    from hanax.experiments._config import DeviceConfig

    if on is not None:
        find_place(on)
    return DeviceConfig(name=device, place=on, threads=threads, batch=batch)
