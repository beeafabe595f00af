"""HELP: a predictor that meta-learns, on source devices, how to adapt to a new one from a few measurements.

Shapes: `a` architectures of the pool, `m` its devices, `t` devices adapted to, `n` measured architectures of each, `q`
architectures asked for, `f` features, `o` columns of options, `e` references, `z` modulations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from hanax.predictors._decision_nodes import DecisionNodes, decision_nodes
from hanax.predictors._leave_one_out import Floats, fit_leave_one_out
from hanax.predictors._predictor import _rank
from hanax.predictors._source_pool import SourcePool

if TYPE_CHECKING:
    from hanax.predictors import _help_net as nets

Ints = NDArray[np.int64]
Floats32 = NDArray[np.float32]

ENCODERS = ("one_hot", "graph")
TASKS_PER_EPISODE = 8
QUERIES_PER_TASK = 200
KEPT_BAND = (0.1, 0.9)
"""Quantiles of a source device's costs between which its architectures are learned from."""
LABEL_SPAN = (0.05, 0.95)
"""Labels of the cheapest and of the dearest reference."""
EPISODES_BETWEEN_CHECKS = 50
DRAWS_PER_CHECK = 8
ROWS_AT_A_TIME = 512
"""Architectures that one call of the compiled prediction takes; fewer are padded, so that their number is no shape."""
LEFT_OUT_AT_A_TIME = 10
"""Adaptations without one measurement in one call of the compiled program."""
IMPUTATION_ALPHAS = tuple(np.logspace(-3, 3, 13).tolist())
LINE_PRIOR = 1.0
"""Predicted costs are moved onto the measured ones by a line, as if as many more had been predicted exactly."""
LEAST_SLOPE = 0.1
META_TRAINED = ("meta_weights_", "meta_scores_", "best_episode_")
"""What `HelpPredictor.meta_fit` learns."""


class HelpPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """HELP (Lee et al., NeurIPS 2021, arXiv:2106.08630): few-shot prediction of a cost on a new device.

    A network predicts costs from an architecture and an *embedding* of the device: what some reference architectures
    cost there. `meta_fit` learns on the pool's devices where its weights start and how far each of them moves, so that
    two steps of gradient descent on a few measurements adapt it to another device; `fit` takes these steps.

    The network's labels are costs on the scale of the cheapest and the dearest reference, on all devices alike, since
    of a new device nothing else is known. So a rising line between the costs of two devices does not change the order
    of predictions. Unlike in the released code the divergence of every task counts, a prediction is the mean over the
    modulations, and nothing that was not measured decides the scale of a new device.

    Args:
        pool: Costs of architectures on source devices; the references are measured on each of these.
        references: Rows of `pool` whose costs are a device's embedding.
        encoder: ``one_hot``, two layers on the columns of options, or ``graph``, a graph convolution over decisions.
        adjacency: For ``graph``: whether the node of the column hears that of the row, shape (d + 2, d + 2), for the
            input, the `d` decisions and the output.
        option_counts: For ``graph``: options of each decision; None if all have equally many.
        n_episodes: Steps of the meta-training.
        n_support: Measurements that a task of the meta-training adapts to.
        reference_share: Share of these tasks whose support are the references; other supports are drawn.
        z_samples: Modulations that a prediction is the mean over.
        width: Units of a layer of the two branches; the heads have twice as many.
        second_order: Whether the meta-training differentiates through the gradients of the adaptation.
        seed: Of the initial weights, the draws and the modulations.

    Attributes:
        meta_weights_: What `meta_fit` learned, shape (p,).
        meta_scores_: Mean Spearman correlation on the validation devices at each check; empty without such devices.
        best_episode_: Episodes after which the kept weights were reached.
        branch_weights_: What `fit` made of the weights of the two branches, shape (p',).
        head_weights_: Likewise of the heads, for each modulation, shape (z, p'').
        embedding_: Of the device, shape (e,).
        scale_: What the cheapest reference costs, and how much more the dearest.
        line_: Offset and slope of the line from predicted labels to measured ones.
        loo_residuals_: Logarithm of each measured cost over what a model without it predicts, shape (n,).
        least_cost_: The least measured cost; half of it is where predictions begin to be bent to stay above 0.
    """

    meta_weights_: Floats32
    meta_scores_: Floats
    best_episode_: int
    branch_weights_: Floats32
    head_weights_: Floats32
    embedding_: Floats
    scale_: Floats
    line_: Floats
    loo_residuals_: Floats
    least_cost_: float

    def __init__(
        self,
        pool: SourcePool,
        *,
        references: Sequence[int],
        encoder: str = "one_hot",
        adjacency: ArrayLike | None = None,
        option_counts: Sequence[int] | None = None,
        n_episodes: int = 2000,
        n_support: int = 10,
        reference_share: float = 0.5,
        z_samples: int = 10,
        width: int = 100,
        second_order: bool = True,
        seed: int = 0,
    ) -> None:
        self.pool = pool
        self.references = references
        self.encoder = encoder
        self.adjacency = adjacency
        self.option_counts = option_counts
        self.n_episodes = n_episodes
        self.n_support = n_support
        self.reference_share = reference_share
        self.z_samples = z_samples
        self.width = width
        self.second_order = second_order
        self.seed = seed

    def __sklearn_clone__(self) -> HelpPredictor:
        """One with the same settings that keeps what `meta_fit` learned: that is of the pool, not of what is fitted."""
        clone = HelpPredictor(**self.get_params(deep=False))
        for name in META_TRAINED:
            if hasattr(self, name):
                setattr(clone, name, getattr(self, name))
        return clone

    def meta_fit(self, validation: SourcePool | None = None) -> HelpPredictor:
        """Meta-train on the pool's devices; returns self.

        Args:
            validation: Costs on other devices, those of the references among them. Every `EPISODES_BETWEEN_CHECKS`
                episodes the weights are tried on these, and the best are kept; without it the last are.

        Raises:
            ValueError: The settings do not fit the pool, or a reference was not measured on one of the devices.
        """
        from hanax.predictors import _help_net as nets

        network = self._network()
        source = self._source(self.pool, network)
        rng = np.random.default_rng((self.seed, 0))
        check = None
        if validation is not None:
            check = _Check.draw(network, self._source(validation, network), self.n_support, self.reference_share, rng)
        meta = nets.initial_weights(network.net, rng)
        state = (meta, nets.OPTIMIZER.init(meta))
        data = nets.Source(source.inputs, source.labels.astype(np.float32), source.embeddings.astype(np.float32))
        kept, scores = meta, list[float]()
        best = done = 0
        for draws in self._episodes(network.net, source, rng):
            state, _ = nets.run_episodes(network.net, state, network.table, data, draws)
            done += len(draws.devices)
            if check is not None:
                scores.append(check.score(network, state[0]))
            if check is None or scores[-1] == max(scores):
                kept, best = state[0], done
        self.meta_weights_ = np.concatenate([nets.flatten(kept[part]) for part in sorted(kept)])
        self.meta_scores_ = np.array(scores)
        self.best_episode_ = best
        return self

    def fit(self, X: ArrayLike, y: ArrayLike, reference_costs: ArrayLike | None = None) -> HelpPredictor:
        """Adapt to a device from features `X`, shape (n, f), and measured costs `y`, shape (n,); returns self.

        Args:
            reference_costs: Costs of the references there, shape (e,): `e` measurements besides those of `y`. None: the
                references are among the architectures of `X`, and `y` is all that was measured.

        Raises:
            RuntimeError: `meta_fit` was not called before.
            ValueError: A cost is not above 0, a reference is not in `X`, or all references cost the same.
        """
        features, costs = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        of_references = None if reference_costs is None else np.asarray(reference_costs, dtype=np.float64)[None]
        for name, value in self._learn(features[None], np.asarray(costs)[None], of_references)[0].items():
            setattr(self, name, value)
        return self

    def fit_many(self, X: ArrayLike, y: ArrayLike, reference_costs: ArrayLike | None = None) -> list[HelpPredictor]:
        """One adapted predictor for each of `t` devices or draws of measurements, which are adapted to together.

        Args:
            X: Features, shape (t, n, f).
            y: Costs, shape (t, n).
            reference_costs: Shape (t, e), or None, as for `fit`.
        """
        features = check_array(X, dtype=np.float64, allow_nd=True)
        costs = check_array(y, dtype=np.float64)
        of_references = None if reference_costs is None else check_array(reference_costs, dtype=np.float64)
        predictors = []
        for learned in self._learn(features, costs, of_references):
            predictor = self.__sklearn_clone__()
            for name, value in {**learned, "n_features_in_": features.shape[2]}.items():
                setattr(predictor, name, value)
            predictors.append(predictor)
        return predictors

    def predict(self, X: ArrayLike) -> Floats:
        """Predicted cost of each row of `X`, shape (q,), above 0 and in the unit of the `y` of `fit`."""
        check_is_fitted(self, "head_weights_")
        features = validate_data(self, X, dtype=np.float64, reset=False)
        network = self._network()
        adapted = (self.branch_weights_[None], self.head_weights_[None])
        labels = _predict(network, adapted, self.embedding_[None], network.inputs(self._options(features)))
        scale = _Scale(self.scale_[:1], self.scale_[1:])
        return _above_zero(scale.to_cost(self.line_[0] + self.line_[1] * labels)[0], self.least_cost_)

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds for one new measurement at each row of `X`, in the unit of `y`.

        Jackknife: the prediction times and over the ratio by which models that each leave out one measurement miss that
        one. A reference that is left out is left out of the embedding too: its cost there is what the source devices
        make of the others'. The bounds are 0 and infinity where there are too few measurements for `coverage`: below 9
        for 0.9.

        Raises:
            ValueError: `coverage` is not between 0 and 1.
        """
        predicted = self.predict(X)
        rank = _rank(len(self.loo_residuals_), coverage)
        if rank > len(self.loo_residuals_):
            return np.zeros_like(predicted), np.full_like(predicted, np.inf)
        ratio = np.exp(np.sort(np.abs(self.loo_residuals_))[rank - 1])
        return predicted / ratio, predicted * ratio

    def _network(self) -> _Network:
        from hanax.predictors import _help_net as nets

        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}; got {self.encoder!r}")
        options = self._options(self.pool.X)
        n_references, width, order = len(self.references), self.width, self.second_order
        if self.encoder == "one_hot":
            return _Network(nets.HelpNet(n_references, options.shape[1], width, None, order), None)
        if self.adjacency is None:
            raise ValueError("encoder 'graph' needs the adjacency of the decisions; it is None")
        counts = self.option_counts
        if counts is None:
            d = len(np.asarray(self.adjacency)) - 2
            if d < 1 or options.shape[1] % d:
                raise ValueError(
                    f"{options.shape[1]} columns of options are not equally many for each of {d} decisions of the "
                    "adjacency; give option_counts"
                )
            counts = [options.shape[1] // d] * d
        nodes = decision_nodes(counts, self.adjacency, options)
        return _Network(nets.HelpNet(n_references, nodes.n_features, width, nodes.own_links, order), nodes)

    def _options(self, features: Floats) -> Floats:
        """The columns of options, shape (..., o)."""
        start, stop = self.pool.groups["options"]
        return features[..., start:stop]

    def _source(self, pool: SourcePool, network: _Network) -> _Source:
        """What `pool` knows of its devices, in the order of their names."""
        n, rows = len(self.pool.X), np.asarray(self.references, dtype=np.int64)
        if rows.ndim != 1 or len(np.unique(rows)) != len(rows) or len(rows) < 2 or rows.min() < 0 or rows.max() >= n:
            raise ValueError(f"references must be two or more different rows of a pool of {n}; got {self.references}")
        options = self._options(pool.X)
        if pool is not self.pool:
            rows = _find(self._options(self.pool.X)[rows], options[None], "the validation pool")[0]
        order = np.argsort(pool.devices)
        costs, names = pool.costs[:, order].T, [pool.devices[k] for k in order]
        for name, of_device in zip(names, costs, strict=True):
            if np.isnan(of_device[rows]).any():
                missing = rows[np.isnan(of_device[rows])].tolist()
                raise ValueError(f"references must be measured on every device; on {name} rows {missing} are not")
        return _Source(network.inputs(options), rows, costs, _Scale.of(costs[:, rows]))

    def _episodes(self, net: nets.HelpNet, source: _Source, rng: np.random.Generator) -> Iterator[nets.Draws]:
        """The draws of all episodes, those between two checks together."""
        from hanax.predictors import _help_net as nets

        bands, m = source.bands(), len(source.costs)
        if m < 2:
            raise ValueError(f"meta-training needs two or more source devices; the pool has {m}")
        n_tasks = min(TASKS_PER_EPISODE, m)
        n_queries = min(QUERIES_PER_TASK, min(map(len, bands)) - self.n_support)
        if n_queries < 1:
            raise ValueError(
                f"meta-training with supports of {self.n_support} needs devices with more measurements than that "
                f"between quantiles {KEPT_BAND} of their costs; one has {min(map(len, bands))}"
            )
        for start in range(0, self.n_episodes, EPISODES_BETWEEN_CHECKS):
            shape = (min(EPISODES_BETWEEN_CHECKS, self.n_episodes - start), n_tasks)
            devices = np.stack([rng.permutation(m)[:n_tasks] for _ in range(shape[0])])
            supports = np.empty((*shape, self.n_support), dtype=np.int32)
            queries = np.empty((*shape, n_queries), dtype=np.int32)
            for place, device in np.ndenumerate(devices):
                drawn = rng.choice(bands[device], self.n_support + n_queries, replace=False)
                supports[place], queries[place] = np.split(drawn, [self.n_support])
                if rng.random() < self.reference_share:
                    supports[place] = source.reference_support(self.n_support, supports[place], rng)
            noise = rng.standard_normal((*shape, net.n_modulations), dtype=np.float32)
            yield nets.Draws(devices.astype(np.int32), supports, queries, noise)

    def _meta(self, net: nets.HelpNet) -> nets.Meta:
        """What `meta_fit` learned, by name."""
        from hanax.predictors import _help_net as nets

        if not hasattr(self, "meta_weights_"):
            raise RuntimeError("HelpPredictor adapts what it learned on source devices: call meta_fit before fit")
        shapes = net.shapes()
        sizes = [sum(int(np.prod(shape)) for shape in shapes[part].values()) for part in sorted(shapes)]
        parts = np.split(self.meta_weights_, np.cumsum(sizes)[:-1])
        return {part: nets.unflatten(flat, shapes[part]) for part, flat in zip(sorted(shapes), parts, strict=True)}

    def _learn(self, features: Floats, costs: Floats, reference_costs: Floats | None) -> list[dict[str, Any]]:
        """The learned attributes for each device, from (t, n, f), (t, n) and (t, e)."""
        network = self._network()
        meta = self._meta(network.net)
        if features.shape != (*costs.shape, self.pool.X.shape[1]):
            raise ValueError(
                f"X must have {self.pool.X.shape[1]} features as the pool, and as many rows as y; the shapes are "
                f"{features.shape} and {costs.shape}"
            )
        source, options = self._source(self.pool, network), self._options(features)
        t, e = len(costs), len(source.references)
        if reference_costs is not None and reference_costs.shape != (t, e):
            raise ValueError(f"there are {e} references; the shape of reference_costs is {reference_costs.shape[1:]}")
        for given in (costs,) if reference_costs is None else (costs, reference_costs):
            if not (np.isfinite(given).all() and given.min() > 0):
                raise ValueError(f"costs must be finite and above 0; the least is {given.min()}")
        place = None
        if reference_costs is None:
            place = _find(self._options(self.pool.X)[source.references], options, "X")
            reference_costs = np.take_along_axis(costs, place, axis=1)

        inputs = network.inputs(options)
        scale = _Scale.of(reference_costs)
        tasks = (inputs, scale.to_label(costs), np.ones_like(costs), scale.embeddings(reference_costs))
        noise = np.random.default_rng((self.seed, 1)).standard_normal((self.z_samples, network.net.n_modulations))
        branches, heads, predicted = _adapt(network, meta, tasks, noise, 1)
        lines = _lines(predicted, tasks[1], tasks[2])
        left_out = self._leave_each_out(network, meta, (inputs, costs, reference_costs), place, source)
        return [
            {
                "branch_weights_": branches[k],
                "head_weights_": heads[k],
                "embedding_": tasks[3][k],
                "scale_": np.array([scale.lowest[k], scale.span[k]]),
                "line_": lines[k],
                "loo_residuals_": np.log(costs[k] / _above_zero(left_out[k], costs[k].min())),
                "least_cost_": float(costs[k].min()),
            }
            for k in range(t)
        ]

    def _leave_each_out(
        self,
        network: _Network,
        meta: nets.Meta,
        measured: tuple[NDArray[Any], ...],
        place: Ints | None,
        source: _Source,
    ) -> Floats:
        """What models without one of the measurements each predict for that one, shape (t, n).

        Args:
            measured: Inputs (t, n, arch...), costs (t, n) and costs of the references (t, e).
            place: Where among the measurements the references are, shape (t, e), if they are there.
        """
        inputs, costs, reference_costs = measured
        t, n = costs.shape
        of_references = np.repeat(reference_costs[:, None], n, axis=1)
        if place is not None:
            known = np.log(source.costs[:, source.references])
            for k, reference in np.ndindex(*place.shape):
                imputed = _impute(known, np.log(reference_costs[k]), reference)
                of_references[k, place[k, reference], reference] = np.exp(imputed)
        of_references = of_references.reshape(t * n, -1)
        scale = _Scale.of(of_references)
        labels = scale.to_label(np.repeat(costs, n, axis=0))
        weights = np.tile(1.0 - np.eye(n), (t, 1))
        tasks = (np.repeat(inputs, n, axis=0), labels, weights, scale.embeddings(of_references))
        # The mean modulation stands for all: that takes a tenth of the time, and predictions are all but the same.
        _, _, predicted = _adapt(network, meta, tasks, np.zeros((1, network.net.n_modulations)), LEFT_OUT_AT_A_TIME)
        lines = _lines(predicted, labels, weights)
        fitted = scale.to_cost(lines[:, :1] + lines[:, 1:] * predicted)
        return np.diagonal(fitted.reshape(t, n, n), axis1=1, axis2=2)


@dataclass(frozen=True, slots=True)
class _Network:
    """The programs' settings, and how architectures become their inputs."""

    net: nets.HelpNet
    nodes: DecisionNodes | None

    @property
    def table(self) -> Any:
        return () if self.nodes is None else (self.nodes.shared_features, self.nodes.shared_links)

    def inputs(self, options: Floats) -> Floats32:
        """Inputs of architectures, shape (..., arch...), from their columns of options, shape (..., o)."""
        if self.nodes is None:
            return options.astype(np.float32)
        rows = self.nodes.inputs(options.reshape(-1, options.shape[-1]))
        return rows.reshape(*options.shape[:-1], *rows.shape[1:])


