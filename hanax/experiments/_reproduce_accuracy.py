"""`hanax reproduce ofa-accuracy|macro-accuracy`: the accuracy of all networks from fifty, simple methods and ours.

Shapes: `n` networks, `d` decisions, `f` features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neural_network import MLPRegressor

from hanax.devices.public import find_source, import_source
from hanax.experiments._latency_benchmark import Floats, Indices, spearman
from hanax.experiments._reproduction import Reproduction, Row
from hanax.predictors import (
    AccuracyPredictor,
    RidgePredictor,
    accuracy_feature_groups,
    accuracy_features,
    choose_archs,
    latency_feature_groups,
    latency_features,
    predictor_features,
)
from hanax.search_spaces import SearchSpace, mobilenet_v3, nas_bench_macro, nas_bench_macro_codes

N_DRAWS = 20
SAMPLE_SIZES = (50, 100, 200)
COVERAGE = 0.9
SEED = 1

TOP_SHARE = 0.1
"""The best networks, for which accuracies matter most."""

HIDDEN_LAYERS = (400, 400, 400)
N_NETS = 3
N_STEPS = 150
"""Of Adam on all samples at once: training errors are far below test errors by then."""


@dataclass(frozen=True, eq=False)
class AccuracyData:
    """Networks of one space and their accuracies.

    Attributes:
        accuracy: In percent, shape (n,).
        half_seed: Splits the networks into the half that the predictor was developed on and the other one.
    """

    space: SearchSpace
    codes: np.ndarray
    accuracy: Floats
    half_seed: int

    def unseen_half(self) -> Indices:
        """The networks that were not looked at while the predictor was developed."""
        n = len(self.accuracy)
        return np.sort(np.random.default_rng(self.half_seed).permutation(n)[n // 2 :])


def load_ofa(folder: Path) -> AccuracyData:
    """DyNAS-T's evaluations of Once-for-All subnets, from the folder ``dynas-t`` of the public files.

    Networks that were evaluated more than once, which differs by about 0.01 points, have their mean.

    Raises:
        PublicDataError: The files are not there or not DyNAS-T's.
    """
    (table,) = import_source(find_source("dynas-t"), folder / "dynas-t").tables
    first = table.frame.drop_duplicates("arch").sort_values("arch")
    accuracy = table.frame.groupby("arch")["top1"].mean()[first["arch"]].to_numpy(dtype=np.float64)
    return AccuracyData(mobilenet_v3(resolutions=(224,)), table.codes()[first.index], accuracy, 777)


def load_macro(folder: Path) -> AccuracyData:
    """NAS-Bench-Macro, from the folder ``nas-bench-macro`` of the public files: means over three trainings.

    Raises:
        PublicDataError: The file is not there or not as it should be.
    """
    (table,) = import_source(find_source("nas-bench-macro"), folder / "nas-bench-macro").tables
    return AccuracyData(
        nas_bench_macro(), nas_bench_macro_codes(table.codes()), table.frame["accuracy"].to_numpy(dtype=np.float64), 778
    )


class MlpEnsemble:
    """The mean of a few networks with Once-for-All's layers (Cai et al., 2020, arXiv:1908.09791) on one-hot options."""

    def fit(self, X: Floats, y: Floats) -> MlpEnsemble:
        """Train every network on all samples; returns self."""
        self.mean_, self.spread_ = float(y.mean()), float(y.std())
        inputs, targets = X.astype(np.float32), ((y - self.mean_) / self.spread_).astype(np.float32)
        self.nets_ = []
        for seed in range(N_NETS):
            net = MLPRegressor(hidden_layer_sizes=HIDDEN_LAYERS, batch_size=len(y), random_state=seed)
            for _ in range(N_STEPS):
                net.partial_fit(inputs, targets)
            self.nets_.append(net)
        return self

    def predict(self, X: Floats) -> Floats:
        """Predicted accuracy of every row."""
        inputs = X.astype(np.float32)
        predicted = np.mean([net.predict(inputs) for net in self.nets_], axis=0)
        return np.asarray(self.mean_ + self.spread_ * predicted, dtype=np.float64)


def reproduce_accuracy(
    name: str, load: Callable[[Path], AccuracyData], data: Path, n_draws: int, say: Callable[[str], None]
) -> Reproduction:
    """Predict all other networks from a few of them, drawn at random; scores are means over the draws."""
    started = time.perf_counter()
    say("reading the networks")
    everything = load(data)
    methods = _methods(everything)
    rows = np.arange(len(everything.accuracy))
    results = _Results()
    for n in SAMPLE_SIZES:
        for sample in _draws(rows, n, n_draws):
            for method, (features, make) in methods.items():
                if method != "mlp" or n == SAMPLE_SIZES[0]:
                    results.add(f"{method}_{n}", _score(make(), features, everything, sample, rows))
        say(f"{n} samples: {results.sentence(n)}")
    n = SAMPLE_SIZES[0]
    features, make = methods["ours"]
    chosen_from = latency_features(everything.space, everything.codes)
    groups = latency_feature_groups(everything.space)
    for draw in range(n_draws):
        sample = choose_archs(None, chosen_from, n, np.random.default_rng([SEED, draw]), groups)
        results.add(f"chosen_{n}", _score(make(), features, everything, sample, rows))
    unseen = everything.unseen_half()
    for sample in _draws(unseen, n, n_draws):
        for method in ("ours", "ridge"):
            features, make = methods[method]
            results.add(f"unseen_half_{method}_{n}", _score(make(), features, everything, sample, unseen))
    title = f"Accuracy of {len(rows)} networks of {everything.space.name} from few random ones, {n_draws} draws"
    return Reproduction(name, title, _rows(results, methods), time.perf_counter() - started)


