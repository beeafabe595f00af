"""Random changes to training images, drawn afresh for every batch.

Shapes: a batch of `n` images of height `h`, width `w` and `c` channels, one byte per value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, UInt8


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What happens to a batch, in this order; the defaults change nothing.

    Attributes:
        pad_crop: Images are framed by this many black pixels and cropped back to their size at a random place.
        flip: Left and right are exchanged in half of the images.
        cutout: Side of a square that is wiped out, in pixels (DeVries & Taylor, 2017, arXiv:1708.04552).
        mixup: Alpha of the Beta distribution of weights with which two images and their labels are averaged (Zhang et
            al., 2018, arXiv:1710.09412).

    Raises:
        ValueError: A negative or non-finite setting.
    """

    pad_crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("pad_crop", self.pad_crop), ("cutout", self.cutout), ("mixup", self.mixup)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 (off) or positive; got {value}")


def augment(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int32[np.ndarray, " n"],
    n_classes: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "n h w c"], Float32[np.ndarray, "n classes"]]:
    """A changed copy of the batch and its labels as probabilities of the classes; equal for equal states of `rng`.

    A step that is off draws nothing from `rng`; with all of them off, `images` come back themselves.
    """
    n = len(images)
    soft_labels = one_hot(labels, n_classes)
    if augmentation.pad_crop:
        images = crop_padded(images, augmentation.pad_crop, rng.integers(0, 2 * augmentation.pad_crop + 1, (n, 2)))
    if augmentation.flip:
        images = flip_chosen(images, rng.random(n) < 0.5)
    if augmentation.cutout:
        height, width = images.shape[1:3]
        centres = rng.integers(0, (height, width), (n, 2))
        images = wipe(images, square_masks(centres, augmentation.cutout, height, width))
    if augmentation.mixup:
        weights = rng.beta(augmentation.mixup, augmentation.mixup, n)
        images, soft_labels = mix(images, soft_labels, rng.permutation(n), weights)
    return images, soft_labels


def one_hot(labels: Int32[np.ndarray, " n"], n_classes: int) -> Float32[np.ndarray, "n classes"]:
    """Probability 1 for the class of each label."""
    probabilities = np.zeros((len(labels), n_classes), dtype=np.float32)
    probabilities[np.arange(len(labels)), labels] = 1.0
    return probabilities


def crop_padded(
    images: UInt8[np.ndarray, "n h w c"], padding: int, offsets: Int[np.ndarray, "n 2"]
) -> UInt8[np.ndarray, "n h w c"]:
    """`images` framed by `padding` black pixels, then cropped to their size from row and column `offsets`.

    An offset of `padding` leaves an image as it was.
    """
    n, height, width, _ = images.shape
    frame = (padding, padding)
    padded = np.pad(images, ((0, 0), frame, frame, (0, 0)))
    rows = offsets[:, 0, None, None] + np.arange(height)[:, None]
    columns = offsets[:, 1, None, None] + np.arange(width)
    return padded[np.arange(n)[:, None, None], rows, columns]


def flip_chosen(images: UInt8[np.ndarray, "n h w c"], chosen: Bool[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
    """`images` with left and right exchanged where `chosen`; twice is not at all."""
    return np.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def square_masks(
    centres: Int[np.ndarray, "n 2"], side: int, height: int, width: int
) -> Bool[np.ndarray, "n {height} {width}"]:
    """Squares of `side` pixels around row and column `centres`; what lies outside the image is cut off.

    A square may therefore cover less than ``side ** 2`` pixels: the paper finds that images left mostly whole matter.
    """
    first = centres - side // 2
    rows = np.arange(height) - first[:, 0, None]
    columns = np.arange(width) - first[:, 1, None]
    in_rows, in_columns = ((places >= 0) & (places < side) for places in (rows, columns))
    masks: Bool[np.ndarray, "n {height} {width}"] = in_rows[:, :, None] & in_columns[:, None, :]
    return masks


def wipe(images: UInt8[np.ndarray, "n h w c"], masks: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w c"]:
    """`images` with the batch's mean colour where `masks`: nearly 0 once normalised, as in the paper."""
    colour = np.rint(images.mean(axis=(0, 1, 2))).astype(np.uint8)
    return np.where(masks[..., None], colour, images)


def mix(
    images: UInt8[np.ndarray, "n h w c"],
    soft_labels: Float32[np.ndarray, "n classes"],
    partners: Int[np.ndarray, " n"],
    weights: Float64[np.ndarray, " n"],
) -> tuple[UInt8[np.ndarray, "n h w c"], Float32[np.ndarray, "n classes"]]:
    """Each image and its label averaged with those of its partner, itself counting with its weight from 0 to 1."""
    own = weights.astype(np.float32)
    pixel_weights, label_weights = own[:, None, None, None], own[:, None]
    mixed = pixel_weights * images + (1 - pixel_weights) * images[partners]
    mixed_labels = label_weights * soft_labels + (1 - label_weights) * soft_labels[partners]
    return np.rint(mixed).astype(np.uint8), mixed_labels
