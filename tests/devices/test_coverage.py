"""How often the interval that the method reports holds the true latency, by simulation of its rules.

Where the figures in the docstring of `hanax.devices._measure` come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from jaxtyping import Float

from hanax.devices import Method
from hanax.devices._rounds import interleaved_rounds, interval_of_median, looks

N_MODELS = 4000
METHOD = Method(warmup_runs=0)
Array = Float[np.ndarray, "models rounds"]


def heavy(rng: np.random.Generator, size: float) -> Array:
    scale = np.where(rng.random((N_MODELS, METHOD.max_rounds)) < 0.15, 6.0, 1.0)
    return np.asarray(np.exp(size * scale * rng.standard_normal(scale.shape)))


NOISES: dict[str, Callable[[np.random.Generator, float], Array]] = {
    "lognormal": lambda rng, size: np.exp(size * rng.standard_normal((N_MODELS, METHOD.max_rounds))),
    "exponential": lambda rng, size: 1.0 + size * (rng.exponential(size=(N_MODELS, METHOD.max_rounds)) - math.log(2)),
    "heavy": heavy,
}
"""Round minima of models whose true median is 1 ms."""


def simulate(minima: Array, at: Sequence[int]) -> tuple[Array, Array, Array]:
    """The rule of stopping on many models at once, judged after `at` rounds: low and high ends, and rounds taken."""
    low, high, n_rounds = (np.zeros(len(minima)) for _ in range(3))
    for n in at:
        rank = int(interval_of_median([float(index) for index in range(n)])[0])
        ordered = np.sort(minima[:, :n], axis=1)
        narrow = (ordered[:, n - 1 - rank] - ordered[:, rank]) / 2 <= METHOD.target_relative_ci * np.median(ordered, 1)
        now = (n_rounds == 0) & (narrow | (n == at[-1]))
        low[now], high[now], n_rounds[now] = ordered[now, rank], ordered[now, n - 1 - rank], n
    return low, high, n_rounds


def coverage(minima: Array, at: Sequence[int]) -> float:
    low, high, _ = simulate(minima, at)
    return float(np.mean((low <= 1.0) & (high >= 1.0)))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("size", [0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1])
def test_the_reported_interval_holds_the_truth_about_as_often_as_it_says(noise: str, size: float) -> None:
    assert 0.94 <= coverage(NOISES[noise](np.random.default_rng(0), size), looks(METHOD)) <= 0.98


def test_looking_after_every_round_would_cover_less() -> None:
    minima = NOISES["lognormal"](np.random.default_rng(0), 0.04)
    eager = range(METHOD.min_rounds, METHOD.max_rounds + 1)
    assert coverage(minima, eager) < 0.935 < 0.945 < coverage(minima, looks(METHOD))
    quiet = NOISES["lognormal"](np.random.default_rng(0), 0.02)
    assert simulate(quiet, looks(METHOD))[2].mean() < 1.2 * simulate(quiet, eager)[2].mean()


class FakeRound(NamedTuple):
    best_ms: float
    stolen_share: float = 0.0


@pytest.mark.parametrize("size", [0.01, 0.03, 0.06])
def test_the_simulation_stops_where_the_method_does(size: float) -> None:
    minima = NOISES["lognormal"](np.random.default_rng(1), size)[:40]
    script: dict[str, Iterator[float]] = {str(model): iter(values) for model, values in enumerate(minima)}
    found = interleaved_rounds(list(script), METHOD, lambda name, ms, runs: FakeRound(float(next(script[name]))))
    low, high, n_rounds = simulate(minima, looks(METHOD))
    assert [len(rounds) for rounds in found.values()] == n_rounds.tolist()
    intervals = [interval_of_median([round_.best_ms for round_ in rounds]) for rounds in found.values()]
    assert intervals == list(zip(low, high, strict=True))


def test_looks_grow_by_a_factor_and_end_with_the_last_round() -> None:
    assert looks(METHOD) == [9, 14, 19, 28, 40]
    assert looks(Method(min_rounds=6, max_rounds=6)) == [6]
    assert looks(Method(min_rounds=6, max_rounds=9)) == [6, 9]


@pytest.mark.parametrize("drift", [1.0, 1.002, 1.01, 1.1])
def test_the_interval_of_two_passes_holds_the_mean_of_two_true_latencies(drift: float) -> None:
    """Whether or not the machine's speed changed in between: the promise of `combine_passes`."""
    rng = np.random.default_rng(0)
    ends = [
        simulate(truth * np.exp(0.01 * rng.standard_normal((N_MODELS, METHOD.max_rounds))), looks(METHOD))
        for truth in (1.0, drift)
    ]
    low, high = np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1])
    assert np.mean((low <= math.sqrt(drift)) & (high >= math.sqrt(drift))) >= 0.95
