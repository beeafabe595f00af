"""One step of training: the gradient of a list of subnets on a batch, and the update of the shared weights.

Every recipe is made of this step: its subnets differ (see `_recipe`), and what each of them learns from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, UInt8

from hanax.search_spaces import Arch, SearchSpace
from hanax.supernet._chain import Params, Tape, prepare
from hanax.supernet._distillation import DIVERGENCES, cross_entropy
from hanax.supernet._execution import EXECUTIONS, Execution
from hanax.supernet._recipe import Recipe


@dataclass(frozen=True, slots=True)
class Batch:
    """Training images as bytes, normalised together in batch norms, and the probability of each class."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Float[np.ndarray, "n classes"]


@dataclass(frozen=True, slots=True)
class Objective:
    """What a subnet learns from: a weighted sum of two losses.

    Attributes:
        label_weight: Of the cross-entropy with the labels.
        label_smoothing: Share of probability that the labels give to all classes alike.
        teacher_weight: Of the divergence from the teacher's predictions.
        divergence: A key of `DIVERGENCES`.
    """

    label_weight: float
    label_smoothing: float
    teacher_weight: float
    divergence: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """One subnet of a step.

    Attributes:
        role: Its name in the log.
        objective: What it learns from.
        recurs: It is in so many steps that it is worth executables of its own.
    """

    role: str
    arch: Arch
    objective: Objective
    recurs: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A frozen network that others learn from: the largest one of `space` with `params`, with batch statistics.

    The space need not be that of its students, but for their images and classes: a float net teaches quantized ones.
    """

    space: SearchSpace
    params: Params

    @property
    def resolution(self) -> int:
        """Of the images that it sees."""
        return self.space.resolution(self.space.largest)

    def logits(self, execution: Execution, x: Float[Array, "c h w n"]) -> Float[Array, "n classes"]:
        """What it says of images at its `resolution`."""
        return execution.logits(self.space, self.params, self.space.largest, x)


Flat = dict[str, Array]
"""All kernels in one vector, all other parameters in another: an optimizer compiles for two arrays, not hundreds."""

Measures = dict[str, np.ndarray | Array]
"""``loss``, ``label_loss`` (cross-entropy with the labels, not smoothed) and ``accuracy``, a value per lesson each;
``teacher_label_loss``, a single value."""


# ---- the gradient ---------------------------------------------------------------------------------------------


def step_gradient(
    space: SearchSpace,
    params: Params,
    lessons: Sequence[Lesson],
    batch: Batch,
    mean: Float[np.ndarray, " c"],
    std: Float[np.ndarray, " c"],
    *,
    teacher: Teacher | None = None,
    execution: Execution = EXECUTIONS["chain"],
) -> tuple[Flat, Measures]:
    """Gradient by `params`, summed over `lessons`, and what was measured on the way.

    Args:
        teacher: Who teaches; None if the subnet of the first lesson does, as it is now (in-place distillation).
        execution: How subnets are run.
    """
    sides = {space.resolution(lesson.arch) for lesson in lessons} | ({teacher.resolution} if teacher else set())
    inputs = {side: prepare(batch.images, mean, std, side) for side in sorted(sides)}

    def forward(index: int) -> _Begun:
        lesson = lessons[index]
        x = inputs[space.resolution(lesson.arch)]
        logits, tape = execution.forward_with_tape(space, params, lesson.arch, x, recurs=lesson.recurs)
        return index, lesson.objective, logits, tape

    # The others need the teacher's predictions for their loss only, so a second thread runs them beside it: one net's
    # small operators do not keep all cores busy. Which thread has which lessons is fixed, and each sums its own
    # gradient in their order, so the additions, and with them the result, are always the same.
    order = range(len(lessons))
    here, beside = (order[:1], order[1:]) if teacher is None else (order[1::2], order[::2])
    with ThreadPoolExecutor(max_workers=1) as pool, _promise() as predictions:
        learn = partial(_learn, execution, params, labels=batch.labels, predictions=predictions)
        others = pool.submit(learn, map(forward, beside)) if beside else None
        if teacher is None:
            own: Iterable[_Begun] = [begun := forward(0)]
            logits = begun[2]
        else:
            own = map(forward, here)
            logits = teacher.logits(execution, inputs[teacher.resolution])
        predictions.set_result(_predict(logits, batch.labels))
        parts = [learn(own)] if here else []
        if others is not None:
            parts.append(others.result())
    measured = {index: values for _, part in parts for index, values in part.items()}
    rows = np.stack([np.asarray(measured[index]) for index in order])
    return _flat_sum(*(gradient for gradient, _ in parts)), {
        "loss": rows[:, 0], "label_loss": rows[:, 1], "accuracy": rows[:, 2],
        "teacher_label_loss": np.asarray(predictions.result()[1]),
    }  # fmt: skip


_Begun = tuple[int, Objective, Array, Tape]
"""Index of a lesson, its objective, and the logits and tape of its forward pass."""

_Predictions = tuple[Array, Array]
"""The teacher's probabilities and its cross-entropy with the labels."""


@contextmanager
def _promise() -> Iterator[Future[_Predictions]]:
    """A result to come; who waits for it gets the error of the body if that ends without it."""
    promise: Future[_Predictions] = Future()
    try:
        yield promise
    except BaseException as error:
        if not promise.done():
            promise.set_exception(error)
        raise


