"""Graphs of decisions as inputs of a graph convolution, what few decisions settle being worked out once.

The nodes are the input, one per decision, the output, and a global node that hears all of them. An edge from `u` to `v`
says that `v` hears `u`; every node hears itself. Whatever the convolution's weights, the state of a node is a function
of its own option and of those of the nodes before it. So a node with few decisions before it has few states: these
*shared* rows are the same in all architectures, and only the other, *own* nodes are convolved per architecture. In a
NAS-Bench-201 cell that leaves 3 nodes of 9, and the result is the same.

Shapes: `n` architectures, `d` decisions, `o` columns of options, `b` own nodes, `r` shared rows, `k` features of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

MOST_SHARED_STATES = 64
"""A node is shared if the decisions up to it have at most so many combinations of options."""


@dataclass(frozen=True, slots=True, eq=False)
class DecisionNodes:
    """A graph of decisions, ready to be filled with options; made by `decision_nodes`.

    A node's features are one column per option, padded to the most options of any decision (all 0 for a decision that
    is switched off), and one mark each for the input, the output and the global node.

    Attributes:
        level_counts: States of each decision: its options and, where it may be switched off, one more.
        option_counts: Options of each decision.
        decisions_up_to: For each node the decisions that its state depends on, ascending.
        heard: For each node the nodes that it hears, itself left out; the global node comes last.
        row_of: For each shared node its shared row, by the states of `decisions_up_to`; None for an own node.
        own: The own nodes, those that are heard before those that hear them; the global node comes last.
        own_links: For each own node, the positions in `own` of the own nodes that it hears, itself among them.
        row_marks: The column that is 1 in the features of each shared row's node, -1 for none, shape (r,).
        shared_links: How often each shared row hears each, itself once, shape (r, r).
    """

    level_counts: Ints
    option_counts: Ints
    decisions_up_to: tuple[tuple[int, ...], ...]
    heard: tuple[tuple[int, ...], ...]
    row_of: tuple[Ints | None, ...]
    own: tuple[int, ...]
    own_links: tuple[tuple[int, ...], ...]
    row_marks: Ints
    shared_links: Floats32

    @property
    def n_features(self) -> int:
        """Features of a node, `k`."""
        return int(self.option_counts.max()) + 3

    @property
    def shared_features(self) -> Floats32:
        """Sum of the features of what each shared row hears, itself among them, shape (r, k)."""
        return self.shared_links @ self._one_hot(self.row_marks)

    def inputs(self, options: ArrayLike) -> Floats32:
        """What tells architectures apart, shape (n, b, k + r), from their columns of options, shape (n, o).

        For each own node the sum of the features of what it hears, itself among them, then how often it hears each
        shared row.

        Raises:
            ValueError: A decision is switched off that the graph was made without.
        """
        levels = self._levels(np.asarray(options))
        n, everyone = len(levels), np.arange(len(levels))
        features = np.zeros((n, len(self.own), self.n_features), dtype=np.float32)
        hears = np.zeros((n, len(self.own), len(self.row_marks)), dtype=np.float32)
        for position, (node, links) in enumerate(zip(self.own, self.own_links, strict=True)):
            for other in links:
                features[:, position] += self._one_hot(self._marks(self.own[other], levels))
            for heard in self.heard[node]:
                rows = self.row_of[heard]
                if rows is not None:
                    hears[everyone, position, rows[tuple(levels[:, self.decisions_up_to[heard]].T)]] += 1
        features += hears @ self._one_hot(self.row_marks)
        return np.concatenate([features, hears], axis=2)

    def _levels(self, options: NDArray[np.float64]) -> Ints:
        """The state of each decision, shape (n, d); a decision that is switched off has the state after its options."""
        if options.shape[1] != self.option_counts.sum():
            raise ValueError(
                f"the decisions have {self.option_counts.sum()} options in all; there are {options.shape[1]} columns"
            )
        levels = _levels(options, self.option_counts)
        if len(wrong := np.argwhere(levels >= self.level_counts)):
            arch, decision = wrong[0]
            raise ValueError(
                f"architecture {arch} of {len(levels)} switches decision {decision} off, "
                "which no architecture of the pool does"
            )
        return levels

    def _marks(self, node: int, levels: Ints) -> Ints:
        """The column that is 1 in the features of `node`, for each architecture."""
        return np.array([_mark(node, state, self.option_counts) for state in range(self.level_counts.max())])[
            levels[:, node - 1] if 1 <= node <= len(self.option_counts) else np.zeros(len(levels), dtype=np.int64)
        ]

    def _one_hot(self, marks: Ints) -> Floats32:
        return np.asarray(marks[:, None] == np.arange(self.n_features), dtype=np.float32)


def decision_nodes(option_counts: Sequence[int], adjacency: ArrayLike, options: ArrayLike) -> DecisionNodes:
    """The graph of a space's decisions.

    Args:
        option_counts: Options of each of the `d` decisions.
        adjacency: Whether the node of the column hears that of the row, shape (d + 2, d + 2): the input, the decisions,
            the output.
        options: Columns of options of architectures, shape (n, o), from which is seen what may be switched off.

    Raises:
        ValueError: The shapes do not fit together, or the graph has a cycle.
    """
    counts = np.asarray(option_counts, dtype=np.int64)
    d = len(counts)
    links = np.array(adjacency, dtype=bool)
    if links.shape != (d + 2, d + 2):
        raise ValueError(f"{d} decisions, the input and the output need an adjacency of {d + 2} x {d + 2}; "
                         f"its shape is {links.shape}")  # fmt: skip
    columns = np.asarray(options)
    if columns.ndim != 2 or columns.shape[1] != counts.sum():
        raise ValueError(f"the decisions have {counts.sum()} options in all; the shape of the options is "
                         f"{columns.shape}")  # fmt: skip
    np.fill_diagonal(links, False)
    order = _topological_order(links)
    level_counts = counts + (_levels(columns, counts) == counts).any(axis=0)
    heard = [tuple(np.flatnonzero(links[:, node]).tolist()) for node in range(d + 2)]
    up_to: list[tuple[int, ...]] = [()] * (d + 2)
    for node in order:
        itself = {node - 1} if 1 <= node <= d else set()
        up_to[node] = tuple(sorted(itself.union(*(up_to[other] for other in heard[node]))))
    row_of, rows = _share(order, heard, up_to, counts, level_counts)
    own = (*(node for node in order if row_of[node] is None), d + 2)
    heard.append(tuple(range(d + 2)))
    own_links = tuple(
        tuple(position for position, other in enumerate(own) if other == node or other in heard[node]) for node in own
    )
    shared_links = np.eye(len(rows), dtype=np.float32)
    for row, (_, others) in enumerate(rows):
        np.add.at(shared_links[row], list(others), 1.0)
    return DecisionNodes(
        level_counts, counts, tuple(up_to), tuple(heard), (*row_of, None), own, own_links,
        np.array([mark for mark, _ in rows]), shared_links,
    )  # fmt: skip


def _share(
    order: Sequence[int],
    heard: Sequence[tuple[int, ...]],
    up_to: Sequence[tuple[int, ...]],
    counts: Ints,
    level_counts: Ints,
) -> tuple[list[Ints | None], list[tuple[int, tuple[int, ...]]]]:
    """The shared row of each node's states, and for each row its mark and the rows that it hears."""
    row_of: list[Ints | None] = [None] * len(heard)
    rows: dict[tuple[int, tuple[int, ...]], int] = {}
    for node in order:
        shape = level_counts[list(up_to[node])]
        if math.prod(shape.tolist()) > MOST_SHARED_STATES:
            continue
        index = np.zeros(shape, dtype=np.int64)
        for states in np.ndindex(*shape):
            state = dict(zip(up_to[node], states, strict=True))
            # What `node` hears depends on less than it does, so it is shared too.
            others = [int(row_of[other][tuple(state[k] for k in up_to[other])]) for other in heard[node]]  # type: ignore[index]
            key = (_mark(node, state.get(node - 1, 0), counts), tuple(sorted(others)))
            index[states] = rows.setdefault(key, len(rows))
        row_of[node] = index
    return row_of, list(rows)


