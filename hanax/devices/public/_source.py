"""What a source of public data is, and what reading it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hanax.devices.public._folder import PublicFolder
from hanax.devices.public._public_table import PublicTable


@dataclass(frozen=True)
class Imported:
    """What a folder of public files holds.

    Attributes:
        facts: Numbers that can be compared with what was published.
        defects: What a user of the data should know before trusting it, in sentences.
    """

    tables: tuple[PublicTable, ...]
    facts: Mapping[str, int | float | str]
    defects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A public data set that can be imported.

    Attributes:
        title: What it is, for a list.
        files: What the folder has to hold, as published.
        licence: Of the files, as published.
    """

    name: str
    title: str
    files: str
    url: str
    licence: str
    citation: str
    read: Callable[[PublicFolder], Imported]
