"""A quantized network is the float one where nothing is rounded, one compilation serves all policies, and it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from hanax.search_spaces import Arch, Classifier, SearchSpace, fbnet, mobilenet_v3, quantized_space
from hanax.supernet import (
    Params,
    backward_along,
    forward_with_tape,
    init_params,
    largest_value,
    masked_logits,
    with_steps,
)
from hanax.supernet._chain import _backward, _evaluate, _forward, evaluate_block
from hanax.supernet._quantized_blocks import STEPS, learned_tensors

TINY = mobilenet_v3(
    resolutions=(8,), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2, 4), depths=(1,),
    stem_width=8, stem_stride=1, stage_widths=(8,), stage_strides=(1,), stage_activations=("hswish",),
    stage_squeeze_excite=(True,), head_width=16, feature_width=16,
)  # fmt: skip
FORMATS = (2, 4, 8, "e4m3", "float32")
SPACE = quantized_space(TINY, weights=FORMATS, activations=FORMATS)
ALL_FLOAT = quantized_space(TINY, weights=("float32",), activations=("float32",), ends=("float32", "float32"))
N_IMAGES = 16
QUICK = {"xla_backend_optimization_level": 0}
RandomParams = Callable[[SearchSpace, int], Params]


@pytest.fixture(scope="module")
def params(random_params: RandomParams) -> Params:
    """Weights of the float space, with steps at which nothing is left as it was calibrated."""
    rng = np.random.default_rng(1)
    made = with_steps(SPACE, random_params(TINY, 0))
    for weights in made.values():
        weights[STEPS] = {
            name: jnp.asarray(rng.normal(0.0, 0.1, step.shape).astype(np.float32))
            for name, step in weights[STEPS].items()
        }
    return made


IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, N_IMAGES), dtype=np.float32))


def archs(n: int) -> list[Arch]:
    return SPACE.decode(SPACE.sample(np.random.default_rng(3), n))


def evaluated(
    space: SearchSpace, params: Params, arch: Arch, given: dict[str, Any] | None = None
) -> tuple[Array, dict[str, Any]]:
    """Logits, with the given statistics or those of all images, and the statistics of each block."""
    x, statistics = IMAGES, {}
    for placed in space.blocks(arch):
        norms = N_IMAGES if given is None else given[placed.slot.name]
        x, statistics[placed.slot.name] = evaluate_block(placed, params, x, norms)
    return x, statistics


def trained(space: SearchSpace, params: Params, arch: Arch) -> tuple[Array, Params]:
    """Logits, and the gradient of their squares' sum."""
    logits, tape = forward_with_tape(space, params, arch, IMAGES)
    gradient = jax.tree.map(lambda array: jnp.asarray(np.zeros_like(array)), params)
    backward_along(tape, 2.0 * logits, gradient)
    return logits, gradient


def test_nothing_is_rounded_in_float32(params: Params) -> None:
    for choice in (TINY.largest, TINY.smallest):
        arch = Arch((*choice.choices, *(0,) * (len(ALL_FLOAT.decisions) - len(choice.choices))))
        expected, _ = evaluated(TINY, params, choice)
        np.testing.assert_allclose(evaluated(ALL_FLOAT, params, arch)[0], expected, rtol=1e-3, atol=1e-4)


def test_the_masked_net_is_the_chain(params: Params) -> None:
    """Of values that are rounded, a few come out a step apart where sums are taken in another order."""
    masked = jax.jit(masked_logits, static_argnums=(0, 4), compiler_options=QUICK)
    for arch in archs(6):
        found = masked(SPACE, params, jnp.asarray(SPACE.encode([arch])[0]), IMAGES, N_IMAGES)
        expected, _ = evaluated(SPACE, params, arch)
        difference = np.asarray(found - expected)
        assert np.sqrt(np.square(difference).mean()) < 0.05 * float(expected.std())


