"""The wheel and the sdist hold every file they need, and the wheel works where it alone is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

for builder in ("build", "hatchling"):
    pytest.importorskip(builder, reason=f"{builder} is not installed; the extra `test` has it")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Distributions:
    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """An sdist, and the wheel that was built from it, without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return Distributions(wheel, sdist)


@dataclass(frozen=True)
class Installed:
    """A fresh virtual environment that holds the wheel; the dependencies come from the environment of the tests."""

    home: Path

    def run(self, program: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, e.g. ``hanax``, away from the source tree."""
        command = [str(self.home / "bin" / program), *map(str, arguments)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def installed(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(distributions.wheel)], check=True)
    own_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own_packages / "dependencies.pth").write_text("\n".join(others) + "\n")
    return Installed(home)


def source_files(folder: str) -> set[str]:
    """Files below `folder` as paths from the root, without what tools leave there."""
    paths = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if not any(part.startswith(".") or part == "__pycache__" for part in path.parts[1:])
    }


def test_the_wheel_holds_every_file_of_the_package_the_experiment_files_and_nothing_else(
    distributions: Distributions,
) -> None:
    experiments = {
        f"hanax/experiments/files/{path.removeprefix('experiments/')}" for path in source_files("experiments")
    }
    with zipfile.ZipFile(distributions.wheel) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == source_files("hanax") | experiments
    assert {"hanax/py.typed", "hanax/experiments/files/quickstart.yaml"} <= held


def test_the_wheel_says_its_licence_and_its_command(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as wheel:
        info = f"hanax-{PROJECT['version']}.dist-info"
        metadata = wheel.read(f"{info}/METADATA").decode()
        licence = wheel.read(f"{info}/licenses/LICENSE").decode()
        commands = wheel.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert licence == (ROOT / "LICENSE").read_text()
    assert "hanax = hanax.experiments.__main__:main" in commands


def test_the_sdist_holds_all_that_is_needed_to_build_and_test(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as sdist:
        held = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    folders = ("hanax", "experiments", "tests", "docs", "examples", "benchmarks")
    files = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", ".ci/run"}
    assert files.union(*map(source_files, folders)) <= held


def test_the_installed_wheel_knows_its_version_and_its_experiment_files(installed: Installed, tmp_path: Path) -> None:
    program = (
        "import hanax, importlib.resources as r; print(hanax.__file__, hanax.__version__, "
        "r.files('hanax').joinpath('experiments/files/quickstart.yaml').is_file())"
    )
    ran = installed.run("python", "-c", program, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    where, version, has_quickstart = ran.stdout.split()
    assert Path(where).is_relative_to(installed.home)
    assert (version, has_quickstart) == (PROJECT["version"], "True")


def test_the_installed_wheel_runs_the_short_form_of_the_quickstart(installed: Installed, tmp_path: Path) -> None:
    short = ["supernet.epochs=1", "accuracy.archs=12", "devices.0.archs=12", "search.evaluations=100"]
    short += ["search.candidates=2", "devices.0.target_relative_ci=0.2"]
    settings = [part for item in short for part in ("--set", item)]
    ran = installed.run("hanax", "run", "quickstart", "--out", tmp_path / "run", *settings, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "run" / "report.html").exists()
    assert list((tmp_path / "run" / "devices" / "onnxruntime-fp32" / "models").glob("*/model.onnx"))
