"""Fake quantization: minifloats are those of ml_dtypes, gradients those of the papers, ranges those of least error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from hanax.search_spaces import FLOAT32, minifloat, number_format
from hanax.supernet import (
    Calibration,
    activation_range,
    activation_scale,
    kernel_scale,
    largest_value,
    learned_factor,
    learned_step_quantize,
    lsq_initial,
    quantize,
    quantize_activation,
    quantize_kernel,
    round_to_format,
)
from hanax.supernet._fake_quant import KERNEL_CLIPS, LARGEST_KERNEL, N_OF_ERRORS, N_STEPS, RANGE_CLIPS

TYPES: dict[str, type] = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m4": ml_dtypes.float8_e3m4,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
MINIFLOATS = [minifloat(e, m) for e in range(1, 6) for m in range(6) if 3 <= 1 + e + m <= 8]
INTEGERS = list(range(2, 9))
FORMATS = [*INTEGERS, *MINIFLOATS]

ROUND = jax.jit(round_to_format)
QUANTIZE_ACTIVATION = jax.jit(quantize_activation)
QUANTIZE_KERNEL = jax.jit(quantize_kernel)
RANGE = jax.jit(activation_range, static_argnames=("method", "n_leading"))
LSQ = jax.jit(learned_step_quantize)


def cast(x: np.ndarray, code: int) -> np.ndarray:
    """`x` as the type of ml_dtypes, at most its largest value."""
    name = next(name for name in TYPES if number_format(name) == code)
    largest = float(ml_dtypes.finfo(TYPES[name]).max)
    return np.clip(x, -largest, largest).astype(TYPES[name]).astype(np.float32)


def rounded(x: np.ndarray, code: int) -> np.ndarray:
    """`x` in the minifloat `code` with the scale 1."""
    largest = np.asarray(largest_value(code))
    return np.asarray(ROUND(jnp.clip(jnp.asarray(x), -largest, largest), code))


def finite_codes(name: str) -> np.ndarray:
    bits = np.arange(2 ** ml_dtypes.finfo(TYPES[name]).bits, dtype=np.uint8)
    values = bits.view(TYPES[name]).astype(np.float32)
    return values[np.isfinite(values)]


def all_values(code: int) -> np.ndarray:
    """All numbers of a minifloat from its definition: sign, exponent and mantissa, subnormal if the exponent is 0."""
    exponent_bits, mantissa_bits = divmod(code - 100, 10)
    exponents, mantissas = np.arange(2**exponent_bits)[:, None], np.arange(2**mantissa_bits) / 2**mantissa_bits
    bias = 2 ** (exponent_bits - 1) - 1
    values = np.where(exponents > 0, 1 + mantissas, mantissas) * 2.0 ** (np.maximum(exponents, 1) - bias)
    return np.unique([-values, values]).astype(np.float32)


# ---- minifloats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_minifloats_hold_the_finite_values_of_ml_dtypes(name: str) -> None:
    values = finite_codes(name)
    np.testing.assert_array_equal(rounded(values, number_format(name)), values)
    assert float(largest_value(number_format(name))) == values.max()


@pytest.mark.parametrize("name", TYPES)
def test_minifloats_round_as_a_cast_does(name: str) -> None:
    code, values = number_format(name), np.unique(finite_codes(name)).astype(np.float64)
    rng = np.random.default_rng(0)
    drawn = rng.choice([-1.0, 1.0], 100_000) * values.max() * 2.0 ** rng.uniform(-25.0, 1.0, 100_000)
    midpoints = (values[1:] + values[:-1]) / 2
    near = np.concatenate([np.nextafter(midpoints.astype(np.float32), np.float32(end)) for end in (-1e9, 1e9)])
    ends = [values.max() * share for share in (1.0, 1.01, 1e6)]
    x = np.concatenate([drawn, midpoints, near, ends, np.negative(ends), [0.0, np.inf, -np.inf]]).astype(np.float32)
    np.testing.assert_array_equal(rounded(x, code), cast(x, code))


@pytest.mark.parametrize("code", [code for code in MINIFLOATS if code not in map(number_format, TYPES)])
def test_minifloats_unknown_to_ml_dtypes_hold_all_their_codes(code: int) -> None:
    values = all_values(code)
    np.testing.assert_array_equal(rounded(values, code), values)
    assert float(largest_value(code)) == values.max()
    x = np.random.default_rng(0).uniform(-1.1, 1.1, 10_000).astype(np.float32) * values.max()
    nearest = np.abs(x[:, None] - values).min(axis=1)
    np.testing.assert_array_equal(np.abs(rounded(x, code) - np.clip(x, values.min(), values.max())) <= nearest, True)
    assert set(np.unique(rounded(x, code))) <= set(values.tolist())


def test_e4m3_is_the_one_that_ends_at_448() -> None:
    assert float(largest_value(number_format("e4m3"))) == 448.0
    assert rounded(np.array([1e9, -460.0], np.float32), number_format("e4m3")).tolist() == [448.0, -448.0]


@pytest.mark.parametrize("code", [4, 8, 150, number_format("e4m3")])
def test_rounding_keeps_zeros_infinities_and_nan_and_flushes_denormals(code: int) -> None:
    x = np.array([0.0, -0.0, 1e-45, -1e-39, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(np.asarray(ROUND(x, code)), [0, 0, 0, 0, np.inf, -np.inf, np.nan])


# ---- integers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", INTEGERS)
def test_activations_take_every_level_and_zero_exactly(bits: int) -> None:
    for low, high in ((-1.0, 3.0), (0.0, 2.5), (-2.0, 0.0), (0.5, 2.0)):
        x = jnp.linspace(min(low, 0.0), max(high, 0.0), 4001)
        y = np.asarray(QUANTIZE_ACTIVATION(x, low, high, bits))
        assert len(np.unique(y)) == 2**bits
        assert np.asarray(QUANTIZE_ACTIVATION(jnp.zeros(3), low, high, bits)).tolist() == [0.0] * 3
        scale, lowest, highest = map(float, activation_scale(jnp.float32(low), jnp.float32(high), bits))
        assert (lowest <= 0 <= highest) and highest - lowest == 2**bits - 1 and lowest.is_integer()
        # Moving the ends so that 0 is a level moves them by half a step at most, and values by half a step more.
        np.testing.assert_array_less(np.abs(y - x), scale * 1.0001)


@pytest.mark.parametrize("bits", INTEGERS)
def test_kernels_are_symmetric_and_end_at_64(bits: int) -> None:
    kernel = jnp.linspace(-1.0, 1.0, 2001).reshape(1, -1)
    scale, largest = kernel_scale(kernel, bits)
    levels = np.unique(np.round(np.asarray(QUANTIZE_KERNEL(kernel, bits)) / np.asarray(scale)))
    end = min(2 ** (bits - 1) - 1, LARGEST_KERNEL)
    assert levels.tolist() == np.arange(-end, end + 1).tolist()
    assert float(largest) == end


def test_kernel_scales_have_the_least_error_of_the_clips_tried() -> None:
    kernel = np.random.default_rng(0).standard_t(3, (6, 50)).astype(np.float32)
    for bits in (2, 4):
        scale, largest = (np.asarray(value) for value in kernel_scale(jnp.asarray(kernel), bits))

        def error(scale: np.ndarray, largest: np.ndarray = largest) -> np.ndarray:
            return np.square(np.clip(np.round(kernel / scale), -largest, largest) * scale - kernel).sum(axis=1)

        ends = np.abs(kernel).max(axis=1, keepdims=True)
        least = np.min([error(ends * np.float32(clip) / largest) for clip in KERNEL_CLIPS], axis=0)
        np.testing.assert_allclose(error(scale), least, rtol=1e-4)
        assert (error(scale) < error(ends / largest)).any()


def test_an_empty_kernel_and_an_empty_tensor_stay_zero() -> None:
    for code in (4, number_format("e4m3")):
        assert not np.asarray(QUANTIZE_KERNEL(jnp.zeros((2, 3)), code)).any()
        assert not np.asarray(QUANTIZE_ACTIVATION(jnp.zeros((2, 3)), 0.0, 0.0, code)).any()


def test_formats_may_be_traced_or_not() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 9), dtype=np.float32))
    for code in (4, number_format("e4m3"), FLOAT32):
        traced = [QUANTIZE_ACTIVATION(x, -1.0, 1.5, code), QUANTIZE_KERNEL(x, code)]
        known = [quantize_activation(x, jnp.float32(-1.0), jnp.float32(1.5), code), quantize_kernel(x, code)]
        for one, other in zip(traced, known, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    assert (QUANTIZE_KERNEL(x, FLOAT32) == x).all() and (QUANTIZE_ACTIVATION(x, -1.0, 1.5, FLOAT32) == x).all()


values = st.lists(st.floats(-1000.0, 1000.0, width=32), min_size=6, max_size=6)


@given(values, st.sampled_from(FORMATS), st.floats(-10.0, 1.0, width=32), st.floats(0.0, 10.0, width=32))
def test_quantizing_twice_is_quantizing_once(x: list[float], code: int, low: float, high: float) -> None:
    once = QUANTIZE_ACTIVATION(jnp.asarray(x, jnp.float32), low, high, code)
    np.testing.assert_allclose(QUANTIZE_ACTIVATION(once, low, high, code), once, rtol=1e-6)


@given(values, st.sampled_from(FORMATS))
@settings(max_examples=30)
def test_quantizing_a_kernel_twice_is_quantizing_it_once(x: list[float], code: int) -> None:
    once = QUANTIZE_KERNEL(jnp.asarray(x, jnp.float32).reshape(2, 3), code)
    np.testing.assert_allclose(QUANTIZE_KERNEL(once, code), once, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("code", [2, 4, 8, number_format("e4m3"), number_format("e2m1")])
def test_quantizing_and_folding_a_batch_norm_may_come_in_either_order(code: int) -> None:
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.standard_normal((6, 9), dtype=np.float32))
    gain = jnp.asarray(np.array([[1.0], [-0.3], [7.1], [-1e-3], [0.0], [130.0]], np.float32))
    folded_first = QUANTIZE_KERNEL(kernel * gain, code)
    np.testing.assert_allclose(folded_first, QUANTIZE_KERNEL(kernel, code) * gain, rtol=1e-5)


# ---- gradients ------------------------------------------------------------------------------------------------


def expected_gradients(x: np.ndarray, s: float, n: float, p: float, code: int) -> tuple[np.ndarray, np.ndarray]:
    """LSQ's eq. 3 and 5: of one quantized value each, by the step and by the value itself."""
    v = x / np.float32(s)
    inside = (n <= v) & (v <= p)
    return np.where(inside, np.asarray(ROUND(v, code)) - v, np.where(v < n, n, p)), inside.astype(np.float32)


