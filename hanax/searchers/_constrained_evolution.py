"""Constrained evolution on arrays: the best networks for many budgets and devices in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._array_backend import Backend, BackendName, backend_of
from hanax.searchers._genotypes import Genotypes, equal_rows, genotypes_of, mutation_thresholds, repeats
from hanax.searchers._problem import Codes, Constraint, Floats
from hanax.searchers._random_words import SEEDS, Array, bounded, happens, random_words, threshold
from hanax.searchers._search import InfeasibleConstraintError

FIRST_TRIES = 8
"""Attempts at a network of the first generation, from quite random to nearly the cheapest."""

DESCENT_STARTS, LEAST_DESCENT_STARTS = 64, 4
"""Networks from which the cheapest ones are looked for, over all devices, and at least for each."""

FIRST, BREEDING, DESCENT = range(3)
"""Streams of random words."""


@dataclass(frozen=True, eq=False)
class EvolutionResult:
    """What an evolution found.

    Shapes: `k` budgets; ``...`` are (k,), or (m, k) where the costs are those of `m` devices; `g` generations.

    Attributes:
        budgets: What the cost may be at most, shape (..., ).
        codes: The best network for each budget, canonical, shape (..., d).
        scores: Their scores, shape (...,).
        costs: Their costs, shape (...,), each at most its budget.
        population: The parents that are left, the best first, shape (..., p, d), no network twice in one population.
        population_scores: Their scores, shape (..., p); minus infinity where fewer were found.
        best_scores: The best score so far, before the first generation and after each, shape (g + 1, ...).
        diversity: Mean number of decisions in which two parents differ, shape (g + 1, ...).
        feasible: Newly scored networks that keep the budget, shape (g + 1, ...).
        n_scored: Networks scored in all, the predictor's calls.
    """

    budgets: Floats
    codes: Codes
    scores: Floats
    costs: Floats
    population: Codes
    population_scores: Floats
    best_scores: Floats
    diversity: Floats
    feasible: Codes
    n_scored: int


@dataclass(frozen=True, eq=False)
class ConstrainedEvolution:
    """Once-for-All's search for the best network within a budget (Cai et al., 2020, arXiv:1908.09791), for many.

    A generation: one half of the children are mutants of parents (every decision with probability 0.1, the resolution
    with 0.5), the other half crossovers; a child that misses the budget is bred again; the best of parents and children
    are the next parents. Differs from the paper's code in that

    * half as many parents survive as there are children, not a quarter as many: a quarter come to be close relatives
      within fifty generations, and what they find depends on the seed (`parents` = 0.25 has it the paper's way);
    * no network is twice in a population: a child that is already there, or that another child equals, is bred again;
    * breeding again is bounded: `tries` candidates per child are bred at once, and the first that can be used are
      scored. Where too few can, fewer children join. Mutants of a further try change half as much, their resolution a
      quarter as much;
    * a mutated decision always changes, and at least one does (`SearchSpace.mutate`);
    * the first generation mixes random networks with the cheapest one, in growing shares until the budget is kept, so
      that tight budgets start with as many networks as loose ones.

    Budgets and devices share what is expensive, the scores, since the score of a network depends on neither. Each has
    parents of its own, but there is one pool of children per generation: populations take turns in breeding them, every
    child is scored once, and joins every population whose budget it keeps on that device. What is bred for one budget
    and misses it is often just right for the next. For `k` budgets and `m` devices the pool has, by default, a
    population's number times k^0.27 m^0.4, so that twenty budgets need 2.2 times the scores of one. Costs are
    sums of table entries or alike, and are computed of every candidate on every device.

    Attributes:
        space: Where to search.
        score: What to maximise, e.g. predicted accuracy: from canonical codes, shape (n, d), to shape (n,), finite.
        cost: From canonical codes to shape (n,), or (n, m) for `m` devices.
        population: Children per generation of a single budget.
        generations: After the first, random one.
        parents: Networks that survive, per budget, as a share of the population.
        mutation: Probability per decision.
        resolution_mutation: That of the resolution.
        children: Networks scored per generation, an even number; see above for the default, None.
        tries: Candidates bred per child.
        backend: "numpy", or "jax", where `score` and `cost` are traced into one executable of all generations. With
            equal scores and costs both give the same, to the last bit.

    Raises:
        ValueError: A number that makes no sense.
    """

    space: SearchSpace
    score: Callable[[Array], Array]
    cost: Callable[[Array], Array]
    population: int = 100
    generations: int = 500
    parents: float = 0.5
    mutation: float = 0.1
    resolution_mutation: float = 0.5
    children: int | None = None
    tries: int = 2
    backend: BackendName = "numpy"

    def __post_init__(self) -> None:
        if self.population < 2 or self.generations < 0 or self.tries < 1:
            raise ValueError(
                "an evolution needs a population of at least 2, 0 generations or more and at least 1 try per child; "
                f"got {self.population}, {self.generations} and {self.tries}"
            )
        if self.children is not None and (self.children < 2 or self.children % 2):
            raise ValueError(f"children is an even number, half of them mutants, and at least 2; got {self.children}")
        if not 1 <= self.n_parents <= self.population:
            raise ValueError(f"parents is a share of the {self.population} networks, at least one; got {self.parents}")
        mutation_thresholds(self.space, self.mutation, self.resolution_mutation)

    @property
    def n_parents(self) -> int:
        """Networks that survive a generation, per budget."""
        return round(self.parents * self.population)

    def n_children(self, n_budgets: int, n_devices: int = 1) -> int:
        """Networks scored per generation."""
        if self.children is not None:
            return self.children
        size: float = self.population * n_budgets**0.27 * n_devices**0.4
        return 2 * round(size / 2)

    def run(self, budgets: Sequence[float] | Floats, *, seed: int = 0) -> EvolutionResult:
        """The best networks for `budgets`, shape (k,), the same for all devices, or (m, k).

        On JAX, the first run with a number of budgets compiles; others with as many do not.

        Raises:
            InfeasibleConstraintError: A budget is below the cost of the cheapest network found, before any evolution.
            ValueError: Budgets of another shape or not finite, a seed below 0 or of more than 32 bits, or `score` or
                `cost` give something else than one finite number per network (and device).
        """
        limits, is_single, cheapest = self._checked(budgets, seed)
        (codes, scores), logs = self._evolve(self._rounded(limits), cheapest, np.uint32(seed))
        codes, scores = np.asarray(codes), np.asarray(scores)
        n_scored = (self.generations + 1) * self.n_children(limits.shape[1], len(limits)) + len(limits)
        return self._result(limits, is_single, (codes[:, 0], scores[:, 0]), (codes, scores), logs, n_scored)

    def _checked(self, budgets: Sequence[float] | Floats, seed: int) -> tuple[Floats, bool, Codes]:
        """Budgets, shape (m, k), whether there is a single device, and the cheapest network of each, shape (m, d)."""
        if not 0 <= seed < SEEDS:
            raise ValueError(f"a seed is between 0 and 2^32 - 1; got {seed}")
        cheapest, cost = (np.asarray(part) for part in self._cheapest(np.uint32(seed)))
        is_single, least = cost.ndim == 0, np.atleast_1d(cost)
        limits = self._limits(budgets, least, is_single)
        for device, row in enumerate(limits):
            if row.min() < least[device]:
                raise _infeasible(float(row.min()), float(least[device]), None if is_single else device)
        return limits, is_single, cheapest

    @cached_property
    def _backend(self) -> Backend:
        return backend_of(self.backend)

    @cached_property
    def _genotypes(self) -> Genotypes:
        return genotypes_of(self.space)

    @cached_property
    def _cheapest(self) -> Callable[..., Any]:
        return self._backend.compiled(self._descend)

    @cached_property
    def _evolve(self) -> Callable[..., Any]:
        return self._backend.compiled(self._all_generations)

    def _thresholds(self) -> np.ndarray:
        """`Genotypes.mutate`'s thresholds for each try, shape (tries, d)."""
        return np.array([
            mutation_thresholds(self.space, self.mutation / 2**number, self.resolution_mutation / 4**number)
            for number in range(self.tries)
        ])  # fmt: skip

    def _limits(self, budgets: Sequence[float] | Floats, least: Floats, is_single: bool) -> Floats:
        """Budgets per device, shape (m, k)."""
        limits = np.asarray(budgets, dtype=np.float64)
        allowed = (1,) if is_single else (1, 2)
        if limits.ndim not in allowed or limits.size == 0 or (limits.ndim == 2 and len(limits) != len(least)):
            of_devices = "" if is_single else f" or ({len(least)}, k)"
            raise ValueError(f"budgets need the shape (k,){of_devices}, and k at least 1; got {limits.shape}")
        if not np.isfinite(limits).all():
            raise ValueError(f"budgets must be finite; got {limits.ravel()[~np.isfinite(limits.ravel())][0]}")
        return np.array(np.broadcast_to(limits, (len(least), limits.shape[-1])))

    def _rounded(self, limits: Floats) -> Floats:
        """`limits` as what costs are compared with: on JAX, float32 that are not above them."""
        if self.backend == "numpy":
            return limits
        rounded = limits.astype(np.float32)
        return np.where(rounded > limits, np.nextafter(rounded, np.float32(-np.inf)), rounded)

    def _costs(self, codes: Array) -> Array:
        """Costs of `codes`, shape (n, d), on every device, shape (n, m)."""
        costs = self.cost(codes)
        if costs.ndim not in (1, 2) or len(costs) != len(codes):
            raise ValueError(f"cost must give the shape ({len(codes)},) or ({len(codes)}, devices); got {costs.shape}")
        return costs[:, None] if costs.ndim == 1 else costs

    def _scores(self, codes: Array) -> Array:
        scores = self.score(codes)
        if scores.shape != (len(codes),):
            raise ValueError(f"score must give the shape ({len(codes)},); got {scores.shape}")
        return scores

    # ---- the cheapest network --------------------------------------------------------------------------------

    def _descend(self, seed: Array) -> tuple[Array, Array]:
        """The cheapest network found for each device, shape (m, d), and its cost, shape (m,); () for a single one.

        Coordinate descent, twice over all decisions, from the smallest network and a few random ones.
        """
        xp, genotypes = self._backend.xp, self._genotypes
        d, n_options = genotypes.n_decisions, int(genotypes.counts.max())
        smallest = xp.zeros((1, d), dtype=np.int32)
        is_single, m = self.cost(smallest).ndim == 1, self._costs(smallest).shape[1]
        n_starts = max(LEAST_DESCENT_STARTS, DESCENT_STARTS // m)
        start = genotypes.random(xp, random_words(xp, (n_starts - 1, d), seed, DESCENT, 0))
        start = xp.concatenate([smallest, start])
        options = xp.asarray(np.arange(n_options, dtype=np.int32).reshape(1, 1, -1, 1))

        def step(number: Any, codes: Array) -> tuple[Array, dict[str, Array]]:
            """The best option of one decision, for each start, shape (m, s, d)."""
            here = xp.asarray(np.arange(d).reshape(1, 1, 1, d)) == number % d
            last = xp.asarray(genotypes.counts.astype(np.int32).reshape(1, 1, 1, d)) - 1
            tried = xp.where(here, xp.minimum(options, last), codes[:, :, None, :])
            tried = genotypes.canonical(xp, tried)
            costs = self._costs(tried.reshape(-1, d)).reshape(m, n_starts, n_options, m)
            own = costs[np.arange(m), :, :, np.arange(m)]
            best = own.argmin(axis=-1)
            return xp.take_along_axis(tried, best[:, :, None, None], axis=2)[:, :, 0], {}

        codes, _ = self._backend.loop(2 * d, step, xp.stack([start] * m))
        costs = self._costs(codes.reshape(-1, d)).reshape(m, n_starts, m)[np.arange(m), :, np.arange(m)]
        best = costs.argmin(axis=-1)
        least = xp.take_along_axis(costs, best[:, None], axis=1)[:, 0]
        return xp.take_along_axis(codes, best[:, None, None], axis=1)[:, 0], least[0] if is_single else least

    # ---- evolution -------------------------------------------------------------------------------------------

    def _all_generations(self, limits: Array, cheapest: Array, seed: Array) -> tuple[Any, dict[str, Array]]:
        """Parents of every population in the end, and what was logged; the whole of an executable."""
        m, k = limits.shape
        program = Program(self, self._backend, self._genotypes, m, k, limits, cheapest, seed)
        parents, first = program.first_generation()
        parents, logs = self._backend.loop(self.generations, program.generation, parents)
        return (parents[0], parents[2]), program.history(first, logs)

    def _result(
        self,
        limits: Floats,
        is_single: bool,
        best: tuple[Codes, Floats],
        population: tuple[Codes, Floats],
        logs: dict[str, Array],
        n_scored: int,
    ) -> EvolutionResult:
        """The result, from codes and scores of the best network of each population and of all of it."""
        m, k = limits.shape
        axes = (k,) if is_single else (m, k)
        costs = np.asarray(self._costs(self._backend.xp.asarray(best[0])))[np.arange(m * k), np.repeat(np.arange(m), k)]
        if not np.isfinite(best[1]).all():
            raise ValueError(f"score must give finite numbers; got {best[1][~np.isfinite(best[1])][0]}")
        assert (costs <= limits.ravel()).all(), "what survives keeps its budget"

        def shaped(values: Array, *before: int) -> Any:
            array = np.asarray(values)
            return array.reshape(*before, *axes, *array.shape[len(before) + 1 :])

        return EvolutionResult(
            budgets=limits.reshape(axes),
            codes=shaped(best[0]),
            scores=shaped(best[1]),
            costs=shaped(costs),
            population=shaped(population[0]),
            population_scores=shaped(population[1]),
            n_scored=n_scored,
            **{name: shaped(values, self.generations + 1) for name, values in logs.items()},
        )


Parents = tuple[Array, Array, Array]
"""Codes, shape (g, p, d), their `Genotypes.pack`, shape (g, p, w), and scores, shape (g, p), descending."""


@dataclass(frozen=True, eq=False)
class Program:
    """One run as an array program; `g` populations of `p` parents, the budgets of one device after the other."""

    settings: ConstrainedEvolution
    backend: Backend
    genotypes: Genotypes
    n_devices: int
    n_budgets: int
    limits: Array
    cheapest: Array
    seed: Array

    @property
    def xp(self) -> ModuleType:
        return self.backend.xp

    @property
    def n_populations(self) -> int:
        return self.n_devices * self.n_budgets

    @property
    def n_children(self) -> int:
        return self.settings.n_children(self.n_budgets, self.n_devices)

    def words(self, shape: tuple[int, ...], stream: int, generation: Any = 0) -> Array:
        return random_words(self.xp, shape, self.seed, stream, generation)

    def history(self, first: dict[str, Array], logs: dict[str, Array]) -> dict[str, Array]:
        """What was logged of the first generation, and of the others."""
        xp = self.xp
        return {
            name: xp.concatenate([value[None], logs[name]]) if logs else value[None] for name, value in first.items()
        }

    def first_generation(self) -> tuple[Parents, dict[str, Array]]:
        """The best of networks near to each budget, and of the cheapest of each device."""
        xp, g, p = self.xp, self.n_populations, self.settings.n_parents
        children, costs = self.near_budgets(xp.arange(self.n_children) % g)
        children = xp.concatenate([self.cheapest, children])
        costs = xp.concatenate([self.settings._costs(self.cheapest), costs])
        keys = self.genotypes.pack(xp, children)
        none = (
            xp.zeros((g, p, children.shape[-1]), dtype=np.int32),
            xp.zeros((g, p, keys.shape[-1]), dtype=np.uint32),
            xp.full((g, p), -np.inf, dtype=self.settings._scores(self.cheapest).dtype),
        )
        return self.survivors(none, children, keys, costs, ~self.backend.repeats(keys))

    def near_budgets(self, owner: Array) -> tuple[Array, Array]:
        """Networks for the populations `owner`, shape (n,), and their costs, shape (n, m).

        Random ones, nearer to the cheapest of their device the more it takes to keep the budget.
        """
        xp, genotypes, n = self.xp, self.genotypes, len(owner)
        shape = (FIRST_TRIES, n, genotypes.n_decisions)
        words = self.words((2, *shape), FIRST)
        shares = [threshold(number / FIRST_TRIES) for number in range(FIRST_TRIES)]
        takes_cheapest = happens(xp, words[1], xp.asarray(np.array(shares, dtype=np.uint32).reshape(-1, 1, 1)))
        random = genotypes.random(xp, words[0])
        cheapest = self.cheapest[owner // self.n_budgets]
        tried = genotypes.canonical(xp, xp.where(takes_cheapest, cheapest[None], random)).reshape(-1, shape[-1])
        costs = self.settings._costs(tried)
        usable = self.keeps_own_budget(costs, xp.concatenate([owner] * FIRST_TRIES)).reshape(shape[:2])
        chosen = usable.argmax(axis=0) * n + xp.arange(n)
        return tried[chosen], costs[chosen]

    def generation(self, number: Any, parents: Parents) -> tuple[Parents, dict[str, Array]]:
        """The next parents: the best of `parents` and of their children."""
        xp, genotypes = self.xp, self.genotypes
        owner, candidates = self.breed(number, parents)
        costs, keys = self.settings._costs(candidates), genotypes.pack(xp, candidates)
        known = equal_rows(xp, keys[:, None, :], parents[1][owner]).any(axis=(1, 2))
        usable = self.keeps_own_budget(costs, owner) & ~known & ~self.backend.repeats(keys)
        half = len(candidates) // 2
        order = self.backend.top(usable.reshape(2, half).astype(np.float32), self.n_children // 2)
        chosen = (order + np.array([[0], [half]])).reshape(-1)
        return self.survivors(parents, candidates[chosen], keys[chosen], costs[chosen], usable[chosen])

    def breed(self, number: Any, parents: Parents) -> tuple[Array, Array]:
        """Candidates, first mutants, then crossovers, and to which population each belongs; first tries come first."""
        xp, genotypes, codes = self.xp, self.genotypes, parents[0]
        n_half, tries, d = self.n_children // 2, self.settings.tries, genotypes.n_decisions
        turn = (number * n_half + xp.arange(n_half)) % self.n_populations
        owner = xp.concatenate([turn] * tries)
        n_parents = (parents[2] > -np.inf).sum(axis=1, dtype=np.uint32)[owner]
        words = self.words((len(owner), 3 * d + 3), BREEDING, number)
        picked = bounded(xp, words[:, 3 * d :], n_parents[:, None])
        first, second, third = (codes[owner, picked[:, which]] for which in range(3))
        thresholds = np.repeat(self.settings._thresholds(), n_half, axis=0)
        mutants = genotypes.mutate(xp, first, words[:, : 2 * d].reshape(-1, 2, d), thresholds)
        crossed = genotypes.crossover(xp, second, third, words[:, 2 * d : 3 * d])
        return xp.concatenate([owner, owner]), xp.concatenate([mutants, crossed])

    def keeps_own_budget(self, costs: Array, owner: Array) -> Array:
        """Whether `costs`, shape (n, m), keep the budgets of the populations `owner`, shape (n,)."""
        of_device = self.xp.take_along_axis(costs, (owner // self.n_budgets)[:, None], axis=1)[:, 0]
        return of_device <= self.limits.reshape(-1)[owner]

    def survivors(
        self, parents: Parents, children: Array, keys: Array, costs: Array, usable: Array
    ) -> tuple[Parents, dict[str, Array]]:
        """The best of every population's parents and the children that it can have, and what to log."""
        xp, g, p = self.xp, self.n_populations, self.settings.n_parents
        keeps = (costs.T[:, None, :] <= self.limits[:, :, None]) & usable[None, None, :]
        keeps = keeps.reshape(g, len(children))
        scores = self.settings._scores(children)
        pool = xp.concatenate([parents[2], xp.where(keeps, scores[None], -np.inf)], axis=1)
        # A child can be a parent of another population, and known to this one. It has one twin at most among the
        # parents, so that twice as many hold as many different ones.
        first = self.backend.top(pool, min(2 * p, pool.shape[1]))
        pool = xp.take_along_axis(pool, first, axis=1)
        pool = xp.where(repeats(xp, self.pooled(first, parents[1], keys)), -np.inf, pool)
        second = self.backend.top(pool, p)
        chosen = xp.take_along_axis(first, second, axis=1)
        best = (
            self.pooled(chosen, parents[0], children),
            self.pooled(chosen, parents[1], keys),
            xp.take_along_axis(pool, second, axis=1),
        )
        return best, {
            "best_scores": best[2][:, 0],
            "diversity": self.diversity(best[0], best[2] > -np.inf),
            "feasible": keeps.sum(axis=1, dtype=np.int32),
        }

    def pooled(self, chosen: Array, of_parents: Array, of_children: Array) -> Array:
        """Rows number `chosen`, shape (g, c), of each population's parents, shape (g, p, ...), and of the children."""
        xp, p = self.xp, of_parents.shape[1]
        parent = xp.take_along_axis(of_parents, xp.minimum(chosen, p - 1)[..., None], axis=1)
        return xp.where((chosen < p)[..., None], parent, of_children[xp.maximum(chosen - p, 0)])

    def diversity(self, codes: Array, is_there: Array) -> Array:
        """Mean `SearchSpace.distance` of two different networks of each population, shape (g,); 0 for fewer than 2."""
        xp = self.xp
        marked = xp.where(self.genotypes.active(xp, codes), codes, -1)
        marked = xp.where(is_there[..., None], marked, -2)
        agreeing = xp.zeros(codes[:, 0].shape, dtype=np.int32)
        for option in range(-1, int(self.genotypes.counts.max())):  # sums along codes' own order, which are fast
            counts = (marked == option).sum(axis=1, dtype=np.int32)
            agreeing = agreeing + counts * (counts - 1)
        n = is_there.sum(axis=1, dtype=np.int32)
        pairs = n * (n - 1)
        differing = len(self.genotypes.counts) * pairs - agreeing.sum(axis=1, dtype=np.int32)
        return differing.astype(np.float32) / xp.maximum(pairs, 1).astype(np.float32)


def constrained_evolution(
    space: SearchSpace,
    score: Callable[[Array], Array],
    cost: Callable[[Array], Array],
    budgets: Sequence[float] | Floats,
    *,
    population: int = 100,
    generations: int = 500,
    seed: int = 0,
    backend: BackendName = "numpy",
) -> EvolutionResult:
    """The best networks for `budgets` by one `ConstrainedEvolution`, whose arguments and errors these are."""
    evolution = ConstrainedEvolution(
        space, score, cost, population=population, generations=generations, backend=backend
    )
    return evolution.run(budgets, seed=seed)


def _infeasible(budget: float, least: float, device: int | None) -> InfeasibleConstraintError:
    where = "" if device is None else f" on device {device}"
    message = f"no network found costs at most {budget:g}{where}; the cheapest costs {least:g}"
    return InfeasibleConstraintError(message, Constraint("cost", at_most=budget), least)
