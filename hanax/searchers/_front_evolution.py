"""Whole evolutions towards a front as one array program: NSGA-II and NSGA-III on NumPy or JAX, many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hanax.search_spaces import SearchSpace, unique_rows
from hanax.searchers._array_backend import Backend, BackendName, backend_of
from hanax.searchers._domination import fronts
from hanax.searchers._generational import Survival, mutation_probability_of
from hanax.searchers._genotypes import Genotypes, equal_rows, genotypes_of, mutation_thresholds, repeats
from hanax.searchers._nsga2_survival import Nsga2Survival
from hanax.searchers._nsga3_survival import Nsga3Survival
from hanax.searchers._pareto import hypervolume, non_dominated
from hanax.searchers._problem import Codes, Floats
from hanax.searchers._random_words import SEEDS, Array, bounded, happens, random_words, threshold
from hanax.searchers._reference_directions import reference_directions
from hanax.searchers._search import MAX_HYPERVOLUME_OBJECTIVES, mean_distance

if TYPE_CHECKING:
    import pandas as pd

AlgorithmName = Literal["nsga2", "nsga3"]

FIRST, TOURNAMENTS, GATES, CROSSING, SURVIVAL = range(10, 15)
"""Streams of random words."""


@dataclass(frozen=True, eq=False)
class FrontResult:
    """What an evolution of one population found. Shapes: `f` networks, `d` decisions, `m` objectives.

    Attributes:
        codes: The networks that no other one of all that were evaluated dominates, canonical, shape (f, d), none twice,
            in the order of the first objective. If none of all keeps the constraints: those that miss them least.
        losses: Shape (f, m).
        violations: Shape (f,); 0 where the constraints are kept.
        population: The last population, the best first, canonical, shape (n, d), no network twice.
        reference: The losses up to which the hypervolume counts, shape (m,); minus infinity where none was given and
            nothing keeps the constraints.
        history: A row per generation, the random one included: ``evaluations`` so far, ``hypervolume`` of the
            population's feasible networks (NaN for more than 4 objectives), ``diversity`` (mean number of decisions in
            which two networks of the population differ).
    """

    codes: Codes
    losses: Floats
    violations: Floats
    population: Codes
    reference: Floats
    history: pd.DataFrame


@dataclass(frozen=True, eq=False)
class FrontEvolution:
    """NSGA-II or NSGA-III as an array program, for costs that are cheap and can be computed for many networks at once.

    Deb et al. (2002, doi:10.1109/4235.996017); Deb and Jain (2014, doi:10.1109/TEVC.2013.2281535). The survival is that
    of `Nsga2` and `Nsga3`, and so is the variation: a child has two parents with `crossover_probability`, otherwise it
    is a mutant of one; parents win tournaments of two. No network is twice in a population: `tries` candidates per
    child are bred at once, and the first that are new are evaluated. Where too few are new, fewer children join.

    One population per device, where the losses are those of several, and per row of bounds. Selection is in float64 on
    both backends: with equal losses both give the same, to the last bit.

    Attributes:
        space: Where to search.
        losses: From canonical codes, shape (n, d), to finite losses, all minimised, shape (n, m), or (devices, n, m).
            Codes are arrays of the backend; on JAX the function is traced into one executable of all generations, with
            64-bit numbers enabled.
        n_objectives: Number of losses, m.
        algorithm: "nsga2", or "nsga3" for three objectives and more.
        constraints: From codes to values that the bounds of `run` limit from above, shape (n, c) or (devices, n, c), if
            there are any.
        population: Networks that survive a generation, and children per generation.
        generations: After the first, random one.
        mutation_probability: That a mutant changes each of its decisions (but one at least); None is one over their
            number.
        crossover_probability: That a child has two parents.
        tries: Candidates bred per child.
        backend: "numpy" or "jax".

    Raises:
        ValueError: A number that makes no sense, or an unknown algorithm.
    """

    space: SearchSpace
    losses: Callable[[Array], Array]
    n_objectives: int
    algorithm: AlgorithmName = "nsga2"
    constraints: Callable[[Array], Array] | None = None
    population: int = 100
    generations: int = 200
    mutation_probability: float | None = None
    crossover_probability: float = 0.5
    tries: int = 2
    backend: BackendName = "numpy"

    def __post_init__(self) -> None:
        for name, least in (("population", 2), ("generations", 0), ("tries", 1), ("n_objectives", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}; got {getattr(self, name)}")
        if not 0.0 <= self.crossover_probability <= 1.0:
            raise ValueError(f"crossover_probability is between 0 and 1; got {self.crossover_probability}")
        _ = self._survival, self._thresholds, self._backend

    def run(
        self,
        *,
        seed: int = 0,
        bounds: ArrayLike | None = None,
        initial: Codes | None = None,
        reference: ArrayLike | None = None,
    ) -> tuple[FrontResult, ...]:
        """Evolve all populations: one per device, for each of them one per row of bounds.

        On JAX the first run compiles; others with arguments of the same shapes do not.

        Args:
            seed: The same seed and the same losses give the same result.
            bounds: What each constraint is at most, shape (c,), or (k, c) for k populations per device.
            initial: Networks to start from, shape (i, d), at most as many as a population has; random ones join them.
            reference: The worst losses of interest, shape (m,), or a row per population; if None, the worst of the
                feasible networks that a population evaluated.

        Raises:
            ValueError: Arguments of another shape, a seed below 0 or of more than 32 bits, or `losses` or
                `constraints` give something else than finite numbers of their shapes.
        """
        if not 0 <= seed < SEEDS:
            raise ValueError(f"a seed is between 0 and 2^32 - 1; got {seed}")
        limits, first = self._limits(bounds), self._initial(initial)
        with self._backend.float64():
            log = {name: np.asarray(values) for name, values in self._evolve(limits, first, np.uint32(seed)).items()}
        references = self._references(reference, log["losses"].shape[1])
        return tuple(
            self._result({name: values[:, number] for name, values in log.items()}, point)
            for number, point in enumerate(references)
        )

    @cached_property
    def _backend(self) -> Backend:
        return backend_of(self.backend)

    @cached_property
    def _genotypes(self) -> Genotypes:
        return genotypes_of(self.space)

    @cached_property
    def _survival(self) -> Survival:
        if self.algorithm == "nsga2":
            return Nsga2Survival(self.population)
        if self.algorithm == "nsga3":
            return Nsga3Survival(self.population, reference_directions(self.n_objectives, self.population))
        raise ValueError(f"algorithm is 'nsga2' or 'nsga3'; got {self.algorithm!r}")

    @cached_property
    def _thresholds(self) -> NDArray[np.uint32]:
        return mutation_thresholds(self.space, mutation_probability_of(self.space, self.mutation_probability))

    @cached_property
    def _evolve(self) -> Callable[..., dict[str, Array]]:
        return self._backend.compiled(self._all_generations)

    def _limits(self, bounds: ArrayLike | None) -> Floats:
        """Bounds, shape (k, c)."""
        if (bounds is None) != (self.constraints is None):
            raise ValueError("bounds are what constraints are limited by; give both or none of them")
        limits = np.zeros((1, 0)) if bounds is None else np.asarray(bounds, dtype=np.float64)
        if limits.ndim not in (1, 2) or len(limits) == 0 or not np.isfinite(limits).all():
            raise ValueError(f"bounds need the shape (c,) or (k, c) and finite numbers; got {limits.tolist()}")
        return np.atleast_2d(limits)

    def _initial(self, initial: Codes | None) -> Codes:
        if initial is None:
            return np.zeros((0, len(self.space.decisions)), dtype=np.int32)
        codes = self.space.canonical(np.asarray(initial))
        if len(codes) > self.population:
            raise ValueError(f"a population of {self.population} cannot start from {len(codes)} networks")
        return codes

    def _references(self, reference: ArrayLike | None, n_populations: int) -> list[Floats | None]:
        """The reference point of each population, shape (m,), or None."""
        if reference is None:
            return [None] * n_populations
        points = np.asarray(reference, dtype=np.float64)
        shape = n_populations, self.n_objectives
        if points.shape not in (shape, shape[1:]):
            raise ValueError(f"reference needs the shape {shape[1:]} or {shape}; got {points.shape}")
        return list(np.broadcast_to(points, shape))

    def _n_devices(self) -> int:
        """Devices that losses or constraints are given for; 1 where they have no axis for them."""
        codes = self._backend.xp.asarray(np.zeros((1, len(self.space.decisions)), dtype=np.int32))
        functions = [self.losses] if self.constraints is None else [self.losses, self.constraints]
        shapes = [function(codes).shape for function in functions]
        devices = {shape[0] for shape in shapes if len(shape) == 3}
        if len(devices) > 1:
            raise ValueError(f"losses are those of {shapes[0][0]} devices, constraints those of {shapes[1][0]}")
        return devices.pop() if devices else 1

    def _all_generations(self, limits: Array, initial: Array, seed: Array) -> dict[str, Array]:
        """What was evaluated and who survived, with the generations as the first axis; the whole of an executable."""
        program = _Program(self, self._backend, self._genotypes, self._n_devices(), limits, seed)
        first = program.first_candidates(initial)
        start = program.nothing(), self._survival.start(self._backend.xp, (program.n_populations,), self.n_objectives)
        return self._backend.loop(
            self.generations + 1, lambda number, state: program.generation(number, state, first), start
        )[1]

    def _result(self, log: dict[str, Any], reference: Floats | None) -> FrontResult:
        """The result of one population from its log, with the shapes (generations, n, ...)."""
        codes = log["codes"].reshape(-1, len(self.space.decisions)).astype(np.int32)
        losses = log["losses"].reshape(len(codes), self.n_objectives)
        violations = log["violations"].reshape(len(codes))
        evaluated = np.flatnonzero(log["is_new"])
        wrong = evaluated[~np.isfinite(np.column_stack([losses, violations])[evaluated]).all(axis=1)]
        if len(wrong):
            raise ValueError(
                f"losses of {self.space.decode(codes[wrong[:1]])[0]} are {losses[wrong[0]]}, its violation is "
                f"{violations[wrong[0]]}; all must be finite"
            )
        least = evaluated[violations[evaluated] == violations[evaluated].min()]
        best = least if violations[least[0]] > 0 else least[non_dominated(losses[least])]
        best = best[unique_rows(codes[best])]
        best = best[np.argsort(losses[best, 0], kind="stable")]
        if reference is None:
            reference = losses[violations <= 0].max(axis=0, initial=-np.inf)
        survivors = [rows[rows >= 0] for rows in log["survivors"]]
        return FrontResult(
            codes=codes[best],
            losses=losses[best],
            violations=violations[best],
            population=codes[survivors[-1]],
            reference=reference,
            history=self._history(codes, losses, violations, survivors, reference),
        )

    def _history(
        self, codes: Codes, losses: Floats, violations: Floats, survivors: list[Any], reference: Floats
    ) -> pd.DataFrame:
        import pandas as pd

        volumes = []
        for rows in survivors:
            front = losses[rows[violations[rows] <= 0]]
            is_cheap = self.n_objectives <= MAX_HYPERVOLUME_OBJECTIVES
            volumes.append(hypervolume(front[non_dominated(front)], reference) if is_cheap else np.nan)
        evaluations = np.cumsum((violations < np.inf).reshape(len(survivors), -1).sum(axis=1))
        diversity = [mean_distance(self.space, codes[rows]) for rows in survivors]
        return pd.DataFrame({"evaluations": evaluations, "hypervolume": volumes, "diversity": diversity})


class _Population(NamedTuple):
    """`g` populations of `n` networks each, the best first.

    Attributes:
        codes: Shape (g, n, d).
        keys: Their `Genotypes.pack`, shape (g, n, w).
        losses: Shape (g, n, m).
        violations: Shape (g, n); infinite where fewer networks were found, whose codes mean nothing.
        serials: The how manieth of all evaluated networks each one is, shape (g, n); -1 where it was not found.
    """

    codes: Array
    keys: Array
    losses: Array
    violations: Array
    serials: Array


@dataclass(frozen=True, eq=False)
class _Program:
    """One run; the populations of one device come one after the other."""

    settings: FrontEvolution
    backend: Backend
    genotypes: Genotypes
    n_devices: int
    limits: Array
    seed: Array

    @property
    def xp(self) -> ModuleType:
        return self.backend.xp

    @property
    def n_populations(self) -> int:
        return self.n_devices * len(self.limits)

    def words(self, shape: tuple[int, ...], stream: int, generation: Any = 0) -> Array:
        return random_words(self.xp, (self.n_populations, *shape), self.seed, stream, generation)

    def nothing(self) -> _Population:
        """Populations of networks that were not found."""
        xp, shape = self.xp, (self.n_populations, self.settings.population)
        codes = xp.zeros((*shape, self.genotypes.n_decisions), dtype=np.int32)
        return _Population(
            codes,
            self.genotypes.pack(xp, codes),
            xp.zeros((*shape, self.settings.n_objectives), dtype=np.float64),
            xp.full(shape, np.inf, dtype=np.float64),
            xp.full(shape, -1, dtype=np.int32),
        )

    def first_candidates(self, initial: Array) -> Array:
        """`initial`, shape (i, d), and random networks after them, for each population; shape (g, c, d)."""
        xp, n = self.xp, self.settings.population * self.settings.tries
        random = self.genotypes.random(xp, self.words((n, self.genotypes.n_decisions), FIRST))
        return xp.concatenate([xp.stack([xp.asarray(initial)] * self.n_populations), random], axis=1)[:, :n]

    def generation(
        self, number: Any, state: tuple[_Population, Any], first: Array
    ) -> tuple[tuple[_Population, Any], dict[str, Array]]:
        """The best of a population and its children, which are those of `first` in generation 0; and what to log."""
        xp, n = self.xp, self.settings.population
        population, remembered = state
        number = xp.asarray(number, dtype=np.int32)
        children = self.evaluated(xp.where(number == 0, first, self.breed(population, number)), population, number)
        pool = _Population(*(xp.concatenate(parts, axis=1) for parts in zip(population, children, strict=True)))
        rank = fronts(xp, pool.losses, pool.violations, enough=n)
        words = self.words((2 * n,), SURVIVAL, number)
        best, remembered = self.settings._survival.select(
            xp, remembered, pool.losses, pool.violations <= 0, rank, words
        )
        survivors = _Population(
            *(xp.take_along_axis(part, best if part.ndim == 2 else best[..., None], axis=1) for part in pool)
        )
        small = np.min_scalar_type(int(self.genotypes.counts.max()))
        return (survivors, remembered), {
            "codes": children.codes.astype(small),
            "losses": children.losses,
            "violations": children.violations,
            "is_new": children.serials >= 0,
            "survivors": survivors.serials,
        }

    def breed(self, population: _Population, number: Any) -> Array:
        """Candidates, shape (g, c, d)."""
        xp, genotypes, settings = self.xp, self.genotypes, self.settings
        n, d = settings.population * settings.tries, genotypes.n_decisions
        merits = settings._survival.merits(xp, population.violations)
        words = self.words((5, n), TOURNAMENTS, number)
        drawn = bounded(xp, words[:, :4], xp.asarray(np.full((1, 1, 1), settings.population, dtype=np.uint32)))
        one, other = drawn[:, :2].reshape(len(drawn), -1), drawn[:, 2:].reshape(len(drawn), -1)
        other_wins = xp.take_along_axis(merits, other, axis=1) < xp.take_along_axis(merits, one, axis=1)
        parents = xp.take_along_axis(population.codes, xp.where(other_wins, other, one)[..., None], axis=1)
        first, second = parents[:, :n], parents[:, n:]
        mutants = genotypes.mutate(xp, first, self.words((n, 2, d), GATES, number), settings._thresholds)
        crossed = genotypes.crossover(xp, first, second, self.words((n, d), CROSSING, number))
        has_two_parents = happens(xp, words[:, 4], threshold(settings.crossover_probability))
        return xp.where(has_two_parents[..., None], crossed, mutants)

    def evaluated(self, candidates: Array, population: _Population, number: Any) -> _Population:
        """The first of `candidates`, shape (g, c, d), that are new to the `population`, with their losses.

        Where there are too few, the first of the others, as networks that were not found.
        """
        xp, n = self.xp, self.settings.population
        keys = self.genotypes.pack(xp, candidates)
        is_known = equal_rows(xp, keys, population.keys) & (population.serials >= 0)[:, None, :]
        is_old = repeats(xp, keys) | is_known.any(axis=-1)
        chosen = xp.lexsort((is_old.astype(np.int32),), axis=-1)[:, :n]
        codes = xp.take_along_axis(candidates, chosen[..., None], axis=1)
        losses = self.own(self.settings.losses, codes, self.settings.n_objectives)
        is_old = xp.take_along_axis(is_old, chosen, axis=1)
        violations = xp.where(is_old, np.inf, self.violations(codes))
        serials = xp.asarray(np.arange(n, dtype=np.int32)[None]) + number * n
        serials = xp.where(is_old, -1, serials)
        return _Population(codes, xp.take_along_axis(keys, chosen[..., None], axis=1), losses, violations, serials)

    def own(self, function: Callable[[Array], Array], codes: Array, width: int) -> Array:
        """What `function` says of every population's `codes`, shape (g, n, d), on its own device; (g, n, width)."""
        g, n, d = codes.shape
        values = self.xp.asarray(function(codes.reshape(-1, d)), dtype=np.float64)
        if values.shape not in ((g * n, width), (self.n_devices, g * n, width)):
            raise ValueError(
                f"{g * n} networks need values of shape ({g * n}, {width}) or (devices, {g * n}, {width}); "
                f"got {values.shape}"
            )
        if values.ndim == 3:
            devices = np.arange(self.n_devices)
            values = values.reshape(self.n_devices, self.n_devices, -1, width)[devices, devices]
        return values.reshape(g, n, width)

    def violations(self, codes: Array) -> Array:
        """By how much every population's `codes` miss its bounds together, in units of these, shape (g, n)."""
        xp = self.xp
        violations = xp.zeros(codes.shape[:2], dtype=np.float64)
        if self.settings.constraints is None:
            return violations
        values = self.own(self.settings.constraints, codes, self.limits.shape[1])
        for column in range(values.shape[-1]):
            bound = xp.concatenate([self.limits[:, column]] * self.n_devices)[:, None]
            excess = xp.maximum(values[..., column] - bound, 0.0)
            violations = violations + excess / xp.where(bound != 0, xp.abs(bound), 1.0)
        return violations


def evolve_front(
    space: SearchSpace,
    losses: Callable[[Array], Array],
    *,
    n_objectives: int,
    algorithm: AlgorithmName = "nsga2",
    constraints: Callable[[Array], Array] | None = None,
    bounds: ArrayLike | None = None,
    population: int = 100,
    generations: int = 200,
    seed: int = 0,
    initial: Codes | None = None,
    reference: ArrayLike | None = None,
    backend: BackendName = "numpy",
) -> FrontResult:
    """The front that one population finds by a `FrontEvolution`, whose arguments and errors these are.

    Raises:
        ValueError: Also if losses or bounds are those of several populations; `FrontEvolution.run` takes them.
    """
    evolution = FrontEvolution(
        space,
        losses,
        n_objectives,
        algorithm=algorithm,
        constraints=constraints,
        population=population,
        generations=generations,
        backend=backend,
    )
    results = evolution.run(seed=seed, bounds=bounds, initial=initial, reference=reference)
    if len(results) > 1:
        raise ValueError(f"evolve_front evolves one population; these are {len(results)}: use FrontEvolution.run")
    return results[0]
