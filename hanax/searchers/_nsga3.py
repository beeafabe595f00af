"""NSGA-III on populations as arrays."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._generational import GenerationalSearcher
from hanax.searchers._nsga3_survival import Nsga3Survival
from hanax.searchers._problem import Codes, Floats
from hanax.searchers._reference_directions import reference_directions


class Nsga3(GenerationalSearcher):
    """Evolution by constraint domination and niches around reference directions, for three objectives and more.

    Deb and Jain (2014, doi:10.1109/TEVC.2013.2281535), with constraints as Jain and Deb (2014,
    doi:10.1109/TEVC.2013.2281534). Differs from them in the variation and in that no network is proposed twice, as
    `Nsga2` does, and in the details of the normalisation: losses count in units of their range.

    Results may come back in any order, a few at a time or not at all; the order changes nothing. Networks that were not
    asked for may be told as well, as a warm start.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        n_objectives: int,
        population: int = 100,
        seed: int = 0,
        mutation_probability: float | None = None,
        crossover_probability: float = 0.5,
    ) -> None:
        """Start without a population.

        Args:
            space: Where to search.
            n_objectives: Number of losses per network.
            population: Networks that survive a generation, and children per generation. There are as many evenly spread
                reference directions as it allows.
            seed: The same seed and the same results give the same proposals.
            mutation_probability: That a mutant changes each of its decisions (but one at least); None is one over
                their number.
            crossover_probability: That a child has two parents; otherwise it is a mutant of one.

        Raises:
            ValueError: A population of less than 2 or smaller than the number of objectives, or a probability outside
                [0, 1].
        """
        super().__init__(
            space,
            Nsga3Survival(population, reference_directions(n_objectives, population)),
            population=population,
            seed=seed,
            mutation_probability=mutation_probability,
            crossover_probability=crossover_probability,
        )
        self._n_objectives = n_objectives

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), 0 where feasible.

        Telling the same again changes nothing.

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit.
        """
        if np.shape(losses)[1:] != (self._n_objectives,):
            raise ValueError(
                f"{self._n_objectives} objectives need losses of shape (n, {self._n_objectives}); "
                f"got {np.shape(losses)}"
            )
        super().tell(codes, losses, violations)
