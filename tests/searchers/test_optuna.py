"""What is particular to the searchers that are Optuna studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from hanax.search_spaces import SearchSpace, mobilenet_v3
from hanax.searchers import Constraint, OptunaSearcher, search


def _searcher(space: SearchSpace, **settings: Any) -> OptunaSearcher:
    return OptunaSearcher(space, **{"sampler": "random", "n_objectives": 2, "batch": 5} | settings)


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "study.log")


def test_parameters_are_the_decisions_with_their_options(toy) -> None:
    searcher = _searcher(toy.space)
    codes = searcher.ask()
    trials = searcher.study.get_trials()
    distributions = trials[0].distributions
    assert distributions["resolution"] == IntDistribution(24, 32, step=8)
    assert distributions["stage1.block1.expand_ratio"] == CategoricalDistribution((3, 4, 6))
    by_name = [toy.space.options_of(arch) for arch in toy.space.decode(codes)]
    assert all(options.items() <= trial.params.items() for options, trial in zip(by_name, trials, strict=True))


def test_repeated_networks_are_answered_from_memory(tiny) -> None:
    searcher = _searcher(tiny.space)
    result = search(tiny.problem(), searcher, 40)
    trials = searcher.study.get_trials(deepcopy=False)
    assert len(result.codes) == 40 < len(trials)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    losses = {
        arch: (-accuracy, latency_ms)
        for arch, accuracy, latency_ms in result.costs[["arch", "accuracy", "latency_ms"]].itertuples(index=False)
    }
    for trial in trials:
        choices = [[d.options.index(trial.params[d.name]) for d in tiny.space.decisions]]
        arch = tiny.space.decode(tiny.space.canonical(np.array(choices, dtype=np.int32)))[0]
        assert tuple(trial.values) == losses[str(arch)]


def test_a_network_asked_for_twice_at_once_is_evaluated_once_and_both_trials_end(tiny) -> None:
    searcher = _searcher(tiny.space, batch=30)
    codes = searcher.ask()
    assert len(np.unique(codes, axis=0)) == len(codes) == 30
    open_trials = searcher.study.get_trials(states=(TrialState.RUNNING,))
    assert len(open_trials) > 30
    searcher.tell(codes, np.arange(60.0).reshape(30, 2), np.zeros(30))
    assert not searcher.study.get_trials(states=(TrialState.RUNNING,))


def test_the_constraint_reaches_the_study(toy) -> None:
    searcher = _searcher(toy.space, sampler="nsga2", population=10)
    constraint = Constraint("latency_ms", at_most=float(np.quantile(toy.latency_ms, 0.2)))
    result = search(toy.problem(constraint), searcher, 60)
    told = searcher.study.get_trials(deepcopy=False)
    assert {trial.constraints["violation"] == 0 for trial in told} == {True, False}
    assert {tuple(trial.values) for trial in searcher.study.best_trials} == {
        (-row.accuracy, row.latency_ms) for row in result.costs.iloc[result.front].itertuples()
    }


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_a_guided_sampler_beats_chance(toy, sampler: str) -> None:
    """Hypervolume after 100 evaluations, mean of three seeds."""
    reference = {"accuracy": float(toy.accuracy.min()), "latency_ms": float(toy.latency_ms.max())}

    def volume(name: str, seed: int) -> float:
        searcher = _searcher(toy.space, sampler=name, seed=seed, population=20)
        return float(search(toy.problem(), searcher, 100, reference=reference).history["hypervolume"].iloc[-1])

    assert np.mean([volume(sampler, s) for s in range(3)]) > np.mean([volume("random", s) for s in range(3)])


@pytest.mark.parametrize("storage", ["{}/study.log", "sqlite:///{}/study.db"])
def test_a_stored_study_continues_without_repeating_itself(toy, storage: str, tmp_path: Path) -> None:
    storage = storage.format(tmp_path)
    first = search(toy.problem(), _searcher(toy.space, storage=storage), 6)
    again = _searcher(toy.space, storage=storage)
    second = search(toy.problem(), again, 6)
    both = np.concatenate([first.codes, second.codes])
    assert len(np.unique(both, axis=0)) == 12
    codes, losses, violations = again.results()
    assert {row.tobytes() for row in codes} == {row.tobytes() for row in both}
    np.testing.assert_array_equal(losses, toy.problem().losses(toy.evaluate(codes)))
    assert not violations.any()


def test_workers_learn_from_each_other_and_share_the_work(tiny, journal: str) -> None:
    workers = [_searcher(tiny.space, storage=journal, seed=seed, batch=3) for seed in range(2)]
    evaluated: list[np.ndarray] = []
    for worker in workers * 10:
        codes = worker.ask()
        worker.tell(codes, tiny.problem().losses(tiny.evaluate(codes)), np.zeros(len(codes)))
        evaluated.append(codes)
    assert len(np.unique(np.concatenate(evaluated), axis=0)) == sum(map(len, evaluated)) == tiny.space.size
    assert all(len(worker.results()[0]) == tiny.space.size for worker in workers)


def test_two_workers_may_measure_the_same_network_differently(tiny, journal: str) -> None:
    first, second = (_searcher(tiny.space, storage=journal, seed=0, batch=10) for _ in range(2))
    codes, same = first.ask(), second.ask()
    np.testing.assert_array_equal(codes, same)
    first.tell(codes, np.ones((10, 2)), np.zeros(10))
    second.ask()
    second.tell(same, np.full((10, 2), 2.0), np.zeros(10))
    assert len(first.results()[0]) == len(second.results()[0]) == 10
    np.testing.assert_array_equal(second.results()[1], np.full((10, 2), 2.0))


def test_a_study_of_another_space_is_refused_with_both_fingerprints(tiny, toy, journal: str) -> None:
    _searcher(tiny.space, storage=journal)
    with pytest.raises(ValueError, match=rf"space {tiny.space.fingerprint}.*is {toy.space.fingerprint}"):
        _searcher(toy.space, storage=journal)


def test_a_study_with_another_number_of_objectives_is_refused(tiny, journal: str) -> None:
    _searcher(tiny.space, storage=journal)
    with pytest.raises(ValueError, match="has 2 objectives; asked for 3"):
        _searcher(tiny.space, storage=journal, n_objectives=3)
    with pytest.raises(ValueError, match="2 objectives need losses of shape"):
        _searcher(tiny.space).tell(tiny.codes[:4], np.zeros((4, 3)), np.zeros(4))


def test_an_unknown_sampler_is_refused_with_the_known_ones(tiny) -> None:
    with pytest.raises(ValueError, match="unknown sampler 'cmaes'; known: nsga2, tpe, random"):
        _searcher(tiny.space, sampler="cmaes")


def test_a_large_space_works_with_every_sampler() -> None:
    space = mobilenet_v3()
    for sampler in ("nsga2", "tpe", "random"):
        searcher = _searcher(space, sampler=sampler, batch=8, population=8)
        for _ in range(3):
            codes = searcher.ask()
            assert len(codes) == 8
            searcher.tell(codes, np.column_stack([codes.sum(axis=1), -codes[:, 0]]).astype(float), np.zeros(8))


def test_optuna_is_told_to_be_exactly_the_sampler_asked_for(tiny) -> None:
    known = {
        "nsga2": optuna.samplers.NSGAIISampler,
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
    }
    for name, kind in known.items():
        assert type(_searcher(tiny.space, sampler=name).study.sampler) is kind
