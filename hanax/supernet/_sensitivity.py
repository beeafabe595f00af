"""How much the loss of a network rises when its layers are put into number formats of few bits.

A *layer* is a group of operators that share a choice, an *option* a pair of formats for its kernels and what they read.
The rise of an assignment is predicted from a term per layer and, where layers compound each other's errors, one per
pair. Three methods find the terms:

* ``hawq``: half the mean of the Hessian's diagonal, estimated from its trace, times the squared rounding error of the
  kernels (HAWQ-V2, Dong et al., 2020, arXiv:1911.03852, eq. 10, without the factor). Kernels only, no pairs.
* ``hessian``: the second-order Taylor expansion in the rounding error ``d`` itself, ``g d + d H d / 2``, whose parts
  ``d_i H d_j`` are terms of layers and of pairs. Products with the whole Hessian take the place of its blocks in
  HAWQ-V2, and the gradient is kept, as a subnet of a supernet is at no minimum. Kernels only.
* ``perturbation``: the rise itself, with one layer rounded and with two: the cross-layer terms of CLADO (Deng et al.,
  2023, arXiv:2307.05657). Also of activations; needs no derivative, but a pass per pair.

The prediction of the last two is the "augmented" Hessian of mixed-precision quantization guided by bisection (Schaefer
et al., 2023, arXiv:2306.04879), which states no formula that we could follow: ours adds the terms of all pairs.

Shapes: `l` layers, `o` options, `m` assignments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int

from hanax.search_spaces import FLOAT32, Arch, Graph, Precision, SearchSpace, format_name, number_format, uniform_plan
from hanax.supernet._fake_quant import Calibration
from hanax.supernet._folded_net import (
    CHUNK,
    FoldedNet,
    Tensors,
    compute,
    cross_entropies,
    float_plan,
    image_chunks,
    range_array,
    scores,
    tensor_codes,
    tensor_names,
    tensor_ranges,
)

Method = Literal["hawq", "hessian", "perturbation"]

Layers = Mapping[str, Sequence[str]]
"""The operators of each layer."""

FLOAT: Precision = (FLOAT32, FLOAT32)


# ---- traces ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trace:
    """An estimate of the trace of the block of a Hessian that belongs to one array.

    Attributes:
        mean: Over the probes.
        standard_error: Of that mean.
        n_values: Of the array.
    """

    mean: float
    standard_error: float
    n_values: int


def hutchinson_traces(
    hessian_product: Callable[[Tensors], Tensors], like: Mapping[str, Array], *, n_probes: int = 32, seed: int = 0
) -> dict[str, Trace]:
    """The trace of the block of each array on the diagonal of a Hessian, from its products with random signs.

    ``E[v H v]`` is the trace for any `v` of independent signs (Hutchinson, 1990, doi:10.1080/03610919008812866). One
    product serves all arrays: what other arrays add to a block's sample has mean 0. It does add to the standard error.

    Args:
        hessian_product: Of vectors in the form of `like`.
        like: Arrays by name.
        n_probes: Products to take.
        seed: Of the signs.

    Raises:
        ValueError: There are fewer than 2 probes, which give no error.
    """
    if n_probes < 2:
        raise ValueError(f"n_probes must be at least 2, as the error comes from their spread; got {n_probes}")
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n_probes):
        signs = {name: rng.integers(0, 2, array.shape).astype(np.float32) * 2 - 1 for name, array in like.items()}
        product = hessian_product({name: jnp.asarray(sign) for name, sign in signs.items()})
        samples.append([np.vdot(sign, np.asarray(product[name], np.float64)) for name, sign in signs.items()])
    means, errors = np.mean(samples, axis=0), np.std(samples, axis=0, ddof=1) / np.sqrt(n_probes)
    return {
        name: Trace(float(mean), float(error), int(like[name].size))
        for name, mean, error in zip(like, means, errors, strict=True)
    }


def hessian_traces(
    net: FoldedNet,
    images: Float32[np.ndarray, "n c h w"],
    labels: Int[np.ndarray, " n"],
    *,
    n_probes: int = 32,
    seed: int = 0,
) -> dict[str, Trace]:
    """Trace of the Hessian of the mean cross-entropy (nats) by the kernel of each operator, see `hutchinson_traces`."""
    curvature = _Curvature(net, images, labels)
    return hutchinson_traces(lambda v: curvature.along(v)[1], net.kernels, n_probes=n_probes, seed=seed)


class _Curvature:
    """Gradients and Hessian products of the loss of the float network by its kernels, on some images."""

    def __init__(self, net: FoldedNet, images: Float32[np.ndarray, "n c h w"], labels: Int[np.ndarray, " n"]) -> None:
        self._net = net
        self._chunks = list(image_chunks(images, labels, CHUNK))

    def along(self, direction: Tensors) -> tuple[Tensors, Tensors]:
        """The gradient, and the product of the Hessian with `direction`."""
        parts = [_gradient_along(self._net.graph, self._net.kernels, self._net.biases, direction, *chunk)
                 for chunk in self._chunks]  # fmt: skip
        gradient, product = ({name: sum(part[i][name] for part in parts) for name in direction} for i in (0, 1))
        return gradient, product


@partial(jax.jit, static_argnames=("graph",))
def _gradient_along(
    graph: Graph, kernels: Tensors, biases: Tensors, direction: Tensors, x: Array, labels: Array, weight: Array
) -> tuple[Tensors, Tensors]:
    def loss(kernels: Tensors) -> Array:
        logits, _ = compute(graph, kernels, biases, x, twice=True)
        return weight @ cross_entropies(logits, labels)

    gradient, product = jax.jvp(jax.grad(loss), (kernels,), (direction,))
    return gradient, product


# ---- assignments ----------------------------------------------------------------------------------------------


def kernel_layers(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Every operator with a kernel and a batch norm as a layer of its own; others are in 8 bits in any policy."""
    return {op.name: (op.name,) for op in graph.operators if op.is_weighted and op.has_norm}


