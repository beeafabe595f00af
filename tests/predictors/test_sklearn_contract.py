"""scikit-learn's own tests of an estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from hanax.predictors import AccuracyPredictor, AdditivePredictor, QuantizedAccuracyPredictor, RidgePredictor


@parametrize_with_checks(
    [RidgePredictor(), AdditivePredictor(), AccuracyPredictor(), QuantizedAccuracyPredictor(hidden=(16, 16), n_nets=2)]
)
def test_scikit_learn_accepts_it_as_an_estimator(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
