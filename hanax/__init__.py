"""Hardware-aware neural architecture search in JAX.

One supernet is trained on your images, real runtimes of your devices are measured, and a search over both gives a
Pareto front per device. `search` does all of it; the subpackages are its parts. Everything here loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__all__ = [
    "__version__",
    "devices",
    "experiments",
    "predictors",
    "search",
    "search_spaces",
    "searchers",
    "supernet",
]

if TYPE_CHECKING:
    from hanax import devices, experiments, predictors, search_spaces, searchers, supernet
    from hanax.experiments import search

    __version__: str
else:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("hanax")
        if name == "search":
            return importlib.import_module("hanax.experiments").search
        if name in __all__:
            return importlib.import_module(f"hanax.{name}")
        raise AttributeError(f"module 'hanax' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(__all__)
