"""Quantization-aware training: who teaches, what is learned, and that it goes on exactly and compiles once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hanax.search_spaces import (
    Arch,
    SearchSpace,
    SpaceMismatchError,
    float_arch,
    float_space,
    mobilenet_v3,
    precision_columns,
    quantized_space,
    with_precision,
)
from hanax.supernet import (
    Augmentation,
    Evaluator,
    Params,
    Recipe,
    Split,
    _chain,
    _train,
    forward_with_tape,
    load_supernet,
    phases,
    prepare,
    supernet_fingerprint,
    train_quantized,
    train_subnet,
    train_supernet,
    with_steps,
)
from hanax.supernet._distillation import cross_entropy
from hanax.supernet._execution import EXECUTIONS
from hanax.supernet._recipe import quantized_phase
from hanax.supernet._single import trainable_weights
from hanax.supernet._step import Batch, Lesson, Objective, step_gradient, unflatten
from hanax.supernet._train import draw_lessons

FLOAT = mobilenet_v3(
    resolutions=(8,), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2,), depths=(1,),
    stem_width=8, stem_stride=1, stage_widths=(8,), stage_strides=(1,), stage_activations=("relu",),
    stage_squeeze_excite=(False,), head_width=16, feature_width=16,
)  # fmt: skip
SPACE = quantized_space(FLOAT, weights=("int2", "int8"), activations=("int2", "int8"))
RECIPE = Recipe(
    epochs=2.0, batch_size=32, learning_rate=5e-3, warmup_epochs=0.1, n_random_subnets=1,
    augmentation=Augmentation(pad_crop=1), watch_epochs=0.0, checkpoint_seconds=3600.0,
)  # fmt: skip
N_STEPS = 70
NAME = "stage1.block1"


class Stopped(BaseException):
    """What ends a training in these tests: nothing catches it."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A quantization-aware training that nothing disturbed.

    Attributes:
        given: The float weights that it began with.
        caches: Number of executables of the chain after every step.
    """

    given: Params
    params: Params
    directory: Path
    caches: list[int]


def assert_same_bits(first: Params, second: Params) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for found, expected in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]


def n_executables() -> int:
    functions = (_chain._forward, _chain._backward, _chain._evaluate, _chain._forward_whole)
    return sum(function._cache_size() for function in functions)


@pytest.fixture(scope="module")
def float_params(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Params:
    recipe = Recipe(epochs=6.0, batch_size=32, learning_rate=1e-2, n_random_subnets=1, watch_epochs=0.0)
    return train_supernet(FLOAT, split, recipe, tmp_path_factory.mktemp("float"))


@pytest.fixture(scope="module")
def finished(split: Split, float_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("quantized")
    given = jax.tree.map(np.array, float_params)
    caches: list[int] = []
    params = train_quantized(
        SPACE, float_params, split, RECIPE, directory, on_progress=lambda *_: caches.append(n_executables())
    )
    assert_same_bits(float_params, given)
    return Finished(float_params, params, directory, caches)


def accuracies(space: SearchSpace, params: Params, split: Split, archs: list[Arch]) -> np.ndarray:
    evaluator = Evaluator(space, params, split, n_calibration=256, n_validation=len(split.x_validation))
    return evaluator.accuracies(archs)


# ---- what is learned ------------------------------------------------------------------------------------------


def test_networks_of_few_bits_are_better_than_without_training(split: Split, finished: Finished) -> None:
    codes = FLOAT.encode([FLOAT.largest, FLOAT.smallest])
    low = SPACE.decode(with_precision(SPACE, codes, "int2", "int2"))
    before = accuracies(SPACE, with_steps(SPACE, finished.given), split, low)
    after = accuracies(SPACE, finished.params, split, low)
    assert (after > before + 0.05).all(), (before, after)


def test_the_loss_of_the_narrowest_formats_falls(finished: Finished) -> None:
    lines = metrics(finished.directory)
    assert len(lines) == N_STEPS
    losses = [line["loss_smallest"] for line in lines if "loss_smallest" in line]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.2


def test_steps_are_learned_for_the_formats_there_are(finished: Finished) -> None:
    for name, steps in finished.params[NAME]["steps"].items():
        assert np.flatnonzero(steps).tolist() == [0, 6], name  # of 2 and of 8 bits


def test_a_policys_steps_and_no_others_have_gradients(split: Split, finished: Finished) -> None:
    arch = SPACE.decode(with_precision(SPACE, FLOAT.encode([FLOAT.largest]), "int2", "int8"))[0]
    batch = Batch(split.x_train[:32], np.eye(10, dtype=np.float32)[split.y_train[:32]])
    lesson = Lesson("subnet", arch, Objective(1.0, 0.0, 0.0, "kl"))
    gradient, _ = step_gradient(SPACE, finished.params, [lesson], batch, split.mean, split.std)
    slopes, read = unflatten(gradient, finished.params), trainable_weights(SPACE, finished.params, arch)
    for slot in SPACE.slots:
        for name, slope in slopes[slot.name]["steps"].items():
            is_end = slot in (SPACE.slots[0], SPACE.slots[-1])
            bits = 2 if not is_end and name.endswith(".kernel") else 8
            assert np.flatnonzero(slope).tolist() == [bits - 2], (slot.name, name)
            assert np.flatnonzero(read[slot.name]["steps"][name]).tolist() == [bits - 2], (slot.name, name)


def test_all_policies_share_what_is_compiled_for_the_first_step(finished: Finished) -> None:
    assert len(finished.caches) == N_STEPS
    assert finished.caches[0] == finished.caches[-1]


# ---- the subnets of a step, and their teacher -----------------------------------------------------------------


def test_a_step_takes_both_ends_of_architectures_and_formats_and_random_policies() -> None:
    phase = quantized_phase(RECIPE, SPACE, 1000)
    drawn = [draw_lessons(SPACE, RECIPE, phase, step, 0) for step in range(60)]
    small_in_int8 = SPACE.decode(with_precision(SPACE, FLOAT.encode([FLOAT.smallest]), "int8", "int8"))[0]
    n_widest = {"smallest": 0, "random": 0}
    for lessons in drawn:
        assert lessons[0].role == "largest" and lessons[0].arch == SPACE.largest
        is_widest = [lesson.role.endswith("_widest") for lesson in lessons]
        assert [lesson.role.removesuffix("_widest") for lesson in lessons] == ["largest", "smallest", "random"]
        assert lessons[1].arch == (small_in_int8 if is_widest[1] else SPACE.smallest)
        if is_widest[2]:
            assert np.all(SPACE.encode([lessons[2].arch])[:, precision_columns(SPACE)] == 1)
        n_widest = {role: n + is_widest[at] for at, (role, n) in enumerate(n_widest.items(), 1)}
        assert all(lesson.objective.teacher_weight == 1.0 for lesson in lessons)
    assert all(15 < n < 45 for n in n_widest.values()), "about half are in the widest formats throughout"
    random = [lessons[2].arch for lessons in drawn if lessons[2].role == "random"]
    codes = SPACE.encode(random)[:, precision_columns(SPACE)]
    assert (codes.min(axis=0) == 0).all() and (codes.max(axis=0) == 1).all(), "every format is drawn everywhere"


def test_the_teacher_is_the_float_net_as_it_was_given(
    split: Split, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[tuple[float, float, float]] = []

    def checked(
        space: SearchSpace, params: Params, lessons: list[Lesson], batch: Batch, *rest: Any, **options: Any
    ) -> Any:
        gradient, measures = step_gradient(space, params, lessons, batch, *rest, **options)
        x = prepare(batch.images, split.mean, split.std, 8)

        student, _ = forward_with_tape(space, params, lessons[0].arch, x)
        targets = jnp.asarray(0.9 * batch.labels + 0.01)
        teachers = (
            EXECUTIONS["chain"].logits(FLOAT, finished.given, FLOAT.largest, x),
            forward_with_tape(space, with_steps(space, finished.given), space.smallest, x)[0],
        )
        own = float(cross_entropy(student, targets))
        losses.append(
            (measures["loss"][0], *(own + float(cross_entropy(student, jax.nn.softmax(t))) for t in teachers))
        )
        if len(losses) == 3:
            raise Stopped
        return gradient, measures

    monkeypatch.setattr(_train, "step_gradient", checked)
    with pytest.raises(Stopped):
        train_quantized(SPACE, finished.given, split, RECIPE, tmp_path)
    found, by_float, by_quantized = np.array(losses).T
    np.testing.assert_allclose(found, by_float, rtol=1e-4)
    assert (np.abs(found - by_quantized) > 0.02).all()


# ---- going on ---------------------------------------------------------------------------------------------------


def test_a_stopped_training_ends_bit_for_bit_like_one_that_was_not(
    split: Split, finished: Finished, tmp_path: Path
) -> None:
    saved = dataclasses.replace(RECIPE, checkpoint_seconds=1e-6)

    def stop(done: int, todo: int) -> None:
        if done == 41:  # before this step is saved
            raise Stopped

    with pytest.raises(Stopped):
        train_quantized(SPACE, finished.given, split, saved, tmp_path, on_progress=stop)
    params = train_quantized(SPACE, finished.given, split, RECIPE, tmp_path)
    assert_same_bits(params, finished.params)
    assert_same_bits(load_supernet(SPACE, tmp_path), params)
    assert metrics(tmp_path) == metrics(finished.directory)


def test_a_training_does_not_go_on_from_another_float_net_or_in_other_formats(split: Split, finished: Finished) -> None:
    other = jax.tree.map(lambda array: array + 1.0, finished.given)
    was, given = supernet_fingerprint(finished.given), supernet_fingerprint(other)
    with pytest.raises(ValueError, match=f"differing in float_weights: float_weights was {was}, is {given}"):
        train_quantized(SPACE, other, split, RECIPE, finished.directory)
    int8 = quantized_space(FLOAT, weights=("int8",), activations=("int8",))
    with pytest.raises(ValueError, match="differing in space: space was"):
        train_quantized(int8, finished.given, split, RECIPE, finished.directory)
    with pytest.raises(SpaceMismatchError):
        load_supernet(int8, finished.directory)


# ---- one subnet, and what is refused --------------------------------------------------------------------------


def test_one_policy_is_trained_alone_with_the_steps_of_its_own_formats(
    split: Split, finished: Finished, tmp_path: Path
) -> None:
    arch = SPACE.decode(with_precision(SPACE, FLOAT.encode([FLOAT.largest]), "int2", "int8"))[0]
    recipe = dataclasses.replace(RECIPE, epochs=0.2)
    params = train_subnet(SPACE, arch, split, recipe, tmp_path, inherit=finished.given, teacher=finished.given)
    assert np.flatnonzero(params[NAME]["steps"]["project.kernel"]).tolist() == [0]
    assert np.flatnonzero(params[NAME]["steps"]["input"]).tolist() == [6]
    assert float_arch(SPACE, arch) == FLOAT.largest


@pytest.mark.parametrize(
    ("train", "space", "change", "message"),
    [
        (train_quantized, FLOAT, {}, "no number formats to train in; make a space that has by quantized_space"),
        (train_supernet, SPACE, {"schedule": "progressive_shrinking"}, "no phase for the number formats"),
        (train_supernet, SPACE, {"sampling": "attentive_best"}, "subnets of equal MACs.* use sampling uniform"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    train: Callable[..., Params], space: SearchSpace, change: dict[str, Any], message: str, split: Split,
    float_params: Params, tmp_path: Path,
) -> None:  # fmt: skip
    weights = (float_params,) if train is train_quantized else ()
    with pytest.raises(ValueError, match=message):
        train(space, *weights, split, dataclasses.replace(RECIPE, **change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_quantized_space_is_trained_from_nothing_by_the_sandwich() -> None:
    (phase,) = phases(RECIPE, SPACE, 1000)
    assert phase.teacher == "in_place" and float_space(SPACE) == FLOAT