def _mark(node: int, state: int, counts: Ints) -> int:
    """The column that is 1 in the features of `node`, -1 for a decision that is switched off."""
    d, most = len(counts), int(counts.max())
    if 1 <= node <= d:
        return state if state < counts[node - 1] else -1
    return {0: most, d + 1: most + 1, d + 2: most + 2}[node]


def _levels(options: NDArray[np.float64], counts: Ints) -> Ints:
    bounds = np.append(0, np.cumsum(counts))
    blocks = [options[:, start:stop] for start, stop in pairwise(bounds)]
    return np.column_stack([
        np.where(block.any(axis=1), block.argmax(axis=1), count) for block, count in zip(blocks, counts, strict=True)
    ])  # fmt: skip


def _topological_order(links: NDArray[np.bool_]) -> list[int]:
    """All nodes, those that are heard before those that hear them."""
    waiting, order = links.sum(axis=0), list[int]()
    ready = np.flatnonzero(waiting == 0).tolist()
    while ready:
        node = ready.pop(0)
        order.append(node)
        for listener in np.flatnonzero(links[node]).tolist():
            waiting[listener] -= 1
            if waiting[listener] == 0:
                ready.append(listener)
    if len(order) < len(links):
        raise ValueError(f"the adjacency has a cycle through some of nodes {np.flatnonzero(waiting > 0).tolist()}")
    return order
