"""Search by gradients: relaxed networks, expected costs, and the optima of spaces that can be listed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from plain_space import plain_space

from hanax.search_spaces import SearchSpace
from hanax.searchers import (
    GradientResult,
    every_network,
    expected_cost,
    fbnet_loss,
    fbnet_search,
    proxyless_search,
    relaxed_one_hot,
)


def random_probabilities(space: SearchSpace, seed: int) -> np.ndarray:
    """Some distribution for each decision, shape (d, k)."""
    exists = np.arange(space.option_counts.max()) < space.option_counts[:, None]
    weights = np.random.default_rng(seed).gamma(1.0, size=exists.shape) * exists
    return weights / weights.sum(axis=1, keepdims=True)


def probability_of(space: SearchSpace, codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Of each network: the product over the decisions that count."""
    taken = probabilities[np.arange(codes.shape[1]), codes]
    return np.where(space.active(codes), taken, 1.0).prod(axis=1)


def table(space: SearchSpace, seed: int) -> np.ndarray:
    """A cost per option."""
    return np.random.default_rng(seed).gamma(2.0, size=int(space.option_counts.sum()))


def linear(weights: np.ndarray) -> Callable:
    return lambda features: features @ weights.astype(np.float32)


def pairwise(space: SearchSpace, seed: int) -> np.ndarray:
    """A cost per pair of options of different decisions, shape (f, f)."""
    decision = np.repeat(np.arange(len(space.decisions)), space.option_counts)
    pairs = np.random.default_rng(seed).normal(size=(len(decision), len(decision)))
    return np.where(decision[:, None] < decision, pairs, 0.0)


def quadratic(weights: np.ndarray) -> Callable:
    return lambda features: ((features @ weights.astype(np.float32)) * features).sum(axis=1)


def one_hot_weights(space: SearchSpace, codes: np.ndarray) -> np.ndarray:
    return (codes[:, :, None] == np.arange(space.option_counts.max())).astype(np.float32)


def test_a_network_relaxed_is_its_one_hot_features(toy) -> None:
    codes = toy.codes[::7]
    features = relaxed_one_hot(toy.space, one_hot_weights(toy.space, codes))
    np.testing.assert_array_equal(features, toy.space.one_hot(codes))


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_cost_of_a_table_is_the_mean_over_all_networks_and_over_drawn_ones(tiny, seed: int) -> None:
    """Decisions that others switch off included: 42 networks of different depths."""
    probabilities, costs = random_probabilities(tiny.space, seed), table(tiny.space, seed)
    expected = float(expected_cost(tiny.space, linear(costs), probabilities))
    latency = tiny.space.one_hot(tiny.codes) @ costs
    of_each = probability_of(tiny.space, tiny.codes, probabilities)
    assert of_each.sum() == pytest.approx(1.0)
    assert expected == pytest.approx(of_each @ latency, rel=1e-5)
    drawn = GradientResult(tiny.space, probabilities, None).sample(np.random.default_rng(seed), 20_000)
    sampled = tiny.space.one_hot(drawn) @ costs
    assert abs(sampled.mean() - expected) < 4 * sampled.std() / np.sqrt(len(sampled))


def test_the_gradient_of_the_expected_cost_is_that_of_finite_differences_over_all_networks(tiny) -> None:
    import jax

    space, costs = tiny.space, table(tiny.space, 0)
    probabilities = random_probabilities(space, 4)
    exists = probabilities > 0
    logits = np.where(exists, np.log(np.where(exists, probabilities, 1.0)), -1e9)
    latency = space.one_hot(tiny.codes) @ costs

    def enumerated(logits: np.ndarray) -> float:
        weights = np.exp(logits)
        return float(probability_of(space, tiny.codes, weights / weights.sum(axis=1, keepdims=True)) @ latency)

    numeric = np.zeros_like(logits)
    for index in zip(*np.nonzero(exists), strict=True):
        step = np.zeros_like(logits)
        step[index] = 1e-4
        numeric[index] = (enumerated(logits + step) - enumerated(logits - step)) / 2e-4
    by_jax = jax.jit(jax.grad(lambda x: expected_cost(space, linear(costs), jax.nn.softmax(x, axis=1))))
    gradient = by_jax(logits.astype(np.float32))
    np.testing.assert_allclose(gradient, numeric, atol=2e-5)
    assert np.abs(numeric).max() > 0.1


