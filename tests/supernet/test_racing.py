"""A race stops what is beaten beyond doubt, at the rate of mistakes that it admits, and scores no image twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from scipy.stats import binomtest

from hanax.search_spaces import Arch, SearchSpace, graph_features
from hanax.supernet import Evaluator, Outcome
from hanax.supernet._racing import (
    Rules,
    Score,
    beaten,
    best_rules,
    chance_of_wins,
    drawn_order,
    front_rules,
    hold_race,
    looks_of,
    more_accurate,
)


def names(m: int) -> list[Arch]:
    return [Arch((index,)) for index in range(m)]


def score_from(correct: np.ndarray, calls: list[tuple[int, int, int]] | None = None) -> Score:
    """Scores the architectures of `names` with rows of `correct`; notes (architecture, start, stop) in `calls`."""

    def score(archs: Sequence[Arch], start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        for position in reversed(range(len(archs))):  # any order will do
            (index,) = archs[position].choices
            if calls is not None:
                calls.append((index, start, stop))
            yield position, correct[index, start:stop]

    return score


def answers(rng: np.random.Generator, accuracies: Sequence[float], n: int) -> np.ndarray:
    """Rows of right and wrong answers; what is hard is hard for all, as with real subnets."""
    hardness = rng.random(n)
    noise = rng.normal(0.0, 0.08, (len(accuracies), n))
    return hardness + noise < np.array(accuracies)[:, None]


# ---- two subnets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 7), (1, 0), (5, 5), (9, 1), (40, 12), (700, 500)])
def test_the_chance_of_wins_is_that_of_a_binomial_test(wins: int, losses: int) -> None:
    chance = chance_of_wins(np.array([wins]), np.array([losses]))[0]
    if wins + losses == 0:
        assert chance == 1.0
    else:
        assert chance == pytest.approx(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue, rel=1e-9)


def test_only_images_on_which_two_differ_count() -> None:
    correct = np.zeros((2, 1000), dtype=bool)
    correct[:, :800] = True  # both right on these, and both wrong on the others but ten
    correct[0, 990:] = True
    assert more_accurate(correct, 2.0**-10).tolist() == [[False, True], [False, False]]
    assert not more_accurate(correct, 2.0**-10.01).any()
    assert not more_accurate(correct[[0, 0]], 0.5).any()


def test_a_subnet_is_out_by_the_most_accurate_that_costs_no_more() -> None:
    correct = np.arange(100) < np.array([[90], [60], [95], [70], [40]])
    costs = np.array([[2.0, 1.0], [2.0, 1.0], [3.0, 1.0], [1.0, 2.0], [3.0, 3.0]])
    rules = front_rules(costs, confidence=0.99, n_looks=1)
    assert rules.may_beat.sum() == 2 + 2 + 0 + 0 + 4
    assert rules.error_rate == pytest.approx(0.01 / 8)
    assert beaten(rules, correct, np.arange(5)) == {1: 0, 4: 2}
    assert beaten(rules, correct[[1, 3, 4]], np.array([1, 3, 4])) == {4: 3}


def test_out_of_the_best_is_who_has_enough_better_ones() -> None:
    correct = np.arange(100) < np.array([[90], [60], [95], [70], [40]])
    rules = best_rules(5, 2, confidence=0.99, n_looks=3)
    assert rules.error_rate == pytest.approx(0.01 / (2 * 4 * 3))
    assert beaten(rules, correct, np.arange(5)) == {1: 2, 3: 2, 4: 2}


# ---- whole races ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", ["front", "best"])
@pytest.mark.parametrize("first", [50, 150])
def test_nothing_that_belongs_to_the_front_or_the_best_is_lost_more_often_than_admitted(goal: str, first: int) -> None:
    """Ten equal subnets, for which every stop is a mistake, are the hardest case; others are clearly worse."""
    n, n_races, confidence = 600, 150, 0.8
    accuracies = [0.8] * 10 + [0.55] * 4
    costs = np.ones((len(accuracies), 1))
    n_lost = 0
    for seed in range(n_races):
        correct = answers(np.random.default_rng(seed), accuracies, n)
        looks = looks_of(n, first)
        rules = (
            front_rules(costs, confidence=confidence, n_looks=looks)
            if goal == "front"
            else best_rules(len(accuracies), 10, confidence=confidence, n_looks=looks)
        )
        outcomes = hold_race(names(len(accuracies)), rules, n, first, score_from(correct))
        n_lost += any(outcome.stopped for outcome in outcomes[:10])
        assert all(outcome.stopped and outcome.n_images < n for outcome in outcomes[10:])
    tolerance = 3 * np.sqrt(confidence * (1 - confidence) / n_races)
    assert n_lost / n_races <= 1 - confidence + tolerance


def test_the_front_on_all_images_is_kept_though_only_some_were_seen() -> None:
    """Not only accuracy on images to come: the first images are a draw from those of the race."""
    n, first, n_races, n_lost, n_stopped = 400, 100, 200, 0, 0
    rng = np.random.default_rng(0)
    costs = np.arange(12.0)[:, None]
    for _ in range(n_races):
        correct = answers(rng, rng.uniform(0.6, 0.9, 12), n)
        accuracy = correct.mean(axis=1)
        rules = front_rules(costs, confidence=0.9, n_looks=looks_of(n, first))
        outcomes = hold_race(names(12), rules, n, first, score_from(correct))
        on_front = [not (accuracy[:index] > accuracy[index]).any() for index in range(12)]
        n_lost += any(outcome.stopped and kept for outcome, kept in zip(outcomes, on_front, strict=True))
        n_stopped += sum(outcome.stopped for outcome in outcomes)
    assert n_lost <= 0.1 * n_races
    assert n_stopped > 3 * n_races, "the race is worth its name"


def test_a_race_scores_only_what_is_in_it_and_its_survivors_on_every_image() -> None:
    n, first = 250, 100
    correct = answers(np.random.default_rng(1), [0.9, 0.4, 0.88, 0.7], n)
    calls: list[tuple[int, int, int]] = []
    rules = front_rules(np.zeros((4, 1)), confidence=0.99, n_looks=looks_of(n, first))
    seen: list[Outcome] = []
    outcomes = hold_race(names(4), rules, n, first, score_from(correct, calls), on_result=seen.append)
    assert [outcome.n_images for outcome in outcomes] == [250, 100, 250, 100]
    assert sorted(calls) == [
        (0, 0, 100), (0, 100, 200), (0, 200, 250), (1, 0, 100), (2, 0, 100), (2, 100, 200), (2, 200, 250), (3, 0, 100),
    ]  # fmt: skip
    for outcome, row in zip(outcomes, correct, strict=True):
        np.testing.assert_array_equal(outcome.correct, row[: outcome.n_images])
        assert outcome.accuracy == row[: outcome.n_images].mean()
        assert outcome.interval[0] < outcome.accuracy < outcome.interval[1]
    assert outcomes[1].dominated_by in {Arch((0,)), Arch((2,))} and outcomes[0].dominated_by is None
    assert sorted(str(outcome.arch) for outcome in seen) == ["0", "1", "2", "3"]


def test_an_interrupted_race_goes_on_to_the_same_outcomes_without_scoring_an_image_twice() -> None:
    n, first, archs = 250, 100, names(5)
    correct = answers(np.random.default_rng(2), [0.9, 0.4, 0.88, 0.7, 0.87], n)
    rules = front_rules(np.zeros((5, 1)), confidence=0.99, n_looks=looks_of(n, first))
    whole: list[tuple[int, int, int]] = []
    expected = hold_race(archs, rules, n, first, score_from(correct, whole))

    class Killed(Exception):
        pass

    for last in range(1, len(whole)):
        known: dict[Arch, np.ndarray] = {}
        calls: list[tuple[int, int, int]] = []

        def note(arch: Arch, start: int, right: np.ndarray, known: dict[Arch, np.ndarray] = known) -> None:
            assert start == len(known.get(arch, ()))
            known[arch] = np.concatenate([known.get(arch, np.zeros(0, dtype=bool)), right])
            if sum(-(-len(row) // first) for row in known.values()) == last:  # noqa: B023 (used within the round)
                raise Killed

        with pytest.raises(Killed):
            hold_race(archs, rules, n, first, score_from(correct), on_scored=note)
        outcomes = hold_race(archs, rules, n, first, score_from(correct, calls), known=known)
        assert len(calls) == len(whole) - last
        for outcome, other in zip(outcomes, expected, strict=True):
            assert outcome.dominated_by == other.dominated_by
            np.testing.assert_array_equal(outcome.correct, other.correct)


def test_images_are_used_in_an_order_that_is_always_the_same() -> None:
    np.testing.assert_array_equal(drawn_order(500), drawn_order(500))
    assert sorted(drawn_order(500)) == list(range(500))
    assert len(set(drawn_order(500)[:50] // 50)) > 5, "images sorted by class are mixed"


def test_a_race_of_nobody_has_no_outcomes() -> None:
    assert hold_race([], best_rules(0, 1, confidence=0.9, n_looks=1), 10, 5, score_from(np.zeros((0, 10), bool))) == []


@pytest.mark.parametrize(("make", "message"), [
    (lambda: front_rules(np.array([[1.0], [np.nan]]), confidence=0.9, n_looks=1), "costs must be numbers; row 1 holds"),
    (lambda: front_rules(np.ones((2, 1)), confidence=1.0, n_looks=1), "confidence must lie between 0 and 1; got 1.0"),
    (lambda: best_rules(3, 0, confidence=0.9, n_looks=1), "keep must be at least 1; got 0"),
])  # fmt: skip
def test_rules_that_make_no_sense_are_refused(make: Callable[[], Rules], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- on a supernet ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def racers(space: SearchSpace) -> list[Arch]:
    codes = np.concatenate([
        space.encode([space.largest, space.smallest]), space.sample(np.random.default_rng(3), 14),
    ])  # fmt: skip
    return space.decode(space.canonical(codes))


def front(costs: np.ndarray, accuracies: np.ndarray) -> set[int]:
    """Indices of what nothing with costs no higher, and one value better, dominates."""
    no_worse = (costs[:, None] <= costs) & (accuracies[:, None] >= accuracies)
    better = (costs[:, None] < costs) | (accuracies[:, None] > accuracies)
    return set(np.flatnonzero(~(no_worse & better).any(axis=0)).tolist())


def test_the_front_after_a_race_is_that_of_the_full_evaluation(
    space: SearchSpace, evaluator: Evaluator, racers: list[Arch], blocks_run: list[int]
) -> None:
    full = evaluator.accuracies(racers)
    names, sums = graph_features(space, space.encode(racers))
    macs = sums[:, [names.index("macs")]]
    blocks_run.clear()
    outcomes = evaluator.race(racers, macs, first=32, confidence=0.9)
    accuracies = np.array([outcome.accuracy for outcome in outcomes])
    survivors = [index for index, outcome in enumerate(outcomes) if not outcome.stopped]
    assert max(abs(accuracies[survivors] - full[survivors])) <= 1.001 / evaluator.n_validation, "one image of rounding"
    assert front(macs[survivors, 0], full[survivors]) == {
        survivors.index(index) for index in front(macs[:, 0], full)
    }, "nothing of the front is lost"
    assert set(blocks_run) == {evaluator.n_calibration + 32, 32}, "calibrated once, then with the statistics found"
    resumed = evaluator.race(
        racers, macs, first=32, confidence=0.9,
        known={outcome.arch: outcome.correct[: 32 * (index % 4)] for index, outcome in enumerate(outcomes)},
    )  # fmt: skip
    for outcome, other in zip(resumed, outcomes, strict=True):
        np.testing.assert_array_equal(outcome.correct, other.correct)


def test_a_race_for_the_best_stops_the_others(evaluator: Evaluator, racers: list[Arch]) -> None:
    outcomes = evaluator.race(racers, keep=1, first=32, confidence=0.5)
    best = evaluator.accuracies(racers).argmax()
    assert not outcomes[best].stopped
    assert any(outcome.stopped for outcome in outcomes)
    assert {len(outcome.correct) for outcome in outcomes} <= {32, 64, 96}


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "either costs or keep"),
    ({"costs": np.ones((2, 1)), "keep": 1}, "either costs or keep"),
    ({"costs": np.ones((3, 1))}, "costs must have a row for each of 2 architectures; got 3 rows"),
    ({"keep": 1, "first": 0}, "first must be at least 1; got 0"),
])  # fmt: skip
def test_a_race_without_a_goal_is_refused(
    arguments: dict[str, object], message: str, space: SearchSpace, evaluator: Evaluator
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluator.race([space.largest, space.smallest], **arguments)  # type: ignore[arg-type]
