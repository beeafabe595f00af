"""What makes two networks alike for a latency predictor: kernels on groups of features and on the source devices.

Shapes: `n` networks, `f` features, `q` columns of an embedding, `m` source devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hanax.predictors._leave_one_out import Floats
from hanax.predictors._source_models import fit_source_models
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
        name: What it is about: a group of features, or ``sources`` in one of three forms.
        matrix: Embedding of the columns of `X`, shape (f, q), or the columns themselves, shape (f,), with a weight.
        offset: What is subtracted from the embedding, shape (q,).
        is_smooth: The squared exponential of the distance between embeddings, in place of their product.
    """

    name: str
    matrix: Floats
    offset: Floats
    is_smooth: bool

    def embed(self, X: Floats) -> Floats:
        """Where the networks lie, shape (n, q)."""
        if self.matrix.ndim == 1:
            used = np.flatnonzero(self.matrix)
            return X[:, used] * self.matrix[used]
        return X @ self.matrix - self.offset

    def between(self, first: Floats, second: Floats) -> Floats:
        """Kernel values between embedded networks, shape (n, n')."""
        product: Floats = first @ second.T
        if not self.is_smooth:
            return product
        squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2.0 * product
        return np.asarray(np.exp(-0.5 * np.maximum(squares, 0.0)))

    def own(self, embedded: Floats) -> Floats:
        """Kernel value of each network with itself, shape (n,)."""
        return np.ones(len(embedded)) if self.is_smooth else np.asarray((embedded**2).sum(axis=1))


def latency_kernels(groups: Groups, n_columns: int, pool: SourcePool | None) -> list[Kernel]:
    """The kernels on `groups` of `n_columns` features and, if there is a pool, on what its devices cost.

    The sources are their models' log costs, standardised: in proportion (a new device is a mix of the sources), with
    the first components counting equally, and as coordinates of any smooth function.
    """
    kernels = _source_kernels(pool) if pool is not None and pool.devices else []
    for name in LINEAR_GROUPS:
        if weight := _weight(groups, n_columns, (name,)):
            kernels.append(Kernel(name, weight[0], np.zeros(0), False))
    if weight := _weight(groups, n_columns, SHAPE_GROUPS):
        kernels.append(Kernel("shape", weight[0] / SHAPE_LENGTH, np.zeros(0), True))
    if not kernels:
        raise ValueError(f"none of the groups {', '.join(LINEAR_GROUPS)} has columns; there are {', '.join(groups)}")
    return kernels


def _weight(groups: Groups, n_columns: int, names: tuple[str, ...]) -> tuple[Floats] | None:
    """Weight of each column so that a network's square is about 1; None if the groups have no column."""
    weight = np.zeros(n_columns)
    for name in names:
        if name in groups:
            weight[slice(*groups[name])] = 1.0
    if not weight.any():
        return None
    return (weight / np.sqrt(weight.sum()),)


def _source_kernels(pool: SourcePool) -> list[Kernel]:
    models = fit_source_models(pool)
    of_pool = models.log_costs(pool.X[is_alive(pool.X, pool.groups)])
    mean, spread = of_pool.mean(axis=0), of_pool.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    _, singular, directions = np.linalg.svd((of_pool - mean) / spread, full_matrices=False)
    rotation = directions.T / spread[:, None] / np.sqrt(len(spread))
    matrix, offset = models.coef @ rotation, (mean - models.intercept) @ rotation
    flat = singular[:N_FLAT] > 1e-6 * singular[0]
    scale = np.sqrt(len(of_pool) * len(spread) / flat.sum()) / singular[:N_FLAT][flat]
    first = np.flatnonzero(flat)
    return [
        Kernel("sources", matrix, offset, False),
        Kernel("sources, equal components", matrix[:, first] * scale, offset[first] * scale, False),
        Kernel("sources, smooth", matrix, offset, True),
    ]
