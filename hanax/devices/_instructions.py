"""Counting: how many instructions an inference executes on an emulated device, the same today and tomorrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hanax.devices._cost_table import CostTable, collect_costs
from hanax.devices._ledger import Ledger
from hanax.devices._local_agent import Agent, LocalAgent
from hanax.devices._requests import count_runs, identify, load_model, unload_model
from hanax.devices._specs import DeviceSpec
from hanax.devices._table import Purpose
from hanax.search_spaces import Arch, SearchSpace

COST = "instructions"
"""What the tables of counted devices hold."""

REPEATS = 3

MAX_SPREAD = 1e-3
"""Largest difference between repeated counts, as a share."""

ENOUGH = 10_000_000
"""Instructions from which a count is exact enough. Some hundred of each inference depend on what memory is free."""


def count_instructions(
    agent: Agent, models: Mapping[str, bytes], shapes: Mapping[str, Sequence[int]], seed: int = 0
) -> dict[str, int]:
    """Instructions of one inference of each model, warmed up: the median of three counts that agree.

    A count spans as many inferences as make `ENOUGH` instructions. Those of the Python around an inference, a few
    thousand, are in it.

    Args:
        models: Model files by name.
        shapes: Of their inputs, ``(batch, channels, height, width)``.
        seed: Of the random input. The numbers in it do not matter to a network without branches.

    Raises:
        AgentError: The device failed, cannot count, or counts of the same model differ by more than `MAX_SPREAD`.
    """
    counted = {}
    for name, model in models.items():
        sha256 = load_model(agent, name, model, shapes[name], seed)
        runs = -(-ENOUGH // count_runs(agent, name, sha256, 1))
        if runs > 1:
            count_runs(agent, name, sha256, runs)  # Python adapts its bytecode in the first runs
        counts = sorted(count_runs(agent, name, sha256, runs) / runs for _ in range(REPEATS))
        unload_model(agent, name, sha256)
        median = counts[len(counts) // 2]
        if counts[-1] - counts[0] > MAX_SPREAD * median:
            agent.fail("count", name, f"counts of the same inference differ by more than {MAX_SPREAD:.1%}: {counts}")
        counted[name] = round(median)
    return counted


def collect_instructions(
    space: SearchSpace,
    archs: Sequence[Arch],
    device: DeviceSpec,
    build_model: Callable[[Arch], bytes],
    table_path: str | Path,
    ledger: Ledger,
    *,
    purpose: Purpose = "table",
    batch_size: int = 12,
    start_agent: Callable[[DeviceSpec], Agent] = LocalAgent,
    on_progress: Callable[[int, int], None] | None = None,
) -> CostTable:
    """The table of instructions at `table_path` with rows for all of `archs`; see `collect_costs`.

    Args:
        build_model: The model file of an architecture in ``device.model_format``, for ``device.batch`` images.
        ledger: Gets a record for every count, before it begins.
        purpose: What the ledger notes; the table holds all counts alike.
        batch_size: Architectures between two times that the table is replaced.
        start_agent: Makes the agent; by default a process on this machine.

    Raises:
        AgentError: The device failed; the table keeps the batches before.
        ValueError: `device` is none that counts.
    """
    if device.kind != "counted":
        raise ValueError(f"{device.name} is a {device.kind} device; instructions are those of counted ones")
    with start_agent(device) as agent:

        def count(batch: list[Arch]) -> list[int]:
            models = {str(arch): build_model(arch) for arch in batch}
            shapes = {str(arch): (device.batch, *space.input_shape(arch)) for arch in batch}
            for arch in batch:
                ledger.record(device.name, arch, purpose)
            return list(count_instructions(agent, models, shapes).values())

        return collect_costs(
            space, archs, identify(agent), COST, count, table_path, batch_size=batch_size, on_progress=on_progress
        )
