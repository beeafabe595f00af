"""What our Optuna samplers share: each network is proposed once, however many workers share the study."""

from __future__ import annotations

import logging
import threading
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from hanax.searchers._breeding import sample
from hanax.searchers._discrete_study import (
    CLAIM,
    CanonicalParams,
    Parameters,
    Record,
    StudyReader,
    is_discrete,
    parameters_of,
)
from hanax.searchers._memory import row_keys
from hanax.searchers._problem import Codes

ATTEMPTS = 20
"""Proposals for a trial, each of which another worker was quicker to claim, before one of them is taken twice."""


class DiscreteSampler(BaseSampler):
    """A sampler of networks: subclasses say which one comes next, given what is known and under way.

    Draws depend on the seed and the number of the trial alone, so that workers with the same seed differ and a study
    that is continued goes on as if it had never stopped.
    """

    def __init__(
        self,
        seed: int | None,
        search_space: Mapping[str, BaseDistribution] | None,
        canonical: CanonicalParams | None,
        canonical_codes: Callable[[Codes], Codes] | None,
    ) -> None:
        if canonical is not None and canonical_codes is not None:
            raise ValueError("canonical and canonical_codes say the same; give one of them")
        if canonical_codes is not None and search_space is None:
            raise ValueError("canonical_codes needs search_space, which sets the columns of the codes")
        self._seed = _entropy() if seed is None else seed
        self._given_space = None if search_space is None else dict(search_space)
        self._canonical = canonical
        self._canonical_codes = canonical_codes
        self._study: tuple[BaseStorage, int] | None = None
        self._intersection = IntersectionSearchSpace()
        self._reading: tuple[dict[str, BaseDistribution], Parameters, StudyReader] | None = None
        self._has_said_exhausted = False
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        return {**kept, "_study": None, "_intersection": IntersectionSearchSpace(), "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def reseed_rng(self) -> None:
        """Draw from now on as an unseeded sampler would."""
        self._seed = _entropy()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """`search_space` if it was given; else the parameters that all trials have in common."""
        if self._given_space is not None:
            return dict(self._given_space)
        with self._lock:
            self._look_at(study)
            common = self._intersection.calculate(study)
        if common:
            return common
        begun = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number and other.params]
        return _common_space(begun)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next network; parameters that are continuous are random."""
        params = {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if not is_discrete(distribution)
        }
        if len(params) < len(search_space):
            with self._lock:
                params |= self._next_network(study, trial, search_space)
        return {name: params[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        seed = np.random.SeedSequence([self._seed, trial.number, zlib.crc32(param_name.encode())])
        sampler = RandomSampler(seed=int(seed.generate_state(1)[0]))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    @abstractmethod
    def _propose(self, study: Study, parameters: Parameters, record: Record, rng: np.random.Generator) -> Codes:
        """The next network, shape (1, d), which is not known to `record`; no rows if there is none."""

    def _forget(self) -> None:
        """The study or its parameters are others than before."""

    def _next_network(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of a network that no trial of `study` had before, whichever worker runs it.

        A worker writes down what it claims and then looks at the claims of the others: of two that claim the same at
        once, the later reader sees it and yields.
        """
        parameters, reader = self._read_as(study, search_space)
        for attempt in range(ATTEMPTS):
            others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
            record = reader.read(others, study.directions)
            rng = np.random.default_rng([self._seed, trial.number, attempt])
            row = self._propose(study, parameters, record, rng)
            is_exhausted = len(row) == 0
            if is_exhausted:
                self._say_exhausted(len(record.known))
                row = sample(parameters.domain, rng, 1)
            study._storage.set_trial_system_attr(trial._trial_id, CLAIM, parameters.claim(row[0]))
            if is_exhausted or not self._is_claimed_twice(study, trial, reader, row):
                break
        return parameters.params(row[0])

    def _say_exhausted(self, n_networks: int) -> None:
        if not self._has_said_exhausted:
            logging.getLogger(__name__).warning("all %d networks were proposed; now they repeat", n_networks)
        self._has_said_exhausted = True

    def _is_claimed_twice(self, study: Study, trial: FrozenTrial, reader: StudyReader, row: Codes) -> bool:
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        return row_keys(row)[0] in reader.networks(others)

    def _look_at(self, study: Study) -> None:
        """Keep nothing of another study."""
        if self._study is None or self._study[0] is not study._storage or self._study[1] != study._study_id:
            self._study = study._storage, study._study_id
            self._intersection = IntersectionSearchSpace()
            self._reading = None

    def _read_as(self, study: Study, search_space: dict[str, BaseDistribution]) -> tuple[Parameters, StudyReader]:
        """What reads `study`, kept as long as study and parameters stay the same."""
        self._look_at(study)
        if self._reading is None or self._reading[0] != search_space:
            if self._canonical_codes is not None and list(search_space) != list(self._given_space or {}):
                missing = sorted(set(self._given_space or {}) - set(search_space))
                raise ValueError(f"canonical_codes needs all of search_space; without it: {', '.join(missing)}")
            parameters = parameters_of(search_space, self._canonical, self._canonical_codes)
            self._reading = dict(search_space), parameters, StudyReader(parameters)
            self._has_said_exhausted = False
            self._forget()
        return self._reading[1], self._reading[2]


def _entropy() -> int:
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])


def _common_space(trials: list[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Parameters that all of `trials`, finished or not, have in common, by name."""
    if not trials:
        return {}
    return {
        name: distribution
        for name, distribution in sorted(trials[0].distributions.items())
        if all(trial.distributions.get(name) == distribution for trial in trials)
    }
