"""pymoo's NSGA-II on a table, as a process of an environment that has pymoo and not Hanax.

Arguments: a file of arrays (NumPy's ``.npz``), the number of seeds and the number of different networks per search. The
arrays: ``counts``, the options of each decision, shape (d,); ``rows``, where a network is in a table, shape ``counts``;
and for each problem its losses, shape (n, m), under its name. Prints a JSON object: for each problem a list with, per
seed, the rows of the networks in the order of their evaluation, repeats and all.

The operators are those that pymoo's documentation gives for whole numbers, and its defaults otherwise.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import numpy as np

POPULATION = 50
MAX_GENERATIONS_PER_NEEDED = 5
"""A search ends after so many times the generations that it needs if no network is evaluated twice."""


def search(counts: Any, rows: Any, losses: Any, seed: int, n_different: int) -> list[int]:
    """Rows of `losses` in the order in which a search evaluated them."""
    evaluated: list[int] = []

    def evaluate(self: Any, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        found = rows[tuple(np.asarray(x, dtype=int).T)]
        evaluated.extend(found.tolist())
        out["F"] = losses[found]

    problem_module = importlib.import_module("pymoo.core.problem")
    problem = type("Table", (problem_module.Problem,), {"_evaluate": evaluate})(
        n_var=len(counts), n_obj=losses.shape[1], xl=0, xu=np.array(counts) - 1, vtype=int
    )
    rounding = importlib.import_module("pymoo.operators.repair.rounding").RoundingRepair()
    algorithm = importlib.import_module("pymoo.algorithms.moo.nsga2").NSGA2(
        pop_size=POPULATION,
        sampling=importlib.import_module("pymoo.operators.sampling.rnd").IntegerRandomSampling(),
        crossover=importlib.import_module("pymoo.operators.crossover.sbx").SBX(vtype=float, repair=rounding),
        mutation=importlib.import_module("pymoo.operators.mutation.pm").PM(vtype=float, repair=rounding),
    )
    algorithm.setup(problem, seed=seed, verbose=False)
    for _ in range(MAX_GENERATIONS_PER_NEEDED * -(-n_different // POPULATION)):
        if len(set(evaluated)) >= n_different or not algorithm.has_next():
            break
        algorithm.next()
    return evaluated


def main() -> None:
    """Search and print."""
    path, n_seeds, n_different = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with np.load(path) as arrays:
        counts, rows = arrays["counts"], arrays["rows"]
        problems = {name: arrays[name] for name in arrays.files if name not in ("counts", "rows")}
    print(
        json.dumps(
            {
                name: [search(counts, rows, losses, seed, n_different) for seed in range(n_seeds)]
                for name, losses in problems.items()
            }
        )
    )


if __name__ == "__main__":
    main()
