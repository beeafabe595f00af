"""The chain of block executables, the masked net and one static program per subnet are the same network."""

from __future__ import annotations

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from hanax.search_spaces import Arch, SearchSpace, mobilenet_v3
from hanax.supernet import (
    Params,
    Split,
    apply_block,
    backward_along,
    compile_chain,
    forward_with_tape,
    init_params,
    masked_logits,
    normalise,
    prepare,
)
from hanax.supernet._chain import evaluate_block
from hanax.supernet._native import native_status

TINY = mobilenet_v3(
    resolutions=(8,), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2,), depths=(1, 2),
    stem_width=8, stem_stride=1, stage_widths=(8,), stage_strides=(1,), stage_activations=("relu",),
    stage_squeeze_excite=(False,), head_width=16, feature_width=16,
)  # fmt: skip
QUICK = {"xla_backend_optimization_level": 0}  # for the oracles, which run once or twice
N_IMAGES = 32  # the batch size of the shared supernet: nothing to compile for the chain here
RandomParams = Callable[[SearchSpace, int], Params]


def sample(space: SearchSpace, seed: int, n: int) -> list[Arch]:
    return space.decode(space.sample(np.random.default_rng(seed), n))


def images(space: SearchSpace, arch: Arch) -> Array:
    channels, side, _ = space.input_shape(arch)
    x = np.random.default_rng(side).standard_normal((channels, side, side, N_IMAGES), dtype=np.float32)
    return jnp.asarray(x)


def dlogits(space: SearchSpace) -> Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((N_IMAGES, space.n_classes), dtype=np.float32))


def zeros(params: Params) -> Params:
    return jax.tree.map(lambda array: jnp.asarray(np.zeros_like(array)), params)


def chain(space: SearchSpace, params: Params, arch: Arch) -> tuple[Array, Params]:
    """Logits, and the gradient for `dlogits`."""
    logits, tape = forward_with_tape(space, params, arch, images(space, arch))
    gradient = zeros(params)
    backward_along(tape, dlogits(space), gradient)
    assert tape == []
    return logits, gradient


def masked(space: SearchSpace, params: Params, arch: Arch) -> tuple[Array, Params]:
    codes = jnp.asarray(space.encode([arch])[0])
    return MASKED(space, params, codes, images(space, arch), dlogits(space))


def _masked(space: SearchSpace, params: Params, codes: Array, x: Array, dy: Array) -> tuple[Array, Params]:
    logits, pull_back = jax.vjp(lambda params: masked_logits(space, params, codes, x, N_IMAGES), params)
    return logits, pull_back(dy)[0]


MASKED = jax.jit(_masked, static_argnums=0, compiler_options=QUICK)


def static(space: SearchSpace, params: Params, arch: Arch) -> tuple[Array, Params]:
    def logits_of(params: Params, x: Array) -> Array:
        for placed in space.blocks(arch):
            x, _ = apply_block(placed.slot.block, params[placed.slot.name], x, placed.choice, N_IMAGES)
        return x

    def both(params: Params, x: Array, dy: Array) -> tuple[Array, Params]:
        logits, pull_back = jax.vjp(lambda params: logits_of(params, x), params)
        return logits, pull_back(dy)[0]

    return jax.jit(both, compiler_options=QUICK)(params, images(space, arch), dlogits(space))


def relative_difference(first: Params, second: Params) -> float:
    """Norm of the difference over the norm, both over all weights."""
    found, expected = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (first, second))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture
