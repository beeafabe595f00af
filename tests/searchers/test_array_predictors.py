"""The MLP and the block table against what they stand for, computed the slow way."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hanax.searchers import block_table, one_hot_mlp


@pytest.fixture(scope="module")
def layers(toy):
    rng = np.random.default_rng(0)
    widths = [int(toy.space.option_counts.sum()), 12, 8, 1]
    return [(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in itertools.pairwise(widths)]


def test_the_mlp_is_one_on_the_one_hot_codes_of_the_space(toy, layers) -> None:
    layers[0][0][0] = 0.0  # a feature without weights is left out
    mlp = one_hot_mlp(toy.space, layers)
    x = toy.space.one_hot(toy.codes)
    for number, (weight, bias) in enumerate(layers):
        x = (np.maximum(x, 0) if number else x) @ weight + bias
    assert mlp.weights[0].shape == (int(toy.space.option_counts.sum()) - 1, 12)
    np.testing.assert_allclose(mlp(toy.codes), x[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(mlp)(jnp.asarray(toy.codes)), x[:, 0], rtol=1e-4, atol=1e-4)


def test_layers_that_do_not_fit_are_refused(toy, layers) -> None:
    with pytest.raises(ValueError, match=r"layer 1 has 12 inputs, so needs weights of shape \(12, outputs\)"):
        one_hot_mlp(toy.space, [layers[0], layers[2]])
    with pytest.raises(ValueError, match="the last layer needs one output; got 8"):
        one_hot_mlp(toy.space, layers[:2])


def _terms(toy, n_devices: int | None):
    """A term per decision, and one for a block that the depth switches off."""
    rng = np.random.default_rng(1)
    axis = () if n_devices is None else (n_devices,)
    terms = [((d.name,), rng.random((len(d.options), *axis))) for d in toy.space.decisions if d.when is None]
    block = rng.random((2, 2, 3, *axis))
    block[0] = 0.0
    return [*terms, (("stage1.depth", "stage1.block2.kernel_size", "stage1.block2.expand_ratio"), block)]


@pytest.mark.parametrize("n_devices", [None, 3])
def test_the_table_adds_up_the_entries_of_the_joint_settings(toy, n_devices: int | None) -> None:
    terms = _terms(toy, n_devices)
    expected = sum(entries[tuple(toy.codes[:, toy.space.column(name)] for name in names)] for names, entries in terms)
    table = block_table(toy.space, terms)
    assert table(toy.codes).shape == (len(toy.codes),) + (() if n_devices is None else (n_devices,))
    np.testing.assert_allclose(table(toy.codes), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(table)(jnp.asarray(toy.codes)), expected, rtol=1e-5)
    if n_devices is not None:
        np.testing.assert_array_equal(table.of_device(1)(toy.codes), table(toy.codes)[:, 1])


def test_entries_of_another_shape_are_refused(toy) -> None:
    with pytest.raises(ValueError, match=r"entries for resolution need the shape \(2,\), and a last axis"):
        block_table(toy.space, [(("resolution",), np.zeros(3))])
    with pytest.raises(ValueError, match=r"entries for the same devices; got last axes of \[\(\), \(3,\)\]"):
        block_table(toy.space, [*_terms(toy, None), *_terms(toy, 3)])