def test_the_gradient_through_two_gates_is_right_on_average() -> None:
    """Decisions between two options and a loss of pairs: against the exact gradient of the mean over all networks."""
    import jax

    from hanax.searchers._proxyless_search import gate_gradient, through_softmax

    space = plain_space(4, 2)
    loss = quadratic(pairwise(space, 0))
    exists = np.arange(2) < space.option_counts[:, None]
    logits = np.where(exists, np.random.default_rng(1).normal(size=exists.shape), -1e9).astype(np.float32)

    def mean_loss(logits: jax.Array) -> jax.Array:
        return expected_cost(space, loss, jax.nn.softmax(logits, axis=1))

    def one(noise: jax.Array) -> jax.Array:
        _, gradient, paths = gate_gradient(space, loss, noise, logits)
        return through_softmax(gradient, logits, paths)

    noise = np.random.default_rng(0).gumbel(size=(10_000, 2, *exists.shape)).astype(np.float32)
    drawn = np.asarray(jax.jit(jax.vmap(one))(noise))
    exact = np.asarray(jax.jit(jax.grad(mean_loss))(logits))
    error = drawn.std(axis=0) / 100
    assert (np.abs(drawn.mean(axis=0) - exact) <= 4 * error + 1e-6).all()
    assert np.abs(exact).max() > 20 * error.max()


def test_a_step_through_two_gates_leaves_the_other_options_as_likely_as_they_were() -> None:
    space = plain_space(5, 4)
    costs = table(space, 0)
    learned = proxyless_search(space, linear(costs), linear(costs), cost_weight=1.0, steps=1, learning_rate=0.3)
    moved = learned.probabilities[1:]
    np.testing.assert_allclose(moved.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(np.isclose(moved, 0.25, rtol=1e-5).sum(axis=1), 2)


@pytest.mark.parametrize("seed", [0])
def test_both_find_the_best_network_of_a_space_with_switched_off_decisions(tiny, seed: int) -> None:
    """42 networks, an additive loss and an additive cost: the best of each objective is known by enumeration."""
    space = tiny.space
    losses, costs = 1.0 + table(space, seed), 1.0 + table(space, 10 + seed)
    loss, cost = space.one_hot(tiny.codes) @ losses, space.one_hot(tiny.codes) @ costs

    def rank(of_each: np.ndarray, result: GradientResult) -> int:
        found = tiny.row_of[result.most_likely[0].tobytes()]
        return int(np.sum(of_each < of_each[found] - 1e-9))

    gates = proxyless_search(
        space, linear(losses), linear(costs), cost_weight=0.7, steps=800, learning_rate=0.05, seed=seed
    )
    assert rank(loss + 0.7 * cost, gates) == 0
    soft = fbnet_search(
        space, linear(losses), linear(costs), epochs=60, steps_per_epoch=5, learning_rate=0.05, seed=seed
    )
    assert rank(np.asarray(fbnet_loss(loss, cost)), soft) <= 1
    for history in (gates.history, soft.history):
        assert history["entropy"].iloc[-1] < 0.5 * history["entropy"].iloc[0]
        assert np.isfinite(history).all(axis=None)


def test_the_fbnet_loss_by_hand() -> None:
    """log(e^2) = 2, and 2 ** 0.6 = 1.51572."""
    np.testing.assert_allclose(fbnet_loss(np.array([2.0]), np.exp([2.0])), [2.0 * 0.2 * 1.5157166], rtol=1e-6)
    np.testing.assert_allclose(fbnet_loss(np.array([2.0]), np.exp([2.0]), alpha=1.0, beta=1.0), [4.0], rtol=1e-6)


def test_a_cost_whose_logarithm_is_no_positive_number_is_reported() -> None:
    space = plain_space(2, 2)
    with pytest.raises(ValueError, match=r"step 0: loss nan .* both must be finite numbers"):
        fbnet_search(space, linear(np.ones(5)), linear(0.01 * np.ones(5)), epochs=1, steps_per_epoch=1)


@pytest.mark.parametrize(("settings", "message"), [
    ({"epochs": 0}, "epochs is a number of at least 1; got 0"),
    ({"batch": 0}, "batch is a number of at least 1; got 0"),
    ({"temperature": 0.0}, r"temperature is above 0; got 0\.0"),
    ({"learning_rate": -1.0}, r"learning_rate is above 0; got -1\.0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fbnet_search(plain_space(2, 2), len, len, **settings)  # type: ignore[arg-type]


def test_no_steps_and_no_rate_are_refused_by_gates_too() -> None:
    with pytest.raises(ValueError, match="steps is a number of at least 1; got 0"):
        proxyless_search(plain_space(2, 2), len, len, cost_weight=0.0, steps=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"learning_rate is above 0; got 0\.0"):
        proxyless_search(plain_space(2, 2), len, len, cost_weight=0.0, learning_rate=0.0)  # type: ignore[arg-type]


def test_spaces_of_one_option_per_decision_have_one_answer() -> None:
    space = plain_space(2, 1)
    assert len(every_network(space)) == 1
    learned = proxyless_search(space, linear(np.ones(3)), linear(np.ones(3)), cost_weight=1.0, steps=2)
    np.testing.assert_array_equal(learned.probabilities, np.ones((3, 1)))
