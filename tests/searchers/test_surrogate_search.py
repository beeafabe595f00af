"""The models and the expected improvement behind `LinasSampler`."""

from __future__ import annotations

import moocore
import numpy as np
import pytest
from scipy.optimize import approx_fprime

from hanax.searchers import every_network, non_dominated
from hanax.searchers._domain import Domain
from hanax.searchers._gaussian_process import PARTS, GaussianProcess, make_inputs
from hanax.searchers._surrogate_search import SURROGATES, Settings, _Front, propose

DOMAIN = Domain(
    counts=np.array([3, 3, 2, 4, 1]),
    values=(None, None, np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]), None),
    canonical=lambda codes: codes,
    features=lambda codes: codes[:, :2] * 1.5,
)
ALL_PARTS = tuple(range(PARTS))


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, DOMAIN.counts, size=(20, 5)).astype(np.int32)


def _fit(codes: np.ndarray, y: np.ndarray, warp: bool = False, domain: Domain = DOMAIN) -> GaussianProcess:
    (inputs,) = make_inputs(domain, codes)
    return GaussianProcess(domain, inputs, y, parts=ALL_PARTS, warp=warp, max_steps=10)


def test_distances_count_the_decisions_that_differ_and_the_steps_between_ordered_options() -> None:
    two = np.array([[0, 1, 0, 0, 0], [2, 1, 1, 3, 0]], dtype=np.int32)
    columns = DOMAIN.binary(two)
    assert np.sum((columns[0] - columns[1]) ** 2) == pytest.approx(1 + 0 + 1 + 3)


def test_decisions_that_offer_the_same_options_share_columns_and_counts() -> None:
    assert [group.tolist() for group in DOMAIN.alike] == [[0, 1]]
    summaries = DOMAIN.summaries(np.array([[2, 2, 0, 0, 0]], dtype=np.int32))
    np.testing.assert_allclose(summaries, [[0, 0, np.sqrt(2), 3.0, 3.0]])
    shared, owner = DOMAIN.shared, DOMAIN.owner
    np.testing.assert_array_equal(shared[owner == 0], shared[owner == 1])
    assert not set(shared[owner == 0]) & set(shared[owner == 3])


@pytest.mark.parametrize("warp", [False, True])
def test_the_gradient_is_that_of_the_energy(codes: np.ndarray, warp: bool) -> None:
    rng = np.random.default_rng(1)
    process = _fit(codes, codes.sum(axis=1) + rng.normal(size=20), warp)
    point = process._prior + 0.2 * rng.normal(size=len(process._prior))
    numeric = approx_fprime(point, lambda logs: process._energy(logs)[0], 1e-6)
    np.testing.assert_allclose(process._energy(point)[1], numeric, atol=1e-4)


