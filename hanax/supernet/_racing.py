"""Races: subnets that are beaten beyond doubt on some of the images are not scored on the others.

All subnets are scored on the same images, so two are compared by the images that one classifies correctly and the other
does not: McNemar's test (1947, doi:10.1007/BF02295996) in its exact form. Were the first no better than the second, it
would win each such image with probability 1/2 at most, so the binomial distribution says how likely so many wins are by
chance. Comparisons that could do harm are counted, and the admitted probability of any mistake is divided by their
number (Bonferroni), over all subnets and all looks at the results. Maron and Moore (1994, "Hoeffding Races") race
models by a bound on each one's own mean; the paired test is free of the noise of images that all find easy or hard.

The images are in drawn order. So the test holds for the accuracy on images to come and also for that on all images of
the race, from which the first ones are drawn without replacement: such a draw varies less (Hoeffding, 1963, section 6).

Shapes: `m` subnets, `n` images, `c` costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betainc

from hanax._intervals import wilson_interval
from hanax.search_spaces import Arch

OnScored = Callable[[Arch, int, Bool[np.ndarray, " n"]], None]
"""Called with an architecture, the position of the first image just scored, and whether it was right on each."""

Score = Callable[[Sequence[Arch], int, int], Iterator[tuple[int, Bool[np.ndarray, " n"]]]]
"""``(archs, start, stop) ->`` for each of `archs`, its index and whether it is right on images `start` to `stop`."""

ORDER_SEED = 0
"""Seed of the order in which images are used: fixed, so that the first ones are the same in every race."""


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """How a subnet fared in a race.

    Attributes:
        correct: For each image it was scored on, whether it was right; images are in the order of `drawn_order`, the
            same for every subnet.
        dominated_by: The most accurate of those that put it out; None if it was scored on all images.
    """

    arch: Arch
    correct: Bool[np.ndarray, " n"]
    dominated_by: Arch | None

    @property
    def accuracy(self) -> float:
        """Share of images that it got right, of those it was scored on, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def n_images(self) -> int:
        """Images it was scored on."""
        return len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the accuracy's 95 % interval."""
        return wilson_interval(int(self.correct.sum()), self.n_images)

    @property
    def stopped(self) -> bool:
        """Whether it was put out before all images were used."""
        return self.dominated_by is not None


@dataclass(frozen=True, eq=False, slots=True)
class Rules:
    """Who is out of a race.

    Attributes:
        may_beat: At [a, b] whether `a` counts against `b` where `a` is the more accurate.
        n_to_beat: A subnet is out once this many that count against it are more accurate beyond doubt.
        error_rate: Probability of a mistake that one comparison may have.
    """

    may_beat: Bool[np.ndarray, "m m"]
    n_to_beat: int
    error_rate: float


def front_rules(costs: Float[np.ndarray, "m c"], *, confidence: float, n_looks: int) -> Rules:
    """A subnet is out when one whose costs are all no higher is more accurate.

    With probability `confidence` nothing is put out that is on the true front of costs and accuracy.

    Args:
        costs: Lower is better.
        n_looks: How often the results are looked at.

    Raises:
        ValueError: A cost is not a number, or `confidence` is not between 0 and 1.
    """
    if np.isnan(costs).any():
        raise ValueError(f"costs must be numbers; row {int(np.isnan(costs).any(axis=1).argmax())} holds NaN")
    may_beat = np.asarray((costs[:, None, :] <= costs[None, :, :]).all(axis=2))
    np.fill_diagonal(may_beat, False)
    return Rules(may_beat, 1, _error_rate(confidence, int(may_beat.sum()) * n_looks))


