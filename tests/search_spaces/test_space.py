"""Operations on codes, on spaces small enough to list every network of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from hanax.search_spaces import (
    RESOLUTION,
    Arch,
    Condition,
    ConvBlock,
    Decision,
    Graph,
    MBConv,
    SearchSpace,
    Slot,
    mobilenet_v3,
    unique_rows,
)

TINY = mobilenet_v3(
    resolutions=(8, 16),
    n_classes=5,
    kernel_sizes=(3, 5),
    expand_ratios=(2,),
    depths=(1, 2),
    stem_width=8,
    stage_widths=(8, 16),
    stage_strides=(1, 2),
    stage_activations=("relu", "hswish"),
    stage_squeeze_excite=(False, True),
    head_width=16,
    feature_width=16,
)

BINARY = [
    column for column, decision in enumerate(TINY.decisions) if decision.when is None and len(decision.options) == 2
]


def mbconv(kernel_sizes: tuple[int, ...], expand_ratios: tuple[int, ...]) -> MBConv:
    return MBConv(8, 8, 1, kernel_sizes, expand_ratios, "relu", False)


TWO_OR_THREE = Condition("depth", (2, 3))
THREE = Condition("depth", (3,))
BIG_THIRD = Condition("third", (5, 7))
NESTED = SearchSpace(
    "nested",
    image_channels=3,
    n_classes=2,
    decisions=(
        Decision(RESOLUTION, (8, 16)),
        Decision("depth", (1, 2, 3)),
        Decision("second", (3, 5), TWO_OR_THREE),
        Decision("third", (3, 5, 7), THREE),
        Decision("fourth", (2, 3, 4), BIG_THIRD),
    ),
    slots=(
        Slot("stem", ConvBlock(3, 8, 3, 1, "relu")),
        Slot("second", mbconv((3, 5), (2,)), ("second", 2), TWO_OR_THREE),
        Slot("third", mbconv((3, 5, 7), (2,)), ("third", 2), THREE),
        Slot("fourth", mbconv((3,), (2, 3, 4)), (3, "fourth"), BIG_THIRD),
    ),
)
FIXED = SearchSpace("fixed", 3, 2, (Decision(RESOLUTION, (8,)),), (Slot("stem", ConvBlock(3, 8, 3, 1, "relu")),))

SPACES = {"tiny": TINY, "nested": NESTED}
in_each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())

N_SAMPLES = 20_000
LEAST_P_VALUE = 1e-4


def every_code(space: SearchSpace) -> np.ndarray:
    """All combinations of options, canonical or not."""
    return np.array(list(itertools.product(*map(range, space.option_counts))), dtype=np.int32)


def every_network(space: SearchSpace) -> np.ndarray:
    """The canonical codes."""
    return np.unique(space.canonical(every_code(space)), axis=0)


def codes_of(space: SearchSpace) -> st.SearchStrategy[np.ndarray]:
    """One to eight rows of codes, canonical or not."""
    row = st.tuples(*(st.integers(0, int(count) - 1) for count in space.option_counts))
    return st.lists(row, min_size=1, max_size=8).map(lambda rows: np.array(rows, dtype=np.int32))


SPACE_AND_CODES = st.sampled_from(list(SPACES.values())).flatmap(
    lambda space: st.tuples(st.just(space), codes_of(space))
)
SEEDS = st.integers(0, 2**32 - 1)


def assert_uniform(indices: np.ndarray, n_options: int) -> None:
    counts = np.bincount(indices, minlength=n_options)
    assert len(counts) == n_options
    assert n_options == 1 or stats.chisquare(counts).pvalue > LEAST_P_VALUE, counts


# ---- what the space is ----------------------------------------------------------------------------------------------


@in_each_space
def test_size_is_the_number_of_distinct_canonical_codes(space: SearchSpace) -> None:
    assert space.size == len(every_network(space))


def test_size_of_conditions_within_conditions_is_as_counted_by_hand() -> None:
    depth_1, depth_2, depth_3 = 1, 2, 2 * (1 + 3 + 3)
    assert NESTED.size == 2 * (depth_1 + depth_2 + depth_3)
    assert FIXED.size == 1


@in_each_space
def test_equal_canonical_codes_are_equal_networks_and_no_others(space: SearchSpace) -> None:
    network_of_code: dict[tuple[int, ...], Graph] = {}
    for code in every_code(space):
        canonical = tuple(space.canonical(code[None])[0].tolist())
        graph = space.graph(Arch(tuple(code.tolist())))
        assert network_of_code.setdefault(canonical, graph) == graph
    assert len(set(network_of_code.values())) == space.size


def test_fingerprint_is_of_the_definition_not_of_the_name() -> None:
    renamed = SearchSpace("other", 3, 2, NESTED.decisions, NESTED.slots)
    more_classes = SearchSpace("nested", 3, 4, NESTED.decisions, NESTED.slots)
    other_options = SearchSpace("nested", 3, 2, (Decision(RESOLUTION, (8, 24)), *NESTED.decisions[1:]), NESTED.slots)
    assert renamed.fingerprint == NESTED.fingerprint
    assert len({space.fingerprint for space in (NESTED, more_classes, other_options, TINY, FIXED)}) == 5
    assert len(NESTED.fingerprint) == 16


def test_largest_and_smallest_are_canonical_and_bound_every_network() -> None:
    ends = TINY.encode([TINY.smallest, TINY.largest])
    assert np.array_equal(TINY.canonical(ends), ends)
    macs = [TINY.graph(arch).macs for arch in TINY.decode(every_network(TINY))]
    assert min(macs) == TINY.graph(TINY.smallest).macs
    assert max(macs) == TINY.graph(TINY.largest).macs


# ---- codes and architectures ----------------------------------------------------------------------------------------


@given(SPACE_AND_CODES)
def test_decode_inverts_encode(case: tuple[SearchSpace, np.ndarray]) -> None:
    space, codes = case
    archs = space.decode(codes)
    encoded = space.encode(archs)
    assert encoded.dtype == np.int32
    assert np.array_equal(encoded, codes)
    assert space.decode(encoded) == archs


def test_no_archs_are_no_codes() -> None:
    assert TINY.encode([]).shape == (0, len(TINY.decisions))
    assert TINY.decode(TINY.encode([])) == []


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_the_text_of_an_arch_names_it(choices: list[int]) -> None:
    arch = Arch(tuple(choices))
    assert Arch.parse(str(arch)) == arch


@given(SPACE_AND_CODES)
def test_an_arch_is_known_by_its_options(case: tuple[SearchSpace, np.ndarray]) -> None:
    space, codes = case
    for arch in space.decode(space.canonical(codes)):
        assert space.arch(space.options_of(arch)) == arch


def test_options_of_an_arch_leave_out_what_is_switched_off() -> None:
    arch = NESTED.arch({"depth": 3, "third": 3})
    assert NESTED.options_of(arch) == {RESOLUTION: 16, "depth": 3, "second": 5, "third": 3}
    assert [placed.slot.name for placed in NESTED.blocks(arch)] == ["stem", "second", "third"]
    assert NESTED.blocks(arch)[2].choice == (3, 2)
    assert NESTED.input_shape(NESTED.arch({RESOLUTION: 8})) == (3, 8, 8)


@given(SPACE_AND_CODES)
def test_canonical_is_idempotent_and_keeps_what_counts(case: tuple[SearchSpace, np.ndarray]) -> None:
    space, codes = case
    canonical = space.canonical(codes)
    active = space.active(codes)
    assert np.array_equal(space.canonical(canonical), canonical)
    assert np.array_equal(space.active(canonical), active)
    assert np.array_equal(canonical[active], codes[active])
    assert not canonical[~active].any()


@in_each_space
def test_one_hot_marks_the_option_of_every_decision_that_counts(space: SearchSpace) -> None:
    codes = every_network(space)
    one_hot = space.one_hot(codes)
    groups = np.split(one_hot, np.cumsum(space.option_counts)[:-1], axis=1)
    active = space.active(codes)
    for column, group in enumerate(groups):
        assert np.array_equal(group.sum(axis=1), active[:, column])
        assert np.array_equal(group.argmax(axis=1), codes[:, column])
    assert len(np.unique(one_hot, axis=0)) == space.size


def test_unique_rows_are_the_first_of_each_in_order() -> None:
    rows = np.array([[2, 1], [0, 1], [2, 1], [0, 0], [0, 1]])
    assert unique_rows(rows).tolist() == [0, 1, 3]


# ---- sampling -------------------------------------------------------------------------------------------------------


@in_each_space
def test_samples_are_uniform_over_every_decision_that_counts(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), N_SAMPLES)
    active = space.active(codes)
    assert np.array_equal(space.canonical(codes), codes)
    for column, count in enumerate(space.option_counts):
        assert_uniform(codes[active[:, column], column], int(count))


def test_decisions_of_samples_are_independent() -> None:
    codes = TINY.sample(np.random.default_rng(1), N_SAMPLES)
    for first, second in itertools.combinations(BINARY, 2):
        assert_uniform(2 * codes[:, first] + codes[:, second], 4)


@given(SEEDS)
def test_the_same_seed_gives_the_same_samples(seed: int) -> None:
    first, second = (TINY.sample(np.random.default_rng(seed), 5) for _ in range(2))
    assert np.array_equal(first, second)


# ---- mutation -------------------------------------------------------------------------------------------------------


@given(SPACE_AND_CODES, SEEDS, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_mutation_changes_every_network_and_stays_canonical(
    case: tuple[SearchSpace, np.ndarray], seed: int, probability: float
) -> None:
    space, codes = case
    mutants = space.mutate(np.random.default_rng(seed), codes, probability)
    assert np.array_equal(space.canonical(mutants), mutants)
    assert (mutants != space.canonical(codes)).any(axis=1).all()


@given(SPACE_AND_CODES, SEEDS)
def test_mutation_with_probability_0_changes_one_decision_and_with_1_all_that_can(
    case: tuple[SearchSpace, np.ndarray], seed: int
) -> None:
    space, codes = case
    for probability in (0.0, 1.0):
        mutants = space.mutate(np.random.default_rng(seed), codes, probability)
        in_both = space.active(codes) & space.active(mutants)
        changed = in_both & (mutants != codes)
        if probability == 0.0:
            assert (changed.sum(axis=1) == 1).all()
        else:
            assert np.array_equal(changed, in_both & (space.option_counts > 1))


@in_each_space
def test_a_mutation_reaches_every_decision_and_every_other_option_equally(space: SearchSpace) -> None:
    for parent in (space.smallest, space.largest):
        codes = space.encode([parent] * N_SAMPLES)
        mutants = space.mutate(np.random.default_rng(2), codes, 0.0)
        changed = (mutants != codes) & space.active(codes) & space.active(mutants)
        counting = np.flatnonzero(space.active(codes)[0] & (space.option_counts > 1))
        assert_uniform(np.searchsorted(counting, changed.argmax(axis=1)), len(counting))
        for column in counting:
            shift = (mutants - codes)[changed[:, column], column] % space.option_counts[column]
            assert_uniform(shift - 1, int(space.option_counts[column]) - 1)


def test_decisions_change_with_the_probability_that_is_asked() -> None:
    probability = 0.3
    codes = TINY.encode([TINY.largest] * N_SAMPLES)
    mutants = TINY.mutate(np.random.default_rng(3), codes, probability)
    n_changeable = int((TINY.option_counts > 1).sum())
    forced = (1 - probability) ** n_changeable / n_changeable
    for column, decision in enumerate(TINY.decisions):
        if decision.when is None and len(decision.options) > 1:
            changed = int((mutants[:, column] != codes[:, column]).sum())
            assert stats.binomtest(changed, N_SAMPLES, probability + forced).pvalue > LEAST_P_VALUE


def test_what_a_mutation_switches_on_is_drawn_uniformly() -> None:
    codes = NESTED.encode([NESTED.smallest] * N_SAMPLES)
    mutants = NESTED.mutate(np.random.default_rng(4), codes, 0.0)
    active = NESTED.active(mutants)
    for name in ("second", "third", "fourth"):
        column = NESTED.column(name)
        assert_uniform(mutants[active[:, column], column], int(NESTED.option_counts[column]))


def test_the_only_network_of_a_space_has_no_mutant() -> None:
    codes = FIXED.sample(np.random.default_rng(0), 3)
    assert np.array_equal(FIXED.mutate(np.random.default_rng(0), codes, 1.0), codes)


# ---- crossover ------------------------------------------------------------------------------------------------------


@given(SPACE_AND_CODES, SEEDS)
def test_children_hold_only_options_that_count_in_a_parent(case: tuple[SearchSpace, np.ndarray], seed: int) -> None:
    space, first = case
    rng = np.random.default_rng(seed)
    second = space.sample(rng, len(first))
    children = space.crossover(rng, first, second)
    assert np.array_equal(space.canonical(children), children)
    inherited = np.zeros(children.shape, dtype=bool)
    for parent in (first, second):
        inherited |= space.active(parent) & (children == parent)
    assert inherited[space.active(children)].all()


@given(SPACE_AND_CODES, SEEDS)
def test_the_child_of_twins_is_their_twin(case: tuple[SearchSpace, np.ndarray], seed: int) -> None:
    space, codes = case
    children = space.crossover(np.random.default_rng(seed), codes, codes)
    assert np.array_equal(children, space.canonical(codes))


def test_each_decision_comes_from_either_parent_with_equal_probability_and_independently() -> None:
    first, second = (TINY.encode([arch] * N_SAMPLES) for arch in (TINY.smallest, TINY.largest))
    children = TINY.crossover(np.random.default_rng(5), first, second)
    for column in BINARY:
        assert_uniform(children[:, column], 2)
    for one, other in itertools.combinations(BINARY, 2):
        assert_uniform(2 * children[:, one] + children[:, other], 4)


def test_what_counts_in_one_parent_only_comes_from_that_one() -> None:
    shallow, deep = NESTED.arch({"depth": 1}), NESTED.arch({"depth": 3, "third": 7, "fourth": 4})
    first, second = (NESTED.encode([arch] * 200) for arch in (shallow, deep))
    for parents in ((first, second), (second, first)):
        children = set(NESTED.decode(NESTED.crossover(np.random.default_rng(6), *parents)))
        assert children == {shallow, deep}


# ---- distance -------------------------------------------------------------------------------------------------------


def test_distance_is_a_metric_on_networks() -> None:
    codes = every_network(NESTED)
    distance = NESTED.distance(codes, codes)
    assert np.array_equal(distance == 0, np.eye(len(codes), dtype=bool))
    assert np.array_equal(distance, distance.T)
    assert (distance[:, None, :] <= distance[:, :, None] + distance[None, :, :]).all()


@given(SPACE_AND_CODES)
def test_distance_does_not_see_what_does_not_count(case: tuple[SearchSpace, np.ndarray]) -> None:
    space, codes = case
    assert np.array_equal(space.distance(codes, codes), space.distance(space.canonical(codes), codes))


def test_distance_counts_decisions_that_differ_or_count_once() -> None:
    depth_1, depth_2, depth_3 = (NESTED.arch({"depth": depth, "third": 3}) for depth in (1, 2, 3))
    distance = NESTED.distance(NESTED.encode([depth_1]), NESTED.encode([depth_1, depth_2, depth_3, NESTED.largest]))
    assert distance.tolist() == [[0, 2, 3, 4]]


# ---- errors ---------------------------------------------------------------------------------------------------------


@given(codes_of(NESTED), st.data())
def test_a_wrong_index_is_refused_by_name(codes: np.ndarray, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(codes) - 1))
    column = data.draw(st.integers(0, len(NESTED.decisions) - 1))
    index = data.draw(st.integers(-5, 9))
    assume(not 0 <= index < NESTED.option_counts[column])
    codes[row, column] = index
    decision = NESTED.decisions[column]
    message = (
        f"^{decision.name}: option {index} does not exist; nested offers indices 0 to {len(decision.options) - 1}, "
        rf"for \({', '.join(map(str, decision.options))}\)$"
    )
    for operation in (NESTED.check, NESTED.decode, NESTED.canonical):
        with pytest.raises(ValueError, match=message):
            operation(codes)


def test_codes_and_archs_of_another_number_of_decisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nested has 5 decisions; got codes of shape \(2, 4\)"):
        NESTED.check(np.zeros((2, 4), dtype=np.int32))
    with pytest.raises(ValueError, match=r"nested has 5 decisions; arch 0\.1 has 2"):
        NESTED.encode([NESTED.largest, Arch((0, 1))])


def test_unknown_decisions_and_options_are_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="nested has no decision 'depht'; it has resolution, depth, second, third, fourth"
    ):
        NESTED.arch({"depht": 2})
    with pytest.raises(ValueError, match=r"depth: 4 is not offered; nested offers \(1, 2, 3\)"):
        NESTED.arch({"depth": 4})


@pytest.mark.parametrize("text", ["", "0.", "0.-1", "0,1", "1.x", "²"])
def test_text_that_is_no_arch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an architecture: .*; expected option indices joined by dots"):
        Arch.parse(text)


SIDE = Decision(RESOLUTION, (8,))
STEM = Slot("stem", ConvBlock(3, 8, 3, 1, "relu"))
KERNEL = Decision("kernel", (3, 5))
CONTRADICTIONS: dict[str, tuple[list[Decision], list[Slot], str]] = {
    "a name used twice": ([SIDE, SIDE], [STEM], "two decisions are named 'resolution'"),
    "no resolution": ([KERNEL], [STEM], "no decision is named 'resolution'"),
    "no options": ([Decision(RESOLUTION, ())], [STEM], r"options of resolution must ascend; got \(\)"),
    "options that descend": ([Decision(RESOLUTION, (16, 8))], [STEM], r"must ascend; got \(16, 8\)"),
    "an option twice": ([Decision(RESOLUTION, (8, 8))], [STEM], r"must ascend; got \(8, 8\)"),
    "a condition on a later decision": (
        [SIDE, Decision("kernel", (3, 5), Condition("depth", (2,))), Decision("depth", (1, 2))],
        [STEM],
        "kernel depends on 'depth', which is not an earlier decision",
    ),
    "a condition on an option there is not": (
        [SIDE, KERNEL, Decision("expand", (2, 3), Condition("kernel", (7,)))],
        [STEM],
        r"expand asks for kernel in \(7,\); it offers \(3, 5\)",
    ),
    "a slot that depends on nothing": (
        [SIDE],
        [STEM, Slot("second", mbconv((3,), (2,)), (3, 2), Condition("depth", (2,)))],
        "second depends on 'depth'",
    ),
    "a setting by an unknown decision": (
        [SIDE, KERNEL],
        [STEM, Slot("second", mbconv((3, 5), (2,)), ("kernal", 2))],
        "kernel_size of second is set by 'kernal', no decision",
    ),
    "too few settings": (
        [SIDE, KERNEL],
        [STEM, Slot("second", mbconv((3, 5), (2,)), ("kernel",))],
        r"second needs settings for \('kernel_size', 'expand_ratio'\); got \('kernel',\)",
    ),
    "options that the block does not take": (
        [SIDE, KERNEL],
        [STEM, Slot("second", mbconv((3,), (2,)), ("kernel", 2))],
        r"kernel offers \(3, 5\); kernel_size of second takes \(3,\)",
    ),
    "a fixed value that the block does not take": (
        [SIDE],
        [STEM, Slot("second", mbconv((3,), (2,)), (3, 4))],
        r"4 offers \(4,\); expand_ratio of second takes \(2,\)",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_declaration_that_contradicts_itself_is_refused(case: tuple[Any, Any, str]) -> None:
    decisions, slots, message = case
    with pytest.raises(ValueError, match=message):
        SearchSpace("wrong", 3, 2, tuple(decisions), tuple(slots))
