"""Training the supernet, or one subnet of it, by the phases of a recipe; resumable to the bit.

Everything random in step `t` is drawn from (seed, restart, `t`) alone, so a run that is killed and started again goes
on from its last checkpoint exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int32

from hanax._files import locked, read_lines, write_atomically
from hanax.search_spaces import RESOLUTION, Arch, SearchSpace, float_space, precision_columns
from hanax.supernet._attentive import (
    AttentivePrior,
    Direction,
    LossEstimator,
    draw_attentive,
    new_estimator,
    update_estimator,
)
from hanax.supernet._augment import augment, one_hot
from hanax.supernet._chain import Params, Progress, compile_chain, init_params, prepare, with_steps
from hanax.supernet._checkpoint import Checkpoints
from hanax.supernet._evaluate import Evaluator, supernet_fingerprint
from hanax.supernet._execution import Execution, choose_execution
from hanax.supernet._images import Split
from hanax.supernet._native import native_status
from hanax.supernet._parallel import Parallel, mean_in_order
from hanax.supernet._precision import compute_dtype_for
from hanax.supernet._recipe import (
    SINGLE_PHASE,
    Phase,
    Recipe,
    largest_within,
    phases,
    quantized_phase,
    sample_within,
    single_phase,
    smallest_within,
    steps_per_epoch,
)
from hanax.supernet._single import fresh_subnet, inherited_subnet, trainable_weights
from hanax.supernet._sort_channels import l1_importance, sort_channels, taylor_importance
from hanax.supernet._step import (
    Batch,
    Flat,
    Lesson,
    Measures,
    Objective,
    Teacher,
    begin,
    descend,
    flatten,
    make_optimizer,
    step_gradient,
)

MOST_ROLLBACKS = 5
LEAST_RECURRENCES = 1000
"""Steps that a subnet must be in to have executables of its own: they take some seconds to compile."""
WIDEST_SHARE = 0.5
"""Of the subnets of a quantized phase other than the largest, those that are in the widest formats throughout."""
METRICS_FILE = "metrics.jsonl"
NOT_IDENTIFYING = ("checkpoint_seconds", "watch_epochs", "execution", "compute_dtype")
"""Fields of a recipe that may change before a training goes on, or of which the outcome is kept beside its identity."""
TAYLOR_BATCHES = 8
"""Batches that Taylor importance is measured on."""

State = dict[str, Any]
"""All that the next step depends on.

