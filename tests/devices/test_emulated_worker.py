"""Workers for another machine: what they need, what makes them anew, and that a half-made one does not count."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from hanax.devices import RUNTIMES, InstallError, device_statuses, install_runtime, runtime_python
from hanax.devices import _emulated_worker as emulated

RUNTIME = RUNTIMES["ncnn-aarch64"]
NAME = "ncnn-aarch64-instructions"


def test_the_counting_plugin_compiles_without_warnings(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("the C compiler cc is missing; `apt-get install gcc libc6-dev` adds it")
    strict = ["-Wpedantic", "-Wstrict-prototypes", "-Wconversion", "-o", str(tmp_path / "plugin.so")]
    ran = subprocess.run([*emulated.COMPILE, *strict, str(emulated.PLUGIN_SOURCE)], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_plugin_and_agent_agree_on_the_system_call() -> None:
    from hanax.devices.agent import InstructionCounter

    assert f"#define MARKER {InstructionCounter.MARKER:#x} " in emulated.PLUGIN_SOURCE.read_text()
    assert f"{InstructionCounter.MARKER:#x}" in emulated.SELF_TEST


def test_missing_programs_are_named_with_their_debian_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (status,) = [status for status in device_statuses() if status.name == NAME]
    assert not status.available and status.missing is not None and status.install is not None
    assert "the program qemu-aarch64 (Debian: qemu-user)" in status.missing
    assert status.install.startswith("apt-get install qemu-user gcc libc6-dev apt dpkg")
    assert status.install.endswith(f"hanax devices install {NAME}")
    with pytest.raises(InstallError, match=r"needs the program qemu-aarch64 \(Debian: qemu-user\)"):
        install_runtime(RUNTIME)


def test_a_worker_that_could_not_be_made_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The programs are there but do nothing, or fail: the compiler is the first that is called."""
    monkeypatch.setenv("HANAX_CACHE", str(tmp_path / "cache"))
    programs = tmp_path / "programs"
    programs.mkdir()
    for program, _ in emulated.PROGRAMS:
        if not os.path.isabs(program):
            (programs / program).write_text("#!/bin/sh\necho this fails >&2\nexit 1\n")
            (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr("hanax.devices._runtimes.is_present", lambda program: True)
    with pytest.raises(InstallError, match=r"(?s)could not be installed: .*count_instructions\.c.*this fails"):
        install_runtime(RUNTIME)
    assert runtime_python(RUNTIME) is None


def test_a_worker_of_another_recipe_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    if runtime_python(RUNTIME) is None:
        pytest.skip(f"`hanax devices install {NAME}` was not run")
    monkeypatch.setattr(emulated, "PACKAGES", (*emulated.PACKAGES, "one-more"))
    assert runtime_python(RUNTIME) is None


def test_the_script_keeps_odd_characters_of_the_cache_folder_and_shuts_out_the_hosts_python(tmp_path: Path) -> None:
    worker = tmp_path / "a folder, with 'odd' $characters"
    script = tmp_path / "python"
    script.write_text(emulated._start_script(worker))
    emulator = tmp_path / "qemu-aarch64"
    emulator.write_text('#!/bin/sh\nfor argument; do echo "$argument"; done\n')
    emulator.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(["sh", str(script), "-c", "pass"], capture_output=True, text=True, env=environment, check=True)
    arguments = ran.stdout.splitlines()
    assert f"file={str(worker).replace(',', ',,')}/lib/count_instructions.so" in arguments
    assert f"PYTHONPATH={worker}/packages" in arguments
    assert pairs(arguments, "-U") >= {"PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH"}
    assert arguments[-3:] == [f"{worker}/machine/usr/bin/python3.11", "-c", "pass"]


def pairs(arguments: Sequence[str], option: str) -> set[str]:
    """What follows each `option`."""
    return {value for name, value in itertools.pairwise(arguments) if name == option}
