"""`hanax reproduce nb201-pareto|linas-hv`: how many evaluations searches need for a front that is known."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hanax._files import cache_folder
from hanax.experiments._counted_search import (
    Benchmark,
    PlainStudy,
    evaluations_of,
    evaluations_to,
    search_until,
)
from hanax.experiments._peer_environment import prepare_environment
from hanax.experiments._reproduction import Reproduction, Row, one_process_per_core
from hanax.experiments._tabular_benchmarks import TabularBenchmark, nb201_benchmarks, ofa_benchmark, ofa_traces
from hanax.searchers import OptunaSearcher, Searcher, hypervolume

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from hanax.search_spaces import SearchSpace

N_SEEDS = 10
POPULATION = 50

DEVICES = ("fpga", "gold_6226", "raspi4", "eyeriss", "titan_rtx_256", "pixel3")
SHARES = (0.95, 0.98)
"""Of the true hypervolume."""

LIMIT = 600
"""Evaluations per search."""

RANDOM_LIMIT = 1000
"""The same for random search, which needs them."""

OURS = "ours"
METHODS = (OURS, "nsga2", "tpe", "random")
PYMOO = "pymoo"
PYMOO_REQUIREMENTS = ("pymoo==0.6.2", "numpy")

TRACE = "nsga2"
"""The recorded search whose final hypervolume is to be reached."""


# ---- NAS-Bench-201 -----------------------------------------------------------------------------------------------


def reproduce_nb201_pareto(
    data: Path, n_seeds: int, devices: Sequence[str], say: Callable[[str], None]
) -> Reproduction:
    """Evaluations to 95 % and 98 % of the true hypervolume of NAS-Bench-201 on `devices` of HELP.

    Ours, Optuna's NSGA-II, TPE (multivariate) and random search run in a plain study of six categorical parameters,
    pymoo's NSGA-II in an environment of its own. Ours is told the reference point of the hypervolume, for which the
    others have no use.

    Raises:
        PublicDataError: The public files are not in `data`.
        RuntimeError: pymoo could not be installed or run.
    """
    started = time.perf_counter()
    benchmarks = nb201_benchmarks(data, tuple(devices))
    say("preparing the environment of pymoo")
    python = prepare_environment(cache_folder() / "pymoo-env", PYMOO_REQUIREMENTS)
    counts = count_evaluations(benchmarks, devices, n_seeds, say) | {PYMOO: _pymoo(python, benchmarks, n_seeds)}
    title = (
        f"NAS-Bench-201, CIFAR-100 accuracy x latency: evaluations to a share of the true hypervolume, at most {LIMIT} "
        f"(random {RANDOM_LIMIT}), counting no network twice; median, interquartile range and worst of {n_seeds} seeds"
    )
    return Reproduction("nb201-pareto", title, pareto_rows(devices, counts), time.perf_counter() - started)


def count_evaluations(
    benchmarks: Sequence[TabularBenchmark], names: Sequence[str], n_seeds: int, say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Evaluations by method, shape (benchmarks, seeds, `SHARES`), of searches that run side by side."""
    jobs = [(method, index, seed) for index in range(len(names)) for seed in range(n_seeds) for method in METHODS]
    counts = {method: np.zeros((len(names), n_seeds, len(SHARES)), dtype=np.int64) for method in METHODS}
    with one_process_per_core() as processes:
        running: list[Future[list[int]]] = [
            processes.submit(_search_table, benchmarks[index], method, seed) for method, index, seed in jobs
        ]
        for (method, index, seed), future in zip(jobs, running, strict=True):
            counts[method][index, seed] = future.result()
            if (method, seed) == (METHODS[-1], n_seeds - 1):
                say(f"{names[index]}: " + _sentence({name: of[index] for name, of in counts.items()}))
    return counts


