"""An Optuna study as arrays: what can be chosen, what was evaluated, what is under way.

Shapes: `t` networks told, `p` networks pending, `d` decisions, `m` objectives, `c` constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hanax.searchers._breeding import unchanged
from hanax.searchers._domain import Domain
from hanax.searchers._memory import row_keys
from hanax.searchers._problem import Codes, Floats

CLAIM = "hanax:claim"
"""Trial attribute with the network that a trial is about to evaluate: the code of each parameter, by name."""

MAX_OPTIONS = 1_000_000
"""Values up to which a parameter is discrete; a finer one is continuous."""

STEP_TOLERANCE = 1e-6
"""How far from a whole number of steps a value may be: what rounding makes of the sums of a million steps."""

CanonicalParams = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Parameters of a network to those that count in it, which are the same for equal networks."""


def is_discrete(distribution: BaseDistribution) -> bool:
    """Whether the values of `distribution` can be counted."""
    if isinstance(distribution, CategoricalDistribution):
        return True
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        return distribution.single()
    return _count(distribution) <= MAX_OPTIONS


@dataclass(frozen=True, eq=False)
class Parameters:
    """Discrete parameters and the codes of their values, which are indices from 0.

    Attributes:
        distributions: In the order of the columns of codes.
        domain: The same as arrays.
    """

    distributions: dict[str, BaseDistribution]
    domain: Domain

    def row(self, params: Mapping[str, Any], claim: Mapping[str, int] | None = None) -> list[int] | None:
        """Codes of `params`, not canonical; what is missing there comes from `claim`, else it is the first value.

        None if `params` has none of these parameters, or a value that they cannot take.
        """
        claimed = claim or {}
        if not any(name in params or name in claimed for name in self.distributions):
            return None
        row = []
        for name, distribution in self.distributions.items():
            code = _code(distribution, params[name]) if name in params else claimed.get(name, 0)
            if not 0 <= code < _count(distribution):
                return None
            row.append(code)
        return row

    def params(self, row: Codes) -> dict[str, Any]:
        """Values of one row of codes, shape (d,)."""
        pairs = zip(self.distributions.items(), row.tolist(), strict=True)
        return {name: _value(distribution, code) for (name, distribution), code in pairs}

    def claim(self, row: Codes) -> dict[str, int]:
        """One row of codes, shape (d,), by name."""
        return dict(zip(self.distributions, row.tolist(), strict=True))


def parameters_of(
    distributions: Mapping[str, BaseDistribution],
    canonical: CanonicalParams | None = None,
    canonical_codes: Callable[[Codes], Codes] | None = None,
) -> Parameters:
    """The discrete ones of `distributions`; `canonical` or `canonical_codes` says which networks are equal."""
    discrete = {name: distribution for name, distribution in distributions.items() if is_discrete(distribution)}
    domain = Domain(
        counts=np.array([_count(distribution) for distribution in discrete.values()], dtype=np.int64),
        values=tuple(_numbers(distribution) for distribution in discrete.values()),
        canonical=canonical_codes if canonical_codes is not None else unchanged,
    )
    parameters = Parameters(discrete, domain)
    if canonical is None:
        return parameters
    return Parameters(discrete, Domain(domain.counts, domain.values, _by_params(parameters, canonical)))


@dataclass(frozen=True, eq=False)
class Record:
    """What a study knows about networks; every row occurs once, in `codes` or in `pending`.

    Attributes:
        codes: Networks told, canonical, in the order in which they were, shape (t, d).
        losses: All minimised, means where a network was told more than once, shape (t, m).
        constraints: Constraint values, kept where at most 0, shape (t, c).
        pending: Networks that are being evaluated, wait for it, failed or were pruned, shape (p, d).
    """

    codes: Codes
    losses: Floats
    constraints: Floats
    pending: Codes

    @property
    def known(self) -> set[bytes]:
        """The `row_keys` of all networks."""
        return set(row_keys(self.codes)) | set(row_keys(self.pending))

    @property
    def violations(self) -> Floats:
        """Sum of the constraint values above 0, shape (t,)."""
        return np.asarray(np.maximum(self.constraints, 0.0).sum(axis=1))