``params``, ``opt_state``, ``step`` (steps done), ``phase`` (index of the phase that the optimizer state is of),
``rollbacks``; ``teacher`` (weights) where a phase has a frozen one, ``estimator`` where sampling is attentive.
"""

Watch = tuple[int, int]
"""Numbers of calibration and of validation images that subnets are scored on for the log."""


class DivergedError(RuntimeError):
    """Training produced non-finite values again and again."""


def train_supernet(
    space: SearchSpace,
    split: Split,
    recipe: Recipe,
    directory: Path,
    *,
    fingerprint: str = "",
    watch: Watch | None = None,
    parallel: Parallel | None = None,
    on_progress: Progress | None = None,
    on_compiled: Progress | None = None,
) -> Params:
    """Weights of the supernet of `space` after `recipe`; goes on from the last checkpoint in `directory`, if any.

    `hanax.supernet.phases` says what the schedules of a recipe do, and which papers they come from. Each phase starts
    with a fresh optimizer state. Gradients are averaged over the shards of a batch; a batch norm sees one of them.

    A step whose loss or gradient is not finite is undone: training goes back to the last checkpoint with half the
    learning rate and other random numbers, at most `MOST_ROLLBACKS` times.

    Writes checkpoints and ``metrics.jsonl`` (one line per step; the first one says how subnets are run) into
    `directory`. What ``auto`` stands for in the recipe is found out when the training begins, and kept to its end.

    Args:
        fingerprint: Identifies the data; a checkpoint of another space, recipe or data is refused.
        watch: Score the smallest, the largest and two fixed random subnets every `Recipe.watch_epochs` and after each
            phase, on so many calibration and validation images, and note it in the log's line of that step; not at
            all, if None.
        parallel: The processes and devices that share the work; one of each, if None.
        on_progress: Called with the steps done and to do.
        on_compiled: Called with the executables compiled and to compile.

    Raises:
        ValueError: The checkpoint in `directory` belongs to another training (names what differs), or to one that runs
            subnets otherwise than the recipe asks for; there are too few images for the recipe or to watch; or a
            quantized space is to be trained by progressive shrinking or with attentive sampling.
        InUseError: Another process trains in `directory`.
        DivergedError: Too many rollbacks.
    """
    plan = phases(recipe, space, len(split.x_train))
    training = _Training(
        space=space,
        split=split,
        recipe=recipe,
        phases=plan,
        identity=_identity(space, split, recipe, fingerprint),
        parallel=parallel or Parallel(),
        watch=watch,
        watched=_watched(space, recipe),
        priors=tuple(_prior(space, recipe, phase) for phase in plan),
    )
    return training.run(
        init_params(space, recipe.seed),
        directory,
        on_progress=on_progress,
        before=lambda params, execution: _compile(space, params, recipe, plan, execution, on_compiled),
    )


def _compile(
    space: SearchSpace,
    params: Params,
    recipe: Recipe,
    plan: tuple[Phase, ...],
    execution: Execution,
    on_compiled: Progress | None,
) -> None:
    """Compile what the chain needs now, in parallel; the masked net is one executable per resolution."""
    if execution.name == "chain":
        compile_chain(
            space,
            params,
            recipe.batch_size // recipe.n_shards,
            recurring=list(dict.fromkeys(arch for phase in plan for arch in recurring_subnets(space, phase))),
            dtype=execution.dtype,
            on_progress=on_compiled,
        )


def recurring_subnets(space: SearchSpace, phase: Phase) -> tuple[Arch, ...]:
    """The subnets that are in every step of `phase`, if they are worth executables of their own."""
    # A whole quantized network takes minutes to compile, which no phase of its training makes up for.
    if phase.steps < LEAST_RECURRENCES or any(slot.precision is not None for slot in space.slots):
        return ()
    if phase.draw == "sandwich":
        return (largest_within(space, phase.options), smallest_within(space, phase.options))
    resolutions = phase.options[space.column(RESOLUTION)]
    return (largest_within(space, phase.options),) if phase.draw == "largest" and len(resolutions) == 1 else ()


def train_quantized(
    space: SearchSpace,
    params: Params,
    split: Split,
    recipe: Recipe,
    directory: Path,
    *,
    fingerprint: str = "",
    watch: Watch | None = None,
    parallel: Parallel | None = None,
    on_progress: Progress | None = None,
    on_compiled: Progress | None = None,
) -> Params:
    """Weights of the supernet of a quantized `space`, trained on from the float ones `params`; resumable as all are.

    A short phase of quantization-aware training, for all architectures and policies at once (quantized-for-all, as
    OQA, Shen et al., 2021, arXiv:2010.04354, and BatchQuant, Bai et al., 2021, arXiv:2105.08952): each step takes the
    largest subnet in the widest formats, the smallest in the narrowest, and random ones in random formats; by chance,
    half of the others are in the widest formats throughout, too, which most runtimes take and which random formats
    never are. All learn from the labels and from the largest subnet of `params` in `float_space`, frozen and not
    quantized. With one format each for weights and activations it is the usual quantization-aware training of a
    supernet.

    Epochs, batches, augmentation, optimizer, label smoothing, distillation weight and the number of random subnets are
    the recipe's; its schedule and its sampling are not used. Suitable are a fifth of the epochs of the float training
    and a tenth of its learning rate, a short warmup, and no other augmentation. Learned steps, like batch norms, are
    not decayed. Quantized blocks compute in float32; a `compute_dtype` of bfloat16 is for the teacher.

    Args:
        space: From `quantized_space`.
        params: Weights of a supernet of its `float_space`; learned steps are added where there are none.
        fingerprint: As for `train_supernet`, as are the other arguments. A checkpoint that began with other `params` is
            refused, too.

    Raises:
        ValueError: `space` is not quantized; the checkpoint in `directory` belongs to another training (names what
            differs), or to one that runs subnets otherwise than the recipe asks for; or there are too few images for
            the recipe or to watch.
        InUseError: Another process trains in `directory`.
        DivergedError: Too many rollbacks.
    """
    if not _is_quantized(space):
        raise ValueError(f"{space.name} has no number formats to train in; make a space that has by quantized_space")
    plan = (quantized_phase(recipe, space, len(split.x_train)),)
    training = _Training(
        space=space,
        split=split,
        recipe=recipe,
        phases=plan,
        identity=_identity(space, split, recipe, fingerprint) | {"float_weights": supernet_fingerprint(params)},
        parallel=parallel or Parallel(),
        watch=watch,
        watched=_watched(space, recipe),
        priors=(None,),
        teacher=Teacher(float_space(space), params),
    )
    return training.run(
        _copy(with_steps(space, params)),
        directory,
        on_progress=on_progress,
        before=lambda params, execution: _compile(space, params, recipe, plan, execution, on_compiled),
    )


def train_subnet(
    space: SearchSpace,
    arch: Arch,
    split: Split,
    recipe: Recipe,
    directory: Path,
    *,
    inherit: Params | None = None,
    teacher: Params | None = None,
    fingerprint: str = "",
    watch: Watch | None = None,
    parallel: Parallel | None = None,
    on_progress: Progress | None = None,
) -> Params:
    """Weights of `arch` alone after `recipe`, in the arrays of the supernet; goes on from the last checkpoint, if any.

    Score or extract them as those of a supernet, but `arch` only: other subnets are not trained. Epochs, batches,
    augmentation, optimizer, learning rate and label smoothing are the recipe's; its schedule is not used. Weights that
    `arch` does not read stay as they are, and so do kernel transforms: a smaller kernel is trained as itself.

    Args:
        inherit: Start from these weights of a supernet (fine-tuning), whose function of `arch` is the same as before;
            from fresh ones that suit `arch` alone, if None. Those of a float supernet serve a quantized space, too.
        teacher: Weights of a supernet whose largest subnet, not quantized, teaches beside the labels; nobody does, if
            None.
        fingerprint: As for `train_supernet`, as are the other arguments; the subnet that is watched is `arch`.

    Raises:
        ValueError: The checkpoint in `directory` belongs to another training (names what differs), or to one that runs
            subnets otherwise than the recipe asks for.
        InUseError: Another process trains in `directory`.
        DivergedError: Too many rollbacks.
    """
    phase = single_phase(recipe, space, arch, len(split.x_train), is_distilled=teacher is not None)
    identity = _identity(space, split, recipe, fingerprint) | {
        "arch": str(arch),
        "inherit": None if inherit is None else supernet_fingerprint(inherit),
        "teacher": None if teacher is None else supernet_fingerprint(teacher),
    }
    start = (
        fresh_subnet(space, arch, recipe.seed)
        if inherit is None
        else _copy(inherited_subnet(space, with_steps(space, inherit), arch))
    )
    training = _Training(
        space=space,
        split=split,
        recipe=recipe,
        phases=(phase,),
        identity=identity,
        parallel=parallel or Parallel(),
        watch=watch,
        watched={"subnet": arch},
        priors=(None,),
        teacher=None if teacher is None else Teacher(float_space(space), teacher),
        trainable=flatten(trainable_weights(space, start, arch)),
    )
    return training.run(start, directory, on_progress=on_progress)


def load_supernet(space: SearchSpace, directory: Path) -> Params:
    """Weights of the last checkpoint that a training wrote into `directory`: of a supernet, or of a subnet alone.

    Raises:
        FileNotFoundError: There is none.
        SpaceMismatchError: It belongs to another space.
    """
    with Checkpoints(directory / "checkpoints", None) as checkpoints:
        space.require(checkpoints.identity["space"], f"supernet {directory}")
        params: Params = checkpoints.restore_params(init_params(space, 0))
        return params


def _identity(space: SearchSpace, split: Split, recipe: Recipe, fingerprint: str) -> dict[str, Any]:
    """What must agree for a training to go on: all that decides the weights."""
    return {
        "space": space.fingerprint,
        "data": fingerprint,
        "n_images": len(split.x_train),
        "recipe": {name: value for name, value in dataclasses.asdict(recipe).items() if name not in NOT_IDENTIFYING},
    }


def _is_quantized(space: SearchSpace) -> bool:
    return all(slot.precision is not None for slot in space.slots)


def _watched(space: SearchSpace, recipe: Recipe) -> dict[str, Arch]:
    """The subnets to watch, by name: the same ones at any time of a training."""
    first, second = space.decode(space.sample(np.random.default_rng([recipe.seed, 4]), 2))
    return {"smallest": space.smallest, "random1": first, "random2": second, "largest": space.largest}


def _prior(space: SearchSpace, recipe: Recipe, phase: Phase) -> AttentivePrior | None:
    """The distribution of MACs of the phase's random subnets; None where nothing is drawn attentively.

    Raises:
        ValueError: Subnets of a quantized space are to be drawn attentively.
    """
    if recipe.sampling == "uniform":
        return None
    if _is_quantized(space):
        raise ValueError(
            f"sampling {recipe.sampling} compares subnets of equal MACs, which are the same in all number formats of "
            f"{space.name}; use sampling uniform"
        )
    return AttentivePrior.of(
        space, lambda rng, n: sample_within(space, rng, n, phase.options), np.random.default_rng([recipe.seed, 5])
    )


# ---- the subnets of a step ------------------------------------------------------------------------------------


def draw_lessons(
    space: SearchSpace,
    recipe: Recipe,
    phase: Phase,
    step: int,
    rollbacks: int,
    prior: AttentivePrior | None = None,
    estimator: LossEstimator | None = None,
) -> list[Lesson]:
    """The subnets of a step and what each learns from; the first one teaches the others where no frozen net does.

    Args:
        prior: With `estimator`, for attentive sampling.
    """
    rng = np.random.default_rng([recipe.seed, 1, rollbacks, step])
    sample = partial(sample_within, space, options=phase.options)
    if phase.draw == "largest":
        column = space.column(RESOLUTION)
        codes = space.encode([largest_within(space, phase.options)])
        codes[:, column] = sample(rng, 1)[:, column]
        archs = [(SINGLE_PHASE if phase.name == SINGLE_PHASE else "largest", space.decode(codes)[0])]
    else:
        direction: Direction = "worst" if recipe.sampling == "attentive_worst" else "best"
        codes = (
            sample(rng, phase.n_random)
            if prior is None or estimator is None
            else draw_attentive(space, prior, estimator, rng, phase.n_random, direction, sample)
        )
        archs = [("random", arch) for arch in space.decode(codes)]
    if phase.draw == "sandwich":
        largest, smallest = largest_within(space, phase.options), smallest_within(space, phase.options)
        archs = [("largest", largest), ("smallest", smallest), *archs]
    if _is_quantized(space) and phase.name != SINGLE_PHASE:
        others = zip(archs[1:], rng.random(len(archs) - 1) < WIDEST_SHARE, strict=True)
        archs[1:] = [
            (f"{role}_widest", _in_widest_formats(space, arch)) if is_widest else (role, arch)
            for (role, arch), is_widest in others
        ]
    recurring = () if phase.name == SINGLE_PHASE else recurring_subnets(space, phase)
    return [
        Lesson(role, arch, _objective(recipe, phase, is_first=index == 0), arch in recurring and role != "random")
        for index, (role, arch) in enumerate(archs)
    ]


def _in_widest_formats(space: SearchSpace, arch: Arch) -> Arch:
    """`arch`, of a quantized space, with the last format that each block may have."""
    codes, columns = space.encode([arch]), precision_columns(space)
    codes[:, columns] = space.option_counts[columns] - 1
    return space.decode(space.canonical(codes))[0]


def _objective(recipe: Recipe, phase: Phase, *, is_first: bool) -> Objective:
    if phase.teacher == "frozen":
        return Objective(1.0, recipe.label_smoothing, recipe.distillation_weight, recipe.divergence)
    if phase.teacher == "in_place" and not is_first:
        return Objective(0.0, 0.0, 1.0, recipe.divergence)
    return Objective(1.0, recipe.label_smoothing, 0.0, recipe.divergence)


# ---- the images of a step -------------------------------------------------------------------------------------


def _batches(
    split: Split, recipe: Recipe, first: int, end: int, rollbacks: int, shards: range
) -> Iterator[list[Batch]]:
    """`shards` of the batch of each step from `first` to before `end`, each made while the one before is used."""
    per_epoch = steps_per_epoch(recipe, len(split.x_train))
    shard_size = recipe.batch_size // recipe.n_shards
    n_classes = int(split.y_train.max()) + 1

    def make(step: int) -> list[Batch]:
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([recipe.seed, 2, rollbacks, epoch]).permutation(len(split.x_train))
        chosen = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        batches = []
        for shard in shards:
            own = chosen[shard * shard_size : (shard + 1) * shard_size]
            rng = np.random.default_rng([recipe.seed, 3, rollbacks, step, shard])
            batches.append(Batch(*augment(split.x_train[own], split.y_train[own], n_classes, recipe.augmentation, rng)))
        return batches

    with ThreadPoolExecutor(max_workers=1) as pool:
        upcoming = pool.submit(make, first)
        for step in range(first, end):
            batch = upcoming.result()
            if step + 1 < end:
                upcoming = pool.submit(make, step + 1)
            yield batch


# ---- the loop -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Training:
    """What one training does; its state is an argument and a result of every method.

    Attributes:
        identity: What a checkpoint must agree with.
        watched: Subnets to score for the log, by name.
        priors: For each phase, for attentive sampling.
        teacher: The frozen teacher from the start; None if it is the largest net at the end of the first phase.
        trainable: 1 where a parameter may change and 0 where not; all may, if None.
    """

    space: SearchSpace
    split: Split
    recipe: Recipe
    phases: tuple[Phase, ...]
    identity: dict[str, Any]
    parallel: Parallel
    watch: Watch | None
    watched: Mapping[str, Arch]
    priors: tuple[AttentivePrior | None, ...]
    teacher: Teacher | None = None
    trainable: Flat | None = None

    @property
    def steps(self) -> int:
        return self.phases[-1].end

    def run(
        self,
        initial_params: Params,
        directory: Path,
        *,
        on_progress: Progress | None,
        before: Callable[[Params, Execution], object] = lambda params, execution: None,
    ) -> Params:
        """The weights after all phases.

        Unless all is done already, `before` is called with the weights it begins with and with how subnets are run.
        """
        shards = self.parallel.shards_here(self.recipe.n_shards)
        optimizer = make_optimizer(self.recipe)
        state = self._initial_state(initial_params, optimizer)
        if self.watch is not None:
            self._evaluator(state["params"], self.watch)  # refuses counts that are out of range now, not later
        directory.mkdir(parents=True, exist_ok=True)
        with (
            locked(directory, directory / ".training.lock") if self.parallel.is_writer else nullcontext(),
            Checkpoints(directory / "checkpoints", self.identity, self.parallel) as checkpoints,
        ):
            if (saved := checkpoints.restore_latest(state)) is not None:
                state = saved
            else:
                checkpoints.save(state)
            if state["step"] == self.steps:
                return self._params(state)
            execution = self._execution(state["params"], checkpoints)
            before(state["params"], execution)
            metrics = _Metrics(directory / METRICS_FILE, state["step"], is_writer=self.parallel.is_writer)
            while state["step"] < self.steps:
                if state["step"] == self.phases[state["phase"]].end:
                    state = self._next_phase(state, optimizer)
                    checkpoints.save(state)
                state = self._run_phase(state, optimizer, execution, checkpoints, metrics, shards, on_progress)
        return self._params(state)

    @staticmethod
    def _params(state: State) -> Params:
        params: Params = state["params"]
        return params

    def _execution(self, params: Params, checkpoints: Checkpoints) -> Execution:
        """How subnets are run: as when this training began, so that it ends as if it had never stopped.

        Raises:
            ValueError: The recipe asks for another way now.
        """
        recipe = self.recipe
        kernels = checkpoints.keep("kernels", lambda: {"native": native_status().suffix})["native"]
        if self.parallel.is_writer and kernels != native_status().suffix:
            warnings.warn(
                f"this training began with {_kernels_named(kernels)} and goes on with "
                f"{_kernels_named(native_status().suffix)}: it will not end to the bit as it would have",
                stacklevel=2,
            )

        def choose() -> dict[str, Any]:
            chosen = choose_execution(
                self.space,
                params,
                recipe.batch_size // recipe.n_shards,
                setting=recipe.execution,
                dtype=compute_dtype_for(recipe.compute_dtype),
                parallel=self.parallel,
            )
            return dataclasses.asdict(chosen)

        kept = Execution(**checkpoints.keep("execution", choose))
        for field, wanted, began in (
            ("execution", recipe.execution, kept.name),
            ("compute_dtype", recipe.compute_dtype, kept.dtype),
        ):
            if wanted not in ("auto", began):
                raise ValueError(
                    f"{field} is to be {wanted}, but this training began with {began}; go on with {began} or auto, or "
                    "use another folder to start anew"
                )
        return kept

    def _initial_state(self, params: Params, optimizer: optax.GradientTransformation) -> State:
        state: State = {
            "params": params, "opt_state": begin(optimizer, params), "step": 0, "phase": 0, "rollbacks": 0
        }  # fmt: skip
        if self.teacher is None and any(phase.teacher == "frozen" for phase in self.phases):
            state["teacher"] = _copy(params)
        if any(prior is not None for prior in self.priors):
            state["estimator"] = new_estimator(self.space)
        return state

    def _next_phase(self, state: State, optimizer: optax.GradientTransformation) -> State:
        """`state` at the start of the phase after its own."""
        index, params = state["phase"] + 1, state["params"]
        phase = self.phases[index]
        state = state | {"phase": index}
        if index == 1 and "teacher" in state:
            state["teacher"] = _copy(params)
        if phase.sort_channels is not None:
            importance = (
                l1_importance(self.space, params)
                if phase.sort_channels == "l1"
                else taylor_importance(self.space, params, self._plain_batches())
            )
            params = sort_channels(self.space, params, importance, keep=phase.kept_ratios)
        return state | {"params": params, "opt_state": begin(optimizer, params)}

    def _plain_batches(self) -> Iterator[tuple[Array, Float[np.ndarray, "n classes"]]]:
        """The first training images as they are, at the largest resolution."""
        size = self.recipe.batch_size // self.recipe.n_shards
        side = self.space.resolution(self.space.largest)
        for start in range(0, min(TAYLOR_BATCHES * size, len(self.split.x_train) - size + 1), size):
            chosen = slice(start, start + size)
            x = prepare(self.split.x_train[chosen], self.split.mean, self.split.std, side)
            yield x, one_hot(self.split.y_train[chosen], self.space.n_classes)

    def _run_phase(
        self,
        state: State,
        optimizer: optax.GradientTransformation,
        execution: Execution,
        checkpoints: Checkpoints,
        metrics: _Metrics,
        shards: range,
        on_progress: Progress | None,
    ) -> State:
        """`state` after the rest of its phase, or after going back to a checkpoint."""
        phase = self.phases[state["phase"]]
        saved_at = time.monotonic()
        for batches in _batches(self.split, self.recipe, state["step"], phase.end, state["rollbacks"], shards):
            state, record, is_finite = self._step(state, optimizer, execution, batches)
            if not is_finite:
                state = _roll_back(checkpoints, state, record)
                metrics.rewind(state["step"])
                return state
            how = {"execution": dataclasses.asdict(execution)} if state["step"] == 1 else {}
            metrics.write(record | how | self._watch(state))
            if on_progress is not None:
                on_progress(state["step"], self.steps)
            # After the last step of a phase the first state of the next one is saved instead.
            is_due = time.monotonic() - saved_at > self.recipe.checkpoint_seconds and state["step"] < phase.end
            if is_due or state["step"] == self.steps:
                checkpoints.save(state)
                saved_at = time.monotonic()
        return state

    def _step(
        self, state: State, optimizer: optax.GradientTransformation, execution: Execution, batches: list[Batch]
    ) -> tuple[State, dict[str, Any], bool]:
        """The state after a step, the step's record, and whether all was finite; if not, the weights are as before."""
        started = time.perf_counter()
        phase, prior = self.phases[state["phase"]], self.priors[state["phase"]]
        lessons = draw_lessons(
            self.space, self.recipe, phase, state["step"], state["rollbacks"], prior, state.get("estimator")
        )
        gradient, measures = self._gradient(state, phase, execution, lessons, batches)
        learning_rate = phase.learning_rate_at(state["step"]) * 0.5 ** state["rollbacks"]
        params, opt_state, norm, finite = descend(
            optimizer, state["params"], state["opt_state"], gradient, measures["loss"], learning_rate, self.trainable
        )
        is_finite = bool(finite)
        state = state | {"params": params, "opt_state": opt_state, "step": state["step"] + is_finite}
        if is_finite and prior is not None:
            state["estimator"] = _learn_excess_loss(self.space, state["estimator"], lessons, measures)
        seconds = time.perf_counter() - started
        return state, {
            "step": state["step"],
            "epoch": round(state["step"] * self.recipe.batch_size / len(self.split.x_train), 4),
            "phase": phase.name,
            **_summary(lessons, measures),
            "gradient_norm": float(norm),
            "images_per_s": round(self.recipe.batch_size / seconds, 1),
            "rollbacks": state["rollbacks"],
        }, is_finite  # fmt: skip

    def _gradient(
        self, state: State, phase: Phase, execution: Execution, lessons: list[Lesson], batches: list[Batch]
    ) -> tuple[Flat, Measures]:
        """Gradient and measures, averaged over the shards of all processes."""
        frozen = (self.teacher or Teacher(self.space, state["teacher"])) if phase.teacher == "frozen" else None

        def work(weights: tuple[Params, Params | None], batch: Batch) -> tuple[Flat, Measures]:
            params, of_teacher = weights
            teacher = None if frozen is None or of_teacher is None else Teacher(frozen.space, of_teacher)
            mean, std = self.split.mean, self.split.std
            return step_gradient(self.space, params, lessons, batch, mean, std, teacher=teacher, execution=execution)

        weights = (state["params"], None if frozen is None else frozen.params)
        results = self.parallel.over_devices(work, weights, batches)
        return self.parallel.mean(mean_in_order(results))

    def _watch(self, state: State) -> dict[str, Any]:
        """What the log's line says of the watched subnets after this step: nothing, if it is not their turn."""
        if self.watch is None or self.recipe.watch_epochs == 0 or not self.parallel.is_writer:
            return {}
        every = max(1, round(self.recipe.watch_epochs * steps_per_epoch(self.recipe, len(self.split.x_train))))
        if state["step"] % every and state["step"] != self.phases[state["phase"]].end:
            return {}
        evaluator = self._evaluator(state["params"], self.watch)
        labels = self.split.y_validation[: evaluator.n_validation]
        return {"watched": {name: _score(evaluator.logits(arch), labels) for name, arch in self.watched.items()}}

    def _evaluator(self, params: Params, watch: Watch) -> Evaluator:
        n_calibration, n_validation = watch
        return Evaluator(self.space, params, self.split, n_calibration=n_calibration, n_validation=n_validation)


