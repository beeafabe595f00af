"""What another study, of another device perhaps, says about the networks of this one.

Shapes: `n` networks, `k` outcomes (objectives and constraints of the other study), `f` columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from scipy.stats import norm, rankdata, t
from sklearn.linear_model import RidgeCV

from hanax.searchers._discrete_study import Parameters, StudyReader
from hanax.searchers._domain import Domain
from hanax.searchers._pareto import constrained_rank, spread_along_front
from hanax.searchers._problem import Codes, Floats

MAX_ONE_HOT = 16
"""Options up to which an ordered decision has a column for each of them."""

ALPHAS = np.logspace(-2, 4, 13)
"""Strengths of regularisation that leave-one-out cross-validation chooses from."""

SIGNIFICANCE = 0.05
"""Probability with which the ranks of an unrelated study pass for related."""

MIN_TOLD = 10
"""Networks from which on a regression says more than the networks themselves."""


class WarmStart:
    """The front of another study, and predictions of where a network would rank in it.

    Ranks, as normal scores, because another device differs in scale at least, and often in more that keeps the order.
    """

    def __init__(
        self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], parameters: Parameters
    ) -> None:
        """Fit on `trials`.

        Raises:
            ValueError: None of them is complete and has these parameters.
        """
        record = StudyReader(parameters).read(trials, directions)
        if len(record.codes) == 0:
            raise ValueError(
                f"warm_start: none of {len(trials)} trials is complete with values of the parameters "
                f"{', '.join(parameters.distributions)}"
            )
        rank = constrained_rank(record.losses, record.violations)
        self._front: Codes = record.codes[rank == 0]
        self._front_losses = record.losses[rank == 0]
        self._domain = parameters.domain
        self._model: RidgeCV | None = None
        outcomes = np.concatenate([record.losses, record.constraints], axis=1)
        outcomes = outcomes[:, np.ptp(outcomes, axis=0) > 0]
        if len(outcomes) >= MIN_TOLD and outcomes.shape[1]:
            columns = _columns_of(self._domain, record.codes)
            scores = norm.ppf((rankdata(outcomes, axis=0) - 0.5) / len(outcomes))
            self._mean, spread = columns.mean(axis=0), columns.std(axis=0)
            self._spread = np.where(spread > 0, spread, 1.0)
            self._model = RidgeCV(alphas=ALPHAS, alpha_per_target=True)
            self._model.fit((columns - self._mean) / self._spread, scores)

    def front(self, k: int) -> Codes:
        """Up to `k` networks, well spread along the front."""
        return self._front[spread_along_front(self._front_losses, k)]

    def scores(self, codes: Codes) -> Floats:
        """Predicted normal scores of `codes` in the other study, shape (n, k); no columns if it knows too little."""
        if self._model is None:
            return np.zeros((len(codes), 0))
        scores = self._model.predict((_columns_of(self._domain, codes) - self._mean) / self._spread)
        return np.asarray(scores, dtype=np.float64).reshape(len(codes), -1)


def related(scores: Floats, outcomes: Floats) -> NDArray[np.bool_]:
    """Which columns of `scores`, shape (n, k), order the networks as some column of `outcomes`, shape (n, q), does.

    That Spearman's rank correlation differs from 0, by Student's t, with Bonferroni's correction for the `q` chances.
    """
    n = len(scores)
    if n < 3 or outcomes.shape[1] == 0:
        return np.zeros(scores.shape[1], dtype=bool)
    ranks = [rankdata(values, axis=0) - (n + 1) / 2 for values in (scores, outcomes)]
    lengths = [np.linalg.norm(values, axis=0) for values in ranks]
    correlation = ranks[0].T @ ranks[1] / np.maximum(np.outer(*lengths), 1e-12)
    statistic = correlation * np.sqrt((n - 2) / np.maximum(1.0 - correlation**2, 1e-12))
    probability = 2.0 * t.sf(np.abs(statistic), n - 2)
    return np.asarray((probability < SIGNIFICANCE / outcomes.shape[1]).any(axis=1))


def _columns_of(domain: Domain, codes: Codes) -> Floats:
    """Numbers and options of `codes`, shape (n, f): a column per option, and one for the numbers where it has some."""
    parts: list[Floats] = []
    for column, (count, values) in enumerate(zip(domain.counts.tolist(), domain.values, strict=True)):
        if values is not None:
            parts.append(values[codes[:, [column]]])
        if values is None or count <= MAX_ONE_HOT:
            parts.append((codes[:, [column]] == np.arange(count)).astype(np.float64))
    return np.concatenate(parts, axis=1)
