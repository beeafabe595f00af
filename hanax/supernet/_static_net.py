"""One architecture as a plain Flax network, made of standard layers so that it can be read, fine-tuned and exported."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from hanax.search_spaces import INPUT, Graph, Operator
from hanax.supernet._layers import BATCH_NORM_EPSILON, activate
from hanax.supernet._weights import Weights, check_weights, n_classes

NORM_MOMENTUM = 0.9
"""Share of the running statistics that a training step keeps."""


class StaticNet(nnx.Module):
    """The network of `graph` with `weights`: ``nnx.Conv``, ``nnx.BatchNorm`` and ``nnx.Linear`` by operator name.

    It starts in evaluation mode, in which batch norms use their running statistics; ``net.train()`` and ``net.eval()``
    switch. Inside, images are NHWC, as Flax's layers want them.

    Args:
        graph: A network that ends with a dense layer.
        weights: Calibrated weights of `graph`; the network keeps copies.

    Raises:
        ValueError: The weights do not fit the graph, or it does not end with a dense layer.
        UncalibratedError: A batch norm has no statistics.
    """

    def __init__(self, graph: Graph, weights: Weights) -> None:
        n_classes(graph)
        check_weights(graph, weights)
        self.graph = graph
        weighted = [op for op in graph.operators if op.is_weighted]
        self.kernels = nnx.Dict({op.name: _kernel_layer(op, weights[op.name]) for op in weighted})
        self.norms = nnx.Dict({op.name: _norm_layer(op, weights[op.name]) for op in weighted if op.has_norm})

    def __call__(self, image: Float[Array, "n c h w"] | Float32[np.ndarray, "n c h w"]) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        values = {INPUT: jnp.transpose(jnp.asarray(image), (0, 2, 3, 1))}
        for op in self.graph.operators:
            values[op.name] = activate(self._apply(op, [values[name] for name in op.inputs]), op.activation)
        return values[self.graph.operators[-1].name]

    def _apply(self, op: Operator, inputs: list[Array]) -> Array:
        if op.kind == "global_pool":
            return inputs[0].mean((1, 2), keepdims=True)
        if op.kind == "multiply":
            return inputs[0] * inputs[1]
        if op.kind == "add":
            return inputs[0] + inputs[1]
        x = inputs[0].reshape(len(inputs[0]), -1) if op.kind == "dense" else inputs[0]
        x = self.kernels[op.name](x)
        return self.norms[op.name](x) if op.has_norm else x

    def weights(self) -> Weights:
        """The network's present weights and statistics, e.g. after fine-tuning; what `StaticNet` was made from."""
        return {op.name: self._entries(op) for op in self.graph.operators if op.is_weighted}

    def _entries(self, op: Operator) -> dict[str, np.ndarray]:
        layer = self.kernels[op.name]
        variables: dict[str, nnx.Variable[Array] | None] = {"kernel": layer.kernel}
        if op.has_bias:
            variables["bias"] = layer.bias
        if op.has_norm:
            norm = self.norms[op.name]
            variables |= {"scale": norm.scale, "offset": norm.bias, "mean": norm.mean, "variance": norm.var}
        entries = {name: np.array(variable) for name, variable in variables.items()}
        entries["kernel"] = entries["kernel"].transpose((3, 2, 0, 1) if op.kind == "conv" else (1, 0))
        return entries


def _kernel_layer(op: Operator, entries: dict[str, np.ndarray]) -> nnx.Conv | nnx.Linear:
    in_channels, out_channels = op.in_shape[0], op.out_shape[0]
    bias_init = _given(entries["bias"]) if op.has_bias else nnx.initializers.zeros
    if op.kind == "dense":
        return nnx.Linear(
            in_channels,
            out_channels,
            use_bias=op.has_bias,
            kernel_init=_given(entries["kernel"].T),
            bias_init=bias_init,
            rngs=nnx.Rngs(0),
        )
    return nnx.Conv(
        in_channels,
        out_channels,
        (op.kernel_size, op.kernel_size),
        strides=op.stride,
        padding=[(op.kernel_size // 2, op.kernel_size // 2)] * 2,
        feature_group_count=op.groups,
        use_bias=op.has_bias,
        kernel_init=_given(entries["kernel"].transpose(2, 3, 1, 0)),
        bias_init=bias_init,
        rngs=nnx.Rngs(0),
    )


def _norm_layer(op: Operator, entries: dict[str, np.ndarray]) -> nnx.BatchNorm:
    norm = nnx.BatchNorm(
        op.out_shape[0],
        use_running_average=True,
        momentum=NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        scale_init=_given(entries["scale"]),
        bias_init=_given(entries["offset"]),
        rngs=nnx.Rngs(0),
    )
    norm.mean[...] = jnp.array(entries["mean"])
    norm.var[...] = jnp.array(entries["variance"])
    return norm


def _given(values: np.ndarray) -> Callable[..., jax.Array]:
    """An initialiser that returns `values`; drawing random ones would compile a program per shape."""
    return lambda *_, **__: jnp.array(values)
