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
from hanax.searchers import (
    Constraint,
    EvolutionSampler,
    LinasSampler,
    Objective,
    OptunaSearcher,
    open_storage,
    search,
)


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


def test_what_one_worker_evaluates_is_not_proposed_to_another(tiny, journal: str) -> None:
    workers = [_searcher(tiny.space, storage=journal, seed=0, batch=5) for _ in range(3)]
    asked = np.concatenate([worker.ask() for worker in workers])
    assert len(np.unique(asked, axis=0)) == len(asked) == 15


def test_workers_stop_at_the_total_and_not_before(tiny, journal: str) -> None:
    workers = [_searcher(tiny.space, storage=journal, seed=seed, batch=4, total=10) for seed in range(3)]
    asked = [worker.ask() for worker in workers]
    assert [len(codes) for codes in asked] == [4, 4, 2]
    for worker, codes in zip(workers, asked, strict=True):
        worker.tell(codes, tiny.problem().losses(tiny.evaluate(codes)), np.zeros(len(codes)))
    assert [len(worker.ask()) for worker in workers] == [0, 0, 0]
    assert all(len(worker.results()[0]) == 10 for worker in workers)
    assert len(_searcher(tiny.space, storage=journal, total=12, batch=5).ask()) == 2


def test_a_worker_that_closes_leaves_its_networks_to_others(tiny, journal: str) -> None:
    first, second = (_searcher(tiny.space, storage=journal, seed=seed, batch=2) for seed in range(2))
    left = first.ask()
    first.close()
    np.testing.assert_array_equal(second.ask(), left)


def test_a_worker_that_was_taken_for_dead_saves_its_outcome_unless_another_is_at_it(tiny, journal: str) -> None:
    worker, other = (_searcher(tiny.space, storage=journal, seed=seed, batch=1) for seed in range(2))
    for is_taken_over in (False, True):
        codes = worker.ask()
        (trial,) = worker.study.get_trials(states=(TrialState.RUNNING,))
        other.study.tell(trial.number, state=TrialState.FAIL)
        if is_taken_over:
            other._enqueue(codes)
            np.testing.assert_array_equal(other.ask(), codes)
        n_complete = len(worker.study.get_trials(states=(TrialState.COMPLETE,)))
        worker.tell(codes, tiny.problem().losses(tiny.evaluate(codes)), np.zeros(1))
        assert len(worker.study.get_trials(states=(TrialState.COMPLETE,))) == n_complete + (not is_taken_over)


def test_a_person_sees_names_units_and_directions(toy, journal: str) -> None:
    constraint = Constraint("latency_ms", at_most=6.0, unit="ms")
    problem = toy.problem(constraint)
    searcher = OptunaSearcher(
        toy.space, sampler="nsga2", objectives=problem.objectives, constraints=problem.constraints, storage=journal
    )
    told = []
    for _ in range(8):
        codes = searcher.ask()
        costs = problem.costs(codes)
        searcher.annotate(codes, costs)
        searcher.tell(codes, problem.losses(costs), problem.violations(costs))
        told.append((codes, costs))
    study = optuna.load_study(study_name="hanax", storage=open_storage(journal))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "latency_ms"]
    trials = [trial for trial in study.trials if "from_memory" not in trial.user_attrs]
    for trial, (codes, costs) in zip(trials, told, strict=True):
        values = {name: float(column[0]) for name, column in costs.items()}
        assert trial.values == [values["accuracy"], values["latency_ms"]]
        assert values.items() <= trial.user_attrs.items()
        assert trial.user_attrs["arch"] == str(toy.space.decode(codes)[0])
        assert trial.constraints == {"latency_ms at most 6 ms": max(values["latency_ms"] / 6.0 - 1.0, 0.0)}
    codes, losses, violations = searcher.results()
    np.testing.assert_array_equal(losses, problem.losses(problem.costs(codes)))
    np.testing.assert_array_equal(violations, problem.violations(problem.costs(codes)))
    again = OptunaSearcher(
        toy.space, sampler="random", objectives=problem.objectives, constraints=problem.constraints, storage=journal
    )
    for ours, theirs in zip(again.results(), (codes, losses, violations), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    table = again.table()
    assert list(table.columns) == ["arch", "accuracy", "latency_ms", "macs"] and len(table) == len(codes)


def test_a_study_for_another_problem_is_refused(tiny, journal: str) -> None:
    def open_it(**changes: Any) -> OptunaSearcher:
        facts = {"objectives": tiny.problem().objectives, "constraints": (), "facts": {"accuracy": "predicted"}}
        return OptunaSearcher(tiny.space, sampler="random", storage=journal, **(facts | changes))

    open_it()
    with pytest.raises(ValueError, match="has accuracy 'predicted'; asked for 'measured'"):
        open_it(facts={"accuracy": "measured"})
    with pytest.raises(ValueError, match="has constraints ''; asked for 'macs at most 5'"):
        open_it(constraints=[Constraint("macs", at_most=5)])
    with pytest.raises(
        ValueError, match="'maximise accuracy, minimise latency_ms'; asked for 'maximise accuracy, mini"
    ):
        open_it(objectives=[Objective("accuracy", "maximise"), Objective("macs", "minimise")])
    with pytest.raises(ValueError, match="give either n_objectives or objectives"):
        OptunaSearcher(tiny.space, sampler="random")


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
    with pytest.raises(ValueError, match="unknown sampler 'cmaes'; known: linas, evolution, nsga2, tpe, random"):
        _searcher(tiny.space, sampler="cmaes")


def test_a_large_space_works_with_every_sampler() -> None:
    space = mobilenet_v3()
    for sampler in ("linas", "evolution", "nsga2", "tpe", "random"):
        searcher = _searcher(space, sampler=sampler, batch=8, population=8)
        for _ in range(3):
            codes = searcher.ask()
            assert len(codes) == 8
            searcher.tell(codes, np.column_stack([codes.sum(axis=1), -codes[:, 0]]).astype(float), np.zeros(8))


def test_the_study_has_exactly_the_sampler_asked_for(tiny) -> None:
    known = {
        "linas": LinasSampler,
        "evolution": EvolutionSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
    }
    for name, kind in known.items():
        assert type(_searcher(tiny.space, sampler=name).study.sampler) is kind
