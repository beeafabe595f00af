"""What is known of other devices before a new one is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hanax.predictors._leave_one_out import Floats

Groups = Mapping[str, tuple[int, int]]
"""Named groups of feature columns: the first column of each, and the one after its last."""


@dataclass(frozen=True, eq=False)
class SourcePool:
    """Costs of the same architectures on several devices, which a predictor for another device learns from.

    Attributes:
        space_fingerprint: Of the search space whose architectures these are.
        groups: The groups of columns of `X`, as `latency_feature_groups` names them.
        X: Features of `a` architectures, shape (a, f), as `latency_features` makes them.
        costs: Positive costs, shape (a, m), each column in the unit of its device; NaN where not measured.
        devices: Names of the `m` devices.

    Raises:
        ValueError: Shapes do not fit, a cost is not positive, or a device has fewer than two costs.
    """

    space_fingerprint: str
    groups: Groups
    X: Floats
    costs: Floats
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.X.ndim != 2 or self.costs.shape != (len(self.X), len(self.devices)):
            raise ValueError(
                f"a pool of {len(self.devices)} devices needs features (archs, columns) and costs (archs, "
                f"{len(self.devices)}); got {self.X.shape} and {self.costs.shape}"
            )
        if len(set(self.devices)) != len(self.devices):
            raise ValueError(f"devices of a pool need different names; got {', '.join(self.devices)}")
        for name, (start, stop) in self.groups.items():
            if not 0 <= start <= stop <= self.X.shape[1]:
                raise ValueError(f"feature group {name} is columns {start} to {stop}; there are {self.X.shape[1]}")
        if not np.isfinite(self.X).all():
            raise ValueError("features of a pool must be finite numbers")
        known = np.isfinite(self.costs)
        if (self.costs[known] <= 0).any() or np.isinf(self.costs).any():
            raise ValueError("costs of a pool are positive numbers, or NaN where there is none")
        for device, n in zip(self.devices, known.sum(axis=0), strict=True):
            if n < 2:
                raise ValueError(f"{device} has {n} costs in the pool; at least 2 are needed")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything in the pool, 16 hexadecimal digits. Predictors that were made from it carry it."""
        about = [self.space_fingerprint, list(self.devices), {name: list(span) for name, span in self.groups.items()}]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for values in (self.X, self.costs):
            digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
        return digest.hexdigest()[:16]

    def rows(self, indices: ArrayLike) -> SourcePool:
        """The pool of the architectures at `indices` alone."""
        chosen = np.asarray(indices)
        return replace(self, X=self.X[chosen], costs=self.costs[chosen])

    def columns(self, devices: Sequence[str]) -> SourcePool:
        """The pool of `devices` alone, in that order.

        Raises:
            ValueError: The pool does not have one of them.
        """
        if missing := [name for name in devices if name not in self.devices]:
            raise ValueError(f"the pool has no device {', '.join(missing)}; it has {', '.join(self.devices)}")
        return replace(
            self, costs=self.costs[:, [self.devices.index(name) for name in devices]], devices=tuple(devices)
        )

    def without(self, devices: Sequence[str]) -> SourcePool:
        """The pool without `devices`, of which some or all may not be in it."""
        return self.columns([name for name in self.devices if name not in devices])


def group_columns(X: Floats, groups: Groups, names: Sequence[str]) -> Floats:
    """The columns of `X`, shape (n, f), that belong to the groups `names`, in that order.

    Raises:
        ValueError: A group does not exist.
    """
    if missing := [name for name in names if name not in groups]:
        raise ValueError(f"there is no feature group {', '.join(missing)}; there are {', '.join(groups)}")
    return np.concatenate([X[:, :0], *(X[:, slice(*groups[name])] for name in names)], axis=1)


def is_alive(X: Floats, groups: Groups) -> NDArray[np.bool_]:
    """Whether the output of every block of each network depends on its input, shape (n,); see `latency_features`."""
    if "dead" not in groups:
        return np.ones(len(X), dtype=np.bool_)
    return np.asarray(group_columns(X, groups, ["dead"]).sum(axis=1) == 0)
