"""The look-up table: a cost that adds up over the blocks of a network."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hanax.predictors._predictor import LinearPredictor, training_data

ADDITIVE_ALPHAS = tuple(np.logspace(-8, 4, 49).tolist())


class AdditivePredictor(LinearPredictor):
    """One cost per block choice, learned from costs of whole networks, e.g. ``latency_ms``.

    `additive_features` makes the `X` for it: an indicator per block choice, behind columns that explain most of the
    cost by themselves, such as MACs. These are free; the entries of the table are shrunk towards what they explain, so
    that a block choice that was never measured costs what its MACs suggest, and many measurements give the exact table.

    Args:
        prior_columns: Columns of `X` that are not shrunk. `X` needs more rows than there are of these.
        alphas: Penalties to choose from by exact leave-one-out.
    """

    def __init__(self, prior_columns: tuple[int, ...] = (), alphas: tuple[float, ...] = ADDITIVE_ALPHAS) -> None:
        self.prior_columns = prior_columns
        self.alphas = alphas

    def fit(self, X: ArrayLike, y: ArrayLike) -> AdditivePredictor:
        """Fit on features `X`, shape (n, f), and measured costs `y`, shape (n,); returns self.

        Raises:
            ValueError: `prior_columns` that `X` has not, too few rows for them, or data that scikit-learn refuses.
        """
        features, costs = training_data(self, X, y)
        n_columns = features.shape[1]
        if any(not -n_columns <= column < n_columns for column in self.prior_columns):
            raise ValueError(f"prior_columns {self.prior_columns} do not all exist; X has {n_columns} columns")
        self._learn(features, costs, self.prior_columns, self.alphas)
        return self
