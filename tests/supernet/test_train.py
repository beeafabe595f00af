"""Training: what a step adds up, what it leaves alone, and that neither a crash nor a NaN changes or ends it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from training_script import training_script

from hanax._files import locked
from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError, mobilenet_v3
from hanax.supernet import (
    Augmentation,
    DivergedError,
    InUseError,
    Params,
    Recipe,
    Split,
    _execution,
    _train,
    apply_block,
    load_supernet,
    n_steps,
    prepare,
    train_supernet,
)
from hanax.supernet._execution import Execution
from hanax.supernet._native import NativeStatus
from hanax.supernet._recipe import phases
from hanax.supernet._step import Batch, Lesson, Objective, flatten, make_optimizer, step_gradient, unflatten, update
from hanax.supernet._step import _judge as judge
from hanax.supernet._train import MOST_ROLLBACKS, draw_lessons

QUICK = {"xla_backend_optimization_level": 0}
TINY_SETTINGS: dict[str, Any] = {
    "resolutions": (8,), "n_classes": 10, "image_channels": 1, "kernel_sizes": (3, 5), "expand_ratios": (2,),
    "depths": (1, 2), "stem_width": 8, "stem_stride": 1, "stage_widths": (8,), "stage_strides": (1,),
    "stage_activations": ("relu",), "stage_squeeze_excite": (False,), "head_width": 16, "feature_width": 16,
}  # fmt: skip
TINY = mobilenet_v3(**TINY_SETTINGS)
RECIPE = Recipe(
    epochs=0.35, batch_size=32, learning_rate=1e-2, warmup_epochs=0.1, n_random_subnets=1,
    augmentation=Augmentation(pad_crop=1),
)  # fmt: skip
SAVED = dataclasses.replace(RECIPE, checkpoint_seconds=1e-6)
"""The same, saved after every step."""
N_STEPS = 12
SCRIPT = training_script(TINY_SETTINGS, SAVED)
RandomParams = Callable[[SearchSpace, int], Params]


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_speed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]


def assert_same_bits(first: Params, second: Params) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for found, expected in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.fixture(scope="module")
def finished(split: Split, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """The folder and result of a training that nothing disturbed."""
    directory = tmp_path_factory.mktemp("finished")
    return directory, train_supernet(TINY, split, RECIPE, directory, fingerprint="abc")


def test_a_folder_that_another_process_trains_in_is_left_alone(split: Split, tmp_path: Path) -> None:
    folder, lock = tmp_path / "supernet", tmp_path / "supernet" / ".training.lock"
    with locked(folder, lock), pytest.raises(InUseError, match=r"supernet is in use by process \d+"):
        train_supernet(TINY, split, RECIPE, folder)
    assert list(folder.iterdir()) == [lock]


# ---- crashes ---------------------------------------------------------------------------------------------------


def train_in_subprocess(directory: Path, cache: Path, kill_after: int | None) -> list[int]:
    """The steps that it reported. It is killed once it has done step `kill_after`, before that one is saved."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(directory), str(kill_after or 0)]
    errors = directory.with_suffix(".stderr")
    steps = []
    with errors.open("w") as stderr, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            steps.append(int(line))
            if steps[-1] == kill_after:
                process.kill()  # SIGKILL
    assert process.returncode == (0 if kill_after is None else -9), errors.read_text()
    return steps


