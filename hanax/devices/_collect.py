"""Collecting a latency table: from architectures to rows on disk, in batches, without measuring anything twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from hanax.devices._ledger import Ledger
from hanax.devices._local_agent import Agent, LocalAgent
from hanax.devices._measure import DEFAULT_METHOD, Method, measure
from hanax.devices._requests import identify
from hanax.devices._specs import DeviceSpec
from hanax.devices._table import LatencyTable, Purpose
from hanax.search_spaces import Arch, SearchSpace

Progress = Callable[[int, int], None]


def collect_latency(
    space: SearchSpace,
    archs: Sequence[Arch],
    device: DeviceSpec,
    build_model: Callable[[Arch], bytes],
    table_path: str | Path,
    ledger: Ledger,
    *,
    purpose: Purpose = "table",
    method: Method = DEFAULT_METHOD,
    batch_size: int = 12,
    start_agent: Callable[[DeviceSpec], Agent] = LocalAgent,
    on_progress: Progress | None = None,
) -> LatencyTable:
    """The table at `table_path` with rows for all of `archs`, measuring those that it lacks.

    The table is replaced after each batch, so that a crash or an error costs one batch at most; call again to go on. An
    architecture counts as measured when the table has it for the same purpose; the table must be of this space and this
    device. Architectures that are the same network (equal canonical codes) are measured once.

    Args:
        build_model: The model file of an architecture in ``device.model_format``, for ``device.batch`` images.
        ledger: Gets a record for every measurement, before it begins.
        batch_size: Models in the device's memory at once, measured in turn. Larger batches compare more models under
            the same conditions and lose more in a crash.
        start_agent: Makes the agent; by default a process on this machine.
        on_progress: Called with the number of architectures done and of all.

    Raises:
        AgentError: The device failed; the table keeps the batches before.
        SpaceMismatchError, DeviceMismatchError: The table at `table_path` is another's.
        TableError: What is at `table_path` is not a latency table.
        OSError: The table or the ledger cannot be written; found out before anything is measured.
        ValueError: An arch is not of `space`, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    wanted = list(dict.fromkeys(space.decode(space.canonical(space.encode(archs)))))
    path = Path(table_path)
    known = LatencyTable.read(path).for_space(space) if path.exists() else None
    with start_agent(device) as agent:
        identity = identify(agent)
        table = LatencyTable.empty(space, identity) if known is None else known.for_device(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write(path)
        measured = set(table.archs(purpose))
        missing = [arch for arch in wanted if arch not in measured]
        if on_progress is not None:
            on_progress(len(wanted) - len(missing), len(wanted))
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            n_before = len(wanted) - len(missing) + start
            models = {str(arch): build_model(arch) for arch in batch}
            shapes = {str(arch): (device.batch, *space.input_shape(arch)) for arch in batch}
            for arch in batch:
                ledger.record(device.name, arch, purpose)
            measurements = measure(agent, models, shapes, method, _shifted(on_progress, n_before, len(wanted)))
            table = table.append(
                [
                    {"arch": name, **asdict(measurement), "purpose": purpose}
                    for name, measurement in measurements.items()
                ]
            )
            table.write(path)
    return table


def _shifted(on_progress: Progress | None, n_before: int, n_all: int) -> Progress | None:
    """Progress within a batch as progress of the whole."""
    return None if on_progress is None else lambda done, _: on_progress(n_before + done, n_all)