@dataclass(frozen=True, slots=True)
class _Scale:
    """What the cheapest of the references costs on each of `t` devices, and how much more the dearest."""

    lowest: Floats
    span: Floats

    @staticmethod
    def of(reference_costs: Floats) -> _Scale:
        """From costs of the references, shape (t, e)."""
        lowest = reference_costs.min(axis=1)
        span = reference_costs.max(axis=1) - lowest
        if not (span > 0).all():
            raise ValueError(
                f"the references all cost {lowest[np.argmin(span)]} on a device: they cannot tell it from others"
            )
        return _Scale(lowest, span)

    def embeddings(self, reference_costs: Floats) -> Floats:
        """Costs of the references from 0 to 1, shape (t, e)."""
        return (reference_costs - self.lowest[:, None]) / self.span[:, None]

    def to_label(self, costs: Floats) -> Floats:
        """Labels of `costs`, shape (t, n)."""
        lower, upper = LABEL_SPAN
        return lower + (upper - lower) * (costs - self.lowest[:, None]) / self.span[:, None]

    def to_cost(self, labels: Floats) -> Floats:
        """The inverse of `to_label`."""
        lower, upper = LABEL_SPAN
        return self.lowest[:, None] + self.span[:, None] * (labels - lower) / (upper - lower)