@pytest.mark.slow
def test_a_killed_training_ends_bit_for_bit_like_one_that_was_not(
    finished: tuple[Path, Params], tmp_path: Path
) -> None:
    reference, params = finished
    directory, cache = tmp_path / "killed", tmp_path / "cache"
    assert train_in_subprocess(directory, cache, kill_after=7) == list(range(1, 8))
    assert metrics(directory)[-1]["step"] == 7
    with (directory / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "loss')  # as if killed while writing
    assert train_in_subprocess(directory, cache, kill_after=None) == list(range(7, N_STEPS + 1)), "7 was not saved"
    assert without_speed(metrics(directory)) == without_speed(metrics(reference))
    assert_same_bits(load_supernet(TINY, directory), params)


def test_a_finished_training_is_not_continued(split: Split, finished: tuple[Path, Params]) -> None:
    directory, params = finished
    log = (directory / "metrics.jsonl").read_bytes()
    calls: list[tuple[int, int]] = []

    def note(done: int, todo: int) -> None:
        calls.append((done, todo))

    again = train_supernet(TINY, split, RECIPE, directory, fingerprint="abc", on_progress=note, on_compiled=note)
    assert_same_bits(again, params)
    assert (directory / "metrics.jsonl").read_bytes() == log
    assert calls == []


def test_the_log_has_a_line_for_each_step(finished: tuple[Path, Params]) -> None:
    lines = metrics(finished[0])
    assert [line["step"] for line in lines] == list(range(1, N_STEPS + 1))
    assert lines[0].keys() == {
        "step", "epoch", "phase", "loss_largest", "loss_smallest", "loss_random", "accuracy_largest", "gradient_norm",
        "images_per_s", "rollbacks", "execution",
    }  # fmt: skip
    assert {"execution"} == lines[0].keys() - lines[1].keys()
    assert lines[-1]["epoch"] == round(N_STEPS * 32 / 1151, 4)


@pytest.mark.parametrize(("change", "message"), [
    ({"recipe": dataclasses.replace(RECIPE, learning_rate=0.5)}, r"differing in recipe: .*0\.01.*0\.5"),
    ({"space": mobilenet_v3(**TINY_SETTINGS | {"head_width": 24})}, f"in space: space was {TINY.fingerprint}"),
    ({"fingerprint": "def"}, "differing in data: data was abc, is def"),
])  # fmt: skip
def test_checkpoints_of_another_training_are_refused(
    change: dict[str, Any], message: str, split: Split, finished: tuple[Path, Params]
) -> None:
    arguments = {"space": TINY, "split": split, "recipe": RECIPE, "directory": finished[0], "fingerprint": "abc"}
    with pytest.raises(ValueError, match=message):
        train_supernet(**arguments | change)


def test_how_often_checkpoints_are_saved_does_not_matter(
    split: Split, finished: tuple[Path, Params], tmp_path: Path
) -> None:
    directory, params = finished
    for where in (directory, tmp_path):
        assert_same_bits(train_supernet(TINY, split, SAVED, where, fingerprint="abc"), params)


# ---- how subnets are run ---------------------------------------------------------------------------------------


def no_measurement(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("nothing is to be measured here")


def test_what_auto_stands_for_is_found_out_once_logged_and_kept(
    split: Split, finished: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Execution("masked", "it was faster", "bfloat16", 0.5, 0.25)
    monkeypatch.setattr(_train, "choose_execution", lambda *_, **__: chosen)

    def report(done: int, todo: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_supernet(TINY, split, SAVED, tmp_path, on_progress=report)
    assert metrics(tmp_path)[0]["execution"] == dataclasses.asdict(chosen)
    seen = []

    def noted(*rest: Any, execution: Execution, **options: Any) -> Any:
        seen.append(execution)
        return step_gradient(*rest, execution=execution, **options)

    monkeypatch.setattr(_train, "choose_execution", no_measurement)
    monkeypatch.setattr(_train, "step_gradient", noted)
    params = train_supernet(TINY, split, RECIPE, tmp_path)
    assert set(seen) == {chosen}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, N_STEPS + 1))
    for line, exact in zip(lines[:3], metrics(finished[0]), strict=False):
        assert line["gradient_norm"] != exact["gradient_norm"]
        assert line["gradient_norm"] == pytest.approx(exact["gradient_norm"], rel=0.05)


def test_a_cpu_measures_nothing_and_takes_the_chain_in_float32(
    split: Split, finished: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_execution, "step_seconds", no_measurement)
    explicit = dataclasses.replace(RECIPE, execution="chain", compute_dtype="float32")
    assert_same_bits(train_supernet(TINY, split, explicit, tmp_path, fingerprint="abc"), finished[1])
    kept = json.loads((finished[0] / "checkpoints" / "execution.json").read_text())
    assert (kept["name"], kept["dtype"], kept["chain_s"]) == ("chain", "float32", None)


@pytest.mark.parametrize(("field", "began", "wanted"), [
    ("execution", "chain", "masked"), ("compute_dtype", "float32", "bfloat16"),
])  # fmt: skip
def test_a_training_does_not_go_on_otherwise_than_it_began(
    field: str, began: str, wanted: str, split: Split, tmp_path: Path
) -> None:
    def report(done: int, todo: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_supernet(TINY, split, SAVED, tmp_path, on_progress=report)
    changed = dataclasses.replace(RECIPE, **{field: wanted})
    with pytest.raises(ValueError, match=f"{field} is to be {wanted}, but this training began with {began}; go on"):
        train_supernet(TINY, split, changed, tmp_path)


def test_a_training_that_goes_on_with_other_kernels_says_so(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def interrupt(done: int, todo: int) -> None:
        raise KeyboardInterrupt

    def go_on(suffix: str) -> None:
        monkeypatch.setattr(_train, "native_status", lambda: NativeStatus(bool(suffix), "", suffix))
        with pytest.raises(KeyboardInterrupt):
            train_supernet(TINY, split, SAVED, tmp_path, on_progress=interrupt)

    go_on("0123")
    go_on("0123")
    assert not [warning for warning in recwarn if "kernels" in str(warning.message)]
    with pytest.warns(
        UserWarning, match="began with the native kernels 0123 and goes on with the pure-XLA kernels: it"
    ):
        go_on("")


# ---- not a number ----------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, is_poisoned: Callable[[int], bool]) -> list[int]:
    """Compute those steps with a weight that is not a number; returns the (growing) list of steps computed."""
    calls: list[int] = []

    def poisoned(space: SearchSpace, params: Params, *rest: Any, **options: Any) -> Any:
        calls.append(len(calls) + 1)
        if is_poisoned(calls[-1]):
            conv = params["stem"]["conv"]
            params = params | {"stem": {"conv": conv | {"kernel": conv["kernel"].at[0, 0, 0, 0].set(jnp.nan)}}}
        return step_gradient(space, params, *rest, **options)

    monkeypatch.setattr(_train, "step_gradient", poisoned)
    return calls


@pytest.mark.parametrize(("checkpoint_seconds", "kept"), [(1e-6, 5), (1e6, 0)])
def test_a_step_that_is_no_number_sends_the_training_back_once(
    checkpoint_seconds: float, kept: int, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = poison(monkeypatch, lambda call: call == 6)
    recipe = dataclasses.replace(RECIPE, checkpoint_seconds=checkpoint_seconds)
    params = train_supernet(TINY, split, recipe, tmp_path)
    assert len(calls) == 6 + N_STEPS - kept
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, N_STEPS + 1)), "no step is logged twice"
    assert [line["rollbacks"] for line in lines] == [0] * kept + [1] * (N_STEPS - kept)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_training_that_never_recovers_ends_with_an_error(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = poison(monkeypatch, lambda call: call > 2)
    with pytest.raises(DivergedError, match=f"left the finite numbers {MOST_ROLLBACKS + 1} times, .* after step 2 "):
        train_supernet(TINY, split, SAVED, tmp_path)
    assert len(calls) == 2 + MOST_ROLLBACKS + 1


def test_only_the_ends_of_a_long_sandwich_recur() -> None:
    per_epoch = 10
    short, long = (
        phases(Recipe(epochs=steps / per_epoch, batch_size=16), TINY, 16 * per_epoch)[0] for steps in (999, 1000)
    )
    marked = [[lesson.recurs for lesson in draw_lessons(TINY, Recipe(), phase, 0, 0)] for phase in (short, long)]
    assert marked == [[False, False, False, False], [True, True, False, False]]


def test_other_random_numbers_follow_a_rollback() -> None:
    recipe = dataclasses.replace(RECIPE, n_random_subnets=8)
    (phase,) = phases(recipe, TINY, 1151)
    drawn = draw_lessons(TINY, recipe, phase, step=3, rollbacks=0)
    assert [lesson.role for lesson in drawn] == ["largest", "smallest"] + ["random"] * 8
    assert [lesson.arch for lesson in drawn[:2]] == [TINY.largest, TINY.smallest]
    assert drawn == draw_lessons(TINY, recipe, phase, step=3, rollbacks=0)
    assert drawn != draw_lessons(TINY, recipe, phase, step=3, rollbacks=1)
    assert drawn != draw_lessons(TINY, recipe, phase, step=4, rollbacks=0)


# ---- one update ------------------------------------------------------------------------------------------------


class Update:
    """One optimizer on the tiny supernet, with nothing donated."""

    def __init__(self, recipe: Recipe, params: Params) -> None:
        optimizer = make_optimizer(recipe)
        self.opt_state = optimizer.init(flatten(params))
        self._update = jax.jit(
            lambda params, state, gradient, *rest: update(optimizer, params, state, flatten(gradient), *rest),
            compiler_options=QUICK,
        )

    def __call__(self, params: Params, gradient: Params, loss: float = 1.0, scale: float = 1.0) -> tuple[Params, bool]:
        losses = jnp.array([0.5, loss, 0.5])
        params, opt_state, _, finite = self._update(params, self.opt_state, gradient, losses, scale * 1e-2)
        self.opt_state = opt_state
        return params, bool(finite)


def like(params: Params, value: float) -> Params:
    return jax.tree.map(lambda array: jnp.asarray(np.full_like(array, value)), params)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_kernels_and_nothing_else(optimizer: Any, random_params: RandomParams) -> None:
    before = random_params(TINY, 0)
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, weight_decay=0.5, momentum=0.0)
    after, finite = Update(recipe, before)(before, like(before, 0.0))
    assert finite
    shrunk = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        old = before[path[0].key][path[1].key][path[2].key]
        if path[-1].key == "kernel":
            np.testing.assert_allclose(leaf, old * (1.0 - 0.5 * 1e-2), rtol=1e-5)
            shrunk.add(path[0].key)
        else:
            np.testing.assert_array_equal(leaf, old, err_msg=str(path))
    assert shrunk == before.keys()
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(before)}
    assert names == {"kernel", "scale", "offset", "bias", "transform3"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_update_that_is_no_number_changes_nothing(optimizer: Any, random_params: RandomParams) -> None:
    params = random_params(TINY, 0)
    descend = Update(dataclasses.replace(RECIPE, optimizer=optimizer), params)
    state = jax.tree.map(np.asarray, descend.opt_state)
    for loss, gradient in [(np.nan, 0.1), (np.inf, 0.1), (1.0, np.nan), (1.0, np.inf)]:
        bad = like(params, 0.1)
        bad["head"]["classify"]["bias"] = bad["head"]["classify"]["bias"].at[3].set(gradient)
        after, finite = descend(params, bad, loss)
        assert not finite
        assert_same_bits(after, params)
        jax.tree.map(np.testing.assert_array_equal, descend.opt_state, state)
    assert descend(params, like(params, 0.1))[1]


def test_gradients_are_clipped_by_their_global_norm_and_steps_shrink_after_a_rollback(
    random_params: RandomParams,
) -> None:
    before = random_params(TINY, 0)
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=2.0)
    lengths = []
    for scale in (1.0, 0.25):
        after, _ = Update(recipe, before)(before, like(before, 100.0), scale=scale)
        moved = [np.ravel(new - old) for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)]
        lengths.append(np.linalg.norm(np.concatenate(moved)))
    np.testing.assert_allclose(lengths, [2.0 * 1e-2, 0.25 * 2.0 * 1e-2], rtol=1e-3)


# ---- the sandwich ----------------------------------------------------------------------------------------------


def sandwich(archs: list[Arch]) -> list[Lesson]:
    """The largest subnet on the labels, `archs` on its predictions."""
    on_labels, taught = Objective(1.0, 0.1, 0.0, "kl"), Objective(0.0, 0.0, 1.0, "kl")
    return [Lesson("largest", TINY.largest, on_labels), *(Lesson("random", arch, taught) for arch in archs)]


def test_a_step_teaches_the_largest_subnet_the_labels_and_the_others_its_predictions(
    split: Split, random_params: RandomParams
) -> None:
    params, archs = random_params(TINY, 1), [TINY.smallest, TINY.arch({"stage1.block2.kernel_size": 3})]
    labels = np.eye(10, dtype=np.float32)[split.y_train[:32]]
    batch = Batch(split.x_train[:32], labels)
    x = prepare(batch.images, split.mean, split.std, 8)

    def logits_of(params: Params, arch: Arch) -> Array:
        y = x
        for placed in TINY.blocks(arch):
            y, _ = apply_block(placed.slot.block, params[placed.slot.name], y, placed.choice, 32)
        return y

    def cross_entropy(logits: Array, targets: Array) -> Array:
        return -(targets * jax.nn.log_softmax(logits)).sum() / 32

    def expected_losses(params: Params) -> tuple[Array, list[Array]]:
        teacher = logits_of(params, TINY.largest)
        predictions = jax.lax.stop_gradient(jax.nn.softmax(teacher))
        losses = [cross_entropy(teacher, 0.9 * labels + 0.01)]
        losses += [cross_entropy(logits_of(params, arch), predictions) for arch in archs]
        return sum(losses[1:], losses[0]), losses

    expected, expected_parts = jax.jit(jax.grad(expected_losses, has_aux=True), compiler_options=QUICK)(params)
    gradient, measures = step_gradient(TINY, params, sandwich(archs), batch, split.mean, split.std)
    np.testing.assert_allclose(measures["loss"], expected_parts, rtol=1e-5)
    found, wanted = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (unflatten(gradient, params), expected)
    )
    assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_label_smoothing_has_its_known_loss_and_gradient() -> None:
    logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    labels = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    gradient, measures = judge(logits, labels, labels, Objective(1.0, 0.2, 0.0, "kl"))
    loss, label_loss, accuracy = measures
    expected = -(0.1 * np.log(0.25) + 0.9 * np.log(0.75) + np.log(0.5)) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.15 / 2, -0.15 / 2], [-0.4 / 2, 0.4 / 2]], rtol=1e-5)
    np.testing.assert_allclose(label_loss, -(np.log(0.75) + np.log(0.5)) / 2, rtol=1e-6)
    assert accuracy == 1.0


