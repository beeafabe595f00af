from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import pytest

from hanax.devices import (
    COLUMNS,
    DEVICES,
    AgentError,
    DeviceSpec,
    LocalAgent,
    Measurement,
    Method,
    agent_stats,
    measure,
    median_interval,
)
from hanax.devices._requests import load_model, run_round

METHOD = Method(warmup_runs=0, min_rounds=6, max_rounds=12, target_relative_ci=0.02, inner_ms=0.001, inner_runs=2)
Script = Sequence[tuple[list[int], float]]


class ScriptedAgent:
    """Answers the benches of each model with scripted rounds: runs in microseconds, and CPU time as a share of wall."""

    busy_share: float | None = None

    def __init__(self, **scripts: Script) -> None:
        self.scripts: dict[str, Iterator[tuple[list[int], float]]] = {k: iter(v) for k, v in scripts.items()}
        self.visits: list[str] = []
        self.unloaded: list[str] = []

    @property
    def spec(self) -> DeviceSpec:
        return DEVICES["onnxruntime-fp32"]

    def request(self, op: str, about: str = "", **fields: object) -> dict[str, Any]:
        if op == "info":
            machine = {"cpu_model": "x", "cores": 1}
            return {"protocol": 2, "runtime": "onnxruntime", "runtime_version": "9", "threads": 1, **machine}
        if op == "stats":
            return {"peak_rss_bytes": None, "load_average": None, "busy_share": self.busy_share, "busy_over_s": 0.1}
        if op == "unload":
            self.unloaded.append(about)
        if op != "bench":
            return {}
        self.visits.append(about)
        runs_us, cpu_share = next(self.scripts[about])
        time.sleep(sum(runs_us) * 1e-6)
        wall_ns = 1000 * sum(runs_us)
        return {"runs_ns": [1000 * run for run in runs_us], "wall_ns": wall_ns, "cpu_ns": cpu_share * wall_ns}

    def fail(self, op: str, about: str, problem: str) -> NoReturn:
        raise AgentError("scripted", f"{op} of {about}", problem)

    def __enter__(self) -> ScriptedAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def measured(method: Method, **scripts: Script) -> dict[str, Measurement]:
    names = list(scripts)
    return measure(ScriptedAgent(**scripts), dict.fromkeys(names, b""), dict.fromkeys(names, (1, 1, 8, 8)), method)


# ---- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (12, 3, 10), (20, 6, 15), (100, 40, 61)]
)
def test_the_interval_of_the_median_has_the_published_ranks(n: int, low: int, high: int) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert median_interval(shuffled) == (low, high)


def test_the_interval_covers_the_median_of_a_skewed_distribution_as_often_as_it_says() -> None:
    samples = np.random.default_rng(0).lognormal(0.0, 1.0, size=(4000, 15))
    covered = [low <= 1.0 <= high for low, high in map(median_interval, samples)]
    assert 0.95 <= np.mean(covered) <= 0.98


def test_five_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="needs at least 6 values; got 5"):
        median_interval(np.ones(5))


# ---- the method, on scripted rounds ----------------------------------------------------------------------------------


def test_a_steady_model_is_done_after_the_fewest_rounds() -> None:
    row = measured(METHOD, steady=[([100, 110], 1.0)] * 12)["steady"]
    assert (row.n_rounds, row.n_runs, row.rejected_rounds, row.converged) == (6, 12, 0, True)
    assert row.latency_ms == row.latency_low_ms == row.latency_high_ms == 0.1


def test_a_noisy_model_gets_all_rounds_and_says_that_it_did_not_converge() -> None:
    row = measured(METHOD, noisy=[([50 + 10 * step, 300], 1.0) for step in range(12)])["noisy"]
    assert (row.n_rounds, row.converged) == (12, False)
    assert (row.latency_low_ms, row.latency_ms, row.latency_high_ms) == pytest.approx((0.07, 0.105, 0.14))


def test_a_target_of_two_percent_means_plus_or_minus() -> None:
    rounds = [([best], 1.0) for best in (980, 1000, 1000, 1000, 1000, 1020)] * 2
    wide = dataclasses.replace(METHOD, target_relative_ci=0.0201, inner_runs=1)
    assert measured(wide, model=rounds)["model"].n_rounds == 6
    assert measured(dataclasses.replace(wide, target_relative_ci=0.0199), model=rounds)["model"].n_rounds > 6


def test_rounds_with_stolen_time_are_rejected_and_counted() -> None:
    clean, stolen = ([100, 100], 0.96), ([500, 500], 0.9)
    row = measured(METHOD, model=[stolen, clean] * 6)["model"]
    assert (row.latency_ms, row.n_rounds, row.rejected_rounds, row.converged) == (0.1, 6, 6, True)


def test_without_enough_clean_rounds_the_least_disturbed_count_and_the_row_says_so() -> None:
    shares = [0.90, 0.5, 0.94, 0.5, 0.91, 0.5, 0.92, 0.5, 0.99, 0.5, 0.93, 0.5]
    row = measured(METHOD, model=[([int(100 * share)] * 2, share) for share in shares])["model"]
    assert (row.n_rounds, row.rejected_rounds, row.converged) == (6, 11, False)
    assert row.min_ms == 0.09


def test_several_threads_may_use_more_cpu_time_than_time_passes() -> None:
    row = measured(METHOD, model=[([100, 100], 1.9)] * 12)["model"]
    assert (row.rejected_rounds, row.converged) == (0, True)
    assert row.cpu_ms == pytest.approx(0.19)


