"""Native kernels for XLA on the CPU: compiled once for the very processor they run on, and absent without harm.

The source comes with the package. At first use it is compiled with the system's C++ compiler into Hanax's cache, for
this processor (a wheel's binary could not know its vector width), and registered with XLA as custom calls. Where there
is no compiler, or ``HANAX_NATIVE=0``, the pure-XLA forms are used; `native_status` says which and why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from hanax._files import cache_folder

SOURCES = tuple(sorted((Path(__file__).parent / "native").glob("*.*")))
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-predictive-commoning", "-fno-tree-vectorize", "-shared", "-fPIC")
"""The kernels are written in vectors; what GCC would add moves sums out of registers and costs up to half more."""

COMPILERS = ("g++", "clang++", "c++")
COMPILE_TIMEOUT_S = 300
TARGETS = {
    "depthwise_forward": "HanaxDepthwiseForward",
    "depthwise_backward": "HanaxDepthwiseBackward",
    "pointwise_forward": "HanaxPointwiseForward",
    "pointwise_backward": "HanaxPointwiseBackward",
    "batch_norm_forward": "HanaxBatchNormForward",
    "batch_norm_backward": "HanaxBatchNormBackward",
    "mbconv_evaluate": "HanaxMbconvEvaluate",
    "mbconv_forward": "HanaxMbconvForward",
    "mbconv_backward": "HanaxMbconvBackward",
}
"""Name of a kernel -> symbol of its handler."""


@dataclass(frozen=True, slots=True)
class NativeStatus:
    """Whether native kernels are in use.

    Attributes:
        available: They are.
        reason: Where they come from, or why they are not used and what would change that.
        suffix: Ends the names under which they are registered with XLA: code compiled against another version of the
            source is never mistaken for this one's.
    """

    available: bool
    reason: str
    suffix: str = ""


def call_native(kernel: str, like: Any, *operands: Array, **settings: int | float) -> Any:
    """The results of `kernel`, shaped and typed as `like`; ints are handed over as int64, floats as float32."""
    name = _target(kernel, native_status().suffix)
    results = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), like)
    typed = {key: np.int64(value) if isinstance(value, int) else np.float32(value) for key, value in settings.items()}
    call: Any = jax.ffi.ffi_call(name, results, vmap_method="sequential")
    return call(*operands, **typed)


def _target(kernel: str, suffix: str) -> str:
    return f"hanax_{kernel}_{suffix}"


_lock = threading.Lock()


def native_status() -> NativeStatus:
    """Whether the native kernels are in use; compiles them at the first call (some seconds, once per machine)."""
    with _lock:  # blocks are traced in parallel threads
        return _load(os.environ.get("HANAX_NATIVE", "1"))


@functools.cache
def _load(wanted: str) -> NativeStatus:
    if wanted not in ("0", "1"):
        raise ValueError(f"HANAX_NATIVE must be 0 (pure-XLA kernels) or 1 (native ones where possible); got {wanted!r}")
    if wanted == "0":
        return NativeStatus(False, "switched off by HANAX_NATIVE=0")
    if jax.default_backend() != "cpu":
        return NativeStatus(False, f"only for the CPU; JAX runs on {jax.default_backend()}")
    named = os.environ.get("CXX")
    compiler = next((path for name in ([named] if named else COMPILERS) if (path := shutil.which(name))), None)
    if compiler is None and named:
        return NativeStatus(
            False, f"$CXX names {named}, which is not a program; name one without arguments, or unset it"
        )
    if compiler is None:
        return NativeStatus(False, "no C++ compiler found; install g++ or clang++, or name one in $CXX")
    try:
        suffix = _key(compiler)[:16]
        library = cache_folder() / "native" / f"{suffix}.so"
        problem = None if library.exists() else _compile(compiler, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is not None:
        return NativeStatus(False, f"{compiler} could not compile them: {problem}")
    status = NativeStatus(True, f"compiled by {compiler} for this processor: {library}", suffix)
    try:
        handlers = ctypes.CDLL(str(library))
    except OSError as error:
        return NativeStatus(False, f"{library} cannot be loaded ({error}); delete it to have it compiled again")
    for kernel, symbol in TARGETS.items():
        jax.ffi.register_ffi_target(
            _target(kernel, suffix), jax.ffi.pycapsule(getattr(handlers, symbol)), platform="cpu"
        )
    return status


def _key(compiler: str) -> str:
    """Hash of all that decides the binary: sources, flags, compiler, XLA's headers and the processor."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    digest.update("\n".join((*FLAGS, compiler, version, jax.__version__, platform.machine(), _processor())).encode())
    return digest.hexdigest()


def _processor() -> str:
    """What ``-march=native`` depends on, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(compiler: str, library: Path) -> str | None:
    """Compile the sources into `library`; returns the problem if there is one."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [
            compiler,
            *FLAGS,
            "-I",
            jax.ffi.include_dir(),
            "-o",
            str(made),
            *(str(source) for source in SOURCES if source.suffix == ".cc"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            return errors[0] if errors else f"exit status {done.returncode}"
        os.replace(made, library)
    return None