def slot_layers(space: SearchSpace, arch: Arch) -> dict[str, tuple[str, ...]]:
    """The layers that a policy of a quantized space decides about: the slots of `arch` but the first and the last.

    Each is its operators with a kernel and a batch norm.
    """
    graph, slots = space.graph(arch), [placed.slot.name for placed in space.blocks(arch)][1:-1]
    names = list(kernel_layers(graph))
    return {slot: tuple(name for name in names if name.startswith(f"{slot}.")) for slot in slots}


@dataclass(frozen=True)
class PolicyScores:
    """What assignments are worth on some images.

    Attributes:
        losses: Mean cross-entropy in nats, shape (m,).
        accuracies: In [0, 1], shape (m,).
    """

    losses: Float[np.ndarray, " m"]
    accuracies: Float[np.ndarray, " m"]


class PolicyEvaluator:
    """Loss and accuracy of a network under assignments of options to layers, after rounding to nearest.

    All assignments share one executable. Ranges are those of the float network.

    Args:
        net: The network.
        images: To score on, normalised.
        labels: Their classes.
        options: Formats of weights and activations, as codes or names. What an operator reads has the widest format of
            the layers that read it.
        layers: The operators of each layer; `kernel_layers` by default.
        base: Formats of all else, by the rules of a policy, and of a layer without an option. Float by default.
        ranges_from: Images that ranges come from; those to score on by default.
        calibration: How ranges are found.
        chunk: Images at a time.

    Raises:
        ValueError: There are no images or options, or a layer has no or unknown operators, or one of another layer.
    """

    def __init__(
        self,
        net: FoldedNet,
        images: Float32[np.ndarray, "n c h w"],
        labels: Int[np.ndarray, " n"],
        options: Sequence[tuple[str | int, str | int]],
        *,
        layers: Layers | None = None,
        base: tuple[str | int, str | int] = FLOAT,
        ranges_from: Float32[np.ndarray, "n c h w"] | None = None,
        calibration: Calibration = "minmax",
        chunk: int = 512,
    ) -> None:
        self.net = net
        self.layers: Layers = kernel_layers(net.graph) if layers is None else layers
        self.options = tuple((number_format(weights), number_format(activations)) for weights, activations in options)
        self.base: Precision = (number_format(base[0]), number_format(base[1]))
        _check_layers(net.graph, self.layers)
        if len(images) == 0 or len(images) != len(labels) or not self.options:
            raise ValueError(
                "losses need images, a label for each, and options; there are "
                f"{len(images)} images, {len(labels)} labels and {len(self.options)} options"
            )
        self._chunks = list(image_chunks(images, labels, chunk))
        plan = float_plan(net.graph) if self.base == FLOAT else uniform_plan(net.graph, *self.base)
        self._codes = tensor_codes(net.graph, plan)
        self._position = {name: position for position, name in enumerate(tensor_names(net.graph))}
        inputs = {op.name: op.inputs[0] for op in net.graph.operators if op.is_weighted}
        self._reads = {layer: [inputs[name] for name in of] for layer, of in self.layers.items()}
        everything = frozenset(tensor_names(net.graph))
        read = frozenset(itertools.chain.from_iterable(self._reads.values()))
        quantizes = any(activations != FLOAT32 for _, activations in self.options)
        self._rounded = everything if self.base != FLOAT else read if quantizes else frozenset[str]()
        source = images if ranges_from is None else ranges_from
        ranges = tensor_ranges(net, source, calibration) if self._rounded else dict.fromkeys(everything, (0.0, 0.0))
        self._ranges = jnp.asarray(range_array(net.graph, ranges))
        formats = {weights for weights, _ in self.options} - {FLOAT32}
        self._kernels: dict[int, Tensors] = {
            code: {name: jnp.asarray(of["kernel"]) for name, of in net.rounded_kernels(code).items()}
            for code in formats | set(plan.kernels.values()) - {FLOAT32}
        } | {FLOAT32: net.kernels}
        self._base_kernels = {name: self._kernels[code][name] for name, code in plan.kernels.items()}

    def __call__(self, choices: Int[np.ndarray, "m l"]) -> PolicyScores:
        """Scores of assignments: the option of each layer, in their order; -1 for the formats of `base`.

        Raises:
            ValueError: The choices have another shape, or an option does not exist.
        """
        if choices.shape[1:] != (len(self.layers),) or not ((choices >= -1) & (choices < len(self.options))).all():
            raise ValueError(
                f"choices must have shape (m, {len(self.layers)}), with options from -1 to {len(self.options) - 1}; "
                f"got shape {choices.shape}"
            )
        found = np.array([self._score(row) for row in choices]).reshape(-1, 2)
        return PolicyScores(found[:, 0], found[:, 1])

    def _score(self, choice: Int[np.ndarray, " l"]) -> tuple[float, float]:
        kernels, codes = dict(self._base_kernels), self._codes.copy()
        widest: dict[str, int] = {}
        for (layer, names), option in zip(self.layers.items(), choice.tolist(), strict=True):
            weights, activations = self.base if option < 0 else self.options[option]
            kernels |= {name: self._kernels[weights][name] for name in names if option >= 0}
            for tensor in self._reads[layer]:
                widest[tensor] = max(widest.get(tensor, 0), activations)
        for tensor, code in widest.items():
            codes[self._position[tensor]] = code
        parts = [
            scores(self.net.graph, self._rounded, kernels, self.net.biases, codes, self._ranges, *chunk)
            for chunk in self._chunks
        ]
        loss, accuracy = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
        return float(loss), float(accuracy)


