"""Operations on genotypes against those of `SearchSpace`, on both array modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanax.search_spaces import RESOLUTION, Condition, Decision, SearchSpace, mobilenet_v3
from hanax.searchers import every_network
from hanax.searchers._genotypes import equal_rows, genotypes_of, mutation_thresholds, repeats
from hanax.searchers._random_words import random_words

CHAIN = SearchSpace(
    "chain", 3, 10,
    (
        Decision(RESOLUTION, (16, 24, 32)),
        Decision("a", (0, 1, 2)),
        Decision("b", (0, 1), Condition("a", (1, 2))),
        Decision("c", (3, 5, 7), Condition("b", (1,))),
        Decision("fixed", (1,), Condition("b", (0, 1))),
        Decision("d", (0, 1, 2, 3), Condition("c", (3, 7))),
    ),
    (),
)  # fmt: skip
"""Conditions on conditions, three deep, and a decision that is none."""

MOBILENET = mobilenet_v3()
SPACES = st.sampled_from([CHAIN, MOBILENET])


def _draw(space: SearchSpace, rows: int, seed: int) -> np.ndarray:
    return space._uniform(np.random.default_rng(seed), rows)


@given(SPACES, st.integers(0, 2**32 - 1))
def test_active_and_canonical_are_those_of_the_space(space: SearchSpace, seed: int) -> None:
    genotypes, codes = genotypes_of(space), _draw(space, 20, seed)
    np.testing.assert_array_equal(genotypes.active(np, codes), space.active(codes))
    canonical = genotypes.canonical(np, codes)
    assert canonical.dtype == np.int32
    np.testing.assert_array_equal(canonical, space.canonical(codes))
    batched = genotypes.canonical(np, codes.reshape(4, 5, -1))
    np.testing.assert_array_equal(batched.reshape(codes.shape), canonical)


@pytest.mark.parametrize("space", [CHAIN, MOBILENET])
def test_numpy_and_jax_make_the_same_networks(space: SearchSpace) -> None:
    genotypes, d = genotypes_of(space), len(space.decisions)
    thresholds = mutation_thresholds(space, 0.1, 0.5)

    def breed(xp, counter):
        words = random_words(xp, (5, 3, 40, d), 7, 0, counter)
        first, second = genotypes.random(xp, words[0]), genotypes.random(xp, words[1])
        mutants = genotypes.mutate(xp, first, xp.stack([words[2], words[3]], axis=-2), thresholds)
        children = genotypes.crossover(xp, first, second, words[4])
        return first, mutants, children, genotypes.pack(xp, children)

    ours, theirs = breed(np, 3), jax.jit(lambda counter: breed(jnp, counter))(3)
    for left, right in zip(ours, theirs, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    for codes in ours[:3]:
        rows = codes.reshape(-1, d)
        np.testing.assert_array_equal(space.canonical(rows), rows)


def test_random_networks_have_every_option_equally_often() -> None:
    genotypes = genotypes_of(CHAIN)
    codes = genotypes.random(np, random_words(np, (60_000, 6), 0, 0, 0))
    active = genotypes.active(np, codes)
    for column, decision in enumerate(CHAIN.decisions):
        counts = np.bincount(codes[active[:, column], column], minlength=len(decision.options))
        expected = counts.sum() / len(decision.options)
        assert ((counts - expected) ** 2 / expected).sum() < 12


def test_mutants_change_with_the_given_probabilities_and_reach_every_other_option_alike() -> None:
    genotypes, n = genotypes_of(CHAIN), 60_000
    parent = np.array([2, 2, 1, 1, 0, 0], dtype=np.int32)  # c = 5 switches d off
    codes = np.broadcast_to(parent, (n, 6))
    words = random_words(np, (n, 2, 6), 0, 1, 0)
    mutants = genotypes.mutate(np, codes, words, mutation_thresholds(CHAIN, 0.1, 0.5))
    assert (mutants != codes).any(axis=1).all()
    no_change = 0.5 * 0.9**3
    for column, probability in ((0, 0.5), (1, 0.1)):
        changed = mutants[:, column] != parent[column]
        assert changed.mean() == pytest.approx(probability + no_change / 4, abs=0.006)
        counts = np.bincount(mutants[changed, column], minlength=3)
        assert counts[0] == pytest.approx(counts[1], rel=0.05)
        assert counts[2] == 0
    newly_active = genotypes.active(np, mutants)[:, 5]
    assert newly_active.sum() > 5_000
    counts = np.bincount(mutants[newly_active, 5], minlength=4)
    assert counts == pytest.approx(np.full(4, newly_active.sum() / 4), rel=0.06)


def test_without_a_probability_exactly_one_decision_changes_and_each_as_often() -> None:
    genotypes, n = genotypes_of(CHAIN), 40_000
    codes = np.broadcast_to(np.array([0, 1, 1, 0, 0, 0], dtype=np.int32), (n, 6))
    mutants = genotypes.mutate(np, codes, random_words(np, (n, 2, 6), 5, 0, 0), mutation_thresholds(CHAIN, 0.0))
    first = np.argmax(mutants != codes, axis=1)
    counts = np.bincount(first, minlength=6)
    assert counts[4] == 0
    assert counts[[0, 1, 2, 3, 5]] == pytest.approx(np.full(5, n / 5), rel=0.05)
    d_alone = first == 5
    assert ((mutants != codes)[d_alone].sum(axis=1) == 1).all()


def test_children_take_what_counts_in_one_parent_only_from_that_one() -> None:
    genotypes, n = genotypes_of(CHAIN), 20_000
    first = np.broadcast_to(np.array([0, 1, 1, 2, 0, 3], dtype=np.int32), (n, 6))
    second = np.broadcast_to(np.array([2, 2, 0, 0, 0, 0], dtype=np.int32), (n, 6))
    children = genotypes.crossover(np, first, second, random_words(np, (n, 6), 0, 2, 0))
    for column in range(3):
        assert set(children[:, column]) == {first[0, column], second[0, column]}
        assert (children[:, column] == first[0, column]).mean() == pytest.approx(0.5, abs=0.015)
    deep = children[:, 2] == 1
    assert (children[deep][:, 3:] == first[0, 3:]).all()
    assert (children[~deep][:, 3:] == 0).all()


@pytest.mark.parametrize("xp", [np, jnp])
def test_packed_words_tell_networks_apart(xp, toy) -> None:
    genotypes = genotypes_of(toy.space)
    keys = np.asarray(genotypes.pack(xp, xp.asarray(toy.codes)))
    assert keys.dtype == np.uint32
    assert len(np.unique(keys, axis=0)) == len(toy.codes)


def test_large_networks_are_packed_without_loss() -> None:
    genotypes = genotypes_of(MOBILENET)
    codes = MOBILENET.sample(np.random.default_rng(0), 200)
    keys = genotypes.pack(np, codes)
    assert keys.shape == (200, 3)
    unpacked = [
        keys[:, [word]] // genotypes.strides[group] % genotypes.counts[group]
        for word, group in enumerate(genotypes.groups)
    ]
    np.testing.assert_array_equal(np.concatenate(unpacked, axis=1), codes)


def test_repeats_are_all_but_the_first_of_equal_rows() -> None:
    genotypes, codes = genotypes_of(CHAIN), every_network(CHAIN)[[3, 1, 3, 2, 1, 3]]
    keys = genotypes.pack(np, codes)
    assert repeats(np, keys).tolist() == [False, False, True, False, True, True]
    assert equal_rows(np, keys[:2], keys).tolist() == [
        [row == one for row in keys.tolist()] for one in keys[:2].tolist()
    ]


def test_probabilities_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1; got 1\.5"):
        mutation_thresholds(CHAIN, 0.1, 1.5)
