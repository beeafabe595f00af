"""Search problems with known answers: what their tables hold, what their fronts are, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hanax.experiments import (
    TabularBenchmark,
    accel_nas_bench_benchmark,
    nas_bench_macro_benchmark,
    nb201_benchmark,
    nb201_benchmarks,
    ofa_benchmark,
)
from hanax.experiments._surrogate_costs import CostModel, SurrogateCosts, cross_validate
from hanax.experiments._tabular_benchmarks import ACCURACY, LATENCY, SurrogateBenchmark, ofa_traces
from hanax.search_spaces import RESOLUTION, Decision, SearchSpace, graph_features
from hanax.searchers import Nsga2, every_network, search

FRONT_SIZES = {"fpga": 15, "gold_6226": 49, "raspi4": 39, "eyeriss": 13, "titan_rtx_256": 45, "pixel3": 34}
"""Of NAS-Bench-201 with CIFAR-100's accuracy, better than 40 % and the largest latency."""


def hand_made() -> TabularBenchmark:
    """Six networks, three of them on the front.

    Accuracies above 50 % and latencies below 10 ms count: (60, 2), (70, 4), (80, 6) dominate 10 x 8 + 10 x 6 + 10 x 4.
    """
    space = SearchSpace(
        "six", 3, 10, (Decision(RESOLUTION, (32,)), Decision("a", (0, 1, 2)), Decision("b", (0, 1))), ()
    )
    costs = {
        "accuracy": np.array([60.0, 70.0, 80.0, 55.0, 49.0, 90.0]),
        "latency_ms": np.array([2.0, 4.0, 6.0, 4.0, 1.0, 10.0]),
        "params": np.arange(6.0),
    }
    reference = {"accuracy": 50.0, "latency_ms": 10.0}
    return TabularBenchmark("six", space, every_network(space), costs, (ACCURACY, LATENCY), reference)


def sweep(accuracy: np.ndarray, latency_ms: np.ndarray) -> int:
    """Points of the front by going through the networks from the fastest on; a second way to count them."""
    order = np.lexsort((-accuracy, latency_ms))
    best = np.concatenate([[-np.inf], np.maximum.accumulate(accuracy[order])[:-1]])
    return int((accuracy[order] > best).sum())


def test_the_front_and_its_hypervolume_are_those_counted_by_hand() -> None:
    benchmark = hand_made()
    np.testing.assert_array_equal(benchmark.true_front, [2, 1, 0])
    assert benchmark.true_hypervolume == pytest.approx(180.0)
    np.testing.assert_array_equal(benchmark.reference_losses, [-50.0, 10.0])


def test_costs_are_looked_up_for_codes_in_any_order() -> None:
    benchmark = hand_made()
    codes = benchmark.codes[[4, 0, 4]]
    np.testing.assert_array_equal(benchmark.evaluate(codes)["params"], [4.0, 0.0, 4.0])
    np.testing.assert_array_equal(benchmark.losses_of(codes), [[-49.0, 1.0], [-60.0, 2.0], [-49.0, 1.0]])
    with pytest.raises(ValueError, match="a: option 3 does not exist"):
        benchmark.evaluate(np.array([[0, 3, 0]], dtype=np.int32))


def test_a_search_of_every_network_finds_the_true_front() -> None:
    benchmark = hand_made()
    result = search(benchmark.problem(), Nsga2(benchmark.space, population=4), 100, reference=benchmark.reference)
    assert result.history["hypervolume"].iloc[-1] == pytest.approx(benchmark.true_hypervolume)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": hand_made().codes[:5]}, "5 architectures need costs of shape"),
        ({"costs": dict(hand_made().costs) | {"params": np.ones(2)}}, "params must have shape"),
        ({"codes": hand_made().codes[[0, 0, 1, 2, 3, 4]]}, "6 codes name 5 different networks"),
        ({"codes": hand_made().codes + np.array([1, 0, 0], dtype=np.int32)}, "resolution: option 1 does not exist"),
        ({"reference": {"accuracy": 1.0}}, "reference must name the objectives accuracy, latency_ms"),
        ({"costs": {"accuracy": np.full(6, np.nan), "latency_ms": np.ones(6)}}, "must be a finite number"),
        ({"costs": {"accuracy": np.ones(6)}}, "no cost 'latency_ms'"),
    ],
)
def test_a_table_that_contradicts_its_space_is_refused(change: dict[str, object], message: str) -> None:
    good = hand_made()
    fields = ("name", "space", "codes", "costs", "objectives", "reference")
    with pytest.raises(ValueError, match=message):
        TabularBenchmark(**{name: getattr(good, name) for name in fields} | change)  # type: ignore[arg-type]


def test_a_table_lacks_no_network() -> None:
    good = hand_made()
    costs = {name: values[:5] for name, values in good.costs.items()}
    with pytest.raises(ValueError, match="six has 6 networks; got 5"):
        TabularBenchmark("six", good.space, good.codes[:5], costs, good.objectives, good.reference)