@jax.jit
def _copy(params: Params) -> Params:
    """`params` in arrays of their own: those of a step are given away to the next."""
    copy: Params = jax.tree.map(jnp.copy, params)
    return copy


def _learn_excess_loss(
    space: SearchSpace, estimator: LossEstimator, lessons: list[Lesson], measures: Measures
) -> LossEstimator:
    """`estimator` after the step's losses on the labels, each less the teacher's on the same images."""
    taught = [index for index, lesson in enumerate(lessons) if lesson.objective.teacher_weight > 0.0]
    excess = np.asarray(measures["label_loss"], np.float64)[taught] - float(measures["teacher_label_loss"])
    return update_estimator(space, estimator, space.encode([lessons[index].arch for index in taught]), excess)


def _summary(lessons: list[Lesson], measures: Measures) -> dict[str, float]:
    """The mean loss of each kind of subnet, and the accuracy of the first one on the batch."""
    losses = np.asarray(measures["loss"], np.float64)
    roles = [lesson.role for lesson in lessons]
    return {
        **{
            f"loss_{role}": float(np.mean([loss for loss, other in zip(losses, roles, strict=True) if other == role]))
            for role in dict.fromkeys(roles)
        },
        f"accuracy_{roles[0]}": float(measures["accuracy"][0]),
    }


