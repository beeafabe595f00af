"""The graph network of `OperationWisePredictor`, in JAX; imported only when such a predictor learns or predicts.

NASFLAT (Akhauri & Abdelfattah, 2024, arXiv:2403.02446) from its description, in pure functions over flat weights.

Shapes: `r` rows (architectures), `v` vertices (input, decisions, output), `k` options of a vertex at most, `c`
channels, `f` features beside the graph, `h` numbers that describe a device, `m` source devices, `w` weights, `t` trials
(fits to different samples at once), `s` devices of a step, each with `b` architectures. Vertices come first, so that
mixing them and mixing channels are one matrix product each.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray

Weights = dict[str, Array]
_State = tuple[tuple[Array, Array], optax.OptState]
"""Flat weights and embeddings of devices, and what the optimizer remembers."""

Arrays = NDArray[np.float32]

RANKING_MARGIN = 0.1
WEIGHT_DECAY = 1e-5
NORM_EPSILON = 1e-5
STEPS_BETWEEN_STOPS = 5
"""Of `adapt`."""


@dataclass(frozen=True, slots=True)
class NetSize:
    """Everything that decides the shapes of the weights, and so what is compiled.

    Attributes:
        vertices: Decisions and two, `v`.
        options: Of the decision that has most, `k`.
        features: Beside the graph, `f`.
        operation, hardware: Numbers that describe an operation and a device.
        width: Channels of a vertex, `c`.
        layers: Of the graph network.
        hidden: Widths of the layers after it.
    """

    vertices: int
    options: int
    features: int
    operation: int
    hardware: int
    width: int
    layers: int
    hidden: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Architectures as the network sees them, in float32.

    Attributes:
        choices: Shape (r, v, k): 1 at the option that a vertex takes; all 0 where it is switched off. Input and output
            take their option 0.
        features: Shape (r, f), standardised.
    """

    choices: Arrays
    features: Arrays

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Inputs:
        return Inputs(self.choices[rows], self.features[rows])

    def __len__(self) -> int:
        return len(self.choices)


# ---- weights --------------------------------------------------------------------------------------------------


