"""All forms of the depthwise convolution compute what XLA's own convolution does, and so do their gradients."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import Array

from hanax.supernet import _depthwise
from hanax.supernet._depthwise import depthwise, kernel_is_data
from hanax.supernet._native import NativeStatus

FORMS = {"toeplitz": _depthwise._toeplitz, "shifted": _depthwise._shifted}
QUICK = {"xla_backend_optimization_level": 0}  # each is run once: the compiler's own time is what counts

Convolution = Callable[[Array, Array], Array]


def reference(stride: int) -> Convolution:
    def convolve(x: Array, kernel: Array) -> Array:
        half = kernel.shape[1] // 2
        y = jax.lax.conv_general_dilated(
            x.transpose(3, 0, 1, 2),
            kernel[:, None],
            (stride, stride),
            [(half, half)] * 2,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=x.shape[0],
        )
        return y.transpose(1, 2, 3, 0)

    return convolve


def output_and_gradients(convolve: Convolution, x: Array, kernel: Array, dy: Array) -> tuple[Array, ...]:
    y, pull_back = jax.vjp(convolve, x, kernel)
    return (y, *pull_back(dy))


def assert_same_as_reference(
    convolve: Convolution, shape: tuple[int, int, int, int], kernel_sizes: tuple[int, ...], stride: int, seed: int = 0
) -> None:
    """Output, input gradient and weight gradient are those of XLA's convolution, for all `kernel_sizes`."""
    rng = np.random.default_rng(seed)
    channels, height, width, images = shape
    x = rng.standard_normal(shape, dtype=np.float32)
    dy = rng.standard_normal((channels, -(-height // stride), -(-width // stride), images), dtype=np.float32)
    kernels = [rng.standard_normal((channels, size, size), dtype=np.float32) for size in kernel_sizes]

    def both(x: Array, kernels: list[Array], dy: Array) -> list[tuple[tuple[Array, ...], ...]]:
        ways = (convolve, reference(stride))
        return [tuple(output_and_gradients(way, x, kernel, dy) for way in ways) for kernel in kernels]

    for size, (ours, theirs) in zip(kernel_sizes, jax.jit(both, compiler_options=QUICK)(x, kernels, dy), strict=True):
        for what, found, expected in zip(("output", "dx", "dkernel"), ours, theirs, strict=True):
            error = float(jnp.linalg.norm((found - expected).ravel()) / jnp.linalg.norm(expected.ravel()))
            assert error < 1e-6 * images, f"{what}, kernel size {size}, stride {stride}, input {shape}: {error:.1e}"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "kernel_sizes"), [(5, (7,)), (7, (5,)), (9, (3, 7)), (13, (5,)), (14, (3,)), (20, (7,))]
)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_equals_the_convolution_of_xla(
    form: str, size: int, kernel_sizes: tuple[int, ...], stride: int
) -> None:
    def convolve(x: Array, kernel: Array) -> Array:
        return FORMS[form](x, kernel, stride)

    assert_same_as_reference(convolve, (3, size, size, 4), kernel_sizes, stride)


@settings(max_examples=8)
@given(
    channels=st.integers(1, 5),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    images=st.integers(1, 5),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    native=st.sampled_from("01"),
)
@example(channels=1, height=1, width=1, images=1, kernel_size=7, stride=2, native="0")
@example(channels=2, height=17, width=8, images=1, kernel_size=7, stride=2, native="0")
@example(channels=2, height=17, width=8, images=1, kernel_size=7, stride=2, native="1")
def test_any_shape_gives_the_convolution_of_xla(
    channels: int, height: int, width: int, images: int, kernel_size: int, stride: int, native: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # read while it is traced
        patch.setenv("HANAX_NATIVE", native)
        assert_same_as_reference(
            lambda x, kernel: depthwise(x, kernel, stride), (channels, height, width, images), (kernel_size,), stride
        )


@pytest.mark.parametrize(("size", "stride", "form"), [
    (8, 1, "_toeplitz"), (9, 1, "_shifted"), (16, 2, "_toeplitz"), (15, 2, "_toeplitz"), (17, 2, "_shifted"),
    (32, 4, "_shifted"),
])  # fmt: skip
def test_without_native_kernels_small_maps_take_the_form_whose_cost_does_not_depend_on_the_kernel(
    size: int, stride: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_depthwise, "has_native_form", lambda stride, largest: False)
    used = []
    for name in ("_toeplitz", "_shifted"):
        compute = getattr(_depthwise, name)
        monkeypatch.setattr(_depthwise, name, lambda *args, name=name, do=compute: (used.append(name), do(*args))[1])
    shapes = (jax.ShapeDtypeStruct((1, size, size, 1), np.float32), jax.ShapeDtypeStruct((1, 3, 3), np.float32))
    jax.eval_shape(lambda x, kernel: depthwise(x, kernel, stride), *shapes)
    assert used == [form]
    assert kernel_is_data(size, stride, 3) == (form == "_toeplitz")


@pytest.mark.parametrize(("height", "stride", "largest", "is_data"), [
    (8, 1, 7, True), (32, 1, 7, True), (33, 2, 5, True), (32, 3, 7, False), (32, 1, 9, False), (8, 1, 9, True),
])  # fmt: skip
def test_with_native_kernels_the_size_is_data_on_any_map(
    height: int, stride: int, largest: int, is_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_depthwise, "native_status", lambda: NativeStatus(True, "as if"))
    assert kernel_is_data(height, stride, largest) == is_data


@pytest.mark.parametrize("form", FORMS)
def test_a_small_kernel_in_a_frame_of_zeros_is_still_the_small_kernel(form: str) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 9, 9, 3), dtype=np.float32))
    kernel = jnp.asarray(rng.standard_normal((2, 3, 3), dtype=np.float32))
    framed = jnp.pad(kernel, ((0, 0), (2, 2), (2, 2)))
    convolve = jax.jit(FORMS[form], static_argnums=2, compiler_options=QUICK)
    np.testing.assert_allclose(convolve(x, framed, 1), convolve(x, kernel, 1), atol=1e-6)
