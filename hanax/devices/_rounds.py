"""The measurement method's part that runs wherever the clock is: what a round must be, their order, and when to stop.

Standard library only, and of any Python from 3.8 on: this file travels in bundles, so that a board without network
measures by the very rules of `hanax.devices.measure`.

Shapes: `n` rounds.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

CONFIDENCE = 0.95
FEWEST_ROUNDS = 6
"""With fewer values there is no 95 % confidence interval of a median that assumes nothing of their distribution."""

LOOK_FACTOR = 1.45
"""Between two numbers of clean rounds after which a model is judged; see `hanax.devices._measure` on why not each."""

CLOCK_TOLERANCE = 0.01
"""Two machines' clocks may tick this much apart, as a share."""


class ImpossibleAnswerError(ValueError):
    """An agent's answer that cannot be true; the text says what is wrong with it."""


@runtime_checkable
class StoppingRule(Protocol):
    """The fields of `Method` that are used here."""

    @property
    def warmup_runs(self) -> int: ...
    @property
    def min_rounds(self) -> int: ...
    @property
    def max_rounds(self) -> int: ...
    @property
    def target_relative_ci(self) -> float: ...
    @property
    def inner_ms(self) -> float: ...
    @property
    def inner_runs(self) -> int: ...
    @property
    def max_stolen_share(self) -> float: ...
    @property
    def seed(self) -> int: ...


class RoundTimes(NamedTuple):
    """One model, run again and again for a moment.

    Attributes:
        runs_ns: Duration of every run.
        wall_ns: Time that passed.
        cpu_ns: CPU time that the agent's process got meanwhile, all threads together.
        waited_ns: How long the answer took to come, by the clock of who asked.
    """

    runs_ns: list[int]
    wall_ns: int
    cpu_ns: int
    waited_ns: int

    @property
    def best_ms(self) -> float:
        """The fastest run."""
        return min(self.runs_ns) / 1e6

    @property
    def stolen_share(self) -> float:
        """Share of the time in which the process did not compute: somebody else had the core, or it waited.

        Several threads hide it: they can get more CPU time than time passes.
        """
        return max(0.0, 1.0 - self.cpu_ns / self.wall_ns)


@runtime_checkable
class AnyRound(Protocol):
    """What the rules ask of a round."""

    @property
    def best_ms(self) -> float: ...
    @property
    def stolen_share(self) -> float: ...


RoundT = TypeVar("RoundT", bound=AnyRound)


def check_number(answer: Mapping[str, Any], key: str, at_least: int) -> float:
    """The number called `key` in an answer.

    Raises:
        ImpossibleAnswerError: It is not a finite number, or below `at_least`.
    """
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < at_least:
        raise ImpossibleAnswerError(f"{key} must be a finite number of at least {at_least}; it is {shortened(value)}")
    return float(value)


