"""Aging evolution on arrays, for many budgets and devices at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._array_backend import BackendName
from hanax.searchers._constrained_evolution import BREEDING, ConstrainedEvolution, EvolutionResult, Program
from hanax.searchers._genotypes import equal_rows, mutation_thresholds, repeats
from hanax.searchers._problem import Floats
from hanax.searchers._random_words import Array, bounded

Queue = tuple[Array, Array, Array, Array, Array]
"""Codes, shape (g, p, d), `Genotypes.pack`, shape (g, p, w), and scores, shape (g, p), of those that live; codes,
shape (g, d), and score, shape (g,), of the best that ever lived."""


@dataclass(frozen=True, eq=False)
class AgingEvolution:
    """Regularised evolution within budgets (Real et al., 2019, arXiv:1802.01548, algorithm 1), for many at once.

    Of `sample` living networks, drawn with replacement, the best has a child, a mutant in one decision; the child joins
    the queue, and the oldest one dies. Differs from the paper in that

    * `children` are bred at once, as by so many parallel workers;
    * of `tries` mutants, the child is the first that keeps the budget and that neither lives nor is another child;
      where there is none, the place stays empty for a lifetime;
    * a sample of empty places has the best network so far for a parent;
    * the first networks are those of `ConstrainedEvolution`, nearer to the cheapest one for tighter budgets.

    Populations share nothing but the executable, unlike those of `ConstrainedEvolution`.

    Attributes:
        space: Where to search.
        score: As of `ConstrainedEvolution`.
        cost: As of `ConstrainedEvolution`.
        population: Networks that live at a time, per budget; a multiple of `children`.
        generations: How often `children` are bred.
        sample: Networks that a parent is the best of.
        children: Networks bred at once, per budget.
        tries: Mutants per child.
        backend: As of `ConstrainedEvolution`.

    Raises:
        ValueError: A number that makes no sense.
    """

    space: SearchSpace
    score: Callable[[Array], Array]
    cost: Callable[[Array], Array]
    population: int = 100
    generations: int = 500
    sample: int = 25
    children: int = 20
    tries: int = 4
    backend: BackendName = "numpy"

    def __post_init__(self) -> None:
        if min(self.sample, self.tries, self.children) < 1 or self.population % self.children:
            raise ValueError(
                "aging evolution needs a sample, tries and children of at least 1, and a population that is a multiple "
                f"of the children; got {self.sample}, {self.tries}, {self.children} and {self.population}"
            )
        _ = self._base  # checks the others

    def run(self, budgets: Sequence[float] | Floats, *, seed: int = 0) -> EvolutionResult:
        """The best networks for `budgets`; arguments, result and errors are those of `ConstrainedEvolution.run`.

        ``population`` are those that live in the end, not in order; of an empty place the score is minus infinity.
        """
        limits, is_single, cheapest = self._base._checked(budgets, seed)
        queue, logs = self._evolve(self._base._rounded(limits), cheapest, np.uint32(seed))
        codes, _, scores, best, best_score = (np.asarray(part) for part in queue)
        n_scored = limits.size * (self.population + self.generations * self.children)
        return self._base._result(limits, is_single, (best, best_score), (codes, scores), logs, n_scored)

    @cached_property
    def _base(self) -> ConstrainedEvolution:
        return ConstrainedEvolution(
            self.space, self.score, self.cost, self.population, self.generations, backend=self.backend
        )

    @cached_property
    def _evolve(self) -> Callable[..., Any]:
        return self._base._backend.compiled(self._all_generations)

    def _all_generations(self, limits: Array, cheapest: Array, seed: Array) -> tuple[Queue, dict[str, Array]]:
        """The queues in the end, and what was logged; the whole of an executable."""
        base = self._base
        m, k = limits.shape
        program = Program(base, base._backend, base._genotypes, m, k, limits, cheapest, seed)
        queue, first = self._first(program)
        queue, logs = base._backend.loop(self.generations, partial(self._age, program), queue)
        return queue, program.history(first, logs)

    def _first(self, program: Program) -> tuple[Queue, dict[str, Array]]:
        """A full queue for each budget, of which the cheapest network of the device is one."""
        xp, g, n = program.xp, program.n_populations, self.population
        owner = xp.repeat(xp.arange(g), n)
        codes, costs = program.near_budgets(owner)
        keeps = program.keeps_own_budget(costs, owner).reshape(g, n) | (xp.arange(n) == 0)[None]
        cheapest = xp.repeat(program.cheapest, program.n_budgets, axis=0)
        codes = xp.concatenate([cheapest[:, None], codes.reshape(g, n, -1)[:, 1:]], axis=1)
        keys = program.genotypes.pack(xp, codes)
        usable = keeps & ~repeats(xp, keys)
        scores = self._scored(program, codes, usable)
        best = scores.argmax(axis=1)
        queue = (codes, keys, scores, codes[xp.arange(g), best], scores[xp.arange(g), best])
        return queue, self._log(program, queue, usable)

    def _age(self, program: Program, number: Any, queue: Queue) -> tuple[Queue, dict[str, Array]]:
        """The next queue: the children of a generation take the places of the oldest."""
        xp, genotypes, g, c = program.xp, program.genotypes, program.n_populations, self.children
        codes, keys, scores, best, best_score = queue
        rows = xp.arange(g)[:, None]
        d = genotypes.n_decisions
        words = program.words((g, c, self.sample + 2 * d * self.tries), BREEDING, number)
        sampled = bounded(xp, words[..., : self.sample], xp.full((1, 1, 1), self.population, dtype=np.uint32))
        of_sample = scores[rows[..., None], sampled]
        winner = xp.take_along_axis(sampled, of_sample.argmax(axis=2)[..., None], axis=2)[..., 0]
        lives = of_sample.max(axis=2) > -np.inf
        parents = xp.where(lives[..., None], codes[rows, winner], best[:, None])
        tried = genotypes.mutate(
            xp,
            xp.stack([parents] * self.tries, axis=2),
            words[..., self.sample :].reshape(g, c, self.tries, 2, d),
            mutation_thresholds(self.space, 0.0),
        )
        owner = xp.repeat(xp.arange(g), c * self.tries)
        costs = program.settings._costs(tried.reshape(-1, d))
        keeps = program.keeps_own_budget(costs, owner).reshape(g, c, self.tries)
        tried_keys = genotypes.pack(xp, tried).reshape(g, c * self.tries, -1)
        known = equal_rows(xp, tried_keys, keys).any(axis=2).reshape(keeps.shape)
        usable = keeps & ~known
        chosen = usable.argmax(axis=2)[..., None]
        children = xp.take_along_axis(tried, chosen[..., None], axis=2)[:, :, 0]
        child_keys = genotypes.pack(xp, children)
        usable = xp.take_along_axis(usable, chosen, axis=2)[..., 0] & ~repeats(xp, child_keys)
        child_scores = self._scored(program, children, usable)
        # Ages follow from the places: the oldest ones are those that the generation's number says.
        age = (xp.arange(self.population) - number * c) % self.population
        place = xp.minimum(age, c - 1)
        is_new = (age < c)[None]
        codes = xp.where(is_new[..., None], children[:, place], codes)
        keys = xp.where(is_new[..., None], child_keys[:, place], keys)
        scores = xp.where(is_new, child_scores[:, place], scores)
        first = child_scores.argmax(axis=1)
        is_better = child_scores.max(axis=1) > best_score
        best = xp.where(is_better[:, None], children[rows[:, 0], first], best)
        queue = (codes, keys, scores, best, xp.maximum(best_score, child_scores.max(axis=1)))
        return queue, self._log(program, queue, usable)

    def _scored(self, program: Program, codes: Array, usable: Array) -> Array:
        """Scores of `codes`, shape (g, n, d); minus infinity where they are not `usable`."""
        scores = program.settings._scores(codes.reshape(-1, codes.shape[-1]))
        return program.xp.where(usable, scores.reshape(usable.shape), -np.inf)

    def _log(self, program: Program, queue: Queue, usable: Array) -> dict[str, Array]:
        return {
            "best_scores": queue[4],
            "diversity": program.diversity(queue[0], queue[2] > -np.inf),
            "feasible": usable.sum(axis=1, dtype=np.int32),
        }
