"""The decisions of a space as a graph: what one chooses is read by what another one chooses."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Bool

from hanax.search_spaces._blocks import OUTPUT, CellBlock
from hanax.search_spaces._graph import INPUT
from hanax.search_spaces._space import RESOLUTION, SearchSpace, Slot

Pair = tuple[str, str]


def decision_graph(space: SearchSpace) -> Bool[np.ndarray, "m m"]:
    """Where what one decision chooses feeds what another one chooses, shape (d + 2, d + 2), for graph encoders.

    Row and column 0 are the network's input, 1 to d the decisions in the order of the codes, d + 1 the output; row i is
    what node i feeds. It follows from the slots of the space:

    * The decisions of a slot stand in parallel (each reads what comes before the slot, and is read by what comes after
      it), unless its block says otherwise (`CellBlock.flow`). So do the decisions about its precision, and the one on
      whether the slot is there; where it may be absent, what comes before it is read by what comes after it, too.
    * Slots without decisions pass on what they read.
    * Slots that repeat decisions of earlier ones add what these feed within the block, and nothing that would lead back
      to them: fifteen equal cells make the graph of one.
    * The resolution is a property of the input, and feeds what the input feeds.

    A decision that shapes no slot feeds nothing and is fed by nothing.
    """
    node = {decision.name: number for number, decision in enumerate(space.decisions, start=1)}
    output = len(node) + 1
    graph = np.zeros((output + 1, output + 1), dtype=np.bool_)
    graph[0, node[RESOLUTION]] = True
    sources, met = {0, node[RESOLUTION]}, set[int]()
    for slot in space.slots:
        readers, writers, passes = set[int](), set[int](), slot.when is not None
        for before, after in _flow(slot):
            if before in node and after in node:
                graph[node[before], node[after]] |= before != after
            elif after in node:
                readers.add(node[after])
            elif before in node:
                writers.add(node[before])
            else:
                passes = True
        if not writers:
            continue
        for reader in readers - met:
            graph[sorted(sources), reader] = True
        sources = writers | (sources if passes else set())
        met |= {node[name] for pair in _flow(slot) for name in pair if name in node}
    graph[sorted(sources), output] = True
    return graph


def _flow(slot: Slot) -> list[Pair]:
    """Pairs of decisions of which the first feeds the second within `slot`; its input and output are among them."""
    pairs: list[Pair] = []
    parallel: list[str] = []
    if isinstance(slot.block, CellBlock):
        pairs = _cell_flow(slot.block, slot.settings)
    else:
        parallel = [setting for setting in slot.settings if isinstance(setting, str)]
    parallel += [setting for setting in slot.precision or () if isinstance(setting, str)]
    if slot.when is not None:
        parallel.append(slot.when.decision)
    return pairs + [pair for name in parallel for pair in ((INPUT, name), (name, OUTPUT))]


def _cell_flow(block: CellBlock, settings: tuple[str | int, ...]) -> list[Pair]:
    """The flow of `block` in names of decisions; whatever a fixed parameter reads is read by what reads it."""
    pairs, name_of = list(block.flow), {INPUT: INPUT, OUTPUT: OUTPUT}
    for parameter, setting in zip(block.elastic, settings, strict=True):
        if isinstance(setting, str):
            name_of[parameter] = setting
            continue
        before = [start for start, end in pairs if end == parameter]
        after = [end for start, end in pairs if start == parameter]
        pairs = [pair for pair in pairs if parameter not in pair] + list(itertools.product(before, after))
    return [(name_of[before], name_of[after]) for before, after in pairs]