@pytest.mark.parametrize("code", [2, 4, 8, number_format("e4m3")])
def test_gradients_by_value_and_step_are_those_of_lsq(code: int) -> None:
    rng = np.random.default_rng(0)
    p = float(largest_value(code))
    s, n, p = 0.37, -p, p - 1.0 if code <= 8 else p
    x = (rng.uniform(-1.5, 1.5, 500) * s * max(p, 1.0)).astype(np.float32)
    dy = rng.standard_normal(500).astype(np.float32)
    _, pull = jax.vjp(lambda x, s: quantize(x, s, jnp.float32(n), jnp.float32(p), code), jnp.asarray(x), jnp.float32(s))
    dx, ds = pull(jnp.asarray(dy))
    by_step, by_value = expected_gradients(x, s, n, p, code)
    np.testing.assert_allclose(dx, dy * by_value)
    np.testing.assert_allclose(ds, (dy * by_step).sum(), rtol=1e-3)


def test_the_gradient_by_a_step_per_channel_is_summed_per_channel() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5), dtype=np.float32))
    scale, ends = jnp.full((3, 1, 1), 0.4), jnp.float32(2.0)
    found = jax.grad(lambda s: jnp.square(quantize(x, s, -ends, ends, 4)).sum())(scale)
    for channel in range(3):
        alone = jax.grad(lambda s, x=x[channel]: jnp.square(quantize(x, s, -ends, ends, 4)).sum())(jnp.float32(0.4))
        np.testing.assert_allclose(found[channel, 0, 0], alone, rtol=1e-5)


