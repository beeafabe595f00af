"""`hanax reproduce help-nb201|help-fbnet|nasflat`: published few-shot latency prediction, simple methods, and ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hanax.devices import find_device, load_atlas
from hanax.devices.public import HELP_POOL_SIZES, HELP_SPLITS
from hanax.experiments._latency_benchmark import (
    Floats,
    HiddenDevice,
    Indices,
    LatencyData,
    Score,
    load_help_data,
    load_merged_data,
    macs_of,
)
from hanax.experiments._reproduction import Reproduction, Row, one_process_per_core
from hanax.predictors import (
    BestSourcePredictor,
    HelpPredictor,
    HierarchicalBayesPredictor,
    OperationWisePredictor,
    PrincipalComponentsPredictor,
    SourcePool,
    TransferPredictor,
    choose_archs,
    latency_features,
)
from hanax.search_spaces import decision_graph

N_DRAWS = 20
N_TRAININGS = 3
"""Of HELP, from other initial weights: one training differs from the next by more than its draws do."""
SAMPLE_SIZES = (10, 20)
COVERAGE = 0.9
SEED = 1

Maker = Callable[[SourcePool], Any]
SIMPLE: dict[str, Maker] = {
    "best_source": BestSourcePredictor,
    "pca4": PrincipalComponentsPredictor,
    "bayes": HierarchicalBayesPredictor,
}
"""Baselines on random samples; `TransferPredictor` joins them there, with sources (`stack`) and without (`scratch`)."""


def ours(pool: SourcePool) -> Any:
    """What we recommend."""
    return TransferPredictor(pool)


def scratch(pool: SourcePool) -> Any:
    """The same without any other device."""
    return TransferPredictor(groups=pool.groups)


# ---- HELP's protocol ---------------------------------------------------------------------------------------------

HELP_PUBLISHED: dict[str, dict[str, float]] = {
    "nasbench201": {"help_jax_n20": 0.932},
    "fbnet": {"help_jax_n20": 0.910},
}


def reproduce_help(name: str, data: Path, n_draws: int, say: Callable[[str], None]) -> Reproduction:
    """HELP's experiment on ``nasbench201`` or ``fbnet``: meta-train on its devices, predict its test devices.

    Samples come from the pool's architectures; scores are on HELP's trimmed queries. HELP's own samples are random
    ones in the middle 80 % of the new device's latencies, as published; those of the simple methods are random ones of
    the pool, as nobody knows a new device's middle; ours are chosen without measuring.
    """
    started = time.perf_counter()
    say("reading HELP's files")
    everything = load_help_data(data, name)
    split, n_pool = HELP_SPLITS[name], HELP_POOL_SIZES[name]
    pool = everything.pool(np.arange(n_pool), split["train"])
    results = _Results()
    for device in split["test"]:
        for n in SAMPLE_SIZES:
            _run_simple(results, everything, pool, device, n, n_draws)
        say(f"{device}: " + results.sentence(device))
    meta_train_s, help_predict_s = _run_help(
        results, everything, name, n_draws, N_TRAININGS if n_draws == N_DRAWS else 1, say
    )
    predict_all_s = _time_prediction(everything, pool)
    published = HELP_PUBLISHED[name]
    rows = results.rows(published)
    rows += [
        Row("worst_draw_n10", None, results.worst("ours_n10"), None, None, 10, "spearman"),
        Row("worst_draw_n20", None, results.worst("ours_n20"), None, None, 20, "spearman"),
        Row("meta_train_s", {"nasbench201": 498.0, "fbnet": 642.0}[name], meta_train_s, None, None, None, "s"),
        Row("help_predict_all_s", None, help_predict_s, None, None, None, "s"),
        Row("predict_all_s", None, predict_all_s, None, None, None, "s"),
        results.coverage_row("coverage_90", 10),
        results.coverage_row("coverage_90_n20", 20),
    ]
    title = f"HELP's protocol on {name}: trimmed queries, {n_draws} draws, mean over {len(split['test'])} devices"
    return Reproduction(
        f"help-{'nb201' if name == 'nasbench201' else name}", title, rows, time.perf_counter() - started
    )


def _run_simple(
    results: _Results,
    data: LatencyData,
    pool: SourcePool,
    device: str,
    n: int,
    n_draws: int,
) -> None:
    """Add the scores of everything but HELP with `n` samples on one device."""
    n_pool = len(pool.X)
    rows = np.arange(n_pool)
    hidden = data.hidden(device)
    query = hidden.trimmed_query(n_pool)
    if n == SAMPLE_SIZES[0]:
        results.add("macs_n0", device, [hidden.score(query, data.macs[query])])
    for draw in range(n_draws):
        rng = np.random.default_rng([SEED, draw])
        random = rng.choice(rows, n, replace=False)
        chosen = rows[choose_archs(pool, data.X[rows], n, rng)]
        for method, make, sample in _methods(random, chosen):
            results.add(f"{method}_n{n}", device, [_score(make(pool), data, device, sample, query)])


def _fit(predictor: Any, data: LatencyData, hidden: HiddenDevice, sample: Indices) -> Any:
    """`predictor`, fitted on what `sample` costs there: so many measurements and no more."""
    fitted = predictor.fit(data.X[sample], hidden.measure(sample))
    assert hidden.n_measured == len(sample), "n counts every measurement of the new device"
    return fitted


def _score(predictor: Any, data: LatencyData, device: str, sample: Indices, query: Indices) -> Score:
    """Score and coverage on `query` of `predictor`, which learns from `sample`."""
    hidden = data.hidden(device)
    fitted = _fit(predictor, data, hidden, sample)
    return hidden.score(query, fitted.predict(data.X[query]), fitted.predict_interval(data.X[query], COVERAGE))


def _run_help(
    results: _Results, data: LatencyData, name: str, n_draws: int, n_trainings: int, say: Callable[[str], None]
) -> tuple[float, float]:
    """Meta-train HELP, a few times from other weights, and add its scores.

    Returns:
        Median seconds of a meta-training, with compilation, and of predicting everything on one device.
    """
    split, n_pool = HELP_SPLITS[name], HELP_POOL_SIZES[name]
    rows = np.union1d(np.arange(n_pool), data.references)
    is_graph = name == "nasbench201"
    meta_train_s, predict_s = [], []
    for training in range(n_trainings):
        learner = HelpPredictor(
            data.pool(rows, split["train"]),
            references=np.searchsorted(rows, data.references).tolist(),
            encoder="graph" if is_graph else "one_hot",
            adjacency=decision_graph(data.space) if is_graph else None,
            option_counts=data.space.option_counts.tolist() if is_graph else None,
            n_episodes=2000 if is_graph else 4000,
            seed=training,
        )
        say(f"meta-training HELP, {training + 1} of {n_trainings}")
        started = time.perf_counter()
        learner.meta_fit(data.pool(rows, split["valid"]))
        meta_train_s.append(time.perf_counter() - started)
        for device in split["test"]:
            predict_s.append(_score_help(results, learner, data, device, n_pool, n_draws))
        means = [results.mean(f"help_jax_n{n}") for n in SAMPLE_SIZES]
        say(f"HELP so far: {means[0]:.3f} at true 10, {means[1]:.3f} at 10 + 10; {meta_train_s[-1]:.0f} s")
    return float(np.median(meta_train_s)), float(np.median(predict_s))


def _score_help(
    results: _Results, learner: HelpPredictor, data: LatencyData, device: str, n_pool: int, n_draws: int
) -> float:
    """Add a meta-trained HELP's scores on one device; seconds of predicting everything with intervals."""
    hidden = data.hidden(device)
    query = hidden.trimmed_query(n_pool)
    reference_ms = hidden.measure(data.references)
    band = hidden.band(np.arange(n_pool))
    draws = np.stack([
        np.random.default_rng([SEED, draw]).choice(band, 10, replace=False) for draw in range(n_draws)
    ])  # fmt: skip
    fits = learner.fit_many(data.X[draws], hidden.measure(draws), np.tile(reference_ms, (n_draws, 1)))
    results.add("help_jax_n20", device, [hidden.score(query, fit.predict(data.X[query])) for fit in fits])
    fit = learner.fit(data.X[data.references], reference_ms)
    results.add("help_jax_n10", device, [hidden.score(query, fit.predict(data.X[query]))])
    fit.predict_interval(data.X)
    started = time.perf_counter()
    fit.predict_interval(data.X)
    return time.perf_counter() - started


