"""The storage of one worker among several: it signs the worker's trials and keeps their heartbeats going."""

from __future__ import annotations

import copy
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hanax.searchers._liveness import HEARTBEAT, WORKER, signature
from hanax.searchers._patient_storage import PatientStorage
from hanax.searchers._storages import is_outage


class WorkerStorage(PatientStorage):
    """Creates trials that say from the first moment whose they are, and tells others that their worker lives.

    Optuna's own heartbeats belong to ``study.optimize`` and pass no proxy; these are attributes of trials, which every
    storage keeps.
    """

    def __init__(self, storage: BaseStorage, name: str, on_message: Callable[[str], None], heartbeat_s: float) -> None:
        super().__init__(storage, name, on_message)
        self._signature = signature(uuid.uuid4().hex[:8], heartbeat_s)
        self._n_created = 0
        self._heart = _Heart(storage, heartbeat_s)
        weakref.finalize(self, self._heart.stop)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """A trial with the worker's signature, unless it waits for any worker.

        If an answer was lost, the trial that it told of is found by the signature, which holds a number of its own.
        """
        trial = create_trial(state=TrialState.RUNNING) if template_trial is None else copy.deepcopy(template_trial)
        self._n_created += 1
        signed = {**self._signature, "trial": self._n_created}
        if trial.state != TrialState.WAITING:
            trial.user_attrs = {**trial.user_attrs, WORKER: signed}

        def again() -> int:
            for there in self.storage.get_all_trials(study_id, deepcopy=False):
                if there.user_attrs.get(WORKER) == signed:
                    return there._trial_id
            return self.storage.create_new_trial(study_id, trial)

        trial_id = self.reach(lambda: self.storage.create_new_trial(study_id, trial), again)
        if trial.state == TrialState.RUNNING:
            self._heart.add(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Hand on; a waiting trial that starts to run becomes this worker's, one that ends needs no heartbeat."""
        changed = super().set_trial_state_values(trial_id, state, values)
        if state == TrialState.RUNNING and changed:
            self._n_created += 1
            self.set_trial_user_attr(trial_id, WORKER, {**self._signature, "trial": self._n_created})
            self._heart.add(trial_id)
        elif state.is_finished():
            self._heart.remove(trial_id)
        return changed

    def is_mine(self, trial: FrozenTrial) -> bool:
        """Whether this worker signed `trial`."""
        signed: dict[str, Any] = trial.user_attrs.get(WORKER, {})
        return bool(signed.get("name") == self._signature["name"])

    def stop(self) -> None:
        """End the heartbeats."""
        self._heart.stop()


class _Heart:
    """A thread that raises the heartbeat of running trials; it starts with the first of them."""

    def __init__(self, storage: BaseStorage, interval_s: float) -> None:
        self._storage = storage
        self._interval_s = interval_s
        self._running: dict[int, int] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, trial_id: int) -> None:
        self._running[trial_id] = 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()

    def remove(self, trial_id: int) -> None:
        self._running.pop(trial_id, None)

    def stop(self) -> None:
        self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.wait(self._interval_s):
            for trial_id, beats in list(self._running.items()):
                self._raise(trial_id, beats + 1)
        self._storage.remove_session()

    def _raise(self, trial_id: int, beats: int) -> None:
        try:
            self._storage.set_trial_user_attr(trial_id, HEARTBEAT, beats)
        except (UpdateFinishedTrialError, KeyError):  # it ended, or somebody deleted the study
            self.remove(trial_id)
        except Exception as error:
            if not is_outage(error):
                raise
        else:
            if trial_id in self._running:
                self._running[trial_id] = beats
