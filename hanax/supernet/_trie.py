"""Many subnets as a trie over their blocks: what architectures share from the start is computed once.

The path of an architecture is its input resolution and then, in order of execution, each block with its choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hanax.search_spaces import INPUT, RESOLUTION, Arch, Choice, SearchSpace

BlockPath = tuple[tuple[str, Choice], ...]
"""`RESOLUTION` with its value, then the name of each slot with its choice and precision; equal beginnings compute the
same values."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One architecture in the order of visiting.

    Attributes:
        index: Which one of those given.
        path: Its path.
        n_shared: Parts from the start of `path` that the visit before has in common with it.
        branches: Numbers of parts from the start of `path` at which some later visit goes another way (or ends, being
            the same network): where outputs have to be kept.
    """

    index: int
    path: BlockPath
    n_shared: int
    branches: frozenset[int]


def block_path(space: SearchSpace, arch: Arch) -> BlockPath:
    """The path of `arch`."""
    blocks = ((placed.slot.name, (*placed.choice, *(placed.precision or ()))) for placed in space.blocks(arch))
    return ((RESOLUTION, (space.resolution(arch),)), *blocks)


def visits(space: SearchSpace, archs: Sequence[Arch]) -> list[Visit]:
    """All of `archs` in an order in which every node of their trie is reached once, which is the fewest possible.

    Sorted paths are such an order: what begins alike lies together.
    """
    paths = [block_path(space, arch) for arch in archs]
    order = sorted(range(len(archs)), key=paths.__getitem__)
    shared = [common_length(paths[first], paths[second]) for first, second in itertools.pairwise(order)]
    branches = {paths[index][:length] for index, length in zip(order, shared, strict=False)}
    return [
        Visit(
            index,
            paths[index],
            n_shared,
            frozenset(length for length in range(1, len(paths[index]) + 1) if paths[index][:length] in branches),
        )
        for index, n_shared in zip(order, [0, *shared], strict=False)
    ]


def common_length(first: BlockPath, second: BlockPath) -> int:
    """Number of parts from the start in which two paths are equal."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True, slots=True)
class SharedWork:
    """What scoring architectures together saves.

    Attributes:
        block_runs: Blocks to run when each node of the trie is computed once.
        block_runs_alone: Blocks to run when every architecture is computed by itself.
        macs: Multiply-accumulates per image of the former.
        macs_alone: Of the latter.
    """

    block_runs: int
    block_runs_alone: int
    macs: int
    macs_alone: int

    @property
    def macs_ratio(self) -> float:
        """Share of the multiply-accumulates that is left; 1 where there are none."""
        return self.macs / self.macs_alone if self.macs_alone else 1.0


def shared_work(space: SearchSpace, archs: Sequence[Arch]) -> SharedWork:
    """The work of scoring `archs` together and one by one."""
    node_macs: dict[BlockPath, int] = {}
    n_alone = macs_alone = 0
    for arch in archs:
        path = block_path(space, arch)
        shape = space.input_shape(arch)
        for length, placed in enumerate(space.blocks(arch), start=2):
            operators = placed.slot.block.lower(placed.slot.name, placed.choice, INPUT, shape)
            shape = operators[-1].out_shape
            macs = sum(operator.macs for operator in operators)
            node_macs[path[:length]] = macs
            n_alone, macs_alone = n_alone + 1, macs_alone + macs
    return SharedWork(len(node_macs), n_alone, sum(node_macs.values()), macs_alone)
