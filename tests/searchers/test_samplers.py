"""Our samplers in plain Optuna studies: nothing here knows of networks."""

from __future__ import annotations

import copy
import itertools
import math
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import hanax.searchers
from hanax.searchers import EvolutionSampler, LinasSampler, OptunaSearcher, hypervolume, search
from hanax.searchers._discrete_study import parameters_of
from hanax.searchers._warm_start import related

SPACE: dict[str, BaseDistribution] = {
    "depth": IntDistribution(1, 3),
    "width": IntDistribution(8, 32, step=8),
    "rate": FloatDistribution(0.0, 0.3, step=0.1),
    "kernel": CategoricalDistribution((3, 5, 7)),
    "activation": CategoricalDistribution(("relu", "hswish", None)),
}
SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "linas": lambda **settings: LinasSampler(**{"n_initial": 10, "batch": 10, "candidates": 1000} | settings),
    "evolution": lambda **settings: EvolutionSampler(**{"population": 10} | settings),
}


@pytest.fixture(params=SAMPLERS)
def make(request: pytest.FixtureRequest) -> Callable[..., optuna.samplers.BaseSampler]:
    return SAMPLERS[request.param]


def _study(sampler: optuna.samplers.BaseSampler, n_objectives: int = 2, **settings: Any) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"][-n_objectives:], sampler=sampler, **settings)


def _accuracy_and_latency(params: dict[str, Any]) -> list[float]:
    """A made-up network: wider, deeper and rounder is better and slower, with an interaction."""
    size = params["depth"] * params["width"]
    accuracy = math.log(size) - 3 * (params["rate"] - 0.1) ** 2 + 0.1 * (params["activation"] == "hswish")
    return [accuracy + 0.05 * params["kernel"] * (params["depth"] > 1), size * params["kernel"] / 10 + 2.0]


def _play(study: optuna.Study, n_trials: int, space: dict[str, BaseDistribution] = SPACE) -> list[tuple[Any, ...]]:
    """The parameters of `n_trials`, one at a time."""
    asked = []
    for _ in range(n_trials):
        trial = study.ask(space)
        asked.append(tuple(trial.params[name] for name in space))
        study.tell(trial, _accuracy_and_latency(trial.params)[-len(study.directions) :])
    return asked


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(-10, 11, step=3),
        IntDistribution(1, 100, log=True),
        FloatDistribution(-10.2, 10.2, step=0.1),
        FloatDistribution(1e-7, 5e-6, step=1e-7),
        FloatDistribution(2.5, 2.5),
        CategoricalDistribution((None, True, 3, 0.5, "a")),
    ],
)
def test_values_and_codes_are_each_others_inverse(distribution: BaseDistribution) -> None:
    parameters = parameters_of({"x": distribution})
    (count,), (numbers,) = parameters.domain.counts, parameters.domain.values
    values = [parameters.params(np.array([code], dtype=np.int32))["x"] for code in range(count)]
    assert len(set(values)) == count
    assert [parameters.row({"x": value}) for value in values] == [[code] for code in range(count)]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
    if numbers is not None:
        assert values == sorted(values) and list(numbers) == sorted(numbers)
        assert values[0] == distribution.low and values[-1] == distribution.high
    assert parameters.row({"x": "b"}) is parameters.row({"x": 1e9}) is parameters.row({"y": 1}) is None


def test_every_network_comes_once_and_then_they_repeat(make, caplog) -> None:
    small = {name: SPACE[name] for name in ("depth", "kernel", "activation")}
    study = _study(make(seed=0), n_objectives=1)
    for _ in range(27):
        trial = study.ask(small)
        study.tell(trial, float(trial.params["depth"]))
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 27
    known = [trial.params for trial in study.trials]
    assert all(study.ask(small).params in known for _ in range(3))
    ours = [record.message for record in caplog.records if record.name.startswith("hanax")]
    assert ours == ["all 27 networks were proposed; now they repeat"]


def test_networks_asked_for_and_not_told_are_all_different(make) -> None:
    study = _study(make(seed=0))
    asked = _play(study, 20)
    waiting = [study.ask(SPACE).params for _ in range(30)]
    assert len({*asked, *(tuple(params[name] for name in SPACE) for params in waiting)}) == 50


def test_the_same_seed_gives_the_same_history_and_another_does_not(make) -> None:
    first, second, other = (_play(_study(make(seed=seed)), 25) for seed in (3, 3, 4))
    assert first == second != other
    reseeded = make(seed=3)
    reseeded.reseed_rng()
    assert _play(_study(reseeded), 25) != first


