"""Many workers on one study: deaths, restarts of the server, and what every storage promises."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from private_postgresql import Server, free_port, private_postgresql, wait_until

from hanax.searchers import open_storage

WORKER = Path(__file__).with_name("study_worker.py")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    with private_postgresql() as server:
        yield server


@dataclass(frozen=True)
class Worker:
    """A process, and the file with what it says."""

    process: subprocess.Popen[bytes]
    messages: Path

    def said(self) -> str:
        return self.messages.read_text()


@dataclass
class Team:
    """Workers of one study, and what they leave."""

    storage: str
    total: int
    folder: Path
    study: str = "team"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self, seed: int, **settings: Any) -> Worker:
        facts = {"storage": self.storage, "study": self.study, "total": self.total, "seed": seed, "log": str(self.log)}
        messages = self.folder / f"messages-{seed}"
        with messages.open("w") as stream:
            command = [sys.executable, str(WORKER), json.dumps(facts | settings)]
            return Worker(subprocess.Popen(command, stderr=stream), messages)

    def begun(self, worker: Worker | None = None) -> list[str]:
        """Architectures that `worker`, or any, began to evaluate."""
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [arch for process, arch in lines if worker is None or int(process) == worker.process.pid]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name=self.study, storage=open_storage(self.storage)).get_trials()

    def completed(self) -> set[str]:
        return {trial.user_attrs["arch"] for trial in self.trials() if trial.state.name == "COMPLETE"}

    def check_complete(self, lost: list[str] | None = None) -> None:
        """The study has its networks, and each was evaluated once, but for those that were `lost` on the way."""
        assert len(self.completed()) == self.total
        assert sorted(self.begun()) == sorted([*self.completed(), *(lost or [])])
        assert not [trial for trial in self.trials() if trial.state.name in ("RUNNING", "WAITING")]


def _finish(*workers: Worker) -> None:
    for worker in workers:
        try:
            worker.process.wait(timeout=120)
        finally:
            worker.process.kill()
        assert worker.process.returncode == 0, worker.said()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _kill_in_the_middle(team: Team, **settings: Any) -> tuple[str, str]:
    """A worker that dies at its third network, and another that does the rest: the network, and what that one says."""
    victim = team.start(0, hang_at=3, **settings)
    wait_until(lambda: len(team.begun(victim)) == 3, "three networks are begun")
    survivor = team.start(1)
    wait_until(lambda: len(team.begun(survivor)) >= 2, "the other has begun")
    victim.process.kill()
    victim.process.wait()
    _finish(survivor)
    lost = team.begun(victim)[-1]
    assert lost in team.begun(survivor)
    team.check_complete([lost])
    return lost, survivor.said()


def test_the_network_of_a_worker_that_was_killed_elsewhere_is_evaluated_here(
    postgresql: Server, tmp_path: Path
) -> None:
    """What can be seen from another machine is that the heart has stopped."""
    team = Team(postgresql.url, 8, tmp_path, "killed")
    lost, message = _kill_in_the_middle(team, heartbeat_s=0.2, machine="another")
    assert f"is dead; its network {lost} is put back" in message


def test_a_killed_worker_delays_no_other_at_the_journal(tmp_path: Path) -> None:
    _kill_in_the_middle(Team(str(tmp_path / "journal"), 10, tmp_path))


def test_workers_ride_out_a_restart_of_the_server(postgresql: Server, tmp_path: Path) -> None:
    team = Team(postgresql.url, 30, tmp_path, "restarted")
    workers = [team.start(seed, seconds=0.3) for seed in range(2)]
    wait_until(lambda: all(len(team.begun(worker)) >= 2 for worker in workers), "both have begun two networks")
    before = team.completed()
    postgresql.stop()
    wait_until(lambda: all("is away" in worker.said() for worker in workers), "both have noticed")
    postgresql.start()
    _finish(*workers)
    assert before <= team.completed()
    team.check_complete()
    for worker in workers:
        message = worker.said()
        assert "postgresql://hanax:***@127.0.0.1" in message and "is away" in message and "is back after" in message
        assert "ss%40word" not in message and "ss@word" not in message and "Traceback" not in message


def test_the_proxy_serves_workers_until_ctrl_c(postgresql: Server, tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="the extra grpc (grpcio) is not installed")
    port = free_port()
    command = ["storage", "serve", "--storage", postgresql.url, "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "hanax.experiments", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        team = Team(f"grpc://127.0.0.1:{port}", 8, tmp_path, "proxy")
        wait_until(lambda: _answers(port) or server.poll() is not None, "the proxy listens")
        _finish(team.start(0), team.start(1))
        team.check_complete()
        server.send_signal(signal.SIGINT)
        output, errors = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 130, errors
    assert f"serving postgresql://hanax:***@127.0.0.1:{postgresql.port}/postgres as grpc://127.0.0.1:{port}" in errors
    assert "Traceback" not in errors and "Stopped" in output