def _time_prediction(data: LatencyData, pool: SourcePool) -> float:
    """Median seconds of our predicting every architecture with intervals, three times."""
    hidden = data.hidden(pool.devices[0])
    chosen = choose_archs(pool, data.X[: len(pool.X)], 10, np.random.default_rng(SEED))
    fitted = ours(pool).fit(data.X[chosen], hidden.measure(chosen))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        fitted.predict(data.X)
        fitted.predict_interval(data.X)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


# ---- NASFLAT's tasks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    """Source and test devices of one of NASFLAT's tasks, and its published rank correlation at 20 samples."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    published: float


def _task(train: str, test: str, published: float) -> _Task:
    return _Task(tuple(train.split()), tuple(test.split()), published)


def _help_task(name: str, published: float) -> _Task:
    return _Task(HELP_SPLITS[name]["train"], HELP_SPLITS[name]["test"], published)


TASKS: dict[str, _Task] = {
    "ND": _help_task("nasbench201", 0.959),
    "NA": _task(
        "titan_rtx_1 titan_rtx_32 titanxp_1 2080ti_1 titanx_1 1080ti_1 titanx_32 titanxp_32 2080ti_32 1080ti_32 "
        "gold_6226 samsung_s7 silver_4114 gold_6240 silver_4210r samsung_a50 pixel2",
        "eyeriss gtx_1080ti_fp32 edge_tpu",
        0.893,
    ),
    "N1": _task(
        "edge_tpu eyeriss mgpu_675 mgpu_855 pixel3", "1080ti_1 titan_rtx_32 titanxp_1 2080ti_32 titan_rtx_1", 0.967
    ),
    "N2": _task(
        "1080ti_1 1080ti_32 titanx_32 titanxp_1 titanxp_32", "jetson_nano_fp16 edge_tpu mdsp_675 mdsp_855 pixel3", 0.857
    ),
    "N3": _task(
        "gtx_1080ti_fp32 jetson_nano_fp16 eyeriss mdsp_675 mgpu_855",
        "1080ti_1 2080ti_1 titanxp_1 2080ti_32 titanxp_32",
        0.962,
    ),
    "N4": _task(
        "i7_7820x jetson_nano_fp32 edge_tpu eyeriss mcpu_855 mdsp_675 mdsp_855 mgpu_675 mgpu_855 pixel2",
        "1080ti_1 2080ti_1 titan_rtx_1",
        0.959,
    ),
    "FD": _help_task("fbnet", 0.961),
    "FA": _task(
        "1080ti_1 1080ti_32 1080ti_64 2080ti_1 2080ti_32 2080ti_64 titan_rtx_1 titan_rtx_32 titan_rtx_64 "
        "titanx_1 titanx_32 titanx_64 titanxp_1 titanxp_32 titanxp_64",
        "gold_6226 essential_ph_1 samsung_s7 pixel2",
        0.577,
    ),
    "F1": _task(
        "2080ti_1 essential_ph_1 silver_4114 titan_rtx_1 titan_rtx_32",
        "eyeriss fpga raspi4 samsung_a50 samsung_s7",
        0.809,
    ),
    "F2": _task(
        "essential_ph_1 gold_6226 gold_6240 pixel3 raspi4", "1080ti_1 1080ti_32 2080ti_32 titan_rtx_1 titanxp_1", 0.871
    ),
    "F3": _task(
        "essential_ph_1 pixel2 pixel3 raspi4 samsung_s7", "1080ti_1 1080ti_32 2080ti_1 titan_rtx_1 titan_rtx_32", 0.814
    ),
    "F4": _task(
        "1080ti_64 2080ti_1 eyeriss gold_6226 gold_6240 raspi4 samsung_s7 silver_4210r titan_rtx_1 titan_rtx_32",
        "1080ti_1 pixel2 essential_ph_1",
        0.734,
    ),
}
"""Device sets of Akhauri & Abdelfattah, 2024 (arXiv:2403.02446), table of rank correlations at 20 samples."""

