"""Workers for a machine that is not there: Debian's Python and a runtime for aarch64, under qemu's user mode.

The worker's interpreter is a script that starts the emulator, so the agent runs there as anywhere. A plugin of the
emulator (`native/count_instructions.c`) counts the instructions, and the agent asks it for the count.

A count must be the same on every host, so nothing of the host may decide what is executed: the system's packages are
those of one Debian release, whatever the host has, and ncnn, which cuts matrices to fit the caches, finds those of the
emulated processor in files that the emulator shows in place of the host's.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PROGRAMS = (
    ("qemu-aarch64", "qemu-user"),
    ("cc", "gcc libc6-dev"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
)
"""What the host must have, each with the Debian packages that hold it."""

CPU = "cortex-a53"
"""The processor that is emulated, as qemu calls it: the smallest of ARM's 64-bit cores in wide use."""

CPU_MODEL = "Arm Cortex-A53 under qemu-user"
"""What the agent calls it."""

PLUGIN_SOURCE = Path(__file__).parent / "native" / "count_instructions.c"
COMPILE = ("cc", "-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")

DEBIAN = "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} bookworm main\n"
MIRRORS = ("apt-get", "indextargets", "--format", "$(REPO_URI)")
DEBIANS = ("Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
"""What asks this machine's apt where it has Debian from: a mirror that can be reached, which every release is on."""

PYTHON = "3.11"
"""Of that release."""

PACKAGES = (
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libgomp1",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libstdc++6",
    "python3.11-minimal",
    "zlib1g",
)
"""What Python, its ctypes and the wheels of runtimes load."""

APT_SETTINGS = """\
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""
"""An apt of its own: of the host it keeps the proxies, and changes nothing there."""

WHEEL_PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in (36, 35, 34, 31, 28, 27, 24, 17))
"""Wheels that run on that release's C library, 2.36."""

CACHES = (("1", "Data", "32K"), ("1", "Instruction", "32K"), ("2", "Unified", "512K"), ("0", "Unified", "0K"))
"""Level, type and size of each cache; level 0 hides a third level of the host, as this processor has none."""

# Every allocation is a mapping of its own: how long malloc searches its lists depends on what was loaded before, which
# put up to 1 % into the counts of small networks. The number of mappings stays below Linux's default limit, 65,530.
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1:glibc.malloc.mmap_max=50000",
    "HANAX_CPU_MODEL": CPU_MODEL,
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

SELF_TEST = """
import ctypes, os, platform
reader, writer = os.pipe()
os.set_blocking(reader, False)
ctypes.CDLL(None).syscall(0x68616e, writer)
assert platform.machine() == "aarch64" and int.from_bytes(os.read(reader, 8), "little") > 0
import {package}
"""
"""Fails unless the emulator counts and the runtime loads."""

Call = Callable[[Sequence[str], str], None]
"""Runs a command in a folder; raises with what it said if it failed."""


def recipe() -> str:
    """Hash of what decides how a worker is made: one of another recipe must be made anew."""
    system = COMPILE, DEBIAN, PACKAGES, WHEEL_PLATFORMS, CACHES, _start_script(Path("worker"))
    return hashlib.sha256(repr(system).encode() + PLUGIN_SOURCE.read_bytes()).hexdigest()[:16]


def make_emulated_worker(
    worker: Path, package: str, requirements: Sequence[str], call: Call, say: Callable[[str], None], scratch: Path
) -> None:
    """Fill the empty folder `worker`; ``bin/python`` in it is then an aarch64 Python that has `package`.

    Args:
        requirements: What pip installs; there must be wheels for aarch64.
        call: Raises for a command that fails, which ends this.
        say: Gets a line before each step that takes time.
        scratch: An empty folder for what is not kept.
    """
    for folder in ("bin", "lib", "machine", "packages"):
        (worker / folder).mkdir()
    say(f"compiling {PLUGIN_SOURCE.name} for {CPU}'s emulator")
    call([*COMPILE, "-o", str(_plugin(worker)), str(PLUGIN_SOURCE)], str(scratch))
    say("asking qemu-aarch64 whether it loads plugins (Debian 12's does; Debian 13's, linked statically, does not)")
    call(["qemu-aarch64", "-plugin", _plugin_option(worker), "-version"], str(scratch))
    say(f"unpacking {len(PACKAGES)} packages of Debian for aarch64 in {worker / 'machine'}")
    _unpack_debian(worker / "machine", call, scratch)
    _describe_processor(worker / "machine")
    say(f"installing {', '.join(requirements)} for aarch64")
    _install_wheels(worker / "packages", requirements, call, scratch)
    interpreter = worker / "bin" / "python"
    interpreter.write_text(_start_script(worker))
    interpreter.chmod(0o755)
    call([str(interpreter), "-c", SELF_TEST.format(package=package)], str(scratch))


def _unpack_debian(root: Path, call: Call, scratch: Path) -> None:
    """Unpack `PACKAGES` below `root`, downloaded and checked against Debian's signature by apt."""
    apt, debs = scratch / "apt", scratch / "debs"
    for folder in (apt / "lists" / "partial", apt / "archives" / "partial", debs):
        folder.mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(DEBIAN.format(mirror=_debian_mirror()))
    (apt / "apt.conf").write_text(APT_SETTINGS.format(folder=apt))
    get = ["apt-get", "-q", "-c", str(apt / "apt.conf")]
    call([*get, "update", "--error-on=any"], str(debs))
    call([*get, "download", *PACKAGES], str(debs))
    for deb in sorted(debs.glob("*.deb")):
        call(["dpkg-deb", "--extract", str(deb), str(root)], str(debs))


def _debian_mirror() -> str:
    """Address of the Debian archive that this machine's apt uses."""
    asked = subprocess.run([*MIRRORS, *DEBIANS], capture_output=True, text=True, check=False)
    if not asked.stdout.split():
        raise RuntimeError(
            "this machine's apt knows no archive of Debian (`apt-get indextargets` lists what it knows); add one to "
            "its sources and run `apt-get update`"
        )
    return asked.stdout.split()[0]


def _describe_processor(root: Path) -> None:
    """Files that stand before those of the host: one core, and its caches."""
    processors = root / "sys" / "devices" / "system" / "cpu"
    processors.mkdir(parents=True)
    for name in ("online", "possible", "present"):
        (processors / name).write_text("0\n")
    for index, (level, kind, size) in enumerate(CACHES):
        cache = processors / "cpu0" / "cache" / f"index{index}"
        cache.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_map", "1")):
            (cache / name).write_text(f"{text}\n")


def _install_wheels(packages: Path, requirements: Sequence[str], call: Call, scratch: Path) -> None:
    """Have this machine's pip, which need not be in this environment, place wheels for the other machine."""
    call([sys.executable, "-m", "venv", str(scratch / "venv")], str(scratch))
    platforms = [option for platform in WHEEL_PLATFORMS for option in ("--platform", platform)]
    kind = ["--implementation", "cp", "--python-version", PYTHON, "--only-binary=:all:", *platforms]
    pip = [str(scratch / "venv" / "bin" / "python"), "-m", "pip", "install", *kind, "--target", str(packages)]
    call([*pip, *requirements], str(scratch))


def _start_script(worker: Path) -> str:
    """The script that runs the worker's Python."""
    machine = worker / "machine"
    emulator = ["qemu-aarch64", "-cpu", CPU, "-L", str(machine), "-plugin", _plugin_option(worker)]
    for name in ("PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD", "LD_LIBRARY_PATH"):
        emulator += ["-U", name]
    for name, value in (ENVIRONMENT | {"PYTHONPATH": str(worker / "packages")}).items():
        emulator += ["-E", f"{name}={value}"]
    return f'#!/bin/sh\nexec {shlex.join([*emulator, str(machine / f"usr/bin/python{PYTHON}")])} "$@"\n'


def _plugin(worker: Path) -> Path:
    return worker / "lib" / "count_instructions.so"


def _plugin_option(worker: Path) -> str:
    """For qemu, whose options are separated by commas, so that one in a path is doubled."""
    return f"file={str(_plugin(worker)).replace(',', ',,')}"