def test_every_column_is_what_it_says() -> None:
    row = measured(METHOD, model=[([100, 200, 300, 400, 1000], 1.0)] * 12)["model"]
    runs = np.repeat([0.1, 0.2, 0.3, 0.4, 1.0], 6)
    assert row.min_ms == pytest.approx(0.1)
    assert row.p10_ms == pytest.approx(np.percentile(runs, 10))
    assert row.median_ms == pytest.approx(0.3)
    assert row.iqr_ms == pytest.approx(0.2)
    assert row.cpu_ms == pytest.approx(0.4)
    assert (row.device, row.runtime, row.runtime_version) == ("onnxruntime-fp32", "onnxruntime", "9")
    assert (row.precision, row.threads, row.batch) == ("fp32", 1, 1)
    assert math.isnan(row.load_average)
    assert math.isnan(row.busy_share)
    assert row.measured_at.endswith("+00:00")


def test_a_measurement_has_all_columns_of_a_table_but_arch_and_purpose() -> None:
    measured = [field.name for field in dataclasses.fields(Measurement)]
    assert ["arch", *measured, "purpose", "pass_latency_ms"] == list(COLUMNS)


def test_models_are_visited_in_turn_in_an_order_that_changes() -> None:
    agent = ScriptedAgent(**{name: [([100, 100], 1.0)] * 6 for name in "abcd"})
    measure(agent, dict.fromkeys("abcd", b""), dict.fromkeys("abcd", (1, 1, 8, 8)), METHOD)
    rounds = [agent.visits[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(visited) == list("abcd") for visited in rounds)
    assert len({tuple(visited) for visited in rounds}) > 1
    assert agent.unloaded == list("abcd")


def test_a_model_that_is_done_is_not_visited_again() -> None:
    agent = ScriptedAgent(steady=[([100, 100], 1.0)] * 12, noisy=[([50 + 10 * step] * 2, 1.0) for step in range(12)])
    shapes = dict.fromkeys(("steady", "noisy"), (1, 1, 8, 8))
    progress: list[tuple[int, int]] = []
    measure(agent, dict.fromkeys(shapes, b""), shapes, METHOD, lambda done, n: progress.append((done, n)))
    assert (agent.visits.count("steady"), agent.visits.count("noisy")) == (6, 12)
    assert progress[0] == (0, 2)
    assert progress[5:] == [(1, 2)] * 6 + [(2, 2)]


def test_warm_up_runs_are_not_counted() -> None:
    method = dataclasses.replace(METHOD, warmup_runs=3)
    row = measured(method, model=[([900, 900, 900], 1.0), *[([100, 100], 1.0)] * 12])["model"]
    assert (row.n_runs, row.latency_ms, row.p10_ms, row.iqr_ms) == (12, 0.1, 0.1, 0.0)


def test_a_model_without_an_input_shape_is_named() -> None:
    with pytest.raises(ValueError, match="no input shape is given for second"):
        measure(ScriptedAgent(), {"first": b"", "second": b""}, {"first": (1,)}, METHOD)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_rounds": 5}, "min_rounds must be at least 6"),
        ({"max_rounds": 5}, "max_rounds must be at least min_rounds=9; got 5"),
        ({"inner_ms": 0.0}, "inner_ms must be a positive number; got 0.0"),
        ({"target_relative_ci": math.nan}, "target_relative_ci must be a positive number; got nan"),
        ({"warmup_runs": -1}, "warmup_runs must be at least 0"),
    ],
)
def test_a_method_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method(**wrong)


# ---- real runtimes ---------------------------------------------------------------------------------------------------


def test_onnxruntime_ranks_a_model_with_twenty_times_the_work_after_the_other(
    matmul_model: Callable[..., bytes],
) -> None:
    models = {"large": matmul_model(40, 64, channels=4), "small": matmul_model(2, 64, channels=4)}
    method = Method(inner_ms=3.0, max_rounds=20)
    with LocalAgent(DEVICES["onnxruntime-fp32"]) as agent:
        rows = measure(agent, models, dict.fromkeys(models, (1, 4, 64, 64)), method)
        stats = agent_stats(agent)
    small, large = rows["small"], rows["large"]
    assert 3 * small.latency_high_ms < large.latency_low_ms
    for row in rows.values():
        assert row.min_ms <= row.latency_low_ms <= row.latency_ms <= row.latency_high_ms
        assert row.min_ms <= row.p10_ms <= row.median_ms
        assert row.rejected_rounds <= 20
        assert row.n_runs >= 3 * row.n_rounds
    assert stats.peak_rss_bytes is not None
    assert stats.peak_rss_bytes > 20 << 20


def exported_products(n: int, side: int) -> bytes:
    import jax
    import jax.export

    def products(image: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, product: product @ image / side, image)

    return bytes(jax.export.export(jax.jit(products))(jax.ShapeDtypeStruct((1, 1, side, side), np.float32)).serialize())


def test_xla_ranks_a_model_with_more_work_after_the_other_and_uses_one_thread() -> None:
    models = {"large": exported_products(40, 64), "small": exported_products(2, 64)}
    with LocalAgent(DEVICES["xla-fp32"]) as agent:
        rows = measure(agent, models, dict.fromkeys(models, (1, 1, 64, 64)), Method(inner_ms=3.0, max_rounds=20))
        sha256 = load_model(agent, "wide", exported_products(2, 512), (1, 1, 512, 512), 0)
        wide = run_round(agent, "wide", sha256, inner_ms=50.0, inner_runs=3)
    assert rows["small"].latency_high_ms < rows["large"].latency_low_ms
    assert wide.cpu_ms <= 1.05 * wide.wall_ms
