"""Propose architectures: whole Pareto fronts over any number of objectives and constraints.

Nothing here knows of networks, devices or predictors; what an architecture costs comes in as a function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hanax.searchers._additive import AdditiveCost, AdditiveFit, CostTable, TooLargeError, additive_groups, fit_additive
from hanax.searchers._aging import AgingSearcher
from hanax.searchers._aging_evolution import AgingEvolution
from hanax.searchers._array_predictors import BlockTable, OneHotMlp, block_table, one_hot_mlp
from hanax.searchers._bit_allocation import (
    Allocation,
    AllocationFront,
    BisectedFormats,
    allocate,
    allocation_front,
    bisect_formats,
    with_neighbours,
)
from hanax.searchers._constrained_evolution import ConstrainedEvolution, EvolutionResult, constrained_evolution
from hanax.searchers._enumerate import every_network
from hanax.searchers._fbnet_search import fbnet_loss, fbnet_search
from hanax.searchers._front_evolution import FrontEvolution, FrontResult, evolve_front
from hanax.searchers._gap import OptimalityGap, optimality_gap
from hanax.searchers._grid import GridSearcher
from hanax.searchers._head_start import HeadStart
from hanax.searchers._knapsack import ExactFront, exact_front
from hanax.searchers._local import LocalSearcher
from hanax.searchers._nsga2 import Nsga2
from hanax.searchers._nsga3 import Nsga3
from hanax.searchers._optuna import OptunaSearcher, SamplerName
from hanax.searchers._pareto import constrained_rank, crowding_distance, hypervolume, non_dominated, spread_along_front
from hanax.searchers._problem import Constraint, Costs, Evaluate, Objective, Problem, quantile_name
from hanax.searchers._proxyless_search import proxyless_search
from hanax.searchers._random import RandomSearcher
from hanax.searchers._reinforce import Reinforce
from hanax.searchers._relaxation import Differentiable, GradientResult, expected_cost, relaxed_one_hot
from hanax.searchers._rewards import mnasnet_reward, tunas_reward, with_mnasnet_reward, with_tunas_reward
from hanax.searchers._scalarise import Scalarisation
from hanax.searchers._search import InfeasibleConstraintError, Searcher, SearchResult, feasible_front, search
from hanax.searchers._storages import StorageError, hide_password, open_storage, serve_storage
from hanax.searchers._worst_case import with_cost, worst_case

__all__ = [
    "AdditiveCost",
    "AdditiveFit",
    "AgingEvolution",
    "AgingSearcher",
    "Allocation",
    "AllocationFront",
    "BisectedFormats",
    "BlockTable",
    "ConstrainedEvolution",
    "Constraint",
    "CostTable",
    "Costs",
    "Differentiable",
    "Evaluate",
    "EvolutionResult",
    "EvolutionSampler",
    "ExactFront",
    "FrontEvolution",
    "FrontResult",
    "GradientResult",
    "GridSearcher",
    "HeadStart",
    "InfeasibleConstraintError",
    "LinasSampler",
    "LocalSearcher",
    "Nsga2",
    "Nsga3",
    "Objective",
    "OneHotMlp",
    "OptimalityGap",
    "OptunaSearcher",
    "Problem",
    "RandomSearcher",
    "Reinforce",
    "SamplerName",
    "Scalarisation",
    "SearchResult",
    "Searcher",
    "StorageError",
    "TooLargeError",
    "additive_groups",
    "allocate",
    "allocation_front",
    "bisect_formats",
    "block_table",
    "constrained_evolution",
    "constrained_rank",
    "crowding_distance",
    "every_network",
    "evolve_front",
    "exact_front",
    "expected_cost",
    "fbnet_loss",
    "fbnet_search",
    "feasible_front",
    "fit_additive",
    "hide_password",
    "hypervolume",
    "mnasnet_reward",
    "non_dominated",
    "one_hot_mlp",
    "open_storage",
    "optimality_gap",
    "proxyless_search",
    "quantile_name",
    "relaxed_one_hot",
    "search",
    "serve_storage",
    "spread_along_front",
    "tunas_reward",
    "with_cost",
    "with_mnasnet_reward",
    "with_neighbours",
    "with_tunas_reward",
    "worst_case",
]

if TYPE_CHECKING:
    from hanax.searchers._evolution_sampler import EvolutionSampler
    from hanax.searchers._linas_sampler import LinasSampler
else:
    # They are Optuna's classes, and loading Optuna takes longer than all the rest.
    _SAMPLERS = {"EvolutionSampler": "_evolution_sampler", "LinasSampler": "_linas_sampler"}

    def __getattr__(name: str) -> object:
        if name in _SAMPLERS:
            return getattr(importlib.import_module(f"hanax.searchers.{_SAMPLERS[name]}"), name)
        raise AttributeError(f"module 'hanax.searchers' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(__all__)