def test_a_study_continues_with_a_new_sampler_as_if_it_had_never_stopped(make) -> None:
    study = _study(make(seed=1, search_space=SPACE))
    begun = _play(study, 20)  # a whole number of rounds
    study.sampler = make(seed=1, search_space=SPACE)
    assert begun + _play(study, 10) == _play(_study(make(seed=1, search_space=SPACE)), 30)


def test_failed_and_pruned_networks_are_neither_tried_again_nor_learned_from(make) -> None:
    study = _study(make(seed=0), n_objectives=1)

    def objective(trial: optuna.Trial) -> float:
        params = [trial._suggest(name, distribution) for name, distribution in SPACE.items()]
        if params[3] == 7:
            raise MemoryError("too large")
        if params[4] is None:
            trial.report(-1e9, 0)
            raise optuna.TrialPruned
        return math.nan if params[0] == 1 else _accuracy_and_latency(trial.params)[1]

    study.optimize(objective, n_trials=60, catch=(MemoryError,))
    states = [trial.state for trial in study.trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED}
    networks = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert len(set(networks[1:])) == 59  # the first trial's parameters are not known beforehand
    assert sum(trial.params["activation"] is None for trial in study.trials[30:]) < 20


def test_an_infinite_value_is_known_and_not_learned_from(make) -> None:
    study = _study(make(seed=0), n_objectives=1)
    for number in range(30):
        study.tell(study.ask(SPACE), math.inf if number % 3 == 0 else float(number))
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 30


def test_constraints_set_by_the_trials_are_kept_more_often_as_the_search_goes_on(make) -> None:
    study = _study(make(seed=0))
    for _ in range(40):
        trial = study.ask(SPACE)
        values = _accuracy_and_latency(trial.params)
        trial.set_constraint("latency", values[1] - 12.0)
        trial.set_constraint("accuracy", 3.0 - values[0])
        study.tell(trial, values)
    kept = [all(value <= 0 for value in trial.constraints.values()) for trial in study.trials]
    assert sum(kept[20:]) > sum(kept[:20])


def test_equal_networks_come_once_where_the_study_says_what_counts(make) -> None:
    space = {name: SPACE[name] for name in ("depth", "kernel", "activation")}

    def canonical(params: dict[str, Any]) -> dict[str, Any]:
        return params if params["depth"] > 1 else {"depth": 1, "kernel": params["kernel"]}

    study = _study(make(seed=0, search_space=space, canonical=canonical), n_objectives=1)
    for _ in range(21):
        trial = study.ask()
        kernel, depth = trial.suggest_categorical("kernel", (3, 5, 7)), trial.suggest_int("depth", 1, 3)
        if depth > 1:
            trial.suggest_categorical("activation", ("relu", "hswish", None))
        study.tell(trial, float(kernel * depth))
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 21
    with pytest.raises(ValueError, match=r"canonical must give values of the search space.*'depth': 9"):
        _study(make(seed=0, search_space=space, canonical=lambda params: {"depth": 9})).ask(space)


def test_continuous_parameters_are_random_beside_the_others(make) -> None:
    space = {**SPACE, "weight_decay": FloatDistribution(1e-5, 1e-2, log=True)}
    study = _study(make(seed=0, search_space=space))
    asked = _play(study, 30, space)
    assert len({row[:5] for row in asked}) == 30
    decays = np.log10([row[5] for row in asked])
    assert len(np.unique(decays)) == 30 and decays.min() < -4 and decays.max() > -3


def test_enqueued_networks_are_evaluated_first_and_not_proposed(make) -> None:
    space = {name: SPACE[name] for name in ("depth", "kernel", "activation")}
    study = _study(make(seed=0, search_space=space), n_objectives=1)
    networks = [dict(zip(space, row, strict=True)) for row in itertools.product((1, 2, 3), (3, 5, 7), ("relu", None))]
    waiting, told = networks[:5], networks[5:]
    for params in waiting:
        study.enqueue_trial(params)
    for params in told:
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=float(params["depth"])))
    assert [study.ask(space).params for _ in waiting] == waiting
    new = [study.ask(space).params for _ in range(9)]
    assert {params["activation"] for params in new} == {"hswish"}
    assert len({tuple(params.values()) for params in new}) == 9


def test_threads_of_one_study_evaluate_different_networks(make) -> None:
    study = _study(make(seed=0, search_space=SPACE), n_objectives=1)

    def objective(trial: optuna.Trial) -> float:
        for name, distribution in SPACE.items():
            trial._suggest(name, distribution)
        return float(trial.params["width"])

    study.optimize(objective, n_trials=60, n_jobs=4)
    assert len({tuple(trial.params[name] for name in SPACE) for trial in study.trials}) == 60


