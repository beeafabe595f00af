"""The part of the command line that deploys a subnet in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_DEVICES = ("onnxruntime-int8",)


def quantize(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the model files, certificates and figures.")],
    arch: Annotated[
        str,
        typer.Option(
            help="The architecture as tables write it, or `largest` or `smallest`; with its policy, if the codes are "
            "those of the quantized space."
        ),
    ] = "largest",
    weights: Annotated[str, typer.Option(metavar="FORMAT", help="Of kernels, if the codes have no policy.")] = "int8",
    activations: Annotated[
        str, typer.Option(metavar="FORMAT", help="Of the activations, if the codes have no policy.")
    ] = "int8",
    calibration: Annotated[
        Literal["minmax", "percentile", "mse"], typer.Option(help="How ranges of activations are found.")
    ] = "mse",
    for_: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="DEVICE", help="An int8 device; onnxruntime-int8 by default."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each runtime.")] = 1,
) -> None:
    """Write a subnet of a run as integer models, certify them on their runtimes, and time them beside float32.

    All accuracies are on the test images. Look at them when all choices are made.
    """
    import dataclasses

    from hanax.devices import LoadGuard, LoadWatch, find_device
    from hanax.experiments._deploy import deploy_quantized, float_twin, quantized_subnet
    from hanax.experiments._gather import read_experiment
    from hanax.experiments._pipeline import open_pipeline
    from hanax.experiments._progress import Terminal

    devices = [dataclasses.replace(find_device(name), threads=threads) for name in for_ or DEFAULT_DEVICES]
    for device in devices:
        float_twin(device)  # refuses before anything is computed
    terminal = Terminal()
    pipeline = open_pipeline(read_experiment(path), path, terminal)
    net, subnet = quantized_subnet(pipeline, arch, weights=weights, activations=activations, calibration=calibration)
    dataset = pipeline.dataset
    rows = deploy_quantized(
        net,
        subnet,
        devices,
        dataset.x_test,
        dataset.y_test,
        out,
        watch=LoadWatch(LoadGuard(), terminal.say),
    )
    terminal.say(
        f"{out}: {net.arch}, kernels of {net.size_bytes / 1024:.0f} KiB where float32 has "
        f"{4 * subnet.graph.params / 1024:.0f}; on {len(dataset.y_test)} test images float32 "
        f"{rows[0].float_accuracy:.2%}, fake-quantized {rows[0].reference_accuracy:.2%}"
    )
    for row in rows:
        terminal.say(row.words)
        kept = "is met" if row.is_met else "IS NOT MET"
        terminal.say(f"    parity certificate {kept}: parity-{row.device}.json")