def _search_table(benchmark: TabularBenchmark, method: str, seed: int) -> list[int]:
    """Evaluations that one search needs for each of `SHARES`."""
    limit = limit_of(method)
    sampler = _sampler(method, seed, benchmark.reference_losses)
    searcher = PlainStudy(benchmark.space, sampler, len(benchmark.objectives))
    codes = search_until(benchmark, searcher, max(SHARES) * benchmark.true_hypervolume, limit)
    return [evaluations_of(benchmark, codes, share * benchmark.true_hypervolume, limit) for share in SHARES]


def limit_of(method: str) -> int:
    """Evaluations that a search by `method` may make."""
    return RANDOM_LIMIT if method == "random" else LIMIT


def _sampler(method: str, seed: int, reference: np.ndarray) -> BaseSampler:
    import optuna

    from hanax.searchers import LinasSampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if method == OURS:
        return LinasSampler(seed=seed, reference=reference.tolist())
    if method == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    if method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)
    assert method == "random", method
    return optuna.samplers.RandomSampler(seed=seed)


def _pymoo(python: Path, benchmarks: Sequence[TabularBenchmark], n_seeds: int) -> np.ndarray:
    """Evaluations that pymoo's NSGA-II needs, shape (benchmarks, seeds, `SHARES`)."""
    space = benchmarks[0].space
    rows = np.zeros(space.option_counts, dtype=np.int64)
    rows[tuple(benchmarks[0].codes.T)] = np.arange(len(benchmarks[0].codes))
    worker = Path(__file__).with_name("_pymoo_worker.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tables.npz"
        arrays = {"counts": space.option_counts, "rows": rows}
        np.savez(path, allow_pickle=False, **arrays, **{each.name: each.losses for each in benchmarks})
        command = [str(python), str(worker), str(path), str(n_seeds), str(LIMIT)]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"pymoo's search ended with an error: {process.stderr.strip()}")
    evaluated = json.loads(process.stdout)
    return np.array(
        [
            [
                [
                    evaluations_of(benchmark, benchmark.codes[order], share * benchmark.true_hypervolume, LIMIT)
                    for share in SHARES
                ]
                for order in evaluated[benchmark.name]
            ]
            for benchmark in benchmarks
        ]
    )


def pareto_rows(devices: Sequence[str], counts: Mapping[str, np.ndarray]) -> list[Row]:
    """A row per method and device, then those over devices, from counts of shape (devices, seeds, `SHARES`).

    Ours is best on a device if its median is below that of every other method, for each share.
    """
    rows = []
    medians = {method: np.median(of_method, axis=1) for method, of_method in counts.items()}
    for which, share in enumerate(SHARES):
        for index, device in enumerate(devices):
            for method, of_method in counts.items():
                metric = f"{device}_evals{share * 100:.0f}{_suffix(method)}"
                rows.append(_row(metric, of_method[index, :, which], limit_of(method)))
    for which, share in enumerate(SHARES):
        for method, of_devices in medians.items():
            values = of_devices[:, which]
            metric = f"median_evals{share * 100:.0f}{_suffix(method)}"
            unit = _unit(limit_of(method))
            rows.append(Row(metric, None, float(np.median(values)), None, float(values.max()), len(devices), unit))
    others = [of_devices for method, of_devices in medians.items() if method != OURS]
    n_best = int((medians[OURS] < np.min(others, axis=0)).all(axis=1).sum())
    return [*rows, Row("best_on_devices", None, n_best, None, None, len(devices), "devices")]


def _suffix(method: str) -> str:
    return "" if method == OURS else f"_{method}"


def _unit(limit: int) -> str:
    return f"evaluations, at most {limit}"


def _row(metric: str, values: np.ndarray, limit: int) -> Row:
    """Median, interquartile range and worst over seeds."""
    first, median, third = np.percentile(values, (25, 50, 75)).tolist()
    return Row(metric, None, median, third - first, float(values.max()), len(values), _unit(limit))


