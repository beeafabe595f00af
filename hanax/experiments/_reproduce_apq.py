"""`hanax reproduce apq-transfer`: accuracies of quantized subnets from few of them, with and without transfer.

The accuracies are of our own supernet (that of ``quantized_cifar10.yaml``, see ``_quantized_supernet.py``), as the
data of APQ (Wang et al., 2020, arXiv:2006.08509) were never released. `FLOAT_TABLE` and `QUANTIZED_TABLE` come with
Hanax: 600 of its subnets in float32, before the quantization-aware phase, on 4,000 validation images; and 600 pairs of
subnet and policy after it, with 4, 6 or 8 bits for the weights and 6 or 8 for the activations of each block, on 2,000.
Batch norms and ranges (``minmax``) are calibrated on 500 training images. Both were written by `collect_accuracy`, for
architectures drawn with the seed ``[1, 10]``; such tables are what ``hanax collect accuracy RUN`` writes, without and
with ``--quant``.

Shapes: `n` networks, `f` features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.base import clone

from hanax.experiments._frames import read_frame
from hanax.experiments._latency_benchmark import Floats, Indices, spearman
from hanax.experiments._reproduction import Reproduction, Row
from hanax.predictors import (
    AccuracyPredictor,
    QuantizedAccuracyPredictor,
    accuracy_feature_groups,
    accuracy_features,
    quantized_feature_groups,
    quantized_features,
)
from hanax.search_spaces import Arch, SearchSpace, float_space, mobilenet_v3, quantized_space

FLOAT_TABLE = Path(__file__).with_name("float_accuracies.parquet")
QUANTIZED_TABLE = Path(__file__).with_name("quantized_accuracies.parquet")

N_DRAWS = 5
SAMPLE_SIZES = (25, 50, 100, 200, 400)
TIMES = 3
"""As many more samples may learning from scratch have."""
PROCESS_SIZES = (25, 50, 100)
"""Samples of the Gaussian processes beside."""
N_TEST = 200
COVERAGE = 0.9
SEED = 1


@dataclass(frozen=True, eq=False)
class TransferData:
    """Accuracies of unquantized and of quantized networks.

    Attributes:
        space: Of the quantized networks; `float_space` of it is that of the others.
        float_codes: Shape (n, d).
        float_accuracy: In percent, shape (n,).
        codes: In the order in which they were drawn at random; the last `N_TEST` are for testing. Shape (m, e).
        accuracy: In percent, shape (m,).
    """

    space: SearchSpace
    float_codes: np.ndarray
    float_accuracy: Floats
    codes: np.ndarray
    accuracy: Floats


def cifar10_space() -> SearchSpace:
    """The search space of ``quantized_cifar10.yaml`` for its images, number formats among its decisions."""
    space = mobilenet_v3(
        resolutions=(32,), n_classes=10, expand_ratios=(1, 3, 6), depths=(1, 2, 3), stem_width=16, stem_stride=2,
        stage_widths=(24, 48, 96), stage_strides=(2, 1, 2), stage_activations=("relu", "hswish", "hswish"),
        stage_squeeze_excite=(False, True, True), head_width=288, feature_width=384,
    )  # fmt: skip
    return quantized_space(space, weights=("int4", "int6", "int8"), activations=("int6", "int8"))


def load_tables(float_table: Path = FLOAT_TABLE, quantized_table: Path = QUANTIZED_TABLE) -> TransferData:
    """The two tables, of `hanax collect accuracy` without and with ``--quant``.

    Raises:
        FileNotFoundError: One is not there.
        SpaceMismatchError: One is of another space.
        ValueError: There are no more than `N_TEST` quantized networks.
    """
    space = cifar10_space()

    def read(path: Path, of: SearchSpace) -> tuple[np.ndarray, Floats]:
        frame, _ = read_frame(path, of)
        codes = of.encode([Arch.parse(text) for text in frame["arch"]])
        return of.canonical(codes), 100.0 * frame["accuracy"].to_numpy(dtype=np.float64)

    data = TransferData(space, *read(float_table, float_space(space)), *read(quantized_table, space))
    if len(data.accuracy) < N_TEST + SAMPLE_SIZES[0]:
        raise ValueError(
            f"{quantized_table} has {len(data.accuracy)} networks; {N_TEST} are for testing and at least "
            f"{SAMPLE_SIZES[0]} to learn from"
        )
    return data


def reproduce_apq(load: Callable[[], TransferData], n_draws: int, say: Callable[[str], None]) -> Reproduction:
    """Predict the accuracies of quantized networks that were held out; scores are means over the draws.

    Rows ``transfer_N`` and ``scratch_N``, for `SAMPLE_SIZES` and `TIMES` as many, are rank correlations.
    """
    started = time.perf_counter()
    data = load()
    learners = _Learners.of(data)
    pool, test = np.arange(len(data.accuracy) - N_TEST), np.arange(len(data.accuracy))[-N_TEST:]
    results = _Results()
    for draw in range(n_draws):
        learners.start(draw)
        results.add("float", _scores(learners.predict_float(test), data.accuracy[test]))
        order = np.random.default_rng([SEED, draw]).permutation(pool)
        for method, n in _fits(len(pool)):
            results.add(f"{method}_{n}", learners.scores(method, order[:n], test))
        say(f"draw {draw + 1} of {n_draws}: {results.sentence()}")
    title = (
        f"Accuracy of {N_TEST} quantized subnets from few others, with {len(data.float_accuracy)} that are not "
        f"quantized and without, {n_draws} draws"
    )
    return Reproduction("apq-transfer", title, results.rows(), time.perf_counter() - started)


def _fits(n_pool: int) -> Iterator[tuple[str, int]]:
    """Every method with every number of samples there are."""
    several = sorted({*SAMPLE_SIZES, *(TIMES * n for n in SAMPLE_SIZES)})
    sizes = {
        "transfer": SAMPLE_SIZES,
        "scratch": several,
        "process_transfer": PROCESS_SIZES,
        "process_scratch": PROCESS_SIZES,
    }
    for method, wanted in sizes.items():
        for n in wanted:
            if n <= n_pool:
                yield method, n


@dataclass(eq=False)
class _Learners:
    """The methods: networks with and without transfer, and Gaussian processes with and without the network's word.

    Attributes:
        features: Of the quantized networks for the networks, shape (n, f).
        process_features: The same for the Gaussian processes.
    """

    data: TransferData
    features: Floats
    float_features: Floats
    process_features: Floats
    pretrained: Any = None
    said: Any = None

    @staticmethod
    def of(data: TransferData) -> _Learners:
        return _Learners(
            data,
            quantized_features(data.space, data.codes),
            quantized_features(float_space(data.space), data.float_codes),
            accuracy_features(data.space, data.codes),
        )

    def start(self, draw: int) -> None:
        """Teach the networks of a draw the unquantized accuracies."""
        groups = quantized_feature_groups(self.data.space)
        self.pretrained = QuantizedAccuracyPredictor(groups, seed=draw)
        self.pretrained.pretrain(self.float_features, self.data.float_accuracy)
        said = self.pretrained.predict_float(self.features[:, slice(*groups["architecture"])])
        self.said = (said - said.mean()) / said.std()

    def predict_float(self, rows: Indices) -> Floats:
        """What the networks say of unquantized ones with the architectures of `rows`, in standard deviations."""
        return np.asarray(self.said[rows])

    def scores(self, method: str, sample: Indices, test: Indices) -> dict[str, float]:
        """How well `method` predicts `test` from `sample`."""
        predictor: Any
        if method in ("transfer", "scratch"):
            features = self.features
            groups, seed = self.pretrained.groups, self.pretrained.seed
            is_transfer = method == "transfer"
            predictor = clone(self.pretrained) if is_transfer else QuantizedAccuracyPredictor(groups, seed=seed)
        else:
            features, groups = self.process_features, dict(accuracy_feature_groups(self.data.space))
            if method == "process_transfer":
                n_columns = features.shape[1]
                features = np.column_stack([features, self.said])
                groups["float"] = (n_columns, n_columns + 1)
            predictor = AccuracyPredictor(groups)
        accuracy = self.data.accuracy
        started = time.perf_counter()
        predictor.fit(features[sample], accuracy[sample])
        fit_s = time.perf_counter() - started
        predicted = predictor.predict(features[test])
        lower, upper = predictor.predict_interval(features[test], COVERAGE)
        return _scores(predicted, accuracy[test]) | {
            "mae": float(np.abs(predicted - accuracy[test]).mean()),
            "coverage_90": float(np.mean((lower <= accuracy[test]) & (accuracy[test] <= upper))),
            "fit_s": fit_s,
        }


def _scores(predicted: Floats, truth: Floats) -> dict[str, float]:
    """Rank correlation, and the share of pairs that are predicted in their order; ties count half."""
    rank = spearman(predicted, truth)
    tau = float(kendalltau(predicted, truth, variant="b").statistic) if np.ptp(predicted) > 0 else 0.0
    return {"spearman": rank, "pairwise": 0.5 + 0.5 * tau}


UNITS = {"spearman": "spearman", "pairwise": "share", "mae": "points", "coverage_90": "share", "fit_s": "s"}
GROWS_WORSE = ("mae", "fit_s")


class _Results:
    """Scores by method and number of samples, one per draw."""

    def __init__(self) -> None:
        self._scores: dict[str, list[dict[str, float]]] = {}

    def add(self, method: str, scores: dict[str, float]) -> None:
        self._scores.setdefault(method, []).append(scores)

    def rows(self) -> list[Row]:
        """Rank correlations under plain names, then the other scores."""
        names = sorted(next(iter(reversed(self._scores.values())))[0], key=list(UNITS).index)
        return [
            self._row(score, method) for score in names for method in self._scores if score in self._scores[method][0]
        ]

    def _row(self, score: str, method: str) -> Row:
        values = np.array([scores[score] for scores in self._scores[method]])
        worst = values.max() if score in GROWS_WORSE else values.min()
        name = method if score == "spearman" else f"{method}_{score}"
        n = 0 if method == "float" else int(method.rpartition("_")[2])
        return Row(name, None, float(values.mean()), float(values.std()), float(worst), n, UNITS[score])

    def sentence(self) -> str:
        """Mean rank correlations so far."""
        means = {name: np.mean([scores["spearman"] for scores in draws]) for name, draws in self._scores.items()}
        return ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
