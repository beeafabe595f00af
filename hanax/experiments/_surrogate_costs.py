"""Costs of any network of a space, learnt from those of a sample, with the error that cross-validation shows.

Shapes: `n` networks, `d` decisions, `f` features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.linear_model import Ridge

from hanax.searchers import Costs

Codes = NDArray[np.int32]
Floats = NDArray[np.float64]

Describe = Callable[[Codes], tuple[Costs, Floats]]
"""Costs of codes, shape (n, d), that are known without learning, and features to learn the others from, (n, f)."""

N_FOLDS = 10
ALPHA = 1.0
"""Penalty of the ridge regression, whose features are of the order of 1."""


@dataclass(frozen=True, slots=True)
class SurrogateError:
    """How far predictions of a cost are off on networks that were not fitted, in its unit, and their rank correlation.

    Attributes:
        mae: Mean absolute error.
        rmse: Root of the mean square error.
    """

    mae: float
    rmse: float
    spearman: float


@dataclass(frozen=True, eq=False)
class CostModel:
    """How a cost is learnt: a ridge regression, and a second regressor of what that leaves over.

    The ridge regression carries on where there is no data, as the second one by itself would not.

    Attributes:
        rest: An unfitted scikit-learn regressor of the residuals; None for the ridge regression alone.
        rest_from: The first of the features that `rest` sees; negative ones count from the end.
        log: Learn the logarithm, for a cost whose errors are relative.
    """

    rest: Any = None
    rest_from: int = 0
    log: bool = False

    def fit(self, X: Floats, y: Floats) -> FittedCost:
        """Learn costs `y`, shape (n,), from features `X`, shape (n, f)."""
        targets = np.log(y) if self.log else y
        ridge = Ridge(ALPHA).fit(X, targets)
        rest = None
        if self.rest is not None:
            rest = clone(self.rest).fit(X[:, self.rest_from :], targets - ridge.predict(X))
        return FittedCost(self, ridge, rest)


@dataclass(frozen=True, eq=False)
class FittedCost:
    """A `CostModel` with what it learnt."""

    model: CostModel
    ridge: Ridge
    rest: Any

    def predict(self, X: Floats) -> Floats:
        """Costs of networks with features `X`, shape (n, f); shape (n,)."""
        predicted = self.ridge.predict(X)
        if self.rest is not None:
            predicted = predicted + self.rest.predict(X[:, self.model.rest_from :])
        return np.asarray(np.exp(predicted) if self.model.log else predicted, dtype=np.float64)


class SurrogateCosts:
    """An `Evaluate` function for every network of a space, from the costs of some."""

    def __init__(
        self, describe: Describe, models: Mapping[str, CostModel], codes: Codes, recorded: Mapping[str, Floats]
    ) -> None:
        """Fit.

        Args:
            describe: Gives what is known of networks, and features.
            models: How each other cost is learnt.
            codes: The networks that were evaluated, shape (n, d).
            recorded: Their costs, each of shape (n,); those without a model are not used.
        """
        self._describe, self._models, self._codes, self._recorded = describe, models, codes, recorded
        X = describe(codes)[1]
        self._fitted = {name: model.fit(X, recorded[name]) for name, model in models.items()}

    def __call__(self, codes: Codes) -> Costs:
        """The costs of canonical `codes`, shape (n, d)."""
        known, X = self._describe(codes)
        return {**known, **{name: fitted.predict(X) for name, fitted in self._fitted.items()}}

    def error(self, cost: str) -> SurrogateError:
        """By cross-validation in `N_FOLDS` parts, which takes that many times as long as fitting.

        Raises:
            ValueError: `cost` is not one that is learnt; names those that are.
        """
        if cost not in self._models:
            raise ValueError(f"{cost} is not learnt, unlike {', '.join(self._models)}")
        return cross_validate(self._models[cost], self._describe(self._codes)[1], self._recorded[cost])


def cross_validate(model: CostModel, X: Floats, y: Floats) -> SurrogateError:
    """The error of `model` on costs `y`, shape (n,), of networks with features `X`, each predicted without its fold."""
    fold = np.random.default_rng(0).permutation(len(X)) % N_FOLDS
    predicted = np.empty(len(X))
    for number in range(N_FOLDS):
        held_out = fold == number
        predicted[held_out] = model.fit(X[~held_out], y[~held_out]).predict(X[held_out])
    error = predicted - y
    rank = np.corrcoef(rankdata(predicted), rankdata(y))[0, 1]
    return SurrogateError(float(np.abs(error).mean()), float(np.sqrt(np.mean(error**2))), float(rank))
