"""Post-training quantization of one network, operator by operator, on a few hundred images without labels.

What comes out is a `RoundedNet`, which `RoundedNet.in_integers` hands on to integer runtimes. All of it walks through
the network once. At each operator with a kernel it compares what the float network computes
before the activation with what the rounded one does, from what the operators before it, already dealt with, hand on
(the sequential variant of AdaQuant, Hubara et al., 2020, arXiv:2006.10518). Then it changes that operator:

* `correct_biases`: the bias, so that channels have the right mean (Nagel et al., 2019, arXiv:1906.04721, section 4.2,
  with measured means in place of those that the batch norms imply).
* `reestimate_norms`: scale and bias, so that channels have the right mean and variance: what re-estimating the batch
  norms of the rounded network and folding them again gives (AdaQuant, section 3.3).
* `reconstruct`: kernel, bias, scales and the range of the input, by gradient descent on the squared error of the output
  (AdaQuant, eq. 1-2, with a scale per output channel). The best of all epochs is kept, the start among them, so that no
  operator's error rises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Float32, Int

from hanax.search_spaces import FLOAT32, INPUT, Graph, Operator, PrecisionPlan
from hanax.supernet._fake_quant import LARGEST_KERNEL, Calibration, largest_value, quantize, quantize_activation
from hanax.supernet._folded_net import (
    FoldedNet,
    apply_operator,
    compute,
    image_chunks,
    network_input,
    range_array,
    raw_name,
    scores,
    tensor_codes,
    tensor_names,
    tensor_ranges,
)
from hanax.supernet._layers import activate
from hanax.supernet._quantized_net import IntegerKernel, QuantizedNet, check_integers, tensor_levels
from hanax.supernet._ranges import Ranges
from hanax.supernet._subnet import Subnet
from hanax.supernet._weights import Weights

BATCH = 32
"""Images per step of `reconstruct`."""

RATES = {"kernel": 0.02, "bias": 0.01, "scale": 0.005, "range": 0.005}
"""Learning rates, in steps of the kernel's format, deviations of the channel, and logarithms of scale and range."""

TINY = 1e-12


