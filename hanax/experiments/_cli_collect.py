"""The part of the command line that makes tables of what networks and blocks cost on a device."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hanax.experiments._cli_costs import collect_counted, collect_modelled
from hanax.experiments._cli_parts import DeviceOption, On, OutOption, Set, SpaceOption, device_config, space_of, stop

if TYPE_CHECKING:
    from hanax.devices import LoadWatch
    from hanax.experiments._progress import Terminal


class WhenBusy(enum.StrEnum):
    """What to do where other processes keep the machine busy."""

    WAIT = "wait"
    WARN = "warn"
    REFUSE = "refuse"


Busy = Annotated[
    WhenBusy,
    typer.Option(
        help="Where others keep the machine busy: wait for quiet, then measure all the same; warn and measure at once; "
        "or wait, then refuse."
    ),
]
WaitForIdle = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Longest wait for a quiet machine, altogether.")
]


def load_watch(busy: WhenBusy, wait_for_idle: float, terminal: Terminal) -> LoadWatch:
    """A guard on duty that tells `terminal` what it finds."""
    from hanax.devices import LoadGuard, LoadWatch

    return LoadWatch(LoadGuard(busy.value, wait_s=wait_for_idle), terminal.say)


def collect_latency(
    space: SpaceOption,
    device: DeviceOption,
    out: OutOption,
    archs: Annotated[int, typer.Option(min=2, help="Networks to have in the table, the ends among them.")] = 60,
    on: On = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which networks.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images per inference.")] = 1,
    target_relative_ci: Annotated[
        float, typer.Option(help="A latency is known well enough at this half-width of its 95 % interval.")
    ] = 0.02,
    passes: Annotated[
        int, typer.Option(min=1, help="How often every network is measured; two show how far the table can be trusted.")
    ] = 2,
    busy: Busy = WhenBusy.WAIT,
    wait_for_idle: WaitForIdle = 60.0,
    cost: Annotated[
        str | None, typer.Option(help="Which cost of a modelled device, e.g. energy_mj; by default its first.")
    ] = None,
    model_file: Annotated[
        Path | None, typer.Option(help="What a modelled device reads: BitFusion's public file.")
    ] = None,
    set_: Set = None,
) -> None:
    """Make a table of what networks of a space cost on a device; resumable, and nothing is measured twice in a pass.

    On a measured device a second pass measures the same networks anew, later and in another order. The rank correlation
    of the two is the table's reliability. Counted and modelled devices give costs in units of their own.
    """
    from hanax.devices import Ledger, Method, cost_model_names, start_agent_at
    from hanax.devices import collect_latency as collect_table
    from hanax.experiments._export import latency_model_builder
    from hanax.experiments._fitting import draw_archs
    from hanax.experiments._progress import Terminal

    if device in cost_model_names():
        if (threads, batch) != (1, 1):
            raise typer.BadParameter(f"{device} is computed for one image, without threads")
        return collect_modelled(space_of(space, set_ or ()), device, out, archs, seed, cost, model_file)
    if cost is not None or model_file is not None:
        raise typer.BadParameter(f"--cost and --model-file are for modelled devices; {device} is none")
    config = device_config(device, on, threads, batch)
    spec = config.spec()
    search_space = space_of(space, set_ or ())
    if spec.kind == "counted":
        return collect_counted(search_space, spec, out, archs, seed)
    ledger = Ledger(out.with_suffix(".ledger.jsonl"))
    terminal = Terminal()
    try:
        with terminal.live():
            table = collect_table(
                search_space,
                draw_archs(search_space, archs, [seed, 11]),
                spec,
                latency_model_builder(search_space, spec.model_format, spec.batch, seed),
                out,
                ledger,
                passes=passes,
                method=Method(target_relative_ci=target_relative_ci),
                start_agent=start_agent_at(config.find_place()),
                on_progress=terminal.bar("networks measured"),
                watch=load_watch(busy, wait_for_idle, terminal),
            )
    except KeyboardInterrupt:
        stop(f"Stopped. {out} keeps what was measured; give the same command again to go on.")
    for warning in table.lint(search_space):
        terminal.say(f"suspicious: {warning}")
    frame = table.frame
    low, high = frame["latency_ms"].min(), frame["latency_ms"].max()
    counted = sum(ledger.counts().get(spec.name, {}).values())
    terminal.say(
        f"{out}: {len(frame)} networks on {spec.name}, {low:.3f} to {high:.3f} ms, {int(frame['converged'].sum())} of "
        f"them within the interval asked for; {counted} measurements were asked of the device in all"
    )
    reliability = table.reliability()
    terminal.say("measured once, so its reliability is unknown" if reliability is None else str(reliability))


def collect_blocks(
    space: SpaceOption,
    device: DeviceOption,
    out: OutOption,
    against: Annotated[
        Path | None,
        typer.Option(help="A table of `hanax collect latency`: say how far sums of blocks are from its networks."),
    ] = None,
    on: On = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and the order.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images per inference.")] = 1,
    target_relative_ci: Annotated[float, typer.Option(help="As for `hanax collect latency`.")] = 0.02,
    busy: Busy = WhenBusy.WAIT,
    wait_for_idle: WaitForIdle = 60.0,
    set_: Set = None,
) -> None:
    """Measure each block of a space by itself: a look-up table, whose sums are latencies of networks; resumable."""
    from hanax.devices import LatencyTable, Ledger, Method, block_costs, compare_with_nets, overhead_ms, start_agent_at
    from hanax.devices import collect_blocks as collect_table
    from hanax.experiments._export import graph_model_builder
    from hanax.experiments._progress import Terminal

    config = device_config(device, on, threads, batch)
    spec = config.spec()
    search_space = space_of(space, set_ or ())
    whole = None if against is None else LatencyTable.read(against).for_space(search_space)
    terminal = Terminal()
    try:
        with terminal.live():
            table = collect_table(
                search_space,
                spec,
                graph_model_builder(spec.model_format, spec.batch, seed),
                out,
                Ledger(out.with_suffix(".ledger.jsonl")),
                method=Method(target_relative_ci=target_relative_ci, seed=seed),
                start_agent=start_agent_at(config.find_place()),
                on_progress=terminal.bar("small networks measured"),
                watch=load_watch(busy, wait_for_idle, terminal),
            )
    except KeyboardInterrupt:
        stop(f"Stopped. {out} keeps what was measured; give the same command again to go on.")
    costs = block_costs(table, search_space)
    uncertain = sum(cost.block_ms <= cost.half_width_ms for cost in costs.values())
    terminal.say(
        f"{out}: {len(costs)} blocks of {search_space.name} on {spec.name} from {len(table.frame)} small networks; "
        f"a run costs {overhead_ms(table):.4f} ms before any work, "
        f"a block {min(cost.block_ms for cost in costs.values()):.4f} to "
        f"{max(cost.block_ms for cost in costs.values()):.4f} ms"
        + (f"; {uncertain} blocks are not told from nothing" if uncertain else "")
    )
    if whole is not None:
        terminal.say(str(compare_with_nets(table, search_space, whole)))


def collect_end_to_end(
    space: SpaceOption,
    device: DeviceOption,
    out: OutOption,
    archs: Annotated[int, typer.Option(min=2, help="Networks to have in the table, the ends among them.")] = 12,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Height and width of the byte images; by default each network's own, unresized."),
    ] = None,
    on: On = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which networks.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images per inference.")] = 1,
    target_relative_ci: Annotated[float, typer.Option(help="As for `hanax collect latency`, of the total.")] = 0.02,
    busy: Busy = WhenBusy.WAIT,
    wait_for_idle: WaitForIdle = 60.0,
    set_: Set = None,
) -> None:
    """Measure from byte image to class: preprocessing, input copy, computing and post-processing, each by itself."""
    from hanax.devices import STAGES, Ledger, Method, start_agent_at
    from hanax.devices import collect_end_to_end as collect_table
    from hanax.experiments._export import latency_model_builder
    from hanax.experiments._fitting import draw_archs
    from hanax.experiments._progress import Terminal

    config = device_config(device, on, threads, batch)
    spec = config.spec()
    search_space = space_of(space, set_ or ())
    terminal = Terminal()
    try:
        with terminal.live():
            table = collect_table(
                search_space,
                draw_archs(search_space, archs, [seed, 11]),
                spec,
                latency_model_builder(search_space, spec.model_format, spec.batch, seed),
                out,
                Ledger(out.with_suffix(".ledger.jsonl")),
                image_size=image_size,
                method=Method(target_relative_ci=target_relative_ci),
                start_agent=start_agent_at(config.find_place()),
                on_progress=terminal.bar("networks measured"),
                watch=load_watch(busy, wait_for_idle, terminal),
            )
    except KeyboardInterrupt:
        stop(f"Stopped. {out} keeps what was measured; give the same command again to go on.")
    shares = {stage: float((table.frame[f"{stage}_ms"] / table.frame["total_ms"]).median()) for stage in STAGES}
    terminal.say(
        f"{out}: {len(table.frame)} networks on {spec.name}, {table.frame['total_ms'].min():.3f} to "
        f"{table.frame['total_ms'].max():.3f} ms from byte image to class; typically "
        + ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
    )