def _methods(data: AccuracyData) -> dict[str, tuple[Floats, Callable[[], Any]]]:
    """Features of all networks, and a predictor, of each method."""
    options = data.space.one_hot(data.codes)
    groups = accuracy_feature_groups(data.space)
    return {
        "ours": (accuracy_features(data.space, data.codes), lambda: AccuracyPredictor(groups)),
        "ridge": (options, RidgePredictor),
        "ridge_features": (predictor_features(data.space, data.codes), RidgePredictor),
        "mlp": (options, MlpEnsemble),
    }


def _draws(rows: Indices, n: int, n_draws: int) -> Iterator[Indices]:
    """Random samples of `rows`; a larger one contains the smaller ones of the same draw."""
    for draw in range(n_draws):
        yield np.random.default_rng([SEED, draw]).permutation(rows)[:n]


def _score(predictor: Any, features: Floats, data: AccuracyData, sample: Indices, rows: Indices) -> dict[str, float]:
    """Scores on those of `rows` that are not in `sample`, which `predictor` learns from."""
    rest = np.setdiff1d(rows, sample)
    truth = data.accuracy[rest]
    started = time.perf_counter()
    fitted = predictor.fit(features[sample], data.accuracy[sample])
    fit_s = time.perf_counter() - started
    predicted = fitted.predict(features[rest])
    error = np.abs(predicted - truth)
    best = truth >= np.quantile(truth, 1.0 - TOP_SHARE)
    scores = {
        "mae": float(error.mean()),
        "spearman": spearman(predicted, truth),
        "top_mae": float(error[best].mean()),
        "fit_s": fit_s,
    }
    if hasattr(fitted, "predict_interval"):
        lower, upper = fitted.predict_interval(features[rest], COVERAGE)
        holds = (lower <= truth) & (truth <= upper)
        scores |= {"coverage": float(holds.mean()), "top_coverage": float(holds[best].mean())}
    return scores


UNITS = {
    "mae": "points", "spearman": "spearman", "top_mae": "points", "coverage": "share", "top_coverage": "share",
    "fit_s": "s",
}  # fmt: skip
GROWS_BETTER = ("spearman", "coverage", "top_coverage")


def _rows(results: _Results, methods: Mapping[str, object]) -> list[Row]:
    """Ours first, under plain names, then the other methods, then other samples."""
    rows = []
    for n in SAMPLE_SIZES:
        rows += [
            results.row("mae", f"ours_{n}", f"mae_{n}"),
            results.row("spearman", f"ours_{n}", f"spearman_{n}"),
            results.row("coverage", f"ours_{n}", f"coverage_90_{n}"),
            results.row("top_mae", f"ours_{n}", f"top_mae_{n}"),
            results.row("top_coverage", f"ours_{n}", f"top_coverage_90_{n}"),
            results.row("fit_s", f"ours_{n}", f"fit_s_{n}"),
        ]
    n = SAMPLE_SIZES[0]
    others = [(method, size) for method in methods if method != "ours" for size in SAMPLE_SIZES]
    others += [("chosen", n), ("unseen_half_ours", n), ("unseen_half_ridge", n)]
    for method, size in others:
        for score, shown in (("mae", "mae"), ("spearman", "spearman"), ("coverage", "coverage_90")):
            if results.has(f"{method}_{size}", score):
                rows.append(results.row(score, f"{method}_{size}", f"{method}_{shown}_{size}"))
    return rows


class _Results:
    """Scores by method and number of samples, one per draw."""

    def __init__(self) -> None:
        self._scores: dict[str, list[dict[str, float]]] = {}

    def add(self, method: str, scores: dict[str, float]) -> None:
        self._scores.setdefault(method, []).append(scores)

    def has(self, method: str, score: str) -> bool:
        return method in self._scores and score in self._scores[method][0]

    def row(self, score: str, method: str, metric: str) -> Row:
        values = np.array([scores[score] for scores in self._scores[method]])
        worst = values.min() if score in GROWS_BETTER else values.max()
        n = int(method.rpartition("_")[2])
        return Row(metric, None, float(values.mean()), float(values.std()), float(worst), n, UNITS[score])

    def sentence(self, n: int) -> str:
        """Errors and rank correlations of all methods with `n` samples, in words."""
        parts = []
        for method in self._scores:
            if method.endswith(f"_{n}"):
                error, rank = self.row("mae", method, ""), self.row("spearman", method, "")
                parts.append(f"{method.rpartition('_')[0]} {error.ours:.3f} points, {rank.ours:.3f}")
        return "; ".join(parts)