@dataclass(frozen=True, slots=True)
class _Source:
    """Inputs of a pool's architectures, rows of the references, costs (m, a) on its devices, and their scales."""

    inputs: Floats32
    references: Ints
    costs: Floats
    scale: _Scale

    @property
    def labels(self) -> Floats:
        """Shape (m, a); 0 where not measured, which is never drawn."""
        return np.nan_to_num(self.scale.to_label(self.costs))

    @property
    def embeddings(self) -> Floats:
        """Shape (m, e)."""
        return self.scale.embeddings(self.costs[:, self.references])

    def bands(self) -> list[Ints]:
        """For each device its architectures between the quantiles `KEPT_BAND` of the measured costs."""
        bands = []
        for costs in self.costs:
            measured = np.flatnonzero(~np.isnan(costs))
            order = measured[np.argsort(costs[measured], kind="stable")]
            lower, upper = (int(len(order) * quantile) for quantile in KEPT_BAND)
            bands.append(order[lower:upper])
        return bands

    def reference_support(self, n: int, others: NDArray[np.integer[Any]], rng: np.random.Generator) -> Ints:
        """A support of `n` rows: as many references as go in, and some of `others` if there are too few."""
        return np.append(rng.permutation(self.references)[:n], others)[:n]


@dataclass(frozen=True, slots=True)
class _Check:
    """Tasks on validation devices, by which the best weights of a meta-training are chosen.

    Attributes:
        tasks: Inputs, labels, weights and embeddings of the supports.
        queries: Inputs of the architectures asked for, shape (q, arch...).
        costs: What they cost, shape (t, q), NaN where they do not count.
        shares: Weight of each task in the score, shape (t,).
    """

    tasks: tuple[NDArray[Any], ...]
    queries: Floats32
    costs: Floats
    shares: Floats
    noise: Floats

    @staticmethod
    def draw(
        network: _Network, source: _Source, n_support: int, reference_share: float, rng: np.random.Generator
    ) -> _Check:
        """For each device some drawn supports and one of the references, as far as meta-training has both."""
        a = source.costs.shape[1]
        asked = rng.permutation(a)[:ROWS_AT_A_TIME]
        rows, devices, costs, shares = [], [], [], []
        for device, band in enumerate(source.bands()):
            supports = [rng.choice(band, n_support, replace=False) for _ in range(DRAWS_PER_CHECK)]
            kinds = [(support, (1.0 - reference_share) / DRAWS_PER_CHECK) for support in supports]
            kinds.append((source.reference_support(n_support, supports[0], rng), reference_share))
            for support, share in kinds:
                if share > 0.0:
                    counts = np.isin(asked, band) & ~np.isin(asked, support)
                    rows.append(support)
                    devices.append(device)
                    costs.append(np.where(counts, source.costs[device, asked], np.nan))
                    shares.append(share / len(source.costs))
        picked = np.stack(rows)
        labels = np.take_along_axis(source.labels[devices], picked, axis=1)
        tasks = (source.inputs[picked], labels, np.ones_like(labels), source.embeddings[devices])
        noise = rng.standard_normal((1, network.net.n_modulations))
        return _Check(tasks, source.inputs[asked], np.stack(costs), np.array(shares), noise)

    def score(self, network: _Network, meta: nets.Meta) -> float:
        """Mean over devices of the rank correlation of predicted and measured costs."""
        from hanax.predictors import _help_net as nets

        weights, _ = nets.adapt_all(
            network.net, meta, network.table, nets.Support(*_single(self.tasks)), *_single((self.noise,))
        )
        predicted = np.asarray(
            nets.predict_all(network.net, weights, network.table, self.queries, *_single(self.tasks[3:]))
        )
        correlations = [
            _rank_correlation(labels[~np.isnan(costs)], costs[~np.isnan(costs)])
            for labels, costs in zip(predicted, self.costs, strict=True)
        ]
        return float(self.shares @ correlations)


