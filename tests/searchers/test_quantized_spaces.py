"""Searches over architecture and policy: bits are genes like the others, and children of both operators survive.

The released code of APQ (Wang et al., 2020, arXiv:2006.08509) breeds children of two parents and then drops them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from hanax.search_spaces import mobilenet_v3, policy_of, precision_columns, quantized_space
from hanax.searchers import ConstrainedEvolution, FrontEvolution, Nsga2, OptunaSearcher

PLAIN = mobilenet_v3(
    resolutions=(24,), n_classes=10, stem_stride=1, stage_widths=(16, 24), stage_strides=(1, 2),
    stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), depths=(1, 2), head_width=64,
    feature_width=64,
)  # fmt: skip
SPACE = quantized_space(PLAIN)
BITS = precision_columns(SPACE)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(2, SPACE.one_hot(SPACE.encode([SPACE.largest])).shape[1]))

Codes = np.ndarray


def losses(codes: Codes) -> np.ndarray:
    return SPACE.one_hot(np.asarray(codes)) @ WEIGHTS.T


def is_crossed(child: Codes, parents: Codes) -> bool:
    """Whether every gene that counts comes from one of two parents, at least three from each alone."""
    genes = np.where(SPACE.active(child[None])[0], child, -1)
    of_parents = np.where(SPACE.active(parents), parents, -1) == genes
    return any(
        bool((one | other).all()) and min((one & ~other).sum(), (other & ~one).sum()) >= 3
        for one, other in itertools.combinations(of_parents, 2)
    )


def kinds(children: Codes, parents: Codes) -> np.ndarray:
    """Where `children` can come of two parents; the others are mutants."""
    return np.array([is_crossed(child, parents) for child in children], dtype=bool)


def fresh(codes: Codes, known: Codes) -> Codes:
    """Those of `codes` that are not in `known`."""
    seen = {row.tobytes() for row in known.astype(np.int32)}
    return np.array([row for row in codes.astype(np.int32) if row.tobytes() not in seen], dtype=np.int32)


def assert_bits_mutated(mutants: Codes, parents: Codes) -> None:
    """Some mutant has a bit option that its nearest parent has not."""
    nearest = parents[SPACE.distance(mutants, parents).argmin(axis=1)]
    both = SPACE.active(mutants) & SPACE.active(nearest)
    assert ((mutants != nearest) & both)[:, BITS].any()


def test_of_nsga2_children_of_both_operators_are_evaluated_and_survive() -> None:
    searcher = Nsga2(SPACE, population=16, seed=3)
    first = searcher.ask()
    searcher.tell(first, losses(first), np.zeros(len(first)))
    parents = searcher.population
    children = searcher.ask()
    crossed = kinds(children, parents)
    assert 0.2 < crossed.mean() < 0.8
    assert_bits_mutated(children[~crossed], parents)
    searcher.tell(children, losses(children), np.zeros(len(children)))
    survivors = fresh(searcher.population, parents)
    assert kinds(survivors, parents).any() and not kinds(survivors, parents).all()


def test_of_evolution_on_arrays_children_of_both_operators_are_evaluated_and_survive() -> None:
    evaluated: list[Codes] = []

    def recorded(codes: Codes) -> np.ndarray:
        evaluated.append(np.array(codes, dtype=np.int32))
        return losses(codes)

    evolution = FrontEvolution(SPACE, recorded, n_objectives=2, population=16, generations=1)
    (result,) = evolution.run(seed=1)
    parents, children = evaluated[-2:]
    assert len(parents) == len(children) == 16
    crossed = kinds(children, parents)
    assert crossed.any() and not crossed.all()
    assert_bits_mutated(children[~crossed], parents)
    survivors = fresh(result.population, parents)
    assert kinds(survivors, parents).any() and not kinds(survivors, parents).all()
    every = np.concatenate(evaluated[-2:])
    assert len(np.unique(every, axis=0)) == len(every)


def test_of_constrained_evolution_children_of_both_operators_are_scored_and_survive() -> None:
    scored: list[Codes] = []

    def score(codes: Codes) -> np.ndarray:
        scored.append(np.array(codes, dtype=np.int32))
        return -losses(codes)[:, 0]

    def cost(codes: Codes) -> np.ndarray:
        return losses(codes)[:, 1]

    budget = float(np.median(cost(SPACE.sample(np.random.default_rng(1), 200))))
    evolution = ConstrainedEvolution(SPACE, score, cost, population=40, generations=2)
    result = evolution.run([budget], seed=2)
    children = scored[-1]
    mutants, crossed = np.split(children, 2)  # in the order of breeding
    population = {row.tobytes() for row in np.asarray(result.population[0], dtype=np.int32)}
    before = {row.tobytes() for codes in scored[:-1] for row in codes}
    for kind in (mutants, crossed):
        assert any(row.tobytes() in population and row.tobytes() not in before for row in kind)
    assert_bits_mutated(mutants, np.concatenate(scored[:-1]))
    assert (result.costs <= budget).all()


@pytest.mark.parametrize("sampler", ["evolution", "linas"])
def test_samplers_vary_bits_and_measure_no_network_twice(sampler: str) -> None:
    searcher = OptunaSearcher(SPACE, sampler=sampler, n_objectives=2, seed=0, population=10, batch=5)
    told = np.zeros((0, len(SPACE.decisions)), dtype=np.int32)
    n_rounds = 10 if sampler == "evolution" else 4
    for _ in range(n_rounds):
        codes = searcher.ask()
        np.testing.assert_array_equal(codes, SPACE.canonical(codes))
        searcher.tell(codes, losses(codes), np.zeros(len(codes)))
        told = np.concatenate([told, codes])
    assert len(np.unique(told, axis=0)) == len(told) == 5 * n_rounds
    assert (np.ptp(told[:, BITS], axis=0) == 2).mean() > 0.8
    if sampler == "evolution":
        crossed = np.array([is_crossed(told[row], told[:row]) for row in range(10, len(told))])
        assert crossed.any() and not crossed.all()


def test_bits_of_an_absent_block_never_change_the_network() -> None:
    rng = np.random.default_rng(4)
    codes = SPACE.sample(rng, 50)
    inactive = ~SPACE.active(codes)
    assert inactive[:, BITS].any()
    shuffled = np.where(inactive, rng.integers(0, SPACE.option_counts, codes.shape), codes).astype(np.int32)
    np.testing.assert_array_equal(SPACE.canonical(shuffled), codes)
    for before, after in zip(SPACE.decode(codes[:10]), SPACE.decode(shuffled[:10]), strict=True):
        assert policy_of(SPACE, before) == policy_of(SPACE, after)
        assert SPACE.graph(before) == SPACE.graph(after)


@pytest.mark.parametrize("vary", [lambda codes: SPACE.mutate(np.random.default_rng(5), codes, 0.3)], ids=["mutate"])
def test_what_makes_a_block_appear_draws_its_bits_anew(vary: Callable[[Codes], Codes]) -> None:
    shallow = SPACE.canonical(np.tile(SPACE.encode([SPACE.smallest]), (400, 1)))
    mutants = vary(shallow)
    column = SPACE.column("stage1.block2.weight_bits")
    appeared = SPACE.active(mutants)[:, column]
    assert set(mutants[appeared, column]) == {0, 1, 2}
