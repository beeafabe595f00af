"""Costs that add up over groups of decisions, and how to find their tables by asking for costs of networks.

Shapes: `n` architectures, `d` decisions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._problem import Codes, Costs, Evaluate, Floats, Indices

MAX_COLUMNS = 4096
"""Entries of tables that are fitted together."""


class TooLargeError(ValueError):
    """Tables are too large, or couple too much, to be found or solved exactly; the message says what would help."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """What each joint setting of a few decisions adds to a cost, in networks in which all of them count.

    Attributes:
        decisions: Their names, each once.
        values: An axis per decision, in their order, as long as it has options.
    """

    decisions: tuple[str, ...]
    values: Floats


@dataclass(frozen=True, eq=False)
class AdditiveCost:
    """`constant` plus what the `tables` add; a table adds nothing where one of its decisions does not count.

    Raises:
        ValueError: A table has unknown decisions, one of them twice, another shape than they have options, or values
            that are not finite.
    """

    space: SearchSpace
    tables: tuple[CostTable, ...]
    constant: float = 0.0

    def __post_init__(self) -> None:
        for table in self.tables:
            columns = [self.space.column(name) for name in table.decisions]
            shape = tuple(self.space.option_counts[columns].tolist())
            label = f"the table of {', '.join(table.decisions) or 'no decision'}"
            if len(set(columns)) != len(columns) or not columns:
                raise ValueError(f"{label} needs one or more decisions, each once")
            if table.values.shape != shape:
                raise ValueError(f"{label} needs values of shape {shape}, one per option; got {table.values.shape}")
            if not np.isfinite(table.values).all():
                raise ValueError(f"{label} holds values that are not finite numbers")

    def __call__(self, codes: Codes) -> Floats:
        """The cost of canonical `codes`, shape (n, d); shape (n,)."""
        active = self.space.active(codes)
        cost = np.full(len(codes), self.constant)
        for table in self.tables:
            columns = [self.space.column(name) for name in table.decisions]
            added = table.values[tuple(codes[:, column] for column in columns)]
            cost += np.where(active[:, columns].all(axis=1), added, 0.0)
        return cost


@dataclass(frozen=True, eq=False)
class AdditiveFit:
    """The additive cost nearest to another one, and how far apart the two are on networks that the fit did not see.

    Attributes:
        cost: The tables.
        max_residual: The largest difference on `n_checked` random networks: an estimate of the largest in the whole
            space, not a bound.
        spread: Largest less smallest value of the other cost on these networks.
        magnitude: Its largest absolute value there.
        n_checked: Their number.
    """

    cost: AdditiveCost
    max_residual: float
    spread: float
    magnitude: float
    n_checked: int

    def is_exact(self, tolerance: float = 1e-9) -> bool:
        """Whether the other cost is additive wherever it was looked at, to `tolerance` of its spread or to rounding."""
        return self.max_residual <= max(tolerance * self.spread, 1e-12 * self.magnitude)

    @property
    def step(self) -> float | None:
        """What `exact_front` should round entries to, as the fit's rounding errors are no trade-offs.

        None for a cost that is 0 everywhere.
        """
        return max(1e-10 * self.spread, 1e-12 * self.magnitude) or None


def additive_groups(space: SearchSpace) -> tuple[tuple[str, ...], ...]:
    """The decisions that shape a block together, in groups without overlap: what blocks cost adds up over these.

    Decisions of one slot share a group, and so does the decision that its existence depends on, where it has another
    condition than they have. Every other decision is a group by itself.
    """
    names = [decision.name for decision in space.decisions]
    conditions = {decision.name: decision.when for decision in space.decisions}
    group_of = {name: {name} for name in names}
    for slot in space.slots:
        settings = (*slot.settings, *(slot.precision or ()))
        joined = [setting for setting in settings if isinstance(setting, str)]
        if slot.when is not None and any(conditions[name] != slot.when for name in joined):
            joined.append(slot.when.decision)
        union = set().union(*(group_of[name] for name in joined))
        group_of.update(dict.fromkeys(union, union))
    ordered = [tuple(name for name in names if name in group_of[first]) for first in names]
    return tuple(dict.fromkeys(ordered))


def fit_additive(
    space: SearchSpace,
    evaluate: Evaluate,
    names: Sequence[str],
    *,
    groups: Sequence[Sequence[str]] | None = None,
    per: Sequence[str] = (),
    n_random: int = 200,
    n_checked: int = 1000,
    seed: int = 0,
) -> dict[str, AdditiveFit]:
    """The additive costs nearest to the costs `names` of `evaluate` in the sense of least squares, by name.

    Fitted on the largest network with each joint setting of each group in turn, which say everything about an additive
    cost where all decisions count in the largest network, and on random networks. So an additive cost is found up to
    rounding, of another one the main effects; which it is is looked at on further random networks.

    For a cost that is nearly additive the front of the fits is a guide: where no network is further than `r` from the
    fit of a cost, every network has a member of that front that is worse by ``2 r`` at most in this cost.
    `AdditiveFit.max_residual` estimates `r` from a sample; it does not prove it.

    Args:
        space: Of the codes.
        evaluate: Gives the costs of canonical codes, each of shape (n,).
        names: The costs to fit.
        groups: Decisions that may interact, without overlap; `additive_groups` by default.
        per: Decisions that may interact with all others, such as ``("resolution",)``: each of their joint settings has
            tables of its own. They always count, and belong to no group (those of the default lose them).
        n_random: Random networks to fit, beside the systematic ones; for each joint setting of `per`.
        n_checked: Random networks to check.
        seed: Of the random networks.

    Raises:
        ValueError: Groups overlap or hold a decision of `per`, or one of `per` has a condition.
        TooLargeError: The tables for a setting of `per` have more than `MAX_COLUMNS` entries.
    """
    if groups is None:
        kept = [tuple(name for name in group if name not in per) for group in additive_groups(space)]
        groups = [group for group in kept if group]
    _check_groups(space, groups, per)
    rng = np.random.default_rng(seed)
    per_columns = [space.column(name) for name in per]
    per_counts = [int(space.option_counts[column]) for column in per_columns]
    shapes = [tuple(space.option_counts[_columns(space, group)].tolist()) for group in groups]
    ends = np.cumsum([1, *(math.prod(shape) for shape in shapes)])
    entries = np.zeros((*per_counts, len(names), ends[-1]))
    plain = np.concatenate([_one_group_at_a_time(space, groups), space.sample(rng, n_random)])
    for setting in itertools.product(*map(range, per_counts)):
        codes = plain.copy()
        codes[:, per_columns] = setting
        codes = space.canonical(codes)
        design = np.column_stack([np.ones(len(codes)), _indicators(space, codes, groups)])
        entries[setting] = np.linalg.lstsq(design, _columns_of(evaluate(codes), names), rcond=None)[0].T
    checked = space.sample(rng, n_checked)
    values = _columns_of(evaluate(checked), names)
    fits = {}
    for index, name in enumerate(names):
        constants, *parts = np.split(entries[..., index, :], ends[:-1], axis=-1)
        tables = [
            CostTable((*per, *group), part.reshape((*per_counts, *shape)))
            for group, part, shape in zip(groups, parts, shapes, strict=True)
        ]
        if per:
            cost = AdditiveCost(space, (CostTable(tuple(per), constants[..., 0]), *tables))
        else:
            cost = AdditiveCost(space, tuple(tables), float(constants[0]))
        there = values[:, index]
        residual, magnitude = np.abs(there - cost(checked)).max(), np.abs(there).max()
        fits[name] = AdditiveFit(cost, float(residual), float(np.ptp(there)), float(magnitude), n_checked)
    return fits


def _check_groups(space: SearchSpace, groups: Sequence[Sequence[str]], per: Sequence[str]) -> None:
    names = [*per, *itertools.chain.from_iterable(groups)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"groups and `per` must not overlap; {twice[0]} is named more than once")
    conditional = [name for name in per if space.decisions[space.column(name)].when is not None]
    if conditional:
        raise ValueError(f"the decisions of `per` must count in every network; {conditional[0]} has a condition")
    n_columns = sum(math.prod(space.option_counts[_columns(space, group)].tolist()) for group in groups)
    if n_columns > MAX_COLUMNS:
        raise TooLargeError(
            f"the tables of {len(groups)} groups have {n_columns} entries; at most {MAX_COLUMNS} can be fitted "
            "together: name smaller groups"
        )


def _one_group_at_a_time(space: SearchSpace, groups: Sequence[Sequence[str]]) -> Codes:
    """The largest network with each joint setting of each group in turn, not made canonical."""
    largest = np.array(space.largest.choices, dtype=np.int32)
    parts = [largest[None]]
    for group in groups:
        columns = _columns(space, group)
        settings = list(itertools.product(*(range(count) for count in space.option_counts[columns])))
        codes = np.tile(largest, (len(settings), 1))
        codes[:, columns] = settings
        parts.append(codes)
    return np.concatenate(parts)


def _indicators(space: SearchSpace, codes: Codes, groups: Sequence[Sequence[str]]) -> Floats:
    """A column per entry of the groups' tables, 1 where it counts."""
    active = space.active(codes)
    parts = []
    for group in groups:
        columns = _columns(space, group)
        counts = tuple(space.option_counts[columns].tolist())
        entry = np.ravel_multi_index(tuple(codes[:, column] for column in columns), counts)
        entry = np.where(active[:, columns].all(axis=1), entry, -1)
        parts.append(entry[:, None] == np.arange(math.prod(counts)))
    return np.concatenate([np.zeros((len(codes), 0)), *parts], axis=1)


def _columns_of(costs: Costs, names: Sequence[str]) -> Floats:
    return np.column_stack([np.asarray(costs[name], dtype=np.float64) for name in names])


def _columns(space: SearchSpace, group: Sequence[str]) -> Indices:
    return np.array([space.column(name) for name in group], dtype=np.int64)