N_SOURCE_ARCHS = {"N": 512, "F": 800}
N_NET_DRAWS = 3
"""Draws on which the graph network is shown: it takes a hundred times as long as the others."""


def reproduce_nasflat(data: Path, n_draws: int, say: Callable[[str], None]) -> Reproduction:
    """NASFLAT's twelve tasks: all architectures are queries, the sources know a few hundred random ones.

    Tasks run side by side, one process a core.
    """
    started = time.perf_counter()
    results: dict[str, _Results] = {}
    with one_process_per_core() as workers:
        order = sorted(TASKS, key=lambda name: -len(TASKS[name].test))
        running = {name: workers.submit(_run_task, name, data, n_draws) for name in order}
        for name, future in running.items():
            results[name] = future.result()
            say(f"{name}: " + results[name].sentence())
    rows: list[Row] = []
    negative: dict[int, int] = {}
    for n in reversed(SAMPLE_SIZES):
        for name, task in TASKS.items():
            rows.append(results[name].row(f"ours_n{n}", f"{name}_n{n}", task.published if n == 20 else None))
        negative[n] = sum(r.mean(f"ours_n{n}") < r.mean(f"scratch_n{n}") for r in results.values())
    rows.append(Row("negative_transfer_tasks", None, negative[20], None, None, 20, "tasks"))
    rows.append(Row("negative_transfer_tasks_n10", None, negative[10], None, None, 10, "tasks"))
    for name in TASKS:
        rows += [replace(row, metric=f"{name}_{row.metric}") for row in results[name].rows({})]
    title = f"NASFLAT's tasks: all architectures, {n_draws} draws, mean over each task's test devices"
    return Reproduction("nasflat", title, rows, time.perf_counter() - started)


