"""Promises about the package as a whole: who imports whom, what loads when, what is public, what is declared."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hanax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

MAY_IMPORT = {
    "search_spaces": set[str](),
    "supernet": {"search_spaces"},
    "devices": {"search_spaces"},
    "predictors": {"search_spaces", "devices"},
    "searchers": {"search_spaces"},
    "experiments": {"search_spaces", "supernet", "devices", "predictors", "searchers"},
}
SHARED = {path.stem for path in PACKAGE.glob("_*.py")} - {"__init__"}
WITHOUT_JAX = ["hanax", *(f"hanax.{layer}" for layer in MAY_IMPORT if layer != "supernet")]
STORES_CODE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@cache
def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(), filename=str(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, at any depth; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_one_way(layer: str) -> None:
    files = [path for path in sources() if path.is_relative_to(PACKAGE / layer)]
    assert files, f"hanax/{layer} holds no module"
    for path in files:
        for line, name in imported_modules(sources()[path]):
            where = f"{path.relative_to(ROOT)}:{line}"
            assert not name.startswith("."), f"{where}: write the whole name instead of {name}"
            if name.split(".")[0] != "hanax" or name in ("hanax", "hanax.__version__"):
                continue
            used, *rest = name.split(".")[1:]
            if used == layer:
                continue
            assert used in MAY_IMPORT[layer] | SHARED, f"{where}: {layer} may not import {used}"
            assert not any(part.startswith("_") for part in rest), f"{where}: {name} is private"


@pytest.mark.parametrize("module", sorted(SHARED))
def test_what_all_layers_share_knows_none_of_them(module: str) -> None:
    for line, name in imported_modules(sources()[PACKAGE / f"{module}.py"]):
        assert name.split(".")[0] in sys.stdlib_module_names, f"{module}.py:{line}: {name}"


def test_every_folder_of_the_package_is_a_known_layer() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", ["hanax", *(f"hanax.{layer}" for layer in MAY_IMPORT)])
def test_public_names_are_listed_and_exist(name: str) -> None:
    module = importlib.import_module(name)
    listed = module.__all__
    assert len(set(listed)) == len(listed)
    assert module.__doc__
    tree = sources()[Path(str(module.__file__))]
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hanax")
        for alias in node.names
    }
    assert imported <= set(listed), "imported into __init__.py, so public, but not in __all__"
    for public in listed:
        if public != "__version__":
            assert getattr(module, public) is not None


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hanax' has no attribute 'serach'"):
        _ = importlib.import_module("hanax").serach


def test_version_is_that_of_the_installed_distribution() -> None:
    try:
        installed = version("hanax")
    except PackageNotFoundError:
        pytest.skip("hanax is not installed in this environment")
    assert importlib.import_module("hanax").__version__ == installed == PROJECT["version"]


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_import_does_not_load_jax(name: str) -> None:
    program = f"import sys, {name}; print(*sorted({{'jax', 'jaxlib', 'flax'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


def test_importing_the_package_loads_none_of_its_parts() -> None:
    program = "import sys, hanax; print(*[name for name in sys.modules if name.startswith(('hanax.', 'numpy'))])"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_nothing_is_stored_as_a_pickle() -> None:
    for path, tree in sources().items():
        for line, name in imported_modules(tree):
            assert name.split(".")[0] not in STORES_CODE, f"{path}:{line}: {name} runs code when it reads"
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("read_pickle", "to_pickle"), f"{path}:{node.lineno}"


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    """Declared requirements by canonical name: the core ones, or those of one extra."""
    declared = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, declared)}


def test_every_third_party_import_is_declared() -> None:
    declared = {name for extra in [None, *PROJECT["optional-dependencies"]] for name in requirements(extra)}
    distributions = packages_distributions()
    undeclared = []
    for path, tree in sources().items():
        for line, name in imported_modules(tree):
            top = name.split(".")[0]
            if top == "hanax" or top in sys.stdlib_module_names:
                continue
            offered_by = {canonicalize_name(distribution) for distribution in distributions.get(top, [top])}
            if not offered_by & declared:
                undeclared.append(f"{path.relative_to(ROOT)}:{line}: {top}")
    assert undeclared == []


def test_minimum_versions_are_the_lower_bounds_that_are_declared() -> None:
    pinned = {}
    for line in (ROOT / ".ci" / "minimum-versions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pinned[canonicalize_name(requirement.name)] = specifier.version
    bounds = {}
    for name, requirement in (requirements() | requirements("test")).items():
        (bounds[name],) = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
    assert pinned == bounds


def test_the_extra_of_a_runtime_asks_for_what_its_worker_holds() -> None:
    from hanax.devices import RUNTIMES

    for runtime in RUNTIMES.values():
        if runtime.extra is not None and runtime.requirements:
            asked = set(PROJECT["optional-dependencies"][runtime.extra])
            # An emulated machine needs no compiler.
            assert set(runtime.requirements) <= asked if runtime.is_emulated else set(runtime.requirements) == asked


def test_shapes_and_types_are_checked_while_tests_run() -> None:
    import numpy as np
    from jaxtyping import TypeCheckError

    from hanax.search_spaces import mobilenet_v3

    with pytest.raises(TypeCheckError):
        mobilenet_v3().active(np.zeros(3))
