"""The policy gradient: known optima, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from plain_space import plain_space

from hanax.searchers import Constraint, Objective, Problem, Reinforce, every_network, search

SPACE = plain_space(6, 3)
WEIGHTS = np.random.default_rng(0).normal(size=(7, 3))


def additive(codes: np.ndarray) -> dict[str, np.ndarray]:
    return {"loss": WEIGHTS[np.arange(7), codes].sum(axis=1), "first": (codes[:, 1] == 2).astype(float)}


def problem(*constraints: Constraint) -> Problem:
    return Problem(SPACE, (Objective("loss", "minimise"),), constraints, additive)


@pytest.mark.parametrize("seed", range(3))
def test_the_policy_learns_the_best_option_of_every_decision(seed: int) -> None:
    """729 networks; the optimum is the best option of each decision."""
    searcher = Reinforce(SPACE, (1.0,), seed=seed)
    search(problem(), searcher, 400)
    np.testing.assert_array_equal(searcher.most_likely[0], np.where(SPACE.option_counts > 1, WEIGHTS.argmin(axis=1), 0))
    assert (searcher.probabilities.max(axis=1) > 0.5).all()


def test_a_penalty_leads_to_networks_that_keep_the_constraints() -> None:
    """The third option of the first decision is ruled out, be it the best or not."""
    best = int(WEIGHTS[1].argmin())

    def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
        return additive(codes) | {"is_best": (codes[:, 1] == best).astype(float)}

    ruled_out = Problem(SPACE, (Objective("loss", "minimise"),), (Constraint("is_best", at_most=0.0),), evaluate)
    searcher = Reinforce(SPACE, (1.0,), penalty=5.0, seed=0)
    search(ruled_out, searcher, 400)
    assert searcher.most_likely[0, 1] == np.argsort(WEIGHTS[1])[1]


def test_the_scale_and_the_offset_of_the_reward_change_nothing() -> None:
    """A factor that is a power of two is exact in floating point."""

    def play(scalarisation) -> np.ndarray:
        return search(problem(), Reinforce(SPACE, scalarisation, seed=1), 200).codes

    np.testing.assert_array_equal(play((1.0,)), play((1024.0,)))


def test_entropy_keeps_the_policy_open() -> None:
    def widest(entropy: float) -> float:
        searcher = Reinforce(SPACE, (1.0,), entropy=entropy, seed=0)
        search(problem(), searcher, 300)
        return float(searcher.probabilities[1:].max(axis=1).mean())

    assert widest(5.0) < 0.6 < widest(0.0)


def test_the_step_is_the_gradient_of_the_expected_reward() -> None:
    """All of 729 networks sampled in proportion: a first step of Adam has the signs of the exact gradient.

    The gradient of the expectation with respect to the logits of a decision is p * (E[reward | option] - E[reward]).
    """
    searcher = Reinforce(SPACE, (1.0,), batch=500, entropy=0.0, learning_rate=1e-3, seed=0)
    codes = searcher.ask()
    searcher.tell(codes, additive(codes)["loss"][:, None], np.zeros(len(codes)))
    searcher.ask()
    exact = -(WEIGHTS - WEIGHTS.mean(axis=1, keepdims=True))[1:]
    moved = np.log(searcher.probabilities[1:]) - np.log(1 / 3)
    clear = np.abs(exact) > 0.3
    assert clear.sum() >= 10
    np.testing.assert_array_equal(np.sign(moved - moved.mean(axis=1, keepdims=True))[clear], np.sign(exact)[clear])


def test_decisions_that_never_count_are_not_learned(toy) -> None:
    """With networks of the smallest depth only, the options of deeper blocks stay as likely as they were."""
    switched_off = ~toy.space.active(np.zeros((1, len(toy.space.decisions)), dtype=np.int32))[0]
    searcher = Reinforce(toy.space, (1.0, 0.0), entropy=0.0, batch=500, seed=0)
    codes = searcher.ask()
    shallow = codes[~toy.space.active(codes)[:, switched_off].any(axis=1)]
    assert len(shallow) >= 20
    costs = toy.problem().costs(shallow)
    searcher.tell(shallow, toy.problem().losses(costs), np.zeros(len(shallow)))
    before = searcher.probabilities
    searcher.ask()
    changed = np.abs(searcher.probabilities - before).max(axis=1) > 0
    assert not changed[switched_off].any()
    assert changed[~switched_off & (toy.space.option_counts > 1)].all()


def test_every_network_of_an_exhausted_space_comes_once_however_sure_the_policy_is() -> None:
    result = search(problem(), Reinforce(SPACE, (1.0,), learning_rate=1.0, seed=0), 10_000)
    assert len(np.unique(result.codes, axis=0)) == len(result.codes) == len(every_network(SPACE))


@pytest.mark.parametrize(("settings", "message"), [
    ({"batch": 0}, "a batch is at least 1 network; got 0"),
    ({"learning_rate": 0.0}, r"learning_rate is above 0; got 0\.0"),
    ({"entropy": -1.0}, r"entropy is a weight of at least 0; got -1\.0"),
    ({"penalty": float("nan")}, "penalty is a weight of at least 0; got nan"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reinforce(SPACE, (1.0,), **settings)
