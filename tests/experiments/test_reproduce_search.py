"""Counting what searches need: every network once, up to the hypervolume that is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hanax.devices.public import PublicDataError
from hanax.experiments import TabularBenchmark
from hanax.experiments._counted_search import PlainStudy, evaluations_of, evaluations_to, search_until
from hanax.experiments._peer_environment import prepare_environment
from hanax.experiments._reproduce_search import (
    DEVICES,
    METHODS,
    SHARES,
    _sampler,
    limit_of,
    pareto_rows,
    reproduce_linas_hv,
    reproduce_nb201_pareto,
)
from hanax.experiments._tabular_benchmarks import ACCURACY, LATENCY
from hanax.search_spaces import RESOLUTION, Decision, SearchSpace
from hanax.searchers import every_network

REFERENCE = np.array([0.0, 10.0])


@pytest.fixture(scope="module")
def benchmark() -> TabularBenchmark:
    """256 networks; accuracy and latency both grow with every decision, at different rates."""
    decisions = (Decision(RESOLUTION, (32,)), *(Decision(f"layer{number}", (0, 1, 2, 3)) for number in range(4)))
    space = SearchSpace("small", 3, 10, decisions, ())
    codes = every_network(space)
    accuracy = 50.0 + codes @ [0.0, 8.0, 4.0, 2.0, 1.0] + np.random.default_rng(0).normal(size=len(codes))
    latency_ms = 1.0 + codes @ [0.0, 1.0, 2.0, 0.5, 1.5]
    reference = {"accuracy": 50.0, "latency_ms": float(latency_ms.max())}
    costs = {"accuracy": accuracy, "latency_ms": latency_ms}
    return TabularBenchmark("small", space, codes, costs, (ACCURACY, LATENCY), reference)


def test_evaluations_are_counted_up_to_the_one_that_reaches_the_hypervolume() -> None:
    losses = np.array([[-1.0, 9.0], [-2.0, 12.0], [-3.0, 8.0], [-3.0, 9.0], [-4.0, 9.0]])
    counts = [evaluations_to(losses, REFERENCE, target) for target in (0.0, 1.0, 1.5, 6.0, 7.0, 7.5)]
    assert counts == [0, 1, 3, 3, 5, None]


def test_a_network_that_comes_again_is_not_counted_again(benchmark: TabularBenchmark) -> None:
    front = benchmark.codes[benchmark.true_front]
    worst = benchmark.codes[[np.argmin(benchmark.costs["accuracy"] - 100 * benchmark.costs["latency_ms"])]]
    order = np.concatenate([worst, worst, front[:1], worst, front[:1], front[1:]])
    assert evaluations_of(benchmark, order, benchmark.true_hypervolume, 100) == 1 + len(front)
    assert evaluations_of(benchmark, order, benchmark.true_hypervolume, 5) == 5
    assert evaluations_of(benchmark, worst, benchmark.true_hypervolume, 77) == 77


def test_a_search_stops_at_its_target_and_proposes_nothing_twice(benchmark: TabularBenchmark) -> None:
    class Stubborn:
        """Every network twice, in the order of the table."""

        def __init__(self) -> None:
            self.asked = -1
            self.told = 0

        def ask(self) -> np.ndarray:
            self.asked += 1
            return benchmark.codes[[self.asked // 2]]

        def tell(self, codes: np.ndarray, losses: np.ndarray, violations: np.ndarray) -> None:
            self.told += 1
            np.testing.assert_array_equal(losses, benchmark.losses_of(codes))
            assert not violations.any()

    searcher = Stubborn()
    target = 0.5 * benchmark.true_hypervolume
    codes = search_until(benchmark, searcher, target, 256)
    np.testing.assert_array_equal(codes, benchmark.codes[: len(codes)])
    assert searcher.told == 2 * len(codes) - 1
    assert len(codes) == evaluations_of(benchmark, benchmark.codes, target, 256)
    assert len(search_until(benchmark, Stubborn(), target, 3)) == 3


def test_a_search_that_repeats_itself_ends(benchmark: TabularBenchmark) -> None:
    class Stuck:
        def ask(self) -> np.ndarray:
            return benchmark.codes[:1]

        def tell(self, codes: np.ndarray, losses: np.ndarray, violations: np.ndarray) -> None: ...

    assert len(search_until(benchmark, Stuck(), benchmark.true_hypervolume, 50)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_searches_a_plain_study(benchmark: TabularBenchmark, method: str) -> None:
    def run() -> np.ndarray:
        searcher = PlainStudy(benchmark.space, _sampler(method, 3, benchmark.reference_losses), 2)
        return search_until(benchmark, searcher, benchmark.true_hypervolume, 25)

    codes = run()
    assert len(np.unique(codes, axis=0)) == len(codes) <= 25
    np.testing.assert_array_equal(codes, run())


def test_rows_give_median_quartiles_and_worst_of_seeds_and_who_is_best() -> None:
    counts = {method: np.full((2, 4, len(SHARES)), limit_of(method)) for method in METHODS}
    counts["ours"][0, :, 0] = [100, 50, 80, 90]
    counts["ours"][0, :, 1] = 200
    counts["tpe"][0, :, 0] = 90
    rows = {row.metric: row for row in pareto_rows(("a", "b"), counts)}
    ours = rows["a_evals95"]
    assert (ours.published, ours.ours, ours.spread, ours.worst, ours.n) == (None, 85.0, 20.0, 100.0, 4)
    assert ours.unit == "evaluations, at most 600" and rows["a_evals98_random"].unit == "evaluations, at most 1000"
    assert (rows["b_evals98"].ours, rows["median_evals95"].ours, rows["median_evals98"].ours) == (600.0, 342.5, 400.0)
    assert rows["median_evals95"].worst == 600.0
    assert rows["best_on_devices"].ours == 1.0  # on b nobody arrives
    counts["tpe"][0, :, 0] = 84
    assert {row.metric: row.ours for row in pareto_rows(("a", "b"), counts)}["best_on_devices"] == 0.0


def test_the_environment_of_a_peer_takes_no_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not a virtual environment; name another folder"):
        prepare_environment(tmp_path, ("pymoo",))


def test_the_worker_of_pymoo_needs_no_hanax() -> None:
    import hanax.experiments

    worker = Path(hanax.experiments.__file__).with_name("_pymoo_worker.py")
    program = f"import runpy, sys; runpy.run_path({str(worker)!r}); print([m for m in sys.modules if 'hanax' in m])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


@pytest.mark.parametrize("source", ["nas-bench-201", "dynas-t"])
def test_a_folder_that_lacks_the_public_files_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(PublicDataError, match=source):
        if source == "dynas-t":
            reproduce_linas_hv(tmp_path, 1, print)
        else:
            reproduce_nb201_pareto(tmp_path, 1, DEVICES, print)