def _adapt(
    network: _Network, meta: nets.Meta, tasks: tuple[NDArray[Any], ...], noise: Floats, at_a_time: int
) -> tuple[Floats32, Floats32, Floats]:
    """Adapted weights, shapes (t, p') and (t, z, p''), and predicted labels of the supports, shape (t, n).

    Args:
        tasks: Inputs (t, n, arch...), labels (t, n), weights (t, n) and embeddings (t, e).
        at_a_time: Tasks of one call of the compiled program; fewer are padded, so that their number is no shape.
    """
    from hanax.predictors import _help_net as nets

    branches, heads, predicted = [], [], []
    (standard_noise,) = _single((noise,))
    for start in range(0, len(tasks[0]), at_a_time):
        part = _single(task[start : start + at_a_time] for task in tasks)
        n = len(part[0])
        full = nets.Support(*(np.concatenate([array, array[:1].repeat(at_a_time - n, axis=0)]) for array in part))
        adapted, labels = nets.adapt_all(network.net, meta, network.table, full, standard_noise)
        branches.append(nets.flatten(adapted.branches, batch=1)[:n])
        heads.append(nets.flatten(adapted.heads, batch=2)[:n])
        predicted.append(np.asarray(labels[:n], dtype=np.float64))
    return np.concatenate(branches), np.concatenate(heads), np.concatenate(predicted)


