"""Accuracy of quantized networks from few of them and from many that were not quantized.

Shapes: `n` samples, `a` columns about the architecture, `b` about bits, `f` all of them, `k` networks of an ensemble.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, validate_data

from hanax.predictors._accuracy_features import pooling
from hanax.predictors._features import Codes
from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import _rank, training_data
from hanax.predictors._quantized_accuracy_net import (
    Tangent,
    Weights,
    along_tangent,
    initial_weights,
    moved_weights,
    no_moves,
    train,
)
from hanax.predictors._source_pool import Groups
from hanax.search_spaces import SearchSpace, architecture_columns, precision_columns

HIDDEN = (128, 128, 128)
N_NETS = 5

SIGNALS = tuple(np.logspace(-2.0, 2.5, 8).tolist())
"""Variances, in units of the noise's, that moving the map of bits or the rest of a network may explain."""
FREE = 1e4
"""Likewise of the level: it is not shrunk."""
N_COMPARED = 200
"""Samples on which these are compared."""
LEAST_SHARE = 0.05
"""Of the probability of the likeliest pair of signals, below which one is not kept."""

MOST_SOLVED = 2_000
"""Unquantized samples that are learned in closed form, too; more are by stochastic gradients."""

PRETRAINED = (
    "float_weights_", "float_moves_", "float_shifts_", "counts_output_", "float_error_", "architecture_mean_",
    "architecture_norm_", "level_", "unit_",
)  # fmt: skip
"""What `QuantizedAccuracyPredictor.pretrain` learns."""


def quantized_features(space: SearchSpace, codes: Codes) -> Floats:
    """Features of `codes`, shape (n, d), of a quantized space for `QuantizedAccuracyPredictor`, shape (n, f).

    A column per option of every decision that has a choice, 1 where the option is taken and counts; the same added up
    over the decisions of one kind in each stage, and in the whole network. Everything about an absent block is 0. The
    columns about bits come after all others; see `quantized_feature_groups`. Of a space without bits, such as
    `float_space`, there are the same columns without these.
    """
    options = space.one_hot(codes)
    return np.concatenate([options @ matrix for matrix in _matrices(space)], axis=1)


def quantized_feature_groups(space: SearchSpace) -> Groups:
    """First column, and the one after the last, of ``architecture`` and ``bits`` in `quantized_features`."""
    sizes = {name: matrix.shape[1] for name, matrix in zip(("architecture", "bits"), _matrices(space), strict=True)}
    stops = itertools.accumulate(sizes.values())
    return {name: (stop - size, stop) for (name, size), stop in zip(sizes.items(), stops, strict=True)}


@lru_cache(maxsize=16)
def _matrices(space: SearchSpace) -> tuple[Floats, Floats]:
    """What makes columns about the architecture, and about bits, from one column per option."""
    decision = np.repeat(np.arange(len(space.decisions)), space.option_counts)
    has_choice = np.asarray(space.option_counts)[decision] > 1
    sums = np.concatenate([np.eye(len(decision)), *pooling(space)], axis=1)
    matrices = []
    for columns in (architecture_columns(space), precision_columns(space)):
        rows = np.isin(decision, columns) & has_choice
        of_these = np.where(rows[:, None], sums, 0.0)
        counted = of_these.sum(axis=0)
        # sums over one decision alone would repeat its options
        is_new = (counted > 0) & ((np.arange(len(counted)) < len(decision)) | (counted > 1))
        matrices.append(of_these[:, is_new])
    return matrices[0], matrices[1]


class QuantizedAccuracyPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The accuracy of quantized networks, by transfer from networks that were not (APQ: Wang et al., 2020).

    `pretrain` teaches an ensemble of networks the accuracies of many unquantized architectures, which are cheap. Bits
    then enter the first pre-activation through a second map (arXiv:2006.08509), which is 0 at first, so
    that a network says what it said without. `fit` tunes all weights on few quantized samples. Without `pretrain` it
    does the same from random weights, whose output is not counted: learning from scratch.

    We differ from the paper in the tuning: few samples do not tell when stochastic gradients must stop. Weights move
    along the tangent of the network at the weights that it has, where the minimum of the squared error and a penalty
    on moving away (L2-SP: Li et al., 2018, arXiv:1802.01483) is known in closed form, as are all predictions without
    one sample (Maddox et al., 2021, arXiv:2103.01439). How much the map of bits and the rest may move is averaged over
    by the evidence, the density of the samples, so that nothing is tuned by hand. Up to `MOST_SOLVED` unquantized
    samples are learned that way, too, from random weights (of 400, better than by stochastic gradients); more are by
    Adam.

    Args:
        groups: Which columns of `X` are about the ``architecture`` and which about ``bits``
            (`quantized_feature_groups`); None takes all as about the architecture.
        hidden: Units of the hidden layers. The paper has three of 400, for 80,000 unquantized samples.
        n_nets: Networks in the ensemble; each has another start, and other unquantized samples held out.
        seed: Decides the starts.

    Attributes:
        float_weights_: Of each network, without bits, where its tangent is.
        float_moves_: How far `pretrain` moved them along the tangent; only if it was called.
        float_shifts_: Of each network's output, after that.
        counts_output_: Whether what networks say at `float_weights_` counts: after stochastic gradients.
        float_error_: Root mean square error of `pretrain` on samples held out, in the unit of `y`; None without it.
        architecture_mean_, architecture_norm_, bits_mean_, bits_norm_: What centres and scales columns.
        level_, unit_: Offset and scale of the networks' outputs.
        moves_: How far each network's weights moved.
        shifts_: Of each network's output, after that.
        signals_: Variances that the map of bits and the rest explain, in units of the noise's, shape (2,).
        loo_residuals_: What predictions without a sample miss it by, shape (n,).
    """

    float_weights_: list[Weights]
    float_moves_: list[Weights]
    float_shifts_: Floats
    counts_output_: bool
    float_error_: float | None
    architecture_mean_: Floats
    architecture_norm_: float
    bits_mean_: Floats
    bits_norm_: float
    level_: float
    unit_: float
    moves_: list[Weights]
    shifts_: Floats
    signals_: Floats
    loo_residuals_: Floats

    def __init__(
        self, groups: Groups | None = None, hidden: tuple[int, ...] = HIDDEN, n_nets: int = N_NETS, seed: int = 0
    ) -> None:
        self.groups = groups
        self.hidden = hidden
        self.n_nets = n_nets
        self.seed = seed

    def __sklearn_clone__(self) -> QuantizedAccuracyPredictor:
        """One with the same settings that keeps what `pretrain` learned: that is of no quantized sample."""
        clone = QuantizedAccuracyPredictor(**self.get_params(deep=False))
        if self.is_pretrained:
            for name in PRETRAINED:
                setattr(clone, name, getattr(self, name))
        return clone

    @property
    def is_pretrained(self) -> bool:
        """Whether `pretrain` was called."""
        return getattr(self, "float_error_", None) is not None

    def pretrain(self, X: ArrayLike, y: ArrayLike) -> QuantizedAccuracyPredictor:
        """Learn from unquantized samples: their architecture columns `X`, (n, a), and accuracies `y`, (n,).

        Raises:
            ValueError: Fewer than 10 samples, or settings that make no sense.
        """
        self._check_settings()
        features, accuracies = check_X_y(X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=10)
        self._scale_architectures(features)
        self.level_, self.unit_ = float(accuracies.mean()), float(accuracies.std()) or 1.0
        inputs, targets = self._architectures(features), (accuracies - self.level_) / self.unit_
        self.float_weights_ = self._starts(inputs.shape[1])
        self.counts_output_ = len(targets) > MOST_SOLVED
        if self.counts_output_:
            errors = self._descend(inputs, targets)
            self.float_moves_ = [no_moves(weights) for weights in self.float_weights_]
            self.float_shifts_ = np.zeros(self.n_nets)
        else:
            tangents = [Tangent.at(weights, inputs) for weights in self.float_weights_]
            none = np.zeros((len(targets), 0))
            solved = _solve(tangents, none, np.tile(targets, (self.n_nets, 1)), self.seed)
            self.float_moves_, self.float_shifts_ = solved.moves, solved.shifts
            errors = solved.left_out
        self.float_error_ = self.unit_ * float(np.sqrt(np.mean(np.square(errors))))
        return self

    def _starts(self, n_architecture: int) -> list[Weights]:
        """Random weights of each network."""
        return [
            initial_weights(n_architecture, self.hidden, np.random.default_rng((self.seed, 1, number)))
            for number in range(self.n_nets)
        ]

    def _descend(self, inputs: Floats, targets: Floats) -> Floats:
        """Train each network by stochastic gradients; the errors, root mean squares of samples held out, shape (k,)."""
        fold = np.random.default_rng((self.seed, 0)).permutation(len(targets)) % max(self.n_nets, 5)
        errors = np.empty(self.n_nets)
        for number, start in enumerate(self.float_weights_):
            rng = np.random.default_rng((self.seed, 3, number))
            self.float_weights_[number], error = train(start, inputs, targets, fold == number, rng)
            errors[number] = np.sqrt(error)
        return errors

    def _before(self, inputs: Floats) -> Floats:
        """What each network says of architectures (n, a) before it is tuned, shape (k, n); 0 without `pretrain`."""
        said = np.zeros((self.n_nets, len(inputs)))
        if self.is_pretrained:
            none = np.zeros((len(inputs), 0))
            for number, (weights, moves) in enumerate(zip(self.float_weights_, self.float_moves_, strict=True)):
                output, change = along_tangent(weights, moves, inputs, none)
                said[number] = output * self.counts_output_ + change + self.float_shifts_[number]
        return said

    def predict_float(self, X: ArrayLike) -> Floats:
        """Accuracy without quantization, of architecture columns `X`, shape (n, a), in the unit of `pretrain`.

        Raises:
            RuntimeError: `pretrain` was not called.
        """
        if not self.is_pretrained:
            raise RuntimeError("nothing is known of unquantized networks: call pretrain before predict_float")
        inputs = self._architectures(check_array(X, dtype=np.float64))
        return np.asarray(self.level_ + self.unit_ * self._before(inputs).mean(axis=0))

    def fit(self, X: ArrayLike, y: ArrayLike) -> QuantizedAccuracyPredictor:
        """Tune on `quantized_features` `X` of samples, shape (n, f), and accuracies `y`, shape (n,); returns self.

        Raises:
            ValueError: Groups or settings that make no sense, columns that are not those of `pretrain`, or data that
                scikit-learn refuses.
        """
        self._check_settings()
        features, accuracies = training_data(self, X, y)
        architecture, bits = self._split(features)
        if not self.is_pretrained:
            self._start_from_scratch(architecture, accuracies)
        elif architecture.shape[1] != len(self.architecture_mean_):
            raise ValueError(
                f"X has {architecture.shape[1]} columns about the architecture; pretrain had "
                f"{len(self.architecture_mean_)}"
            )
        self.bits_mean_ = bits.mean(axis=0)
        self.bits_norm_ = _norm(bits - self.bits_mean_)
        inputs, bit_inputs = self._architectures(architecture), self._bits(bits)
        tangents = [Tangent.at(weights, inputs) for weights in self.float_weights_]
        targets = (accuracies - self.level_) / self.unit_ - self._before(inputs)
        solved = _solve(tangents, bit_inputs, targets, self.seed)
        self.moves_, self.shifts_, self.signals_ = solved.moves, solved.shifts, solved.signals
        self.loo_residuals_ = self.unit_ * solved.left_out.mean(axis=0)
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Predicted accuracy of each row of `X`, shape (n,), in the unit of the `y` of `fit`."""
        check_is_fitted(self, "moves_")
        architecture, bits = self._split(validate_data(self, X, dtype=np.float64, reset=False))
        inputs, bit_inputs = self._architectures(architecture), self._bits(bits)
        said = self._before(inputs)
        for number, (weights, moves) in enumerate(zip(self.float_weights_, self.moves_, strict=True)):
            said[number] += along_tangent(weights, moves, inputs, bit_inputs)[1] + self.shifts_[number]
        return np.asarray(self.level_ + self.unit_ * said.mean(axis=0))

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds for one new accuracy of each row of `X`, in the unit of `y`.

        Jackknife: the prediction, more and less the ``ceil((n + 1) * coverage)``-th of the `n` errors of predictions
        that left out one sample; infinite where `n` is too small to promise `coverage`, below 9 samples for 0.9.

        Raises:
            ValueError: `coverage` is not between 0 and 1.
        """
        predicted = self.predict(X)
        rank = _rank(len(self.loo_residuals_), coverage)
        missed = np.sort(np.abs(self.loo_residuals_))
        spread = np.inf if rank > len(missed) else missed[rank - 1]
        return predicted - spread, predicted + spread

    def _start_from_scratch(self, architecture: Floats, accuracies: Floats) -> None:
        self._scale_architectures(architecture)
        self.level_, self.unit_ = float(accuracies.mean()), float(accuracies.std()) or 1.0
        self.float_error_ = None
        self.float_weights_ = self._starts(architecture.shape[1])

    def _check_settings(self) -> None:
        if self.n_nets < 1:
            raise ValueError(f"n_nets must be at least 1; got {self.n_nets}")
        if len(self.hidden) == 0 or min(self.hidden) < 1:
            raise ValueError(f"hidden has the units of one layer or more, such as {HIDDEN}; got {self.hidden}")

    def _split(self, features: Floats) -> tuple[Floats, Floats]:
        """Columns about the architecture and about bits."""
        n_columns = features.shape[1]
        groups = (
            {"architecture": (0, n_columns), "bits": (n_columns, n_columns)} if self.groups is None else self.groups
        )
        if set(groups) != {"architecture", "bits"}:
            raise ValueError(f"groups must be of architecture and bits; got {', '.join(groups) or 'none'}")
        for name, (start, stop) in groups.items():
            if not 0 <= start <= stop <= n_columns:
                raise ValueError(f"group {name} is columns {start} to {stop}; X has {n_columns} columns")
        return features[:, slice(*groups["architecture"])], features[:, slice(*groups["bits"])]

    def _scale_architectures(self, architecture: Floats) -> None:
        self.architecture_mean_ = architecture.mean(axis=0)
        self.architecture_norm_ = _norm(architecture - self.architecture_mean_)

    def _architectures(self, architecture: Floats) -> Floats:
        return (architecture - self.architecture_mean_) / self.architecture_norm_

    def _bits(self, bits: Floats) -> Floats:
        return (bits - self.bits_mean_) / self.bits_norm_


def _norm(rows: Floats) -> float:
    """Root of the mean squared length of `rows`; 1 where all are 0."""
    return float(np.sqrt(np.mean(np.sum(rows**2, axis=1)))) or 1.0


@dataclass(frozen=True, slots=True)
class _Kernels:
    """Covariances of the changes of a network's output from moving the map of bits, and from moving the rest.

    Attributes:
        both: Each about 1 on the diagonal, or 0 where there is nothing to move, shape (2, n, n).
        sizes: What they were divided by, shape (2,).
    """

    both: Floats
    sizes: Floats

    @staticmethod
    def of(tangent: Tangent, bits: Floats) -> _Kernels:
        raw = np.stack([tangent.bits_kernel(bits), tangent.network_kernel()])
        sizes = np.trace(raw, axis1=1, axis2=2) / raw.shape[1]
        sizes = np.where(sizes > 0, sizes, 1.0)
        return _Kernels(raw / sizes[:, None, None], sizes)

    def mixed(self, signals: Floats) -> Floats:
        """The covariance of samples without their noise, in units of the noise's variance; the level is free."""
        return np.asarray(np.tensordot(signals, self.both, axes=1) + FREE)


