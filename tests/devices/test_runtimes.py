"""What every runtime must do, wherever it is installed; and that installing one is done wholly or not at all."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hanax.devices import (
    DEVICES,
    RUNTIMES,
    AgentError,
    DeviceSpec,
    InstallError,
    LocalAgent,
    Runtime,
    RuntimeMissingError,
    agent_command,
    device_statuses,
    identify,
    install_runtime,
    load_model,
    run_model,
    runtime_python,
    unload_model,
)
from hanax.devices import _runtimes as runtimes
from hanax.devices._requests import run_round

MAX_ERROR = 1e-4
"""Of a logit in fp32; the logits' own spread is 0.4."""

MAX_RELATIVE_RMS = {"int8": 0.1, "dynamic-int8": 0.1}
"""Of the logits in 8 bits, as a share of their spread, for weights drawn at random."""

SHAPE = (1, 3, 32, 32)


@cache
def network() -> tuple[Any, ...]:
    from hanax.experiments._export import parity_network

    return parity_network(8, seed=0)


@cache
def model_file(model_format: str, batch: int) -> bytes:
    from hanax.experiments._export import convert

    graph, weights, images, _ = network()
    return convert(graph, weights, model_format, batch, images)


# ---- the contract of runtimes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[spec.name for spec in DEVICES.values() if spec.kind == "measured"])
def agent(request: pytest.FixtureRequest) -> Iterator[LocalAgent]:
    """An agent of every measured device in turn, started once; skips those whose runtime is not installed."""
    (status,) = [status for status in device_statuses() if status.name == request.param]
    if not status.available:
        pytest.skip(f"{status.missing} is missing; `{status.install}` adds it")
    with LocalAgent(DEVICES[request.param]) as running:
        yield running


@pytest.fixture(scope="module")
def loaded(agent: LocalAgent) -> str:
    """The sha256 of the network, loaded for one image at a time."""
    return load_model(agent, "the network", model_file(agent.spec.model_format, 1), SHAPE, seed=0)


@cache
def other_model_file(model_format: str) -> bytes:
    """The same network with other weights."""
    from hanax.experiments._export import convert
    from hanax.supernet import random_weights

    graph, _, images, _ = network()
    return convert(graph, random_weights(graph, np.random.default_rng(7)), model_format, 1, images)


def assert_close(found: np.ndarray, spec: DeviceSpec) -> None:
    expected = network()[-1][: len(found)]
    if spec.precision == "fp32":
        assert np.abs(found - expected).max() <= MAX_ERROR
    else:
        relative_rms = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
        assert 0 < relative_rms <= MAX_RELATIVE_RMS[spec.precision]


def test_a_runtime_says_its_version(agent: LocalAgent) -> None:
    assert identify(agent).runtime_version[0].isdigit()


def test_a_runtime_computes_what_the_network_computes(agent: LocalAgent, loaded: str) -> None:
    images = network()[2]
    found = [run_model(agent, "the network", loaded, images[index : index + 1]) for index in range(len(images))]
    assert_close(np.concatenate(found), agent.spec)


def test_a_runtime_takes_several_images_at_a_time(agent: LocalAgent) -> None:
    images = network()[2]
    sha256 = load_model(agent, "four at a time", model_file(agent.spec.model_format, 4), (4, *SHAPE[1:]), seed=0)
    found = [run_model(agent, "four at a time", sha256, images[start : start + 4]) for start in (0, 4)]
    unload_model(agent, "four at a time", sha256)
    assert_close(np.concatenate(found), agent.spec)


def test_models_that_are_loaded_together_do_not_disturb_each_other(agent: LocalAgent, loaded: str) -> None:
    image = network()[2][:1]
    before = run_model(agent, "the network", loaded, image)
    other = load_model(agent, "another", other_model_file(agent.spec.model_format), SHAPE, seed=0)
    assert np.abs(run_model(agent, "another", other, image) - before).max() > 0.01
    assert np.array_equal(run_model(agent, "the network", loaded, image), before)
    unload_model(agent, "another", other)
    assert np.array_equal(run_model(agent, "the network", loaded, image), before)


