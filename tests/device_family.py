"""Devices that are alike as real ones are: log costs linear in features of networks, with weights of one family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hanax.predictors import SourcePool

SPACE_FINGERPRINT = "0123456789abcdef"
N_DECISIONS, N_OPTIONS = 8, 3


@dataclass(frozen=True)
class DeviceFamily:
    """Source devices, and one more device of the same family whose costs are known for all networks.

    Attributes:
        pool: The source devices.
        X: Features of networks that are not in the pool.
        y: Their costs on the device that is none of the sources.
    """

    pool: SourcePool
    X: np.ndarray
    y: np.ndarray


def draw_features(rng: np.random.Generator, n: int) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """Features of `n` random networks: one column per option, joint options of neighbours, and two sizes."""
    options = np.eye(N_OPTIONS)[rng.integers(0, N_OPTIONS, (n, N_DECISIONS))]
    pairs = np.einsum("nda,ndb->ndab", options[:, ::2], options[:, 1::2]).reshape(n, -1)
    options = options.reshape(n, -1)
    sizes = options.reshape(n, N_DECISIONS, N_OPTIONS) @ np.array([1.0, 2.0, 4.0])
    work = np.log(np.column_stack([sizes.sum(axis=1), (sizes * np.arange(1, N_DECISIONS + 1)).sum(axis=1)]))
    stops = np.cumsum([options.shape[1], pairs.shape[1], work.shape[1]]).tolist()
    groups = dict(zip(("options", "pairs", "work"), zip([0, *stops[:-1]], stops, strict=True), strict=True))
    return np.concatenate([options, pairs, work], axis=1), groups


def draw_family(
    seed: int, *, n_sources: int = 8, n_pool: int = 150, n_new: int = 200, rank: int = 3, noise: float = 0.01
) -> DeviceFamily:
    """A family whose devices differ in `rank` ways; `noise` is that of every measurement, in log cost."""
    rng = np.random.default_rng(seed)
    X, groups = draw_features(rng, n_pool + n_new)
    n_options = N_DECISIONS * N_OPTIONS
    common = np.tile([0.0, 0.1, 0.25], N_DECISIONS) + 0.03 * rng.normal(size=n_options)
    ways = 0.06 * rng.normal(size=(rank, n_options))
    weights = common + rng.normal(size=(n_sources + 1, rank)) @ ways
    levels = rng.normal(size=n_sources + 1)
    costs = np.exp(X[:, :n_options] @ weights.T + levels + noise * rng.normal(size=(len(X), n_sources + 1)))
    names = tuple(f"source{number}" for number in range(n_sources))
    pool = SourcePool(SPACE_FINGERPRINT, groups, X[:n_pool], costs[:n_pool, :-1], names)
    return DeviceFamily(pool, X[n_pool:], costs[n_pool:, -1])
