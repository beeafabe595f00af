"""Sorting, crowding, hypervolume and spread against their definitions, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hanax.searchers import constrained_rank, crowding_distance, hypervolume, non_dominated, spread_along_front

SMALL_INTEGERS = st.integers(0, 5).map(float)
losses_of = st.integers(1, 4).flatmap(
    lambda m: st.integers(1, 25).flatmap(lambda n: arrays(float, (n, m), elements=SMALL_INTEGERS))
)


def _dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(losses_of)
def test_non_dominated_rows_are_those_that_no_row_dominates(losses: np.ndarray) -> None:
    expected = [not any(_dominates(other, row) for other in losses) for row in losses]
    assert non_dominated(losses).tolist() == expected


def test_nothing_is_non_dominated_among_nothing() -> None:
    assert non_dominated(np.zeros((0, 2))).shape == (0,)
    assert hypervolume(np.zeros((0, 2)), np.ones(2)) == 0.0


@given(losses_of, st.integers(0, 2**32 - 1))
def test_ranks_follow_constraint_domination(losses: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    violations = np.where(rng.random(len(losses)) < 0.5, 0.0, rng.integers(1, 4, len(losses)))

    def better(i: int, j: int) -> bool:
        if violations[i] == violations[j] == 0:
            return _dominates(losses[i], losses[j])
        return bool(violations[i] < violations[j])

    left = set(range(len(losses)))
    expected = np.empty(len(losses), dtype=int)
    for front in range(len(losses)):
        best = {i for i in left if not any(better(j, i) for j in left)}
        expected[list(best)] = front
        left -= best
    np.testing.assert_array_equal(constrained_rank(losses, violations), expected)


@given(losses_of)
def test_crowding_is_the_papers_loop_over_every_front(losses: np.ndarray) -> None:
    losses = losses + np.arange(losses.size).reshape(losses.shape) * 1e-6  # no ties: the paper leaves their order open
    rank = constrained_rank(losses, np.zeros(len(losses)))
    expected = np.zeros(len(losses))
    for front in range(rank.max() + 1):
        members = np.flatnonzero(rank == front)
        for column in losses.T:
            order = members[np.argsort(column[members])]
            extent = column[order[-1]] - column[order[0]]
            if extent == 0:
                continue
            expected[order[[0, -1]]] = np.inf
            for before, here, after in zip(order, order[1:], order[2:], strict=False):
                expected[here] += (column[after] - column[before]) / extent
    np.testing.assert_allclose(crowding_distance(losses, rank), expected)


def test_hypervolume_of_a_staircase() -> None:
    stairs = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [2.5, 2.5], [9.0, 0.0]])
    assert hypervolume(stairs, np.array([4.0, 4.0])) == pytest.approx(6.0)
    assert hypervolume(stairs[:, :1], np.array([4.0])) == pytest.approx(3.0)
    assert hypervolume(stairs, np.array([1.0, 1.0])) == 0.0


def test_a_spread_takes_both_ends_and_the_middle_of_a_line() -> None:
    line = np.column_stack([np.arange(11.0), 1000.0 * np.arange(10, -1, -1)])
    assert spread_along_front(line, 2).tolist() == [0, 10]
    assert spread_along_front(line, 3).tolist() == [0, 5, 10]
    assert spread_along_front(line, 5).tolist() in ([0, 2, 5, 7, 10], [0, 2, 5, 8, 10], [0, 3, 5, 7, 10])
    assert spread_along_front(line[::-1], 3).tolist() == [10, 5, 0]
    assert spread_along_front(line, 50).tolist() == list(range(11))


@given(losses_of, st.integers(1, 30))
def test_a_spread_has_k_different_members_with_the_extremes(losses: np.ndarray, k: int) -> None:
    taken = spread_along_front(losses, k)
    assert len(set(taken.tolist())) == len(taken) == min(k, len(losses))
    for column in range(min(k, losses.shape[1])):
        assert losses[taken, column].min() == losses[:, column].min()
    assert (np.diff(losses[taken, 0]) >= 0).all()


def test_a_spread_of_nothing_asks_for_at_least_one() -> None:
    assert len(spread_along_front(np.zeros((0, 2)), 3)) == 0
    with pytest.raises(ValueError, match="at least 1; got 0"):
        spread_along_front(np.zeros((4, 2)), 0)
