"""Elastic blocks: what a choice takes of the weights, and that a traced choice is the same as a static one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from hanax.search_spaces import ConvBlock, Head, MBConv, Operator
from hanax.supernet._blocks import BlockParams, apply_block, elastic_kernel, net_of

QUICK = {"xla_backend_optimization_level": 0}
PLAIN = MBConv(8, 16, 2, (3, 5, 7), (2, 4), "relu", has_squeeze_excite=False)
RESIDUAL = MBConv(8, 8, 1, (3, 5, 7), (2, 4), "hswish", has_squeeze_excite=True)
FIRST = MBConv(8, 8, 1, (3,), (1,), "relu", has_squeeze_excite=False)
BLOCKS = {"stride 2": PLAIN, "residual with squeeze-excite": RESIDUAL}


def fresh(block: object, seed: int = 0) -> BlockParams:
    return net_of(block).init(block, np.random.default_rng(seed))


def random(block: object, seed: int = 0) -> BlockParams:
    """Weights of which none has the special value that it starts with."""
    rng = np.random.default_rng(seed)
    params = fresh(block, seed)
    return jax.tree.map(lambda array: array + jnp.asarray(rng.normal(0.1, 0.3, array.shape), jnp.float32), params)


def images(side: int, channels: int = 8) -> Array:
    return jnp.asarray(np.random.default_rng(side).standard_normal((channels, side, side, 6), dtype=np.float32))


def test_kernel_transforms_start_as_the_centre_crop() -> None:
    params = fresh(PLAIN)["depthwise"]
    full = params["kernel"]
    assert full.shape == (32, 7, 7)
    np.testing.assert_array_equal(elastic_kernel(PLAIN, params, 7), full)
    np.testing.assert_array_equal(elastic_kernel(PLAIN, params, 5), full[:, 1:-1, 1:-1])
    np.testing.assert_array_equal(elastic_kernel(PLAIN, params, 3), full[:, 2:-2, 2:-2])


def test_the_smallest_kernel_is_made_from_the_middle_one() -> None:
    params = dict(fresh(PLAIN)["depthwise"])
    params["transform5"] = 2.0 * jnp.eye(25)
    params["transform3"] = jnp.eye(9)[::-1]  # turns the kernel by half a circle
    full = params["kernel"]
    np.testing.assert_allclose(elastic_kernel(PLAIN, params, 5), 2.0 * full[:, 1:-1, 1:-1], rtol=1e-6)
    np.testing.assert_allclose(elastic_kernel(PLAIN, params, 3), 2.0 * full[:, 4:1:-1, 4:1:-1], rtol=1e-6)


def test_a_transform_multiplies_the_kernel_of_every_channel_from_the_left() -> None:
    params = random(PLAIN)["depthwise"]
    channel = params["kernel"][5, 1:-1, 1:-1].ravel()
    found = elastic_kernel(PLAIN, params, 5)[5].ravel()
    np.testing.assert_allclose(found, params["transform5"] @ channel, rtol=1e-4, atol=1e-5)


def test_a_traced_kernel_size_gives_the_same_kernel_in_a_frame_of_zeros() -> None:
    params = random(PLAIN)["depthwise"]
    traced = jax.jit(partial(elastic_kernel, PLAIN), compiler_options=QUICK)
    for size in (3, 5, 7):
        margin = (7 - size) // 2
        framed = np.pad(elastic_kernel(PLAIN, params, size), ((0, 0), (margin, margin), (margin, margin)))
        np.testing.assert_allclose(traced(params, jnp.int32(size)), framed, atol=1e-6)


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize("name", BLOCKS)
def test_traced_choices_compute_what_static_ones_do_without_compiling_again(
    name: str, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANAX_NATIVE", native)
    block, params, x = BLOCKS[name], random(BLOCKS[name]), images(9)

    @partial(jax.jit, compiler_options=QUICK)
    def traced(kernel_size: Array, expand_ratio: Array) -> tuple[Array, dict[str, tuple[Array, Array]]]:
        return apply_block(block, params, x, (kernel_size, expand_ratio), 4)

    static = jax.jit(lambda *choice: apply_block(block, params, x, choice, 4), static_argnums=(0, 1),
                     compiler_options=QUICK)  # fmt: skip
    outputs = []
    for kernel_size, expand_ratio in itertools.product((3, 7), block.expand_ratios):
        y, statistics = static(kernel_size, expand_ratio)
        y_traced, statistics_traced = traced(jnp.int32(kernel_size), jnp.int32(expand_ratio))
        np.testing.assert_allclose(y_traced, y, atol=2e-5)
        assert statistics_traced.keys() == statistics.keys()
        for operator, values in statistics.items():
            for found, expected in zip(statistics_traced[operator], values, strict=True):
                np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-4, atol=1e-5)
        outputs.append(np.asarray(y))
    assert traced._cache_size() == 1
    for first, second in itertools.combinations(outputs, 2):
        assert not np.allclose(first, second, atol=1e-2), "the choice matters"


@pytest.mark.parametrize("block", [PLAIN, RESIDUAL])
def test_width_takes_the_leading_channels(block: MBConv) -> None:
    params = random(block)
    narrow = net_of(block).weights_for(block, params, (7, 2))
    mid = block.mid_channels(2)
    expected = {
        "expand": {key: params["expand"][key][:mid] for key in ("kernel", "scale", "offset")},
        "depthwise": {key: params["depthwise"][key][:mid] for key in ("kernel", "scale", "offset")},
        "project": params["project"] | {"kernel": params["project"]["kernel"][:, :mid]},
    }
    if block.has_squeeze_excite:
        squeeze = block.squeeze_channels(2)
        assert squeeze == 8 < mid
        reduce, expand = params["se.reduce"], params["se.expand"]
        expected["se.reduce"] = {"kernel": reduce["kernel"][:squeeze, :mid], "bias": reduce["bias"][:squeeze]}
        expected["se.expand"] = {"kernel": expand["kernel"][:mid, :squeeze], "bias": expand["bias"][:mid]}
    jax.tree.map(np.testing.assert_array_equal, narrow, expected)


@pytest.mark.parametrize(("block", "choice"), [
    (ConvBlock(1, 8, 3, 2, "hswish"), ()), (FIRST, (3, 1)), (PLAIN, (5, 2)), (RESIDUAL, (3, 4)),
    (Head(8, 32, 24, 10, "hswish"), ()),
])  # fmt: skip
def test_a_choice_has_exactly_the_weights_that_its_operators_count(block: object, choice: tuple[int, ...]) -> None:
    weights = net_of(block).weights_for(block, fresh(block), choice)
    operators: list[Operator] = block.lower("b", choice, "input", (block.in_channels, 9, 9))
    sizes = {op.name: op.params for op in operators if op.is_weighted}
    found = {f"b.{name}": sum(array.size for array in arrays.values()) for name, arrays in weights.items()}
    assert found == sizes


def test_a_residual_block_starts_as_the_identity() -> None:
    x = images(5)
    y, _ = jax.jit(partial(apply_block, RESIDUAL, choice=(5, 2), norms=6), compiler_options=QUICK)(fresh(RESIDUAL), x)
    np.testing.assert_array_equal(y, x)


def test_kernels_start_with_a_deviation_that_keeps_the_signal() -> None:
    kernel = fresh(MBConv(64, 64, 2, (3,), (4,), "relu", has_squeeze_excite=False))["expand"]["kernel"]
    assert kernel.shape == (256, 64)
    assert abs(float(kernel.std()) / np.sqrt(2 / 64) - 1) < 0.05


def test_a_block_type_without_weights_is_refused() -> None:
    with pytest.raises(
        TypeError, match="no weights are known for blocks of type Sponge; known: ConvBlock, MBConv, Head"
    ):
        net_of(Sponge())


@dataclass(frozen=True)
class Sponge:
    """Lowers to nothing, and no supernet knows it."""

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return {}

    def lower(self, name: str, choice: object, source: str, shape: object) -> list[Operator]:
        return []
