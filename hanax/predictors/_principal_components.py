"""A device as a mix of a few directions in which the costs of the source devices vary."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hanax.predictors._leave_one_out import Floats
from hanax.predictors._predictor import LinearPredictor
from hanax.predictors._source_models import few_shot_data, fit_source_models
from hanax.predictors._source_pool import SourcePool

COMPONENT_ALPHAS = tuple(np.logspace(-8, 4, 49).tolist())


class PrincipalComponentsPredictor(LinearPredictor):
    """Ridge regression of the log cost of a new device on the principal components of the source devices' log costs.

    The components are those of the source devices' models (`fit_source_models`), so that any network has them and the
    noise of the sources is not among them. Each keeps its spread: the ridge shrinks what hardly varies over the sources
    most. A cost is predicted by its median, in the unit of the `y` of `fit`; `predict_interval` is jackknife+.

    Args:
        pool: Costs on other devices.
        n_components: So many, or as many as there are source devices.
        alphas: Penalties to choose from by exact leave-one-out.

    Attributes:
        components_: What makes the components of the columns of `X`, shape (f, k).
        offset_: And what is added to them, shape (k,).
    """

    components_: Floats
    offset_: Floats

    def __init__(self, pool: SourcePool, n_components: int = 4, alphas: tuple[float, ...] = COMPONENT_ALPHAS) -> None:
        self.pool = pool
        self.n_components = n_components
        self.alphas = alphas

    def fit(self, X: ArrayLike, y: ArrayLike) -> PrincipalComponentsPredictor:
        """Fit on `latency_features` `X` of the samples, shape (n, f), and their costs `y`, shape (n,); returns self.

        Raises:
            ValueError: `n_components` below 1, columns that are not those of the pool, a cost that is not above 0, or
                data that scikit-learn refuses.
        """
        if self.n_components < 1:
            raise ValueError(f"n_components must be at least 1; got {self.n_components}")
        features, logs = few_shot_data(self, X, y)
        models = fit_source_models(self.pool)
        of_pool = models.log_costs(np.asarray(self.pool.X, dtype=np.float64))
        mean = of_pool.mean(axis=0)
        _, singular, directions = np.linalg.svd(of_pool - mean, full_matrices=False)
        largest_spread = singular[0] / np.sqrt(len(of_pool))
        mixing = directions[: self.n_components].T / (largest_spread if largest_spread > 0 else 1.0)
        self.components_, self.offset_ = models.coef @ mixing, (models.intercept - mean) @ mixing
        self._learn(features @ self.components_ + self.offset_, logs, (), self.alphas)
        return self

    def _check(self, X: ArrayLike) -> Floats:
        return super()._check(X) @ self.components_ + self.offset_

    def _to_cost(self, values: Floats) -> Floats:
        return np.exp(values)
