"""What executes models: which packages and programs each runtime needs, where it is installed, and how to add it.

A runtime that comes with Hanax, or whose extra is installed, is used in this Python environment. Any other lives in a
worker: a virtual environment of its own, or a folder of npm packages, in Hanax's cache, made on request, so that the
runtimes' requirements never meet. The agent (`agent.py`) runs in either.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanax._files import cache_folder, write_atomically
from hanax.devices._emulated_worker import PROGRAMS, make_emulated_worker, recipe

COMPLETE = "hanax-worker.json"
"""In a worker that was installed to the end: what it was asked to hold."""

Say = Callable[[str], None]


class RuntimeMissingError(RuntimeError):
    """A runtime is not installed here; the message has the command that installs it."""


class InstallError(RuntimeError):
    """A runtime could not be installed; the message has what the installer said."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What executes models.

    Attributes:
        name: As in `agent.RUNTIMES`.
        package: What its agent imports; for a runtime in node, the npm package.
        requirements: What pip installs for it; the extra called `extra` asks for the same. Empty: it comes with Hanax,
            or is not Python's.
        extra: The extra of Hanax that holds it; None if it comes with Hanax.
        npm: What npm installs for it, into `node_modules` of its worker.
        programs: Programs that must be on the path, or files that must exist, with the Debian packages that hold them.
        is_emulated: Whether it runs on another machine's instructions, under an emulator that counts them.
        needs: Runtimes that must be installed too, such as the one that compiles for it.
    """

    name: str
    package: str
    requirements: tuple[str, ...] = ()
    extra: str | None = None
    npm: tuple[str, ...] = ()
    programs: tuple[tuple[str, str], ...] = ()
    is_emulated: bool = False
    needs: tuple[str, ...] = ()

    @property
    def worker(self) -> Path:
        """The folder of its worker; runtimes of one extra share it, on each machine."""
        return cache_folder() / "workers" / (f"{self.extra}-aarch64" if self.is_emulated else str(self.extra))

    @property
    def what(self) -> str:
        """What is missing where it is not installed, in words."""
        return f"the {'npm' if self.npm else 'Python'} package {self.package}{' for aarch64' * self.is_emulated}"


IREE = ("iree-base-compiler>=3.13.0", "iree-base-runtime>=3.13.0")
LITERT = ("ai-edge-litert>=2.3.0",)

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnxruntime", "onnxruntime"),
        Runtime("xla", "jax"),
        Runtime("openvino", "openvino", ("openvino>=2026.4.1",), "openvino"),
        Runtime("mnn", "MNN", ("MNN>=3.6.1",), "mnn"),
        Runtime("tract", "tract", ("tract>=0.23.9",), "tract"),
        Runtime("torch", "torch", ("onnx>=1.18.0", "torch==2.13.0"), "torch"),
        Runtime(
            "onnxruntime-web",
            "onnxruntime-web",
            extra="web",
            npm=("onnxruntime-web@1.30.0",),
            programs=(("node", "nodejs"), ("npm", "npm")),
        ),
        Runtime("litert", "ai_edge_litert", LITERT, "litert"),
        Runtime("litert-no-delegate", "ai_edge_litert", LITERT, "litert"),
        Runtime("ncnn", "ncnn", ("ncnn>=1.0.20261020",), "ncnn"),
        Runtime("iree", "iree", IREE, "iree"),
        Runtime("iree-generic", "iree", IREE, "iree"),
        Runtime(
            "ncnn-aarch64",
            "ncnn",
            ("ncnn>=1.0.20261020",),
            "ncnn",
            programs=PROGRAMS,
            is_emulated=True,
        ),
        Runtime(
            "iree-aarch64",
            "iree",
            IREE[1:],
            "iree",
            programs=PROGRAMS,
            is_emulated=True,
            needs=("iree",),
        ),
    )
}
"""The runtimes there are, by name."""


def runtime_python(runtime: Runtime) -> str | None:
    """The interpreter that has `runtime`: this one, or its worker's; None if neither has.

    A worker that holds packages of npm alone has none of its own: the agent that starts node runs in this one.
    """
    if not runtime.is_emulated and importlib.util.find_spec(runtime.package) is not None:
        return sys.executable
    if not _is_complete(runtime):
        return None
    return str(_interpreter(runtime.worker)) if runtime.requirements else sys.executable


def missing_programs(runtime: Runtime) -> list[str]:
    """The programs and files that `runtime` needs and this machine lacks, each with the Debian package that has it."""
    return [
        f"the {'file' if os.path.isabs(program) else 'program'} {program} (Debian: {package})"
        for program, package in runtime.programs
        if not is_present(program)
    ]


def is_present(program: str) -> bool:
    """Whether a program is on the path or, for an absolute path, a file exists."""
    return os.path.exists(program) if os.path.isabs(program) else shutil.which(program) is not None


def install_runtime(runtime: Runtime, say: Say = lambda text: None) -> str:
    """Make the worker of `runtime`, unless it is there; returns its interpreter.

    Nothing changes in this Python environment. The worker is complete or absent, also after a crash.

    Args:
        say: Gets a line before each step that takes time.

    Raises:
        InstallError: A program is missing that pip cannot install, or pip or npm failed (with its last words), or what
            is missing should have come with Hanax.
    """
    if missing := missing_programs(runtime):
        raise InstallError(f"{runtime.name} needs {' and '.join(missing)}; install that first")
    for name in runtime.needs:
        install_runtime(RUNTIMES[name], say)
    if (python := runtime_python(runtime)) is not None:
        return python
    if runtime.extra is None:
        raise InstallError(
            f"{runtime.what} comes with Hanax and is missing here; `pip install {runtime.package}` adds it"
        )
    worker = runtime.worker
    # Never moved: scripts in a virtual environment know its place. The marker, removed first and written last, makes it
    # count.
    (worker / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(worker, ignore_errors=True)
    worker.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere:  # not where a package's name could be a folder's
        if runtime.is_emulated:
            make_emulated_worker(
                worker, runtime.package, runtime.requirements, functools.partial(_call, runtime), say, Path(elsewhere)
            )
        elif runtime.requirements:
            say(f"creating {worker}")
            _call(runtime, [sys.executable, "-m", "venv", str(worker)], elsewhere)
            say(f"installing {', '.join(runtime.requirements)}")
            _call(runtime, [str(_interpreter(worker)), "-m", "pip", "install", *runtime.requirements], elsewhere)
        if runtime.npm:
            say(f"installing {', '.join(runtime.npm)} in {worker}")
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(worker)]
            _call(runtime, [*command, *runtime.npm], elsewhere)
    write_atomically(worker / COMPLETE, json.dumps(_asked(runtime)).encode())
    installed = runtime_python(runtime)
    assert installed is not None, "a worker with its marker is complete"
    return installed


def _asked(runtime: Runtime) -> dict[str, list[str]]:
    asked = {"requirements": [*runtime.requirements, *runtime.npm]}
    return asked | {"recipe": [recipe()]} if runtime.is_emulated else asked


def _interpreter(worker: Path) -> Path:
    return worker / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_complete(runtime: Runtime) -> bool:
    """Whether the worker was installed to the end, for what is asked now and for a Python that is still there."""
    try:
        held = json.loads((runtime.worker / COMPLETE).read_text())
    except (OSError, ValueError):
        return False
    return held == _asked(runtime) and (not runtime.requirements or _interpreter(runtime.worker).exists())


def _call(runtime: Runtime, command: Sequence[str], folder: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = (ran.stderr.strip() or ran.stdout.strip()).splitlines()[-8:]
        raise InstallError(f"{runtime.name} could not be installed: {command[1:]} failed:\n" + "\n".join(said))
