"""Variation of networks of which only the equal ones are known: `Domain.canonical` says all there is to say."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from hanax.searchers._domain import Domain
from hanax.searchers._enumerate import ENUMERABLE
from hanax.searchers._memory import ROUNDS, row_keys
from hanax.searchers._problem import Codes


def unchanged(codes: Codes) -> Codes:
    """`Domain.canonical` where all networks differ."""
    return codes


def sample(domain: Domain, rng: np.random.Generator, n: int) -> Codes:
    """`n` canonical rows, every decision drawn uniformly; duplicates can occur."""
    return domain.canonical(_uniform(domain, rng, n))


def draw_unseen(domain: Domain, rng: np.random.Generator, n: int, known: Set[bytes]) -> Codes:
    """Up to `n` different canonical rows at random whose `row_keys` are not in `known`.

    By chance first. Where that fails and the combinations can be listed, from the list of what is left: fewer than `n`
    then means that the domain is exhausted.
    """
    found: dict[bytes, None] = {}
    for _ in range(ROUNDS if n > 0 else 0):
        for key in row_keys(sample(domain, rng, 2 * n)):
            if key not in known and len(found) < n:
                found.setdefault(key)
        if len(found) == n:
            break
    if len(found) < n and np.prod(domain.counts.astype(np.float64)) <= ENUMERABLE:
        for key in row_keys(rng.permutation(domain.canonical(every_combination(domain)))):
            if key not in known and len(found) < n:
                found.setdefault(key)
    return np.frombuffer(b"".join(found), dtype=np.int32).reshape(len(found), len(domain.counts))


def counting(domain: Domain, codes: Codes) -> NDArray[np.bool_]:
    """Where a decision counts in canonical `codes`, shape (n, d): another option of it gives another network."""
    n, d = codes.shape
    if domain.canonical is unchanged:
        return np.broadcast_to(domain.counts > 1, (n, d))
    others = np.repeat(codes, d, axis=0)
    row, column = np.arange(n * d), np.tile(np.arange(d), n)
    others[row, column] = (others[row, column] + 1) % domain.counts[column]
    differs: NDArray[np.bool_] = (domain.canonical(others) != np.repeat(codes, d, axis=0)).any(axis=1)
    return differs.reshape(n, d)


def breed(
    domain: Domain,
    rng: np.random.Generator,
    parents: Codes,
    n: int,
    *,
    mutation_probability: float | None = None,
    crossover_probability: float = 0.5,
    counts_in_parents: NDArray[np.bool_] | None = None,
) -> Codes:
    """`n` canonical children of canonical `parents`, which come the best first: tournaments of two choose among them.

    A child of two parents takes each decision from either with probability 1/2; a decision that counts in one parent
    only comes from that one. A child of one changes each of its decisions with `mutation_probability`, but one at
    least; decisions that the change makes count are drawn uniformly.

    Args:
        domain: What can be chosen.
        rng: Source of randomness.
        parents: Shape (p, d), the best first.
        n: Number of children.
        mutation_probability: None is one over the number of decisions that can change.
        crossover_probability: That a child has two parents.
        counts_in_parents: `counting` of `parents`, where it is known already.
    """
    if counts_in_parents is None:
        counts_in_parents = counting(domain, parents)
    if mutation_probability is None:
        mutation_probability = 1.0 / max(1, int(np.sum(domain.counts > 1)))
    first, second = rng.integers(0, len(parents), size=(2, 2, n)).min(axis=1)
    mutants = _mutate(domain, rng, parents[first], counts_in_parents[first], mutation_probability)
    one, other = counts_in_parents[first], counts_in_parents[second]
    take_first = np.where(one == other, rng.random(one.shape) < 0.5, one)
    crossed = np.where(take_first, parents[first], parents[second])
    has_two_parents = rng.random(n) < crossover_probability
    return domain.canonical(np.where(has_two_parents[:, None], crossed, mutants).astype(np.int32))


def _mutate(
    domain: Domain, rng: np.random.Generator, codes: Codes, counts: NDArray[np.bool_], probability: float
) -> Codes:
    chosen = counts & (rng.random(codes.shape) < probability)
    forced = np.argmax(np.where(counts, rng.random(codes.shape), -1.0), axis=1)
    untouched = ~chosen.any(axis=1) & counts.any(axis=1)
    chosen[untouched, forced[untouched]] = True
    # A shift by 1..count-1, modulo the count, reaches every other option with the same probability.
    shift = rng.integers(1, np.maximum(domain.counts, 2), size=codes.shape)
    mutants = np.where(counts, codes, _uniform(domain, rng, len(codes)))
    return np.where(chosen, (mutants + shift) % domain.counts, mutants).astype(np.int32)


def _uniform(domain: Domain, rng: np.random.Generator, n: int) -> Codes:
    return rng.integers(0, domain.counts, size=(n, len(domain.counts)), dtype=np.int32)


def every_combination(domain: Domain) -> Codes:
    """Every combination of options."""
    strides = np.cumprod(np.append(1, domain.counts[:-1]))
    return (np.arange(np.prod(domain.counts))[:, None] // strides % domain.counts).astype(np.int32)
