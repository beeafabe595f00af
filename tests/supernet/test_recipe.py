"""Recipes: which phases they stand for, what a step of each learns, and that one subnet can be trained by itself."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array
from training_script import training_script

from hanax.search_spaces import RESOLUTION, Arch, SearchSpace, mobilenet_v3
from hanax.supernet import (
    Augmentation,
    Params,
    Phase,
    Recipe,
    Split,
    _train,
    apply_block,
    forward_with_tape,
    init_params,
    load_supernet,
    n_steps,
    phases,
    prepare,
    train_subnet,
    train_supernet,
)
from hanax.supernet._distillation import alpha_divergence
from hanax.supernet._recipe import largest_within, sample_within, smallest_within
from hanax.supernet._single import fresh_subnet, inherited_subnet, trainable_weights
from hanax.supernet._step import Batch, Lesson, Objective, Teacher, descend, step_gradient, unflatten
from hanax.supernet._train import draw_lessons

OFA_SPACE = mobilenet_v3(resolutions=(128, 160, 224), n_classes=1000)
TINY_SETTINGS: dict[str, Any] = {
    "resolutions": (8,), "n_classes": 10, "image_channels": 1, "kernel_sizes": (3, 5), "expand_ratios": (2, 4),
    "depths": (1, 2), "stem_width": 8, "stem_stride": 1, "stage_widths": (8,), "stage_strides": (1,),
    "stage_activations": ("relu",), "stage_squeeze_excite": (True,), "head_width": 16, "feature_width": 16,
}  # fmt: skip
TINY = mobilenet_v3(**TINY_SETTINGS)
SHRINKING = Recipe(
    epochs=0.35, batch_size=32, learning_rate=1e-2, warmup_epochs=0.05, schedule="progressive_shrinking",
    phase_learning_rates=(1.0, 0.5, 0.5, 0.5, 0.5, 0.5), augmentation=Augmentation(pad_crop=1), watch_epochs=0.1,
)  # fmt: skip
WATCH = (64, 48)
N_STEPS = 12
PHASE_ENDS = {"largest": 4, "kernel": 6, "depth": 9, "width": 12}
SAVED = dataclasses.replace(SHRINKING, checkpoint_seconds=1e-6)
"""The same, saved after every step."""
SCRIPT = training_script(TINY_SETTINGS, SAVED, WATCH)


class Stopped(Exception):
    """A training that is interrupted."""


def stop_after(step: int) -> Any:
    def report(done: int, todo: int) -> None:
        if done == step:
            raise Stopped

    return report


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]


def assert_same_bits(first: Params, second: Params) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for found, expected in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# ---- phases ----------------------------------------------------------------------------------------------------


def offered(space: SearchSpace, phase: Phase) -> dict[str, set[tuple[int, ...]]]:
    """The options that a phase draws from, by the last part of the decisions' names."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for decision, indices in zip(space.decisions, phase.options, strict=True):
        values = tuple(decision.options[index] for index in indices)
        found.setdefault(decision.name.rpartition(".")[2], set()).add(values)
    return found


def test_progressive_shrinking_is_once_for_alls_schedule() -> None:
    recipe = Recipe(epochs=605.0, batch_size=10, learning_rate=2.6, warmup_epochs=5.0, schedule="progressive_shrinking")
    plan = phases(recipe, OFA_SPACE, 100)
    assert [phase.name for phase in plan] == ["largest", "kernel", "depth1", "depth2", "width1", "width2"]
    assert [phase.steps for phase in plan] == [1800, 1250, 250, 1250, 250, 1250]
    assert [phase.n_random for phase in plan[1:]] == [1, 2, 2, 4, 4]
    np.testing.assert_allclose([phase.learning_rate for phase in plan], [2.6, 0.96, 0.08, 0.24, 0.08, 0.24], rtol=0.01)
    assert [phase.teacher for phase in plan] == ["labels"] + ["frozen"] * 5
    assert [phase.sort_channels for phase in plan] == [None] * 4 + ["l1"] * 2
    assert [phase.kept_ratios for phase in plan] == [()] * 5 + [(4, 6)], "what is elastic already stays in order"
    everywhere = {RESOLUTION: {(128, 160, 224)}}
    expected = [
        {"kernel_size": {(7,)}, "depth": {(4,)}, "expand_ratio": {(6,)}},
        {"kernel_size": {(3, 5, 7)}, "depth": {(4,)}, "expand_ratio": {(6,)}},
        {"kernel_size": {(3, 5, 7)}, "depth": {(3, 4)}, "expand_ratio": {(6,)}},
        {"kernel_size": {(3, 5, 7)}, "depth": {(2, 3, 4)}, "expand_ratio": {(6,)}},
        {"kernel_size": {(3, 5, 7)}, "depth": {(2, 3, 4)}, "expand_ratio": {(4, 6)}},
        {"kernel_size": {(3, 5, 7)}, "depth": {(2, 3, 4)}, "expand_ratio": {(3, 4, 6)}},
    ]
    assert [offered(OFA_SPACE, phase) for phase in plan] == [everywhere | options for options in expected]


