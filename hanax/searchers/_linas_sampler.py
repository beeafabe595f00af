"""A predictor in the loop as an Optuna sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from hanax.searchers._discrete_sampler import DiscreteSampler
from hanax.searchers._discrete_study import CanonicalParams, Parameters, Record
from hanax.searchers._memory import row_keys
from hanax.searchers._problem import Codes, Floats
from hanax.searchers._surrogate_search import Settings, propose
from hanax.searchers._warm_start import WarmStart, related


class LinasSampler(DiscreteSampler):
    """Predictors, fitted anew each round to all trials, choose what is evaluated next (LINAS).

    After Cummings et al., 2022 (arXiv:2205.10358, algorithm 1): evaluate a few random networks; then, in rounds, fit a
    predictor to each objective and constraint, search on the predictions, and evaluate `batch` of the networks found.
    Works over categorical, integer and stepped parameters, for one objective or several. How it fits and searches is
    told in `hanax.searchers._surrogate_search`.

    Constraints are those that trials set (`Trial.set_constraint`). Trials that fail or are pruned teach nothing. No
    network is proposed twice, failed ones neither, until all were; then they repeat at random, which is logged once.
    That holds for parameters that all trials have; for others, and for networks that are equal although their
    parameters differ, give `search_space` and `canonical`. Continuous parameters, and those that only some trials have,
    are random.

    Several workers may share a study: each fits to the trials of all and leaves alone what the others are evaluating.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        n_initial: int = 10,
        batch: int = 5,
        candidates: int = 4000,
        reference: Sequence[float] | None = None,
        warm_start: Study | Sequence[FrozenTrial] | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        canonical: CanonicalParams | None = None,
        canonical_codes: Callable[[Codes], Codes] | None = None,
        features: Callable[[Codes], Floats] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            seed: The same seed and the same results give the same networks; None differs every time.
            n_initial: Networks that must be told before predictors are fitted; they differ as much as can be.
            batch: Networks per round: 1 fits after every trial, which finds good networks in the fewest trials and
                takes the longest per trial.
            candidates: Networks that the predictors look at per round, where there are too many to look at all.
            reference: For each objective, in the study's own direction, the worst value of interest: the hypervolume
                is counted from there, and what is worse need not be told apart. None takes it from the trials.
            warm_start: Another study of the same parameters, for another device or data set, or its trials (whose
                values then have the directions of this study). Some of its front is evaluated first, and what a
                regression on it says of a network joins the columns that the predictors see, as far as it orders the
                networks told here as they turned out.
            search_space: All parameters with their distributions; None learns them from the first trial, which is then
                random.
            canonical: Gives, for the parameters of a network, those that count, the same ones for equal networks.
            canonical_codes: The same for arrays, shape (n, d), of indices into the values of the discrete parameters of
                `search_space`, in its order; much faster.
            features: Further columns for the predictors, shape (n, f), e.g. MACs, of such arrays.

        Raises:
            ValueError: A number below 1, both `canonical` and `canonical_codes`, or `canonical_codes` or `features`
                without `search_space`.
        """
        super().__init__(seed, search_space, canonical, canonical_codes)
        for name, value in (("n_initial", n_initial), ("batch", batch), ("candidates", candidates)):
            if value < 1:
                raise ValueError(f"{name} is at least 1; got {value}")
        if features is not None and search_space is None:
            raise ValueError("features needs search_space, which sets the columns of the codes")
        self._settings = Settings(n_initial=n_initial, candidates=candidates)
        self._reference = reference
        self._batch = batch
        self._warm_start = warm_start
        self._features = features
        self._prior: WarmStart | None = None
        self._next = np.zeros((0, 0), dtype=np.int32)

    def _propose(self, study: Study, parameters: Parameters, record: Record, rng: np.random.Generator) -> Codes:
        known = record.known
        left = [index for index, key in enumerate(row_keys(self._next)) if key not in known]
        proposals = self._next[left]
        if len(proposals) == 0:
            proposals = self._round(study, parameters, record, rng)
        self._next = proposals[1:]
        return proposals[:1]

    def _forget(self) -> None:
        self._prior = None
        self._next = np.zeros((0, 0), dtype=np.int32)

    def _round(self, study: Study, parameters: Parameters, record: Record, rng: np.random.Generator) -> Codes:
        """What to evaluate next, up to `batch` networks; no rows: all are known."""
        domain = parameters.domain
        n_missing = self._settings.n_initial - len(record.codes)
        if n_missing <= 0:
            domain = dataclasses.replace(domain, features=self._columns(study, parameters, record))
        elif self._warm_start is not None:
            front = self._fitted_prior(study, parameters).front(max(1, self._settings.n_initial // 2))
            new = [index for index, key in enumerate(row_keys(front)) if key not in record.known]
            if new:
                return front[new]
        return propose(
            domain,
            record.codes,
            record.losses,
            record.constraints,
            record.pending,
            min(self._batch, n_missing) if n_missing > 0 else self._batch,
            rng,
            dataclasses.replace(self._settings, reference=self._worst(study)),
        )

    def _columns(self, study: Study, parameters: Parameters, record: Record) -> Callable[[Codes], Floats] | None:
        """The caller's features beside the scores in the other study that are related to what was told in this one."""
        features = [] if self._features is None else [self._features]
        if self._warm_start is not None:
            prior = self._fitted_prior(study, parameters)
            outcomes = np.concatenate([record.losses, record.constraints], axis=1)
            is_related = related(prior.scores(record.codes), outcomes)
            if is_related.any():
                features.append(lambda codes: prior.scores(codes)[:, is_related])
        if not features:
            return None
        return lambda codes: np.concatenate([columns(codes) for columns in features], axis=1)

    def _worst(self, study: Study) -> tuple[float, ...] | None:
        """The reference point as losses."""
        if self._reference is None:
            return None
        if len(self._reference) != len(study.directions):
            raise ValueError(f"reference has {len(self._reference)} values for {len(study.directions)} objectives")
        signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
        return tuple(sign * value for sign, value in zip(signs, self._reference, strict=True))

    def _fitted_prior(self, study: Study, parameters: Parameters) -> WarmStart:
        if self._prior is None:
            assert self._warm_start is not None
            if isinstance(self._warm_start, Study):
                trials, directions = self._warm_start.get_trials(deepcopy=False), self._warm_start.directions
            else:
                trials, directions = list(self._warm_start), study.directions
            self._prior = WarmStart(trials, directions, parameters)
        return self._prior
