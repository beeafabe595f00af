"""Training the supernet: the sandwich rule with in-place distillation, resumable to the bit.

Everything random in step `t` is drawn from (seed, restart, `t`) alone, so a run that is killed and started again goes
on from its last checkpoint exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, UInt8

from hanax._files import write_atomically
from hanax.search_spaces import Arch, SearchSpace
from hanax.supernet._augment import Augmentation, augment
from hanax.supernet._chain import (
    Params,
    Progress,
    Tape,
    backward_along,
    compile_chain,
    forward_with_tape,
    init_params,
    prepare,
)
from hanax.supernet._checkpoint import Checkpoints
from hanax.supernet._images import Split

MOST_ROLLBACKS = 5
METRICS_FILE = "metrics.jsonl"


class DivergedError(RuntimeError):
    """Training produced non-finite values again and again."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a supernet is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step; a last, smaller batch is dropped.
        optimizer: SGD with Nesterov momentum, or AdamW.
        learning_rate: The highest one; it rises linearly during `warmup_epochs`, then falls to 0 as a cosine.
        momentum: Of SGD.
        weight_decay: Not applied to batch norms, biases and kernel transforms.
        label_smoothing: Share of probability given to all classes alike, for the largest subnet.
        clip_norm: Largest global norm of the gradient, summed over the subnets of a step.
        n_random_subnets: Subnets of a step beside the largest and the smallest.
        seed: Decides the initial weights, the batches, their augmentation and the random subnets.
        checkpoint_seconds: About how often the state is saved; the result depends on it only after a rollback, which
            goes back to the last checkpoint.

    Raises:
        ValueError: A value is out of range.
    """

    epochs: float = 10.0
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.02
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.1
    clip_norm: float = 5.0
    n_random_subnets: int = 2
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 0.0), ("learning_rate", 0.0), ("clip_norm", 0.0), ("checkpoint_seconds", 0.0),
        ):  # fmt: skip
            if not getattr(self, name) > least:
                raise ValueError(f"{name} must be above {least}; got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, for batch norm; got {self.batch_size}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}")
        for name in ("momentum", "weight_decay", "warmup_epochs", "n_random_subnets", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch: images as bytes and the probability of each class."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Float[np.ndarray, "n classes"]


State = dict[str, Any]
"""``params``, ``opt_state``, ``step`` (steps done), ``rollbacks``: all that the next step depends on."""


def n_steps(recipe: Recipe, n_images: int) -> int:
    """Steps of a whole training.

    Raises:
        ValueError: There are fewer images than one batch.
    """
    per_epoch = n_images // recipe.batch_size
    if per_epoch == 0:
        raise ValueError(f"batch_size {recipe.batch_size} is more than the {n_images} training images there are")
    return max(1, round(recipe.epochs * per_epoch))


DECAYED = {"kernels": True, "others": False}


def make_optimizer(recipe: Recipe, n_images: int) -> optax.GradientTransformation:
    """Clipping, then SGD or AdamW, along the recipe's schedule; for parameters as `Flat`."""
    steps = n_steps(recipe, n_images)
    warmup = min(round(recipe.warmup_epochs * (n_images // recipe.batch_size)), steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, max(warmup, 1), max(steps, 2))
    if recipe.optimizer == "adamw":
        descend = optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=DECAYED)
    else:
        descend = optax.chain(
            optax.add_decayed_weights(recipe.weight_decay, mask=DECAYED),
            optax.sgd(schedule, momentum=recipe.momentum, nesterov=True),
        )
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), descend)


Flat = dict[str, Array]
"""All kernels in one vector, all other parameters in another: an optimizer compiles for two arrays, not hundreds."""