def test_a_dimension_with_two_options_has_one_phase_with_the_epochs_of_both_and_one_with_one_has_none() -> None:
    plan = phases(dataclasses.replace(SHRINKING, epochs=605.0, batch_size=10), TINY, 100)
    assert {phase.name: phase.steps / 10 for phase in plan} == {
        "largest": 180,
        "kernel": 125,
        "depth": 150,
        "width": 150,
    }
    plain = mobilenet_v3(**TINY_SETTINGS | {"kernel_sizes": (3,), "expand_ratios": (2,)})
    assert [phase.name for phase in phases(SHRINKING, plain, 1151)] == ["largest", "depth"]


def test_the_sandwich_is_one_phase_in_which_everything_is_elastic() -> None:
    (phase,) = phases(Recipe(epochs=3.0, batch_size=32, n_random_subnets=3), TINY, 100)
    assert (phase.draw, phase.n_random, phase.teacher, phase.steps) == ("sandwich", 3, "in_place", 9)
    assert [len(indices) for indices in phase.options] == TINY.option_counts.tolist()


@given(st.integers(6, 500), st.lists(st.floats(0.001, 100.0), min_size=6, max_size=6))
def test_phases_share_all_steps_and_each_has_one(steps: int, lengths: list[float]) -> None:
    recipe = Recipe(
        epochs=float(steps),
        batch_size=2,
        schedule="progressive_shrinking",
        phase_epochs=tuple(lengths),
        warmup_epochs=9.0,
    )
    plan = phases(recipe, OFA_SPACE, 2)
    assert min(phase.steps for phase in plan) >= 1
    assert [phase.first_step for phase in plan] == [0, *(phase.end for phase in plan[:-1])]
    assert plan[-1].end == n_steps(recipe, 2) == steps
    rates = [phase.learning_rate_at(step) for phase in plan for step in range(phase.first_step, phase.end)]
    assert min(rates) > 0.0


def test_fewer_steps_than_phases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.08 epochs are 3 steps, but progressive shrinking has 4 phases"):
        phases(dataclasses.replace(SHRINKING, epochs=0.08), TINY, 1151)


def test_the_learning_rate_rises_to_its_peak_and_falls_as_a_cosine() -> None:
    (phase,) = phases(Recipe(epochs=10.0, batch_size=10, learning_rate=2.0, warmup_epochs=0.4), TINY, 100)
    rates = [phase.learning_rate_at(step) for step in range(100)]
    np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0])
    np.testing.assert_allclose(rates[4 + 48], 1.0, rtol=1e-12)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))


