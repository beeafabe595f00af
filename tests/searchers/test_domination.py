"""Array code for fronts and crowding against moocore, against answers by hand, and on leading axes."""

from __future__ import annotations

import moocore
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hanax.searchers import constrained_rank, crowding_distance
from hanax.searchers._domination import crowding, fronts, runs

SMALL_INTEGERS = st.integers(0, 5).map(float)
losses_of = st.tuples(st.integers(1, 25), st.integers(2, 5)).flatmap(
    lambda shape: arrays(float, (3, *shape), elements=SMALL_INTEGERS)
)


def _violations(losses: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = losses.shape[:-1]
    return np.where(rng.random(shape) < 0.6, 0.0, rng.integers(1, 5, shape) / 2)


@given(losses_of)
def test_fronts_are_those_of_moocore(losses: np.ndarray) -> None:
    for population, rank in zip(losses, fronts(np, losses, np.zeros(losses.shape[:-1])), strict=True):
        expected = moocore.pareto_rank(population)
        np.testing.assert_array_equal(rank, expected - expected.min())


@given(losses_of, st.integers(0, 2**32 - 1))
def test_fronts_follow_constraint_domination_in_every_population(losses: np.ndarray, seed: int) -> None:
    violations = _violations(losses, seed)
    for population, missed, rank in zip(losses, violations, fronts(np, losses, violations), strict=True):
        np.testing.assert_array_equal(rank, constrained_rank(population, missed))


@given(losses_of, st.integers(0, 2**32 - 1), st.integers(1, 25))
def test_enough_fronts_are_right_as_far_as_they_go(losses: np.ndarray, seed: int, enough: int) -> None:
    violations, enough = _violations(losses, seed), min(enough, losses.shape[1])
    exact = fronts(np, losses, violations)
    partial = fronts(np, losses, violations, enough)
    last = np.sort(exact, axis=-1)[:, enough - 1 : enough]
    np.testing.assert_array_equal(partial[exact <= last], exact[exact <= last])
    assert (partial > last)[exact > last].all()


def test_networks_that_were_not_found_come_last() -> None:
    losses = np.array([[0.0, 0.0], [2.0, 1.0], [1.0, 2.0], [3.0, 3.0], [0.0, 0.0]])
    assert fronts(np, losses, np.array([np.inf, 0.0, 0.0, 0.5, np.inf])).tolist() == [2, 0, 0, 1, 2]


@given(losses_of, st.integers(0, 2**32 - 1))
def test_crowding_of_many_populations_is_that_of_each(losses: np.ndarray, seed: int) -> None:
    rank = fronts(np, losses, _violations(losses, seed))
    expected = [crowding_distance(*one) for one in zip(losses, rank, strict=True)]
    np.testing.assert_array_equal(crowding(np, losses, rank), expected)


def test_crowding_of_equals_by_hand() -> None:
    """Of rows with the same loss the first is an end where they are the least, the last where they are the largest."""
    losses = np.array([[0.0, 4.0], [0.0, 4.0], [1.0, 2.0], [4.0, 0.0], [9.0, 9.0]])
    # First objective 0 0 1 4: ends are rows 0 and 3, gaps 1/4 and 4/4. Second 0 2 4 4: ends are rows 3 and 1.
    assert crowding(np, losses, np.array([0, 0, 0, 0, 1])).tolist() == [np.inf, np.inf, 1.0 + 1.0, np.inf, 0.0]
    assert crowding(np, losses[:3], np.zeros(3, dtype=int)).tolist() == [np.inf, np.inf, np.inf]
    assert crowding(np, losses[:1], np.zeros(1, dtype=int)).tolist() == [0.0]
    assert crowding(np, losses[:0], np.zeros(0, dtype=int)).tolist() == []


def test_runs_are_where_equal_values_begin_and_end() -> None:
    starts, ends = runs(np, np.array([[1, 1, 2, 5, 5, 5], [0, 1, 2, 3, 4, 4]]))
    assert starts.tolist() == [[0, 0, 2, 3, 3, 3], [0, 1, 2, 3, 4, 4]]
    assert ends.tolist() == [[1, 1, 2, 5, 5, 5], [0, 1, 2, 3, 5, 5]]
