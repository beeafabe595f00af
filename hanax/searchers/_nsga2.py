"""NSGA-II on populations as arrays."""

from __future__ import annotations

from hanax.search_spaces import SearchSpace
from hanax.searchers._generational import GenerationalSearcher
from hanax.searchers._nsga2_survival import Nsga2Survival


class Nsga2(GenerationalSearcher):
    """Evolution by constraint domination and crowding (Deb et al., 2002, doi:10.1109/4235.996017).

    Differs from the paper in the variation, which is that of the space (`SearchSpace.crossover`, `SearchSpace.mutate`),
    and in that no network is ever proposed twice: children that were seen before are bred again, a bounded number of
    times, then replaced by random networks.

    Results may come back in any order, a few at a time or not at all; the order changes nothing. Networks that were not
    asked for may be told as well, as a warm start.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int = 100,
        seed: int = 0,
        mutation_probability: float | None = None,
        crossover_probability: float = 0.5,
    ) -> None:
        """Start without a population.

        Args:
            space: Where to search.
            population: Networks that survive a generation, and children per generation.
            seed: The same seed and the same results give the same proposals.
            mutation_probability: That a mutant changes each of its decisions (but one at least); None is one over
                their number.
            crossover_probability: That a child has two parents; otherwise it is a mutant of one.

        Raises:
            ValueError: A population of less than 2, or a probability outside [0, 1].
        """
        super().__init__(
            space,
            Nsga2Survival(population),
            population=population,
            seed=seed,
            mutation_probability=mutation_probability,
            crossover_probability=crossover_probability,
        )
