"""The elastic MobileNetV3: its published size, its shapes, and what its arguments change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hanax.search_spaces import RESOLUTION, MBConv, SearchSpace, make_divisible, mobilenet_v3

PUBLISHED = mobilenet_v3()
SMALL_IMAGES = mobilenet_v3(
    resolutions=(28, 32), n_classes=10, image_channels=1, stem_stride=1, width_mult=0.5, stage_strides=(1, 2, 2, 1, 2)
)


def test_the_published_space_has_its_published_size() -> None:
    blocks = 3 * 3
    per_stage = blocks**2 + blocks**3 + blocks**4
    n_resolutions = 25
    assert PUBLISHED.size == n_resolutions * per_stage**5
    assert 2e19 < per_stage**5 < 2.5e19


def test_the_published_net_has_five_stages_from_112_to_7_pixels() -> None:
    graph = PUBLISHED.graph(PUBLISHED.largest)
    shapes = {op.name: op.out_shape for op in graph.operators}
    assert graph.input_shape == (3, 224, 224)
    assert shapes["stem.conv"] == (16, 112, 112)
    assert shapes["first.add"] == (16, 112, 112)
    assert [shapes[f"stage{stage}.block4.add"] for stage in range(1, 6)] == [
        (24, 56, 56),
        (40, 28, 28),
        (80, 14, 14),
        (112, 14, 14),
        (160, 7, 7),
    ]
    assert shapes["head.expand"] == (960, 7, 7)
    assert shapes["head.mix"] == (1280, 1, 1)
    assert graph.output_shape == (1000, 1, 1)


def test_squeeze_excite_and_activations_are_where_mobilenet_v3_has_them() -> None:
    blocks = {slot.name: slot.block for slot in PUBLISHED.slots if isinstance(slot.block, MBConv)}
    with_squeeze = {name.split(".")[0] for name, block in blocks.items() if block.has_squeeze_excite}
    with_hswish = {name.split(".")[0] for name, block in blocks.items() if block.activation == "hswish"}
    assert with_squeeze == {"stage2", "stage4", "stage5"}
    assert with_hswish == {"stage3", "stage4", "stage5"}


def test_squeeze_excite_gates_the_depthwise_output() -> None:
    graph = PUBLISHED.graph(PUBLISHED.largest)
    ops = {op.name: op for op in graph.operators}
    wide = make_divisible(24 * 6)
    assert ops["stage2.block1.se.pool"].inputs == ("stage2.block1.depthwise",)
    assert ops["stage2.block1.se.scale"].inputs == ("stage2.block1.depthwise", "stage2.block1.se.expand")
    assert ops["stage2.block1.se.reduce"].out_shape == (make_divisible(wide // 4), 1, 1)
    assert ops["stage2.block1.project"].inputs == ("stage2.block1.se.scale",)
    assert ops["stage2.block1.depthwise"].out_shape == (wide, 28, 28)


def test_a_residual_is_where_shape_and_channels_stay() -> None:
    adds = {op.name for op in PUBLISHED.graph(PUBLISHED.largest).operators if op.kind == "add"}
    assert adds == {"first.add", *(f"stage{stage}.block{block}.add" for stage in range(1, 6) for block in (2, 3, 4))}


def test_options_of_an_arch_are_what_its_operators_show() -> None:
    arch = PUBLISHED.arch(
        {
            RESOLUTION: 160,
            "stage1.depth": 2,
            "stage1.block2.kernel_size": 5,
            "stage1.block2.expand_ratio": 4,
        }
    )
    graph = PUBLISHED.graph(arch)
    ops = {op.name: op for op in graph.operators}
    assert graph.input_shape == (3, 160, 160)
    assert "stage1.block3.project" not in ops
    assert ops["stage2.block1.expand"].inputs == ("stage1.block2.add",)
    assert ops["stage1.block2.depthwise"].kernel_size == 5
    assert ops["stage1.block2.depthwise"].out_shape == (4 * 24, 40, 40)


def test_odd_sizes_round_up_at_every_stride() -> None:
    space = mobilenet_v3(resolutions=(45,))
    shapes = {op.name: op.out_shape for op in space.graph(space.largest).operators}
    assert [shapes[f"stage{stage}.block1.project"][1] for stage in range(1, 6)] == [12, 6, 3, 3, 2]


def test_small_gray_images_and_narrow_widths_are_parameters() -> None:
    graph = SMALL_IMAGES.graph(SMALL_IMAGES.largest)
    shapes = {op.name: op.out_shape for op in graph.operators}
    assert graph.input_shape == (1, 32, 32)
    assert graph.output_shape == (10, 1, 1)
    assert shapes["stem.conv"] == (8, 32, 32)
    assert [shapes[f"stage{stage}.block1.project"] for stage in range(1, 6)] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (56, 8, 8),
        (80, 4, 4),
    ]
    assert shapes["head.mix"] == (640, 1, 1)


@pytest.mark.parametrize("space", [PUBLISHED, SMALL_IMAGES], ids=["published", "small images"])
def test_no_cost_falls_when_an_option_grows(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    for codes in space.sample(rng, 5)[:, None, :]:
        smaller = space.graph(*space.decode(codes))
        can_grow = np.flatnonzero(space.active(codes)[0] & (codes[0] < space.option_counts - 1))
        for column in rng.choice(can_grow, 4, replace=False):
            larger_codes = codes.copy()
            larger_codes[0, column] += 1
            larger = space.graph(*space.decode(larger_codes))
            assert larger.macs >= smaller.macs
            assert larger.params >= smaller.params
            assert larger.peak_activation_bytes() >= smaller.peak_activation_bytes()


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(1, 8), (8, 8), (11, 16), (12, 16), (16, 16), (18, 24), (19, 24), (20, 24), (90, 88), (100, 104)],
)
def test_channels_round_to_multiples_of_8_without_losing_a_tenth(value: int, rounded: int) -> None:
    assert make_divisible(value) == rounded
    assert rounded >= 0.9 * value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage_widths": (24, 40)}, "one value per stage in each of .*'stage_widths': 2.*the lengths differ"),
        ({"depths": (0, 1)}, r"a stage needs at least one block; got depths \(0, 1\)"),
        ({"kernel_sizes": (3, 4)}, r"kernel sizes must be odd; got \(3, 4\)"),
        ({"resolutions": ()}, r"options of resolution must ascend; got \(\)"),
    ],
)
def test_arguments_that_make_no_space_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mobilenet_v3(**arguments)
