"""A space small enough to enumerate, with costs whose true front is therefore known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from hanax.search_spaces import SearchSpace, block_one_hot, graph_features, mobilenet_v3
from hanax.searchers import Constraint, Objective, Problem, every_network, non_dominated


@dataclass(frozen=True, eq=False)
class Toy:
    """Every network of a space with its costs: a look-up table for latency, a saturating accuracy with interactions."""

    space: SearchSpace
    codes: np.ndarray
    accuracy: np.ndarray
    latency_ms: np.ndarray
    macs: np.ndarray

    @cached_property
    def row_of(self) -> dict[bytes, int]:
        return {row.tobytes(): index for index, row in enumerate(self.codes)}

    def evaluate(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        rows = [self.row_of[row.tobytes()] for row in codes]
        return {"accuracy": self.accuracy[rows], "latency_ms": self.latency_ms[rows], "macs": self.macs[rows]}

    def problem(self, *constraints: Constraint) -> Problem:
        objectives = (Objective("accuracy", "maximise"), Objective("latency_ms", "minimise", "ms"))
        return Problem(self.space, objectives, constraints, self.evaluate)

    def true_front(self, feasible: np.ndarray | None = None) -> set[bytes]:
        """The codes of the networks on the front of the whole space, by enumeration."""
        rows = np.arange(len(self.codes)) if feasible is None else np.flatnonzero(feasible)
        losses = np.column_stack([-self.accuracy, self.latency_ms])[rows]
        return {row.tobytes() for row in self.codes[rows[non_dominated(losses)]]}


def _toy(resolutions: tuple[int, ...], n_stages: int, seed: int) -> Toy:
    space = mobilenet_v3(
        resolutions=resolutions, n_classes=10, stem_stride=1, stage_widths=(16, 24)[:n_stages],
        stage_strides=(1, 2)[:n_stages], stage_activations=("relu", "hswish")[:n_stages],
        stage_squeeze_excite=(False, True)[:n_stages], depths=(1, 2), kernel_sizes=(3, 5), head_width=64,
        feature_width=64,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    codes = every_network(space)
    blocks = block_one_hot(space, codes)
    names, sums = graph_features(space, codes)
    macs = sums[:, names.index("macs")]
    latency_ms = blocks @ rng.gamma(2.0, 0.5, size=blocks.shape[1]) + 2.0 * codes[:, 0]
    accuracy = 0.05 * np.log(macs) + 0.01 * np.sin(2 * blocks @ rng.normal(size=blocks.shape[1]))
    return Toy(space, codes, accuracy, latency_ms, macs)


@pytest.fixture(scope="session")
def toy() -> Toy:
    """3,528 networks."""
    return _toy((24, 32), 2, seed=0)


@pytest.fixture(scope="session")
def tiny() -> Toy:
    """42 networks."""
    return _toy((24,), 1, seed=0)
