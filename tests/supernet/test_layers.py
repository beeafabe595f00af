"""Layers in the layout ``C H W N`` compute what their names say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from hanax.search_spaces import Activation
from hanax.supernet import _layers
from hanax.supernet._layers import BATCH_NORM_EPSILON, activate, batch_norm, convolve, pointwise


@pytest.fixture(params=["native", "xla"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are the same with native kernels (where there is a compiler) and without."""
    if request.param == "xla":
        monkeypatch.setenv("HANAX_NATIVE", "0")


def normal(*shape: int, seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32))


@pytest.mark.parametrize(("activation", "expected"), [
    ("none", [-4.0, -1.5, 0.0, 1.5, 4.0]),
    ("relu", [0.0, 0.0, 0.0, 1.5, 4.0]),
    ("hswish", [0.0, -0.375, 0.0, 1.125, 4.0]),
    ("hsigmoid", [0.0, 0.25, 0.5, 0.75, 1.0]),
])  # fmt: skip
def test_activations_have_their_known_values(activation: Activation, expected: list[float]) -> None:
    np.testing.assert_allclose(activate(jnp.array([-4.0, -1.5, 0.0, 1.5, 4.0]), activation), expected, atol=1e-7)


@pytest.mark.usefixtures("form")
def test_batch_norm_leaves_each_channel_with_its_scale_and_offset() -> None:
    x = 3.0 * normal(4, 5, 5, 8) + 7.0
    scale, offset = jnp.array([1.0, 2.0, 0.5, 0.0]), jnp.array([0.0, 1.0, -1.0, 4.0])
    y, (mean, variance) = batch_norm(x, scale, offset, 8)
    np.testing.assert_allclose(y.mean(axis=(1, 2, 3)), offset, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(1, 2, 3)), scale, rtol=1e-4)
    np.testing.assert_allclose(mean, x.mean(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var(axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.usefixtures("form")
def test_statistics_come_from_the_leading_images_alone() -> None:
    x, scale, offset = normal(3, 4, 4, 10), normal(3), normal(3, seed=1)
    changed = x.at[..., 6:].multiply(100.0)
    y, (mean, variance) = batch_norm(x, scale, offset, 6)
    y_changed, (mean_changed, variance_changed) = batch_norm(changed, scale, offset, 6)
    np.testing.assert_array_equal(mean, mean_changed)
    np.testing.assert_array_equal(variance, variance_changed)
    np.testing.assert_array_equal(y[..., :6], y_changed[..., :6])
    assert not np.array_equal(y[..., 6:], y_changed[..., 6:])
    per_channel = (slice(None), None, None, None)
    expected = (x - mean[per_channel]) / jnp.sqrt(variance + BATCH_NORM_EPSILON)[per_channel]
    np.testing.assert_allclose(y, expected * scale[per_channel] + offset[per_channel], atol=1e-5)


@pytest.mark.usefixtures("form")
def test_a_channel_that_never_changes_becomes_its_offset() -> None:
    y, (_, variance) = batch_norm(jnp.full((1, 2, 2, 3), 5.0), jnp.ones(1), jnp.array([0.25]), 3)
    np.testing.assert_array_equal(y, np.full((1, 2, 2, 3), 0.25))
    assert variance == 0.0


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("activation", ["none", "relu", "hswish", "hsigmoid"])
def test_the_activation_comes_after_the_norm(activation: Activation) -> None:
    x, scale, offset = normal(3, 4, 4, 10), normal(3), normal(3, seed=1)
    y, _ = batch_norm(x, scale, offset, 10)
    found, _ = batch_norm(x, scale, offset, 10, activation)
    np.testing.assert_allclose(found, activate(y, activation), atol=1e-5)


@pytest.mark.usefixtures("form")
def test_given_statistics_normalise_as_where_they_were_found() -> None:
    x, scale, offset = normal(3, 4, 4, 10), normal(3), normal(3, seed=1)
    y, statistics = batch_norm(x, scale, offset, 6, "hswish")
    scored, same = batch_norm(x[..., 6:], scale, offset, statistics, "hswish")
    np.testing.assert_allclose(scored, y[..., 6:], atol=1e-5)
    for found, expected in zip(same, statistics, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("form")
def test_pointwise_mixes_the_channels_of_each_position() -> None:
    x, kernel = normal(3, 4, 5, 2), normal(6, 3)
    np.testing.assert_allclose(pointwise(x, kernel), jnp.einsum("oc,chwn->ohwn", kernel, x), atol=1e-5)


@pytest.mark.parametrize("most_bytes", [1 << 26, 1000, 1])  # all rows at once, some rows, one row
@pytest.mark.parametrize(("size", "kernel_size", "stride"), [(8, 3, 1), (8, 3, 2), (9, 3, 2), (7, 5, 2), (5, 1, 1)])
def test_dense_convolution_equals_that_of_xla(
    size: int, kernel_size: int, stride: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_layers, "MAX_COPIED_BYTES", most_bytes)
    x, kernel = normal(2, size, size, 3), normal(4, 2, kernel_size, kernel_size)
    expected = jax.lax.conv_general_dilated(
        x.transpose(3, 0, 1, 2),
        kernel,
        (stride, stride),
        [(kernel_size // 2,) * 2] * 2,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    unoptimised = {"xla_backend_optimization_level": 0}
    found = jax.jit(lambda x, kernel: convolve(x, kernel, stride), compiler_options=unoptimised)(x, kernel)
    np.testing.assert_allclose(found, expected.transpose(1, 2, 3, 0), atol=1e-5)
