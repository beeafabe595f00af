"""Evolution as an Optuna sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study

from hanax.searchers._breeding import breed, counting, draw_unseen
from hanax.searchers._discrete_sampler import DiscreteSampler
from hanax.searchers._discrete_study import CanonicalParams, Parameters, Record
from hanax.searchers._memory import ROUNDS, row_keys
from hanax.searchers._pareto import constrained_rank, crowding_distance
from hanax.searchers._problem import Codes

LITTER = 16
"""Children bred at a time, of which the first new one is taken."""


class EvolutionSampler(DiscreteSampler):
    """Evolution by constraint domination and crowding over categorical, integer and stepped parameters.

    Selection is that of NSGA-II (Deb et al., 2002, doi:10.1109/4235.996017), for one objective or several; variation is
    that of supernet searches (Once-for-All: Cai et al., 2020, arXiv:1908.09791): each parameter of a child comes from
    either parent, or some of one parent's parameters change, at least one.

    Differs from both in that there are no generations: whatever the best `population` of all networks told are at that
    moment has the next child (steady-state NSGA-II: Durillo et al., 2009), so that no worker waits for another. That is
    read from the trials alone: any number of workers may share a study, and one in a storage continues where it was
    left.

    Constraints are those that trials set (`Trial.set_constraint`). Trials that fail or are pruned breed nothing. No
    network is proposed twice, failed ones neither, until all were; then they repeat at random, which is logged once.
    That holds for parameters that all trials have; for others, and for networks that are equal although their
    parameters differ, give `search_space` and `canonical`. Continuous parameters, and those that only some trials have,
    are random.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        population: int = 50,
        mutation_probability: float | None = None,
        crossover_probability: float = 0.5,
        search_space: Mapping[str, BaseDistribution] | None = None,
        canonical: CanonicalParams | None = None,
        canonical_codes: Callable[[Codes], Codes] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            seed: The same seed and the same results give the same networks; None differs every time.
            population: Random networks that are told first, and networks that have children from then on.
            mutation_probability: That a mutant changes each of its parameters (but one at least); None is one over
                their number.
            crossover_probability: That a child has two parents; otherwise it is a mutant of one.
            search_space: All parameters with their distributions; None learns them from the first trial, which is then
                random.
            canonical: Gives, for the parameters of a network, those that count, the same ones for equal networks.
            canonical_codes: The same for arrays, shape (n, d), of indices into the values of the discrete parameters of
                `search_space`, in its order; much faster.

        Raises:
            ValueError: A population of less than 2, a probability outside [0, 1], both `canonical` and
                `canonical_codes`, or the latter without `search_space`.
        """
        super().__init__(seed, search_space, canonical, canonical_codes)
        if population < 2:
            raise ValueError(f"a population needs at least 2 networks; got {population}")
        for name, value in (("mutation", mutation_probability), ("crossover", crossover_probability)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}_probability is between 0 and 1; got {value}")
        self._population = population
        self._mutation_probability = mutation_probability
        self._crossover_probability = crossover_probability

    def _propose(self, study: Study, parameters: Parameters, record: Record, rng: np.random.Generator) -> Codes:
        known = record.known
        if len(record.codes) >= self._population:
            rank = constrained_rank(record.losses, record.violations)
            best = np.lexsort((-crowding_distance(record.losses, rank), rank))[: self._population]
            parents = record.codes[best]
            counts = counting(parameters.domain, parents)
            for _ in range(ROUNDS):
                children = breed(
                    parameters.domain,
                    rng,
                    parents,
                    LITTER,
                    mutation_probability=self._mutation_probability,
                    crossover_probability=self._crossover_probability,
                    counts_in_parents=counts,
                )
                new = [index for index, key in enumerate(row_keys(children)) if key not in known]
                if new:
                    return children[new[:1]]
        return draw_unseen(parameters.domain, rng, 1, known)