def _flatten(params: Params) -> Flat:
    groups: dict[str, list[Array]] = {"kernels": [], "others": []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        groups[_group(path)].append(leaf.ravel())
    return {name: jnp.concatenate(parts) for name, parts in groups.items()}


def _unflatten(flat: Flat, like: Params) -> Params:
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


def train_supernet(
    space: SearchSpace,
    split: Split,
    recipe: Recipe,
    directory: Path,
    *,
    fingerprint: str = "",
    on_progress: Progress | None = None,
    on_compiled: Progress | None = None,
) -> Params:
    """Weights of the supernet of `space` after `recipe`; goes on from the last checkpoint in `directory`, if any.

    Each step sums the gradients of the largest subnet (on the labels), the smallest one and `n_random_subnets` random
    ones (both on the largest one's predictions): the sandwich rule with in-place distillation (Yu & Huang, 2019,
    arXiv:1903.05134; BigNAS, Yu et al., 2020, arXiv:2003.11142). Differs from BigNAS in that label smoothing
    replaces its regularisation of the largest subnet, and that resolutions are drawn with the random subnets.

    A step whose loss or gradient is not finite is undone: training goes back to the last checkpoint with half the
    learning rate and other random numbers, at most `MOST_ROLLBACKS` times.

    Writes checkpoints and ``metrics.jsonl`` (one line per step) into `directory`.

    Args:
        fingerprint: Identifies the data; a checkpoint of another space, recipe or data is refused.
        on_progress: Called with the steps done and to do.
        on_compiled: Called with the executables compiled and to compile.

    Raises:
        ValueError: The checkpoint in `directory` belongs to another training; names what differs.
        DivergedError: Too many rollbacks.
    """
    n_images = len(split.x_train)
    steps = n_steps(recipe, n_images)
    optimizer = make_optimizer(recipe, n_images)
    directory.mkdir(parents=True, exist_ok=True)
    identity = {
        "space": space.fingerprint,
        "data": fingerprint,
        "n_images": n_images,
        "recipe": {k: v for k, v in dataclasses.asdict(recipe).items() if k != "checkpoint_seconds"},
    }
    params = init_params(space, recipe.seed)
    opt_state = jax.jit(lambda params: optimizer.init(_flatten(params)))(params)
    state: State = {"params": params, "opt_state": opt_state, "step": 0, "rollbacks": 0}
    with Checkpoints(directory / "checkpoints", identity) as checkpoints:
        if (saved := checkpoints.restore_latest(state)) is not None:
            state = saved
        else:
            checkpoints.save(state)
        if state["step"] < steps:
            compile_chain(space, state["params"], recipe.batch_size, on_progress=on_compiled)
        metrics = _Metrics(directory / METRICS_FILE, state["step"])
        update = jax.jit(partial(_update, optimizer), donate_argnums=(0, 1))
        while state["step"] < steps:
            saved_at = time.monotonic()
            for batch in _batches(split, recipe, state["step"], steps, state["rollbacks"]):
                record = _step(space, split, recipe, update, state, batch)
                if not record["finite"]:
                    state = _roll_back(checkpoints, state, record)
                    metrics.rewind(state["step"])
                    break
                metrics.write(record)
                if on_progress is not None:
                    on_progress(state["step"], steps)
                if time.monotonic() - saved_at > recipe.checkpoint_seconds or state["step"] == steps:
                    checkpoints.save(state)
                    saved_at = time.monotonic()
    result: Params = state["params"]
    return result


def load_supernet(space: SearchSpace, directory: Path) -> Params:
    """Weights of the last checkpoint that `train_supernet` wrote into `directory`.

    Raises:
        FileNotFoundError: There is none.
        SpaceMismatchError: It belongs to another space.
    """
    with Checkpoints(directory / "checkpoints", None) as checkpoints:
        space.require(checkpoints.identity["space"], f"supernet {directory}")
        params: Params = checkpoints.restore_params(init_params(space, 0))
        return params


def draw_subnets(space: SearchSpace, recipe: Recipe, step: int, rollbacks: int) -> list[Arch]:
    """Subnets of a step after the largest: the smallest, and random ones."""
    rng = np.random.default_rng([recipe.seed, 1, rollbacks, step])
    return [space.smallest, *space.decode(space.sample(rng, recipe.n_random_subnets))]


def _batches(split: Split, recipe: Recipe, first_step: int, steps: int, rollbacks: int) -> Iterator[Batch]:
    """Batches of the steps from `first_step` on, each made while the one before is used."""
    per_epoch = len(split.x_train) // recipe.batch_size
    n_classes = int(split.y_train.max()) + 1

    def make(step: int) -> Batch:
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([recipe.seed, 2, rollbacks, epoch]).permutation(len(split.x_train))
        chosen = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        rng = np.random.default_rng([recipe.seed, 3, rollbacks, step])
        images, labels = augment(split.x_train[chosen], split.y_train[chosen], n_classes, recipe.augmentation, rng)
        return Batch(images, labels)

    with ThreadPoolExecutor(max_workers=1) as pool:
        upcoming = pool.submit(make, first_step)
        for step in range(first_step, steps):
            batch = upcoming.result()
            if step + 1 < steps:
                upcoming = pool.submit(make, step + 1)
            yield batch


def _step(
    space: SearchSpace,
    split: Split,
    recipe: Recipe,
    update: Callable[..., tuple[Params, Any, Array, Array]],
    state: State,
    batch: Batch,
) -> dict[str, Any]:
    """Advance `state` by one step; returns its record. A step that is not finite leaves `state` as it was."""
    started = time.perf_counter()
    archs = draw_subnets(space, recipe, state["step"], state["rollbacks"])
    gradient, losses, accuracy = sandwich_gradient(
        space, state["params"], archs, batch, split.mean, split.std, recipe.label_smoothing
    )
    scale = 0.5 ** state["rollbacks"]
    state["params"], state["opt_state"], norm, finite = update(
        state["params"], state["opt_state"], gradient, jnp.stack(losses), scale
    )
    if bool(finite):
        state["step"] += 1
    values = [float(loss) for loss in losses]
    seconds = time.perf_counter() - started
    return {
        "step": state["step"],
        "epoch": round(state["step"] * recipe.batch_size / len(split.x_train), 4),
        "loss_largest": values[0],
        "loss_smallest": values[1],
        "loss_random": float(np.mean(values[2:])) if len(values) > 2 else None,
        "accuracy_largest": float(accuracy),
        "gradient_norm": float(norm),
        "images_per_s": round(len(batch.images) / seconds, 1),
        "rollbacks": state["rollbacks"],
        "finite": bool(finite),
    }


def sandwich_gradient(
    space: SearchSpace,
    params: Params,
    archs: list[Arch],
    batch: Batch,
    mean: Float[np.ndarray, " c"],
    std: Float[np.ndarray, " c"],
    label_smoothing: float,
) -> tuple[Params, list[Array], Array]:
    """Summed gradient of the largest subnet on the labels and of `archs` on the largest one's predictions.

    Returns the gradient, the loss of each subnet (the largest first) and the largest one's accuracy on the batch.
    """
    sides = {space.resolution(arch) for arch in (space.largest, *archs)}
    inputs = {side: prepare(batch.images, mean, std, side) for side in sorted(sides)}

    def forward(arch: Arch) -> tuple[Array, Tape]:
        return forward_with_tape(space, params, arch, inputs[space.resolution(arch)])

    # The other subnets need the largest one's predictions for their loss only, so a second thread runs them beside it:
    # one net's small operators do not keep all cores busy. Each thread sums its own gradient, so the order of the
    # additions, and with it the result, is always the same.
    with ThreadPoolExecutor(max_workers=1) as beside:
        forwards = [beside.submit(forward, arch) for arch in archs]
        logits, tape = forward(space.largest)
        loss, dlogits, soft_targets, accuracy = _largest_loss(logits, batch.labels, label_smoothing)

        def backward_others() -> tuple[Params, list[Array]]:
            gradient: Params = _zeros_like(params)
            losses = []
            for future in forwards:
                logits, tape = future.result()
                loss, dlogits = _distillation_loss(logits, soft_targets)
                backward_along(tape, dlogits, gradient)
                losses.append(loss)
            return gradient, losses

        others = beside.submit(backward_others)
        gradient: Params = _zeros_like(params)
        backward_along(tape, dlogits, gradient)
        gradient_of_others, losses = others.result()
    total: Params = _add(gradient, gradient_of_others)
    return total, [loss, *losses], accuracy


@jax.jit
def _add(first: Params, second: Params) -> Params:
    total: Params = jax.tree.map(jnp.add, first, second)
    return total


@jax.jit
def _zeros_like(params: Params) -> Params:
    zeros: Params = jax.tree.map(jnp.zeros_like, params)
    return zeros


def _cross_entropy(logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]) -> Array:
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=1).mean()


