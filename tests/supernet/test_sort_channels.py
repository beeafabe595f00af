"""Sorting channels: who must not notice, who must, and that importance is what it says."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from hanax.search_spaces import Arch, SearchSpace, mobilenet_v3
from hanax.supernet import Params, apply_block
from hanax.supernet._distillation import cross_entropy
from hanax.supernet._sort_channels import Importance, l1_importance, sort_channels, taylor_importance

QUICK = {"xla_backend_optimization_level": 0}
SIDE, N_IMAGES = 6, 16
# Blocks of 32, 64 or 96 channels, with 8, 16 or 24 in squeeze-excite; the second one is residual.
SPACE = mobilenet_v3(
    resolutions=(SIDE,), n_classes=5, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2, 4, 6), depths=(1, 2),
    stem_width=16, stem_stride=1, stage_widths=(16,), stage_strides=(1,), stage_activations=("hswish",),
    stage_squeeze_excite=(True,), head_width=16, feature_width=16,
)  # fmt: skip
BLOCKS = ("stage1.block1", "stage1.block2")
RandomParams = Callable[[SearchSpace, int], Params]


def images(seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((1, SIDE, SIDE, N_IMAGES), dtype=np.float32))


def labels(seed: int = 0) -> Array:
    return jax.nn.one_hot(jnp.asarray(np.random.default_rng(seed).integers(0, 5, N_IMAGES)), 5)


def network(params: Params, arch: Arch, x: Array) -> Array:
    for placed in SPACE.blocks(arch):
        x, _ = apply_block(placed.slot.block, params[placed.slot.name], x, placed.choice, N_IMAGES)
    return x


logits = jax.jit(network, static_argnames=("arch",), compiler_options=QUICK)


def with_ratio(ratio: int) -> Arch:
    return SPACE.arch({f"{block}.expand_ratio": ratio for block in BLOCKS})


def change(before: Params, after: Params, arch: Arch) -> float:
    """Largest change of a logit."""
    return float(jnp.abs(logits(before, arch, images()) - logits(after, arch, images())).max())


def scattered(params: Params) -> Importance:
    """Importance that asks for a very different order."""
    rng = np.random.default_rng(3)
    return {
        slot: {name: rng.random(len(values)) for name, values in groups.items()}
        for slot, groups in l1_importance(SPACE, params).items()
    }


@pytest.fixture(scope="module")
def params(random_params: RandomParams) -> Params:
    return random_params(SPACE, 0)


def test_the_largest_network_stays_the_same_function_and_narrower_ones_do_not(params: Params) -> None:
    for importance in (l1_importance(SPACE, params), scattered(params)):
        found = sort_channels(SPACE, params, importance)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
        assert change(params, found, SPACE.largest) < 1e-5
        assert change(params, found, SPACE.smallest) > 0.05
        assert change(params, found, with_ratio(4)) > 0.05


def test_widths_that_are_elastic_already_keep_their_function(params: Params) -> None:
    found = sort_channels(SPACE, params, scattered(params), keep=(4,))
    assert change(params, found, SPACE.largest) < 1e-5
    assert change(params, found, with_ratio(4)) < 1e-5
    assert change(params, found, with_ratio(2)) > 0.05
    kept = sort_channels(SPACE, params, scattered(params), keep=(2, 4, 6))
    for arch in (SPACE.smallest, with_ratio(2), with_ratio(4)):
        assert change(params, kept, arch) < 1e-5


def test_the_narrowest_subnet_takes_the_most_important_channels(params: Params) -> None:
    importance = scattered(params)
    found = sort_channels(SPACE, params, importance)
    for block in BLOCKS:
        for group, n_channels, weight in (("mid", 32, "project"), ("squeeze", 8, "se.expand")):
            best = np.argsort(-importance[block][group])[:n_channels]
            sorted_rows = np.asarray(found[block][weight]["kernel"])[:, :n_channels]
            given_rows = np.asarray(params[block][weight]["kernel"])[:, best]
            order = (importance[block]["mid"] * -1.0).argsort() if weight == "se.expand" else slice(None)
            np.testing.assert_array_equal(sorted_rows, given_rows[order])


def test_l1_sorts_by_the_weights_that_read_a_channel_and_once_is_enough(params: Params) -> None:
    found = sort_channels(SPACE, params, l1_importance(SPACE, params))
    for groups in l1_importance(SPACE, found).values():
        for values in groups.values():
            assert (np.diff(values) <= 1e-5).all()
    assert set(l1_importance(SPACE, params)) == set(BLOCKS)  # neither stem, head nor the block without expansion
    again = sort_channels(SPACE, found, l1_importance(SPACE, found))
    for first, second in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(first, second)


def test_taylor_importance_is_the_squared_derivative_by_a_gate_on_the_channel(params: Params) -> None:
    def loss(gates: dict[str, Array], x: Array, y: Array) -> Array:
        gated = {slot: dict(weights) for slot, weights in params.items()}
        block = gated["stage1.block1"]
        for operator, gate in gates.items():
            block[operator] = block[operator] | {"kernel": block[operator]["kernel"] * gate[None, :]}
        return cross_entropy(network(gated, SPACE.largest, x), y)

    gates = {"project": jnp.ones(96), "se.expand": jnp.ones(24)}
    batches = [(images(seed), labels(seed)) for seed in (1, 2)]
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
    slopes = [gradient(gates, *batch) for batch in batches]
    found = taylor_importance(SPACE, params, iter(batches))
    for group, operator in (("mid", "project"), ("squeeze", "se.expand")):
        expected = np.mean([np.asarray(slope[operator]) ** 2 for slope in slopes], axis=0)
        np.testing.assert_allclose(found["stage1.block1"][group], expected, rtol=1e-3, atol=1e-6 * expected.max())


def test_a_channel_that_nothing_reads_comes_last(params: Params) -> None:
    block = params["stage1.block1"]
    kernel = block["project"]["kernel"].at[:, 5].set(0.0)
    unread = params | {"stage1.block1": block | {"project": block["project"] | {"kernel": kernel}}}
    for importance in (
        l1_importance(SPACE, unread),
        taylor_importance(SPACE, unread, [(images(), np.asarray(labels()))]),
    ):
        assert importance["stage1.block1"]["mid"][5] == 0.0
        found = sort_channels(SPACE, unread, importance)
        assert not np.asarray(found["stage1.block1"]["project"]["kernel"])[:, -1].any()


def test_what_does_not_fit_is_refused(params: Params) -> None:
    importance = l1_importance(SPACE, params)
    with pytest.raises(ValueError, match=r"keep: expansion ratios \[3\] are offered nowhere"):
        sort_channels(SPACE, params, importance, keep=(3,))
    short = importance | {"stage1.block2": importance["stage1.block2"] | {"mid": np.ones(95)}}
    with pytest.raises(ValueError, match=r"importance of stage1\.block2, mid: 96 finite values are needed"):
        sort_channels(SPACE, params, short)
    with pytest.raises(ValueError, match="at least one batch"):
        taylor_importance(SPACE, params, [])