def best_rules(m: int, keep: int, *, confidence: float, n_looks: int) -> Rules:
    """A subnet is out when `keep` others are more accurate, so that it is not one of the `keep` best.

    With probability `confidence` none of the `keep` truly best is put out. For that only comparisons of others with
    them must not fail: fewer than `keep` are truly better than one of them, so `keep` that seem so include a mistake.

    Raises:
        ValueError: `keep` is below 1, or `confidence` is not between 0 and 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1; got {keep}")
    return Rules(~np.eye(m, dtype=bool), keep, _error_rate(confidence, min(keep, m) * (m - 1) * n_looks))


def looks_of(n_images: int, first: int) -> int:
    """How often a race looks at its results: after every `first` images, but not after the last ones."""
    return (n_images - 1) // first


def _error_rate(confidence: float, n_comparisons: int) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}")
    return (1.0 - confidence) / max(n_comparisons, 1)


def drawn_order(n: int) -> Int[np.ndarray, " n"]:
    """Indices of `n` images in the order in which a race uses them; a data set's own order may follow its classes."""
    return np.random.default_rng(ORDER_SEED).permutation(n)


def chance_of_wins(wins: Int[np.ndarray, "..."], losses: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Probability of at least that many wins among ``wins + losses`` fair ones: McNemar's exact test, one-sided."""
    tail = betainc(np.maximum(wins, 1), losses + 1, 0.5)  # P(Binomial(w + l, 1/2) >= w) for w > 0
    return np.where(wins > 0, tail, 1.0)


def more_accurate(correct: Bool[np.ndarray, "m n"], error_rate: float) -> Bool[np.ndarray, "m m"]:
    """At [a, b] whether `a` is more accurate than `b` beyond doubt: by chance less often than `error_rate`."""
    right = correct.astype(np.float32)  # exact up to 16 million images, and a matrix product is fast
    wins = (right @ (1.0 - right).T).astype(np.int64)
    return chance_of_wins(wins, wins.T) <= error_rate


def beaten(rules: Rules, correct: Bool[np.ndarray, "r n"], racing: Int[np.ndarray, " r"]) -> dict[int, int]:
    """Those of `racing` that are out, each with the most accurate of those that put it out.

    Args:
        correct: Of each of `racing`, on the images so far.
        racing: Rows of ``rules.may_beat``: the subnets that are still in the race.
    """
    sure = more_accurate(correct, rules.error_rate) & rules.may_beat[np.ix_(racing, racing)]
    accuracy = correct.mean(axis=1)
    return {
        int(racing[loser]): int(racing[np.where(sure[:, loser], accuracy, -1.0).argmax()])
        for loser in np.flatnonzero(sure.sum(axis=0) >= rules.n_to_beat)
    }


def hold_race(
    archs: Sequence[Arch],
    rules: Rules,
    n_images: int,
    first: int,
    score: Score,
    *,
    known: Mapping[Arch, Bool[np.ndarray, " n"]] | None = None,
    on_scored: OnScored | None = None,
    on_result: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """The outcome of each of `archs`; see `Evaluator.race`, which has the same arguments.

    Args:
        n_images: Images to score in all.
        first: Images to score before each look at the results, of which there are `looks_of`.
        score: Scores architectures on some of the images.
    """
    correct = np.zeros((len(archs), n_images), dtype=bool)
    n_known = np.zeros(len(archs), dtype=np.int64)
    for index, arch in enumerate(archs):
        if known is not None and arch in known:
            n_known[index] = len(known[arch])
            correct[index, : n_known[index]] = known[arch]
    outcomes: dict[int, Outcome] = {}

    def decide(index: int, n_seen: int, winner: int | None) -> None:
        outcomes[index] = Outcome(archs[index], correct[index, :n_seen], None if winner is None else archs[winner])
        if on_result is not None:
            on_result(outcomes[index])

    racing = np.arange(len(archs))
    for start in range(0, n_images, first):
        stop = min(start + first, n_images)
        missing = [index for index in racing.tolist() if n_known[index] < stop]
        for position, right in score([archs[index] for index in missing], start, stop):
            correct[missing[position], start:stop] = right
            if on_scored is not None:
                on_scored(archs[missing[position]], start, right)
        out = beaten(rules, correct[racing, :stop], racing) if stop < n_images else {}
        for loser, winner in out.items():
            decide(loser, stop, winner)
        racing = np.array([index for index in racing.tolist() if index not in out], dtype=np.int64)
    for index in racing.tolist():
        decide(index, n_images, None)
    return [outcomes[index] for index in range(len(archs))]