def _predict(network: _Network, adapted: tuple[Floats32, Floats32], embeddings: Floats, inputs: Floats32) -> Floats:
    """Labels of architectures on each device, shape (t, q), from weights of shapes (t, p') and (t, z, p'')."""
    from hanax.predictors import _help_net as nets

    shapes = network.net.shapes()["net"]
    branches, heads = ({name: shapes[name] for name in shapes if nets.is_head(name) == of} for of in (False, True))
    weights = nets.Adapted(nets.unflatten(adapted[0], branches), nets.unflatten(adapted[1], heads))
    weights = nets.on_device(weights)
    (standard_embeddings,) = _single((embeddings,))
    labels = []
    for start in range(0, len(inputs), ROWS_AT_A_TIME):
        part = inputs[start : start + ROWS_AT_A_TIME]
        if len(part) < ROWS_AT_A_TIME:
            part = np.concatenate([part, np.zeros((ROWS_AT_A_TIME - len(part), *part.shape[1:]), dtype=np.float32)])
        labels.append(nets.predict_all(network.net, weights, network.table, part, standard_embeddings))
    together = np.concatenate([np.asarray(part, dtype=np.float64) for part in labels], axis=1)
    return together[:, : len(inputs)]


def _single(arrays: Any) -> list[Floats32]:
    return [np.asarray(array, dtype=np.float32) for array in arrays]


