"""The part of `hanax collect latency` that needs no clock: devices that count or compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hanax.experiments._cli_parts import stop

if TYPE_CHECKING:
    from hanax.devices import DeviceSpec
    from hanax.search_spaces import SearchSpace


def collect_counted(space: SearchSpace, spec: DeviceSpec, out: Path, n_archs: int, seed: int) -> None:
    """Count the instructions of networks on an emulated device."""
    from hanax.devices import Ledger, collect_instructions
    from hanax.experiments._export import latency_model_builder
    from hanax.experiments._fitting import draw_archs
    from hanax.experiments._progress import Terminal

    terminal = Terminal()
    try:
        with terminal.live():
            table = collect_instructions(
                space,
                draw_archs(space, n_archs, [seed, 11]),
                spec,
                latency_model_builder(space, spec.model_format, spec.batch, seed),
                out,
                Ledger(out.with_suffix(".ledger.jsonl")),
                on_progress=terminal.bar("networks counted"),
            )
    except KeyboardInterrupt:
        stop(f"Stopped. {out} keeps what was counted; give the same command again to go on.")
    costs = table.costs()
    terminal.say(f"{out}: {len(costs)} networks on {spec.name}, {costs.min():.0f} to {costs.max():.0f} instructions")


def collect_modelled(
    space: SearchSpace, device: str, out: Path, n_archs: int, seed: int, cost: str | None, model_file: Path | None
) -> None:
    """Compute a table of costs from the networks' graphs, and say where they are from."""
    from hanax.devices import (
        BitFusion,
        code_costs,
        collect_costs,
        cost_column,
        cost_device,
        find_cost_model,
        kernel_precisions,
    )
    from hanax.experiments._fitting import draw_archs

    model = find_cost_model(device, model_file)
    column = cost_column(model, cost)
    table = collect_costs(
        space,
        draw_archs(space, n_archs, [seed, 11]),
        cost_device(model),
        model.costs[column],
        lambda archs: code_costs(model, space, space.encode(archs))[:, column],
        out,
        batch_size=10_000,
    )
    costs = table.costs()
    typer.echo(f"{out}: {len(costs)} networks on {device}, {table.cost} from {costs.min():.4g} to {costs.max():.4g}")
    typer.echo(f"{device}: {model.description}. Source: {model.source}")
    if isinstance(model, BitFusion):
        found = [
            model.table.graph_cost(
                space.graph(arch), kernel_precisions(space, arch) if model.bits is None else model.bits
            )
            for arch in table.archs()
        ]
        shares = [(cost.exact_share, cost.interpolated_share, cost.extrapolated_share) for cost in found]
        exact, interpolated, extrapolated = (sum(of) / len(found) for of in zip(*shares, strict=True))
        typer.echo(
            f"Of a network's MACs, on average, the costs of {exact:.0%} were looked up, of {interpolated:.0%} "
            f"interpolated and of {extrapolated:.0%} extrapolated from the file's layers"
        )
