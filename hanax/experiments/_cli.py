"""The command line. Heavy modules are imported inside the commands, so that ``hanax --help`` answers at once."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hanax.experiments._cli_adapt import adapt
from hanax.experiments._cli_bundles import bundle, import_results
from hanax.experiments._cli_collect import collect_blocks, collect_end_to_end, collect_latency
from hanax.experiments._cli_devices import devices
from hanax.experiments._cli_parts import Set, stop
from hanax.experiments._cli_quantize import quantize
from hanax.experiments._cli_quantized import (
    Activations,
    Granularity,
    Weights,
    collect_quantized_accuracy,
    formats_of,
    quantize_supernet,
)
from hanax.experiments._cli_reproduce import reproduce
from hanax.experiments._cli_search import search
from hanax.experiments._cli_storage import storage
from hanax.experiments._cli_tables import data, tables

app = typer.Typer(
    name="hanax",
    help="Hardware-aware neural architecture search: train one supernet on your images, measure your devices, and get "
    "a Pareto front of networks for each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
collect = typer.Typer(
    help="Collect tables: latencies of networks on a device, accuracies of subnets.", no_args_is_help=True
)
app.add_typer(collect, name="collect")
app.add_typer(devices, name="devices")
app.add_typer(data, name="data")
app.add_typer(storage, name="storage")
app.add_typer(tables, name="table")
collect.command("latency")(collect_latency)
collect.command("blocks")(collect_blocks)
collect.command("end-to-end")(collect_end_to_end)
app.command("adapt")(adapt)
app.command("bundle")(bundle)
app.command("import-results")(import_results)
app.command("quantize")(quantize)
app.command("quantize-supernet")(quantize_supernet)
app.command("reproduce")(reproduce)
app.command("search")(search)

Run = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]


@app.command()
def run(
    file: Annotated[str, typer.Argument(help="An experiment file, or the name of one that comes with Hanax.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the name of the file.")
    ] = None,
    set_: Set = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it again.")
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Train the supernet on several processes that share the run's folder: where process 0 listens. "
            "Give every process the same command but for --process.",
        ),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=2, help="How many processes train together.")] = None,
    process: Annotated[
        int | None, typer.Option(min=0, help="Which one this is; 0 goes on with the stages after the training.")
    ] = None,
) -> None:
    """Carry out an experiment file; given again after an interruption, it goes on where it was."""
    from hanax.experiments._config import load_experiment
    from hanax.experiments._progress import Terminal

    experiment = load_experiment(file, set_ or ())
    place = _place(coordinator, processes, process)
    if place is not None:
        _check_place(place, experiment.supernet.n_shards)
    _restart_with_huge_pages()
    folder = out or Path("runs") / experiment.name
    terminal = Terminal()
    try:
        with _connected(place, terminal) as parallel, terminal.live():
            from hanax.experiments._run import run_experiment

            run_experiment(experiment, folder, from_stage=from_, reporter=terminal, parallel=parallel)
    except KeyboardInterrupt:
        again = ["hanax", "run", file, "--out", str(folder)]
        again += [part for item in set_ or () for part in ("--set", item)]
        if place is not None:
            again += ["--coordinator", place[0], "--processes", str(place[1]), "--process", str(place[2])]
        stop(f"Stopped. What is finished is kept; to go on:\n    {shlex.join(again)}")
    if place is None or place[2] == 0:
        _print_winners(folder)


Place = tuple[str, int, int]
"""The coordinator's address, the number of processes, and which one this is."""


def _place(coordinator: str | None, processes: int | None, process: int | None) -> Place | None:
    """The place of this process among several; None if it is alone.

    Raises:
        ValueError: Only some of the three are given, or they do not fit together.
    """
    if coordinator is None and processes is None and process is None:
        return None
    if coordinator is None or processes is None or process is None:
        given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise ValueError(f"--coordinator, --processes and --process belong together; missing: {missing}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator {coordinator}: expected HOST:PORT, such as 192.168.0.1:7000")
    if process >= processes:
        raise ValueError(
            f"--process {process}: {processes} processes are numbered 0 to {processes - 1}; give each another number"
        )
    return coordinator, processes, process