def test_nothing_is_quantized_in_float32_and_the_step_has_no_gradient() -> None:
    x = jnp.asarray([1.2345, -100.0])
    dx, ds = jax.grad(lambda x, s: quantize(x, s, -jnp.ones(()), jnp.ones(()), FLOAT32).sum(), (0, 1))(x, jnp.ones(()))
    assert dx.tolist() == [1.0, 1.0] and float(ds) == 0.0


@pytest.mark.parametrize("code", [2, 8, number_format("e4m3"), FLOAT32])
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-25, 1e-42])
def test_gradients_are_finite_for_constant_tensors(code: int, value: float) -> None:
    x = jnp.full((2, 3), value)

    def loss(x: Array, factor: Array) -> Array:
        low, high = activation_range(x, code)
        return (quantize_activation(x, low * factor, high * factor, code) + quantize_kernel(x, code, factor)).sum()

    for gradient in jax.grad(loss, (0, 1))(x, jnp.ones(())):
        assert np.isfinite(gradient).all()


def test_the_learned_factor_has_the_gradient_of_its_exponential_scaled_as_in_lsq() -> None:
    steps = jnp.linspace(-0.2, 0.3, N_STEPS)
    for code, index in ((2, 0), (4, 2), (8, 6), (number_format("e2m1"), 7)):
        value, gradient = jax.value_and_grad(learned_factor)(steps, code, 50)
        assert float(value) == pytest.approx(float(jnp.exp(steps[index])))
        share = 1 / np.sqrt(50 * float(largest_value(code)))
        expected = np.where(np.arange(N_STEPS) == index, share * float(value), 0.0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)