def _run_task(name: str, folder: Path, n_draws: int) -> _Results:
    task = TASKS[name]
    data = load_merged_data(folder) if name.startswith("N") else load_help_data(folder, "fbnet")
    results = _Results()
    everything = np.arange(len(data.X))
    network_draws: list[tuple[str, Indices, Indices]] = []
    first_pool: SourcePool | None = None
    for draw in range(n_draws):
        rng = np.random.default_rng([SEED, draw])
        pool = data.pool(rng.choice(everything, N_SOURCE_ARCHS[name[0]], replace=False), task.train)
        first_pool = first_pool or pool
        for device in task.test:
            hidden = data.hidden(device)
            query = hidden.can_be_measured(everything)
            for n in SAMPLE_SIZES:
                random = rng.choice(query, n, replace=False)
                chosen = query[choose_archs(pool, data.X[query], n, rng)]
                for method, make, sample in _methods(random, chosen):
                    if method == "stack":
                        continue  # a fifth of the time, and not among the published methods
                    fitted = _fit(make(pool), data, data.hidden(device), sample)
                    results.add(f"{method}_n{n}", device, [hidden.score(query, fitted.predict(data.X[query]))])
                if n == 20 and draw < N_NET_DRAWS:
                    network_draws.append((device, random, query))
            if draw == 0:
                results.add("macs_n0", device, [hidden.score(query, data.macs[query])])
    assert first_pool is not None, "there is at least one draw"
    _run_network(results, data, first_pool, network_draws)
    return results


def _run_network(
    results: _Results, data: LatencyData, pool: SourcePool, draws: Sequence[tuple[str, Indices, Indices]]
) -> None:
    """Scores of operation-wise hardware embeddings, trained on the first pool."""
    learner = OperationWisePredictor(
        pool, adjacency=decision_graph(data.space), option_counts=tuple(data.space.option_counts.tolist())
    ).meta_fit()
    samples = np.stack([sample for _, sample, _ in draws])
    costs = np.stack([data.hidden(device).measure(sample) for device, sample, _ in draws])
    for (device, _, query), fitted in zip(draws, learner.adapt_draws(data.X[samples], costs), strict=True):
        results.add("nasflat_like_n20", device, [data.hidden(device).score(query, fitted.predict(data.X[query]))])


# ---- the atlas ---------------------------------------------------------------------------------------------------


