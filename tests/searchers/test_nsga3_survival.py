"""The parts of NSGA-III against the paper's loop, a linear solver and answers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanax.searchers import constrained_rank
from hanax.searchers._nsga3_survival import Nsga3Survival, associate, intercepts, normalise
from hanax.searchers._reference_directions import reference_directions


def _normalised(losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, dtype=float)
    m = losses.shape[1]
    state = Nsga3Survival(2, np.eye(m)).start(np, (), m)
    rank = constrained_rank(losses, np.zeros(len(losses)))
    return normalise(np, state, losses, rank, rank >= 0, np.array([rank.max()]))[0]


def test_losses_count_in_units_of_the_intercepts_from_the_ideal_point_on() -> None:
    """Four points on the plane that cuts the axes at 2, 4 and 1."""
    front = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.25], [0.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    ideal = np.array([10.0, -20.0, 30.0])
    expected = [[1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(_normalised(front + ideal), expected, rtol=1e-12)
    np.testing.assert_allclose(_normalised(1e9 * front + ideal), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("losses", "expected"), [
    ([[3.0, 5.0], [3.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]),  # a single point
    ([[1.0, 7.0, 2.0], [3.0, 7.0, 1.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),  # an objective that does not vary
    ([[0.0, 0.0, 4.0], [2.0, 3.0, 0.0], [2.0, 6.0, 8.0]], [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 2.0, 2.0]]),
])  # fmt: skip
def test_where_no_hyperplane_is_spanned_the_range_of_the_first_front_is_the_unit(losses, expected) -> None:
    np.testing.assert_allclose(_normalised(np.array(losses)), expected)


def test_ideal_and_extreme_points_are_remembered_but_not_those_of_infeasible_networks() -> None:
    survival = Nsga3Survival(2, np.eye(2))
    losses, rank, words = np.array([[4.0, 9.0], [9.0, 4.0], [0.0, 0.0]]), np.array([0, 0, 1]), np.arange(3)
    start = survival.start(np, (), 2)
    _, state = survival.select(np, start, losses, np.array([True, True, False]), rank, words)
    assert state.ideal.tolist() == [4.0, 4.0]
    assert state.extremes.tolist() == [[9.0, 4.0], [4.0, 9.0]]
    _, state = survival.select(np, state, losses[:2] + 1.0, np.array([True, True]), rank[:2], words[:2])
    assert state.ideal.tolist() == [4.0, 4.0]
    assert state.extremes.tolist() == [[9.0, 4.0], [4.0, 9.0]]
    _, unknown = survival.select(np, start, losses, np.zeros(3, dtype=bool), rank, words)
    assert np.isinf(unknown.ideal).all()


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_intercepts_are_those_of_the_plane_through_the_points(m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.random((4, m, m)) + np.eye(m)[rng.permutation(m)]
    cut, is_sound = intercepts(np, points)
    slopes = np.linalg.solve(points, np.ones((4, m, 1)))[..., 0]
    np.testing.assert_array_equal(is_sound[:, 0], (slopes > 0).all(axis=1) & (slopes < 1e6).all(axis=1))
    np.testing.assert_allclose(cut[is_sound[:, 0]], 1.0 / slopes[is_sound[:, 0]], rtol=1e-6)


@pytest.mark.parametrize("points", [
    [[1.0, 0.0], [2.0, 0.0]], [[1.0, 2.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]], [[1e-9, 0.0], [0.0, 1.0]],
])  # fmt: skip
def test_planes_that_do_not_cut_every_axis_away_from_the_origin_are_unsound(points: list[list[float]]) -> None:
    assert intercepts(np, np.array(points))[1].tolist() == [False]


def test_points_belong_to_the_direction_at_the_least_perpendicular_distance() -> None:
    niche, distance = associate(np, np.array([[2.0, 2.1], [3.0, 0.4], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert niche.tolist() == [1, 0, 0]
    np.testing.assert_allclose(distance, [0.1**2 / 2, 0.4**2, 0.0], atol=1e-12)


def _paper_niching(niche, distance, rank, words, size) -> list[int]:
    """Algorithm 4 of Deb and Jain (2014), one row after the other; of equals the least word is random's choice."""
    last = np.sort(rank)[size - 1]
    chosen = np.flatnonzero(rank < last).tolist()
    left = set(np.flatnonzero(rank == last).tolist())
    n_of = dict.fromkeys(niche.tolist(), 0)
    for row in chosen:
        n_of[niche[row]] += 1
    started = {direction for direction, n in n_of.items() if n > 0}
    while len(chosen) < size:
        fewest = min(n_of[niche[row]] for row in left)
        offers = []
        for direction in {niche[row] for row in left if n_of[niche[row]] == fewest}:
            members = sorted(row for row in left if niche[row] == direction)
            key = words if direction in started else distance
            offers.append(min(members, key=lambda row: key[row]))
        row = min(offers, key=lambda row: words[row])
        chosen.append(row)
        left.remove(row)
        n_of[niche[row]] += 1
        started.add(niche[row])
    return chosen


@given(st.integers(2, 4), st.integers(4, 30), st.integers(0, 2**32 - 1))
def test_niching_by_sorting_picks_whom_the_papers_loop_picks(m: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 8, (n, m)).astype(float)
    size = int(rng.integers(m, n + 1))
    survival = Nsga3Survival(size, reference_directions(m, 12))
    words = rng.permutation(n).astype(np.uint32)
    rank = constrained_rank(losses, np.zeros(n))
    best, _ = survival.select(np, survival.start(np, (), m), losses, np.ones(n, dtype=bool), rank, words)
    last = np.sort(rank)[size - 1 : size]
    scaled, _ = normalise(np, survival.start(np, (), m), losses, rank, rank <= last, last)
    expected = _paper_niching(*associate(np, scaled, survival.directions), rank, words, size)
    assert set(best.tolist()) == set(expected)
    n_certain = int(np.sum(rank < last))
    assert best[n_certain:].tolist() == expected[n_certain:]


def test_a_compiler_cannot_round_a_product_and_a_sum_at_once() -> None:
    """What keeps NumPy and JAX equal to the last bit; a fused product makes about a third of these differ."""
    import jax
    import jax.numpy as jnp

    normalised = np.random.default_rng(0).random((500, 3))
    directions = reference_directions(3, 20)
    with jax.enable_x64(True):
        compiled = jax.jit(lambda points: associate(jnp, points, directions))(normalised)
    for ours, theirs in zip(associate(np, normalised, directions), compiled, strict=True):
        np.testing.assert_array_equal(ours, theirs)
