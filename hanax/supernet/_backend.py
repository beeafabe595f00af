"""How the process is set up for Hanax's many small executables: compiled code and memory are kept."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import jax

from hanax._files import cache_folder


def keep_compiled_code() -> Path:
    """Let compiled code outlive the process, and return the folder it is kept in.

    ``$HANAX_CACHE/xla``, by default ``~/.cache/hanax/xla``. A folder that is already set for JAX's compilation cache
    stays. The chain consists of dozens of executables that each compile in about a second, below JAX's default for
    what is worth keeping, so that limit is lowered.
    """
    folder: str | None = getattr(jax.config, "jax_compilation_cache_dir", None)
    if folder is None:
        folder = str(cache_folder() / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Path(folder)


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory for the next executable; returns whether that was possible.

    By default every large buffer is mapped and returned to the system again, and each page of it faults anew: a third
    of a training step. A new process
    with ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` in its environment gets huge pages besides.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)


def release_freed_memory() -> None:
    """Return what `keep_freed_memory` kept to the system, between two phases that need different buffers."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
