"""One tiny finished run that the tests of this folder look at, and the means to make more."""

from __future__ import annotations

import pytest
from command_line import TINY, CommandLine, TinyRun


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_run(command_line: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A whole run, from the command line."""
    home = tmp_path_factory.mktemp("tiny")
    file = home / "tiny.yaml"
    file.write_text(TINY)
    status, output = command_line.run("run", file, "--out", home / "run", cwd=home)
    assert status == 0, output
    return TinyRun(file, home / "run", output)