def test_another_policy_compiles_nothing(params: Params) -> None:
    architecture = SPACE.largest
    trained(SPACE, params, architecture)
    evaluated(SPACE, params, architecture)
    sizes = [function._cache_size() for function in (_forward, _backward, _evaluate)]
    logits = []
    for option in range(len(FORMATS)):
        chosen = [
            option if decision.name.endswith("_bits") else choice
            for decision, choice in zip(SPACE.decisions, architecture.choices, strict=True)
        ]
        logits.append(trained(SPACE, params, Arch(tuple(chosen)))[0])
        evaluated(SPACE, params, Arch(tuple(chosen)))
    assert [function._cache_size() for function in (_forward, _backward, _evaluate)] == sizes
    assert all(float(jnp.abs(one - logits[-1]).max()) > 1e-3 for one in logits[:-1])


def test_given_statistics_and_ranges_reproduce_the_first_pass(params: Params) -> None:
    for arch in archs(2):
        expected, statistics = evaluated(SPACE, params, arch)
        for placed in SPACE.blocks(arch):
            names = [name for name in learned_tensors(placed.slot.block) if not name.endswith(".kernel")]
            assert {f"{name}.range" for name in names} <= set(statistics[placed.slot.name])
        found, again = evaluated(SPACE, params, arch, statistics)
        difference = np.asarray(found - expected)
        assert np.sqrt(np.square(difference).mean()) < 0.05 * float(expected.std())
        assert again.keys() == statistics.keys()


def test_all_that_a_subnet_uses_has_a_finite_gradient(params: Params) -> None:
    arch = SPACE.arch({d.name: 4 for d in SPACE.decisions if d.name.endswith("_bits")})
    _, gradient = trained(SPACE, params, arch)
    for path, values in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(values).all(), name
        assert np.asarray(values).any() or "transform" in name, name
    steps = gradient["stage1.block1"][STEPS]["expand"]
    assert np.flatnonzero(np.asarray(steps)).tolist() == [2], "only the step of 4 bits was used"


def test_the_gradient_by_a_step_of_the_last_tensor_is_its_finite_difference_up_to_the_scale(params: Params) -> None:
    """Where most of a tensor is clipped, its output is smooth in the step: rounding adds the remaining difference."""
    from hanax.supernet import learned_factor, quantize_activation

    rng = np.random.default_rng(0)
    x = jnp.asarray(np.r_[rng.uniform(2.0, 9.0, 40), rng.uniform(-9.0, -2.0, 40)].astype(np.float32))
    dy = jnp.asarray(rng.standard_normal(80, dtype=np.float32))

    def loss(step: float | Array) -> Array:
        steps = jnp.zeros(8).at[2].set(step)
        factor = learned_factor(steps, 4, x.size)
        return (quantize_activation(x, -1.2 * factor, factor, 4) * dy).sum()

    share = 1 / np.sqrt(80 * float(largest_value(4)))
    for step in (0.0, 0.3):
        difference = float(loss(step + 0.01) - loss(step - 0.01)) / 0.02
        assert float(jax.grad(loss)(jnp.float32(step))) == pytest.approx(share * difference, rel=1e-2)


def test_weights_without_learned_steps_compute_as_with_steps_of_zero(params: Params) -> None:
    bare = {slot: {name: w for name, w in weights.items() if name != STEPS} for slot, weights in params.items()}
    arch = archs(1)[0]
    expected, _ = evaluated(SPACE, with_steps(SPACE, bare), arch)
    np.testing.assert_allclose(evaluated(SPACE, bare, arch)[0], expected, rtol=1e-4, atol=1e-4)


def test_blocks_that_cannot_be_quantized_are_named_with_those_that_can() -> None:
    with pytest.raises(TypeError, match="type Classifier cannot be quantized yet; ConvBlock, MBConv and Head can"):
        learned_tensors(Classifier(8, 10))
    space = quantized_space(fbnet())
    assert space.blocks(space.largest), "the space itself may be described"
    with pytest.raises(TypeError, match="FBNetLayer"):
        with_steps(space, {slot.name: {} for slot in space.slots})
    with pytest.raises(TypeError, match="known: ConvBlock, MBConv, Head"):
        init_params(space, 0)
