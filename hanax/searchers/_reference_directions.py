"""Directions that a front of many objectives is to be covered along."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from hanax.searchers._problem import Floats


def reference_directions(n_objectives: int, at_most: int) -> Floats:
    """Evenly spread points of the unit simplex, as many as there can be of the kind, but no more than `at_most`.

    Das and Dennis (1998, doi:10.1137/S1052623496307510): all points whose coordinates are multiples of 1/p. Where p
    has to be smaller than the number of objectives, none of them is inside the simplex; then those of p - 1 join, drawn
    half way to the centre (Deb & Jain, 2014, doi:10.1109/TEVC.2013.2281535, section V).

    Returns:
        Shape (r, n_objectives), non-negative, every row of sum 1.

    Raises:
        ValueError: Not even one direction per objective is allowed.
    """
    if not 1 <= n_objectives <= at_most:
        raise ValueError(
            f"reference directions number at least one per objective: {n_objectives} objectives, at most {at_most}"
        )
    if n_objectives == 1:
        return np.ones((1, 1))
    divisions = 1
    while _count(n_objectives, divisions + 1) <= at_most:
        divisions += 1
    outer = _simplex_lattice(n_objectives, divisions)
    if divisions >= n_objectives or _count(n_objectives, divisions) == n_objectives:
        return outer
    inner = _simplex_lattice(n_objectives, divisions - 1)
    return np.concatenate([outer, (inner + 1.0 / n_objectives) / 2.0])


def _count(n_objectives: int, divisions: int) -> int:
    """Directions of `reference_directions` with this many divisions."""
    layers = (divisions,) if divisions >= n_objectives or divisions == 1 else (divisions, divisions - 1)
    return sum(comb(n_objectives + layer - 1, layer) for layer in layers)


def _simplex_lattice(n_objectives: int, divisions: int) -> Floats:
    """All points with coordinates in multiples of 1 / `divisions` and of sum 1, by placing bars between stars."""
    bars = np.array(list(combinations(range(divisions + n_objectives - 1), n_objectives - 1)))
    ends = np.full((len(bars), 1), divisions + n_objectives - 1)
    return (np.diff(bars, axis=1, prepend=-1, append=ends) - 1) / divisions
