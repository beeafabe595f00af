"""``hanax storage``: the storages that workers of a study share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hanax.experiments._cli_parts import stop

storage = typer.Typer(help="Where workers keep a study that they share.", no_args_is_help=True)

StorageText = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="URL",
        envvar="HANAX_STORAGE",
        help="postgresql://USER@HOST/DATABASE (the password may come from PGPASSWORD or ~/.pgpass) or sqlite:///FILE.",
    ),
]


@storage.callback()
def _storage() -> None:
    """Keep `serve` a command of its own, though there is no other."""


@storage.command()
def serve(
    storage: StorageText,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 13000,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 for all. Requests are not authenticated.")
    ] = "127.0.0.1",
) -> None:
    """Run a gRPC proxy in front of a database, so that hundreds of workers share a few connections to it."""
    from hanax.searchers import serve_storage

    try:
        serve_storage(storage, host, port, on_message=lambda message: print(message, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        stop("Stopped. The database keeps everything; workers wait for the proxy to come back.")