@dataclass(frozen=True, slots=True)
class _Solved:
    """Where the weights of an ensemble go.

    Attributes:
        moves: Of each network's weights.
        shifts: Of each network's output, after that, shape (k,).
        signals: Variances that the map of bits and the rest explain, in units of the noise's, shape (2,).
        left_out: What each network misses each sample by that it does not know, shape (k, n).
    """

    moves: list[Weights]
    shifts: Floats
    signals: Floats
    left_out: Floats


def _solve(tangents: list[Tangent], bits: Floats, targets: Floats, seed: int) -> _Solved:
    """The moves of least squared error and penalty for `targets`, shape (k, n), averaged over likely signals."""
    kernels = [_Kernels.of(tangent, bits) for tangent in tangents]
    few = np.random.default_rng((seed, 2)).permutation(targets.shape[1])[:N_COMPARED]
    signals, share = _likely(kernels, targets, few)
    moves, shifts, left_out = [], np.empty(len(tangents)), np.empty_like(targets)
    for number, (tangent, kernel) in enumerate(zip(tangents, kernels, strict=True)):
        inverses = [np.linalg.inv(kernel.mixed(pair) + np.eye(targets.shape[1])) for pair in signals]
        duals = np.array([inverse @ targets[number] for inverse in inverses])
        left_out[number] = share @ [dual / np.diag(inverse) for dual, inverse in zip(duals, inverses, strict=True)]
        of_bits, of_rest = (share[:, None] * signals / kernel.sizes).T @ duals
        moves.append(moved_weights(tangent, bits, of_bits, of_rest))
        shifts[number] = FREE * (share @ duals).sum()
    return _Solved(moves, shifts, share @ signals, left_out)


