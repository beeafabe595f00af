"""An Optuna storage that rides out the restart of its server. Loaded on use, as it needs Optuna."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hanax.searchers._storages import StorageError, is_outage, reason

PATIENCE_S = 300.0
"""How long a storage may be away."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
"""Time between two attempts; it doubles from the first to the longest."""

Result = TypeVar("Result")


class PatientStorage(BaseStorage):
    """Hands every call to another storage, and repeats it while that one cannot be reached.

    A call whose answer was lost may have been carried out, so repeating it looks whether it was, where that matters.

    Args:
        storage: The other one.
        name: What it is called in messages, without a password.
        on_message: Told of every failed attempt, and when the storage is back.
    """

    def __init__(self, storage: BaseStorage, name: str, on_message: Callable[[str], None]) -> None:
        self.storage = storage
        self._name = name
        self._say = on_message
        self.back_since = time.monotonic()
        """When the storage was last found back after an outage, by the monotonic clock."""

    def reach(self, work: Callable[[], Result], again: Callable[[], Result] | None = None) -> Result:
        """What `work` returns; after an outage what `again` returns, by default the same work once more.

        Raises:
            StorageError: The storage was away for `PATIENCE_S`.
        """
        away_since: float | None = None
        pause = FIRST_PAUSE_S
        while True:
            try:
                result = work()
            except Exception as error:
                if not is_outage(error):
                    raise
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                left = away_since + PATIENCE_S - now
                if left <= 0:
                    raise StorageError(f"{self._name} was away for {PATIENCE_S:g} s: {reason(error)}") from error
                pause = min(pause, left)
                self._say(f"{self._name} is away ({reason(error)}); next try in {pause:g} s, for {left:.0f} s at most")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                work = again or work
                continue
            if away_since is not None:
                self.back_since = time.monotonic()
                self._say(f"{self._name} is back after {self.back_since - away_since:.1f} s")
            return result

    # ---- studies ---------------------------------------------------------------------------------------------

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Hand on."""
        return self.reach(lambda: self.storage.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """Hand on."""
        self.reach(lambda: self.storage.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Hand on."""
        self.reach(lambda: self.storage.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Hand on."""
        self.reach(lambda: self.storage.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """Hand on."""
        return self.reach(lambda: self.storage.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Hand on."""
        return self.reach(lambda: self.storage.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Hand on."""
        return self.reach(lambda: self.storage.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Hand on."""
        return self.reach(lambda: self.storage.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Hand on."""
        return self.reach(lambda: self.storage.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """Hand on."""
        return self.reach(self.storage.get_all_studies)

    # ---- trials ----------------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Hand on."""
        return self.reach(lambda: self.storage.create_new_trial(study_id, template_trial))

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Hand on."""
        self.reach(lambda: self.storage.set_trial_param(trial_id, param_name, param_value_internal, distribution))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Hand on."""
        return self.reach(lambda: self.storage.get_trial_id_from_study_id_trial_number(study_id, trial_number))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Hand on; if an answer is lost, a trial that has become what it should become is a success."""

        def again() -> bool:
            try:
                return self.storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                trial = self.storage.get_trial(trial_id)
                if trial.state == state and trial.values == (None if values is None else list(values)):
                    return True
                raise

        return self.reach(lambda: self.storage.set_trial_state_values(trial_id, state, values), again)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Hand on."""
        self.reach(lambda: self.storage.set_trial_intermediate_value(trial_id, step, intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Hand on."""
        self.reach(lambda: self.storage.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Hand on."""
        self.reach(lambda: self.storage.set_trial_system_attr(trial_id, key, value))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Hand on."""
        return self.reach(lambda: self.storage.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Hand on."""
        return self.reach(lambda: self.storage.get_all_trials(study_id, deepcopy, states))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Hand on."""
        return self.reach(lambda: self.storage.get_best_trial(study_id))

    def remove_session(self) -> None:
        """Hand on."""
        self.storage.remove_session()
