"""The part of the command line that makes a predictor for a new device."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanax.experiments._cli_collect import Busy, WaitForIdle, WhenBusy, load_watch
from hanax.experiments._cli_parts import DeviceName, On, Set, space_of, stop

if TYPE_CHECKING:
    from hanax.experiments._adaptation_plan import Plan
    from hanax.experiments._progress import Terminal


def adapt(
    device: DeviceName,
    out: Annotated[Path, typer.Option(help="The folder for predictor, card, plan and table; given again, it goes on.")],
    samples: Annotated[int, typer.Option(min=5, help="Networks to measure and to learn from.")] = 10,
    held_out: Annotated[
        int, typer.Option(min=0, help="Random other networks to measure as well, to judge the predictor by.")
    ] = 30,
    pool: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="TABLE", help="A table of another device, to learn from; may be repeated. By default the atlas."
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="Whose networks, if not the atlas's: a run's folder, an experiment file, or the name of one with "
            "Hanax. Needs --pool."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="A table of the device, to learn from in place of measuring; DEVICE names it.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Write a zip that measures on a machine without network, and stop.")
    ] = None,
    on: On = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides among which networks is chosen.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images per inference.")] = 1,
    target_relative_ci: Annotated[float, typer.Option(help="As for `hanax collect latency`.")] = 0.02,
    busy: Busy = WhenBusy.WAIT,
    wait_for_idle: WaitForIdle = 60.0,
    keep_same_name: Annotated[
        bool,
        typer.Option(
            "--keep-same-name",
            help="Learn from a device of the same name as well, if it is another by its fingerprint: another machine, "
            "or another version.",
        ),
    ] = False,
    set_: Set = None,
) -> None:
    """Make a predictor of what networks cost on a device, from ten measurements and what is known of other devices.

    Which networks to measure is decided without measuring. A device that is among the others itself is left out of
    them. The card says how good the predictor is, and which networks to measure next: ask for more --samples.
    """
    from hanax.devices import Method, cost_model_names
    from hanax.experiments import _adapt
    from hanax.experiments._progress import Terminal

    if table is not None and (bundle is not None or on is not None):
        raise typer.BadParameter("--table has the measurements already: --bundle and --on are for making them")
    if bundle is not None and on is not None:
        raise typer.BadParameter("--bundle is for a machine that cannot be reached; --on reaches one")
    if table is None and device in cost_model_names():
        raise typer.BadParameter(f"{device} is computed for any network, so there is nothing to predict")
    if space is None and set_:
        raise typer.BadParameter("--set changes a setting of the file that --space names; no --space is given")
    terminal = Terminal()
    shared: dict[str, Any] = {
        "out": out,
        "samples": samples,
        "space": None if space is None else space_of(space, set_ or ()),
        "pool": pool or (),
        "keep_same_name": keep_same_name,
        "seed": seed,
        "reporter": terminal,
    }
    measuring: dict[str, Any] = {
        "held_out": held_out,
        "threads": threads,
        "batch": batch,
        "method": Method(target_relative_ci=target_relative_ci),
    }
    try:
        with terminal.live():
            if table is not None:
                made = _adapt.adapt_from_table(device, table, **shared)
            elif bundle is not None:
                plan = _adapt.bundle_for_adapting(device, bundle, **shared, **measuring)
            else:
                watch = load_watch(busy, wait_for_idle, terminal)
                made = _adapt.adapt(device, place=on, watch=watch, **shared, **measuring)
    except KeyboardInterrupt:
        stop(f"Stopped. {out} keeps what was measured; give the same command again to go on.")
    if bundle is not None:
        options = [] if space is None else ["--space", space]
        options += [part for path in pool or () for part in ("--pool", str(path))]
        options += [part for item in set_ or () for part in ("--set", item)] + ["--keep-same-name"] * keep_same_name
        _say_how_to_go_on(terminal, device, bundle, out, plan, [*options, "--seed", str(seed)])
        return
    for line in made.card.lines():
        terminal.say(line)
    if table is None and made.card.proposals:
        terminal.say(f"The same command with --samples {samples + len(made.card.proposals)} measures them.")
    terminal.say(f"{out / _adapt.PREDICTOR_FILE} is the predictor, {out / _adapt.CARD_FILE} all of the above.")


def _say_how_to_go_on(terminal: Terminal, device: str, bundle: Path, out: Path, plan: Plan, options: list[str]) -> None:
    """What to do with a bundle, and the command that takes what comes back, with `options` as they were."""
    from hanax.experiments._adaptation_bench import TABLE_FILE

    table = out / TABLE_FILE
    again = ["hanax", "adapt", device, "--out", str(out), "--table", str(table), *options]
    come_back = ["hanax", "import-results", "results.jsonl", "--bundle", str(bundle), "--out", str(table)]
    terminal.say(
        f"{bundle}: {len(plan.samples)} networks to learn from and {len(plan.held_out)} to judge by, of which those "
        f"that are not in {table} yet are to be measured. Unpack it on the machine to measure and run "
        f"`python3 run.py` (README.txt says more); then\n"
        f"    {shlex.join(come_back)}\n"
        f"    {shlex.join(again)}"
    )