def test_a_round_gives_the_time_of_every_run_and_the_cpu_time_of_all(agent: LocalAgent, loaded: str) -> None:
    run_round(agent, "the network", loaded, inner_ms=0.0, inner_runs=3)
    measured = run_round(agent, "the network", loaded, inner_ms=30.0, inner_runs=50)
    assert len(measured.runs_ms) >= 50
    # CPU time is that of the process that computes. One that waits for it would need next to none, this work more than
    # 10 us anywhere.
    assert measured.cpu_ms / len(measured.runs_ms) > 0.01
    # One thread cannot compute for longer than time passes; 10 % are for threads that collect garbage. Those that
    # compile in node are done after some rounds.
    rounds = (run_round(agent, "the network", loaded, inner_ms=100.0, inner_runs=10) for _ in range(20))
    assert any(later.cpu_ms <= 1.1 * later.wall_ms for later in rounds)


def test_many_runs_later_the_outputs_are_the_same(agent: LocalAgent, loaded: str) -> None:
    image = network()[2][:1]
    before = run_model(agent, "the network", loaded, image)
    run_round(agent, "the network", loaded, inner_ms=0.0, inner_runs=20)
    assert np.array_equal(run_model(agent, "the network", loaded, image), before)


def test_a_file_that_is_no_model_is_refused_and_the_agent_still_answers(agent: LocalAgent) -> None:
    with pytest.raises(AgentError, match="load of garbage: ") as error:
        load_model(agent, "garbage", b"this is no model", SHAPE, seed=0)
    for sign_of_death in ("ended instead of answering", "no answer within"):
        assert sign_of_death not in str(error.value)
    identify(agent)


