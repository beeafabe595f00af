"""A small quantized supernet whose weights have nothing special: gains of both signs, learned steps, dead channels."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np

from hanax.search_spaces import Arch, SearchSpace, mobilenet_v3, quantized_space
from hanax.supernet import Evaluator, QuantizedNet, init_params, load_images, split_validation

N_CALIBRATION, N_VALIDATION = 64, 48
FLOAT_SPACE = mobilenet_v3(
    resolutions=(8,), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2,), depths=(1,),
    stem_width=8, stem_stride=1, stage_widths=(8, 16), stage_strides=(1, 2), stage_activations=("relu", "hswish"),
    stage_squeeze_excite=(False, True), head_width=32, feature_width=32,
)  # fmt: skip
SPACE = quantized_space(FLOAT_SPACE, weights=(2, 4, 8), activations=(3, 4, 8))


def random_params(space: SearchSpace, seed: int) -> dict[str, dict[str, dict[str, jax.Array]]]:
    """Weights of `space`, drawn."""
    rng = np.random.default_rng(seed)
    spread = {"kernel": 0.0, "scale": 0.3, "offset": 0.3, "bias": 0.3}

    def perturb(path: tuple[jax.tree_util.DictKey, ...], array: jax.Array) -> jax.Array:
        name, operator = path[-1].key, path[-2].key
        deviation = 0.5 if operator == "classify" else 0.2 if operator == "steps" else spread.get(name, 0.1)
        values = np.asarray(array) + rng.normal(0.0, deviation, array.shape)
        if name == "scale":
            values = values + 0.7 * (np.asarray(array) == 0.0)
            values[:2] = (-0.8, 0.0)  # a gain that turns the sign, and one that leaves the bias alone
        return jax.numpy.asarray(values.astype(np.float32))

    return jax.tree_util.tree_map_with_path(perturb, init_params(space, seed))


@cache
def quantized_evaluator() -> Evaluator:
    """The evaluator of the small supernet, on digits."""
    split = split_validation(load_images("digits"), fraction=0.2, seed=0)
    return Evaluator(SPACE, random_params(SPACE, 0), split, n_calibration=N_CALIBRATION, n_validation=N_VALIDATION)


def policy(weights: int, activations: int) -> Arch:
    """The largest architecture in one precision."""
    wanted = {"weight_bits": weights, "activation_bits": activations}
    return SPACE.arch({d.name: wanted[d.name.rpartition(".")[2]] for d in SPACE.decisions if d.name.endswith("_bits")})


@cache
def quantized(weights: int, activations: int) -> tuple[QuantizedNet, np.ndarray, np.ndarray]:
    """The network of `policy`, normalised images, and their labels."""
    evaluator = quantized_evaluator()
    net = evaluator.quantize(policy(weights, activations))
    split = evaluator.split
    return net, net.normalise(split.x_validation[:N_VALIDATION]), split.y_validation[:N_VALIDATION]
