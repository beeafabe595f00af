from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hanax.predictors import _operation_net as net_module
from hanax.predictors._operation_net import Inputs, NetSize, incoming_edges, initial_weights, ranking_loss, score

DIAMOND = np.array(  # 0 feeds 1 and 2, both feed 3, 3 feeds 4
    [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool
)
NET = NetSize(vertices=5, options=3, features=2, operation=6, hardware=4, width=8, layers=2, hidden=(10,))


def _inputs(rng: np.random.Generator, n: int) -> Inputs:
    choices = np.zeros((n, 5, 3), dtype=np.float32)
    choices[:, [0, 4], 0] = 1.0
    for decision in (1, 2, 3):
        choices[np.arange(n), decision, rng.integers(0, 3, size=n)] = 1.0
    return Inputs(choices, rng.normal(size=(n, 2)).astype(np.float32))


def test_a_vertex_hears_itself_and_then_its_sources() -> None:
    incoming = incoming_edges(DIAMOND)
    assert incoming.shape == (3, 5, 5)
    np.testing.assert_array_equal(incoming[0], np.eye(5))
    np.testing.assert_array_equal(incoming[1:].sum(axis=0), DIAMOND.T)
    assert incoming.sum(axis=2).max() == 1


def test_a_layer_is_dense_graph_flow_plus_graph_attention() -> None:
    rng = np.random.default_rng(0)
    c, r = 4, 3
    gate, x = rng.uniform(size=(5, r, c)), rng.normal(size=(5, r, c))
    shapes = {
        "mix": (c, 2 * c),
        "mix_offset": (c,),
        "query": (c,),
        "key": (c,),
        "norm_scale": (c,),
        "norm_offset": (c,),
    }
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    flow, value = x @ weights["mix"][:, :c], x @ weights["mix"][:, c:]
    expected = np.empty((5, r, c))
    for row in range(r):
        for to in range(5):
            sources = np.flatnonzero(DIAMOND[:, to])
            heard = [to, *sources]
            logits = np.array([value[to, row] @ weights["query"] + value[v, row] @ weights["key"] for v in heard])
            logits = np.where(logits > 0, logits, 0.2 * logits)
            attention = np.exp(logits) / np.exp(logits).sum()
            attended = sum(share * value[v, row] for share, v in zip(attention, heard, strict=True))
            mixed = gate[to, row] * (flow[sources, row].sum(axis=0) + attended) + flow[to, row] + weights["mix_offset"]
            normed = (mixed - mixed.mean()) / np.sqrt(mixed.var() + 1e-5)
            expected[to, row] = np.maximum(normed * weights["norm_scale"] + weights["norm_offset"], 0)
    arrays = {name: jnp.asarray(value) for name, value in weights.items()}
    found = net_module._graph_layer(arrays, jnp.asarray(incoming_edges(DIAMOND)), jnp.asarray(gate), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_pairs_in_the_wrong_order_or_too_close_cost() -> None:
    def loss(scores: list[float], costs: list[float], keep: list[bool] | None = None) -> float:
        kept = [True] * len(costs) if keep is None else keep
        return float(ranking_loss(jnp.array(scores), jnp.array(costs), jnp.array(kept)))

    assert loss([0.0, 0.1], [1.0, 2.0]) == pytest.approx(0.0, abs=1e-7)
    assert loss([0.0, 0.04], [1.0, 2.0]) == pytest.approx(0.06)
    assert loss([1.0, 0.0], [1.0, 2.0]) == pytest.approx(1.1)
    assert loss([1.0, 0.0], [2.0, 2.0]) == 0.0
    assert loss([0.0, 0.2, 0.2], [1.0, 2.0, 3.0]) == pytest.approx(0.1 / 3)
    assert loss([0.0, 0.2, 0.2], [1.0, 2.0, 3.0], [True, False, True]) == 0.0


def test_a_score_does_not_depend_on_what_is_scored_with_it() -> None:
    rng = np.random.default_rng(1)
    weights, incoming = initial_weights(NET, rng), incoming_edges(DIAMOND)
    inputs, devices = _inputs(rng, 2100), rng.normal(size=(2100, 4)).astype(np.float32)
    together = score(NET, weights, incoming, inputs, devices)
    few = np.array([0, 5, 2050, 2099])
    np.testing.assert_allclose(score(NET, weights, incoming, inputs[few], devices[few]), together[few], rtol=1e-4)
    assert np.unique(together).size > 1000


def test_every_operation_is_priced_by_the_device() -> None:
    """On another device, another option of the same decision has another effect."""
    rng = np.random.default_rng(2)
    weights, incoming, inputs = initial_weights(NET, rng), incoming_edges(DIAMOND), _inputs(rng, 2)
    choices = inputs.choices[[0, 0]]
    choices[:, 1] = np.eye(3)[[0, 1]]
    pair = Inputs(choices, inputs.features[[0, 0]])
    effects = []
    for device in rng.normal(size=(2, 4)).astype(np.float32):
        scores = score(NET, weights, incoming, pair, np.stack([device, device]))
        effects.append(scores[1] - scores[0])
    assert abs(effects[0] - effects[1]) > 1e-3


def test_weights_survive_the_flat_vector() -> None:
    vector = jnp.asarray(initial_weights(NET, np.random.default_rng(3)))
    named = net_module._unflatten(NET, vector)
    assert jax.tree.map(jnp.shape, named) == net_module.weight_shapes(NET)
    np.testing.assert_array_equal(net_module._flatten(NET, named), vector)