@dataclass(frozen=True, eq=False)
class RoundedNet:
    """A network whose kernels hold only numbers of their formats.

    Attributes:
        plan: The formats.
        weights: Of every operator with a kernel: ``kernel``, rounded; ``scale``, one unit of it per output channel (of
            no meaning for a float kernel); ``bias``.
        ranges: Between which values each tensor is rounded.
        errors: By operator, of the last walk: the squared error of what it computes before its activation, as a share
            of the square of what the float network computes there, before and after the operator was changed.
        n_calibration: Images that the ranges come from.
        calibration: How they were found.
    """

    graph: Graph
    plan: PrecisionPlan
    weights: Weights
    ranges: Ranges
    errors: Mapping[str, tuple[float, float]]
    n_calibration: int
    calibration: Calibration

    def in_integers(self, subnet: Subnet) -> QuantizedNet:
        """This network for integer runtimes: what models are written from, and what can be certified.

        Args:
            subnet: The one that it was made of, which knows the architecture and how images are normalised.

        Raises:
            ValueError: `subnet` has another graph, or the plan other formats than integers of 2 to 8 bits.
        """
        if subnet.graph != self.graph:
            raise ValueError("the subnet is another network than the one that was rounded; give that one's")
        check_integers(self.plan)
        tensors = tensor_levels(self.graph, self.plan, self.ranges)
        kernels = {}
        for op in self.graph.operators:
            if op.is_weighted:
                entries = self.weights[op.name]
                scale = entries["scale"].reshape(-1, *[1] * (entries["kernel"].ndim - 1))
                integers = np.rint(entries["kernel"] / np.maximum(scale, TINY)).astype(np.int8)
                kernel = IntegerKernel(self.plan.kernels[op.name], integers, entries["scale"], entries["bias"])
                kernels[op.name] = kernel.for_input(tensors[op.inputs[0]].scale)
        return QuantizedNet(
            subnet.arch, self.graph, kernels, tensors, subnet.space_fingerprint, subnet.input_mean, subnet.input_std,
            self.n_calibration, self.calibration,
        )  # fmt: skip

    def logits(self, images: Float32[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n classes"]:
        """Logits of normalised images."""
        found: Float[np.ndarray, "n classes"] = np.asarray(
            _logits(self.graph, *self._arrays(), network_input(images)), np.float32
        )
        return found

    def accuracy(
        self, images: Float32[np.ndarray, "n c h w"], labels: Int[np.ndarray, " n"], *, chunk: int = 512
    ) -> float:
        """Share of normalised images of which the class is right.

        Args:
            chunk: Images at a time.
        """
        everything = frozenset(tensor_names(self.graph))
        parts = [scores(self.graph, everything, *self._arrays(), *of) for of in image_chunks(images, labels, chunk)]
        return float(np.sum([float(part[1]) for part in parts]))

    def _arrays(self) -> tuple[dict[str, Array], dict[str, Array], Array, Array]:
        kernels, biases = (
            {name: jnp.asarray(entries[of]) for name, entries in self.weights.items()} for of in ("kernel", "bias")
        )
        codes, ranges = tensor_codes(self.graph, self.plan), range_array(self.graph, self.ranges)
        return kernels, biases, jnp.asarray(codes), jnp.asarray(ranges)

    def __str__(self) -> str:
        lines = [f"rounded network of {len(self.weights)} kernels"]
        for name, (before, after) in self.errors.items():
            lines.append(f"{name:<32} squared error {before:10.3%} -> {after:10.3%}")
        return "\n".join(lines)


@partial(jax.jit, static_argnames=("graph",))
def _logits(
    graph: Graph, kernels: dict[str, Array], biases: dict[str, Array], codes: Array, ranges: Array, x: Array
) -> Array:
    rounded = frozenset(tensor_names(graph))
    return compute(graph, kernels, biases, x, codes=codes, ranges=ranges, rounded=rounded)[0]


def round_to_nearest(
    net: FoldedNet,
    plan: PrecisionPlan,
    images: Float32[np.ndarray, "n c h w"],
    *,
    calibration: Calibration = "minmax",
) -> RoundedNet:
    """`net` in the formats of `plan`, each value of a kernel to the nearest; see `kernel_scale` for the scales.

    Args:
        images: Normalised; the ranges of tensors come from what the float network computes for them.
        calibration: How ranges are found.

    Raises:
        ValueError: There are no images, or `plan` lacks a kernel.
    """
    missing = [name for name in net.weights if name not in plan.kernels]
    if missing:
        raise ValueError(f"the plan needs a format for each kernel; there is none for {', '.join(missing[:5])}")
    by_code = {code: net.rounded_kernels(code) for code in {plan.kernels[name] for name in net.weights}}
    weights = {
        name: by_code[plan.kernels[name]][name] | {"bias": entries["bias"]} for name, entries in net.weights.items()
    }
    ranges = tensor_ranges(net, images, calibration)
    return RoundedNet(net.graph, plan, weights, ranges, {}, len(images), calibration)


def correct_biases(net: FoldedNet, rounded: RoundedNet, images: Float32[np.ndarray, "n c h w"]) -> RoundedNet:
    """`rounded` with biases such that the output of every operator with a kernel has the mean that it has in `net`."""

    def tune(site: _Site) -> _Tuned:
        shift = (site.wanted - site.output(site.entries, site.range)).mean(axis=(1, 2, 3))
        return site.entries | {"bias": site.entries["bias"] + shift}, site.range

    return _walk(net, rounded, images, tune)


def reestimate_norms(net: FoldedNet, rounded: RoundedNet, images: Float32[np.ndarray, "n c h w"]) -> RoundedNet:
    """`rounded` with scales and biases such that what a batch norm follows has the mean and the variance of `net`."""

    def tune(site: _Site) -> _Tuned:
        if not site.op.has_norm:
            return site.entries, site.range
        found = site.output(site.entries, site.range)
        mean, deviation = found.mean(axis=(1, 2, 3)), found.std(axis=(1, 2, 3))
        wanted_mean, wanted_deviation = site.wanted.mean(axis=(1, 2, 3)), site.wanted.std(axis=(1, 2, 3))
        gain = jnp.where(deviation > TINY, wanted_deviation / jnp.maximum(deviation, TINY), 1.0)
        kernel, bias, scale = (site.entries[of] for of in ("kernel", "bias", "scale"))
        gained = kernel * gain.reshape(-1, *[1] * (kernel.ndim - 1))
        return {"kernel": gained, "scale": scale * gain, "bias": (bias - mean) * gain + wanted_mean}, site.range

    return _walk(net, rounded, images, tune)


def reconstruct(
    net: FoldedNet,
    plan: PrecisionPlan,
    images: Float32[np.ndarray, "n c h w"],
    *,
    n_epochs: int = 30,
    calibration: Calibration = "minmax",
    seed: int = 0,
) -> RoundedNet:
    """`net` in the formats of `plan`, with kernels, biases, scales and ranges that give the least squared errors found.

    The range of a tensor is learned with the first operator with a kernel that reads it. The start is
    `round_to_nearest`.

    Args:
        images: A few hundred, normalised.
        n_epochs: Passes over them for each operator, with Adam and a rate that falls to 0 as half a cosine.
        calibration: How ranges are found to start with.
        seed: Of the order of batches.

    Raises:
        ValueError: There are no images or epochs, or `plan` lacks a kernel.
    """
    if n_epochs < 1:
        raise ValueError(f"n_epochs must be at least 1; got {n_epochs}")
    start = round_to_nearest(net, plan, images, calibration=calibration)
    learned = {op.name for op in net.graph.operators if op.activation == "hsigmoid"}  # they are from 0 to 1
    rng = np.random.default_rng(seed)

    def tune(site: _Site) -> _Tuned:
        tensor = site.op.inputs[0]
        moves_range = tensor not in learned and plan.tensors.get(tensor, FLOAT32) != FLOAT32
        learned.add(tensor)
        batch = min(BATCH, len(images))
        places = np.linspace(0, len(images) - batch, -(-len(images) // batch)).astype(np.int32)
        starts = np.stack([rng.permutation(places) for _ in range(n_epochs)])
        start_at = {"kernel": net.kernels[site.op.name], **{of: site.entries[of] for of in ("scale", "bias")}}
        entries, found = _fit(
            _anonymous(site.op), batch, start_at, site.x, site.wanted, site.range,
            plan.kernels[site.op.name], site.code, float(moves_range), starts,
        )  # fmt: skip
        return entries, found

    return _walk(net, start, images, tune)


# ---- the walk -------------------------------------------------------------------------------------------------

_Entries = dict[str, Array]
_Tuned = tuple[_Entries, Array]
"""Kernel, scale and bias of an operator, and the range of what it reads."""


@dataclass(frozen=True, eq=False)
class _Site:
    """An operator with a kernel, about to be changed.

    Attributes:
        entries: Its kernel, scale and bias so far.
        x: What it reads, before it is rounded.
        range: Between which values that is rounded.
        code: In which format.
        wanted: What the float network computes before the activation.
    """

    op: Operator
    entries: _Entries
    x: Array
    range: Array
    code: int
    wanted: Array

    def output(self, entries: _Entries, between: Array) -> Array:
        """What the operator computes before the activation."""
        codes = np.array([self.code])
        computed: Array = _operate(
            _anonymous(self.op), entries["kernel"], entries["bias"], (self.x,), between[None], codes
        )
        return computed

    def error(self, entries: _Entries, between: Array) -> float:
        """Squared error of that as a share of the square of what is wanted."""
        wrong = float(jnp.square(self.output(entries, between) - self.wanted).sum())
        return wrong / max(float(jnp.square(self.wanted).sum()), TINY)


def _walk(
    net: FoldedNet,
    rounded: RoundedNet,
    images: Float32[np.ndarray, "n c h w"],
    tune: Callable[[_Site], _Tuned],
) -> RoundedNet:
    """`rounded` with what `tune` makes of each operator with a kernel, in order of execution."""
    if len(images) == 0:
        raise ValueError("what the network computes is compared for images; there are none")
    graph = net.graph
    position = {name: index for index, name in enumerate(tensor_names(graph))}
    codes = tensor_codes(graph, rounded.plan)
    between = range_array(graph, rounded.ranges)
    last_use = {name: step for step, op in enumerate(graph.operators) for name in op.inputs}
    exact, own = {INPUT: network_input(images)}, {INPUT: network_input(images)}
    weights: Weights = {}
    errors: dict[str, tuple[float, float]] = {}
    for step, op in enumerate(graph.operators):
        kind, reads = _anonymous(op), [position[name] for name in op.inputs]
        unrounded = np.full(len(reads), FLOAT32)
        kernel, bias = net.kernels.get(op.name), net.biases.get(op.name)
        inputs = tuple(exact[name] for name in op.inputs)
        wanted = _operate(kind, kernel, bias, inputs, between[reads], unrounded)
        if op.is_weighted:
            entries = {of: jnp.asarray(array) for of, array in rounded.weights[op.name].items()}
            site = _Site(op, entries, own[op.inputs[0]], jnp.asarray(between[reads[0]]), int(codes[reads[0]]), wanted)
            before = site.error(entries, site.range)
            entries, found = tune(site)
            between[reads[0]] = np.asarray(found)
            errors[op.name] = (before, site.error(entries, found))
            weights[op.name] = {of: np.asarray(array, np.float32) for of, array in entries.items()}
            kernel, bias = entries["kernel"], entries["bias"]
        computed = _operate(kind, kernel, bias, tuple(own[name] for name in op.inputs), between[reads], codes[reads])
        raw = position[raw_name(op.name)] if op.activation == "hswish" else 0
        exact[op.name] = _activate(kind, wanted, between[raw], FLOAT32)
        own[op.name] = _activate(kind, computed, between[raw], int(codes[raw]))
        for name in op.inputs:
            if last_use[name] == step:
                exact.pop(name, None), own.pop(name, None)
    ranges = {name: (float(between[i, 0]), float(between[i, 1])) for name, i in position.items()}
    return dataclasses.replace(rounded, weights=weights, ranges=ranges, errors=errors)


def _anonymous(op: Operator) -> Operator:
    """`op` without its name: operators that compute the same share executables."""
    return dataclasses.replace(op, name="operator", inputs=(INPUT,) * len(op.inputs))


@partial(jax.jit, static_argnames=("op",))
def _operate(
    op: Operator,
    kernel: Array | None,
    bias: Array | None,
    inputs: tuple[Array, ...],
    ranges: Array,
    codes: Array,
) -> Array:
    """What `op` computes before its activation from inputs that it rounds."""
    read = [quantize_activation(x, ranges[i, 0], ranges[i, 1], codes[i]) for i, x in enumerate(inputs)]
    return apply_operator(op, kernel, bias, read)


@partial(jax.jit, static_argnames=("op",))
def _activate(op: Operator, y: Array, between: Array, code: Array | int) -> Array:
    """The activation of `op`; a hard swish rounds what it reads."""
    read = quantize_activation(y, between[0], between[1], code) if op.activation == "hswish" else y
    return activate(read, op.activation)


_Descent = tuple[_Entries, Any, Array]
"""Changes so far, the state of Adam, and the steps taken."""

_Epoch = tuple[_Descent, _Entries, Array]
"""Also the changes at the end of the best epoch, and their error."""


@partial(jax.jit, static_argnames=("op", "batch"))
def _fit(
    op: Operator,
    batch: int,
    start: _Entries,
    x: Array,
    wanted: Array,
    between: Array,
    kernel_code: Array | int,
    code: Array | int,
    moves_range: Array | float,
    starts: Int[Array, "epochs steps"],
) -> _Tuned:
    """Kernel, scale, bias and range with the least squared error over all images at the end of any epoch.

    Args:
        start: The float kernel, its scales and the bias.
        moves_range: 1 if the range is learned, 0 if it is another operator's.
        starts: First image of each batch.
    """
    per_channel = (-1, *[1] * (start["kernel"].ndim - 1))
    deviation = jnp.maximum(wanted.std(axis=(1, 2, 3)), TINY)
    is_minifloat = (jnp.asarray(kernel_code) > 100) & (jnp.asarray(kernel_code) < FLOAT32)
    largest = jnp.where(
        is_minifloat, largest_value(kernel_code), jnp.minimum(largest_value(kernel_code), LARGEST_KERNEL)
    )
    changes = {
        "kernel": jnp.zeros_like(start["kernel"]),
        "bias": jnp.zeros_like(start["bias"]),
        "scale": jnp.zeros_like(start["scale"]),
        "range": jnp.zeros(()),
    }

    def result(changes: _Entries) -> _Tuned:
        unit = start["scale"].reshape(per_channel)
        scale = unit * jnp.exp(changes["scale"]).reshape(per_channel)
        kernel = quantize(start["kernel"] + changes["kernel"] * unit, scale, -largest, largest, kernel_code)
        entries = {"kernel": kernel, "scale": scale.reshape(-1), "bias": start["bias"] + changes["bias"] * deviation}
        return entries, between * jnp.exp(moves_range * changes["range"])

    def squared_error(changes: _Entries, x: Array, wanted: Array) -> Array:
        entries, between = result(changes)
        read = quantize_activation(x, between[0], between[1], code)
        return jnp.square(apply_operator(op, entries["kernel"], entries["bias"], [read]) - wanted).mean()

    n_steps = starts.size
    size = jnp.square(wanted).mean() + TINY
    optimizer = optax.scale_by_adam()

    def step(carry: _Descent, first: Array) -> tuple[_Descent, None]:
        changes, state, count = carry
        own = (jax.lax.dynamic_slice_in_dim(array, first, batch, axis=3) for array in (x, wanted))
        gradient = jax.grad(lambda changes: squared_error(changes, *own) / size)(changes)
        updates, state = optimizer.update(gradient, state)
        share = 0.5 * (1 + jnp.cos(jnp.pi * count / n_steps))
        changes = {name: value - RATES[name] * share * updates[name] for name, value in changes.items()}
        return (changes, state, count + 1), None

    def epoch(carry: _Epoch, firsts: Array) -> tuple[_Epoch, None]:
        descent, best, least = carry
        descent, _ = jax.lax.scan(step, descent, firsts)
        error = squared_error(descent[0], x, wanted)
        best = {name: jnp.where(error < least, value, best[name]) for name, value in descent[0].items()}
        return (descent, best, jnp.minimum(error, least)), None

    first: _Epoch = (
        (changes, optimizer.init(changes), jnp.zeros(())),
        changes,
        squared_error(changes, x, wanted),
    )
    (_, best, _), _ = jax.lax.scan(epoch, first, starts)
    return result(best)