def _find(wanted: Floats, options: Floats, where: str) -> Ints:
    """Where each of `wanted`, shape (e, o), is among the architectures of `options`, (t, n, o); shape (t, e)."""
    same = (options[:, None] == wanted[None, :, None]).all(axis=3)
    there = same.any(axis=2).all(axis=0)
    if not there.all():
        raise ValueError(
            f"{int((~there).sum())} of the {len(wanted)} reference architectures are not in {where}: measure them, or "
            "give reference_costs"
        )
    return np.asarray(same.argmax(axis=2))


def _impute(known: Floats, log_costs: Floats, missing: int) -> float:
    """Logarithm of the cost of reference `missing` from those of the others, (e,), and of all on the sources, (m, e).

    Ridge regression over the devices, on costs relative to the mean of the others.
    """
    others = np.delete(np.arange(len(log_costs)), missing)
    level, levels = log_costs[others].mean(), known[:, others].mean(axis=1)
    fit = fit_leave_one_out(
        np.ones((len(known), 1)), known[:, others] - levels[:, None], known[:, missing] - levels, IMPUTATION_ALPHAS
    )
    return float(level + fit.free_coef[0] + (log_costs[others] - level) @ fit.shrunk_coef)


def _lines(predicted: Floats, labels: Floats, weights: Floats) -> Floats:
    """Offsets and slopes of the lines from predicted to measured labels, shape (t, 2); see `LINE_PRIOR`."""
    total = weights.sum(axis=1, keepdims=True)
    share = weights / total
    centre = (share * predicted).sum(axis=1, keepdims=True)
    missed = labels - predicted
    variance = (share * (predicted - centre) ** 2).sum(axis=1)
    covariance = (share * (predicted - centre) * missed).sum(axis=1)
    trust = total[:, 0] / (total[:, 0] + LINE_PRIOR)
    slope = 1.0 + trust * covariance / np.maximum(variance, np.finfo(float).tiny)
    slope = np.maximum(slope, LEAST_SLOPE)
    offset = centre[:, 0] * (1.0 - slope) + trust * (share * missed).sum(axis=1)
    return np.stack([offset, slope], axis=1)


def _above_zero(costs: Floats, least: float) -> Floats:
    """`costs`, those below half of `least` bent upwards so that they stay above 0 and in order."""
    floor = least / 2
    return np.where(costs >= floor, costs, floor * np.exp(np.clip(costs / floor - 1.0, -500.0, 0.0)))


def _rank_correlation(predicted: Floats, costs: Floats) -> float:
    """Spearman's; 0 where either is constant."""
    if np.ptp(predicted) == 0 or np.ptp(costs) == 0:
        return 0.0
    return float(spearmanr(predicted, costs).statistic)
