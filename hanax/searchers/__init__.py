"""Propose architectures: whole Pareto fronts over any number of objectives and constraints.

Nothing here knows of networks, devices or predictors; what an architecture costs comes in as a function.
"""

from hanax.searchers._enumerate import every_network
from hanax.searchers._nsga2 import Nsga2
from hanax.searchers._optuna import OptunaSearcher
from hanax.searchers._pareto import (
    constrained_rank,
    crowding_distance,
    hypervolume,
    non_dominated,
    spread_along_front,
)
from hanax.searchers._problem import Constraint, Costs, Evaluate, Objective, Problem
from hanax.searchers._search import InfeasibleConstraintError, Searcher, SearchResult, search

__all__ = [
    "Constraint",
    "Costs",
    "Evaluate",
    "InfeasibleConstraintError",
    "Nsga2",
    "Objective",
    "OptunaSearcher",
    "Problem",
    "SearchResult",
    "Searcher",
    "constrained_rank",
    "crowding_distance",
    "every_network",
    "hypervolume",
    "non_dominated",
    "search",
    "spread_along_front",
]
