"""The source device that ranks the samples most like a new device does, taken for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from hanax.predictors._leave_one_out import Floats, fit_leave_one_out
from hanax.predictors._predictor import LinearPredictor
from hanax.predictors._ridge import RIDGE_ALPHAS
from hanax.predictors._source_models import few_shot_data, fit_source_models
from hanax.predictors._source_pool import SourcePool


class BestSourcePredictor(LinearPredictor):
    """The costs of the source device with the highest rank correlation on the samples, brought to the new device's.

    The log cost is ``level + slope * log cost on the source``, as the source's model has it (`fit_source_models`); the
    level is free and the slope shrunk towards 1, a device that is so many times slower. The jackknife+ intervals
    are over the whole procedure, the choice of the source included.

    Args:
        pool: Costs on other devices.
        alphas: Penalties of the slope to choose from by exact leave-one-out.

    Attributes:
        source_: The position of the chosen device in ``pool.devices``.
        source_coef_, source_intercept_: The models of all source devices, shapes (f, m) and (m,).
    """

    source_: int
    source_coef_: Floats
    source_intercept_: Floats

    def __init__(self, pool: SourcePool, alphas: tuple[float, ...] = RIDGE_ALPHAS) -> None:
        self.pool = pool
        self.alphas = alphas

    def fit(self, X: ArrayLike, y: ArrayLike) -> BestSourcePredictor:
        """Fit on `latency_features` `X` of the samples, shape (n, f), and their costs `y`, shape (n,); returns self.

        Raises:
            ValueError: Fewer than 3 samples, columns that are not those of the pool, a cost that is not above 0, or
                data that scikit-learn refuses.
        """
        features, logs = few_shot_data(self, X, y)
        if len(logs) < 3:
            raise ValueError(f"a source is chosen by 3 samples or more, so that one can be left out; got {len(logs)}")
        models = fit_source_models(self.pool)
        self.source_coef_, self.source_intercept_ = models.coef, models.intercept
        sources = models.log_costs(features)
        self.source_ = _most_alike(sources, logs)
        chosen = np.array([
            _most_alike(np.delete(sources, row, axis=0), np.delete(logs, row)) for row in range(len(logs))
        ])  # fmt: skip
        self.loo_coef_ = np.zeros((len(logs), sources.shape[1]))
        self.loo_intercept_, self.loo_residuals_ = np.empty(len(logs)), np.empty(len(logs))
        for source in np.unique(np.append(chosen, self.source_)):
            log_source = sources[:, source]
            mean = log_source.mean()
            fit = fit_leave_one_out(
                np.ones((len(logs), 1)), (log_source - mean)[:, None], logs - log_source, self.alphas
            )
            rows = chosen == source
            self.loo_coef_[rows, source] = 1.0 + fit.loo_shrunk_coef[rows, 0]
            self.loo_intercept_[rows] = fit.loo_free_coef[rows, 0] - mean * fit.loo_shrunk_coef[rows, 0]
            self.loo_residuals_[rows] = fit.loo_residuals[rows]
            if source == self.source_:
                self.alpha_ = fit.alpha
                self.coef_ = np.zeros(sources.shape[1])
                self.coef_[source] = 1.0 + fit.shrunk_coef[0]
                self.intercept_ = float(fit.free_coef[0] - mean * fit.shrunk_coef[0])
        return self

    def _check(self, X: ArrayLike) -> Floats:
        return super()._check(X) @ self.source_coef_ + self.source_intercept_

    def _to_cost(self, values: Floats) -> Floats:
        return np.exp(values)


def _most_alike(sources: Floats, logs: Floats) -> int:
    """The column of `sources`, shape (n, m), with the highest Spearman correlation with `logs`, shape (n,).

    Of equals the one with the highest correlation of the values themselves; few samples have few different ranks. A
    column or samples that are all the same correlate with nothing.
    """
    by_rank = _correlations(rankdata(sources, axis=0), rankdata(logs))
    by_value = _correlations(sources, logs)
    return int(np.lexsort((by_value, np.round(by_rank, 12)))[-1])


def _correlations(columns: Floats, target: Floats) -> Floats:
    """Pearson correlation of each column, shape (n, m), with `target`, shape (n,); 0 where one does not vary."""
    columns, target = columns - columns.mean(axis=0), target - target.mean()
    norms = np.linalg.norm(columns, axis=0) * np.linalg.norm(target)
    return np.asarray(target @ columns / np.where(norms > 1e-12, norms, np.inf))