def check_round(answer: Mapping[str, Any], inner_ms: float, inner_runs: int, waited_ns: int) -> RoundTimes:
    """The round that an agent reports in its answer to ``bench``.

    Args:
        waited_ns: How long the answer took to come, by the clock of who asked.

    Raises:
        ImpossibleAnswerError: The numbers cannot be true: not positive, not finite, fewer than asked for, runs that
            take longer than the round, or a round that takes longer than it took to wait for it.
    """
    runs_ns = answer.get("runs_ns")
    if not isinstance(runs_ns, list) or len(runs_ns) < inner_runs:
        raise ImpossibleAnswerError(
            f"runs_ns must be a list of {inner_runs} or more durations; it is {shortened(runs_ns)}"
        )
    for run in runs_ns:
        check_number({"runs_ns": run}, "runs_ns", at_least=1)
    wall_ns, cpu_ns = check_number(answer, "wall_ns", at_least=1), check_number(answer, "cpu_ns", at_least=0)
    wall_ms, runs_ms, waited_ms = wall_ns / 1e6, sum(runs_ns) / 1e6, waited_ns / 1e6
    if not inner_ms * (1 - CLOCK_TOLERANCE) <= wall_ms <= waited_ms * (1 + CLOCK_TOLERANCE) + 1:
        raise ImpossibleAnswerError(
            f"it reports a round of {wall_ms:g} ms; {inner_ms:g} ms were asked and {waited_ms:.3f} waited"
        )
    if runs_ms > wall_ms * (1 + 1e-6):
        raise ImpossibleAnswerError(f"it reports runs of {runs_ms:g} ms together in a round of {wall_ms:g} ms")
    return RoundTimes(runs_ns, int(wall_ns), int(cpu_ns), waited_ns)


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """A confidence interval of the median, of at least 95 %, that assumes nothing of the values' distribution.

    Its ends are the k-th smallest and k-th largest value with the largest k for which both tails of Binomial(n, 1/2)
    below k hold at most 5 % together (David & Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1).

    Raises:
        ValueError: Fewer than 6 values: not even their range is wide enough.
    """
    n = len(values)
    if n < FEWEST_ROUNDS:
        raise ValueError(f"a {CONFIDENCE:.0%} interval of a median needs at least {FEWEST_ROUNDS} values; got {n}")
    tail, k = 2.0 * 0.5**n, 1
    while tail + 2.0 * math.comb(n, k) * 0.5**n <= 1.0 - CONFIDENCE:
        tail += 2.0 * math.comb(n, k) * 0.5**n
        k += 1
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def clean_rounds(rounds: Sequence[RoundT], rule: StoppingRule) -> list[RoundT]:
    """The rounds in which the process was not kept from computing for longer than `rule` allows."""
    return [round_ for round_ in rounds if round_.stolen_share <= rule.max_stolen_share]


def counted_rounds(rounds: Sequence[RoundT], rule: StoppingRule) -> list[RoundT]:
    """The clean rounds or, where these are too few, the least disturbed ones."""
    clean = clean_rounds(rounds, rule)
    if len(clean) >= rule.min_rounds:
        return clean
    return sorted(rounds, key=lambda round_: round_.stolen_share)[: rule.min_rounds]


def looks(rule: StoppingRule) -> list[int]:
    """The numbers of clean rounds after which a model may be done, ascending; the last round is always one."""
    numbers = [rule.min_rounds]
    while numbers[-1] < rule.max_rounds:
        numbers.append(min(math.ceil(rule.min_rounds * LOOK_FACTOR ** len(numbers)), rule.max_rounds))
    return numbers


def is_done(rounds: Sequence[RoundT], rule: StoppingRule) -> bool:
    """Whether a model has enough clean rounds with a narrow enough interval."""
    clean = clean_rounds(rounds, rule)
    if len(clean) < rule.min_rounds:
        return False
    minima = [round_.best_ms for round_ in clean]
    low, high = interval_of_median(minima)
    return (high - low) / 2 <= rule.target_relative_ci * statistics.median(minima)


def may_stop(rounds: Sequence[RoundT], rule: StoppingRule) -> bool:
    """Whether a model with these rounds gets no more: it is looked at and done, or has as many as there may be."""
    if len(rounds) >= rule.max_rounds:
        return True
    return len(clean_rounds(rounds, rule)) in looks(rule) and is_done(rounds, rule)


def interleaved_rounds(
    names: Sequence[str],
    rule: StoppingRule,
    run_round: Callable[[str, float, int], RoundT],
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[RoundT]]:
    """The rounds of every model: warmed up, then visited in turn in a drawn order until each is done.

    Args:
        run_round: Measures one round of a model, of at least so many milliseconds and at least so many runs.
        on_progress: Called with the number of models done and of all.
    """
    if rule.warmup_runs:
        for name in names:
            run_round(name, 0.0, rule.warmup_runs)
    rng = random.Random(rule.seed)
    rounds: dict[str, list[RoundT]] = {name: [] for name in names}
    todo = list(names)
    for _ in range(rule.max_rounds):
        for name in rng.sample(todo, len(todo)):
            rounds[name].append(run_round(name, rule.inner_ms, rule.inner_runs))
        todo = [name for name in todo if not may_stop(rounds[name], rule)]
        if on_progress is not None:
            on_progress(len(names) - len(todo), len(names))
        if not todo:
            break
    return rounds


def shortened(value: object) -> str:
    """`value` as code, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