def compilations(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What JAX says about programs that it compiles in this test, one line each."""
    caplog.set_level(logging.WARNING, logger="jax")

    def lines() -> list[str]:
        return [line for line in caplog.messages if line.startswith("Finished XLA compilation")]

    return lines


@pytest.fixture(scope="module")
def compiled(space: SearchSpace, random_params: RandomParams) -> tuple[int, list[tuple[int, int]]]:
    """What `compile_chain` returned and reported."""
    calls: list[tuple[int, int]] = []
    number = compile_chain(
        space, random_params(space, 0), N_IMAGES, on_progress=lambda done, todo: calls.append((done, todo))
    )
    return number, calls


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_logits_and_gradients_of_chain_masked_and_static_agree(space: SearchSpace, random_params: RandomParams) -> None:
    archs = sample(space, 13, 4)
    chosen = [set(space.options_of(arch).items()) for arch in archs]
    assert len(set.union(*chosen)) == space.option_counts.sum(), "every option occurs"
    for seed, arch in enumerate(archs):
        params = random_params(space, seed)
        logits, gradient = chain(space, params, arch)
        for way in (masked, static):
            expected_logits, expected = way(space, params, arch)
            np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4, err_msg=f"{way.__name__} {arch}")
            assert relative_difference(gradient, expected) < 1e-4, (way.__name__, arch)


@pytest.mark.usefixtures("compiled")
def test_gradients_are_added_to_what_is_there(space: SearchSpace, random_params: RandomParams) -> None:
    params = random_params(space, 0)
    total = zeros(params)
    for arch in (space.largest, space.smallest):
        _, tape = forward_with_tape(space, params, arch, images(space, arch))
        backward_along(tape, dlogits(space), total)
    parts = [chain(space, params, arch)[1] for arch in (space.largest, space.smallest)]
    assert relative_difference(total, jax.tree.map(np.add, *parts)) < 1e-6


@pytest.mark.usefixtures("compiled")
def test_weights_beyond_the_choice_have_no_gradient(space: SearchSpace, random_params: RandomParams) -> None:
    _, gradient = chain(space, random_params(space, 0), space.smallest)
    gradient = jax.tree.map(np.asarray, gradient)
    unused = {slot.name for slot in space.slots} - {placed.slot.name for placed in space.blocks(space.smallest)}
    assert unused == {"stage1.block2"}
    assert {
        name for name, block in gradient.items() if not any(leaf.any() for leaf in jax.tree.leaves(block))
    } == unused
    block = gradient["stage2.block1"]
    mid = space.blocks(space.smallest)[3].slot.block.mid_channels(2)
    assert not block["expand"]["kernel"][mid:].any() and block["expand"]["kernel"][:mid].any()
    assert not block["project"]["kernel"][:, mid:].any()


def test_after_compile_chain_no_subnet_compiles_anything(
    space: SearchSpace,
    random_params: RandomParams,
    compiled: tuple[int, list[tuple[int, int]]],
    compilations: Callable[[], list[str]],
) -> None:
    number, calls = compiled
    # Per resolution: stem, first block, stage 1 (both its blocks are alike), stage 2, head; one for each expansion.
    # Without native kernels those of stage 1 are static at 9 pixels: each of the two sizes has its own executables.
    assert number == (1 + 1 + 2 + 2 + 1) + (1 + 1 + (2 if native_status().available else 4) + 2 + 1)
    assert calls == [(done, number) for done in range(1, number + 1)]
    params, gradient = random_params(space, 1), zeros(random_params(space, 1))
    inputs = {arch: images(space, arch) for arch in (space.largest, space.smallest, *sample(space, 5, 8))}
    dy = dlogits(space)
    with jax.log_compiles():
        jax.jit(lambda x: x + 17)(np.ones(17))
        assert len(compilations()) == 1, "compilations are counted at all"
        for arch, x in inputs.items():
            _, tape = forward_with_tape(space, params, arch, x)
            backward_along(tape, dy, gradient)
    assert compilations()[1:] == []


def test_after_compile_chain_mixed_precision_compiles_nothing(compilations: Callable[[], list[str]]) -> None:
    params, dy = init_params(TINY, 0), dlogits(TINY)
    gradient, x = zeros(params), images(TINY, TINY.largest)
    compile_chain(TINY, params, N_IMAGES, dtype="bfloat16")
    with jax.log_compiles():
        for arch in (TINY.largest, TINY.smallest):
            _, tape = forward_with_tape(TINY, params, arch, x, dtype="bfloat16")
            backward_along(tape, dy, gradient)
    assert compilations() == []


def test_a_recurring_subnet_has_executables_of_its_own_that_compute_the_same(
    compilations: Callable[[], list[str]], random_params: RandomParams
) -> None:
    params, arch = random_params(TINY, 0), TINY.smallest
    x, dy = images(TINY, arch), dlogits(TINY)
    logits, gradient = chain(TINY, params, arch)
    assert compile_chain(TINY, params, N_IMAGES, recurring=[arch]) == compile_chain(TINY, params, N_IMAGES) + 1
    own_gradient = zeros(params)
    with jax.log_compiles():
        own_logits, tape = forward_with_tape(TINY, params, arch, x, recurs=True)
        backward_along(tape, dy, own_gradient)
    assert compilations() == []
    np.testing.assert_allclose(own_logits, logits, rtol=1e-4, atol=1e-4)
    assert relative_difference(own_gradient, gradient) < 1e-4


def test_after_compile_chain_no_pass_with_given_statistics_compiles_anything(
    compilations: Callable[[], list[str]],
) -> None:
    params, x = init_params(TINY, 0), images(TINY, TINY.largest)
    first, later = x[..., :12], x[..., :5]
    assert compile_chain(TINY, params, 12, n_statistics=8, n_given=5) == len({slot.block for slot in TINY.slots})
    with jax.log_compiles():
        for arch in (TINY.largest, TINY.smallest):
            x, y = first, later
            for placed in TINY.blocks(arch):
                x, found = evaluate_block(placed, params, x, 8)
                y, _ = evaluate_block(placed, params, y, found)
            np.testing.assert_allclose(x[:5], y, rtol=1e-4, atol=1e-5)
    assert [line for line in compilations() if "_evaluate" in line] == []


def test_another_architecture_does_not_compile_the_masked_net_again(
    space: SearchSpace, random_params: RandomParams, compilations: Callable[[], list[str]]
) -> None:
    params = random_params(space, 0)
    quick = jax.jit(masked_logits, static_argnums=(0, 4), compiler_options=QUICK)
    archs = [arch for arch in sample(space, 1, 12) if space.resolution(arch) == 8]
    assert len(set(archs)) > 3
    x = images(space, archs[0])
    codes = [jnp.asarray(row) for row in space.encode(archs)]
    first = quick(space, params, codes[0], x, N_IMAGES)
    with jax.log_compiles():
        others = [quick(space, params, row, x, N_IMAGES) for row in codes[1:]]
    assert compilations() == []
    assert quick._cache_size() == 1
    assert not any(np.allclose(first, other) for other in others)


def test_prepare_gives_the_normalised_input_of_the_exported_networks(split: Split) -> None:
    pixels = split.x_train[:5]
    expected = normalise(pixels, split.mean, split.std).transpose(1, 2, 3, 0)
    np.testing.assert_allclose(prepare(pixels, split.mean, split.std, 8), expected, atol=1e-6)


@pytest.mark.parametrize("side", [4, 6, 9])
def test_prepare_resizes_without_changing_the_brightness(side: int) -> None:
    mean, std = np.array([0.25, 0.5], np.float32), np.array([0.5, 2.0], np.float32)
    plain = np.full((3, 8, 8, 2), 51, np.uint8)
    expected = np.broadcast_to(((0.2 - mean) / std)[:, None, None, None], (2, side, side, 3))
    np.testing.assert_allclose(prepare(plain, mean, std, side), expected, atol=1e-6)


def test_fresh_weights_depend_on_the_seed_alone(space: SearchSpace) -> None:
    first, same, other = (init_params(space, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert not np.array_equal(first["stem"]["conv"]["kernel"], other["stem"]["conv"]["kernel"])