WATCHED = """
import runpy, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "os.system"):
        with open(%(noted)r, "a") as lines:
            print(event, arguments, file=lines)

sys.addaudithook(note)
sys.argv = %(argv)r
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("runtime", sorted({spec.runtime for spec in DEVICES.values() if spec.kind == "measured"}))
def test_no_runtime_reports_its_use_or_fetches_anything(runtime: str, tmp_path: Path) -> None:
    spec = next(spec for spec in DEVICES.values() if spec.runtime == runtime)
    if runtime_python(RUNTIMES[runtime]) is None:
        pytest.skip(f"{RUNTIMES[runtime].what} is missing; `hanax devices install {spec.name}` adds it")
    python, *options = agent_command(spec)
    noted, argv = tmp_path / "noted", options[options.index("-u") + 1 :]
    watched = WATCHED % {"noted": str(noted), "argv": argv}
    with LocalAgent(spec, command=[python, "-P", "-u", "-c", watched]) as agent:
        load_model(agent, "the network", model_file(spec.model_format, 1), SHAPE, seed=0)
    assert not noted.exists(), noted.read_text()


# ---- installing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runtime]:
    """A runtime that needs one wheel, made here; the cache is empty, and pip has no index to ask."""
    monkeypatch.setenv("HANAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    def make(**changes: Any) -> Runtime:
        wheel = tmp_path / "hanax_tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as files:
            files.writestr("hanax_tiny.py", "ANSWER = 42\n")
            about = "hanax_tiny-1.0.dist-info"
            files.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: hanax-tiny\nVersion: 1.0\n")
            files.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            files.writestr(f"{about}/RECORD", "")
        needs = {"requirements": (f"hanax-tiny @ {wheel.as_uri()}",), "extra": "tiny", **changes}
        return Runtime("tiny", "hanax_tiny", **needs)

    return make


def pretend(monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> list[list[str]]:
    """Replaces what starts venv, pip and npm; returns the commands. The one at `fails_at` is interrupted."""
    commands: list[list[str]] = []

    def call(runtime: Runtime, command: list[str], folder: str) -> None:
        commands.append(command)
        if len(commands) - 1 == fails_at:
            raise KeyboardInterrupt
        if "venv" in command:
            python = Path(command[-1], "bin", "python")
            python.parent.mkdir()
            python.symlink_to(sys.executable)

    monkeypatch.setattr(runtimes, "_call", call)
    return commands


def test_a_worker_gets_what_was_asked_and_this_environment_nothing(
    make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, said = make_runtime(), list[str]()
    assert runtime_python(runtime) is None
    python = install_runtime(runtime, said.append)
    assert Path(python).is_relative_to(runtime.worker)
    assert runtime_python(runtime) == python
    asked = subprocess.run(
        [python, "-c", "import hanax_tiny; print(hanax_tiny.ANSWER)"], capture_output=True, text=True
    )
    assert asked.stdout == "42\n"
    assert importlib.util.find_spec("hanax_tiny") is None
    assert [line.split()[0] for line in said] == ["creating", "installing"]
    commands = pretend(monkeypatch)
    assert install_runtime(runtime) == python
    assert commands == []


def test_what_pip_cannot_install_is_an_error_with_its_words_and_no_worker(make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(requirements=("hanax-is-not-there==1.0",))
    with pytest.raises(
        InstallError, match=r"tiny could not be installed(?s:.)*No matching distribution found for hanax-"
    ):
        install_runtime(runtime)
    assert runtime_python(runtime) is None


@pytest.mark.parametrize("step", [0, 1])
def test_an_interrupted_installation_counts_for_nothing_and_the_next_one_starts_afresh(
    step: int, make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()
    pretend(monkeypatch, fails_at=step)
    with pytest.raises(KeyboardInterrupt):
        install_runtime(runtime)
    assert runtime_python(runtime) is None
    (runtime.worker / "half").write_text("of a package")
    pretend(monkeypatch)
    assert install_runtime(runtime) == runtime_python(runtime) is not None
    assert not (runtime.worker / "half").exists()


@pytest.mark.parametrize("change", ["other requirements", "no interpreter", "a marker cut short"])
def test_a_worker_that_is_not_what_is_asked_does_not_count(
    change: str, make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()
    commands = pretend(monkeypatch)
    python = install_runtime(runtime)
    assert len(commands) == 2
    if change == "other requirements":
        runtime = make_runtime(requirements=("hanax-tiny>=2.0",))
    elif change == "no interpreter":
        Path(python).unlink()
    else:
        marker = runtime.worker / runtimes.COMPLETE
        marker.write_bytes(marker.read_bytes()[:-3])
    assert runtime_python(runtime) is None
    assert install_runtime(runtime) == runtime_python(runtime) is not None
    assert len(commands) == 4


def test_a_missing_program_is_named_with_the_package_that_holds_it(make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(programs=(("no-such-program", "no-such-package"),))
    with pytest.raises(InstallError, match=r"tiny needs the program no-such-program \(Debian: no-such-package\)"):
        install_runtime(runtime)
    assert not runtime.worker.exists()


def test_what_comes_with_hanax_is_not_installed_elsewhere(make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(requirements=(), extra=None)
    with pytest.raises(InstallError, match="the Python package hanax_tiny comes with Hanax and is missing here"):
        install_runtime(runtime)
    assert runtime_python(runtime) is None


def test_npm_packages_go_into_the_worker_and_this_interpreter_runs_the_agent(
    make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(requirements=(), npm=("tiny@1.0.0",))
    assert runtime.what == "the npm package hanax_tiny"
    commands = pretend(monkeypatch)
    assert install_runtime(runtime) == runtime_python(runtime) == sys.executable
    (command,) = commands
    assert (command[0], command[-1]) == ("npm", "tiny@1.0.0")
    assert command[command.index("--prefix") + 1] == str(runtime.worker)
    monkeypatch.setitem(RUNTIMES, "onnxruntime-web", runtime)
    command = agent_command(DEVICES["onnxruntime-web-fp32"])
    assert command[command.index("--node-path") + 1] == str(runtime.worker / "node_modules")


def test_without_its_runtime_a_device_says_which_command_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANAX_CACHE", str(tmp_path))
    for spec in DEVICES.values():
        runtime = RUNTIMES[spec.runtime]
        if runtime.extra is not None and importlib.util.find_spec(runtime.package) is None:
            with pytest.raises(
                RuntimeMissingError, match=f"{runtime.what} is missing; `.*hanax devices install {spec.name}`"
            ):
                agent_command(spec)