def reproduce_atlas(n_draws: int, say: Callable[[str], None]) -> Reproduction:
    """Every device of the atlas predicted from those of other runtimes; no file is needed.

    All 400 architectures but the samples are queries.
    """
    started = time.perf_counter()
    atlas = load_atlas()
    space, costs = atlas.space, atlas.costs()
    X, macs = latency_features(space, space.encode(atlas.archs)), macs_of(space, space.encode(atlas.archs))
    names = tuple(device.name for device in atlas.devices)
    runtime_of = {name: find_device(name).runtime for name in names}
    data = LatencyData(space, X, macs, costs, names, np.zeros(0, dtype=np.int64))
    everything = np.arange(len(X))
    results = _Results()
    for device in names:
        hidden = data.hidden(device)
        pool = data.pool(everything, [name for name in names if runtime_of[name] != runtime_of[device]])
        results.add("macs_n0", device, [hidden.score(everything, macs)])
        for draw in range(n_draws):
            rng = np.random.default_rng([SEED, draw])
            for n in SAMPLE_SIZES:
                random, chosen = rng.choice(everything, n, replace=False), choose_archs(pool, X, n, rng)
                for method, make, sample in _methods(random, chosen):
                    query = np.setdiff1d(everything, sample)
                    results.add(f"{method}_n{n}", device, [_score(make(pool), data, device, sample, query)])
        say(f"{device}: " + results.sentence(device))
    rows = [results.median_row(f"median_n{n}", f"ours_n{n}") for n in SAMPLE_SIZES]
    rows += results.rows({})
    rows += [results.coverage_row("coverage_90", 10), results.coverage_row("coverage_90_n20", 20)]
    title = f"Leave one runtime out of the atlas, {n_draws} draws, mean over {len(names)} devices"
    return Reproduction("atlas", title, rows, time.perf_counter() - started)


def _methods(random: Indices, chosen: Indices) -> list[tuple[str, Maker, Indices]]:
    """Name, predictor and samples of everything that learns in an instant."""
    simple = [(name, make, random) for name, make in SIMPLE.items()]
    return [*simple, ("scratch", scratch, random), ("stack", ours, random), ("ours", ours, chosen)]


# ---- results -----------------------------------------------------------------------------------------------------


class _Results:
    """Scores by method and device, one per draw."""

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, list[Score]]] = {}

    def add(self, method: str, device: str, scores: Sequence[Score]) -> None:
        self.scores.setdefault(method, {}).setdefault(device, []).extend(scores)

    def _values(self, method: str, name: str = "spearman", device: str | None = None) -> Floats:
        """Shape (devices, draws)."""
        of_devices = self.scores[method]
        chosen = list(of_devices.values()) if device is None else [of_devices[device]]
        return np.array([[getattr(score, name) for score in scores] for scores in chosen])

    def mean(self, method: str, name: str = "spearman", device: str | None = None) -> float:
        return float(self._values(method, name, device).mean())

    def worst(self, method: str) -> float:
        return float(self._values(method).min())

    def median_row(self, metric: str, method: str) -> Row:
        """The median over devices of the mean over draws, and the device that is ranked worst."""
        of_devices = self._values(method).mean(axis=1)
        n = int(method.rpartition("_n")[2])
        return Row(metric, None, float(np.median(of_devices)), None, float(of_devices.min()), n, "spearman")

    def coverage_row(self, metric: str, n: int) -> Row:
        """What our 90 % intervals hold: mean, spread over draws, and the device that is covered least."""
        values = self._values(f"ours_n{n}", "coverage")
        least = float(values.mean(axis=1).min())
        return Row(metric, None, float(values.mean()), float(values.mean(axis=0).std()), least, n, "share")

    def row(self, method: str, metric: str, published: float | None) -> Row:
        values = self._values(method)
        return Row(
            metric, published, float(values.mean()), float(values.mean(axis=0).std()), float(values.min()),
            int(method.rpartition("_n")[2]), "spearman",
        )  # fmt: skip

    def rows(self, published: Mapping[str, float]) -> list[Row]:
        """A row per method, then the other figures of ours, then ours per device."""
        rows = [self.row(method, method, published.get(method)) for method in sorted(self.scores)]
        for n in SAMPLE_SIZES:
            method = f"ours_n{n}"
            for name in ("mape", "median_error", "within_5_percent", "within_10_percent"):
                values = self._values(method, name)
                worst = values.max() if name in ("mape", "median_error") else values.min()
                spread = float(values.mean(axis=0).std())
                rows.append(Row(f"{name}_n{n}", None, float(values.mean()), spread, float(worst), n, "share"))
            for device in self.scores[method]:
                of_device = self._values(method, device=device)
                figures = float(of_device.mean()), float(of_device.std()), float(of_device.min())
                rows.append(Row(f"{method}_{device}", None, *figures, n, "spearman"))
        return rows

    def sentence(self, device: str | None = None) -> str:
        """Means of all methods, in words."""
        return ", ".join(f"{method} {self.mean(method, device=device):.3f}" for method in sorted(self.scores))
