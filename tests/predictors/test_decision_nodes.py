from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from hanax.predictors._decision_nodes import DecisionNodes, decision_nodes

CELL_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""The decisions of a NAS-Bench-201 cell: each is the operator on an edge between two of its four states."""


def cell_adjacency() -> np.ndarray:
    adjacency = np.zeros((8, 8), dtype=bool)
    for node, (tail, head) in enumerate(CELL_EDGES, start=1):
        adjacency[0, node] = tail == 0
        adjacency[node, 7] = head == 3
        adjacency[node, 1:7] = [other == head for other, _ in CELL_EDGES]
    return adjacency


def one_hot(codes: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """Columns of options; -1 is a decision that is switched off."""
    return np.concatenate([codes[:, [k]] == np.arange(count) for k, count in enumerate(counts)], axis=1).astype(float)


def all_codes(counts: tuple[int, ...]) -> np.ndarray:
    return np.array(list(product(*map(range, counts))))


def convolve_every_node(adjacency: np.ndarray, features: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """States of the global node of the whole graph, as the paper has it: (n, nodes, k) features, no node shared."""
    n_nodes = len(adjacency) + 1
    hears = np.eye(n_nodes)
    hears[:-1, :-1] += adjacency.T
    hears[-1] = 1
    states = features
    for matrix in weights:
        states = np.maximum(hears @ states @ matrix, 0)
    return states[:, -1]


def convolve(nodes: DecisionNodes, inputs: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    hears, links = inputs[:, :, nodes.n_features :], np.zeros((len(nodes.own), len(nodes.own)))
    for position, others in enumerate(nodes.own_links):
        links[position, list(others)] = 1
    own = np.maximum(inputs[:, :, : nodes.n_features] @ weights[0], 0)
    shared = np.maximum(nodes.shared_features @ weights[0], 0)
    for matrix in weights[1:]:
        own, shared = (
            np.maximum((hears @ shared + links @ own) @ matrix, 0),
            np.maximum(nodes.shared_links @ shared @ matrix, 0),
        )
    return own[:, -1]


def every_feature(codes: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    most, d = max(counts), len(counts)
    features = np.zeros((len(codes), d + 3, most + 3))
    for node, mark in ((0, most), (d + 1, most + 1), (d + 2, most + 2)):
        features[:, node, mark] = 1
    for decision in range(d):
        features[:, decision + 1, :most] = codes[:, [decision]] == np.arange(most)
    return features


@pytest.mark.parametrize("case", ["cell", "chain", "switched off", "unordered"])
def test_sharing_nodes_changes_no_state_of_the_global_node(case: str) -> None:
    rng = np.random.default_rng(0)
    if case == "cell":
        counts, adjacency = (5,) * 6, cell_adjacency()
    elif case == "unordered":  # a decision hears one that comes later in the order of decisions
        counts, adjacency = (3, 4, 2), np.zeros((5, 5), dtype=bool)
        adjacency[[0, 3, 2, 1], [3, 2, 1, 4]] = True
    else:
        counts, adjacency = (3, 2, 4, 3, 3), np.eye(7, k=1, dtype=bool)
    codes = np.stack([rng.integers(0, count, 300) for count in counts], axis=1)
    if case == "switched off":
        codes[rng.random(codes.shape) < 0.2] = -1
    nodes = decision_nodes(counts, adjacency, one_hot(codes, counts))
    sizes = [nodes.n_features, 6, 6, 6]
    weights = [rng.normal(size=(rows, columns)) for rows, columns in pairwise(sizes)]
    found = convolve(nodes, nodes.inputs(one_hot(codes, counts)), weights)
    expected = convolve_every_node(adjacency, every_feature(codes, counts), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(np.unique(expected, axis=0)) > 1


def test_three_nodes_of_a_cell_are_left_and_its_other_six_have_31_states() -> None:
    nodes = decision_nodes((5,) * 6, cell_adjacency(), one_hot(np.zeros((1, 6), dtype=int), (5,) * 6))
    assert nodes.own == (6, 7, 8)
    assert nodes.own_links == ((0,), (0, 1), (0, 1, 2))
    assert len(nodes.row_marks) == 1 + 5 + 25, (
        "the input; the three edges from it, alike; the two after edge 0-1, alike"
    )


def test_a_decision_that_no_architecture_of_the_pool_switches_off_may_not_be_off_later() -> None:
    counts = (2, 3)
    nodes = decision_nodes(counts, np.eye(4, k=1), one_hot(np.array([[0, 1], [1, -1]]), counts))
    nodes.inputs(one_hot(np.array([[1, -1]]), counts))
    with pytest.raises(
        ValueError, match="architecture 1 of 2 switches decision 0 off, which no architecture of the pool"
    ):
        nodes.inputs(one_hot(np.array([[1, 0], [-1, 0]]), counts))


def test_what_is_no_graph_of_the_decisions_is_refused_with_what_it_is() -> None:
    options = one_hot(all_codes((2, 3)), (2, 3))
    with pytest.raises(ValueError, match=r"adjacency of 4 x 4; its shape is \(3, 3\)"):
        decision_nodes((2, 3), np.zeros((3, 3)), options)
    with pytest.raises(ValueError, match=r"6 options in all; the shape of the options is \(6, 5\)"):
        decision_nodes((2, 4), np.zeros((4, 4)), options)
    cycle = np.eye(4, k=1)
    cycle[2, 1] = 1
    with pytest.raises(ValueError, match=r"cycle through some of nodes \[1, 2, 3\]"):
        decision_nodes((2, 3), cycle, options)
    with pytest.raises(ValueError, match="5 options in all; there are 4 columns"):
        decision_nodes((2, 3), np.eye(4, k=1), options).inputs(options[:, :4])