def _sentence(counts: Mapping[str, np.ndarray]) -> str:
    """Medians over seeds of all methods, in words."""
    parts = []
    for method, of_method in counts.items():
        parts.append(f"{method} " + " / ".join(f"{value:.0f}" for value in np.median(of_method, axis=0)))
    return ", ".join(parts)


# ---- Once-for-All ------------------------------------------------------------------------------------------------


def reproduce_linas_hv(data: Path, n_seeds: int, say: Callable[[str], None]) -> Reproduction:
    """Evaluations to the final hypervolume of DyNAS-T's recorded NSGA-II search, on a surrogate of its traces.

    All subnets are measured with the surrogate, those of the recorded searches too; with the accuracies as recorded,
    the row ``..._recorded`` says how many evaluations the recorded LINAS search needed.

    Raises:
        PublicDataError: The public files are not in `data`.
    """
    started = time.perf_counter()
    benchmark, traces = ofa_benchmark(data), ofa_traces(data)
    limit = len(traces[TRACE][0])
    target = hypervolume(benchmark.losses_of(traces[TRACE][0]), benchmark.reference_losses)
    say(f"final hypervolume of the recorded search: {target:.6g} by the surrogate")
    with one_process_per_core() as processes:
        running: dict[str, list[Future[int]]] = {
            method: [
                processes.submit(count_ofa_evaluations, benchmark, method, seed, target, limit)
                for seed in range(n_seeds)
            ]
            for method in (OURS, "nsga2")
        }
        counts = {method: np.array([future.result() for future in futures]) for method, futures in running.items()}
    error = benchmark.error("accuracy")
    rows = [
        _row("evals_to_hv", counts[OURS], limit),
        _row("evals_to_hv_nsga2", counts["nsga2"], limit),
        *_trace_rows(benchmark, traces, target),
        Row("surrogate_mae", None, error.mae, None, None, len(benchmark.codes), "points of accuracy"),
        Row("surrogate_spearman", None, error.spearman, None, None, len(benchmark.codes), "spearman"),
    ]
    title = (
        f"Once-for-All x MACs: evaluations to the hypervolume of the recorded {limit} evaluations of NSGA-II, at most "
        f"{limit}, counting no network twice; median, interquartile range and worst of {n_seeds} seeds"
    )
    return Reproduction("linas-hv", title, rows, time.perf_counter() - started)


def _trace_rows(benchmark: Benchmark, traces: Mapping[str, tuple[np.ndarray, np.ndarray]], target: float) -> list[Row]:
    """What the recorded LINAS search needed, by the surrogate and by what was recorded.

    Here, evaluations are counted as they were made, repeats and all.
    """
    codes, recorded = traces["linas"]
    reference = benchmark.reference_losses
    recorded_target = hypervolume(traces[TRACE][1], reference)
    found = {
        "evals_to_hv_linas_trace": evaluations_to(benchmark.losses_of(codes), reference, target),
        "evals_to_hv_linas_trace_recorded": evaluations_to(recorded, reference, recorded_target),
    }
    unit = f"evaluations, repeats counted, at most {len(codes)}"
    return [
        Row(metric, None, float(len(codes) if n is None else n), None, None, 1, unit) for metric, n in found.items()
    ]


def count_ofa_evaluations(benchmark: Benchmark, method: str, seed: int, target: float, limit: int) -> int:
    """Evaluations that one search by `method` needs for the hypervolume `target`."""
    searcher = _optuna_searcher(benchmark.space, method, seed, len(benchmark.reference_losses))
    return evaluations_of(benchmark, search_until(benchmark, searcher, target, limit), target, limit)


def _optuna_searcher(space: SearchSpace, method: str, seed: int, n_objectives: int) -> Searcher:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler: Literal["linas", "nsga2"] = "linas" if method == OURS else "nsga2"
    return OptunaSearcher(space, sampler=sampler, n_objectives=n_objectives, seed=seed, population=POPULATION)
