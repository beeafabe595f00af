"""The measurement method: interleaved shuffled rounds until the median of the round minima is known well enough.

A clock on a shared machine shows the model plus whatever else ran. The fastest run of a short round has the least of
it; the median over rounds is not moved by a few bad ones; models measured in turn share the machine's mood; and no
pattern can favour one of them when the order is drawn. Medians with intervals that assume no distribution, repetition
until these are narrow, and saying so where they are not, are rules of Hoefler & Belli (2015,
doi:10.1145/2807591.2807644).

Stopping when an interval happens to be narrow makes narrow intervals too frequent. Looked at after every round, the
95 % interval covered the true median in as few as 92.6 % of 4000 simulated models (9 to 40 rounds, target 2 %,
lognormal noise of 4 %). So a model is judged only after certain numbers of clean rounds (`looks`), each `LOOK_FACTOR`
times the one before: the same simulation then gives 94.6 % at the worst of 21 kinds and sizes of noise, for the same
number of rounds where noise is small. What no rule mends: where noise is so large that few models converge, those that
do are the lucky ones, whose intervals cover less (87 % of the 23 % that converge at noise of 6 %).
`tests/devices/test_coverage.py` repeats this. It is about noise without memory; drift is what a second pass shows.

Shapes: `n` rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Float

from hanax.devices._load_guard import LoadWatch
from hanax.devices._local_agent import Agent
from hanax.devices._requests import (
    DeviceIdentity,
    Round,
    agent_stats,
    identify,
    load_model,
    run_round,
    unload_model,
)
from hanax.devices._rounds import (
    FEWEST_ROUNDS,
    clean_rounds,
    counted_rounds,
    interleaved_rounds,
    interval_of_median,
    is_done,
)


@dataclass(frozen=True, slots=True)
class Method:
    """How to measure, and when it is enough.

    Attributes:
        warmup_runs: Runs of each model before the first round, not counted.
        min_rounds: Clean rounds that every model gets at least.
        max_rounds: Rounds after which measuring stops, rejected ones included.
        target_relative_ci: Enough when the 95 % confidence interval of the latency is within plus or minus this share
            of it (half its width, over the latency).
        inner_ms: Least time of one round of one model.
        inner_runs: Least runs of one round of one model.
        max_stolen_share: A round is rejected when the agent's process was kept from computing for more than this share
            of it (wall time against CPU time). With several threads only a stop of all of them shows.
        seed: Of the order of models and of their random input.

    Raises:
        ValueError: A setting makes no sense; says which.
    """

    warmup_runs: int = 5
    min_rounds: int = 9
    max_rounds: int = 40
    target_relative_ci: float = 0.02
    inner_ms: float = 10.0
    inner_runs: int = 3
    max_stolen_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_rounds < FEWEST_ROUNDS:
            raise ValueError(f"min_rounds must be at least {FEWEST_ROUNDS}, for a 95 % interval; got {self.min_rounds}")
        if self.max_rounds < self.min_rounds:
            raise ValueError(f"max_rounds must be at least min_rounds={self.min_rounds}; got {self.max_rounds}")
        if self.warmup_runs < 0 or self.inner_runs < 1:
            raise ValueError(
                f"warmup_runs must be at least 0 and inner_runs at least 1; "
                f"got {self.warmup_runs} and {self.inner_runs}"
            )
        for name in ("target_relative_ci", "inner_ms", "max_stolen_share"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number; got {value}")


DEFAULT_METHOD = Method()


@dataclass(frozen=True, slots=True)
class Measurement:
    """The latency of one model on one device. Together with an architecture and a purpose: a row of a `LatencyTable`.

    Attributes:
        latency_ms: Median of the round minima. The number to use.
        latency_low_ms: Lower end of its 95 % confidence interval.
        latency_high_ms: Upper end.
        min_ms: Fastest run of all.
        p10_ms: Tenth percentile of all runs.
        median_ms: Median of all runs.
        iqr_ms: Third less first quartile of all runs.
        cpu_ms: Median over rounds of CPU time per run, all threads together.
        n_runs: Runs in the rounds that count.
        n_rounds: Rounds that count.
        rejected_rounds: Rounds with more stolen time than the method allows. When fewer than the method's `min_rounds`
            were clean, the least disturbed rounds count and `converged` is False.
        converged: The confidence interval is as narrow as the method asks.
        device: Name of the device.
        load_average: Of the machine when the model was done; NaN where the system does not say.
        busy_share: Share of the cores that others had from the first round to the last, 0 to 1; NaN where the system
            does not say. It is of all models that were measured in turn.
        measured_at: UTC, ISO 8601.
    """

    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    min_ms: float
    p10_ms: float
    median_ms: float
    iqr_ms: float
    cpu_ms: float
    n_runs: int
    n_rounds: int
    rejected_rounds: int
    converged: bool
    device: str
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    batch: int
    load_average: float
    busy_share: float
    measured_at: str


def measure(
    agent: Agent,
    models: Mapping[str, bytes],
    input_shapes: Mapping[str, Sequence[int]],
    method: Method,
    on_progress: Callable[[int, int], None] | None = None,
    watch: LoadWatch | None = None,
) -> dict[str, Measurement]:
    """The latency of each of `models`, by name, all measured in turn.

    All models are loaded and warmed up first. Every round visits the models that are not done, in a drawn order; a
    model is done when it has enough clean rounds with a narrow enough interval.

    Args:
        models: Model files in the format of the agent's device.
        input_shapes: ``(batch, channels, height, width)`` for each of them.
        on_progress: Called with the number of models done and of all.
        watch: Waits for a quiet machine before the first round, and judges how quiet it was.

    Raises:
        AgentError: The agent failed; what it measured of these models is lost.
        BusyMachineError: The machine was busy and `watch` refuses; as lost.
        ValueError: A model without an input shape.
    """
    if missing := [name for name in models if name not in input_shapes]:
        raise ValueError(f"no input shape is given for {', '.join(missing)}")
    identity = identify(agent)
    sha256 = {name: load_model(agent, name, model, input_shapes[name], method.seed) for name, model in models.items()}
    if watch is not None:
        watch.settle(agent)
    agent_stats(agent)  # the busy share below is since then
    rounds = interleaved_rounds(
        list(models),
        method,
        lambda name, inner_ms, inner_runs: run_round(
            agent, name, sha256[name], inner_ms=inner_ms, inner_runs=inner_runs
        ),
        on_progress,
    )
    stats = agent_stats(agent)
    for name, digest in sha256.items():
        unload_model(agent, name, digest)
    if watch is not None:
        watch.judge(agent, stats.busy_share)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        name: measurement_of(
            rounds[name], method, agent.spec.name, identity, stats.load_average, now, busy_share=stats.busy_share
        )
        for name in models
    }


def measurement_of(
    rounds: Sequence[Round],
    method: Method,
    device: str,
    identity: DeviceIdentity,
    load_average: float | None,
    measured_at: str,
    *,
    busy_share: float | None = None,
) -> Measurement:
    """What the rounds of one model, measured by `method` on the device called `device`, say of its latency."""
    return Measurement(
        **_statistics(rounds, method),
        device=device,
        runtime=identity.runtime,
        runtime_version=identity.runtime_version,
        precision=identity.precision,
        threads=identity.threads,
        batch=identity.batch,
        load_average=math.nan if load_average is None else load_average,
        busy_share=math.nan if busy_share is None else busy_share,
        measured_at=measured_at,
    )


def median_interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """A confidence interval of the median, of at least 95 %, that assumes nothing of the values' distribution.

    Its ends are the k-th smallest and k-th largest value with the largest k for which both tails of Binomial(n, 1/2)
    below k hold at most 5 % together (David & Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1).

    Raises:
        ValueError: Fewer than 6 values: not even their range is wide enough.
    """
    return interval_of_median(values.tolist())


def _statistics(rounds: Sequence[Round], method: Method) -> dict[str, Any]:
    """The fields of a `Measurement` that come from its rounds."""
    counted = counted_rounds(rounds, method)
    minima = np.array([round_.best_ms for round_ in counted])
    runs = np.concatenate([round_.runs_ms for round_ in counted])
    low, high = median_interval(minima)
    p10, q25, median, q75 = np.percentile(runs, [10, 25, 50, 75]).tolist()
    return {
        "latency_ms": float(np.median(minima)),
        "latency_low_ms": low,
        "latency_high_ms": high,
        "min_ms": float(runs.min()),
        "p10_ms": p10,
        "median_ms": median,
        "iqr_ms": q75 - q25,
        "cpu_ms": float(np.median([round_.cpu_ms / len(round_.runs_ms) for round_ in counted])),
        "n_runs": len(runs),
        "n_rounds": len(counted),
        "rejected_rounds": len(rounds) - len(clean_rounds(rounds, method)),
        "converged": is_done(rounds, method),
    }
