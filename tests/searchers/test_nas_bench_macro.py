"""Searches on NAS-Bench-Macro: 6,561 networks whose CIFAR-10 accuracies are all known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from hanax.devices.public import find_source, import_source
from hanax.predictors import RidgePredictor
from hanax.search_spaces import SearchSpace, nas_bench_macro
from hanax.searchers import (
    Objective,
    Problem,
    Reinforce,
    every_network,
    fbnet_search,
    proxyless_search,
    search,
)

TOP_1_PERCENT = 65
N_SAMPLES = 200


@dataclass(frozen=True, eq=False)
class Macro:
    """The benchmark: all networks, their accuracies in percent, millions of MACs, and their places, 0 the best."""

    space: SearchSpace
    codes: np.ndarray
    accuracy: np.ndarray
    m_macs: np.ndarray

    def rows(self, codes: np.ndarray) -> np.ndarray:
        return codes[:, 1:] @ 3 ** np.arange(7, -1, -1)

    def place(self, codes: np.ndarray) -> int:
        return int(np.sum(self.accuracy > self.accuracy[self.rows(codes)[0]]))


@pytest.fixture(scope="module")
def macro(shared_data) -> Macro:
    source = find_source("nas-bench-macro")
    frame = import_source(source, shared_data("nas-bench-macro")).tables[0].frame
    space = nas_bench_macro()
    codes = every_network(space)
    assert [".".join(map(str, row[1:])) for row in codes.tolist()] == list(frame["arch"])
    return Macro(space, codes, frame["accuracy"].to_numpy(), frame["macs"].to_numpy() / 1e6)


@dataclass(frozen=True, eq=False)
class Learned:
    """Error and MACs as functions of one-hot features.

    The error is the exponential of effects of options and of pairs of options, by ridge regression on `N_SAMPLES`
    networks drawn at random, where those worse than the median of the sample count as the median. MACs add up exactly.
    """

    intercept: float
    linear: np.ndarray
    pairs: np.ndarray
    m_macs_table: np.ndarray

    def error(self, features):
        import jax.numpy as jnp

        linear, pairs = jnp.asarray(self.linear, jnp.float32), jnp.asarray(self.pairs, jnp.float32)
        return jnp.exp(self.intercept + features @ linear + jnp.sum((features @ pairs) * features, axis=1))

    def m_macs(self, features):
        import jax.numpy as jnp

        return features @ jnp.asarray(self.m_macs_table, jnp.float32)


@pytest.fixture(scope="module")
def learned(macro: Macro) -> Learned:
    features = macro.space.one_hot(macro.codes)
    first, second = np.triu_indices(features.shape[1], 1)
    seen = np.random.default_rng(0).choice(len(features), N_SAMPLES, replace=False)
    X = np.concatenate([features[seen], features[seen][:, first] * features[seen][:, second]], axis=1)
    accuracy = macro.accuracy[seen]
    model = RidgePredictor().fit(X, np.log(100.0 - np.maximum(accuracy, np.median(accuracy))))
    pairs = np.zeros((features.shape[1], features.shape[1]))
    pairs[first, second] = model.coef_[features.shape[1] :]
    table = np.linalg.lstsq(features, macro.m_macs, rcond=None)[0]
    np.testing.assert_allclose(features @ table, macro.m_macs, rtol=1e-9)
    return Learned(model.intercept_, model.coef_[: features.shape[1]], pairs, table)


def test_gumbel_softmax_finds_a_network_of_the_best_percent_from_200_accuracies(macro, learned) -> None:
    found = fbnet_search(macro.space, learned.error, learned.m_macs, beta=0.0)
    assert macro.place(found.most_likely) < TOP_1_PERCENT


def test_binary_gates_find_a_network_of_the_best_percent_from_200_accuracies(macro, learned) -> None:
    found = proxyless_search(macro.space, learned.error, learned.m_macs, cost_weight=0.0)
    assert macro.place(found.most_likely) < TOP_1_PERCENT


@pytest.mark.parametrize("seed", range(2))
def test_a_policy_that_asks_the_table_600_times_likes_a_network_of_the_best_percent(macro, seed: int) -> None:
    queries = 0

    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal queries
        queries += len(codes)
        return {"accuracy": macro.accuracy[macro.rows(codes)]}

    searcher = Reinforce(macro.space, (1.0,), seed=seed)
    result = search(Problem(macro.space, (Objective("accuracy", "maximise", "%"),), (), evaluate), searcher, 600)
    assert queries == 600
    assert macro.place(searcher.most_likely) < TOP_1_PERCENT
    assert macro.place(result.codes[result.front[:1]]) < 10
