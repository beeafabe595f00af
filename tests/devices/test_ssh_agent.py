"""Agents over ssh, on a private server on loopback."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from private_sshd import Server, make_key, private_sshd

from hanax.devices import DEVICES, AgentError, LatencyTable, Ledger, LocalAgent, Method, collect_latency, identify
from hanax.devices import _ssh_agent as ssh_agent
from hanax.devices._agent_client import AgentClient
from hanax.devices._ssh_agent import SshAgent, SshPlace, SshTransport
from hanax.search_spaces import Arch, SearchSpace, unique_rows

pytest.importorskip("asyncssh", reason="the extra ssh (asyncssh) is not installed")

SPEC = DEVICES["onnxruntime-fp32"]
BRIEF = Method(warmup_runs=1, min_rounds=6, max_rounds=6, inner_ms=0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(autouse=True)
def nobody_elses_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def remote(server: Server, program: str, timeout_s: float = 20.0) -> AgentClient:
    """An agent over ssh that is `program`."""
    return AgentClient(SPEC, SshTransport(server.place, program.encode(), []), timeout_s)


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_a_net_is_measured_and_the_table_is_the_remote_machines(
    server: Server, space: SearchSpace, matmul_model: Callable[..., bytes], tmp_path: Path
) -> None:
    table = collect_latency(
        space,
        [space.smallest],
        SPEC,
        lambda arch: matmul_model(2, space.resolution(arch)),
        tmp_path / "table.parquet",
        Ledger(tmp_path / "ledger.jsonl"),
        method=BRIEF,
        start_agent=lambda spec: SshAgent(spec, server.place),
    )
    assert table.frame["latency_ms"].item() > 0
    with LocalAgent(SPEC) as here:  # the same machine, on loopback
        assert table.device_fingerprint == identify(here).fingerprint


def test_the_agent_is_copied_once_under_its_checksum_and_mended_when_it_was_damaged(server: Server) -> None:
    with SshAgent(SPEC, server.place) as agent:
        first = identify(agent)
    (copy,) = (server.folder / "agents").glob("*.py")
    assert copy.stem == ssh_agent.hashlib.sha256(copy.read_bytes()).hexdigest()
    written_at = copy.stat().st_mtime_ns
    with SshAgent(SPEC, server.place) as agent:
        assert identify(agent) == first
    assert copy.stat().st_mtime_ns == written_at
    copy.write_text("raise SystemExit('damaged')")
    with SshAgent(SPEC, server.place) as agent:
        assert identify(agent) == first
    assert os.listdir(copy.parent) == [copy.name]


# ---- who is trusted --------------------------------------------------------------------------------------------------


def refusal(place: SshPlace) -> str:
    with pytest.raises(AgentError) as error, SshAgent(SPEC, place):
        raise AssertionError("the agent must not start")
    assert error.value.request == "start"
    return str(error.value)


def test_an_unknown_host_key_is_refused_and_the_message_says_how_to_add_it(server: Server, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    message = refusal(replace(server.place, known_hosts=str(known_hosts)))
    assert f"unknown: {known_hosts} does not hold it" in message
    assert f"`ssh -o UserKnownHostsFile={known_hosts} -p {server.port} {getpass.getuser()}@127.0.0.1`" in message
    assert not known_hosts.exists()


def test_no_configuration_file_can_switch_the_verification_off(server: Server, tmp_path: Path) -> None:
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True)
    (home / "config").write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n")
    assert "does not hold it" in refusal(replace(server.place, known_hosts="~/.ssh/known_hosts"))


def test_another_host_key_than_the_known_one_is_refused(server: Server, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {make_key(tmp_path / 'other')}")
    message = refusal(replace(server.place, known_hosts=str(known_hosts)))
    assert "another machine answers at this address, or its key was renewed" in message
    assert f"ssh-keygen -f {known_hosts} -R '[127.0.0.1]:{server.port}'" in message


def test_a_wrong_user_key_is_refused(server: Server, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    message = refusal(replace(server.place, key=str(tmp_path / "key")))
    assert f"refused the login with the key {tmp_path / 'key'}" in message
    assert "ssh-copy-id" in message


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("nonsense", "cannot be used")])
def test_a_key_that_is_no_key_is_named(server: Server, tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    message = refusal(replace(server.place, key=str(tmp_path / "key")))
    assert reason in message and str(tmp_path / "key") in message


def test_an_encrypted_key_is_for_ssh_agent(server: Server, tmp_path: Path) -> None:
    make_key(tmp_path / "key", passphrase="words")
    message = refusal(replace(server.place, key=str(tmp_path / "key")))
    assert f"`ssh-add {tmp_path / 'key'}` gives an encrypted one to ssh-agent" in message


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="no ssh-agent here (Debian: openssh-client)")
def test_a_key_that_ssh_agent_holds_logs_in(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "socket"))
    keeper = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "socket")], stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "socket").exists():
            assert keeper.poll() is None
        subprocess.run(["ssh-add", "-q", str(server.folder / "user_key")], check=True)
        with SshAgent(SPEC, replace(server.place, key=None)) as agent:
            identify(agent)
    finally:
        keeper.kill()
        keeper.wait()


# ---- what is quoted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evil", ["python3; touch {}", "$(touch {})", "`touch {}`", "python3 && touch {}", "'; touch {}; '", "x\ntouch {}"]
)
def test_what_a_shell_would_execute_in_the_python_path_is_not_executed(
    server: Server, tmp_path: Path, evil: str
) -> None:
    trace = tmp_path / "trace"
    place = replace(server.place, python=evil.format(trace))
    with SshAgent(SPEC, place) as agent, pytest.raises(AgentError, match=r"exit status 127: .* cannot be run there"):
        identify(agent)
    assert not trace.exists()


def test_what_a_shell_would_execute_in_the_folder_is_only_a_name(server: Server, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = tmp_path / f"a 'b' \"c\" $(touch {trace.name}); touch {trace.name} #"
    with SshAgent(SPEC, replace(server.place, folder=str(folder))) as agent:
        identify(agent)
    assert [path.suffix for path in folder.iterdir()] == [".py"]
    assert not list(tmp_path.rglob("trace"))


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_without_python_there_the_message_names_the_option(server: Server) -> None:
    with (
        SshAgent(SPEC, replace(server.place, python="no-such-python")) as agent,
        pytest.raises(AgentError, match=r"'no-such-python' cannot be run there; name the Python .* python=PATH"),
    ):
        identify(agent)


def test_a_python_without_the_runtime_is_named(server: Server, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with (
        SshAgent(SPEC, replace(server.place, python=str(bare))) as agent,
        pytest.raises(AgentError, match="package onnxruntime is missing"),
    ):
        identify(agent)


def test_a_server_that_is_not_there_is_named(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert "cannot connect to" in refusal(replace(server.place, port=free.getsockname()[1]))


def test_a_server_that_says_nothing_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_agent, "CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "within 0.5 s" in refusal(replace(server.place, port=silent.getsockname()[1]))


def test_a_full_disk_there_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with private_sshd(tmp_path, file_limit=4096) as full:
        message = refusal(full.place)
        assert "cannot copy the agent to" in message and "is the disk full" in message
        assert os.listdir(full.folder / "agents") == []


def test_a_hanging_agent_is_killed_on_the_other_machine(
    server: Server, lying_program: Callable[..., str], tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    lie = f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    with (
        remote(server, lying_program(lie, op="info"), timeout_s=2.0) as agent,
        pytest.raises(AgentError, match="no answer within 2 s; it was killed"),
    ):
        agent.request("info")
    deadline = time.monotonic() + 10
    while (alive := Path(f"/proc/{pid.read_text()}").exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def test_a_crash_there_shows_its_signal_and_its_last_words(server: Server, lying_program: Callable[..., str]) -> None:
    lie = "print('last words', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)"
    with remote(server, lying_program(lie)) as agent, pytest.raises(AgentError) as error:
        agent.request("bench", "net", inner_ms=0, inner_runs=1)
    assert "killed by signal KILL" in str(error.value)
    assert str(error.value).endswith("last words")


def test_an_agent_that_floods_is_killed(
    server: Server, lying_program: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanax.devices._agent_client.MAX_ANSWER_BYTES", 1 << 16)
    with (
        remote(server, lying_program("while True: sys.stdout.write('x' * 1000)")) as agent,
        pytest.raises(AgentError, match="without a line's end; it was killed"),
    ):
        agent.request("bench", "net", inner_ms=0, inner_runs=1)


def test_a_connection_that_drops_leaves_the_batches_before(
    server: Server, space: SearchSpace, lying_program: Callable[..., str], tmp_path: Path
) -> None:
    codes = space.sample(np.random.default_rng(1), 30)
    archs = space.decode(codes[unique_rows(codes)][:6])

    def bytes_of(arch: Arch) -> bytes:
        return str(arch).encode()

    victim = ssh_agent.hashlib.sha256(bytes_of(archs[3])).hexdigest()
    # The parent of the agent is the sshd of this very connection.
    program = lying_program(f"if request['sha256'] == {victim!r}: os.kill(os.getppid(), 9); time.sleep(5)")
    path = tmp_path / "table.parquet"
    with pytest.raises(AgentError, match=rf"bench of {archs[3]}: .*the connection to .* was lost"):
        collect_latency(
            space, archs, SPEC, bytes_of, path, Ledger(tmp_path / "ledger.jsonl"), method=BRIEF, batch_size=1,
            start_agent=lambda spec: remote(server, program),
        )  # fmt: skip
    assert LatencyTable.read(path).archs("table") == archs[:3]


def test_a_network_that_goes_dead_is_noticed_without_waiting_for_the_answers_time(
    server: Server, lying_program: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_agent, "KEEPALIVE_S", 0.3)
    stopped = tmp_path / "stopped"
    lie = f"open({str(stopped)!r}, 'w').write(str(os.getppid())); os.kill(os.getppid(), 19); time.sleep(15)"
    try:
        problem = r"the connection to .* was lost"
        with remote(server, lying_program(lie), 100.0) as agent, pytest.raises(AgentError, match=problem):
            agent.request("bench", "net", inner_ms=0, inner_runs=1)
    finally:
        os.kill(int(stopped.read_text()), 9)