def _check_place(place: Place, n_shards: int) -> None:
    """Refuse shards that the processes cannot deal out, before any of them waits for the others."""
    from hanax.supernet import Parallel

    _, processes, process = place
    try:
        Parallel(processes, process).shards_here(n_shards)
    except ValueError as error:
        raise ValueError(f"{error}. Set it in the file or with --set supernet.n_shards={processes}") from None


@contextmanager
def _connected(place: Place | None, terminal: Any) -> Iterator[Any]:
    """The processes that train together, connected; None for one alone.

    An error ends this process at once: with the interpreter's clean-up it would first wait for the others, which wait
    for it.
    """
    if place is None:
        yield None
        return
    from hanax.supernet import Parallel

    coordinator, processes, process = place
    terminal.say(f"Process {process} of {processes}: waiting for the others at {coordinator}")
    # JAX waits outside Python, where no KeyboardInterrupt is raised: Ctrl-C must end the process itself.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        parallel = Parallel.connect(coordinator, processes, process)
        signal.signal(signal.SIGINT, handler)
        yield parallel
    except Exception as error:
        if _is_ours(error):
            typer.echo(f"error: {error}", err=True)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(2 if _is_ours(error) else 1)


def _restart_with_huge_pages() -> None:
    """Start this very command again with huge pages for malloc, which only a new process can have (a fifth faster)."""
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _print_winners(folder: Path) -> None:
    """The fronts of a finished run as tables."""
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from hanax.experiments._gather import read_certificate

    console = Console(highlight=False)
    frame = pd.read_parquet(folder / "pareto.parquet")
    for device, rows in frame.groupby("device", sort=False):
        table = Table(title=f"Front on {device}", title_justify="left")
        is_integer = "policy" in rows.columns
        names = ["net", "predicted ms", "measured ms", "off by", "test accuracy", "M MACs", "k params"]
        for name in [*names, *(["float32 ms"] if is_integer else [])]:
            table.add_column(name, justify="left" if name == "net" else "right")
        for row in rows.to_dict("records"):
            name = Path(row["model_path"]).parent.name + (" (reference)" if row["reference"] else "")
            table.add_row(
                name,
                f"{row['predicted_latency_ms']:.3f}",
                f"{row['measured_latency_ms']:.3f}",
                f"{row['latency_error']:+.1%}" + (" missed" if row["missed"] else ""),
                f"{row['test_accuracy']:.1%}",
                f"{row['macs'] / 1e6:.2f}",
                f"{row['params'] / 1e3:.0f}",
                *([f"{row['float_latency_ms']:.3f}"] if is_integer else []),
            )
        console.print(table)
        if is_integer and not rows["parity"].all():
            nets = ", ".join(Path(path).parent.name for path in rows.loc[~rows["parity"].astype(bool), "model_path"])
            console.print(f"PARITY FAILED: the model files of {nets} do not do what was searched; see the "
                          "report", style="bold red")  # fmt: skip
        console.print(read_certificate(folder, str(device)))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
def status(path: Run) -> None:
    """Say which stages of a run are done, and how long they took."""
    from rich.console import Console
    from rich.table import Table

    from hanax.experiments._folder import stage_states
    from hanax.experiments._progress import duration

    states = stage_states(path)
    table = Table("stage", "state", "time")
    for name, state, seconds in states:
        table.add_row(name, state, "" if state == "not started" else duration(seconds))
    console = Console(highlight=False)
    console.print(table)
    n_done = sum(state == "done" for _, state, _ in states)
    total = duration(sum(seconds for _, _, seconds in states))
    console.print(f"{n_done} of {len(states)} stages done, {total} of work so far", soft_wrap=True)


