"""The layer-wise space of NAS-Bench-Macro (Su et al., 2021, arXiv:2103.11922), any image size and number of classes.

Shapes: `n` architectures, 8 layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from hanax.search_spaces._blocks import Classifier, ConvBlock
from hanax.search_spaces._fbnet import FBNET_OPERATORS, FBNetLayer
from hanax.search_spaces._renumber import renumber
from hanax.search_spaces._space import RESOLUTION, Decision, SearchSpace, Slot

NAS_BENCH_MACRO_OPERATORS = ("skip", "k3_e3", "k5_e6")
"""What a layer can be, in order of work and of the published digits 0, 1, 2."""

NAS_BENCH_MACRO_STAGES = ((2, 64), (3, 128), (3, 256))
"""Layers and channels; the first layer of each stage halves the map."""


def nas_bench_macro(
    *, resolutions: Sequence[int] = (32,), n_classes: int = 10, image_channels: int = 3, stem_width: int = 32,
    head_width: int = 1280,
) -> SearchSpace:  # fmt: skip
    """NAS-Bench-Macro; the defaults are the published networks for CIFAR-10, 6,561 of them.

    A 3x3 stem, eight layers of one decision each (``layer1`` to ``layer8``), a 1x1 convolution, mean and classifier. A
    layer is an inverted bottleneck or a skip, which is a 1x1 convolution where the shape changes; its options are the
    indices of `NAS_BENCH_MACRO_OPERATORS` in `FBNET_OPERATORS`, as the layers are those of FBNet.

    Args:
        resolutions: Input heights and widths in pixels that the space offers.
    """
    options = tuple(FBNET_OPERATORS.index(name) for name in NAS_BENCH_MACRO_OPERATORS)
    decisions = [Decision(RESOLUTION, tuple(sorted(resolutions)))]
    slots = [Slot("stem", ConvBlock(image_channels, stem_width, 3, 1, "relu"))]
    in_channels = stem_width
    for n_layers, channels in NAS_BENCH_MACRO_STAGES:
        for position in range(n_layers):
            layer = Decision(f"layer{len(decisions)}", options)
            decisions.append(layer)
            slots.append(Slot(layer.name, FBNetLayer(in_channels, channels, 1 if position else 2), (layer.name,)))
            in_channels = channels
    slots.append(Slot("wide", ConvBlock(in_channels, head_width, 1, 1, "relu")))
    slots.append(Slot("head", Classifier(head_width, n_classes)))
    return SearchSpace("nas_bench_macro", image_channels, n_classes, tuple(decisions), tuple(slots))


def nas_bench_macro_codes(operators: Int[np.ndarray, "n 8"]) -> Int32[np.ndarray, "n 9"]:
    """Codes, at the first resolution, of the networks with these published digits.

    Raises:
        ValueError: A digit is not 0, 1 or 2.
    """
    return renumber(operators, NAS_BENCH_MACRO_OPERATORS, NAS_BENCH_MACRO_OPERATORS)
