"""What can be searched: architectures as values, spaces of them, and the one lowering to operators."""

from hanax.search_spaces._accel_nas_bench import accel_nas_bench, accel_nas_bench_codes
from hanax.search_spaces._arch import Arch
from hanax.search_spaces._blocks import (
    OUTPUT,
    Block,
    CellBlock,
    Choice,
    Classifier,
    ConvBlock,
    Head,
    MBConv,
    make_divisible,
)
from hanax.search_spaces._decision_graph import decision_graph
from hanax.search_spaces._fbnet import FBNET_OPERATORS, FBNetLayer, fbnet, fbnet_codes
from hanax.search_spaces._features import (
    block_one_hot,
    fold_blocks,
    graph_features,
    live_features,
    operator_class,
    operator_classes,
)
from hanax.search_spaces._graph import (
    INPUT,
    Activation,
    Graph,
    Kind,
    Operator,
    Shape,
    live_operators,
    longest_path,
)
from hanax.search_spaces._mobilenet_v3 import mobilenet_v3
from hanax.search_spaces._nas_bench_201 import (
    NAS_BENCH_201_OPERATORS,
    NasBench201Cell,
    ResidualReduction,
    nas_bench_201,
    nas_bench_201_codes,
)
from hanax.search_spaces._nas_bench_macro import (
    NAS_BENCH_MACRO_OPERATORS,
    nas_bench_macro,
    nas_bench_macro_codes,
)
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
    "FBNET_OPERATORS",
    "INPUT",
    "NAS_BENCH_201_OPERATORS",
    "NAS_BENCH_MACRO_OPERATORS",
    "OUTPUT",
    "RESOLUTION",
    "Activation",
    "Arch",
    "Block",
    "CellBlock",
    "Choice",
    "Classifier",
    "Condition",
    "ConvBlock",
    "Decision",
    "FBNetLayer",
    "Graph",
    "Head",
    "Kind",
    "MBConv",
    "NasBench201Cell",
    "Operator",
    "PlacedBlock",
    "ResidualReduction",
    "SearchSpace",
    "Shape",
    "Slot",
    "SpaceMismatchError",
    "accel_nas_bench",
    "accel_nas_bench_codes",
    "block_one_hot",
    "decision_graph",
    "fbnet",
    "fbnet_codes",
    "fold_blocks",
    "graph_features",
    "live_features",
    "live_operators",
    "longest_path",
    "make_divisible",
    "mobilenet_v3",
    "nas_bench_201",
    "nas_bench_201_codes",
    "nas_bench_macro",
    "nas_bench_macro_codes",
    "operator_class",
    "operator_classes",
    "unique_rows",
]