def test_the_fronts_of_nas_bench_201_have_the_known_sizes_and_other_devices_are_named(
    shared_data: Callable[[str], Path],
) -> None:
    shared_data("help")
    folder = shared_data("nas-bench-201").parent
    benchmarks = nb201_benchmarks(folder, tuple(FRONT_SIZES))
    for benchmark, (device, size) in zip(benchmarks, FRONT_SIZES.items(), strict=True):
        assert (benchmark.name, len(benchmark.true_front)) == (f"nb201 x {device}", size)
        within = (benchmark.losses < benchmark.reference_losses).all(axis=1)
        accuracy, latency_ms = benchmark.costs["accuracy"][within], benchmark.costs["latency_ms"][within]
        assert sweep(accuracy, latency_ms) == size
    with pytest.raises(ValueError, match=r"HELP has no device 'abacus' for NAS-Bench-201; it has .*fpga"):
        nb201_benchmark(folder, "abacus")


def test_the_macs_and_parameters_of_nas_bench_macro_are_those_of_its_graphs(
    shared_data: Callable[[str], Path],
) -> None:
    benchmark = nas_bench_macro_benchmark(shared_data("nas-bench-macro").parent)
    names, sums = graph_features(benchmark.space, benchmark.codes)
    for cost in ("macs", "params"):
        np.testing.assert_array_equal(benchmark.costs[cost], sums[:, names.index(cost)])
    best = benchmark.codes[benchmark.true_front[0]]
    assert ".".join(map(str, best[1:])) == "2.2.2.1.2.2.0.2"
    assert benchmark.costs["accuracy"].max() == pytest.approx(93.13, abs=0.005)


def test_once_for_all_is_predicted_to_a_twentieth_of_a_point(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("dynas-t").parent
    benchmark = ofa_benchmark(folder)
    assert len(benchmark.codes) == len(benchmark.recorded["accuracy"]) == 1539
    error = benchmark.error("accuracy")
    assert error.mae < 0.05 and error.rmse < 0.06 and error.spearman > 0.998
    codes, recorded = ofa_traces(folder)["linas"]
    np.testing.assert_array_equal(benchmark.losses_of(codes[:50])[:, 1], recorded[:50, 1])
    least = benchmark.problem().costs(benchmark.space.encode([benchmark.space.smallest, benchmark.space.largest]))
    assert 69.0 < least["accuracy"][0] < 72.5 and 76.5 < least["accuracy"][1] < 78.0


@pytest.mark.slow
@pytest.mark.parametrize(("device", "cost"), [("zcu102", "latency_ms"), ("a100", "throughput_images_per_s")])
def test_accelerators_are_predicted_to_a_few_percent(
    shared_data: Callable[[str], Path], device: str, cost: str
) -> None:
    benchmark = accel_nas_bench_benchmark(shared_data("accel-nas-bench").parent, device)
    assert benchmark.error("accuracy").mae < 0.4
    assert benchmark.error(cost).mae < 0.04 * benchmark.recorded[cost].mean()
    costs = benchmark.problem().costs(benchmark.space.sample(np.random.default_rng(0), 50))
    assert (costs[cost] > 0).all()


def test_the_error_of_a_model_is_that_on_networks_it_did_not_see() -> None:
    from sklearn.neighbors import KNeighborsRegressor

    rng = np.random.default_rng(0)
    X, noise = rng.normal(size=(400, 3)), rng.normal(size=400)
    remembers = CostModel(KNeighborsRegressor(n_neighbors=1))
    assert np.abs(remembers.fit(X, noise).predict(X) - noise).max() < 1e-12
    error = cross_validate(remembers, X, noise)
    assert error.rmse == pytest.approx(np.sqrt(2), rel=0.15) and abs(error.spearman) < 0.2
    exact = cross_validate(CostModel(log=True), X, np.exp(X @ [1.0, 2.0, 3.0]))
    assert exact.spearman > 0.9999


def test_a_surrogate_gives_costs_that_are_known_beside_those_that_it_learns() -> None:
    table = hand_made()

    def describe(codes: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return {"latency_ms": table.evaluate(codes)["latency_ms"]}, table.space.one_hot(codes)

    repeated = np.tile(np.arange(6), 4)
    recorded = {name: values[repeated] for name, values in table.costs.items()}
    model = SurrogateCosts(describe, {"accuracy": CostModel()}, table.codes[repeated], recorded)
    benchmark = SurrogateBenchmark(
        "six", table.space, table.codes, table.costs, model, table.objectives, table.reference
    )
    with pytest.raises(ValueError, match="latency_ms is not learnt, unlike accuracy"):
        benchmark.error("latency_ms")
    losses = benchmark.losses_of(table.codes)
    np.testing.assert_array_equal(losses[:, 1], table.costs["latency_ms"])
    assert np.abs(losses[:, 0] + table.costs["accuracy"]).max() < 25.0