def test_workers_of_one_storage_evaluate_different_networks(make) -> None:
    """Each worker has its own study and sampler, all with the same seed, and nothing but the storage in common."""
    storage = optuna.storages.InMemoryStorage()
    study = _study(make(), storage=storage, study_name="shared")

    def work() -> None:
        worker = make(seed=0, search_space=SPACE)
        _play(optuna.load_study(study_name="shared", storage=storage, sampler=worker), 12)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(study.trials) == len({tuple(trial.params[name] for name in SPACE) for trial in study.trials}) == 36


def test_what_a_worker_evaluates_can_be_read_from_a_file(make, tmp_path: Path) -> None:
    storages = [JournalStorage(JournalFileBackend(str(tmp_path / "study.log"))) for _ in range(2)]
    workers = [
        optuna.create_study(
            storage=storage,
            study_name="shared",
            directions=["maximize", "minimize"],
            sampler=make(seed=0, search_space=SPACE),
            load_if_exists=True,
        )
        for storage in storages
    ]
    asked = [worker.ask(SPACE).params for _ in range(4) for worker in workers]
    assert len({tuple(params.values()) for params in asked}) == 8


def test_a_network_that_another_worker_claims_at_the_same_moment_is_left_to_it(make, monkeypatch) -> None:
    study = _study(make(seed=0, search_space=SPACE))
    storage = study._storage
    write = storage.set_trial_system_attr
    stolen: list[dict[str, int]] = []

    def write_after_another_worker(trial_id: int, key: str, value: Any) -> None:
        if len(stolen) < 3:
            stolen.append(value)
            write(storage.create_new_trial(study._study_id), key, value)
        write(trial_id, key, value)

    monkeypatch.setattr(storage, "set_trial_system_attr", write_after_another_worker)
    trial = study.ask(SPACE)
    assert len({tuple(claim.values()) for claim in stolen}) == 3
    assert study.trials[trial.number].system_attrs["hanax:claim"] not in stolen


def test_a_sampler_can_be_copied_and_used_for_another_study(make) -> None:
    sampler = make(seed=0)
    first = _play(_study(sampler), 15)
    assert _play(_study(copy.deepcopy(sampler)), 15) == _play(_study(sampler), 15) == first


def test_a_searcher_of_a_space_with_conditions_sees_no_repeats(tiny) -> None:
    for name in SAMPLERS:
        searcher = OptunaSearcher(tiny.space, sampler=name, n_objectives=2, seed=0)
        search(tiny.problem(), searcher, 1000)
        assert len(searcher.study.trials) == tiny.space.size


def test_a_searcher_hands_features_to_the_predictors_alone(tiny) -> None:
    shapes = []

    def macs(codes: np.ndarray) -> np.ndarray:
        shapes.append(codes.shape[1])
        return tiny.evaluate(codes)["macs"][:, None]

    searcher = OptunaSearcher(tiny.space, sampler="linas", n_objectives=2, features=macs)
    search(tiny.problem(), searcher, 25)
    assert set(shapes) == {len(tiny.space.decisions)}
    with pytest.raises(ValueError, match="features: only sampler 'linas' uses it; got sampler 'tpe'"):
        OptunaSearcher(tiny.space, sampler="tpe", n_objectives=2, features=macs)


def _device(seed: int, like: np.ndarray | None = None) -> np.ndarray:
    """What each of 4 options of 8 decisions adds to loss and latency; like another device's, if one is given."""
    gains = np.random.default_rng(seed).gamma(2.0, size=(2, 8, 4)).cumsum(axis=2) * [[[-1.0]], [[1.0]]]
    return gains if like is None else 0.7 * like + 0.3 * gains


def _measure(study: optuna.Study, n_trials: int, device: np.ndarray | None) -> None:
    """Trials on `device`; noise if there is none."""
    rng = np.random.default_rng(0)
    space = {f"x{column}": CategoricalDistribution((0, 1, 2, 3)) for column in range(8)}
    for _ in range(n_trials):
        trial = study.ask(space)
        choice = [trial.params[name] for name in space]
        study.tell(trial, (rng.normal(size=2) if device is None else _values(device, choice)).tolist())


def _values(device: np.ndarray, choice: list[int]) -> np.ndarray:
    loss, latency = device[:, np.arange(8), choice].sum(axis=1)
    return np.array([loss * (1 + 0.15 * math.sin(choice[0] * choice[1] + choice[2])), latency])