def test_what_follows_from_an_expected_outcome_is_what_a_fit_with_it_would_say(codes: np.ndarray) -> None:
    """Same hyperparameters; the outcome of the first candidate is its mean, so only the variance changes."""
    process = _fit(codes, codes.sum(axis=1) + np.random.default_rng(1).normal(size=20))
    candidates = np.unique(np.random.default_rng(2).integers(0, DOMAIN.counts, size=(9, 5)), axis=0).astype(np.int32)
    told, inputs = make_inputs(DOMAIN, codes, candidates)
    beliefs = process.predict(inputs)
    after = beliefs.after(0)
    joint = type(told)(np.vstack([told.binary, inputs.binary[:1]]), np.vstack([told.summaries, inputs.summaries[:1]]))
    gram = process._covariance(joint, joint) + process._noise * np.eye(21)
    cross = process._covariance(joint, inputs)
    variance = process._variance(inputs) - np.einsum("nc,nc->c", cross, np.linalg.solve(gram, cross))
    np.testing.assert_allclose(after._variance, np.maximum(variance, 1e-9), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(after.median, beliefs.median)
    assert (after.spread <= beliefs.spread + 1e-12).all()


def test_the_density_is_that_of_leaving_each_evaluation_out(codes: np.ndarray) -> None:
    y = codes.sum(axis=1) + np.random.default_rng(1).normal(size=20)
    process = _fit(codes, y)
    gram = process._covariance(process._inputs, process._inputs) + process._noise * np.eye(20)
    scaled = (y - y.mean()) / y.std() - process._mean
    densities = []
    for out in range(20):
        rest = np.delete(np.arange(20), out)
        weights = np.linalg.solve(gram[np.ix_(rest, rest)], gram[rest, out])
        mean, variance = weights @ scaled[rest], gram[out, out] - weights @ gram[rest, out]
        densities.append(-0.5 * np.log(2 * np.pi * variance * y.var()) - 0.5 * (scaled[out] - mean) ** 2 / variance)
    assert process.log_density == pytest.approx(np.mean(densities))


@pytest.mark.parametrize("warp", [False, True])
def test_the_expected_improvement_is_the_mean_gain_of_hypervolume(codes: np.ndarray, warp: bool) -> None:
    """Monte Carlo with 4,000 draws of both losses."""
    rng = np.random.default_rng(3)
    losses = np.column_stack([codes.sum(axis=1) + rng.normal(size=20), rng.normal(size=20) - codes.sum(axis=1)])
    processes = [_fit(codes, column, warp) for column in losses.T]
    candidates = rng.integers(0, DOMAIN.counts, size=(3, 5)).astype(np.int32)
    beliefs = [process.predict(make_inputs(DOMAIN, codes, candidates)[1]) for process in processes]
    reference = losses.max(axis=0)
    front = _Front(losses, np.zeros((20, 0)), reference)
    medians, spreads = (np.column_stack([getattr(one, name) for one in beliefs]) for name in ("median", "spread"))
    expected = front.expected_improvement(beliefs, medians, spreads, rng) * np.prod(front.extent)
    before = moocore.hypervolume(losses, ref=reference)
    for index in range(3):
        normal = [one._normal[0][index] + one._normal[1][index] * rng.normal(size=4000) for one in beliefs]
        draws = np.column_stack([
            draw if process.bound is None else process.bound + np.exp(draw)
            for process, draw in zip(processes, normal, strict=True)
        ])  # fmt: skip
        gains = [moocore.hypervolume(np.vstack([losses, draw]), ref=reference) - before for draw in draws]
        assert expected[index] == pytest.approx(np.mean(gains), abs=5 * np.std(gains) / np.sqrt(4000))


def test_a_saturating_cost_is_modelled_on_its_logarithm_and_an_additive_one_is_not() -> None:
    rng = np.random.default_rng(4)
    domain = Domain(np.full(10, 3), (None,) * 10, lambda codes: codes)
    codes = rng.integers(0, 3, size=(60, 10)).astype(np.int32)
    effects = rng.normal(size=(10, 3))
    additive = effects[np.arange(10), codes].sum(axis=1)

    def best(y: np.ndarray) -> str:
        (inputs,) = make_inputs(domain, codes)
        fits = {
            name: GaussianProcess(domain, inputs, y, parts=parts, warp=warp, max_steps=25).log_density
            for name, (parts, warp) in SURROGATES.items()
        }
        return max(fits, key=lambda name: fits[name])

    assert best(additive) == "additive"
    assert best(np.exp(0.5 * additive)).endswith("-warped")


def _settings(**changes: object) -> Settings:
    return Settings(**{"candidates": 1000, "max_steps": 10} | changes)


def test_proposals_are_new_and_different_and_end_with_the_domain() -> None:
    rng = np.random.default_rng(5)
    told = np.unique(rng.integers(0, DOMAIN.counts, size=(30, 5)), axis=0).astype(np.int32)
    losses = np.column_stack([told.sum(axis=1), -told[:, 0] + 0.1 * told[:, 3]]).astype(np.float64)
    none = np.zeros((len(told), 0))
    proposals = propose(DOMAIN, told[5:], losses[5:], none[5:], told[:5], 100, rng, _settings())
    everything = np.concatenate([told, proposals])
    assert len(np.unique(everything, axis=0)) == len(everything) == 72
    assert len(propose(DOMAIN, told, losses, none, proposals, 3, rng, _settings())) == 0


def _smooth_costs(toy) -> tuple[np.ndarray, np.ndarray]:
    """A latency that adds up over decisions, and an accuracy that saturates in what adds up."""
    columns = toy.space.one_hot(toy.codes)
    rng = np.random.default_rng(8)
    work = columns @ rng.gamma(2.0, 0.5, size=columns.shape[1])
    quality = work + 0.5 * columns @ rng.normal(size=columns.shape[1])
    return work, 1.0 - np.exp(-0.3 * (quality - quality.min()))


@pytest.mark.parametrize("n_objectives", [1, 2, 3])
def test_it_finds_what_is_best_long_before_chance_does(toy, n_objectives: int) -> None:
    """3,528 networks: 60 evaluations dominate more than 600 random ones do."""
    space = toy.space
    latency, accuracy = _smooth_costs(toy)
    losses = np.column_stack([-accuracy, latency, toy.macs / toy.macs.max()])[:, :n_objectives]
    domain = Domain(space.option_counts, (None,) * len(space.decisions), space.canonical)
    reference = losses.max(axis=0)
    rng = np.random.default_rng(6)
    rows: list[int] = []
    while len(rows) < 60:
        proposals = propose(
            domain, toy.codes[rows], losses[rows], np.zeros((len(rows), 0)), toy.codes[:0], 10, rng, _settings()
        )
        rows += [toy.row_of[row.tobytes()] for row in proposals]

    def volume(chosen: np.ndarray) -> float:
        best = losses[chosen][non_dominated(losses[chosen])]
        return float(moocore.hypervolume(best, ref=reference)) if n_objectives > 1 else float(reference[0] - best.min())

    chance = [volume(np.random.default_rng(seed).permutation(len(losses))[:600]) for seed in range(3)]
    assert volume(np.array(rows)) > np.mean(chance)


def test_constraints_are_learnt_and_kept(toy) -> None:
    """Nine in ten networks break the budget; of the last 20 proposals, all at its edge, about half keep it."""
    space = toy.space
    latency, accuracy = _smooth_costs(toy)
    domain = Domain(space.option_counts, (None,) * len(space.decisions), space.canonical)
    violations = (latency - np.quantile(latency, 0.1))[:, None]
    losses = -accuracy[:, None]
    rng = np.random.default_rng(7)
    rows: list[int] = []
    while len(rows) < 50:
        proposals = propose(
            domain, toy.codes[rows], losses[rows], violations[rows], toy.codes[:0], 10, rng, _settings()
        )
        rows += [toy.row_of[row.tobytes()] for row in proposals]
    assert np.mean(violations[rows[-20:], 0] <= 0) >= 0.4
    feasible = [row for row in rows if violations[row, 0] <= 0]
    allowed = accuracy[violations[:, 0] <= 0]
    assert np.mean(allowed > accuracy[feasible].max()) < 0.01


def test_everything_of_a_small_domain_may_be_proposed_and_nothing_is_listed_twice(tiny) -> None:
    domain = Domain(tiny.space.option_counts, (None,) * len(tiny.space.decisions), tiny.space.canonical)
    none = every_network(tiny.space)[:0]
    first = propose(domain, none, np.zeros((0, 2)), np.zeros((0, 0)), none, 1000, np.random.default_rng(0), _settings())
    assert {row.tobytes() for row in first} == {row.tobytes() for row in tiny.codes}
