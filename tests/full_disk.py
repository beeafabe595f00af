"""A disk that is full, as a process sees it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

LIMITED = """
import os, resource, sys
n_bytes = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
os.execv(sys.argv[2], sys.argv[2:])
"""


def limit_files(command: Sequence[str], n_bytes: int | None) -> list[str]:
    """`command`, in which a file cannot grow beyond `n_bytes`: writing fails as on a full disk; None: as it is."""
    return list(command) if n_bytes is None else [sys.executable, "-c", LIMITED, str(n_bytes), *command]
