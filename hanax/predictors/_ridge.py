"""Ridge regression for an accuracy or a latency."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import LinearPredictor, training_data

RIDGE_ALPHAS = tuple(np.logspace(-4, 4, 33).tolist())


class RidgePredictor(LinearPredictor):
    """Ridge regression from features of architectures to one cost, e.g. ``accuracy`` or ``latency_ms``.

    Columns of `X` are shrunk on the scale they come in, which is a prior on what matters: `predictor_features` gives
    them on comparable ones. Only the intercept is free.

    Args:
        alphas: Penalties to choose from by exact leave-one-out.
        log_target: Fit the logarithm of `y`, for costs above 0 whose errors are relative, such as latencies.
    """

    def __init__(self, alphas: tuple[float, ...] = RIDGE_ALPHAS, log_target: bool = False) -> None:
        self.alphas = alphas
        self.log_target = log_target

    def fit(self, X: ArrayLike, y: ArrayLike) -> RidgePredictor:
        """Fit on features `X`, shape (n, f), and measured costs `y`, shape (n,); returns self.

        Raises:
            ValueError: `log_target` and a cost that is not above 0, or data that scikit-learn refuses.
        """
        features, costs = training_data(self, X, y)
        if self.log_target and costs.min() <= 0:
            raise ValueError(f"log_target needs costs above 0; the least of {len(costs)} is {costs.min()}")
        self._learn(features, np.log(costs) if self.log_target else costs, (), self.alphas)
        return self

    def _to_cost(self, values: Floats) -> Floats:
        return np.exp(values) if self.log_target else values