@app.command()
def report(path: Run) -> None:
    """Write the report of a finished run again."""
    from hanax.experiments._gather import write_outputs

    write_outputs(path)
    typer.echo(f"Report: {path / 'report.html'}")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Say what this installation uses: versions, processor, native kernels, caches and memory."""
    from hanax.experiments._doctor import describe, examine

    facts = examine()
    if as_json:
        typer.echo(json.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "state", show_lines=False)
    for name, state in describe(facts):
        table.add_row(name, state)
    Console(highlight=False).print(table)


@collect.command("accuracy")
def collect_accuracy(
    path: Run,
    out: Annotated[
        Path, typer.Option(help="The table, a Parquet file; its .ledger.jsonl beside it lets it be resumed.")
    ],
    archs: Annotated[int | None, typer.Option(min=2, help="Subnets to have in the table, the ends among them.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which subnets.")] = 0,
    race: Annotated[
        bool, typer.Option("--race", help="Stop subnets when one with no more MACs is more accurate beyond doubt.")
    ] = False,
    quant: Annotated[
        bool, typer.Option("--quant", help="Score pairs of a subnet and number formats, with calibrated ranges.")
    ] = False,
    weights: Weights = None,
    activations: Activations = None,
    granularity: Granularity = None,
    calibration: Annotated[
        Literal["minmax", "percentile", "mse"], typer.Option(help="With --quant: how ranges of tensors are found.")
    ] = "minmax",
    supernet: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --quant: weights that `hanax quantize-supernet` trained; by default those in the run, or else "
            "its float supernet (post-training quantization).",
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="With --quant: score the column `arch` of this Parquet or CSV."),
    ] = None,
) -> None:
    """Score subnets of a run's trained supernet, each with its own batch-norm calibration; resumable."""
    from hanax.experiments._fitting import draw_archs
    from hanax.experiments._progress import Terminal

    terminal = Terminal()
    if quant:
        if race:
            raise typer.BadParameter("--race compares networks of equal MACs, which number formats do not change")
        formats = formats_of(weights, activations, granularity)
        return collect_quantized_accuracy(path, out, archs, from_, seed, formats, calibration, supernet, terminal)
    if any(option is not None for option in (weights, activations, granularity, supernet, from_)):
        raise typer.BadParameter("--weights, --activations, --granularity, --supernet and --from go with --quant")
    if archs is None:
        raise typer.BadParameter("give --archs, the number of subnets to score")
    pipeline = _pipeline(path, terminal)
    try:
        with terminal.live():
            frame = pipeline.accuracy_table(draw_archs(pipeline.searched_space, archs, [seed, 10]), out, race=race)
    except KeyboardInterrupt:
        stop(f"Stopped. {out.with_suffix('.ledger.jsonl')} keeps what was scored; give the same command to go on.")
    n_stopped = int(frame["stopped"].sum())
    terminal.say(
        f"{out}: {len(frame)} subnets, accuracy {frame['accuracy'].min():.1%} to {frame['accuracy'].max():.1%} on "
        f"{pipeline.searched_evaluator.n_validation} validation images"
        + (f"; {n_stopped} were stopped before the last image" if race else "")
    )


Arch = Annotated[str, typer.Option(help="The architecture as tables write it (0.2.1...), or `largest` or `smallest`.")]


@app.command()
def extract(
    path: Run,
    arch: Arch,
    out: Annotated[Path, typer.Option(help="Folder for weights.npz and subnet.json.")],
) -> None:
    """Extract a subnet of a run's supernet as a network of its own, its batch norms calibrated.

    In a run that quantizes, an architecture with number formats becomes integers (quantized.npz and quantized.json);
    one without is extracted in float32.
    """
    from hanax.experiments._after import find_arch, has_formats
    from hanax.experiments._progress import Terminal
    from hanax.experiments._quantized_products import policy_text

    terminal = Terminal()
    pipeline = _pipeline(path, terminal)
    if has_formats(pipeline, arch):
        searched = pipeline.searched_space
        chosen = find_arch(searched, arch)
        net = pipeline.searched_evaluator.quantize(chosen)
        net.save(out)
        terminal.say(
            f"{out}: {chosen}, in integers ({policy_text(searched, chosen)}), {net.size_bytes / 1e3:.1f} kB of weights"
            f"; batch norms and ranges calibrated on {net.n_calibration} training images"
        )
        return
    chosen = find_arch(pipeline.space, arch)
    subnet = pipeline.evaluator.extract(chosen)
    subnet.save(out)
    terminal.say(
        f"{out}: {chosen}, {subnet.graph.macs / 1e6:.2f} M MACs, {subnet.graph.params / 1e3:.0f} k parameters; "
        f"batch norms calibrated on {subnet.n_calibration} training images"
    )


