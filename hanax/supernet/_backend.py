"""How JAX is set up for Hanax's many small executables."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def keep_compiled_code() -> Path:
    """Let compiled code outlive the process, and return the folder it is kept in.

    ``$HANAX_CACHE/xla``, by default ``~/.cache/hanax/xla``. A folder that is already set for JAX's compilation cache
    stays. The chain consists of dozens of executables that each compile in about a second, below JAX's default for
    what is worth keeping, so that limit is lowered.
    """
    folder = jax.config.jax_compilation_cache_dir
    if folder is None:
        root = os.environ.get("HANAX_CACHE") or Path.home() / ".cache" / "hanax"
        folder = str(Path(root) / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Path(folder)