def _volume(device: np.ndarray, n_trials: int, make_sampler: Callable[[int], optuna.samplers.BaseSampler]) -> float:
    """Hypervolume found on `device`, mean of two seeds; 1 is the box between its best and its worst values."""
    low, high = device.min(axis=2).sum(axis=1) * [1.15, 1.0], device.max(axis=2).sum(axis=1)
    volumes = []
    for seed in range(2):
        study = optuna.create_study(directions=["minimize"] * 2, sampler=make_sampler(seed))
        _measure(study, n_trials, device)
        found = np.array([trial.values for trial in study.get_trials(deepcopy=False)])
        volumes.append(hypervolume((found - low) / (high - low), np.ones(2)))
    return float(np.mean(volumes))


def test_better_networks_than_by_chance_are_found(make) -> None:
    by_chance = _volume(_device(0), 60, lambda seed: optuna.samplers.RandomSampler(seed=seed))
    assert _volume(_device(0), 60, lambda seed: make(seed=seed)) > by_chance + 0.05


def test_a_study_of_a_similar_device_helps_and_one_of_noise_does_no_harm() -> None:
    device = _device(0)
    similar, noise = (optuna.create_study(directions=["minimize"] * 2, sampler=EvolutionSampler(seed=9)) for _ in "ab")
    _measure(similar, 100, _device(1, like=device))
    _measure(noise, 100, None)
    cold, warm, misled = (
        _volume(device, 20, lambda seed, other=other: LinasSampler(seed=seed, warm_start=other))
        for other in (None, similar, noise)
    )
    assert warm > cold + 0.02
    assert misled > cold - 0.05


def test_a_study_is_related_where_it_ranks_networks_alike_or_the_other_way_round() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.normal(size=(20, 2))
    scores = np.column_stack([np.exp(outcomes[:, 0]), -outcomes[:, 1] + 0.3 * rng.normal(size=20), np.ones(20)])
    assert related(scores, outcomes).tolist() == [True, True, False]
    by_chance = [related(rng.normal(size=(20, 5)), rng.normal(size=(20, 3))) for _ in range(100)]
    assert 0.02 < np.mean(by_chance) < 0.08
    assert not related(scores[:2], outcomes[:2]).any() and not related(scores, np.zeros((20, 0))).any()


def test_a_warm_start_may_be_a_list_of_trials_and_must_know_the_parameters() -> None:
    other = _study(EvolutionSampler(seed=0))
    _play(other, 15)
    study = _study(LinasSampler(seed=0, warm_start=other.trials, search_space=SPACE))
    best = [trial.params for trial in other.best_trials]
    assert study.ask(SPACE).params in best
    with pytest.raises(ValueError, match=r"warm_start: none of 15 trials is complete with values of the parameters x"):
        _study(LinasSampler(warm_start=other, search_space={"x": IntDistribution(0, 3)})).ask(
            {"x": IntDistribution(0, 3)}
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"canonical": dict, "canonical_codes": np.asarray, "search_space": SPACE}, "say the same"),
        ({"canonical_codes": np.asarray}, "canonical_codes needs search_space"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="a population needs at least 2 networks; got 1"):
        EvolutionSampler(population=1)
    with pytest.raises(ValueError, match="mutation_probability is between 0 and 1; got 2"):
        EvolutionSampler(mutation_probability=2.0)
    with pytest.raises(ValueError, match="batch is at least 1; got 0"):
        LinasSampler(batch=0)
    with pytest.raises(ValueError, match="features needs search_space"):
        LinasSampler(features=np.asarray)


def test_columns_of_a_space_that_is_cut_down_are_refused(make) -> None:
    study = _study(make(search_space=SPACE, canonical_codes=np.asarray))
    with pytest.raises(ValueError, match="needs all of search_space; without it: activation, depth"):
        study.sampler.sample_relative(study, study.ask()._get_latest_trial(), {"width": SPACE["width"]})


def test_optuna_loads_with_the_first_sampler_and_not_before() -> None:
    program = (
        "import sys, hanax.searchers as searchers; print('optuna' in sys.modules, 'LinasSampler' in dir(searchers)); "
        "searchers.EvolutionSampler; print('optuna' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True", "True"]
    with pytest.raises(AttributeError, match=r"module 'hanax\.searchers' has no attribute 'LinusSampler'"):
        _ = hanax.searchers.LinusSampler


def test_the_example_prints_a_front(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "linas_sampler.py"))
    example["main"](n_trials=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("accuracy 0.") and " nodes: {'trees'" in line for line in lines)
