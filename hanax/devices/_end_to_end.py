"""End-to-end latency: what lies between a byte image and its class besides computing.

Preprocessing (resize, normalise, channels first) and post-processing (fetch, softmax, best class) are done in numpy by
the agent, as a plain application would; the input copy is the runtime's own. The parts of a run are timed one after the
other, so a runtime that computes only when its result is fetched would show that under post-processing.

Shapes: `n` rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from hanax.devices._device_table import DeviceTable, Net, Progress, TableKind, collect_rows
from hanax.devices._ledger import Ledger
from hanax.devices._load_guard import LoadWatch
from hanax.devices._local_agent import Agent, LocalAgent
from hanax.devices._measure import DEFAULT_METHOD, Method, median_interval
from hanax.devices._requests import (
    STAGES,
    StagesRound,
    agent_stats,
    identify,
    load_model,
    run_stages,
    unload_model,
)
from hanax.devices._rounds import clean_rounds, counted_rounds, interleaved_rounds, is_done
from hanax.devices._specs import DeviceSpec
from hanax.search_spaces import Arch, SearchSpace

PARTS = (*STAGES, "total")

_TIMES = [f"{part}{end}_ms" for part in PARTS for end in ("", "_low", "_high")]

END_TO_END = TableKind(
    "end-to-end table",
    "hanax.end_to_end_table/1",
    {"arch": "str", "image_size": "str"}
    | dict.fromkeys(_TIMES, "float64")
    | dict.fromkeys(("n_runs", "n_rounds", "rejected_rounds"), "int64")
    | {"converged": "bool"}
    | dict.fromkeys(("device", "runtime", "runtime_version", "precision"), "str")
    | dict.fromkeys(("threads", "batch"), "int64")
    | dict.fromkeys(("load_average", "busy_share"), "float64")
    | {"measured_at": "str"},
    ("arch", "image_size"),
    ("total_ms", "total_low_ms", "total_high_ms"),
)
"""A row per architecture and size of the byte images (``image_size``, pixels a side, as text).

Each part's ``_ms`` is the median over rounds of its least time in a round; ``_low_ms`` and ``_high_ms`` are the ends of
the 95 % interval of that. ``total`` is of the fastest run as a whole, so the parts together are usually a little less.
``converged`` is about the total. A part can be 0: handing over a pointer takes less than a clock's tick.
"""


def measure_end_to_end(
    agent: Agent,
    models: Mapping[str, bytes],
    input_shapes: Mapping[str, Sequence[int]],
    image_sizes: Mapping[str, int],
    method: Method,
    on_progress: Progress | None = None,
    watch: LoadWatch | None = None,
) -> dict[str, dict[str, object]]:
    """The columns of an `END_TO_END` table besides its key, for each of `models`, measured as by `measure`.

    Args:
        image_sizes: Height and width of the byte images, for each of them.

    Raises:
        AgentError: The agent failed, or cannot tell the parts apart.
        BusyMachineError: The machine was busy and `watch` refuses.
    """
    identity = identify(agent)
    sha256 = {name: load_model(agent, name, model, input_shapes[name], method.seed) for name, model in models.items()}
    if watch is not None:
        watch.settle(agent)
    agent_stats(agent)  # the busy share below is since then
    rounds = interleaved_rounds(
        list(models),
        method,
        lambda name, inner_ms, inner_runs: run_stages(
            agent, name, sha256[name], inner_ms=inner_ms, inner_runs=inner_runs, image_size=image_sizes[name]
        ),
        on_progress,
    )
    stats = agent_stats(agent)
    for name, digest in sha256.items():
        unload_model(agent, name, digest)
    if watch is not None:
        watch.judge(agent, stats.busy_share)
    about = {
        "device": agent.spec.name,
        "runtime": identity.runtime,
        "runtime_version": identity.runtime_version,
        "precision": identity.precision,
        "threads": identity.threads,
        "batch": identity.batch,
        "load_average": math.nan if stats.load_average is None else stats.load_average,
        "busy_share": math.nan if stats.busy_share is None else stats.busy_share,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {name: _statistics(rounds[name], method) | about for name in models}


def collect_end_to_end(
    space: SearchSpace,
    archs: Sequence[Arch],
    device: DeviceSpec,
    build_model: Callable[[Arch], bytes],
    table_path: str | Path,
    ledger: Ledger,
    *,
    image_size: int | None = None,
    method: Method = DEFAULT_METHOD,
    batch_size: int = 12,
    start_agent: Callable[[DeviceSpec], Agent] = LocalAgent,
    on_progress: Progress | None = None,
    watch: LoadWatch | None = None,
) -> DeviceTable:
    """The end-to-end table at `table_path` with rows for all of `archs`, resumable like `collect_latency`.

    Args:
        image_size: Height and width of the byte images; None: what each network takes, so that nothing is resized.

    Raises:
        As of `hanax.devices.collect_latency`.
    """
    wanted = list(dict.fromkeys(space.decode(space.canonical(space.encode(archs)))))
    sizes = {arch: image_size or space.resolution(arch) for arch in wanted}

    def net(arch: Arch) -> Net:
        return Net((str(arch), str(sizes[arch])), space.input_shape(arch), lambda: build_model(arch))

    nets = [net(arch) for arch in wanted]
    size_of_net = {net.name: int(net.key[1]) for net in nets}

    def measure_batch(
        agent: Agent,
        models: Mapping[str, bytes],
        shapes: Mapping[str, Sequence[int]],
        progress: Progress | None,
    ) -> Mapping[str, Mapping[str, object]]:
        return measure_end_to_end(agent, models, shapes, size_of_net, method, progress, watch)

    return collect_rows(
        END_TO_END, space, nets, device, measure_batch, table_path, ledger, "end-to-end",
        batch_size=batch_size, start_agent=start_agent, on_progress=on_progress,
    )  # fmt: skip


def _statistics(rounds: Sequence[StagesRound], method: Method) -> dict[str, object]:
    counted = counted_rounds(rounds, method)
    # (n, parts): the least time of each part in each round.
    least = np.array([[*round_.runs_ms.min(axis=0), round_.best_ms] for round_ in counted])
    columns: dict[str, object] = {}
    for part, times in zip(PARTS, least.T, strict=True):
        columns[f"{part}_ms"] = float(np.median(times))
        columns[f"{part}_low_ms"], columns[f"{part}_high_ms"] = median_interval(times)
    return columns | {
        "n_runs": sum(len(round_.runs_ms) for round_ in counted),
        "n_rounds": len(counted),
        "rejected_rounds": len(rounds) - len(clean_rounds(rounds, method)),
        "converged": is_done(rounds, method),
    }
