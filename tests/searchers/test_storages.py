"""Opening storages, riding out their outages, and telling the dead from the living."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from private_postgresql import free_port
from sqlalchemy.exc import OperationalError

from hanax.searchers import StorageError, _liveness, _patient_storage, hide_password, open_storage, serve_storage
from hanax.searchers._liveness import HEARTBEAT, MISSED_BEATS, WORKER, Watch, signature
from hanax.searchers._worker_storage import WorkerStorage

LOST = OperationalError("INSERT", {}, Exception("server closed the connection unexpectedly"))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://a:se:c@ret@h:1/d?x=1", "postgresql://a:***@h:1/d?x=1"),
        ("postgresql://h/d?password=secret&x=1 is away", "postgresql://h/d?password=***&x=1 is away"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
        ("--storage=postgresql://a@h/d", "--storage=postgresql://a@h/d"),
    ],
)  # fmt: skip
def test_passwords_are_hidden_and_nothing_else(text: str, hidden: str) -> None:
    assert hide_password(text) == hidden


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mysql://a:secret@h/d", r"mysql://a:\*\*\*@h/d: unknown kind 'mysql'; known: postgresql"),
        ("grpc://host", "expected grpc://HOST:PORT"),
    ],
)
def test_a_wrong_name_of_a_storage_is_refused_with_the_right_ones(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_storage(text)


@pytest.mark.parametrize(
    ("text", "module", "extra"), [("postgresql://h/d", "psycopg", "postgresql"), ("grpc://h:1", "grpc", "grpc")]
)
def test_a_missing_package_is_an_error_that_names_the_extra(
    text: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StorageError, match=rf"pip install 'hanax\[{extra}\]'"):
        open_storage(text)


def test_a_storage_that_cannot_be_opened_is_an_error_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the extra postgresql (psycopg) is not installed")
    with pytest.raises(StorageError, match=r"cannot open postgresql://a:\*\*\*@127.0.0.1.*refused") as caught:
        open_storage(f"postgresql://a:secret@127.0.0.1:{free_port()}/d")
    assert "secret" not in str(caught.value)
    with pytest.raises(StorageError, match=r"cannot open sqlite:///.*No such file"):
        open_storage(f"sqlite:///{tmp_path}/absent/study.db")
    with pytest.raises(StorageError, match=r"cannot open the journal .*: No such file"):
        open_storage(f"{tmp_path}/absent/journal")


def test_a_proxy_stands_in_front_of_databases_only() -> None:
    pytest.importorskip("grpc", reason="the extra grpc (grpcio) is not installed")
    with pytest.raises(ValueError, match="a proxy stands in front of a database"):
        serve_storage("journal.log", "127.0.0.1", 13000, print)


class Flaky(InMemoryStorage):
    """Loses the connection as often as told: after the work is done, or before."""

    def __init__(self, method: str, n: int, *, after: bool) -> None:
        super().__init__()
        work, self.left = getattr(self, method), n

        def unreliable(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left >= 0 and not after:
                raise LOST
            result = work(*arguments, **named)
            if self.left >= 0:
                raise LOST
            return result

        setattr(self, method, unreliable)


def _worker_storage(flaky: InMemoryStorage, messages: list[str]) -> WorkerStorage:
    return WorkerStorage(flaky, "the database", messages.append, heartbeat_s=60.0)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patient_storage, "FIRST_PAUSE_S", 0.0)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["create_new_trial", "set_trial_param", "set_trial_state_values", "get_all_trials"])
def test_an_outage_changes_nothing_whether_the_work_was_done_or_not(method: str, after: bool, no_pauses: None) -> None:
    messages: list[str] = []
    study = optuna.create_study(storage=_worker_storage(Flaky(method, 1, after=after), messages))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 3
    assert [trial.number for trial in study.get_trials()] == [0, 1, 2]
    assert len(messages) == 2
    assert messages[0].startswith("the database is away (server closed the connection unexpectedly); next try in 0 s")
    assert messages[1].startswith("the database is back after")


def test_a_storage_that_stays_away_is_given_up(no_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patient_storage, "PATIENCE_S", 0.05)
    storage = _worker_storage(Flaky("get_all_studies", 10**9, after=False), [])
    with pytest.raises(StorageError, match=r"the database was away for 0.05 s: server closed"):
        storage.get_all_studies()


def test_what_is_wrong_is_not_tried_again(no_pauses: None) -> None:
    messages: list[str] = []
    storage = _worker_storage(InMemoryStorage(), messages)
    with pytest.raises(KeyError):
        storage.get_trial(7)
    study = optuna.create_study(storage=storage)
    study.tell(study.ask(), 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.FAIL)
    assert messages == []


class Clock:
    """Stands for the monotonic clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_liveness, "time", clock)
    return clock


def _running(signed: dict[str, Any] | None, beats: int = 0) -> FrozenTrial:
    attributes = {} if signed is None else {WORKER: signed, HEARTBEAT: beats}
    return optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)


def test_a_worker_of_this_machine_is_dead_when_its_process_is(clock: Clock) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        signed = signature("a", 10.0) | {"process": process.pid, "started": _liveness._start(process.pid)}
        assert Watch().dead([_running(signed)], 0.0) == []
        process.kill()
        while _liveness._start(process.pid) is not None:
            pass
        assert len(Watch().dead([_running(signed)], 0.0)) == 1, "a process that nobody has waited for is dead too"
    another = signed | {"started": 1}
    assert len(Watch().dead([_running(another)], 0.0)) == 1, "its number belongs to another process now"
    assert Watch().dead([_running(signed | {"machine": "another"})], 0.0) == []


@pytest.mark.parametrize("signed", [signature("a", 2.0), signature("a", 2.0) | {"machine": "another"}])
def test_a_worker_is_dead_when_its_heart_has_stopped(clock: Clock, signed: dict[str, Any]) -> None:
    watch = Watch()
    for beats in range(4):
        clock.now += 0.9 * 2.0 * MISSED_BEATS
        assert watch.dead([_running(signed, beats)], 0.0) == []
    clock.now += 1.1 * 2.0 * MISSED_BEATS
    assert len(watch.dead([_running(signed, 3)], 0.0)) == 1


def test_an_outage_of_the_storage_kills_nobody(clock: Clock) -> None:
    watch, signed = Watch(), signature("a", 1.0) | {"machine": "another"}
    assert watch.dead([_running(signed)], 0.0) == []
    clock.now = 300.0
    assert watch.dead([_running(signed)], back_since=299.0) == []
    clock.now += 1.1 * MISSED_BEATS
    assert len(watch.dead([_running(signed)], back_since=299.0)) == 1


def test_a_trial_that_nobody_signed_is_watched_like_one_of_a_slow_heart(clock: Clock) -> None:
    watch = Watch()
    assert watch.dead([_running(None)], 0.0) == []
    clock.now = 0.9 * MISSED_BEATS * _liveness.HEARTBEAT_S
    assert watch.dead([_running(None)], 0.0) == []
    clock.now = 1.1 * MISSED_BEATS * _liveness.HEARTBEAT_S
    assert len(watch.dead([_running(None)], 0.0)) == 1
