"""The elastic MobileNetV3 space of Once-for-All (Cai et al., 2020, arXiv:1908.09791), any image size and classes."""

from __future__ import annotations

from collections.abc import Sequence

from hanax.search_spaces._blocks import ConvBlock, Head, MBConv, make_divisible
from hanax.search_spaces._graph import Activation
from hanax.search_spaces._space import RESOLUTION, Condition, Decision, SearchSpace, Slot

PUBLISHED_RESOLUTIONS = tuple(range(128, 225, 4))


def mobilenet_v3(
    *,
    resolutions: Sequence[int] = PUBLISHED_RESOLUTIONS,
    n_classes: int = 1000,
    image_channels: int = 3,
    width_mult: float = 1.0,
    kernel_sizes: Sequence[int] = (3, 5, 7),
    expand_ratios: Sequence[int] = (3, 4, 6),
    depths: Sequence[int] = (2, 3, 4),
    stem_width: int = 16,
    stem_stride: int = 2,
    stage_widths: Sequence[int] = (24, 40, 80, 112, 160),
    stage_strides: Sequence[int] = (2, 2, 2, 1, 2),
    stage_activations: Sequence[Activation] = ("relu", "relu", "hswish", "hswish", "hswish"),
    stage_squeeze_excite: Sequence[bool] = (False, True, False, True, True),
    head_width: int = 960,
    feature_width: int = 1280,
) -> SearchSpace:
    """Elastic MobileNetV3; the defaults are the published space ``ofa_mbv3`` of width 1.0, 2 x 10^19 nets a resolution.

    A 3x3 stem and a fixed block of the same width, then one stage per entry of `stage_widths`, then the head. The first
    block of a stage has its stride, and all its blocks are elastic in kernel size and expansion. All widths are
    multiplied by `width_mult` and rounded to multiples of 8.

    Args:
        resolutions: Input heights and widths in pixels that the space offers.
        depths: Numbers of blocks a stage may have.
        stem_stride: Stride of the stem; 1 for images of about 32 px.

    Raises:
        ValueError: The per-stage arguments differ in length, or a stage could be empty.
    """
    per_stage = {
        "stage_widths": stage_widths,
        "stage_strides": stage_strides,
        "stage_activations": stage_activations,
        "stage_squeeze_excite": stage_squeeze_excite,
    }
    lengths = {name: len(values) for name, values in per_stage.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"mobilenet_v3 needs one value per stage in each of {lengths}; the lengths differ")
    if min(depths) < 1:
        raise ValueError(f"mobilenet_v3: a stage needs at least one block; got depths {tuple(depths)}")
    if any(kernel_size % 2 == 0 for kernel_size in kernel_sizes):
        raise ValueError(f"mobilenet_v3: kernel sizes must be odd; got {tuple(kernel_sizes)}")

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    stem = width(stem_width)
    decisions = [Decision(RESOLUTION, tuple(sorted(resolutions)))]
    slots = [
        Slot("stem", ConvBlock(image_channels, stem, 3, stem_stride, "hswish")),
        Slot("first", MBConv(stem, stem, 1, (3,), (1,), "relu", False), (3, 1)),
    ]
    in_channels = stem
    for number, (channels, stride, activation, has_squeeze_excite) in enumerate(
        zip(stage_widths, stage_strides, stage_activations, stage_squeeze_excite, strict=True), start=1
    ):
        depth = Decision(f"stage{number}.depth", tuple(sorted(depths)))
        decisions.append(depth)
        for position in range(1, max(depths) + 1):
            name = f"stage{number}.block{position}"
            deep_enough = tuple(option for option in depth.options if option >= position)
            when = None if deep_enough == depth.options else Condition(depth.name, deep_enough)
            kernel = Decision(f"{name}.kernel_size", tuple(sorted(kernel_sizes)), when)
            expand = Decision(f"{name}.expand_ratio", tuple(sorted(expand_ratios)), when)
            decisions += [kernel, expand]
            block = MBConv(
                in_channels,
                width(channels),
                stride if position == 1 else 1,
                kernel.options,
                expand.options,
                activation,
                has_squeeze_excite,
            )
            slots.append(Slot(name, block, (kernel.name, expand.name), when))
            in_channels = width(channels)
    slots.append(Slot("head", Head(in_channels, width(head_width), width(feature_width), n_classes, "hswish")))
    return SearchSpace("mobilenet_v3", image_channels, n_classes, tuple(decisions), tuple(slots))