def weight_shapes(net: NetSize) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, in the order in which they follow each other in the flat vector."""
    c, e = net.width, net.operation
    shapes: dict[str, tuple[int, ...]] = {
        "option": (net.vertices, net.options, e),
        "vertex": (net.vertices, c),
        "fuse_operation": (e, e),
        "fuse_device": (net.hardware, e),
        "fuse_offset": (e,),
        "fuse_output": (e, e),
        "gate": (e, net.layers * c),
        "gate_offset": (net.layers * c,),
    }
    for layer in range(net.layers):
        shapes |= {
            f"mix{layer}": (c, 2 * c),
            f"mix_offset{layer}": (c,),
            f"query{layer}": (c,),
            f"key{layer}": (c,),
            f"norm_scale{layer}": (c,),
            f"norm_offset{layer}": (c,),
        }
    widths = (2 * c + net.features, *net.hidden, 1)
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"head{layer}": (n_in, n_out), f"head_offset{layer}": (n_out,)}
    return shapes


def initial_weights(net: NetSize, rng: np.random.Generator) -> Arrays:
    """Random weights, shape (w,): embeddings of unit variance, matrices that keep the variance of what enters."""
    parts = []
    for name, shape in weight_shapes(net).items():
        if "offset" in name:
            value = np.zeros(shape)
        elif "norm_scale" in name:
            value = np.ones(shape)
        else:
            is_embedding = name in ("option", "vertex")
            value = rng.normal(size=shape) / math.sqrt(1 if is_embedding else shape[0])
        parts.append(value.astype(np.float32).ravel())
    return np.concatenate(parts)


def _unflatten(net: NetSize, vector: Array) -> Weights:
    weights, start = {}, 0
    for name, shape in weight_shapes(net).items():
        stop = start + math.prod(shape)
        weights[name] = vector[start:stop].reshape(shape)
        start = stop
    return weights


def _flatten(net: NetSize, weights: Weights) -> Array:
    return jnp.concatenate([weights[name].ravel() for name in weight_shapes(net)])


# ---- the network ----------------------------------------------------------------------------------------------


def incoming_edges(adjacency: NDArray[np.bool_]) -> Arrays:
    """Which vertices each one hears, shape (1 + most incoming edges, v, v): itself, then its sources one by one.

    Entry ``[i, to, from]`` is 1 where `from` is the `i`-th that `to` hears; a row of zeros where it hears fewer.
    """
    v = len(adjacency)
    incoming = np.zeros((1 + int(adjacency.sum(axis=0).max()), v, v), dtype=np.float32)
    incoming[0] = np.eye(v)
    for to in range(v):
        for i, source in enumerate(np.flatnonzero(adjacency[:, to])):
            incoming[1 + i, to, source] = 1.0
    return incoming


def _forward(net: NetSize, weights: Weights, incoming: Array, choices: Array, features: Array, devices: Array) -> Array:
    """Rank scores, shape (r,), of architectures on `devices`, shape (r, h), or (1, h) for all on the same."""
    operations = jnp.einsum("rvk,vke->vre", choices, weights["option"])
    fused = jnp.dot(operations, weights["fuse_operation"])
    fused = jax.nn.relu(fused + (jnp.dot(devices, weights["fuse_device"]) + weights["fuse_offset"][None])[None])
    operations = operations + jnp.dot(fused, weights["fuse_output"])
    gates = jax.nn.sigmoid(jnp.dot(operations, weights["gate"]) + weights["gate_offset"][None, None])
    x = weights["vertex"][:, None]
    for layer, gate in enumerate(jnp.split(gates, net.layers, axis=2)):
        x = _graph_layer({name: weights[f"{name}{layer}"] for name in _LAYER}, incoming, gate, x)
    x = jnp.concatenate([x[-1], x[1:-1].mean(axis=0), features], axis=1)
    for layer in range(len(net.hidden) + 1):
        x = jnp.dot(x if layer == 0 else jax.nn.relu(x), weights[f"head{layer}"]) + weights[f"head_offset{layer}"][None]
    return x[:, 0]


_LAYER = ("mix", "mix_offset", "query", "key", "norm_scale", "norm_offset")


def _graph_layer(weights: Weights, incoming: Array, gate: Array, x: Array) -> Array:
    """Dense graph flow and graph attention, added; `gate` and the result are (v, r, c), `x` too or (v, 1, c).

    What a vertex hears from its neighbours passes the gate of its operation; what it knows itself does not.
    """
    flow, value = jnp.split(jnp.dot(x, weights["mix"]), 2, axis=2)
    gathered = _gather(incoming[1:].sum(axis=0)[None], flow)[0]
    asks, offers = jnp.dot(value, weights["query"]), jnp.dot(value, weights["key"])
    logits = jax.nn.leaky_relu(asks[None] + _gather(incoming, offers[:, :, None])[..., 0], 0.2)
    attention = jax.nn.softmax(jnp.where(incoming.sum(axis=2)[:, :, None] > 0, logits, -1e9), axis=0)
    attended = (attention[..., None] * _gather(incoming, value)).sum(axis=0)
    x = gate * (gathered + attended) + flow + weights["mix_offset"][None, None]
    x = x - x.mean(axis=2, keepdims=True)
    x = x * jax.lax.rsqrt((x**2).mean(axis=2, keepdims=True) + NORM_EPSILON)
    return jax.nn.relu(x * weights["norm_scale"][None, None] + weights["norm_offset"][None, None])


def _gather(incoming: Array, x: Array) -> Array:
    """`x`, shape (v, r, c), at the vertices that each one hears, shape (i, v, r, c), as one matrix product."""
    n, v, _ = incoming.shape
    return jnp.dot(incoming.reshape(n * v, v), x.reshape(v, -1)).reshape(n, v, *x.shape[1:])


def ranking_loss(scores: Array, costs: Array, keep: Array) -> Array:
    """Mean over pairs of different cost of ``max(0, margin - (score of the costlier - score of the other))``."""
    is_costlier = (costs[:, None] > costs[None, :]) & keep[:, None] & keep[None, :]
    missing = jax.nn.relu(RANKING_MARGIN - (scores[:, None] - scores[None, :]))
    return jnp.where(is_costlier, missing, 0.0).sum() / jnp.maximum(is_costlier.sum(), 1)


# ---- learning and predicting ----------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="net")
def meta_train(
    net: NetSize,
    learning_rate: float,
    weights: Array,
    devices: Array,
    incoming: Array,
    choices: Array,
    features: Array,
    costs: Array,
    picked: Array,
    rows: Array,
) -> tuple[Array, Array, Array]:
    """Learn to rank on source devices: weights (w,), embeddings (m, h) and the loss of every step.

    Args:
        weights, devices: To start from, shapes (w,) and (m, h).
        costs: Shape (r, m).
        picked: The devices of each step, shape (steps, s).
        rows: The architectures from which each of them learns, shape (steps, s, b), measured on that device.
    """
    optimizer = _optimizer(learning_rate, len(picked))

    def loss(weights: Weights, devices: Array, picked: Array, rows: Array) -> Array:
        flat = rows.reshape(-1)
        described = jnp.repeat(devices[picked], rows.shape[1], axis=0)
        scores = _forward(net, weights, incoming, choices[flat], features[flat], described).reshape(rows.shape)
        return jax.vmap(ranking_loss)(scores, costs[rows, picked[:, None]], jnp.ones(rows.shape, bool)).mean()

    def step(state: _State, batch: tuple[Array, Array]) -> tuple[_State, Array]:
        (weights, devices), memory = state
        value, (by_weights, by_devices) = jax.value_and_grad(loss, argnums=(0, 1))(
            _unflatten(net, weights), devices, *batch
        )
        gradient = (_flatten(net, by_weights), by_devices)
        change, memory = optimizer.update(gradient, memory, (weights, devices))
        return (optax.apply_updates((weights, devices), change), memory), value

    start = (weights, devices)
    ((weights, devices), _), losses = jax.lax.scan(step, (start, optimizer.init(start)), (picked, rows))
    return weights, devices, losses


@partial(jax.jit, static_argnames=("net", "n_stops"))
def adapt(
    net: NetSize,
    learning_rate: float,
    n_stops: int,
    weights: Array,
    incoming: Array,
    choices: Array,
    features: Array,
    costs: Array,
    keep: Array,
    devices: Array,
) -> tuple[Array, Array, Array]:
    """Fit to samples of a new device, and stop every `STEPS_BETWEEN_STOPS` steps; the first stop is the start.

    Returns weights (t, 1 + n_stops, w), embeddings (t, 1 + n_stops, h) and scores of all samples (t, 1 + n_stops, n).

    Args:
        weights: What `meta_train` learned, shape (w,).
        choices, features, costs: The samples, shapes (n, v, k), (n, f) and (n,).
        keep: From which of them each trial learns, shape (t, n).
        devices: The embedding from which each trial starts, shape (t, h).
    """
    optimizer = _optimizer(learning_rate, max(n_stops, 1) * STEPS_BETWEEN_STOPS)

    def loss(weights: Weights, device: Array, keep: Array) -> Array:
        return ranking_loss(_forward(net, weights, incoming, choices, features, device[None]), costs, keep)

    def scores(weights: Array, device: Array) -> Array:
        return _forward(net, _unflatten(net, weights), incoming, choices, features, device[None])

    def trial(keep: Array, device: Array) -> tuple[Array, Array, Array]:
        def step(state: _State, _: None) -> tuple[_State, None]:
            (weights, device), memory = state
            by_weights, by_device = jax.grad(loss, argnums=(0, 1))(_unflatten(net, weights), device, keep)
            change, memory = optimizer.update((_flatten(net, by_weights), by_device), memory, (weights, device))
            return (optax.apply_updates((weights, device), change), memory), None

        def stop(state: _State, _: None) -> tuple[_State, tuple[Array, Array]]:
            state, _ = jax.lax.scan(step, state, length=STEPS_BETWEEN_STOPS)
            return state, state[0]

        start = (weights, device)
        _, later = jax.lax.scan(stop, (start, optimizer.init(start)), length=n_stops)
        all_weights, all_devices = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, later)
        return all_weights, all_devices, jax.vmap(scores)(all_weights, all_devices)

    return jax.vmap(trial)(keep, devices)


@partial(jax.jit, static_argnames="net")
def _score_block(
    net: NetSize, weights: Array, incoming: Array, choices: Array, features: Array, devices: Array
) -> Array:
    return _forward(net, _unflatten(net, weights), incoming, choices, features, devices)


BLOCK_ROWS = (64, 2048)
"""Rows are scored in blocks of these sizes only, filled up, so that two programs are compiled whatever their number."""


def score(net: NetSize, weights: Arrays, incoming: Arrays, inputs: Inputs, devices: Arrays) -> Arrays:
    """Rank scores, shape (r,), of `inputs` on `devices`, shape (r, h): the higher, the costlier."""
    size = next((size for size in BLOCK_ROWS if len(inputs) <= size), BLOCK_ROWS[-1])
    scores = np.empty(len(inputs), dtype=np.float32)
    on_device = jnp.asarray(weights), jnp.asarray(incoming)
    for start in range(0, len(inputs), size):
        rows = np.minimum(np.arange(start, start + size), len(inputs) - 1)
        block = inputs[rows]
        found = _score_block(net, *on_device, block.choices, block.features, devices[rows])
        scores[start : start + size] = np.asarray(found)[: len(inputs) - start]
    return scores


def _optimizer(learning_rate: float, n_steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(learning_rate, n_steps), weight_decay=WEIGHT_DECAY)