def _check_layers(graph: Graph, layers: Layers) -> None:
    weighted = {op.name for op in graph.operators if op.is_weighted}
    named = list(itertools.chain.from_iterable(layers.values()))
    empty = [layer for layer, names in layers.items() if not names]
    wrong = [name for name in named if name not in weighted or named.count(name) > 1]
    if empty or wrong or not layers:
        problem = f"layer {empty[0]} has none" if empty else f"{wrong[0]} is not, or twice" if wrong else "no layer"
        raise ValueError(f"each layer needs operators that have a kernel and are in no other layer: {problem}")


# ---- sensitivities --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """The predicted rise of the loss, in nats, when layers take options; see the top of this file for the terms.

    Attributes:
        layers: Their names.
        options: Formats of weights and activations.
        method: How the terms were found.
        base: Loss of the network that terms are differences from.
        single: What each option of a layer adds by itself, shape (l, o).
        pairs: What the options of two layers add beside that, shape (l, o, l, o); symmetric, 0 within a layer.
        n_evaluations: Passes over the images that it took: losses, or products with the Hessian.
        traces: By operator; of ``hawq`` alone.
    """

    layers: tuple[str, ...]
    options: tuple[Precision, ...]
    method: Method
    base: float
    single: Float[np.ndarray, "l o"]
    pairs: Float[np.ndarray, "l o l o"]
    n_evaluations: int
    traces: Mapping[str, Trace]

    def predict(self, choices: Int[np.ndarray, "m l"], *, with_pairs: bool = True) -> Float[np.ndarray, " m"]:
        """Predicted loss of assignments, the option of each layer.

        Args:
            with_pairs: Whether to add the terms of pairs; without them the prediction is that of a diagonal Hessian.
        """
        own = np.arange(len(self.layers))
        loss = self.base + self.single[own, choices].sum(axis=1)
        if with_pairs:
            joint = self.pairs[own[:, None], choices[:, :, None], own[None, :], choices[:, None, :]]
            loss = loss + joint.sum(axis=(1, 2)) / 2
        return np.asarray(loss, np.float64)

    def __str__(self) -> str:
        names = [f"{format_name(weights)}/{format_name(activations)}" for weights, activations in self.options]
        width = max(map(len, self.layers), default=0)
        lines = [f"rise of the loss ({self.base:.4f}) by method {self.method}, {self.n_evaluations} evaluations"]
        lines.append(" " * width + "".join(f"{name:>16}" for name in names))
        for layer, row in zip(self.layers, self.single, strict=True):
            lines.append(f"{layer:<{width}}" + "".join(f"{value:>+16.5f}" for value in row))
        if self.pairs.any():
            i, a, j, b = np.unravel_index(np.abs(self.pairs).argmax(), self.pairs.shape)
            lines.append(
                f"largest term of a pair: {self.pairs[i, a, j, b]:+.5f}, "
                f"{self.layers[i]} in {names[a]} with {self.layers[j]} in {names[b]}"
            )
        return "\n".join(lines)


def sensitivities(
    net: FoldedNet,
    images: Float32[np.ndarray, "n c h w"],
    labels: Int[np.ndarray, " n"],
    options: Sequence[tuple[str | int, str | int]],
    *,
    layers: Layers | None = None,
    method: Method = "perturbation",
    with_pairs: bool = True,
    base: tuple[str | int, str | int] = FLOAT,
    ranges_from: Float32[np.ndarray, "n c h w"] | None = None,
    calibration: Calibration = "minmax",
    n_probes: int = 32,
    seed: int = 0,
) -> Sensitivities:
    """How much the loss rises when the layers of `net` are put into each of `options`.

    Args:
        net: The network.
        images: A few hundred, normalised.
        labels: Their classes.
        options: Formats of weights and activations, as codes or names.
        layers: The operators of each layer; `kernel_layers` by default.
        method: See the top of this file. The loss is computed once per layer and option (``perturbation``; once more
            per pair of them), or a Hessian product is taken (``hessian``: both kinds of terms at once), or `n_probes`
            (``hawq``).
        with_pairs: Whether to find the terms of pairs.
        base: For ``perturbation``, the formats that layers have otherwise; an option equal to it adds nothing.
        ranges_from: Images that ranges of activations come from; `images` by default.
        calibration: How ranges are found.
        n_probes: For ``hawq``, see `hutchinson_traces`.
        seed: For ``hawq``.

    Raises:
        ValueError: A derivative is asked for the formats of activations, which are no parameters, or from a `base` that
            is not float; otherwise as for `PolicyEvaluator`.
    """
    evaluator = PolicyEvaluator(
        net, images, labels, options, layers=layers, base=base, ranges_from=ranges_from, calibration=calibration
    )
    n_layers, n_options = len(evaluator.layers), len(evaluator.options)
    traces: dict[str, Trace] = {}
    if method == "perturbation":
        loss, single, pairs, n_evaluations = _perturbed(evaluator, with_pairs)
    else:
        if evaluator.base != FLOAT or any(activations != FLOAT32 for _, activations in evaluator.options):
            raise ValueError(
                f"method {method} differentiates by kernels: activations of all options, and the base, must be float32"
            )
        loss = float(evaluator(np.full((1, n_layers), -1)).losses[0])
        pairs = np.zeros((n_layers, n_options, n_layers, n_options))
        if method == "hawq":
            traces = hessian_traces(net, images, labels, n_probes=n_probes, seed=seed)
            errors = _rounding_errors(evaluator)
            single = np.array([
                [sum(traces[name].mean / traces[name].n_values * float((error[name] ** 2).sum()) for name in error) / 2
                 for error in of_layer]
                for of_layer in errors
            ])  # fmt: skip
            n_evaluations = 1 + n_probes
        else:
            single, pairs = _second_order(_Curvature(net, images, labels), _rounding_errors(evaluator), net.kernels)
            pairs = pairs * with_pairs
            n_evaluations = 1 + n_layers * n_options
    return Sensitivities(tuple(evaluator.layers), evaluator.options, method, loss, single, pairs, n_evaluations, traces)


def _rounding_errors(evaluator: PolicyEvaluator) -> list[list[dict[str, np.ndarray]]]:
    """What each option of each layer adds to its kernels, by operator."""
    exact = {name: entries["kernel"] for name, entries in evaluator.net.weights.items()}
    rounded = {code: evaluator.net.rounded_kernels(code) for code, _ in evaluator.options if code != FLOAT32}
    return [
        [{name: (rounded[code][name]["kernel"] if code in rounded else exact[name]) - exact[name] for name in names}
         for code, _ in evaluator.options]
        for names in evaluator.layers.values()
    ]  # fmt: skip


def _second_order(
    curvature: _Curvature, errors: list[list[dict[str, np.ndarray]]], kernels: Tensors
) -> tuple[Float[np.ndarray, "l o"], Float[np.ndarray, "l o l o"]]:
    """Terms of the Taylor expansion, of layers and of pairs."""
    shape = (len(errors), len(errors[0]))
    first, second = np.zeros(shape), np.zeros((*shape, *shape))
    zeros = {name: jnp.zeros_like(kernel) for name, kernel in kernels.items()}
    for layer, option in itertools.product(*map(range, shape)):
        own = errors[layer][option]
        along = zeros | {name: jnp.asarray(error) for name, error in own.items()}
        gradient, product = (
            {name: np.asarray(array, np.float64) for name, array in of.items()} for of in curvature.along(along)
        )
        first[layer, option] = sum(np.vdot(error, gradient[name]) for name, error in own.items())
        for other, choice in itertools.product(*map(range, shape)):
            second[layer, option, other, choice] = sum(
                np.vdot(error, product[name]) for name, error in errors[other][choice].items()
            )
    diagonal = np.einsum("ioio->io", second)
    pairs = (second + second.transpose(2, 3, 0, 1)) / 2
    pairs[np.arange(shape[0]), :, np.arange(shape[0]), :] = 0.0
    return first + diagonal / 2, pairs


def _perturbed(
    evaluator: PolicyEvaluator, with_pairs: bool
) -> tuple[float, Float[np.ndarray, "l o"], Float[np.ndarray, "l o l o"], int]:
    """Loss without options, the differences from it, and the number of losses computed."""
    n_layers, n_options = len(evaluator.layers), len(evaluator.options)
    real = [option for option, precision in enumerate(evaluator.options) if precision != evaluator.base]
    n_evaluations = 0

    def loss(*taken: tuple[int, int]) -> float:
        nonlocal n_evaluations
        n_evaluations += 1
        choice = np.full((1, n_layers), -1)
        for layer, option in taken:
            choice[0, layer] = option
        return float(evaluator(choice).losses[0])

    base = loss()
    single, pairs = np.zeros((n_layers, n_options)), np.zeros((n_layers, n_options, n_layers, n_options))
    alone = list(itertools.product(range(n_layers), real))
    for taken in alone:
        single[taken] = loss(taken) - base
    for first, second in _pairs_of(alone) if with_pairs else ():
        term = loss(first, second) - base - single[first] - single[second]
        pairs[(*first, *second)] = pairs[(*second, *first)] = term
    return base, single, pairs, n_evaluations


def _pairs_of(alone: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """All pairs of (layer, option) of two layers."""
    return ((first, second) for first, second in itertools.combinations(alone, 2) if first[0] != second[0])
