"""Virtual environments for the packages that we compare with, so that none of them has to get on with ours."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


def prepare_environment(directory: Path, requirements: Sequence[str]) -> Path:
    """The Python of a virtual environment at `directory` that holds `requirements`; made if it is not there.

    Raises:
        ValueError: `directory` holds something other than a virtual environment.
        RuntimeError: pip did not install `requirements`.
    """
    if not (directory / "pyvenv.cfg").exists():
        if directory.exists() and any(directory.iterdir()):
            raise ValueError(f"{directory} is not empty and not a virtual environment; name another folder")
        venv.create(directory, with_pip=True)
    python = directory / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], stdout=sys.stderr)
    if pip.returncode:
        raise RuntimeError(f"pip could not install {' '.join(requirements)} in {directory}; what it said is above")
    return python
