"""The exact front: equal to brute force wherever that is possible, and fast where it is not."""

from __future__ import annotations

import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanax.search_spaces import Condition, Decision, SearchSpace, mobilenet_v3
from hanax.searchers import AdditiveCost, CostTable, TooLargeError, every_network, exact_front, non_dominated

OPTIONS = (1, 2, 3)
GROUPS = [group for size in (1, 2, 3) for group in itertools.combinations(range(6), size)]

# Plain values, of which the test makes a space: hypothesis refuses strategies in which types are checked by sampling.
decisions = st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(0, 4), st.sets(st.sampled_from(OPTIONS))))
tables = st.lists(st.tuples(st.sampled_from(GROUPS), st.randoms(use_true_random=False)), max_size=5)


def _space(drawn: list[tuple[int, bool, int, set[int]]]) -> SearchSpace:
    """A few decisions; some depend on earlier ones, also on ones that depend on others themselves."""
    made = [Decision("resolution", OPTIONS[: 1 + len(drawn) % 3])]
    for index, (n_options, has_condition, parent, options) in enumerate(drawn[:5]):
        named = made[parent % len(made)]
        met = tuple(option for option in named.options if option in options)
        when = Condition(named.name, met) if has_condition and met else None
        made.append(Decision(f"decision{index}", OPTIONS[:n_options], when))
    return SearchSpace("random", 3, 2, tuple(made), ())


def _cost(space: SearchSpace, drawn: list[tuple[tuple[int, ...], Random]], *, is_whole: bool) -> AdditiveCost:
    """A table for some groups of up to three decisions, which overlap."""
    made = []
    for group, random in drawn:
        names = [space.decisions[index].name for index in group[::-1] if index < len(space.decisions)]
        if names:
            shape = tuple(int(space.option_counts[space.column(name)]) for name in names)
            values = [random.randint(-3, 3) if is_whole else random.uniform(-5, 5) for _ in range(math.prod(shape))]
            made.append(CostTable(tuple(names), np.array(values, dtype=np.float64).reshape(shape)))
    return AdditiveCost(space, tuple(made), 2.0)


def _tables_of_mobilenet_v3(
    rng: np.random.Generator, resolutions: tuple[int, ...]
) -> tuple[AdditiveCost, AdditiveCost]:
    """A loss and a cost of real numbers, for each resolution on its own; what costs more tends to lose less."""
    space = mobilenet_v3(resolutions=resolutions)
    sides = np.array(resolutions)[:, None, None] / 224
    losses, costs = [], []
    for stage in range(1, 6):
        depth = ("resolution", f"stage{stage}.depth")
        per_depth = rng.random() * np.arange(3.0) * np.ones((len(sides), 1))
        losses.append(CostTable(depth, -per_depth))
        costs.append(CostTable(depth, per_depth * sides[:, 0] ** 2))
        for block in range(1, 5):
            names = ("resolution", *(f"stage{stage}.block{block}.{part}" for part in ("kernel_size", "expand_ratio")))
            cost = rng.gamma(2.0, 1.0, (3, 3)) * sides**2
            costs.append(CostTable(names, cost))
            losses.append(CostTable(names, -np.sqrt(cost) * rng.uniform(0.5, 2.0) + rng.normal(0.0, 0.1, cost.shape)))
    return AdditiveCost(space, tuple(losses)), AdditiveCost(space, tuple(costs))


def _brute_force(loss: AdditiveCost, cost: AdditiveCost) -> np.ndarray:
    codes = every_network(loss.space)
    points = np.column_stack([loss(codes), cost(codes)])
    front = np.unique(points[non_dominated(points)], axis=0)
    return front[np.argsort(front[:, 1])]


@given(decisions, tables, tables)
def test_equals_brute_force_with_ties_negative_values_and_conditions(drawn, losses, costs) -> None:
    space = _space(drawn)
    loss, cost = (_cost(space, part, is_whole=True) for part in (losses, costs))
    front = exact_front(loss, cost)
    np.testing.assert_array_equal(np.column_stack([front.losses, front.costs]), _brute_force(loss, cost))
    np.testing.assert_array_equal(space.canonical(front.codes), front.codes)
    np.testing.assert_array_equal(loss(front.codes), front.losses)
    np.testing.assert_array_equal(cost(front.codes), front.costs)
    assert front.loss_error == front.cost_error == 0.0


@given(decisions, tables, tables, st.sampled_from([None, 0.25, 1.0]), st.sampled_from([None, 0.1, 3.0]))
def test_no_network_beats_the_front_by_more_than_the_errors_that_it_states(
    drawn, losses, costs, loss_step, cost_step
) -> None:
    space = _space(drawn)
    loss, cost = (_cost(space, part, is_whole=False) for part in (losses, costs))
    front = exact_front(loss, cost, loss_step=loss_step, cost_step=cost_step)
    rounding = 1e-12
    if loss_step is None:
        assert front.loss_error < rounding
    codes = every_network(space)
    for x, y in zip(loss(codes), cost(codes), strict=True):
        best = front.best_under(y + 2 * front.cost_error + rounding)
        assert front.losses[best] <= x + 2 * front.loss_error + rounding


def test_where_every_network_is_a_trade_off_all_are_on_the_front() -> None:
    digits = [Decision(f"digit{index}", tuple(range(9))) for index in range(5)]
    space = SearchSpace("numbers", 3, 2, (Decision("resolution", (1,)), *digits), ())
    tables = [CostTable((digit.name,), np.arange(9.0) * 9**index) for index, digit in enumerate(digits)]
    cost = AdditiveCost(space, tuple(tables))
    loss = AdditiveCost(space, tuple(CostTable(table.decisions, -table.values) for table in tables), 5.0)
    front = exact_front(loss, cost)
    np.testing.assert_array_equal(front.costs, np.arange(9**5))
    np.testing.assert_array_equal(front.losses, 5.0 - np.arange(9**5))


