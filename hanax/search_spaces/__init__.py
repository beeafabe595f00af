"""What can be searched: architectures as values, spaces of them, and the one lowering to operators."""

from hanax.search_spaces._arch import Arch
from hanax.search_spaces._blocks import Block, Choice, ConvBlock, Head, MBConv, make_divisible
from hanax.search_spaces._features import block_one_hot, fold_blocks, graph_features
from hanax.search_spaces._graph import INPUT, Activation, Graph, Operator, Shape
from hanax.search_spaces._mobilenet_v3 import mobilenet_v3
from hanax.search_spaces._space import (
    RESOLUTION,
    Condition,
    Decision,
    PlacedBlock,
    SearchSpace,
    Slot,
    SpaceMismatchError,
    unique_rows,
)

__all__ = [
    "INPUT",
    "RESOLUTION",
    "Activation",
    "Arch",
    "Block",
    "Choice",
    "Condition",
    "ConvBlock",
    "Decision",
    "Graph",
    "Head",
    "MBConv",
    "Operator",
    "PlacedBlock",
    "SearchSpace",
    "Shape",
    "Slot",
    "SpaceMismatchError",
    "block_one_hot",
    "fold_blocks",
    "graph_features",
    "make_divisible",
    "mobilenet_v3",
    "unique_rows",
]