# ---- LSQ+ -----------------------------------------------------------------------------------------------------

CASES = [(2, 0.0, 3.0), (4, 0.0, 15.0), (8, 0.0, 255.0), (number_format("e2m1"), -6.0, 6.0)]


@pytest.mark.parametrize(("code", "n", "p"), CASES)
def test_lsq_plus_has_the_gradients_of_the_paper(code: int, n: float, p: float) -> None:
    rng = np.random.default_rng(1)
    step, offset = 0.21, -0.43
    x = (offset + step * rng.uniform(1.3 * n - 2.0, 1.3 * p, 400)).astype(np.float32)
    y, pull = jax.vjp(lambda *given: LSQ(*given, code), jnp.asarray(x), jnp.float32(step), jnp.float32(offset))
    dy = rng.standard_normal(400).astype(np.float32)
    dx, dstep, doffset = pull(jnp.asarray(dy))
    moved = x - np.float32(offset)
    np.testing.assert_allclose(y, np.asarray(ROUND(np.clip(moved / step, n, p), code)) * step + offset, atol=1e-5)
    by_step, by_value = expected_gradients(moved, step, n, p, code)
    share = 1 / np.sqrt(400 * p)
    np.testing.assert_allclose(dx, dy * by_value)
    np.testing.assert_allclose(dstep, share * (dy * by_step).sum(), rtol=1e-3)
    np.testing.assert_allclose(doffset, share * (dy * (1 - by_value)).sum(), rtol=1e-4)


def test_lsq_plus_gradients_are_finite_differences_where_all_is_clipped() -> None:
    """Outside the range nothing is rounded away, so there the function is smooth."""
    x = jnp.asarray(np.r_[np.linspace(-9.0, -3.0, 20), np.linspace(5.0, 9.0, 30)].astype(np.float32))
    dy = jnp.asarray(np.random.default_rng(0).standard_normal(50, dtype=np.float32))
    given_at = np.array([0.2, -1.0])

    def loss(step: Any, offset: Any) -> Array:
        return (LSQ(x, jnp.float32(step), jnp.float32(offset), 4) * dy).sum()

    found = jax.grad(loss, (0, 1))(*map(jnp.float32, given_at))
    for index in range(2):
        move = np.eye(2)[index] * 0.01
        difference = float(loss(*(given_at + move)) - loss(*(given_at - move))) / 0.02
        assert float(found[index]) * np.sqrt(50 * 15) == pytest.approx(difference, rel=1e-3)


