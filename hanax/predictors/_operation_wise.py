"""Latency on a new device from a few measurements, with embeddings of hardware in every operation of a graph network.

After NASFLAT (Akhauri & Abdelfattah, 2024, arXiv:2403.02446).

Shapes: `m` source devices, `n` samples, `f` features, `d` decisions, `w` weights, `h` numbers that describe a device.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import _rank
from hanax.predictors._source_pool import SourcePool

if TYPE_CHECKING:
    from hanax.predictors._operation_net import Arrays, Inputs, NetSize

OPTIONS_GROUP = "options"
OPERATION_SIZE, HARDWARE_SIZE = 48, 48
HIDDEN_WIDTHS = (200, 200, 200)


class OperationWisePredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Ranks architectures by a graph network in which each operation knows the device, and scales the ranks to costs.

    `meta_fit` learns one network and an embedding per source device from the pool, with a pairwise ranking loss. `fit`
    starts the new device at the embedding of the source device that orders the samples most alike, and trains all
    weights on the samples. A straight line from scores to logarithms of costs gives the unit of `y`.

    Differences from the paper: the graph-free features are those of the space, not zero-cost proxies. How alike a
    source device orders the samples is seen from its predictions, so that the samples need not be in the pool. When to
    stop is decided by fits that leave samples out, since training on samples harms where a source device is like the
    new one (a rank correlation of .965 falls to .95) and is all that helps where none is (.74 rises to .97). The width,
    128 there, and the number of steps are smaller.

    Args:
        pool: What is known of source devices; not changed.
        adjacency: Shape (d + 2, d + 2), True where the row's vertex feeds the column's: input, decisions, output. A
            chain of the decisions, if None.
        option_counts: Options of each decision, in the order of the columns of the group ``options``; all alike, if
            None.
        feature_groups: Groups of columns that enter behind the graph network.
        n_epochs: Passes over the architectures of the pool. In every step `devices_per_step` devices learn, each from
            `batch_size` architectures.
        width, n_layers: Channels and layers of the graph network.
        learning_rate: Of `meta_fit`, falling along a cosine.
        adapt_steps, adapt_learning_rate: Of `fit`, over all samples at once; a multiple of 5 steps.
        folds: Fits that each leave out a part of the samples, to choose how many of `adapt_steps` are made and for the
            residuals of `predict_interval`; at most one per sample. With 0, all steps are made.
        seed: Of the weights and the batches.

    Attributes:
        meta_weights_, device_embeddings_: What `meta_fit` learned, shapes (w,) and (m, h).
        meta_losses_: Ranking loss of its every step.
        feature_mean_, feature_scale_: Of the columns that enter behind the graph network, over the pool.
        source_, steps_: Index of the source device from which the new one started, and steps made from there.
        weights_, embedding_: The network of the new device, shapes (w,) and (h,).
        intercept_, slope_: Of the logarithm of the cost as a function of the score.
        held_out_residuals_: Logarithm of measured over predicted cost by the fits that left the sample out, shape (n,),
            or (0,) without `folds`.
    """

    meta_weights_: Arrays
    device_embeddings_: Arrays
    meta_losses_: Arrays
    feature_mean_: Floats
    feature_scale_: Floats
    source_: int
    steps_: int
    weights_: Arrays
    embedding_: Arrays
    intercept_: float
    slope_: float
    held_out_residuals_: Floats

    def __init__(
        self,
        pool: SourcePool,
        *,
        adjacency: NDArray[np.bool_] | None = None,
        option_counts: Sequence[int] | None = None,
        feature_groups: tuple[str, ...] = ("work", "counts"),
        n_epochs: int = 20,
        batch_size: int = 64,
        devices_per_step: int = 4,
        width: int = 64,
        n_layers: int = 3,
        learning_rate: float = 2e-3,
        adapt_steps: int = 20,
        adapt_learning_rate: float = 1e-3,
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        self.pool = pool
        self.adjacency = adjacency
        self.option_counts = option_counts
        self.feature_groups = feature_groups
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.devices_per_step = devices_per_step
        self.width = width
        self.n_layers = n_layers
        self.learning_rate = learning_rate
        self.adapt_steps = adapt_steps
        self.adapt_learning_rate = adapt_learning_rate
        self.folds = folds
        self.seed = seed

    # ---- learning ------------------------------------------------------------------------------------------------

    def meta_fit(self) -> OperationWisePredictor:
        """Learn from the source devices; returns self. Done once for all new devices.

        Raises:
            ValueError: The pool has no devices, lacks a group of columns, or does not fit `adjacency` or
                `option_counts`.
        """
        from hanax.predictors import _operation_net as net

        columns = self.pool.X[:, self._feature_columns()]
        self.feature_mean_, spread = columns.mean(axis=0), columns.std(axis=0)
        self.feature_scale_ = np.where(spread > 1e-9 * np.maximum(np.abs(self.feature_mean_), 1.0), spread, 1.0)
        inputs, size, incoming = self._inputs(self.pool.X), self._net_size(), self._incoming()
        measured = [np.flatnonzero(np.isfinite(column)) for column in self.pool.costs.T]
        if not measured:
            raise ValueError("the pool has no devices; an operation-wise predictor learns from at least one")
        rng = np.random.default_rng(self.seed)
        weights = net.initial_weights(size, rng)
        # Filled up, so that pools of different numbers of devices run the same program; the rest is never drawn.
        n_rows = 32 * -(-len(measured) // 32)
        devices = rng.normal(size=(n_rows, HARDWARE_SIZE)).astype(np.float32)
        costs = np.zeros((len(self.pool.X), n_rows), dtype=np.float32)
        costs[:, : len(measured)] = np.log(np.nan_to_num(self.pool.costs, nan=1.0))
        n_steps = self.n_epochs * -(-len(self.pool.X) // self.batch_size)
        picked, rows = _batches(rng, measured, n_steps, self.devices_per_step, self.batch_size)
        learned = net.meta_train(
            size, self.learning_rate, weights, devices, incoming, inputs.choices, inputs.features, costs, picked, rows
        )
        self.meta_weights_, devices, self.meta_losses_ = (np.asarray(array) for array in learned)
        self.device_embeddings_ = devices[: len(measured)]
        return self

    def fit(self, X: ArrayLike, y: ArrayLike) -> OperationWisePredictor:
        """Adapt to a new device from features `X`, shape (n, f), and its measured costs `y`, shape (n,); returns self.

        Learns from the source devices first, unless `meta_fit` has. Settings that were changed since then take effect
        with the next `meta_fit`.

        Raises:
            ValueError: `X` has not the columns of the pool, a cost is not above 0, or `meta_fit` refuses the pool.
        """
        features, costs = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        if features.shape[1] != self.pool.X.shape[1]:
            raise ValueError(
                f"X has {features.shape[1]} columns; the architectures of the pool have {self.pool.X.shape[1]}"
            )
        if costs.min() <= 0:
            raise ValueError(f"costs must be above 0; the least of {len(costs)} is {costs.min()}")
        if not hasattr(self, "meta_weights_"):
            self.meta_fit()
        self._adapt(features, np.log(costs))
        return self

    def adapt_draws(self, X: ArrayLike, y: ArrayLike) -> list[OperationWisePredictor]:
        """One fitted predictor for each draw of samples, all from one `meta_fit` and one compiled program.

        Args:
            X: Features, shape (draws, n, f).
            y: Measured costs, shape (draws, n), of one device or of different ones.

        Raises:
            ValueError: As `fit`, or shapes that do not belong together.
        """
        features, costs = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
        if features.ndim != 3 or costs.shape != features.shape[:2]:
            raise ValueError(
                f"draws need X of shape (draws, n, f) and y of shape (draws, n); got {features.shape}, {costs.shape}"
            )
        if not hasattr(self, "meta_weights_"):
            self.meta_fit()
        return [copy.copy(self).fit(*draw) for draw in zip(features, costs, strict=True)]

    def _adapt(self, features: Floats, log_costs: Floats) -> None:
        from hanax.predictors import _operation_net as net

        if self.adapt_steps < 0 or self.adapt_steps % net.STEPS_BETWEEN_STOPS:
            raise ValueError(f"adapt_steps is a multiple of {net.STEPS_BETWEEN_STOPS}, or 0; got {self.adapt_steps}")
        inputs, size, incoming = self._inputs(features), self._net_size(), self._incoming()
        keep = _kept(len(log_costs), self.folds, np.random.default_rng(self.seed))
        by_source = self._source_scores(features)
        starts = [_most_alike(by_source[:, kept], log_costs[kept]) for kept in keep]
        stops = net.adapt(
            size,
            self.adapt_learning_rate,
            self.adapt_steps // net.STEPS_BETWEEN_STOPS,
            self.meta_weights_,
            incoming,
            inputs.choices,
            inputs.features,
            log_costs.astype(np.float32),
            keep,
            self.device_embeddings_[starts],
        )
        weights, devices, scores = (np.asarray(array) for array in stops)
        stop = _best_stop(scores[1:], log_costs, keep[1:])
        lines = [_line(trial[stop][kept], log_costs[kept]) for trial, kept in zip(scores, keep, strict=True)]
        self.source_, self.steps_ = starts[0], stop * net.STEPS_BETWEEN_STOPS
        self.weights_, self.embedding_ = weights[0, stop].copy(), devices[0, stop].copy()
        self.intercept_, self.slope_ = lines[0]
        residuals = np.empty(len(log_costs) if len(keep) > 1 else 0)
        for kept, (intercept, slope), trial in zip(keep[1:], lines[1:], scores[1:], strict=True):
            residuals[~kept] = log_costs[~kept] - intercept - slope * trial[stop][~kept]
        self.held_out_residuals_ = residuals

    def _source_scores(self, features: Floats) -> Floats:
        """What the network of the pool scores `features`, shape (n, f), on every source device, shape (m, n)."""
        from hanax.predictors import _operation_net as net

        m, n = len(self.device_embeddings_), len(features)
        inputs = self._inputs(features)[np.tile(np.arange(n), m)]
        devices = np.repeat(self.device_embeddings_, n, axis=0)
        scores = net.score(self._net_size(), self.meta_weights_, self._incoming(), inputs, devices)
        return scores.reshape(m, n).astype(np.float64)

    # ---- predicting ----------------------------------------------------------------------------------------------

    def predict(self, X: ArrayLike) -> Floats:
        """Predicted cost of each row of `X`, in the unit of the `y` of `fit`."""
        return np.exp(self._log_cost(X))

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds for one new measurement at each row of `X`, in the unit of `y`.

        The prediction times, and over, the ``ceil((n + 1) * coverage)``-th of the `n` ratios by which the fits that
        left a sample out miss it; infinite where `n` is too small to promise `coverage`. These fits know fewer samples,
        so the bounds are rather too wide. Unlike jackknife+ they carry no guarantee: only one fit predicts new rows.

        Raises:
            ValueError: `coverage` is not between 0 and 1, or `folds` is 0.
        """
        log_costs = self._log_cost(X)
        n = len(self.held_out_residuals_)
        if n == 0:
            raise ValueError(f"intervals need fits that leave samples out; folds is {self.folds}, use 5")
        rank = _rank(n, coverage)
        spread = np.inf if rank > n else np.sort(np.abs(self.held_out_residuals_))[rank - 1]
        return np.exp(log_costs - spread), np.exp(log_costs + spread)

    def _log_cost(self, X: ArrayLike) -> Floats:
        from hanax.predictors import _operation_net as net

        check_is_fitted(self, "weights_")
        inputs = self._inputs(validate_data(self, X, dtype=np.float64, reset=False))
        device = np.broadcast_to(self.embedding_, (len(inputs), HARDWARE_SIZE))
        scores = net.score(self._net_size(), self.weights_, self._incoming(), inputs, device)
        return np.asarray(self.intercept_ + self.slope_ * scores.astype(np.float64))

    # ---- how the network sees architectures ----------------------------------------------------------------------

    def _inputs(self, X: Floats) -> Inputs:
        from hanax.predictors._operation_net import Inputs

        start, stop = self._group(OPTIONS_GROUP)
        counts = self._option_counts()
        padded = np.pad(X[:, start:stop].astype(np.float32), ((0, 0), (0, 1)))
        column = np.full((len(counts), max(counts)), stop - start)  # the column of zeros
        for decision, first in enumerate(itertools.accumulate(counts[:-1], initial=0)):
            column[decision, : counts[decision]] = first + np.arange(counts[decision])
        taken = padded[:, column]
        if not np.all(taken.sum(axis=2) < 1.5):
            raise ValueError(f"a decision takes two options at once; option_counts {counts} are not those of X")
        choices = np.zeros((len(X), len(counts) + 2, max(counts)), dtype=np.float32)
        choices[:, 1:-1] = taken
        choices[:, [0, -1], 0] = 1.0
        features = (X[:, self._feature_columns()] - self.feature_mean_) / self.feature_scale_
        return Inputs(choices, features.astype(np.float32))

    def _net_size(self) -> NetSize:
        from hanax.predictors._operation_net import NetSize

        counts = self._option_counts()
        return NetSize(
            vertices=len(counts) + 2,
            options=max(counts),
            features=len(self._feature_columns()),
            operation=OPERATION_SIZE,
            hardware=HARDWARE_SIZE,
            width=self.width,
            layers=self.n_layers,
            hidden=HIDDEN_WIDTHS,
        )

    def _option_counts(self) -> tuple[int, ...]:
        start, stop = self._group(OPTIONS_GROUP)
        counts = self.option_counts
        if counts is None:
            if self.adjacency is None:
                raise ValueError("adjacency and option_counts are both None; one of them must say how many decisions")
            n = len(self.adjacency) - 2
            counts = (max((stop - start) // max(n, 1), 1),) * n
        if sum(counts) != stop - start or min(counts, default=0) < 1:
            raise ValueError(f"the options of the pool are {stop - start} columns; option_counts are {tuple(counts)}")
        return tuple(int(count) for count in counts)

    def _incoming(self) -> Arrays:
        from hanax.predictors._operation_net import incoming_edges

        v = len(self._option_counts()) + 2
        if self.adjacency is None:
            return incoming_edges(np.eye(v, k=1, dtype=bool))
        adjacency = np.asarray(self.adjacency, dtype=bool)
        if adjacency.shape != (v, v):
            raise ValueError(f"{v - 2} decisions need an adjacency of shape {(v, v)}; got {adjacency.shape}")
        if adjacency[:, 0].any() or adjacency[-1].any():
            raise ValueError("adjacency feeds the input or is fed by the output: rows must feed columns")
        return incoming_edges(adjacency)

    def _feature_columns(self) -> NDArray[np.intp]:
        groups = [np.arange(*self._group(name)) for name in self.feature_groups]
        return np.concatenate([np.empty(0, dtype=np.intp), *groups])

    def _group(self, name: str) -> tuple[int, int]:
        if name not in self.pool.groups:
            raise ValueError(f"the pool has no group of columns {name!r}; it has {', '.join(self.pool.groups)}")
        return self.pool.groups[name]


def _batches(
    rng: np.random.Generator, measured: Sequence[NDArray[np.intp]], n_steps: int, n_devices: int, batch_size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Devices of each step, shape (steps, s), and the architectures of each, shape (steps, s, b), all equally often."""
    picked = _rounds(rng, np.arange(len(measured)), n_steps * n_devices).reshape(n_steps, n_devices)
    rows = np.empty((n_steps, n_devices, batch_size), dtype=np.int32)
    for device, known in enumerate(measured):
        places = picked == device
        rows[places] = _rounds(rng, known, int(places.sum()) * batch_size).reshape(-1, batch_size)
    return picked.astype(np.int32), rows


def _rounds(rng: np.random.Generator, values: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """`n` of `values`: all of them in random order, again and again."""
    shuffled = [rng.permutation(values) for _ in range(-(-n // len(values)))]
    return np.concatenate([values[:0], *shuffled])[:n]


def _kept(n: int, folds: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Samples that each fit learns from, shape (1 + folds, n): the first from all, the others not from their fold."""
    n_folds = min(folds, n)
    fold = rng.permutation(n) % max(n_folds, 1)
    return np.vstack([np.ones(n, dtype=bool), *(fold != left_out for left_out in range(n_folds))])


def _most_alike(scores: Floats, costs: Floats) -> int:
    """The row of `scores`, shape (m, n), of the highest Spearman correlation with `costs`, shape (n,)."""
    ranks = rankdata(scores, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    target = rankdata(costs) - (len(costs) + 1) / 2
    length = np.sqrt((ranks**2).sum(axis=1))
    return int(np.argmax(np.where(length > 0, ranks @ target / np.where(length > 0, length, 1.0), -np.inf)))


def _best_stop(scores: Floats, costs: Floats, keep: NDArray[np.bool_]) -> int:
    """The stop at which the fits order what they left out best; the last of all, if none left anything out.

    Args:
        scores: Of every fit at every stop, shape (folds, stops, n).
        costs: Shape (n,).
        keep: What each fit learned from, shape (folds, n).
    """
    if len(keep) == 0:
        return int(scores.shape[1]) - 1
    costlier = costs[:, None] > costs[None, :]
    counts = costlier & ~(keep[:, :, None] & keep[:, None, :])
    gap = scores[:, :, :, None] - scores[:, :, None, :]
    agreement = ((np.sign(gap) + 1) / 2 * counts[:, None]).sum(axis=(0, 2, 3))
    return int(np.argmax(agreement))


def _line(scores: Floats, log_costs: Floats) -> tuple[float, float]:
    """Intercept and slope, not below 0, of the least-squares line."""
    centred = scores.astype(np.float64) - scores.mean(dtype=np.float64)
    variance = float(centred @ centred)
    slope = max(float(centred @ log_costs) / variance, 0.0) if variance > 0 else 0.0
    return float(log_costs.mean() - slope * scores.mean(dtype=np.float64)), slope