@jax.jit
def _largest_loss(
    logits: Float[Array, "n classes"], labels: Float[Array, "n classes"], label_smoothing: Float[Array, ""] | float
) -> tuple[Array, Array, Array, Array]:
    targets = labels * (1.0 - label_smoothing) + label_smoothing / labels.shape[1]
    loss, dlogits = jax.value_and_grad(_cross_entropy)(logits, targets)
    accuracy = (logits.argmax(axis=1) == labels.argmax(axis=1)).mean()
    return loss, dlogits, jax.nn.softmax(logits), accuracy


@jax.jit
def _distillation_loss(logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]) -> tuple[Array, Array]:
    return jax.value_and_grad(_cross_entropy)(logits, targets)


def _update(
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    gradient: Params,
    losses: Float[Array, " subnets"],
    scale: Float[Array, ""] | float,
) -> tuple[Params, Any, Array, Array]:
    """New parameters and optimizer state, or the old ones where loss or gradient are not finite."""
    flat, flat_gradient = _flatten(params), _flatten(gradient)
    norm = optax.tree.norm(flat_gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(losses).all()
    updates, new_opt_state = optimizer.update(flat_gradient, opt_state, flat)
    new_flat = optax.apply_updates(flat, jax.tree.map(lambda update: update * scale, updates))

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)

    return _unflatten(keep(new_flat, flat), params), keep(new_opt_state, opt_state), norm, finite


def _roll_back(checkpoints: Checkpoints, state: State, record: dict[str, Any]) -> State:
    """The last checkpoint, with one more rollback on its account."""
    rollbacks = state["rollbacks"] + 1
    if rollbacks > MOST_ROLLBACKS:
        raise DivergedError(
            f"training left the finite numbers {rollbacks} times, the last time after step {record['step']} (loss of "
            f"the largest subnet {record['loss_largest']}, gradient norm {record['gradient_norm']}), although the "
            "learning rate was halved each time; lower learning_rate or clip_norm"
        )
    saved = checkpoints.restore_latest(state)
    assert saved is not None, "training starts with a checkpoint"
    return saved | {"rollbacks": rollbacks}


class _Metrics:
    """The log of a training, one JSON line per step; steps done again, after a crash or a rollback, replace theirs."""

    def __init__(self, path: Path, steps_done: int) -> None:
        self._path = path
        self.rewind(steps_done)

    def rewind(self, steps_done: int) -> None:
        """Forget the steps after `steps_done`."""
        kept = [line for line in _lines(self._path) if line["step"] <= steps_done]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, record: dict[str, Any]) -> None:
        line = {name: value for name, value in record.items() if name != "finite"}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # the line that a crash cut short
            break
    return lines
