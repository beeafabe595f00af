"""Mixed precision: what is rounded, what is not, and that it is the same network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hanax.search_spaces import SearchSpace, mobilenet_v3
from hanax.supernet import Params, _depthwise, _layers, apply_block
from hanax.supernet._depthwise import depthwise
from hanax.supernet._layers import batch_norm, pointwise
from hanax.supernet._precision import ComputeDtype, apply_block_in, compute_dtype_for

N_IMAGES = 16
SPACE = mobilenet_v3(
    resolutions=(18,), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2,), depths=(1,),
    stem_width=8, stem_stride=1, stage_widths=(8, 8), stage_strides=(2, 1), stage_activations=("relu", "hswish"),
    stage_squeeze_excite=(False, True), head_width=16, feature_width=16,
)  # fmt: skip


@partial(jax.jit, static_argnums=0)
def run(dtype: ComputeDtype, params: Params, x: jax.Array) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """Logits of the smallest subnet, the output of each of its blocks, and all batch-norm statistics."""
    outputs, statistics = [], []
    for placed in SPACE.blocks(SPACE.smallest):
        x, found = apply_block_in(dtype, placed.slot.block, params[placed.slot.name], x, placed.choice, N_IMAGES)
        outputs.append(x)
        statistics += jax.tree.leaves(found)
    return x, outputs, statistics


def images(offset: float) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(offset, 1.0, (1, 18, 18, N_IMAGES)).astype(np.float32))


def test_float32_is_apply_block_itself(random_params: Callable[[SearchSpace, int], Params]) -> None:
    placed = SPACE.blocks(SPACE.smallest)[0]
    arguments = (placed.slot.block, random_params(SPACE, 0)[placed.slot.name], images(0.0), placed.choice, N_IMAGES)
    for found, expected in zip(
        jax.tree.leaves(apply_block_in("float32", *arguments)), jax.tree.leaves(apply_block(*arguments)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_bfloat16_rounds_activations_but_not_statistics_logits_or_gradients(
    random_params: Callable[[SearchSpace, int], Params],
) -> None:
    params, x = random_params(SPACE, 0), images(0.0)
    _, outputs, statistics = run("bfloat16", params, x)
    assert {y.dtype for y in outputs[:-1]} == {jnp.dtype(jnp.bfloat16)}
    assert {y.dtype for y in [outputs[-1], *statistics]} == {jnp.dtype(jnp.float32)}

    def gradient_in(dtype: ComputeDtype) -> Params:
        slope = jax.grad(lambda params: run(dtype, params, x)[0].std())
        found: Params = jax.jit(slope)(params)
        return found

    gradient = gradient_in("bfloat16")
    expected = gradient_in("float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
    flat, flat_expected = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (gradient, expected)
    )
    cosine = flat @ flat_expected / np.linalg.norm(flat) / np.linalg.norm(flat_expected)
    assert cosine > 0.99


def test_bfloat16_gives_nearly_the_same_logits_and_statistics(
    random_params: Callable[[SearchSpace, int], Params],
) -> None:
    params = random_params(SPACE, 0)
    logits, _, statistics = run("bfloat16", params, images(3.0))
    expected, _, expected_statistics = run("float32", params, images(3.0))
    # A bfloat16 has 8 significant bits; sums over images in bfloat16 would be off by far more.
    assert float(jnp.abs(logits - expected).max()) < 0.05 * float(expected.std())
    for found, wanted in zip(statistics, expected_statistics, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("norm", ["batch", "given"])
def test_layers_keep_the_type_of_their_input_and_never_hand_bfloat16_to_native_kernels(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_layers, "call_native", None)
    monkeypatch.setattr(_depthwise, "call_native", None)
    rng = np.random.default_rng(0)
    x, kernel, tap = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((8, 20, 20, 4), (6, 8), (8, 5, 5))
    )
    scale, offset = jnp.ones(8), jnp.full(8, 0.5)
    given = 4 if norm == "batch" else (jnp.zeros(8), jnp.ones(8))
    small = x[:, :8, :8]
    normed, statistics = jax.jit(lambda x: batch_norm(x, scale, offset, given, "hswish"))(x)
    strided = [jax.jit(lambda x: depthwise(x, tap, 2))(part) for part in (x, small)]
    outputs = [normed, pointwise(x, kernel), *strided]
    assert {y.dtype for y in outputs} == {jnp.dtype(jnp.bfloat16)}
    assert {y.dtype for y in statistics} == {jnp.dtype(jnp.float32)}
    exact = jax.jit(lambda x: _depthwise._shift_multiply_add(x, tap.astype(jnp.float32), 2))
    for part, found in zip((x, small), strided, strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), exact(part.astype(jnp.float32)), rtol=0.02, atol=0.15)


@pytest.mark.parametrize(("backend", "expected"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_bfloat16_is_the_default_on_accelerators_only(
    backend: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert compute_dtype_for("auto") == expected
    assert compute_dtype_for("float32") == "float32"
    assert compute_dtype_for("bfloat16") == "bfloat16"