def test_lsq_plus_starts_near_the_least_error() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray((rng.standard_normal(4000) + 2.0).astype(np.float32))
    for code in (2, 4, number_format("e2m1")):
        step, offset = map(float, lsq_initial(x, code))
        error = float(jnp.square(LSQ(x, step, offset, code) - x).mean())
        grid = [
            float(jnp.square(LSQ(x, step * a, 2.0 + (offset - 2.0) * b, code) - x).mean())
            for a in np.linspace(0.6, 1.5, 10) for b in np.linspace(0.6, 1.5, 10)
        ]  # fmt: skip
        assert error <= 1.1 * min(grid)
    assert (LSQ(x, step, offset, FLOAT32) == x).all()


# ---- ranges ---------------------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator], np.ndarray]
TENSORS: dict[str, Draw] = {
    "normal": lambda rng: rng.standard_normal((8, 3, 3, 100)),
    "hard swish": lambda rng: (lambda x: x * np.clip(x + 3, 0, 6) / 6)(rng.standard_normal((8, 3, 3, 100)) * 2),
    "relu": lambda rng: np.maximum(rng.standard_normal((8, 3, 3, 100)), 0.0),
    "outliers": lambda rng: rng.standard_t(2, (8, 3, 3, 100)),
    "negative": lambda rng: -np.abs(rng.standard_normal((8, 3, 3, 100))),
}


def tensor(name: str) -> Array:
    return jnp.asarray(TENSORS[name](np.random.default_rng(0)).astype(np.float32))


def error_of(x: Array, low: Any, high: Any, code: int) -> float:
    return float(jnp.square(QUANTIZE_ACTIVATION(x, low, high, code) - x).sum())


def test_the_range_of_all_values_is_the_least_and_the_largest_of_the_leading_images() -> None:
    x = tensor("normal")
    for n_leading in (None, 10, 1000):
        part = np.asarray(x[..., :n_leading])
        assert tuple(map(float, RANGE(x, 4, "minmax", n_leading))) == (part.min(), part.max())


def test_percentiles_are_those_of_numpy_where_all_values_are_taken() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((13, 4, 4, 120), dtype=np.float32))
    found = [float(value) for value in RANGE(x, 4, "percentile", 100)]
    np.testing.assert_allclose(found, np.quantile(np.asarray(x)[..., :100], [1e-4, 1 - 1e-4]), rtol=1e-5)


def test_percentiles_of_a_large_tensor_come_from_all_channels_and_images() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 10, 10, 500), dtype=np.float32) * np.linspace(0.1, 4.0, 16)[:, None, None, None]
    x = (x * np.linspace(0.5, 1.0, 500)).astype(np.float32)
    found = [float(value) for value in RANGE(jnp.asarray(x), 4, "percentile")]
    np.testing.assert_allclose(found, np.quantile(x, [1e-4, 1 - 1e-4]), rtol=0.1)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("code", [2, 4, 8, number_format("e2m1")])
def test_ranges_of_least_error_are_near_the_best_pair_of_ends(name: str, code: int) -> None:
    x = tensor(name)
    assert x.size <= N_OF_ERRORS
    low, high = map(float, RANGE(x, code, "mse"))
    error = error_of(x, low, high, code)
    least, largest = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    pairs = [(least * a, largest * b) for a in RANGE_CLIPS[::2] for b in RANGE_CLIPS[::2]]
    assert error <= error_of(x, least, largest, code)
    assert error <= 1.1 * min(error_of(x, *pair, code) for pair in pairs)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_one_sided_tensors_keep_zero_as_an_end(method: Calibration) -> None:
    low, high = RANGE(tensor("relu"), 4, method)
    assert float(low) == 0.0 < float(high)
    low, high = RANGE(tensor("negative"), 4, method)
    _, lowest, highest = activation_scale(low, high, 4)
    assert (float(lowest), float(highest)) == (-15.0, 0.0)
    assert [float(end) for end in RANGE(jnp.zeros((2, 3)), 4, method)] == [0.0, 0.0]


def test_ranges_depend_on_the_format_as_data_and_carry_no_gradient() -> None:
    x = jnp.asarray(np.random.default_rng(0).laplace(size=(8, 500)).astype(np.float32))
    highs = [float(RANGE(x, code, "mse")[1]) for code in (2, 4, 8)]
    assert highs[0] < highs[1] < highs[2]
    for method in ("minmax", "percentile", "mse"):
        assert not jax.grad(lambda x, method=method: sum(activation_range(x, 4, method)))(x).any()
