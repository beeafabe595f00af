"""The network of `QuantizedAccuracyPredictor`: its layers, their training on many samples, and its tangent at a point.

Shapes: `n` samples, `a` columns about the architecture, `b` about bits, `w` units of a layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hanax.predictors._leave_one_out import Floats

Weights = dict[str, Floats]
"""Arrays by name: ``bits``, and ``matrix0``, ``offset0`` and so on to the output; matrices have inputs in rows."""

BITS = "bits"
"""The map of bits into the first pre-activation (Wang et al., 2020, arXiv:2006.08509), without an own offset."""
STRETCH = "stretch"
"""A factor on the output."""

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
BATCH_SIZE = 64
LEAST_STEPS_PER_LOOK = 10
N_LOOKS = 40
MOMENTS = (0.9, 0.999)
"""Decay of Adam's averages of gradients and of their squares (Kingma & Ba, 2015, arXiv:1412.6980)."""


def initial_weights(n_architecture: int, hidden: Sequence[int], rng: np.random.Generator) -> Weights:
    """Random weights that keep the variance of what enters (He et al., 2015, arXiv:1502.01852).

    Rows that enter have a mean squared length of about 1.
    """
    weights = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise((n_architecture, *hidden, 1))):
        weights[f"matrix{layer}"] = np.sqrt(_variance(layer, n_in)) * rng.normal(size=(n_in, n_out))
        weights[f"offset{layer}"] = np.zeros(n_out)
    return weights


def _variance(layer: int, n_in: int) -> float:
    """Variance of a matrix at the start, and of the moves of its entries that are expected."""
    return 2.0 if layer == 0 else 2.0 / n_in


def outputs(weights: Weights, architecture: Floats) -> Floats:
    """What the network says of architectures (n, a), shape (n,)."""
    return _forward(weights, architecture)[-1][:, 0]


def _forward(weights: Weights, architecture: Floats) -> list[Floats]:
    """Pre-activations of all layers, the output as the last, shapes (n, w)."""
    values = [architecture @ weights["matrix0"] + weights["offset0"]]
    for layer in range(1, _n_layers(weights)):
        values.append(np.maximum(values[-1], 0.0) @ weights[f"matrix{layer}"] + weights[f"offset{layer}"])
    return values


def _n_layers(weights: Mapping[str, Floats]) -> int:
    """Layers of the network, the output among them."""
    return sum(name.startswith("matrix") for name in weights)


# ---- many samples: stochastic gradients -----------------------------------------------------------------------------


