"""HELP's network, its adaptation to a device and its meta-training, in JAX (Lee et al., 2021, arXiv:2106.08630).

Costs are on a scale of their own here, see `hanax.predictors.HelpPredictor`. A *task* is a device with some measured
architectures, the support; its *embedding* is what the reference architectures cost there.

Shapes: `n` architectures, `s` of a support, `q` queries, `t` tasks, `z` samples of the modulation, `e` references, `w`
the width, `b`, `r` and `k` as in `hanax.predictors._decision_nodes`. `arch...` is (k,) for one-hot inputs and
(b, k + r) for graphs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray

INNER_STEPS = 2
INNER_RATE = 1e-3
META_RATE = 1e-4
MODULATION = 0.01
"""Share of a head's weights that one standard deviation of the modulation changes."""
KL_WEIGHT = 0.1
MODULATOR_WIDTH = 10
HEADS = 3
TASKS_AT_A_TIME = 4
"""Tasks of an episode whose gradients are taken together."""

Values = Array | NDArray[Any]
"""On the way into a program, and inside."""
Weights = Mapping[str, Values]
"""Weights by name; a matrix `name_w` has the inputs in its rows."""
Meta = Mapping[str, Weights]
"""``net``: where every adaptation starts; ``rate``: the steps of each of its weights; ``modulator``."""
Table = tuple[Values, Values] | tuple[()]
"""`shared_features` and `shared_links` of the decision nodes; empty for one-hot inputs."""
Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HelpNet:
    """What decides the programs: the sizes of the network and how it is adapted.

    Attributes:
        n_references: Entries of an embedding, `e`.
        n_features: Features of an architecture or of one of its nodes, `k`.
        width: Units of the layers of the two branches; the heads have twice as many.
        own_links: Of the decision nodes, see there; None for one-hot inputs.
        is_second_order: Whether meta-training differentiates through the gradients of the adaptation.
    """

    n_references: int
    n_features: int
    width: int
    own_links: tuple[tuple[int, ...], ...] | None = None
    is_second_order: bool = True

    @property
    def n_modulations(self) -> int:
        """Entries of the modulation: one per input of each head and one per head."""
        return HEADS * (2 * self.width + 1)

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of all meta-weights."""
        w, e = self.width, self.n_references
        net: dict[str, tuple[int, ...]] = {}
        for layer in range(2 if self.own_links is None else 4):
            net |= {f"arch{layer}_w": (self.n_features if layer == 0 else w, w), f"arch{layer}_b": (w,)}
        net |= {"device0_w": (e, w), "device0_b": (w,), "device1_w": (w, w), "device1_b": (w,)}
        # The first head's rows for the architecture and those for the device are apart: the latter meet one row only.
        net |= {"head0_arch_w": (w, 2 * w), "head0_device_w": (w, 2 * w), "head0_b": (2 * w,)}
        net |= {"head1_w": (2 * w, 2 * w), "head1_b": (2 * w,), "head2_w": (2 * w, 1), "head2_b": (1,)}
        m = MODULATOR_WIDTH
        modulator: dict[str, tuple[int, ...]] = {"0_w": (e, m), "0_b": (m,)}
        modulator |= {"1_w": (m, 2 * self.n_modulations), "1_b": (2 * self.n_modulations,)}
        return {"net": net, "rate": dict(net), "modulator": modulator}


class Support(NamedTuple):
    """Of an adaptation: architectures (s, arch...), labels (s,), weights of their errors (s,), embedding (e,)."""

    archs: Values
    labels: Values
    weights: Values
    embedding: Values


class Source(NamedTuple):
    """What meta-training learns from: architectures (n, arch...), labels (m, n), embeddings (m, e) of `m` devices."""

    archs: Values
    labels: Values
    embeddings: Values


class Draws(NamedTuple):
    """Of an episode: devices (t,), rows of `Source` (t, s) and (t, q), noise (t, ...); several with an axis before."""

    devices: Values
    support: Values
    queries: Values
    noise: Values


def initial_weights(net: HelpNet, rng: np.random.Generator) -> dict[str, dict[str, Floats32]]:
    """Meta-weights before training: as in HELP's released code, uniform by the number of a layer's inputs."""
    shapes = net.shapes()
    start: dict[str, dict[str, Floats32]] = {"rate": {}}
    for part in ("net", "modulator"):
        start[part] = {}
        for name, shape in shapes[part].items():
            layer = name.removesuffix("_arch_w").removesuffix("_device_w").removesuffix("_w").removesuffix("_b")
            n_inputs = sum(s[0] for other, s in shapes[part].items() if other.startswith(layer) and len(s) == 2)
            bound = 1 / math.sqrt(n_inputs)
            if net.own_links is not None and part == "net" and name.startswith("arch"):
                bound = 0.05 if len(shape) == 2 else 1 / math.sqrt(net.width)
            start[part][name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    start["rate"] = {name: np.full(shape, INNER_RATE, dtype=np.float32) for name, shape in shapes["rate"].items()}
    return start


def flatten(weights: Mapping[str, Array | NDArray[np.generic]], batch: int = 0) -> Floats32:
    """All of `weights` in one last axis, in the order of their names, after `batch` axes that they share."""
    parts = [np.asarray(weights[name], dtype=np.float32) for name in sorted(weights)]
    return np.concatenate([part.reshape(*part.shape[:batch], -1) for part in parts], axis=-1)


def unflatten(flat: Floats32, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats32]:
    """The inverse of `flatten`."""
    sizes = [math.prod(shapes[name]) for name in sorted(shapes)]
    parts = np.split(flat, np.cumsum(sizes)[:-1], axis=-1)
    return {
        name: part.reshape(*flat.shape[:-1], *shapes[name]) for name, part in zip(sorted(shapes), parts, strict=True)
    }


def predict_labels(net: HelpNet, weights: Weights, table: Table, archs: Values, embedding: Values) -> Array:
    """Labels of architectures (n, arch...) on one device, shape (n,)."""
    return _apply_heads(weights, *_apply_branches(net, weights, table, archs, embedding))


def _apply_branches(
    net: HelpNet, weights: Weights, table: Table, archs: Values, embedding: Values
) -> tuple[Array, Array]:
    """What the branches make of architectures, shape (n, w), and of the device, shape (w,)."""
    arch = _encode_nodes(net, weights, table, archs) if net.own_links is not None else _encode(weights, archs)
    device = jnp.asarray(embedding)
    for layer in ("device0", "device1"):
        device = jax.nn.relu(device @ weights[f"{layer}_w"] + weights[f"{layer}_b"])
    return arch, device


def _apply_heads(weights: Weights, arch: Array, device: Array) -> Array:
    of_device = device @ weights["head0_device_w"] + weights["head0_b"]
    hidden = jax.nn.relu(arch @ weights["head0_arch_w"] + of_device[None])
    hidden = jax.nn.relu(hidden @ weights["head1_w"] + weights["head1_b"][None])
    return hidden @ weights["head2_w"][:, 0] + weights["head2_b"]


def _encode(weights: Weights, archs: Values) -> Array:
    """A network of two layers on one-hot inputs, shape (n, w)."""
    hidden = jax.nn.relu(archs @ weights["arch0_w"] + weights["arch0_b"][None])
    return jax.nn.relu(hidden @ weights["arch1_w"] + weights["arch1_b"][None])


def _encode_nodes(net: HelpNet, weights: Weights, table: Table, archs: Values) -> Array:
    """Four graph convolutions without normalisation, of which the global node is read, shape (n, w)."""
    shared_features, shared_links = table  # type: ignore[misc]  # it is there where `own_links` are
    assert net.own_links is not None
    nodes = jnp.swapaxes(archs, 0, 1)  # (b, n, k + r): sums over nodes then go over whole matrices
    features, hears = nodes[:, :, : net.n_features], nodes[:, :, net.n_features :]
    bias = weights["arch0_b"]
    own = jax.nn.relu(features @ weights["arch0_w"] + bias[None, None])
    shared = jax.nn.relu(shared_features @ weights["arch0_w"] + bias[None])
    for layer in ("arch1", "arch2"):
        matrix, bias = weights[f"{layer}_w"], weights[f"{layer}_b"]
        heard = hears @ shared + jnp.stack([_sum(own[node] for node in links) for links in net.own_links])
        own = jax.nn.relu(heard @ matrix + bias[None, None])
        shared = jax.nn.relu((shared_links @ shared) @ matrix + bias[None])
    heard = hears[-1] @ shared + _sum(own)  # the global node hears all
    return jax.nn.relu(heard @ weights["arch3_w"] + weights["arch3_b"][None])


def _sum(arrays: Iterable[Array]) -> Array:
    """Their sum, one added after the other: XLA on a CPU is slow in sums over the first axis of large arrays."""
    return reduce(jnp.add, arrays)


def modulate(net: HelpNet, meta: Meta, embedding: Values, noise: Values) -> tuple[Weights, Array]:
    """Where the adaptation to a device starts, and the divergence of its modulation from a standard normal, in nats.

    The rows of each head are scaled, and its biases moved, by one sample of a normal distribution that the embedding
    decides; `noise`, shape (n_modulations,), is that of a standard one.
    """
    modulator, weights = meta["modulator"], dict(meta["net"])
    hidden = jax.nn.relu(embedding @ modulator["0_w"] + modulator["0_b"])
    mean, spread = jnp.split(hidden @ modulator["1_w"] + modulator["1_b"], 2)
    deviation = jax.nn.softplus(spread)
    divergence = (0.5 * (deviation**2 + mean**2 - 1.0) - jnp.log(deviation)).sum()
    sample = MODULATION * (mean + deviation * noise)
    scales, shifts = jnp.split(sample, [HEADS * 2 * net.width])
    scales = 1.0 + scales.reshape(HEADS, 2 * net.width, 1)
    weights["head0_arch_w"] = weights["head0_arch_w"] * scales[0, : net.width]
    weights["head0_device_w"] = weights["head0_device_w"] * scales[0, net.width :]
    weights["head1_w"] = weights["head1_w"] * scales[1]
    weights["head2_w"] = weights["head2_w"] * scales[2]
    for head in range(HEADS):
        weights[f"head{head}_b"] = weights[f"head{head}_b"] + shifts[head : head + 1]
    return weights, divergence


def adapt(net: HelpNet, weights: Weights, rate: Weights, table: Table, support: Support) -> Weights:
    """The weights after `INNER_STEPS` steps of Meta-SGD (Li et al., 2017, arXiv:1707.09835) on the support."""

    def loss(weights: Weights) -> Array:
        errors = predict_labels(net, weights, table, support.archs, support.embedding) - support.labels
        return (support.weights * errors**2).sum() / support.weights.sum()

    for _ in range(INNER_STEPS):
        gradient = jax.grad(loss)(weights)
        if not net.is_second_order:
            gradient = jax.lax.stop_gradient(gradient)
        weights = jax.tree.map(lambda weight, step, slope: weight - step * slope, weights, rate, gradient)
    return weights


def episode_losses(net: HelpNet, meta: Meta, table: Table, source: Source, draw: Draws) -> Array:
    """For each task of an episode the squared error on the queries and the weighted divergence, shape (t,)."""
    return jax.vmap(partial(_task_loss, net), in_axes=(None, None, None, 0))(meta, table, source, draw)


def _task_loss(net: HelpNet, meta: Meta, table: Table, source: Source, task: Draws) -> Array:
    embedding, labels = source.embeddings[task.devices], source.labels[task.devices]
    start, divergence = modulate(net, meta, embedding, task.noise)
    support = Support(
        source.archs[task.support], labels[task.support], jnp.ones(task.support.shape, labels.dtype), embedding
    )
    weights = adapt(net, start, meta["rate"], table, support)
    errors = predict_labels(net, weights, table, source.archs[task.queries], embedding) - labels[task.queries]
    return (errors**2).mean() + KL_WEIGHT * divergence


def episode_gradient(net: HelpNet, meta: Meta, table: Table, source: Source, draw: Draws) -> tuple[Array, Meta]:
    """Mean loss over the tasks of an episode, and its gradient.

    A few tasks are taken at a time, as their adapted weights should stay in the cache, and their gradients are added
    one after the other.
    """
    n_tasks = len(draw.devices)
    at_a_time = math.gcd(n_tasks, TASKS_AT_A_TIME)
    task_gradient = jax.vmap(jax.value_and_grad(partial(_task_loss, net)), in_axes=(None, None, None, 0))

    def add(total: tuple[Array, Meta], tasks: Draws) -> tuple[tuple[Array, Meta], None]:
        found = task_gradient(meta, table, source, tasks)
        return jax.tree.map(lambda so_far, parts: _sum([so_far, *parts]), total, found), None

    groups = jax.tree.map(lambda array: array.reshape(-1, at_a_time, *array.shape[1:]), draw)
    nothing = (jnp.zeros((), source.labels.dtype), jax.tree.map(jnp.zeros_like, meta))
    total, _ = jax.lax.scan(add, nothing, groups)
    loss, gradient = jax.tree.map(lambda array: array / n_tasks, total)
    return loss, gradient


OPTIMIZER = optax.adam(META_RATE)


@partial(jax.jit, static_argnames="net")
def run_episodes(
    net: HelpNet, state: tuple[Meta, optax.OptState], table: Table, source: Source, draws: Draws
) -> tuple[tuple[Meta, optax.OptState], Array]:
    """Meta-weights and the state of their optimizer after the episodes `draws`, and the loss in each of these."""

    def step(state: tuple[Meta, optax.OptState], draw: Draws) -> tuple[tuple[Meta, optax.OptState], Array]:
        meta, memory = state
        loss, gradient = episode_gradient(net, meta, table, source, draw)
        updates, memory = OPTIMIZER.update(gradient, memory)
        return (optax.apply_updates(meta, updates), memory), loss

    return jax.lax.scan(step, state, draws)


class Adapted(NamedTuple):
    """Weights adapted to `t` devices: of the branches, with an axis (t,) before each, and of the heads, with (t, z).

    Modulations begin at the heads, so what the branches learn hardly differs between them: it is the mean over `z`.
    """

    branches: Weights
    heads: Weights


def is_head(name: str) -> bool:
    """Whether weights of this name belong to the heads, which are modulated, or to the branches."""
    return name.startswith("head")


@partial(jax.jit, static_argnames="net")
def adapt_all(net: HelpNet, meta: Meta, table: Table, supports: Support, noise: Values) -> tuple[Adapted, Array]:
    """Adapted weights, and what they make of the supports: the mean over `z` of the labels, shape (t, s).

    Args:
        supports: With an axis (t,) before each.
        noise: Of the modulations, shape (z, n_modulations), the same for every device.
    """

    def one(support: Support) -> tuple[Adapted, Array]:
        starts, _ = jax.vmap(partial(modulate, net, meta, support.embedding))(noise)
        weights = jax.vmap(lambda start: adapt(net, start, meta["rate"], table, support))(starts)
        adapted = Adapted(
            {name: array.mean(axis=0) for name, array in weights.items() if not is_head(name)},
            {name: array for name, array in weights.items() if is_head(name)},
        )
        return adapted, _predict(net, adapted, table, support.archs, support.embedding)

    return jax.vmap(one)(supports)


@partial(jax.jit, static_argnames="net")
def predict_all(net: HelpNet, adapted: Adapted, table: Table, archs: Values, embeddings: Values) -> Array:
    """Mean over `z` of the labels of the same architectures (n, arch...) on each device, shape (t, n).

    Args:
        embeddings: Shape (t, e).
    """
    return jax.vmap(partial(_predict, net), in_axes=(0, None, None, 0))(adapted, table, archs, embeddings)


def _predict(net: HelpNet, adapted: Adapted, table: Table, archs: Values, embedding: Values) -> Array:
    arch, device = _apply_branches(net, adapted.branches, table, archs, embedding)
    return jax.vmap(_apply_heads, in_axes=(0, None, None))(adapted.heads, arch, device).mean(axis=0)


def on_device(adapted: Adapted) -> Adapted:
    """The same where programs can take it again and again."""
    moved: Adapted = jax.tree.map(jnp.asarray, adapted)
    return moved