def test_no_weighted_sum_of_both_costs_is_lower_anywhere_in_a_space_too_large_to_list() -> None:
    resolutions = (160, 192, 224)
    losses, costs = _tables_of_mobilenet_v3(np.random.default_rng(1), resolutions)
    front = exact_front(losses, costs)
    for weight in np.linspace(0.0, 1.0, 41):
        # Per resolution: of each stage the best depth, with the best setting of each of its blocks.
        tables = [(1 - weight) * a.values + weight * b.values for a, b in zip(losses.tables, costs.tables, strict=True)]
        least = np.zeros(len(resolutions))
        for first in range(0, 25, 5):
            depth, *blocks = tables[first : first + 5]
            sums = np.cumsum([block.min(axis=(1, 2)) for block in blocks], axis=0)
            least += np.min([depth[:, option] + sums[option + 1] for option in range(3)], axis=0)
        assert min((1 - weight) * front.losses + weight * front.costs) == pytest.approx(least.min(), abs=1e-9)


def test_how_sums_are_cut_into_parts_changes_nothing(monkeypatch) -> None:
    loss, cost = _tables_of_mobilenet_v3(np.random.default_rng(0), (192, 224))
    whole = exact_front(loss, cost)
    monkeypatch.setattr("hanax.searchers._knapsack.SUMS_AT_A_TIME", 1000)
    monkeypatch.setattr("hanax.searchers._knapsack.BINS", 16)
    in_parts = exact_front(loss, cost)
    np.testing.assert_array_equal(whole.codes, in_parts.codes)
    assert len(whole.codes) > 200


def test_too_many_sums_are_refused_with_the_remedy_and_coarser_steps_are_one(monkeypatch) -> None:
    loss, cost = _tables_of_mobilenet_v3(np.random.default_rng(0), (224,))
    monkeypatch.setattr("hanax.searchers._knapsack.MAX_SUMS", 10_000)
    with pytest.raises(TooLargeError, match=r"partial sums would have to be compared, .* coarser steps \(loss_step"):
        exact_front(loss, cost)
    front = exact_front(loss, cost, cost_step=0.5)
    assert 0 < front.cost_error < 50 * 0.25


def test_where_all_networks_cost_the_same_the_front_is_one_network() -> None:
    space = mobilenet_v3()
    front = exact_front(AdditiveCost(space, (), 1.0), AdditiveCost(space, (), 2.0))
    assert (front.losses.tolist(), front.costs.tolist()) == ([1.0], [2.0])
    equal = AdditiveCost(space, (CostTable(("stage1.depth",), np.full(3, 7.0)),))
    assert len(exact_front(equal, equal).codes) == 1


def test_the_best_under_a_budget_is_the_dearest_member_that_keeps_it() -> None:
    space = SearchSpace("steps", 3, 2, (Decision("resolution", (1, 2, 3)),), ())
    loss = AdditiveCost(space, (CostTable(("resolution",), np.array([3.0, 2.0, 1.0])),))
    cost = AdditiveCost(space, (CostTable(("resolution",), np.array([10.0, 20.0, 30.0])),))
    front = exact_front(loss, cost)
    assert [front.best_under(budget) for budget in (10.0, 19.9, 20.0, 99.0)] == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="no network costs at most 9; the cheapest costs 10"):
        front.best_under(9.0)


def test_tables_that_couple_everything_are_refused_with_their_decisions_named() -> None:
    names = [f"decision{index}" for index in range(16)]
    decisions = (Decision("resolution", (1,)), *(Decision(name, (1, 2, 3)) for name in names))
    space = SearchSpace("coupled", 3, 2, decisions, ())
    pairs = tuple(CostTable(pair, np.zeros((3, 3))) for pair in itertools.combinations(names, 2))
    with pytest.raises(TooLargeError, match=r"tables and conditions couple decision0, decision1, .* 43046721 joint"):
        exact_front(AdditiveCost(space, pairs), AdditiveCost(space, ()))


def test_costs_of_different_spaces_and_unusable_steps_are_refused() -> None:
    space = SearchSpace("one", 3, 2, (Decision("resolution", (1, 2)),), ())
    loss = AdditiveCost(space, (CostTable(("resolution",), np.array([1.0, 2.0])),))
    with pytest.raises(ValueError, match="the cost belongs to the search space"):
        exact_front(loss, AdditiveCost(mobilenet_v3(), ()))
    for step in (0.0, -1.0, 1e-16):
        with pytest.raises(ValueError, match="cost_step must be above 0"):
            exact_front(loss, loss, cost_step=step)


def test_a_table_must_fit_the_decisions_that_it_names() -> None:
    space = SearchSpace("one", 3, 2, (Decision("resolution", (1, 2)),), ())
    with pytest.raises(ValueError, match=r"the table of resolution needs values of shape \(2,\), one per option; got"):
        AdditiveCost(space, (CostTable(("resolution",), np.zeros(3)),))
    with pytest.raises(ValueError, match="each once"):
        AdditiveCost(space, (CostTable(("resolution", "resolution"), np.zeros((2, 2))),))
    with pytest.raises(ValueError, match="not finite"):
        AdditiveCost(space, (CostTable(("resolution",), np.array([0.0, np.nan])),))
