"""Optuna's samplers over a search space, with its storages, dashboard and many workers."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hanax.search_spaces import Arch, Decision, SearchSpace
from hanax.searchers._liveness import HEARTBEAT, HEARTBEAT_S, WORKER, Watch
from hanax.searchers._memory import Told, Unseen, row_keys
from hanax.searchers._problem import Codes, Constraint, Costs, Floats, Objective
from hanax.searchers._storages import hide_password, open_storage

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from optuna.trial import FrozenTrial

    from hanax.searchers._worker_storage import WorkerStorage

SamplerName = Literal["linas", "evolution", "nsga2", "tpe", "random"]

FINGERPRINT = "space_fingerprint"
OBJECTIVES = "objectives"
CONSTRAINTS = "constraints"
ARCH = "arch"
FROM_MEMORY = "from_memory"
VIOLATION = "violation"

LINAS_BATCH = 10
"""Networks that ``linas`` proposes per round, at least."""

SHORTEST_PAUSE_S, POLL_S = 0.002, 0.2
"""Time between two looks at a study when this worker waits for others; it doubles from the first to the second."""

MAX_REPEATS = 10
"""Trials in a row with known networks before a random new network is tried."""


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class OptunaSearcher:
    """An Optuna study through ask and tell: one parameter per decision, named after it, with its options as values.

    Optuna's own samplers know nothing of decisions that do not count, so they propose the same network under different
    parameters. Such a trial is answered from memory. After `MAX_REPEATS` of them in a row, the next network is a random
    new one, which the study sees as an enqueued trial.

    A study in a storage continues where it was left, and any number of workers may share it; give each its own seed.
    What others found is known here, never proposed again, and part of `results`. What another worker evaluates is not
    proposed either; if that worker dies, its network is put back into the study's queue, for whoever asks next. Two
    workers that choose the same network at the same moment find out before either gets it (see `_has_claim`).
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        sampler: SamplerName,
        n_objectives: int | None = None,
        objectives: Sequence[Objective] | None = None,
        constraints: Sequence[Constraint] = (),
        seed: int = 0,
        storage: str | None = None,
        study_name: str = "hanax",
        batch: int = 1,
        population: int = 50,
        features: Callable[[Codes], Floats] | None = None,
        reference: Sequence[float] | None = None,
        total: int | None = None,
        facts: Mapping[str, Any] | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        on_message: Callable[[str], None] = _to_stderr,
    ) -> None:
        """Create the study, or open it where `storage` holds it already.

        Args:
            space: Where to search.
            sampler: Our `LinasSampler` or `EvolutionSampler`; Optuna's NSGA-II, tree-structured Parzen estimator, or
                random sampler.
            n_objectives: Number of losses per network, for a study that minimises losses without a name.
            objectives: In place of `n_objectives`: the study has their names, directions and values, as a person
                expects them; `tell` still takes losses.
            constraints: What the study calls the violations of networks that were annotated with costs.
            seed: The same seed and the same results give the same proposals; a study that is continued draws anew.
            storage: See `open_storage`; None keeps the study in memory.
            study_name: Name of the study within the storage.
            batch: Networks per `ask`.
            population: Size of the population of ``nsga2`` and ``evolution``.
            features: Further columns for the predictors of ``linas``, shape (n, f), e.g. MACs, of canonical codes.
            reference: For ``linas``: the worst value of interest of each objective, from which hypervolume counts.
            total: Networks that the study shall have, over all its workers and with those it has already. `ask` gives
                no rows when it has them, and waits as long as others evaluate the last ones: should they die, their
                networks are left to do.
            facts: What else must be the same for all who work on the study, e.g. where costs come from; JSON values.
            heartbeat_s: Time between two signs of life in the storage.
            on_message: Told when the storage is away, when it is back, and when a dead worker's network is put back.

        Raises:
            ValueError: An unknown sampler, `features` or `reference` for another one than ``linas``, or a stored study
                over another space (names both fingerprints), with other objectives, constraints or facts.
            StorageError: The storage cannot be opened.
        """
        import optuna

        if (n_objectives is None) == (objectives is None):
            raise ValueError("give either n_objectives or objectives")
        self._space = space
        self._signs = np.array([part.sign for part in objectives] if objectives else [1.0] * (n_objectives or 0))
        self._n_objectives = len(self._signs)
        self._constraints = tuple(constraints)
        self._batch = batch
        self._total = total
        self._say = on_message
        self._storage = _worker_storage(storage, heartbeat_s, on_message)
        self._distributions = {decision.name: _distribution(decision) for decision in space.decisions}
        self._study = optuna.create_study(
            storage=self._storage,
            sampler=optuna.samplers.RandomSampler(),  # replaced below, when the number of trials is known
            study_name=study_name,
            directions=["minimize" if sign > 0 else "maximize" for sign in self._signs],
            load_if_exists=True,
        )
        self._check_study(objectives, facts or {})
        entropy = np.random.SeedSequence([seed, len(self._study.get_trials(deepcopy=False))])
        self._study.sampler = self._sampler(sampler, int(entropy.generate_state(1)[0]), population, features, reference)
        self._rng = np.random.default_rng(entropy.spawn(1)[0])
        self._unseen = Unseen(space)
        self._told = Told(space)
        self._notes: dict[bytes, dict[str, float]] = {}
        self._open: dict[bytes, list[optuna.Trial]] = {}
        self._stored: set[bytes] = set()
        self._read_trials: set[int] = set()
        self._watch = Watch()
        self._others: list[FrozenTrial] = []
        self._elsewhere: dict[bytes, Codes] = {}
        self._read_study()

    @property
    def study(self) -> optuna.Study:
        """The Optuna study, to look at."""
        return self._study

    def results(self) -> tuple[Codes, Floats, Floats]:
        """Codes, losses and violations of every network that the study knows, whoever evaluated it."""
        self._read_study()
        return self._told.arrays(self._n_objectives)

    def table(self) -> pd.DataFrame:
        """Every network that the study knows with its costs, as they were annotated: ``arch`` and a column per cost.

        Raises:
            ValueError: A network was told without costs.
        """
        import pandas as pd
        from optuna.trial import TrialState

        rows: dict[str, dict[str, Any]] = {}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if FROM_MEMORY in trial.user_attrs:
                continue
            costs = {name: value for name, value in trial.user_attrs.items() if name not in (ARCH, WORKER, HEARTBEAT)}
            if not costs:
                raise ValueError(f"trial {trial.number} of study {self._study.study_name!r} was told without its costs")
            rows.setdefault(trial.user_attrs[ARCH], {ARCH: trial.user_attrs[ARCH], **costs})
        return pd.DataFrame(list(rows.values()))

    def ask(self) -> Codes:
        """Up to `batch` canonical networks never proposed before, shape (n, d); no rows: nothing new can be found."""
        proposals = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
        repeats = 0
        while len(proposals) < self._batch:
            self._read_study()
            if self._has_all_there_is():
                if len(proposals) or not self._waits_for_others():
                    break
                time.sleep(POLL_S)
                continue
            if repeats == MAX_REPEATS:
                unseen = self._unseen.draw(self._rng, 1)
                if len(unseen) == 0:
                    break
                self._enqueue(unseen)
            new = self._propose()
            proposals = np.concatenate([proposals, new])
            repeats = 0 if len(new) or repeats == MAX_REPEATS else repeats + 1
        return proposals

    def annotate(self, codes: Codes, costs: Costs) -> None:
        """Costs of `codes` to show in the study as user attributes of their trials; call it before they are told."""
        for index, key in enumerate(row_keys(self._space.canonical(codes))):
            self._notes[key] = {name: float(values[index]) for name, values in costs.items()}

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
                self._finish_all(news[0][[index]], key)
            else:
                self._add_trial(news[0][[index]], key)

    def close(self) -> None:
        """Put what was asked for and not told back into the study's queue, for others; end the signs of life."""
        if self._storage is None:
            return
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._storage.is_mine(trial):
                self._give_up(trial)
        for key in self._open:
            self._enqueue(np.frombuffer(key, dtype=np.int32)[None])
        self._open.clear()
        self._storage.stop()

    def _propose(self) -> Codes:
        """The network of a new trial if it is for this worker to evaluate, shape (1, d); otherwise no rows."""
        from optuna.exceptions import UpdateFinishedTrialError

        none = np.zeros((0, len(self._space.decisions)), dtype=np.int32)
        try:
            trial = self._study.ask(self._distributions)
        except UpdateFinishedTrialError:  # somebody took this worker for dead
            return none
        codes = self._codes(trial.params)
        key = row_keys(codes)[0]
        if not self._has_claim(trial.number, key):
            self._give_up(trial)
        elif key in self._told:
            self._finish(trial, key, from_memory=True)
        elif key in self._open:
            self._open[key].append(trial)
        else:
            self._open[key] = [trial]
            self._unseen.take(codes)
            return codes
        return none

    def _has_claim(self, number: int, key: bytes) -> bool:
        """Whether trial `number` may go on with its network: nobody else is at it, and the total leaves room for it.

        Lamport's bakery (1974, doi:10.1145/361082.361093): the number of a trial is its ticket, and a worker waits
        until all with earlier tickets have chosen. Then of two with the same network exactly the later one gives up,
        and of those who would exceed the total exactly the latest.
        """
        if self._storage is None:
            return True
        pause = SHORTEST_PAUSE_S
        while True:
            self._read_study()
            earlier = [(trial, self._network(trial)) for trial in self._others if trial.number < number]
            if all(network is not None or trial.state.name == "WAITING" for trial, network in earlier):
                break
            time.sleep(pause)
            pause = min(2 * pause, POLL_S)
        if key in self._told or key in self._open:
            return True
        rivals = {row_keys(network)[0] for _, network in earlier if network is not None}
        n_claimed = len(self._told) + len(self._open) + sum(rival not in self._told for rival in rivals)
        return key not in rivals and (self._total is None or n_claimed < self._total)

    def _has_all_there_is(self) -> bool:
        """Whether every network that is wanted is known or under way."""
        running = sum(trial.state.name == "RUNNING" for trial in self._others)
        is_full = self._total is not None and len(self._told) + len(self._open) + running >= self._total
        return is_full or self._unseen.is_exhausted

    def _waits_for_others(self) -> bool:
        """Whether others are at networks that this worker would have to evaluate if they died."""
        return self._total is not None and len(self._told) < self._total and bool(self._others) and not self._open

    def _finish_all(self, codes: Codes, key: bytes) -> None:
        """End the trials of a network that was told; if this worker was taken for dead meanwhile, save the outcome."""
        first, *repeats = self._open.pop(key)
        is_stored = self._finish(first, key)
        for trial in repeats:
            self._finish(trial, key, from_memory=True)
        if not is_stored:
            self._read_study()
            if key not in self._stored and key not in self._elsewhere:
                self._add_trial(codes, key)

    def _finish(self, trial: optuna.Trial, key: bytes, *, from_memory: bool = False) -> bool:
        """End `trial` with the known outcome of its network; False if somebody else ended it."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        losses, violation = self._told[key]
        try:
            known = {FROM_MEMORY: True} if from_memory else {}
            for name, value in {**self._attributes(key), **known}.items():
                trial.set_user_attr(name, value)
            for name, value in self._violations(key, violation).items():
                trial.set_constraint(name, value)
            told = self._study.tell(trial, self._values(losses), skip_if_finished=True)
        except UpdateFinishedTrialError:
            return False
        return told.state == TrialState.COMPLETE

    def _give_up(self, trial: optuna.Trial | FrozenTrial) -> bool:
        """End `trial` without an outcome; False if somebody else has ended it."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            self._study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return False
        return True

    def _add_trial(self, codes: Codes, key: bytes) -> None:
        import optuna

        losses, violation = self._told[key]
        self._study.add_trial(
            optuna.create_trial(
                params=self._params(codes),
                distributions=self._distributions,
                values=self._values(losses),
                constraints=self._violations(key, violation),
                user_attrs=self._attributes(key),
            )
        )

    def _enqueue(self, codes: Codes) -> None:
        self._study.enqueue_trial(self._params(codes), user_attrs={ARCH: str(self._space.decode(codes)[0])})

    def _read_study(self) -> None:
        """Learn what other workers and earlier runs found, and what others are at; put back what the dead were at."""
        if self._storage is None:
            return
        from optuna.trial import TrialState

        trials = self._study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
        )
        for trial in trials:
            if trial.state == TrialState.COMPLETE and trial.number not in self._read_trials:
                self._read_trials.add(trial.number)
                self._learn(trial)
        self._others = [
            trial for trial in trials if trial.state != TrialState.COMPLETE and not self._storage.is_mine(trial)
        ]
        running = [trial for trial in self._others if trial.state == TrialState.RUNNING]
        if dead := self._watch.dead(running, self._storage.back_since):
            for trial in dead:
                self._put_back(trial)
            self._read_study()
            return
        elsewhere = {row_keys(codes)[0]: codes for codes in map(self._network, running) if codes is not None}
        for key, codes in self._elsewhere.items():
            if key not in elsewhere and key not in self._told and key not in self._open:
                self._unseen.put_back(codes)
        for codes in elsewhere.values():
            self._unseen.take(codes)
        self._elsewhere = elsewhere

    def _sampler(
        self,
        name: SamplerName,
        seed: int,
        population: int,
        features: Callable[[Codes], Floats] | None,
        reference: Sequence[float] | None,
    ) -> optuna.samplers.BaseSampler:
        from optuna import samplers

        for what, given in (("features", features), ("reference", reference)):
            if given is not None and name != "linas":
                raise ValueError(f"{what}: only sampler 'linas' uses it; got sampler {name!r}")
        if name == "linas":
            from hanax.searchers._linas_sampler import LinasSampler

            return LinasSampler(
                seed=seed,
                search_space=self._distributions,
                canonical_codes=self._space.canonical,
                features=features,
                reference=reference,
                batch=max(LINAS_BATCH, self._batch),
            )
        if name == "evolution":
            from hanax.searchers._evolution_sampler import EvolutionSampler

            return EvolutionSampler(
                seed=seed,
                population=population,
                search_space=self._distributions,
                canonical_codes=self._space.canonical,
            )
        if name == "nsga2":
            return samplers.NSGAIISampler(population_size=population, seed=seed)
        if name == "tpe":
            # Jointly, for any number of objectives: decision by decision takes Optuna ten times as long.
            return samplers.TPESampler(seed=seed, multivariate=True)
        if name == "random":
            return samplers.RandomSampler(seed=seed)
        raise ValueError(f"unknown sampler {name!r}; known: linas, evolution, nsga2, tpe, random")

    def _learn(self, trial: FrozenTrial) -> None:
        codes = self._codes(trial.params)
        key = row_keys(codes)[0]
        self._stored.add(key)
        if key not in self._told and key not in self._open:
            self._unseen.take(codes)
            violation = sum(max(value, 0.0) for value in trial.constraints.values())
            self._told.add(codes, self._signs * np.array([trial.values]), np.array([violation]))

    def _put_back(self, trial: FrozenTrial) -> None:
        """End the trial of a dead worker; exactly one of those who find it dead puts its network back."""
        if not self._give_up(trial):
            return
        codes = self._network(trial)
        if codes is None or row_keys(codes)[0] in self._stored:
            return
        self._enqueue(codes)
        self._say(f"the worker of trial {trial.number} is dead; its network {self._space.decode(codes)[0]} is put back")

    def _network(self, trial: FrozenTrial) -> Codes | None:
        """The network of a trial that runs or waits, shape (1, d); None while it is being chosen."""
        if ARCH in trial.user_attrs:
            return self._space.canonical(self._space.encode([Arch.parse(trial.user_attrs[ARCH])]))
        return self._codes(trial.params) if len(trial.params) == len(self._distributions) else None

    def _attributes(self, key: bytes) -> dict[str, Any]:
        """What a person wants to read beside the values of a network."""
        codes = np.frombuffer(key, dtype=np.int32)[None]
        return {ARCH: str(self._space.decode(codes)[0]), **self._notes.get(key, {})}

    def _violations(self, key: bytes, violation: float) -> dict[str, float]:
        """The violation of each constraint by its name; without the costs for that, of all together."""
        notes = self._notes.get(key, {})
        if not self._constraints or any(part.name not in notes for part in self._constraints):
            return {VIOLATION: violation}
        return {str(part): float(part.violation(np.array([notes[part.name]]))[0]) for part in self._constraints}

    def _values(self, losses: Sequence[float]) -> list[float]:
        """Losses as the study's directions want them."""
        return [float(value) for value in self._signs * np.array(losses)]

    def _check_study(self, objectives: Sequence[Objective] | None, facts: Mapping[str, Any]) -> None:
        """Refuse a study that is another's; a new one learns whose it is."""
        study = self._study
        name, known = study.study_name, study.user_attrs
        if FINGERPRINT not in known:
            study.set_user_attr(FINGERPRINT, self._space.fingerprint)
        elif known[FINGERPRINT] != self._space.fingerprint:
            raise ValueError(f"study {name!r} searches space {known[FINGERPRINT]}; "
                             f"this one ({self._space.name}) is {self._space.fingerprint}")  # fmt: skip
        if len(study.directions) != self._n_objectives:
            raise ValueError(f"study {name!r} has {len(study.directions)} objectives; asked for {self._n_objectives}")
        named = {
            OBJECTIVES: ", ".join(f"{part.direction} {part.name}" for part in objectives or ()),
            CONSTRAINTS: "; ".join(map(str, self._constraints)),
        }
        for what, asked in {**(named if objectives else {}), **facts}.items():
            if what not in known:
                study.set_user_attr(what, asked)
            elif known[what] != asked:
                raise ValueError(f"study {name!r} has {what} {known[what]!r}; asked for {asked!r}. Take another name")
        if objectives is not None:
            from optuna.exceptions import ExperimentalWarning

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names([part.name for part in objectives])

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


def _worker_storage(storage: str | None, heartbeat_s: float, on_message: Callable[[str], None]) -> WorkerStorage | None:
    if storage is None:
        return None
    from hanax.searchers._worker_storage import WorkerStorage

    return WorkerStorage(open_storage(storage), hide_password(storage), on_message, heartbeat_s)
