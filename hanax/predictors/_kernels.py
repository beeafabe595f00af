"""What makes two networks alike for a latency predictor: kernels on groups of features and on the source devices.

Shapes: `n` networks, `f` features, `q` columns that a kernel reads, `m` source devices, `c` kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hanax.predictors._leave_one_out import Floats
from hanax.predictors._source_models import PoolContent, fit_source_models
from hanax.predictors._source_pool import Groups, SourcePool, is_alive

LINEAR_GROUPS = ("counts", "live_counts", "options", "stages", "work")
"""Groups of columns in which a cost may be linear, each a kernel of its own."""

SHAPE_GROUPS = ("counts", "live_counts", "stages", "work")
"""The groups of columns in which a cost may be any smooth function, together."""

SHAPE_LENGTH = 1.25
"""Length scale of that function, in root mean squares of the distance from the mean network."""

N_FLAT = 4
"""Principal components of the sources that may count equally, whatever their spread."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A positive semi-definite function of two networks, about 1 for a network and itself on average.

    Attributes:
        name: What it is about: groups of features, or ``sources`` in one of three forms.
        columns: Columns that it reads, of the sources' coordinates or of the features, shape (q,).
        scale: Factor of each, shape (q,).
        of_sources: Whether it reads the sources' coordinates.
        is_smooth: The squared exponential of the distance between networks, in place of their product.
    """

    name: str
    columns: NDArray[np.int64]
    scale: Floats
    of_sources: bool
    is_smooth: bool

    def between(self, first: Floats, second: Floats) -> Floats:
        """Kernel values between embedded networks, shape (n, n')."""
        product: Floats = first @ second.T
        if not self.is_smooth:
            return product
        squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2.0 * product
        return np.asarray(np.exp(-0.5 * np.maximum(squares, 0.0)))

    def own(self, embedded: Floats) -> Floats:
        """Kernel value of each embedded network with itself, shape (n,)."""
        return np.ones(len(embedded)) if self.is_smooth else np.asarray((embedded**2).sum(axis=1))


@dataclass(frozen=True, slots=True)
class Kernels:
    """Several kernels, and what makes the sources' coordinates of features: ``X @ matrix - offset``."""

    matrix: Floats
    offset: Floats
    kernels: tuple[Kernel, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What each kernel is about."""
        return tuple(kernel.name for kernel in self.kernels)

    def embed(self, X: Floats) -> list[Floats]:
        """Where networks lie for each kernel, `c` arrays (n, q)."""
        coordinates = X @ self.matrix - self.offset
        return [(coordinates if k.of_sources else X)[:, k.columns] * k.scale for k in self.kernels]

    def between(self, first: Sequence[Floats], second: Sequence[Floats]) -> Floats:
        """Each kernel between embedded networks, shape (c, n, n')."""
        return np.stack([k.between(a, b) for k, a, b in zip(self.kernels, first, second, strict=True)])

    def own(self, embedded: Sequence[Floats]) -> Floats:
        """Each kernel of each embedded network with itself, shape (c, n)."""
        return np.stack([k.own(where) for k, where in zip(self.kernels, embedded, strict=True)])


def latency_kernels(groups: Groups, n_columns: int, pool: SourcePool | None) -> Kernels:
    """The kernels on `groups` of `n_columns` features and, if there is a pool, on what its devices cost.

    The sources are their models' log costs, standardised: in proportion (a new device is a mix of the sources), with
    the first components counting equally, and as coordinates of any smooth function.

    Raises:
        ValueError: There is neither a pool with devices nor a group with columns.
    """
    matrix, offset, kernels = np.zeros((n_columns, 0)), np.zeros(0), list[Kernel]()
    if pool is not None and pool.devices:
        of_pool = _source_kernels(PoolContent.of(pool))
        matrix, offset, kernels = of_pool.matrix, of_pool.offset, list(of_pool.kernels)
    for names, is_smooth in (*(((name,), False) for name in LINEAR_GROUPS), (SHAPE_GROUPS, True)):
        spans = [np.arange(*groups[name]) for name in names if name in groups]
        columns = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        if len(columns):
            # all are of about unit spread: a network's square is then about 1
            scale = np.full(len(columns), 1.0 / np.sqrt(len(columns)))
            name = "all sums, smooth" if is_smooth else names[0]
            kernels.append(Kernel(name, columns, scale / SHAPE_LENGTH if is_smooth else scale, False, is_smooth))
    if not kernels:
        raise ValueError(f"none of the groups {', '.join(LINEAR_GROUPS)} has columns; there are {', '.join(groups)}")
    return Kernels(matrix, offset, tuple(kernels))


@lru_cache(maxsize=16)
def _source_kernels(content: PoolContent) -> Kernels:
    pool = content.pool
    models = fit_source_models(pool)
    of_pool = models.log_costs(pool.X[is_alive(pool.X, pool.groups)])
    mean, spread = of_pool.mean(axis=0), of_pool.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    _, singular, directions = np.linalg.svd((of_pool - mean) / spread, full_matrices=False)
    rotation = directions.T / spread[:, None] / np.sqrt(len(spread))
    coordinates = np.arange(rotation.shape[1])
    first = np.flatnonzero(singular[:N_FLAT] > 1e-6 * singular[0])
    flat = np.sqrt(len(of_pool) * len(spread) / len(first)) / singular[first]
    same = np.ones(len(coordinates))
    return Kernels(
        models.coef @ rotation,
        (mean - models.intercept) @ rotation,
        (
            Kernel("sources", coordinates, same, True, False),
            Kernel("sources, equal components", first, flat, True, False),
            Kernel("sources, smooth", coordinates, same, True, True),
        ),
    )
