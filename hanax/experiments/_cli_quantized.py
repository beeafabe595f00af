"""The part of the command line that trains and scores a run's supernet in number formats."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hanax.experiments._cli_parts import stop

if TYPE_CHECKING:
    from hanax.experiments._progress import Terminal
    from hanax.experiments._run_quantized import Formats
    from hanax.supernet import Calibration

Weights = Annotated[
    str | None, typer.Option(metavar="FORMATS", help="Formats on offer for weights, e.g. int4,int6,int8 (the default).")
]
Activations = Annotated[
    str | None, typer.Option(metavar="FORMATS", help="Formats on offer for activations; int4,int6,int8 by default.")
]
Granularity = Annotated[
    Literal["block", "network"] | None,
    typer.Option(help="Whether every block has formats of its own (the default), or the network as a whole."),
]


def formats_of(
    weights: str | None, activations: str | None, granularity: Literal["block", "network"] | None
) -> Formats | None:
    """The formats that the options say, with defaults for those that are not given; None where none is given.

    Raises:
        ValueError: There is no such format.
    """
    from hanax.experiments._run_quantized import Formats

    if (weights, activations, granularity) == (None, None, None):
        return None
    usual = Formats()
    return Formats(
        usual.weights if weights is None else _names(weights),
        usual.activations if activations is None else _names(activations),
        granularity or usual.granularity,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def collect_quantized_accuracy(
    path: Path,
    out: Path,
    archs: int | None,
    from_: Path | None,
    seed: int,
    formats: Formats | None,
    calibration: Calibration,
    supernet: Path | None,
    terminal: Terminal,
) -> None:
    """Score pairs of subnet and policy of the run in folder `path`: the ``--quant`` of ``hanax collect accuracy``."""
    from hanax.experiments._accuracies import collect_accuracy
    from hanax.experiments._fitting import draw_archs
    from hanax.experiments._gather import read_experiment
    from hanax.experiments._pipeline import open_pipeline
    from hanax.experiments._run_quantized import quantized_evaluator, read_archs

    if (archs is None) == (from_ is None):
        raise typer.BadParameter("give either --archs, the number of pairs to draw, or --from, a table of them")
    pipeline = open_pipeline(read_experiment(path), path, terminal)
    evaluator = quantized_evaluator(
        pipeline, formats=formats, calibration=calibration, folder=supernet, reporter=terminal
    )
    chosen = (
        read_archs(from_, evaluator.space) if from_ is not None else draw_archs(evaluator.space, archs or 0, [seed, 10])
    )
    try:
        with terminal.live():
            frame = collect_accuracy(
                evaluator,
                chosen,
                out,
                data_fingerprint=pipeline.dataset.fingerprint,
                on_compiled=terminal.bar("compiling blocks"),
                on_progress=terminal.bar("pairs scored"),
            )
    except KeyboardInterrupt:
        stop(f"Stopped. {out.with_suffix('.ledger.jsonl')} keeps what was scored; give the same command to go on.")
    terminal.say(
        f"{out}: {len(frame)} pairs of subnet and number formats, accuracy {frame['accuracy'].min():.1%} to "
        f"{frame['accuracy'].max():.1%} on {evaluator.n_validation} validation images; ranges by {calibration}"
    )


def quantize_supernet(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")],
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training images; a fifth of the float supernet's by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; by default stages/quantized-supernet of the run.")
    ] = None,
    weights: Weights = None,
    activations: Activations = None,
    granularity: Granularity = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a supernet setting of the run; learning_rate is a tenth of the run's by default.",
        ),
    ] = None,
) -> None:
    """Train a run's supernet on in number formats (quantization-aware), for all subnets and formats at once; resumable.

    `hanax collect accuracy DIR --quant` scores what comes out.
    """
    from hanax.experiments._progress import Terminal
    from hanax.experiments._run_quantized import quantize_supernet as quantize

    terminal = Terminal()
    formats = formats_of(weights, activations, granularity)
    try:
        with terminal.live():
            card = quantize(path, out=out, formats=formats, epochs=epochs, overrides=set_ or (), reporter=terminal)
    except KeyboardInterrupt:
        again = ["hanax", "quantize-supernet", str(path)] + ([] if epochs is None else ["--epochs", str(epochs)])
        again += [] if out is None else ["--out", str(out)]
        for option, value in (("weights", weights), ("activations", activations), ("granularity", granularity)):
            again += [] if value is None else [f"--{option}", value]
        again += [part for item in set_ or () for part in ("--set", item)]
        stop(f"Stopped. What was trained is kept; to go on:\n    {shlex.join(again)}")
    terminal.say(
        f"{out or 'stages/quantized-supernet of ' + str(path)}: trained {card.epochs:g} epochs in number formats "
        f"({card.formats}) from the float weights {card.float_fingerprint}"
    )