def _score(logits: Float[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracy and cross-entropy."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
    }


def _roll_back(checkpoints: Checkpoints, state: State, record: dict[str, Any]) -> State:
    """The last checkpoint, with one more rollback on its account."""
    rollbacks = state["rollbacks"] + 1
    if rollbacks > MOST_ROLLBACKS:
        losses = {name: value for name, value in record.items() if name.startswith("loss_")}
        raise DivergedError(
            f"training left the finite numbers {rollbacks} times, the last time after step {record['step']} ({losses}, "
            f"gradient norm {record['gradient_norm']}), although the learning rate was halved each time; lower "
            "learning_rate or clip_norm"
        )
    saved = checkpoints.restore_latest(state)
    assert saved is not None, "training starts with a checkpoint"
    return saved | {"rollbacks": rollbacks}


def _kernels_named(suffix: str) -> str:
    return f"the native kernels {suffix}" if suffix else "the pure-XLA kernels"


class _Metrics:
    """The log of a training, one JSON line per step; steps done again, after a crash or a rollback, replace theirs."""

    def __init__(self, path: Path, steps_done: int, *, is_writer: bool) -> None:
        self._path = path
        self._is_writer = is_writer
        self.rewind(steps_done)

    def rewind(self, steps_done: int) -> None:
        """Forget the steps after `steps_done`."""
        if self._is_writer:
            kept = [line for line in read_lines(self._path) if line["step"] <= steps_done]
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, record: dict[str, Any]) -> None:
        if self._is_writer:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