def train(
    start: Weights, architecture: Floats, targets: Floats, is_held_out: np.ndarray, rng: np.random.Generator
) -> tuple[Weights, float]:
    """The network without bits after the epoch that served the samples held out best, and its mean squared error there.

    Adam with decoupled weight decay on batches, at a rate that falls to 0 as a half cosine.
    """
    x, y = architecture[~is_held_out].astype(np.float32), targets[~is_held_out].astype(np.float32)
    weights: dict[str, Any] = {name: array.astype(np.float32) for name, array in start.items()}
    means = {name: np.zeros_like(array) for name, array in weights.items()}
    squares = {name: np.zeros_like(array) for name, array in weights.items()}
    per_look = max(LEAST_STEPS_PER_LOOK, -(-len(y) // BATCH_SIZE))
    n_steps = N_LOOKS * per_look
    best, least = start, np.inf
    for step, rows in enumerate(itertools.islice(_batches(len(y), rng), n_steps), start=1):
        rate = LEARNING_RATE * 0.5 * (1.0 + np.cos(np.pi * step / n_steps))
        for name, slope in _gradient(weights, x[rows], y[rows]).items():
            means[name] += (1.0 - MOMENTS[0]) * (slope - means[name])
            squares[name] += (1.0 - MOMENTS[1]) * (slope**2 - squares[name])
            mean, square = means[name] / (1.0 - MOMENTS[0] ** step), squares[name] / (1.0 - MOMENTS[1] ** step)
            decay = WEIGHT_DECAY * weights[name] if name.startswith("matrix") else 0.0
            weights[name] = weights[name] - np.float32(rate) * (mean / (np.sqrt(square) + 1e-8) + decay)
        if step % per_look == 0:
            now = {name: array.astype(np.float64) for name, array in weights.items()}
            error = float(np.mean((outputs(now, architecture[is_held_out]) - targets[is_held_out]) ** 2))
            if error < least:
                best, least = now, error
    return best, least


def _batches(n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of batches without end, every one of `n` as often as the others."""
    while True:
        order = rng.permutation(n)
        yield from np.array_split(order, -(-n // BATCH_SIZE))


def _gradient(weights: Weights, architecture: Floats, targets: Floats) -> Weights:
    """Of the mean squared error."""
    values = _forward(weights, architecture)
    slope = (2.0 / len(targets)) * (values[-1] - targets[:, None])
    gradient = {}
    for layer in reversed(range(len(values))):
        entered = architecture if layer == 0 else np.maximum(values[layer - 1], 0.0)
        gradient[f"matrix{layer}"], gradient[f"offset{layer}"] = entered.T @ slope, slope.sum(axis=0)
        if layer:
            slope = (slope @ weights[f"matrix{layer}"].T) * (values[layer - 1] > 0)
    return gradient


# ---- few samples: the tangent at the weights ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tangent:
    """How the output for each sample changes with every weight, at the weights of a network; its map of bits is 0.

    Attributes:
        output: Shape (n,).
        entered: What enters each layer, shapes (n, w).
        slopes: Of the output with respect to the pre-activation of each layer, shapes (n, w).
    """

    output: Floats
    entered: tuple[Floats, ...]
    slopes: tuple[Floats, ...]

    @staticmethod
    def at(weights: Weights, architecture: Floats) -> Tangent:
        """At `weights`, for architectures (n, a)."""
        values = _forward(weights, architecture)
        slope = np.ones((len(architecture), 1))
        slopes = [slope]
        for layer in range(len(values) - 1, 0, -1):
            slope = (slope @ weights[f"matrix{layer}"].T) * (values[layer - 1] > 0)
            slopes.insert(0, slope)
        entered = (architecture, *(np.maximum(value, 0.0) for value in values[:-1]))
        return Tangent(values[-1][:, 0], entered, tuple(slopes))

    def bits_kernel(self, bits: Floats) -> Floats:
        """Covariance of the changes that moving the map of bits at random makes, shape (n, n)."""
        return np.asarray((self.slopes[0] @ self.slopes[0].T) * (bits @ bits.T))

    def network_kernel(self) -> Floats:
        """The same of moving all other weights, and of stretching the output; its offset stays, shape (n, n)."""
        total = np.outer(self.output, self.output)
        for layer, (entered, slope) in enumerate(zip(self.entered, self.slopes, strict=True)):
            alike = _variance(layer, entered.shape[1]) * (entered @ entered.T)
            if layer < len(self.slopes) - 1:
                alike += 1.0
            total += (slope @ slope.T) * alike
        return total


def moved_weights(tangent: Tangent, bits: Floats, of_bits: Floats, of_rest: Floats) -> Weights:
    """How far each weight moves so that the output for samples changes by the two kernels times these, shapes (n,)."""
    moves = {BITS: bits.T @ (of_bits[:, None] * tangent.slopes[0]), STRETCH: np.array([of_rest @ tangent.output])}
    for layer, (entered, slope) in enumerate(zip(tangent.entered, tangent.slopes, strict=True)):
        push = of_rest[:, None] * slope
        moves[f"matrix{layer}"] = _variance(layer, entered.shape[1]) * (entered.T @ push)
        moves[f"offset{layer}"] = push.sum(axis=0) if layer < len(tangent.slopes) - 1 else np.zeros(1)
    return moves


def no_moves(weights: Weights) -> Weights:
    """Moves of a network that stays as it is, without bits."""
    moves = {name: np.zeros_like(array) for name, array in weights.items()}
    return moves | {BITS: np.zeros((0, weights["matrix0"].shape[1])), STRETCH: np.zeros(1)}


def along_tangent(weights: Weights, moves: Weights, architecture: Floats, bits: Floats) -> tuple[Floats, Floats]:
    """What a network says of architectures (n, a), and how `moves` change that with bits (n, b), both shape (n,)."""
    value = architecture @ weights["matrix0"] + weights["offset0"]
    change = architecture @ moves["matrix0"] + moves["offset0"] + bits @ moves[BITS]
    for layer in range(1, _n_layers(weights)):
        is_on = value > 0
        entered, change = np.where(is_on, value, 0.0), np.where(is_on, change, 0.0)
        change = change @ weights[f"matrix{layer}"] + entered @ moves[f"matrix{layer}"] + moves[f"offset{layer}"]
        value = entered @ weights[f"matrix{layer}"] + weights[f"offset{layer}"]
    return value[:, 0], change[:, 0] + moves[STRETCH] * value[:, 0]