def test_sampling_within_all_options_is_sampling_from_the_space() -> None:
    everything = tuple(tuple(range(count)) for count in OFA_SPACE.option_counts.tolist())
    found, expected = (draw(np.random.default_rng(3), 50) for draw in (
        lambda rng, n: sample_within(OFA_SPACE, rng, n, everything), OFA_SPACE.sample
    ))  # fmt: skip
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("index", range(6))
def test_subnets_of_a_phase_have_its_options_only_and_draw_a_resolution(index: int) -> None:
    recipe = Recipe(epochs=605.0, batch_size=10, schedule="progressive_shrinking")
    phase = phases(recipe, OFA_SPACE, 100)[index]
    lessons = [lesson for step in range(200) for lesson in draw_lessons(OFA_SPACE, recipe, phase, step, 0)]
    assert len(lessons) == 200 * max(1, phase.n_random)
    codes = OFA_SPACE.encode([lesson.arch for lesson in lessons])
    active = OFA_SPACE.active(codes)
    for column, indices in enumerate(phase.options):
        assert set(codes[active[:, column], column].tolist()) == set(indices)
    if index == 0:
        assert {lesson.role for lesson in lessons} == {"largest"}
        assert {lesson.objective.teacher_weight for lesson in lessons} == {0.0}
    else:
        assert {lesson.role for lesson in lessons} == {"random"}
        assert {(lesson.objective.label_weight, lesson.objective.teacher_weight) for lesson in lessons} == {(1.0, 1.0)}


def test_the_ends_of_options_are_the_largest_and_smallest_architecture() -> None:
    (phase,) = phases(Recipe(), OFA_SPACE, 1000)
    assert largest_within(OFA_SPACE, phase.options) == OFA_SPACE.largest
    assert smallest_within(OFA_SPACE, phase.options) == OFA_SPACE.smallest


# ---- one step --------------------------------------------------------------------------------------------------


def logits_of(params: Params, arch: Arch, x: Array) -> Array:
    for placed in TINY.blocks(arch):
        x, _ = apply_block(placed.slot.block, params[placed.slot.name], x, placed.choice, x.shape[-1])
    return x


@pytest.mark.parametrize("divergence", ["kl", "alpha"])
def test_a_frozen_teacher_adds_its_divergence_to_the_loss_on_the_labels(
    divergence: str, split: Split, random_params: Any
) -> None:
    params, teacher = random_params(TINY, 1), random_params(TINY, 2)
    archs = [TINY.smallest, TINY.arch({"stage1.block1.kernel_size": 3}), TINY.arch({"stage1.depth": 1})]
    labels = np.eye(10, dtype=np.float32)[split.y_train[:32]]
    x = prepare(split.x_train[:32], split.mean, split.std, 8)

    def expected_loss(params: Params) -> Array:
        predictions = jax.nn.softmax(logits_of(teacher, TINY.largest, x))
        total = jnp.zeros(())
        for arch in archs:
            logits = logits_of(params, arch, x)
            log_student = jax.nn.log_softmax(logits)
            total -= ((0.9 * labels + 0.01) * log_student).sum() / 32
            kl = -(predictions * log_student).sum() / 32
            total += 0.5 * (kl if divergence == "kl" else alpha_divergence(logits, predictions))
        return total

    expected, slope = jax.jit(jax.value_and_grad(expected_loss))(params)
    lessons = [Lesson("random", arch, Objective(1.0, 0.1, 0.5, divergence)) for arch in archs]
    batch = Batch(split.x_train[:32], labels)
    gradient, measures = step_gradient(
        TINY, params, lessons, batch, split.mean, split.std, teacher=Teacher(TINY, teacher)
    )
    np.testing.assert_allclose(sum(measures["loss"]), expected, rtol=1e-5)
    difference = np.linalg.norm(flat(unflatten(gradient, params)) - flat(slope))
    assert difference < 1e-4 * np.linalg.norm(flat(slope))


def test_an_error_in_a_step_is_raised_and_does_not_leave_a_thread_waiting(split: Split) -> None:
    params = init_params(TINY, 0)
    del params["head"]
    objective = Objective(1.0, 0.0, 1.0, "kl")
    lessons = [Lesson("largest", TINY.largest, objective), Lesson("smallest", TINY.smallest, objective)]
    batch = Batch(split.x_train[:32], np.eye(10, dtype=np.float32)[split.y_train[:32]])
    with pytest.raises(KeyError, match="head"):
        step_gradient(TINY, params, lessons, batch, split.mean, split.std)


