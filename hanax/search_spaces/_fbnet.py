"""FBNet's space (Wu et al., 2019, arXiv:1812.03443) as HW-NAS-Bench sets it (Li et al., 2021, arXiv:2103.10584).

Shapes: `n` architectures, 22 layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from hanax.search_spaces._blocks import Choice, Classifier, ConvBlock, conv
from hanax.search_spaces._graph import Operator, Shape
from hanax.search_spaces._renumber import renumber
from hanax.search_spaces._space import RESOLUTION, Decision, SearchSpace, Slot

FBNET_SETTINGS = {
    "k3_e1_g2": (3, 1, 2),
    "k5_e1_g2": (5, 1, 2),
    "k3_e1": (3, 1, 1),
    "k5_e1": (5, 1, 1),
    "k3_e3": (3, 3, 1),
    "k5_e3": (5, 3, 1),
    "k3_e6": (3, 6, 1),
    "k5_e6": (5, 6, 1),
}
"""Kernel size, expansion, and groups of the 1x1 convolutions, of each operator that convolves."""

FBNET_OPERATORS = ("skip", *FBNET_SETTINGS)
"""What a layer can be, in order of work; a layer's option is an index into this.

Where channels grow at stride 1, as before the last layer, a skip is a wide 1x1 convolution with more work than a
bottleneck in groups; the last operator is the largest everywhere.
"""

HW_NAS_BENCH_OPERATORS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
"""The same in the order of HW-NAS-Bench and of HELP's files."""

FBNET_STAGES = ((1, 16, 1), (4, 24, 1), (4, 32, 2), (4, 64, 2), (4, 112, 1), (4, 184, 2), (1, 352, 1))
"""Layers, channels and stride of the first layer, for images of 32 pixels."""


@dataclass(frozen=True, slots=True)
class FBNetLayer:
    """An inverted bottleneck with a choice of kernel size, expansion and groups, or a skip.

    1x1 expansion, depthwise convolution, 1x1 projection, the first two with ReLU; a residual where the shape stays. In
    groups, the channels are shuffled after the expansion. A skip that changes the shape is a 1x1 convolution with ReLU.
    """

    in_channels: int
    out_channels: int
    stride: int

    @property
    def elastic(self) -> dict[str, tuple[int, ...]]:
        return {"operator": tuple(range(len(FBNET_OPERATORS)))}

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the input's shape."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def lower(self, name: str, choice: Choice, source: str, shape: Shape) -> list[Operator]:
        operator = FBNET_OPERATORS[choice[0]]
        if operator == "skip":
            if self.keeps_shape:
                return [Operator(f"{name}.skip", "identity", (source,), shape, shape)]
            return [conv(f"{name}.skip", source, shape, self.out_channels, stride=self.stride, activation="relu")]
        kernel_size, expansion, groups = FBNET_SETTINGS[operator]
        mid = expansion * self.in_channels
        ops = [conv(f"{name}.expand", source, shape, mid, groups=groups, activation="relu")]
        wide = ops[-1].out_shape
        if groups > 1:
            ops.append(Operator(f"{name}.shuffle", "shuffle", (ops[-1].name,), wide, wide, groups=groups))
        ops.append(
            conv(f"{name}.depthwise", ops[-1].name, wide, mid,
                 kernel_size=kernel_size, stride=self.stride, groups=mid, activation="relu")
        )  # fmt: skip
        ops.append(conv(f"{name}.project", ops[-1].name, ops[-1].out_shape, self.out_channels, groups=groups))
        if self.keeps_shape:
            ops.append(Operator(f"{name}.add", "add", (ops[-1].name, source), shape, shape))
        return ops


def fbnet(
    *,
    resolutions: Sequence[int] = (32,),
    n_classes: int = 100,
    image_channels: int = 3,
    stem_width: int = 16,
    stem_stride: int = 1,
    stages: Sequence[tuple[int, int, int]] = FBNET_STAGES,
    head_width: int = 1504,
) -> SearchSpace:
    """FBNet; the defaults are HW-NAS-Bench's networks for CIFAR-100, 9^22 of them.

    A 3x3 stem, one layer per decision (``layer1``, ``layer2``, ...), a 1x1 convolution, mean and classifier. Options of
    a layer are indices into `FBNET_OPERATORS`.

    Args:
        resolutions: Input heights and widths in pixels that the space offers.
        stages: Layers, channels and stride of the first layer, of each stage.

    Raises:
        ValueError: A stage has no layers, or channels that two groups cannot share.
    """
    for n_layers, channels, _ in stages:
        if n_layers < 1 or channels % 2:
            raise ValueError(f"fbnet: a stage needs a layer and an even number of channels; got {tuple(stages)}")
    if stem_width % 2:
        raise ValueError(f"fbnet: the stem needs an even number of channels; got {stem_width}")
    decisions = [Decision(RESOLUTION, tuple(sorted(resolutions)))]
    slots = [Slot("stem", ConvBlock(image_channels, stem_width, 3, stem_stride, "relu"))]
    in_channels = stem_width
    for n_layers, channels, first_stride in stages:
        for stride in (first_stride, *[1] * (n_layers - 1)):
            layer = Decision(f"layer{len(decisions)}", tuple(range(len(FBNET_OPERATORS))))
            decisions.append(layer)
            slots.append(Slot(layer.name, FBNetLayer(in_channels, channels, stride), (layer.name,)))
            in_channels = channels
    slots.append(Slot("wide", ConvBlock(in_channels, head_width, 1, 1, "relu")))
    slots.append(Slot("head", Classifier(head_width, n_classes)))
    return SearchSpace("fbnet", image_channels, n_classes, tuple(decisions), tuple(slots))


def fbnet_codes(
    operators: Int[np.ndarray, "n l"], names: Sequence[str] = HW_NAS_BENCH_OPERATORS
) -> Int32[np.ndarray, "n d"]:
    """Codes, at the first resolution, of the networks whose layers are these operators.

    Args:
        operators: Indices into `names`, one per layer.
        names: How they are numbered; by default as in HW-NAS-Bench and HELP's files.

    Raises:
        ValueError: An index is out of range, or `names` are not those of the space.
    """
    return renumber(operators, names, FBNET_OPERATORS)
