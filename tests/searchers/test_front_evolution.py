"""NSGA-II and NSGA-III as array programs, on spaces whose true fronts are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hanax.search_spaces import RESOLUTION, Decision, SearchSpace
from hanax.searchers import FrontEvolution, FrontResult, evolve_front, hypervolume, non_dominated
from hanax.searchers._genotypes import genotypes_of
from hanax.searchers._nsga3_survival import associate
from hanax.searchers._reference_directions import reference_directions

ALGORITHMS = ["nsga2", "nsga3"]


def _rows(codes: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in codes}


def _table(toy, values: np.ndarray) -> Callable:
    """The rows of `values`, shape (..., networks, m), that belong to codes, on either array module."""
    genotypes = genotypes_of(toy.space)
    keys = genotypes.pack(np, toy.codes)[:, 0]
    order = np.argsort(keys)

    def look_up(codes):
        xp = codes.__array_namespace__()
        places = xp.searchsorted(xp.asarray(keys[order]), genotypes.pack(xp, codes)[:, 0])
        return xp.asarray(values[..., order, :])[..., places, :]

    return look_up


def _losses(toy) -> np.ndarray:
    return np.column_stack([-toy.accuracy, toy.latency_ms, toy.macs])


def _assert_sound(toy, result: FrontResult) -> None:
    for codes in (result.codes, result.population):
        np.testing.assert_array_equal(toy.space.canonical(codes), codes)
        assert codes.dtype == np.int32
        assert len(_rows(codes)) == len(codes)
    assert result.history["evaluations"].is_monotonic_increasing


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_true_front_of_an_enumerable_space_is_found(toy, algorithm: str) -> None:
    """3,528 networks; 32 of them are the front."""
    losses = _losses(toy)[:, :2]
    evolution = FrontEvolution(toy.space, _table(toy, losses), 2, algorithm=algorithm, population=80, generations=60)
    for seed in range(2):
        (result,) = evolution.run(seed=seed)
        _assert_sound(toy, result)
        assert _rows(result.codes) == toy.true_front()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_bound_gets_its_own_true_front_in_one_run(toy, algorithm: str) -> None:
    """33 and 80 networks are feasible, 5 and 12 of them the fronts; one may be missed by one of two seeds."""
    bounds = np.array([[np.quantile(toy.latency_ms, share), -np.quantile(toy.accuracy, 0.6)] for share in (0.2, 0.3)])
    losses = _losses(toy)[:, :2]
    evolution = FrontEvolution(
        toy.space, _table(toy, losses), 2, algorithm=algorithm, population=80, generations=60,
        constraints=_table(toy, losses[:, ::-1]),
    )  # fmt: skip
    runs = [evolution.run(seed=seed, bounds=bounds) for seed in range(2)]
    for (most_ms, most_negative), results in zip(bounds, zip(*runs, strict=True), strict=True):
        expected = toy.true_front((toy.latency_ms <= most_ms) & (-toy.accuracy <= most_negative))
        found = [_rows(result.codes) for result in results]
        assert set.union(*found) >= expected
        assert min(len(rows & expected) for rows in found) >= len(expected) - 1
        assert all((result.violations == 0).all() for result in results)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_numpy_and_jax_give_the_same_to_the_last_bit(toy, algorithm: str) -> None:
    """30 generations; NSGA-III with three objectives on two devices with two bounds each."""
    losses = np.stack([_losses(toy), np.column_stack([-toy.accuracy, np.sqrt(toy.macs), toy.latency_ms])])
    settings, arguments = {"losses": _table(toy, losses[0, :, :2]), "n_objectives": 2}, {}
    if algorithm == "nsga3":
        limited = _table(toy, toy.latency_ms[:, None])
        settings = {"losses": _table(toy, losses), "n_objectives": 3, "constraints": limited}
        arguments = {"bounds": np.quantile(toy.latency_ms, [[0.02], [0.5]]), "initial": toy.codes[:5]}
    ours, theirs = (
        FrontEvolution(
            toy.space, **settings, algorithm=algorithm, population=24, generations=30, backend=backend
        ).run(seed=3, **arguments)
        for backend in ("numpy", "jax")
    )  # fmt: skip
    assert len(ours) == len(theirs) == (4 if algorithm == "nsga3" else 1)
    for one, other in zip(ours, theirs, strict=True):
        _assert_sound(toy, one)
        for name in ("codes", "losses", "violations", "population", "reference"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.history.equals(other.history)


def test_a_population_among_others_evolves_as_it_does_alone(toy) -> None:
    devices = np.stack([_losses(toy)[:, :2], _losses(toy)[:, 1:]])
    alone = evolve_front(toy.space, _table(toy, devices[0]), n_objectives=2, population=20, generations=15, seed=1)
    settings = {"population": 20, "generations": 15}
    both = FrontEvolution(toy.space, _table(toy, devices), 2, **settings).run(seed=1)
    np.testing.assert_array_equal(both[0].codes, alone.codes)
    np.testing.assert_array_equal(both[0].population, alone.population)
    assert both[0].history.equals(alone.history)
    np.testing.assert_array_equal(both[1].losses, _table(toy, devices[1])(both[1].codes))


def test_a_space_smaller_than_a_population_is_exhausted_and_nothing_is_evaluated_twice(tiny) -> None:
    for algorithm in ALGORITHMS:
        result = evolve_front(
            tiny.space, _table(tiny, _losses(tiny)[:, :2]), n_objectives=2, algorithm=algorithm, population=50,
            generations=30,
        )  # fmt: skip
        assert result.history["evaluations"].iloc[-1] == len(result.population) == tiny.space.size == 42
        assert _rows(result.codes) == tiny.true_front()


def test_a_front_known_beforehand_is_kept(toy) -> None:
    losses = _losses(toy)[:, :2]
    known = toy.codes[non_dominated(losses)]
    reference = losses.max(axis=0)
    result = evolve_front(
        toy.space, _table(toy, losses), n_objectives=2, population=50, generations=2, initial=known, reference=reference
    )
    assert _rows(result.codes) == toy.true_front() <= _rows(result.population)
    np.testing.assert_allclose(result.history["hypervolume"], hypervolume(losses, reference))


def test_bounds_that_nothing_keeps_give_the_networks_that_miss_them_least(toy) -> None:
    least = toy.latency_ms.min()
    result = evolve_front(
        toy.space, _table(toy, _losses(toy)[:, :2]), n_objectives=2, population=30, generations=30,
        constraints=_table(toy, toy.latency_ms[:, None]), bounds=[least / 2],
    )  # fmt: skip
    np.testing.assert_allclose(result.violations, 1.0)
    assert result.losses[:, 1].tolist() == [least]


SPHERE = SearchSpace(
    "sphere", 3, 10,
    (
        Decision(RESOLUTION, tuple(range(32, 65))),
        Decision("angle", tuple(range(33))),
        *(Decision(f"distance{number}", tuple(range(5))) for number in range(6)),
    ),
    (),
)  # fmt: skip
"""17 million networks that stand for points in the positive octant."""


def _dtlz2(codes: np.ndarray) -> np.ndarray:
    """DTLZ2 with three objectives (Deb et al., 2002, doi:10.1109/CEC.2002.1007032): the front has radius 1."""
    first, second = (codes[:, column] * (np.pi / 64) for column in (0, 1))
    radius = 1 + ((codes[:, 2:] / 4 - 0.5) ** 2).sum(axis=1)
    flat = radius * np.cos(first)
    return np.column_stack([flat * np.cos(second), flat * np.sin(second), radius * np.sin(first)])


def test_nsga3_covers_all_reference_directions_of_three_objectives_and_nsga2_does_not() -> None:
    """Both in units that are far apart. NSGA-II covers about 55 of 91 directions."""
    directions = reference_directions(3, 92)
    aims = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    covered, furthest = {}, {}
    for algorithm in ALGORITHMS:
        result = evolve_front(
            SPHERE, lambda codes: _dtlz2(codes) * [1.0, 100.0, 1e6], n_objectives=3, algorithm=algorithm,
            population=92, generations=100,
        )  # fmt: skip
        losses = _dtlz2(result.population)
        covered[algorithm] = len(set(associate(np, losses, directions)[0].tolist()))
        furthest[algorithm] = np.linalg.norm(aims[:, None] - losses[None], axis=2).min(axis=1).mean()
    assert covered["nsga3"] == len(directions) == 91
    assert covered["nsga2"] < 70
    assert furthest["nsga3"] < furthest["nsga2"] / 3


def test_one_and_five_objectives_work_alike(toy) -> None:
    for algorithm in ALGORITHMS:
        settings = {"algorithm": algorithm, "population": 30, "generations": 25}
        one = evolve_front(toy.space, _table(toy, toy.latency_ms[:, None]), n_objectives=1, **settings)
        assert one.losses.tolist() == [[toy.latency_ms.min()]]
        many = np.column_stack([_losses(toy), toy.codes[:, 0], -toy.codes[:, 1]])
        five = evolve_front(toy.space, _table(toy, many), n_objectives=5, **settings)
        assert len(five.codes) > 50
        assert np.isnan(five.history["hypervolume"]).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"population": 1}, "population is at least 2; got 1"),
    ({"generations": -1}, "generations is at least 0; got -1"),
    ({"tries": 0}, "tries is at least 1; got 0"),
    ({"algorithm": "nsga4"}, "algorithm is 'nsga2' or 'nsga3'; got 'nsga4'"),
    ({"backend": "torch"}, "backend is 'numpy' or 'jax'; got 'torch'"),
    ({"mutation_probability": 1.5}, "between 0 and 1; got 1.5"),
    ({"crossover_probability": -0.5}, "crossover_probability is between 0 and 1; got -0.5"),
    ({"algorithm": "nsga3", "n_objectives": 7, "population": 6}, "7 objectives, at most 6"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(tiny, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrontEvolution(**{"space": tiny.space, "losses": _losses, "n_objectives": 2, **settings})


@pytest.mark.parametrize(("arguments", "message"), [
    ({"seed": -1}, "a seed is between 0"),
    ({"bounds": [1.0]}, "give both or none"),
    ({"reference": [1.0]}, r"reference needs the shape \(2,\) or \(1, 2\); got \(1,\)"),
    ({"initial": np.zeros((9, 6), dtype=np.int32)}, "a population of 8 cannot start from 9 networks"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(tiny, arguments: dict, message: str) -> None:
    evolution = FrontEvolution(tiny.space, _table(tiny, _losses(tiny)[:, :2]), 2, population=8, generations=1)
    with pytest.raises(ValueError, match=message):
        evolution.run(**arguments)


def test_losses_of_wrong_shape_or_not_finite_are_refused(tiny) -> None:
    losses = _losses(tiny)
    settings = {"n_objectives": 2, "population": 8, "generations": 1}
    with pytest.raises(
        ValueError, match=r"8 networks need values of shape \(8, 2\) or \(devices, 8, 2\); got \(8, 3\)"
    ):
        evolve_front(tiny.space, _table(tiny, losses), **settings)
    with pytest.raises(ValueError, match=r"losses of .* all must be finite"):
        evolve_front(tiny.space, _table(tiny, np.full((42, 2), np.nan)), **settings)
    with pytest.raises(ValueError, match="one population; these are 2: use FrontEvolution"):
        evolve_front(tiny.space, _table(tiny, np.stack([losses[:, :2]] * 2)), **settings)
    with pytest.raises(ValueError, match="losses are those of 2 devices, constraints those of 3"):
        evolve_front(
            tiny.space, _table(tiny, np.stack([losses[:, :2]] * 2)), bounds=[1.0],
            constraints=_table(tiny, np.stack([losses[:, :1]] * 3)), **settings,
        )  # fmt: skip