def test_a_step_on_shards_is_the_mean_of_steps_on_each(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, updates = [], []

    def noted_gradient(*args: Any, **options: Any) -> Any:
        gradients.append(step_gradient(*args, **options))
        return gradients[-1]

    def noted_descend(optimizer: Any, params: Params, opt_state: Any, gradient: Any, losses: Any, *rest: Any) -> Any:
        updates.append((np.asarray(gradient["kernels"]), losses))
        return descend(optimizer, params, opt_state, gradient, losses, *rest)

    monkeypatch.setattr(_train, "step_gradient", noted_gradient)
    monkeypatch.setattr(_train, "descend", noted_descend)
    recipe = Recipe(epochs=0.03, batch_size=64, n_shards=2, n_random_subnets=1)
    train_supernet(TINY, split, recipe, tmp_path)
    assert (len(gradients), len(updates)) == (2, 1)
    (first, first_measures), (second, second_measures) = gradients
    assert not np.allclose(first["kernels"], second["kernels"]), "other images"
    np.testing.assert_allclose(updates[0][0], (first["kernels"] + second["kernels"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(updates[0][1], (first_measures["loss"] + second_measures["loss"]) / 2, rtol=1e-6)


# ---- progressive shrinking -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shrunk(split: Split, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """The folder and result of progressive shrinking that nothing disturbed."""
    directory = tmp_path_factory.mktemp("shrunk")
    return directory, train_supernet(TINY, split, SHRINKING, directory, watch=WATCH)


def test_the_log_says_how_phases_follow_each_other_and_how_subnets_fare(shrunk: tuple[Path, Params]) -> None:
    lines = metrics(shrunk[0])
    assert [line["step"] for line in lines] == list(range(1, N_STEPS + 1))
    assert [line["phase"] for line in lines] == ["largest"] * 4 + ["kernel"] * 2 + ["depth"] * 3 + ["width"] * 3
    assert "loss_largest" in lines[0]
    assert "loss_random" in lines[-1]
    watched = {line["step"]: line["watched"] for line in lines if "watched" in line}
    assert set(watched) == {4, 6, 8, 9, 12}, "every 4 steps and after each phase"
    for scores in watched.values():
        assert scores.keys() == {"smallest", "random1", "random2", "largest"}
        assert all(0.0 <= score["accuracy"] <= 1.0 and score["loss"] > 0.0 for score in scores.values())


@pytest.mark.parametrize("step", [4, 5])
def test_a_training_goes_on_exactly_from_inside_a_phase_and_between_two(
    step: int, split: Split, shrunk: tuple[Path, Params], tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train_supernet(TINY, split, SAVED, tmp_path, watch=WATCH, on_progress=stop_after(step))
    params = train_supernet(TINY, split, SHRINKING, tmp_path, watch=WATCH)
    assert metrics(tmp_path) == metrics(shrunk[0])
    assert_same_bits(params, shrunk[1])


@pytest.mark.slow
def test_shrinking_killed_in_the_second_phase_has_the_losses_of_one_that_was_not(
    shrunk: tuple[Path, Params], tmp_path: Path
) -> None:
    directory, cache = tmp_path / "killed", tmp_path / "cache"
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip

    def train(kill_after: int) -> list[int]:
        command = [sys.executable, "-W", "error", "-c", SCRIPT, str(directory), str(kill_after)]
        steps = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                steps.append(int(line))
                if steps[-1] == kill_after:
                    process.kill()  # SIGKILL
        assert process.returncode == (-9 if kill_after else 0)
        return steps

    assert train(kill_after=5) == [1, 2, 3, 4, 5]
    assert metrics(directory)[-1]["phase"] == "kernel"
    assert train(kill_after=0) == list(range(5, N_STEPS + 1)), "step 5 was not saved"
    assert metrics(directory) == metrics(shrunk[0])
    assert_same_bits(load_supernet(TINY, directory), shrunk[1])


def test_how_often_subnets_are_watched_does_not_change_the_weights(
    split: Split, shrunk: tuple[Path, Params], tmp_path: Path
) -> None:
    params = train_supernet(TINY, split, dataclasses.replace(SHRINKING, watch_epochs=0.0), tmp_path, watch=WATCH)
    assert_same_bits(params, shrunk[1])
    assert not any("watched" in line for line in metrics(tmp_path))


def test_images_to_watch_that_are_not_there_are_refused_before_training(split: Split, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_validation must lie between 1 and the 287 images"):
        train_supernet(TINY, split, SHRINKING, tmp_path / "new", watch=(64, 1000))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_channels_are_sorted_before_widths_become_elastic_and_the_optimizer_starts_anew(
    importance: Any, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(SHRINKING, sort_channels=importance)
    sorted_ones: list[tuple[Params, Params]] = []
    begun: list[Params] = []
    sort, begin = _train.sort_channels, _train.begin

    def noted_sort(space: SearchSpace, params: Params, *rest: Any, **options: Any) -> Params:
        result = sort(space, params, *rest, **options)
        sorted_ones.append(jax.tree.map(jnp.copy, (params, result)))
        return result

    def noted_begin(optimizer: Any, params: Params) -> Any:
        begun.append(jax.tree.map(jnp.copy, params))
        return begin(optimizer, params)

    monkeypatch.setattr(_train, "sort_channels", noted_sort)
    monkeypatch.setattr(_train, "begin", noted_begin)
    train_supernet(TINY, split, recipe, tmp_path)
    assert len(begun) == 4
    ((before, after),) = sorted_ones
    x = prepare(split.x_train[:32], split.mean, split.std, 8)
    for arch, is_same in ((TINY.largest, True), (TINY.smallest, False)):
        found, expected = (forward_with_tape(TINY, params, arch, x)[0] for params in (after, before))
        assert np.allclose(found, expected, atol=1e-5) == is_same
    assert_same_bits(begun[-1], after)


# ---- attentive sampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["attentive_best", "attentive_worst"])
def test_attentive_sampling_learns_from_its_losses_and_goes_on_exactly(
    sampling: Any, split: Split, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=0.35, batch_size=32, sampling=sampling, divergence="alpha")
    whole = train_supernet(TINY, split, recipe, tmp_path / "whole")
    with pytest.raises(Stopped):
        saved = dataclasses.replace(recipe, checkpoint_seconds=1e-6)
        train_supernet(TINY, split, saved, tmp_path / "stopped", on_progress=stop_after(7))
    assert_same_bits(train_supernet(TINY, split, recipe, tmp_path / "stopped"), whole)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    uniform = train_supernet(TINY, split, dataclasses.replace(recipe, sampling="uniform"), tmp_path / "uniform")
    assert not np.array_equal(flat(uniform), flat(whole))


# ---- one subnet ------------------------------------------------------------------------------------------------

SINGLE = Recipe(epochs=2.0, batch_size=32, learning_rate=3e-2, checkpoint_seconds=1.0)
ARCHS = [TINY.smallest, TINY.largest, TINY.arch({"stage1.block1.kernel_size": 3, "stage1.block2.expand_ratio": 2})]


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_an_inherited_subnet_has_the_same_function_with_identity_transforms(
    arch: Arch, split: Split, random_params: Any
) -> None:
    params = random_params(TINY, 3)
    x = prepare(split.x_train[:32], split.mean, split.std, 8)
    own = inherited_subnet(TINY, params, arch)
    found, expected = (forward_with_tape(TINY, weights, arch, x)[0] for weights in (own, params))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for placed in TINY.blocks(arch):
        for name, array in own[placed.slot.name].get("depthwise", {}).items():
            if name.startswith("transform"):
                np.testing.assert_array_equal(array, np.eye(len(array)))


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_the_weights_that_are_trained_are_those_with_a_gradient(arch: Arch, split: Split, random_params: Any) -> None:
    params = inherited_subnet(TINY, random_params(TINY, 4), arch)
    lesson = Lesson("subnet", arch, Objective(1.0, 0.0, 0.0, "kl"))
    batch = Batch(split.x_train[:32], np.eye(10, dtype=np.float32)[split.y_train[:32]])
    gradient, _ = step_gradient(TINY, params, [lesson], batch, split.mean, split.std)
    mask = trainable_weights(TINY, params, arch)
    for (path, slope), (_, trained) in zip(
        jax.tree_util.tree_leaves_with_path(unflatten(gradient, params)),
        jax.tree_util.tree_leaves_with_path(mask),
        strict=True,
    ):
        if path[-1].key.startswith("transform"):
            assert not np.any(trained)
        else:
            assert not np.any(np.asarray(slope)[np.asarray(trained) == 0.0]), path
    read = {op.name: op for op in TINY.graph(arch).operators if op.is_weighted}
    for name, op in read.items():
        slot, operator = next(
            (s.name, name.removeprefix(f"{s.name}.")) for s in TINY.slots if name.startswith(s.name + ".")
        )
        assert np.sum(mask[slot][operator]["kernel"]) == np.prod(op.kernel_shape), name


def test_a_fresh_subnet_is_drawn_for_its_own_fan_in() -> None:
    wide = mobilenet_v3(**TINY_SETTINGS | {"stem_width": 64, "stage_widths": (64,), "expand_ratios": (1, 4)})
    fresh, shared = (fresh_subnet(wide, wide.smallest, 0), init_params(wide, 0))
    block, whole = fresh["stage1.block1"], shared["stage1.block1"]
    np.testing.assert_allclose(block["project"]["kernel"], whole["project"]["kernel"] * 2.0, rtol=1e-6)  # of 4 x 64
    np.testing.assert_allclose(block["depthwise"]["kernel"], whole["depthwise"]["kernel"] * (5 / 3), rtol=1e-6)
    np.testing.assert_array_equal(block["expand"]["kernel"], whole["expand"]["kernel"])
    own = block["project"]["kernel"][:, :64]
    np.testing.assert_allclose(np.std(own), np.sqrt(2.0 / 64), rtol=0.05)
    assert_same_bits(fresh["head"], shared["head"])
    assert_same_bits(fresh_subnet(wide, wide.largest, 0), shared)


@pytest.mark.parametrize("is_inherited", [False, True])
def test_one_subnet_is_trained_alone_and_goes_on_exactly(
    is_inherited: bool, split: Split, shrunk: tuple[Path, Params], tmp_path: Path
) -> None:
    arch, inherit = ARCHS[-1], shrunk[1] if is_inherited else None
    options: dict[str, Any] = {"inherit": inherit, "teacher": inherit, "watch": WATCH}
    given = jax.tree.map(np.array, shrunk[1])
    params = train_subnet(TINY, arch, split, SINGLE, tmp_path / "whole", **options)
    assert_same_bits(shrunk[1], given)
    lines = metrics(tmp_path / "whole")
    accuracies = [line["accuracy_subnet"] for line in lines]
    assert np.mean(accuracies[-10:]) > np.mean(accuracies[:10]) + 0.2
    assert lines[-1]["watched"].keys() == {"subnet"}
    start = inherited_subnet(TINY, inherit, arch) if inherit else fresh_subnet(TINY, arch, SINGLE.seed)
    mask = trainable_weights(TINY, start, arch)
    for found, first, trained in zip(*map(jax.tree.leaves, (params, start, mask)), strict=True):
        np.testing.assert_array_equal(np.asarray(found)[trained == 0.0], np.asarray(first)[trained == 0.0])
    with pytest.raises(Stopped):
        train_subnet(TINY, arch, split, SINGLE, tmp_path / "stopped", **options, on_progress=stop_after(30))
    assert_same_bits(train_subnet(TINY, arch, split, SINGLE, tmp_path / "stopped", **options), params)
    assert metrics(tmp_path / "stopped") == lines


def test_a_folder_of_another_subnet_or_other_inherited_weights_is_refused(
    split: Split, random_params: Any, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(SINGLE, epochs=0.03)
    train_subnet(TINY, TINY.smallest, split, recipe, tmp_path)
    with pytest.raises(ValueError, match=f"differing in arch: arch was {TINY.smallest}, is {TINY.largest}"):
        train_subnet(TINY, TINY.largest, split, recipe, tmp_path)
    with pytest.raises(ValueError, match="differing in inherit: inherit was None, is "):
        train_subnet(TINY, TINY.smallest, split, recipe, tmp_path, inherit=random_params(TINY, 0))
    with pytest.raises(ValueError, match="holds checkpoints of another training"):
        train_supernet(TINY, split, recipe, tmp_path)