class StudyReader:
    """Reads the trials of a study as a `Record`; those that are finished are looked at once."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._finished: dict[int, bytes | None] = {}
        self._told: list[FrozenTrial] = []

    def networks(self, trials: Iterable[FrozenTrial]) -> set[bytes]:
        """The `row_keys` of the networks of `trials`, whatever became of them."""
        new, unfinished = [], []
        for trial in trials:
            if not trial.state.is_finished():
                unfinished.append(trial)
            elif trial.number not in self._finished:
                new.append(trial)
        self._finished.update(zip((trial.number for trial in new), self._keys(new), strict=True))
        self._told += [trial for trial in new if self._finished[trial.number] is not None and _is_told(trial)]
        return {key for key in [*self._finished.values(), *self._keys(unfinished)] if key is not None}

    def read(self, trials: Iterable[FrozenTrial], directions: Iterable[StudyDirection]) -> Record:
        """What `trials` and those read before say about networks."""
        networks = self.networks(trials)
        self._told.sort(key=lambda trial: (trial.datetime_complete, trial.number))
        signs = np.array([-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions])
        names = sorted({name for trial in self._told for name in trial.constraints})
        rows: dict[bytes, int] = {}
        index = [rows.setdefault(self._finished[trial.number] or b"", len(rows)) for trial in self._told]
        outcomes = np.array(
            [[*trial.values, *(trial.constraints.get(name, 0.0) for name in names)] for trial in self._told]
        ).reshape(len(index), len(signs) + len(names))
        sums = np.zeros((len(rows), outcomes.shape[1]))
        np.add.at(sums, index, outcomes)
        means = sums / np.bincount(index, minlength=len(rows))[:, None]
        return Record(
            codes=self._codes(rows),
            losses=means[:, : len(signs)] * signs,
            constraints=means[:, len(signs) :],
            pending=self._codes(sorted(networks - set(rows))),
        )

    def _keys(self, trials: list[FrozenTrial]) -> list[bytes | None]:
        """The `row_keys` of the networks of `trials`; None for a trial of other parameters."""
        if not trials:
            return []
        rows = [_row(self._parameters, trial) for trial in trials]
        usable = [row for row in rows if row is not None]
        shape = (len(usable), len(self._parameters.distributions))
        codes = self._parameters.domain.canonical(np.array(usable, dtype=np.int32).reshape(shape))
        keys = iter(row_keys(codes))
        return [None if row is None else next(keys) for row in rows]

    def _codes(self, keys: Iterable[bytes]) -> Codes:
        rows = list(keys)
        return np.frombuffer(b"".join(rows), dtype=np.int32).reshape(len(rows), len(self._parameters.distributions))


def _row(parameters: Parameters, trial: FrozenTrial) -> list[int] | None:
    attributes = trial.system_attrs
    return parameters.row({**attributes.get("fixed_params", {}), **trial.params}, attributes.get(CLAIM))


def _is_told(trial: FrozenTrial) -> bool:
    if trial.state != TrialState.COMPLETE:
        return False
    return bool(np.isfinite(trial.values).all() and np.isfinite(list(trial.constraints.values())).all())


def _by_params(parameters: Parameters, canonical: CanonicalParams) -> Callable[[Codes], Codes]:
    """`canonical` on rows of codes; remembers what it said of many of them."""

    @lru_cache(maxsize=100_000)
    def of_key(key: bytes) -> bytes:
        params = parameters.params(np.frombuffer(key, dtype=np.int32))
        row = parameters.row(canonical(params))
        if row is None:
            raise ValueError(
                f"canonical must give values of the search space; for {params} it gave {canonical(params)}"
            )
        return np.array(row, dtype=np.int32).tobytes()

    def of_codes(codes: Codes) -> Codes:
        return np.frombuffer(b"".join(map(of_key, row_keys(codes))), dtype=np.int32).reshape(codes.shape)

    return of_codes


def _count(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    assert isinstance(distribution, FloatDistribution)
    return 1 if distribution.step is None else round((distribution.high - distribution.low) / distribution.step) + 1


def _value(distribution: BaseDistribution, code: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[code]
    if isinstance(distribution, IntDistribution):
        return distribution.low + code * distribution.step
    assert isinstance(distribution, FloatDistribution)
    # In decimals, as the step was written: 0.3 and not 0.30000000000000004.
    low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step or 0.0))
    return float(low + code * step)


def _code(distribution: BaseDistribution, value: Any) -> int:
    """Code of `value`; -1 if `distribution` has no such value."""
    try:
        internal = distribution.to_internal_repr(value)
    except ValueError:  # no choice of a category, or not a number
        return -1
    if isinstance(distribution, CategoricalDistribution):
        return int(internal)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    steps = (internal - distribution.low) / (distribution.step or 1)
    is_value = abs(steps - round(steps)) < STEP_TOLERANCE and distribution.low <= internal <= distribution.high
    return round(steps) if is_value else -1


def _numbers(distribution: BaseDistribution) -> Floats | None:
    """Numbers of the values of `distribution` where they are ordered, on its scale; None for categories."""
    if isinstance(distribution, CategoricalDistribution):
        return None
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    numbers = distribution.low + np.arange(_count(distribution), dtype=np.float64) * (distribution.step or 0)
    return np.log(numbers) if distribution.log else numbers