def _likely(kernels: list[_Kernels], targets: Floats, rows: np.ndarray) -> tuple[Floats, Floats]:
    """Pairs of `SIGNALS`, shape (p, 2), and the probability of each, given `rows` of the targets, shape (k, n).

    The evidence is that of a Gaussian process whose unit is not known, in the mean of its logarithm over networks.
    """
    has_bits = any(kernel.both[0].any() for kernel in kernels)
    pairs = np.array(list(itertools.product(SIGNALS if has_bits else (0.0,), SIGNALS)))
    evidence = np.zeros(len(pairs))
    for kernel, target in zip(kernels, targets[:, rows], strict=True):
        both = kernel.both[:, rows][:, :, rows]
        for number, signals in enumerate(pairs):
            factor = np.linalg.cholesky(np.tensordot(signals, both, axes=1) + FREE + np.eye(len(rows)))
            white = solve_triangular(factor, target, lower=True)
            fit = max(float(white @ white), np.finfo(float).tiny)
            evidence[number] -= np.log(np.diag(factor)).sum() + 0.5 * (len(rows) - 1) * np.log(fit)
    share = np.exp((evidence - evidence.max()) / len(kernels))
    is_kept = share >= LEAST_SHARE
    return pairs[is_kept], share[is_kept] / share[is_kept].sum()
