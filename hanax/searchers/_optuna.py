"""Optuna's samplers over a search space, with its storages, dashboard and many workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hanax.search_spaces import Decision, SearchSpace
from hanax.searchers._memory import Told, Unseen, row_keys
from hanax.searchers._problem import Codes, Floats

if TYPE_CHECKING:
    import optuna

SamplerName = Literal["nsga2", "tpe", "random"]

FINGERPRINT = "space_fingerprint"
VIOLATION = "violation"

MAX_REPEATS = 10
"""Trials in a row with known networks before a random new network is tried."""


class OptunaSearcher:
    """An Optuna study through ask and tell: one parameter per decision, named after it, with its options as values.

    Optuna knows nothing of decisions that do not count, so it proposes the same network under different parameters.
    Such a trial is answered from memory. After `MAX_REPEATS` of them in a row, the next network is a random new one,
    which the study sees as an enqueued trial.

    A study in a storage continues where it was left, and several workers may share it; give each its own seed. What
    others found is then known here, never proposed again, and part of `results`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        sampler: SamplerName,
        n_objectives: int,
        seed: int = 0,
        storage: str | None = None,
        study_name: str = "hanax",
        batch: int = 1,
        population: int = 50,
    ) -> None:
        """Create the study, or open it where `storage` holds it already.

        Args:
            space: Where to search.
            sampler: Optuna's NSGA-II, tree-structured Parzen estimator, or random sampler.
            n_objectives: Number of losses per network.
            seed: The same seed and the same results give the same proposals; a study that is continued draws anew.
            storage: A database URL, the path of a journal file, or None to keep the study in memory.
            study_name: Name of the study within the storage.
            batch: Networks per `ask`.
            population: Size of a generation of ``nsga2``.

        Raises:
            ValueError: An unknown sampler, or a stored study over another space (names both fingerprints) or with
                another number of objectives.
        """
        import optuna

        self._space = space
        self._n_objectives = n_objectives
        self._batch = batch
        self._shared = storage is not None
        self._distributions = {decision.name: _distribution(decision) for decision in space.decisions}
        self._study = optuna.create_study(
            storage=_storage(storage),
            sampler=optuna.samplers.RandomSampler(),  # replaced below, when the number of trials is known
            study_name=study_name,
            directions=["minimize"] * n_objectives,
            load_if_exists=True,
        )
        self._check_study()
        entropy = np.random.SeedSequence([seed, len(self._study.get_trials(deepcopy=False))])
        self._study.sampler = _sampler(sampler, int(entropy.generate_state(1)[0]), population)
        self._rng = np.random.default_rng(entropy.spawn(1)[0])
        self._unseen = Unseen(space)
        self._told = Told(space)
        self._open: dict[bytes, list[optuna.Trial]] = {}
        self._read_trials: set[int] = set()
        self._read_study()

    @property
    def study(self) -> optuna.Study:
        """The Optuna study, to look at."""
        return self._study

    def results(self) -> tuple[Codes, Floats, Floats]:
        """Codes, losses and violations of every network that the study knows, whoever evaluated it."""
        self._read_study()
        return self._told.arrays(self._n_objectives)

    def ask(self) -> Codes:
        """Up to `batch` canonical networks never proposed before, shape (n, d); no rows: nothing new can be found."""
        self._read_study()
        proposals = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
        repeats = 0
        while len(proposals) < self._batch and not self._unseen.is_exhausted:
            if repeats == MAX_REPEATS:
                unseen = self._unseen.draw(self._rng, 1)
                if len(unseen) == 0:
                    break
                self._study.enqueue_trial(self._params(unseen))
            new = self._propose(self._study.ask(self._distributions))
            proposals = np.concatenate([proposals, new])
            repeats = 0 if len(new) or repeats == MAX_REPEATS else repeats + 1
        return proposals

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), 0 where feasible.

        Networks that were not asked for become trials of the study too. Telling the same again changes nothing.

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit.
        """
        if np.shape(losses)[1:] != (self._n_objectives,):
            raise ValueError(f"{self._n_objectives} objectives need losses of shape ({len(codes)}, "
                             f"{self._n_objectives}); got {np.shape(losses)}")  # fmt: skip
        news = self._told.add(codes, losses, violations)
        self._unseen.take(news[0])
        for index, key in enumerate(row_keys(news[0])):
            if key in self._open:
                for trial in self._open.pop(key):
                    self._finish(trial, key)
            else:
                self._add_trial(news[0][[index]], key)

    def _propose(self, trial: optuna.Trial) -> Codes:
        """The network of `trial` if it is new, shape (1, d); no rows if it is known or asked for already."""
        codes = self._codes(trial.params)
        key = row_keys(codes)[0]
        if key in self._told:
            self._finish(trial, key)
        elif key in self._open:
            self._open[key].append(trial)
        else:
            self._open[key] = [trial]
            self._unseen.take(codes)
            return codes
        return codes[:0]

    def _finish(self, trial: optuna.Trial, key: bytes) -> None:
        losses, violation = self._told[key]
        trial.set_constraint(VIOLATION, violation)
        self._study.tell(trial, losses)

    def _add_trial(self, codes: Codes, key: bytes) -> None:
        import optuna

        losses, violation = self._told[key]
        self._study.add_trial(
            optuna.create_trial(
                params=self._params(codes),
                distributions=self._distributions,
                values=losses,
                constraints={VIOLATION: violation},
            )
        )

    def _read_study(self) -> None:
        """Learn what other workers and earlier runs found."""
        if not self._shared:
            return
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.number in self._read_trials:
                continue
            self._read_trials.add(trial.number)
            codes = self._codes(trial.params)
            key = row_keys(codes)[0]
            if key not in self._told and key not in self._open:
                self._unseen.take(codes)
                violation = trial.constraints.get(VIOLATION, 0.0)
                self._told.add(codes, np.array([trial.values]), np.array([violation]))

    def _check_study(self) -> None:
        name, n_objectives = self._study.study_name, len(self._study.directions)
        stored = self._study.user_attrs.get(FINGERPRINT)
        if stored is None:
            self._study.set_user_attr(FINGERPRINT, self._space.fingerprint)
        elif stored != self._space.fingerprint:
            raise ValueError(
                f"study {name!r} searches space {stored}; this one ({self._space.name}) is {self._space.fingerprint}"
            )
        if n_objectives != self._n_objectives:
            raise ValueError(f"study {name!r} has {n_objectives} objectives; asked for {self._n_objectives}")

    def _codes(self, params: dict[str, Any]) -> Codes:
        choices = [decision.options.index(params[decision.name]) for decision in self._space.decisions]
        return self._space.canonical(np.array([choices], dtype=np.int32))

    def _params(self, codes: Codes) -> dict[str, int]:
        return {
            decision.name: decision.options[choice]
            for decision, choice in zip(self._space.decisions, codes[0].tolist(), strict=True)
        }


def _distribution(decision: Decision) -> optuna.distributions.BaseDistribution:
    """Whole numbers where the options are evenly spaced, so that samplers see their order; else categories."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    steps = sorted({later - earlier for earlier, later in zip(decision.options, decision.options[1:], strict=False)})
    if len(steps) == 1:
        return IntDistribution(decision.options[0], decision.options[-1], step=steps[0])
    return CategoricalDistribution(decision.options)


def _storage(storage: str | None) -> optuna.storages.BaseStorage | str | None:
    if storage is None or "://" in storage:
        return storage
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(storage))


def _sampler(name: SamplerName, seed: int, population: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    if name == "nsga2":
        return samplers.NSGAIISampler(population_size=population, seed=seed)
    if name == "tpe":
        # Jointly, for any number of objectives: decision by decision takes Optuna ten times as long.
        return samplers.TPESampler(seed=seed, multivariate=True)
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    raise ValueError(f"unknown sampler {name!r}; known: nsga2, tpe, random")