def _learn(
    execution: Execution,
    params: Params,
    passes: Iterable[_Begun],
    labels: Float[np.ndarray, "n classes"],
    predictions: Future[_Predictions],
) -> tuple[Params, dict[int, Array]]:
    """Gradient summed over the lessons of `passes`, and the measures of each by index.

    A forward pass is made when it is asked for; those made before the teacher is done wait for it.
    """
    gradient: Params = _zeros_like(params)
    measured: dict[int, Array] = {}
    waiting: deque[_Begun] = deque()

    def finish() -> None:
        index, objective, logits, tape = waiting.popleft()
        dlogits, measured[index] = _judge(logits, labels, predictions.result()[0], objective)
        execution.backward_along(tape, dlogits, gradient)

    for begun in passes:
        waiting.append(begun)
        while waiting and predictions.done():
            finish()
    while waiting:
        finish()
    return gradient, measured


@jax.jit
def _predict(logits: Float[Array, "n classes"], labels: Float[Array, "n classes"]) -> _Predictions:
    return jax.nn.softmax(logits), cross_entropy(logits, labels)


@partial(jax.jit, static_argnames=("objective",))
def _judge(
    logits: Float[Array, "n classes"],
    labels: Float[Array, "n classes"],
    predictions: Float[Array, "n classes"],
    objective: Objective,
) -> tuple[Float[Array, "n classes"], Float[Array, " measures"]]:
    """Gradient of the loss by `logits`, and the loss, the loss on the labels as they are, and the accuracy."""
    smoothing = objective.label_smoothing
    targets = labels * (1.0 - smoothing) + smoothing / labels.shape[1]

    def loss_of(logits: Array) -> Array:
        loss = jnp.zeros(())
        if objective.label_weight:
            loss += objective.label_weight * cross_entropy(logits, targets)
        if objective.teacher_weight:
            loss += objective.teacher_weight * DIVERGENCES[objective.divergence](logits, predictions)
        return loss

    loss, dlogits = jax.value_and_grad(loss_of)(logits)
    accuracy = (logits.argmax(axis=1) == labels.argmax(axis=1)).mean()
    return dlogits, jnp.stack([loss, cross_entropy(logits, labels), accuracy])


@jax.jit
def _zeros_like(params: Params) -> Params:
    zeros: Params = jax.tree.map(jnp.zeros_like, params)
    return zeros


@jax.jit
def _flat_sum(*gradients: Params) -> Flat:
    first, *rest = map(flatten, gradients)
    for gradient in rest:
        first = jax.tree.map(jnp.add, first, gradient)
    return first


# ---- the update -----------------------------------------------------------------------------------------------


def flatten(params: Params) -> Flat:
    """`params` as two vectors."""
    groups: dict[str, list[Array]] = {"kernels": [], "others": []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        groups[_group(path)].append(leaf.ravel())
    return {name: jnp.concatenate(parts) for name, parts in groups.items()}


def unflatten(flat: Flat, like: Params) -> Params:
    """The inverse of `flatten`, in the shapes of `like`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    position = dict.fromkeys(flat, 0)
    parts = []
    for path, leaf in leaves:
        name = _group(path)
        parts.append(flat[name][position[name] : position[name] + leaf.size].reshape(leaf.shape))
        position[name] += leaf.size
    restored: Params = jax.tree_util.tree_unflatten(structure, parts)
    return restored


def _group(path: Any) -> str:
    """Weight decay is for kernels: not for batch norms, biases, or kernel transforms, which it must not pull to 0."""
    return "kernels" if path[-1].key == "kernel" else "others"


DECAYED = {"kernels": True, "others": False}


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clipping, then SGD or AdamW at learning rate 1, for parameters as `Flat`; `update` scales what comes out.

    The same object for the same settings, so that trainings share what is compiled for it.
    """
    return _optimizer(recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.clip_norm)


@cache
def _optimizer(kind: str, momentum: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    if kind == "adamw":
        method = optax.adamw(1.0, weight_decay=weight_decay, mask=DECAYED)
    else:
        method = optax.chain(
            optax.add_decayed_weights(weight_decay, mask=DECAYED),
            optax.sgd(1.0, momentum=momentum, nesterov=True),
        )
    return optax.chain(optax.clip_by_global_norm(clip_norm), method)


@partial(jax.jit, static_argnames=("optimizer",))
def begin(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """The optimizer's state before its first update."""
    return optimizer.init(flatten(params))


def update(
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    gradient: Flat,
    losses: Float[Array, " lessons"],
    learning_rate: Float[Array, ""] | float,
    trainable: Flat | None = None,
) -> tuple[Params, Any, Array, Array]:
    """New parameters and optimizer state, or the old ones where loss or gradient are not finite.

    The learning rate is data, so one executable serves all phases of a training.

    Args:
        trainable: 1 where a parameter may change and 0 where not; all may, if None.

    Returns:
        Parameters, optimizer state, norm of the gradient before it is clipped, and whether all was finite.
    """
    flat = flatten(params)
    if trainable is not None:
        gradient = jax.tree.map(jnp.multiply, gradient, trainable)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(losses).all()
    updates, new_opt_state = optimizer.update(gradient, opt_state, flat)
    if trainable is not None:
        updates = jax.tree.map(jnp.multiply, updates, trainable)
    new_flat = optax.apply_updates(flat, jax.tree.map(lambda change: change * learning_rate, updates))

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)

    return unflatten(keep(new_flat, flat), params), keep(new_opt_state, opt_state), norm, finite


descend = jax.jit(update, static_argnames=("optimizer",), donate_argnames=("params", "opt_state"))
"""`update` as one executable, to which parameters and optimizer state are given away."""
