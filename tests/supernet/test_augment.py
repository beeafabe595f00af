"""Augmentation: what each step may change, that labels follow the images, and that a seed decides everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanax.supernet._augment import (
    Augmentation,
    augment,
    crop_padded,
    flip_chosen,
    mix,
    one_hot,
    square_masks,
    wipe,
)

SEEDS = st.integers(0, 2**32 - 1)
# A loaded machine is not a failure, and a failure must come back on the next run.
PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)
EVERYTHING = Augmentation(pad_crop=2, flip=True, cutout=3, mixup=0.4)


def batch(seed: int, n: int = 12, height: int = 7, width: int = 9, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return images, rng.integers(0, 4, n, dtype=np.int32)


@PROPERTY
@given(SEEDS)
def test_without_any_step_images_and_generator_are_left_alone(seed: int) -> None:
    images, labels = batch(seed)
    rng = np.random.default_rng(seed)
    augmented, soft_labels = augment(images, labels, 4, Augmentation(), rng)
    assert augmented is images
    assert np.array_equal(soft_labels.argmax(axis=1), labels)
    assert np.array_equal(soft_labels.sum(axis=1), np.ones(len(labels)))
    assert rng.bit_generator.state == np.random.default_rng(seed).bit_generator.state


@PROPERTY
@given(SEEDS)
def test_the_same_seed_gives_the_same_batch_and_the_next_batch_differs(seed: int) -> None:
    images, labels = batch(seed)
    before = images.copy()
    first_rng, second_rng = np.random.default_rng(seed), np.random.default_rng(seed)
    first = augment(images, labels, 4, EVERYTHING, first_rng)
    second = augment(images, labels, 4, EVERYTHING, second_rng)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], augment(images, labels, 4, EVERYTHING, first_rng)[0])
    assert np.array_equal(images, before), "the caller's images must not change"


@PROPERTY
@given(SEEDS)
def test_every_step_together_keeps_shapes_types_and_probabilities(seed: int) -> None:
    images, labels = batch(seed)
    augmented, soft_labels = augment(images, labels, 4, EVERYTHING, np.random.default_rng(seed))
    assert augmented.shape == images.shape
    assert augmented.dtype == np.uint8
    assert soft_labels.dtype == np.float32
    assert (soft_labels >= 0).all()
    np.testing.assert_allclose(soft_labels.sum(axis=1), 1.0, atol=1e-6)


@PROPERTY
@given(SEEDS)
def test_flipping_twice_is_not_flipping(seed: int) -> None:
    images, _ = batch(seed)
    chosen = np.random.default_rng(seed).random(len(images)) < 0.5
    flipped = flip_chosen(images, chosen)
    assert np.array_equal(flip_chosen(flipped, chosen), images)
    assert np.array_equal(flipped[~chosen], images[~chosen])
    assert np.array_equal(flipped[chosen][:, :, 0], images[chosen][:, :, -1])


def test_about_half_of_the_images_are_flipped() -> None:
    images, labels = batch(0, n=2000)
    augmented, _ = augment(images, labels, 4, Augmentation(flip=True), np.random.default_rng(0))
    is_flipped = (augmented != images).any(axis=(1, 2, 3))
    assert np.array_equal(augmented[is_flipped], images[is_flipped][:, :, ::-1])
    assert 900 < is_flipped.sum() < 1100


@PROPERTY
@given(SEEDS, st.integers(0, 3))
def test_a_crop_at_the_padding_changes_nothing(seed: int, padding: int) -> None:
    images, _ = batch(seed)
    assert np.array_equal(crop_padded(images, padding, np.full((len(images), 2), padding)), images)


@PROPERTY
@given(SEEDS, st.integers(1, 3))
def test_a_crop_is_the_image_shifted_over_black(seed: int, padding: int) -> None:
    images, _ = batch(seed)
    offsets = np.random.default_rng(seed).integers(0, 2 * padding + 1, (len(images), 2))
    cropped = crop_padded(images, padding, offsets)
    for image, crop, (top, left) in zip(images, cropped, offsets, strict=True):
        expected = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        assert np.array_equal(crop, expected[top : top + image.shape[0], left : left + image.shape[1]])


def test_random_crops_reach_every_offset() -> None:
    images = np.zeros((500, 5, 5, 1), dtype=np.uint8)
    images[:, 2, 2] = 255  # one bright pixel shows where the image went
    labels = np.zeros(500, dtype=np.int32)
    cropped, _ = augment(images, labels, 2, Augmentation(pad_crop=1), np.random.default_rng(0))
    places = {(int(row), int(column)) for _, row, column, _ in np.argwhere(cropped)}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


@PROPERTY
@given(SEEDS, st.integers(1, 12))
def test_cutout_covers_its_area_less_what_lies_outside(seed: int, side: int) -> None:
    height, width = 7, 9
    centres = np.random.default_rng(seed).integers(0, (height, width), (20, 2))
    masks = square_masks(centres, side, height, width)
    for mask, (row, column) in zip(masks, centres, strict=True):
        top, left = row - side // 2, column - side // 2
        rows = min(top + side, height) - max(top, 0)
        columns = min(left + side, width) - max(left, 0)
        assert mask.sum() == rows * columns
        assert mask[row, column]
        covered = np.argwhere(mask)
        assert np.prod(np.ptp(covered, axis=0) + 1) == mask.sum(), "the covered pixels are one rectangle"


def test_cutout_in_the_middle_covers_the_whole_square() -> None:
    assert square_masks(np.array([[10, 10]]), 4, 20, 20).sum() == 16


@PROPERTY
@given(SEEDS)
def test_cutout_wipes_out_its_square_and_nothing_else(seed: int) -> None:
    images, _ = batch(seed)
    centres = np.random.default_rng(seed).integers(0, images.shape[1:3], (len(images), 2))
    masks = square_masks(centres, 3, *images.shape[1:3])
    wiped = wipe(images, masks)
    assert np.array_equal(wiped[~masks], images[~masks])
    np.testing.assert_allclose(wiped[masks], np.broadcast_to(images.mean(axis=(0, 1, 2)), (masks.sum(), 3)), atol=0.5)


@PROPERTY
@given(SEEDS, st.floats(0.05, 5.0))
def test_mixup_mixes_labels_as_it_mixes_images(seed: int, alpha: float) -> None:
    # Every image is flat and its brightness tells its class, so the mixture can be read from either.
    brightness = np.array([0, 80, 160, 240])
    labels = np.random.default_rng(seed).integers(0, 4, 16, dtype=np.int32)
    images = np.broadcast_to(brightness[labels, None, None, None], (16, 3, 3, 1)).astype(np.uint8)
    mixed, soft_labels = augment(images, labels, 4, Augmentation(mixup=alpha), np.random.default_rng(seed))
    read_from_labels = (soft_labels @ brightness.astype(np.float32))[:, None, None, None]
    np.testing.assert_allclose(mixed, np.broadcast_to(read_from_labels, mixed.shape), atol=0.51)
    np.testing.assert_allclose(soft_labels.sum(axis=1), 1.0, atol=1e-6)
    assert ((soft_labels > 0).sum(axis=1) <= 2).all()


@PROPERTY
@given(SEEDS)
def test_mixing_with_weight_one_is_the_image_and_with_zero_its_partner(seed: int) -> None:
    images, labels = batch(seed)
    soft_labels = one_hot(labels, 4)
    partners = np.random.default_rng(seed).permutation(len(images))
    own, own_labels = mix(images, soft_labels, partners, np.ones(len(images)))
    other, other_labels = mix(images, soft_labels, partners, np.zeros(len(images)))
    assert np.array_equal(own, images)
    assert np.array_equal(own_labels, soft_labels)
    assert np.array_equal(other, images[partners])
    assert np.array_equal(other_labels, soft_labels[partners])


@pytest.mark.parametrize(
    "settings", [{"pad_crop": -1}, {"cutout": -2}, {"mixup": -0.1}, {"mixup": float("nan")}, {"mixup": float("inf")}]
)
def test_an_impossible_setting_is_refused_by_its_name(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must be 0 .* got {settings[name]}"):
        Augmentation(**settings)  # type: ignore[arg-type]