def test_the_loss_of_every_kind_of_subnet_falls_on_digits(trained: Any) -> None:
    lines = metrics(trained.directory)
    for loss in ("loss_largest", "loss_smallest", "loss_random"):
        first, last = (np.mean([line[loss] for line in part]) for part in (lines[:5], lines[-10:]))
        assert last < 0.5 * first, loss
    assert np.mean([line["accuracy_largest"] for line in lines[-10:]]) > 0.85


# ---- wrong input -----------------------------------------------------------------------------------------------


def test_a_supernet_is_loaded_as_it_was_trained(finished: tuple[Path, Params]) -> None:
    directory, params = finished
    assert_same_bits(load_supernet(TINY, directory), params)


def test_a_supernet_of_another_space_is_refused(finished: tuple[Path, Params], space: SearchSpace) -> None:
    with pytest.raises(SpaceMismatchError, match=f"{TINY.fingerprint}.*{space.fingerprint}"):
        load_supernet(space, finished[0])


def test_a_folder_without_a_supernet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"no supernet checkpoint in {tmp_path / 'checkpoints'}")):
        load_supernet(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_more_images_than_there_are_is_refused(split: Split, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=2000)
    with pytest.raises(ValueError, match="batch_size 2000 is more than the 1151 training images there are"):
        train_supernet(TINY, split, recipe, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_last_smaller_batch_of_an_epoch_is_dropped() -> None:
    assert n_steps(dataclasses.replace(RECIPE, epochs=3.0, batch_size=30), 100) == 9
    assert n_steps(RECIPE, 1151) == N_STEPS
    assert n_steps(dataclasses.replace(RECIPE, epochs=1e-3), 1151) == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"epochs": 0.0}, "epochs must be above 0"),
    ({"learning_rate": -1.0}, "learning_rate must be above 0"),
    ({"learning_rate": np.nan}, "learning_rate must be above 0"),
    ({"clip_norm": 0.0}, "clip_norm must be above 0"),
    ({"batch_size": 1}, "batch_size must be at least 2, for batch norm; got 1"),
    ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\); got 1"),
    ({"weight_decay": -0.1}, "weight_decay must not be negative"),
    ({"n_random_subnets": -1}, "n_random_subnets must not be negative"),
    ({"watch_epochs": -1.0}, "watch_epochs must not be negative"),
    ({"batch_size": 30, "n_shards": 4}, "n_shards must divide batch_size 30 .* got 4"),
    ({"batch_size": 4, "n_shards": 4}, "parts of at least 2 images, for batch norm; got 4"),
    ({"phase_subnets": (1, 1, 2)}, "phase_subnets needs a value above 0 for each of the 6 phases .* got .1, 1, 2"),
    ({"phase_epochs": (1.0, 1.0, 1.0, 1.0, 0.0, 1.0)}, "phase_epochs needs a value above 0"),
    (
        {"sampling": "attentive_best", "schedule": "progressive_shrinking"},
        "sampling attentive_best needs schedule sandwich: .* which progressive_shrinking does not draw",
    ),
])  # fmt: skip
def test_a_recipe_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **change)