SubnetFolder = Annotated[Path, typer.Option(help="Folder for the subnet and its card; given again, it goes on.")]
Epochs = Annotated[
    float | None, typer.Option(help="Passes over the training images; as the run's supernet by default.")
]
SetRecipe = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a supernet setting of the run, e.g. learning_rate=0.001."
    ),
]
Test = Annotated[bool, typer.Option("--test", help="Score the result on the test images, and note that on its card.")]


@app.command()
def finetune(
    path: Run, arch: Arch, out: SubnetFolder, epochs: Epochs = None, set_: SetRecipe = None, test: Test = False
) -> None:
    """Train a subnet on its own from the weights it inherits from a run's supernet, by the run's recipe; resumable."""
    _train_alone("finetune", path, arch, out, epochs, set_ or [], test)


@app.command()
def train(
    path: Run, arch: Arch, out: SubnetFolder, epochs: Epochs = None, set_: SetRecipe = None, test: Test = False
) -> None:
    """Train a subnet on its own from fresh weights, by the recipe of a run's supernet; resumable."""
    _train_alone("train", path, arch, out, epochs, set_ or [], test)


def _train_alone(
    command: Literal["finetune", "train"],
    path: Path,
    arch: str,
    out: Path,
    epochs: float | None,
    overrides: list[str],
    test: bool,
) -> None:
    from hanax.experiments import _after
    from hanax.experiments._progress import Terminal

    _restart_with_huge_pages()
    terminal = Terminal()
    work = _after.finetune if command == "finetune" else _after.train
    try:
        with terminal.live():
            card = work(path, arch, out, epochs=epochs, overrides=overrides, test=test, reporter=terminal)
    except KeyboardInterrupt:
        again = ["hanax", command, str(path), "--arch", arch, "--out", str(out)]
        again += [] if epochs is None else ["--epochs", str(epochs)]
        again += [part for item in overrides for part in ("--set", item)] + ["--test"] * test
        stop(f"Stopped. {out} keeps what was trained; to go on:\n    {shlex.join(again)}")
    before, after = card.validation_before, card.validation_after
    terminal.say(
        f"{out}: {card.arch}, {card.macs / 1e6:.2f} M MACs, after {card.epochs:g} epochs {after.accuracy:.1%} on "
        f"{after.n_images} validation images"
        + (f" (inherited: {before.accuracy:.1%})" if before else "")
        + (f"; {card.test.accuracy:.1%} on {card.test.n_images} test images" if card.test else "")
    )


@app.command()
def export(
    subnet: Annotated[
        Path, typer.Argument(metavar="SUBNET", help="A folder that `extract`, `finetune`, `train` or a run wrote.")
    ],
    out: Annotated[Path, typer.Option(help="The model file.")],
    format_: Annotated[Literal["onnx", "stablehlo", "mlir", "tflite", "ncnn"], typer.Option("--format")] = "onnx",
    batch: Annotated[int, typer.Option(min=0, help="Images per inference; 0: any number (ONNX only).")] = 1,
) -> None:
    """Write an extracted subnet as a model file."""
    from hanax._files import write_atomically
    from hanax.experiments._export import export as export_subnet
    from hanax.supernet import Subnet

    model = export_subnet(Subnet.load(subnet), format_, batch or None)
    write_atomically(out, model)
    typer.echo(f"{out}: {len(model) / 1024:.0f} KiB")


def _pipeline(path: Path, terminal: Any) -> Any:
    """The pipeline of an existing run, to use its trained supernet."""
    from hanax.experiments._gather import read_experiment
    from hanax.experiments._pipeline import open_pipeline

    return open_pipeline(read_experiment(path), path, terminal)


def keep_ctrl_c() -> None:
    """Give Ctrl-C again where Python drops its KeyboardInterrupt: in callbacks of the garbage collector, as JAX's."""
    report = sys.unraisablehook

    def report_or_repeat(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        else:
            report(unraisable)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = report_or_repeat


def main() -> None:
    """Run the command line; errors that a person can mend end in one message and exit code 2, not in a traceback."""
    keep_ctrl_c()
    try:
        app()
    except (ValueError, FileNotFoundError, PermissionError, RuntimeError) as error:
        if _is_ours(error):
            typer.echo(f"error: {error}", err=True)
            sys.exit(2)
        raise


def _is_ours(error: BaseException) -> bool:
    """Whether an error is one that Hanax raises on purpose, or the system's word on a file."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("hanax.")
