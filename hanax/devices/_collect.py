"""Collecting a latency table: from architectures to rows on disk, in batches, without measuring anything twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hanax._files import locked
from hanax.devices._ledger import Ledger
from hanax.devices._load_guard import LoadWatch
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
    purpose: Purpose | Mapping[Arch, Purpose] = "table",
    passes: int = 1,
    method: Method = DEFAULT_METHOD,
    batch_size: int = 12,
    start_agent: Callable[[DeviceSpec], Agent] = LocalAgent,
    on_progress: Progress | None = None,
    watch: LoadWatch | None = None,
) -> LatencyTable:
    """The table at `table_path` with rows for all of `archs`, measuring those that it lacks.

    The table is replaced after each batch, so that a crash or an error costs one batch at most; call again to go on.
    An architecture counts as measured when the table has it for the same purpose, in so many passes; the table must be
    of this space and this device. Architectures that are the same network (equal canonical codes) are measured once a
    pass.

    Args:
        build_model: The model file of an architecture in ``device.model_format``, for ``device.batch`` images.
        ledger: Gets a record for every measurement, before it begins.
        purpose: What all are measured for, or what each of them is, if those for different ones are to take turns.
        passes: How often every architecture is measured. A pass begins when the one before is complete, with a new
            agent, in a newly drawn order; `LatencyTable.reliability` says how well the first two agree. One by default,
            as each measurement costs the device's time and is counted.
        batch_size: Models in the device's memory at once, measured in turn. Larger batches compare more models under
            the same conditions and lose more in a crash.
        start_agent: Makes the agent; by default a process on this machine.
        on_progress: Called with the number of measurements done and of all: architectures times passes.
        watch: Waits for a quiet machine before each batch, and judges how quiet it was.

    Raises:
        AgentError: The device failed; the table keeps the batches before.
        BusyMachineError: The machine is busy and `watch` refuses; the table keeps the batches before.
        SpaceMismatchError, DeviceMismatchError: The table at `table_path` is another's.
        TableError: What is at `table_path` is not a latency table.
        InUseError: Another process measures into the same table.
        OSError: The table or the ledger cannot be written; found out before anything is measured.
        ValueError: An arch is not of `space`, `batch_size` or `passes` is below 1, or `device` has no clock.
    """
    if device.kind != "measured":
        raise ValueError(f"{device.name} is a {device.kind} device; it has no latencies to measure")
    if batch_size < 1 or passes < 1:
        raise ValueError(f"batch_size and passes must be at least 1; got batch_size={batch_size}, passes={passes}")
    wanted = list(dict.fromkeys(space.decode(space.canonical(space.encode(archs)))))
    purposes = dict.fromkeys(wanted, purpose) if isinstance(purpose, str) else _canonical(space, purpose)
    path = Path(table_path)
    with locked(path):
        table = LatencyTable.read(path).for_space(space) if path.exists() else None
        for number in range(1, passes + 1):
            with start_agent(device) as agent:
                identity = identify(agent)
                table = LatencyTable.empty(space, identity) if table is None else table.for_device(identity)
                table.write(path)
                measured = {kind: set(table.archs(kind, number)) for kind in set(purposes.values())}
                missing = [arch for arch in _order(wanted, method.seed, number) if arch not in measured[purposes[arch]]]
                n_before = number * len(wanted) - len(missing)
                if on_progress is not None:
                    on_progress(n_before, passes * len(wanted))
                for start in range(0, len(missing), batch_size):
                    batch = missing[start : start + batch_size]
                    models = {str(arch): build_model(arch) for arch in batch}
                    shapes = {str(arch): (device.batch, *space.input_shape(arch)) for arch in batch}
                    for arch in batch:
                        ledger.record(device.name, arch, purposes[arch])
                    progress = _shifted(on_progress, n_before + start, passes * len(wanted))
                    in_turn = dataclasses.replace(method, seed=method.seed + number - 1)
                    measurements = measure(agent, models, shapes, in_turn, progress, watch)
                    rows = [
                        {"arch": name, **asdict(measurement), "purpose": purposes[Arch.parse(name)]}
                        for name, measurement in measurements.items()
                    ]
                    table = table.append(rows) if number == 1 else table.add_pass(rows)
                    table.write(path)
    assert table is not None, "there is at least one pass"
    return table


def _canonical(space: SearchSpace, purpose: Mapping[Arch, Purpose]) -> dict[Arch, Purpose]:
    """`purpose` by the canonical form of each architecture."""
    archs = space.decode(space.canonical(space.encode(list(purpose))))
    return dict(zip(archs, purpose.values(), strict=True))


def _order(archs: list[Arch], seed: int, number: int) -> list[Arch]:
    """As they were given in the first pass; drawn in each later one, by pass, so that a resumed pass goes on in it."""
    if number == 1:
        return archs
    return [archs[index] for index in np.random.default_rng([seed, number]).permutation(len(archs))]


def _shifted(on_progress: Progress | None, n_before: int, n_all: int) -> Progress | None:
    """Progress within a batch as progress of the whole."""
    return None if on_progress is None else lambda done, _: on_progress(n_before + done, n_all)
