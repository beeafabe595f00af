"""Labelled images as values: a data set, its split into training and validation, resizing and normalisation.

Shapes: `n` images of height `h`, width `w` and `c` channels, channels last, one byte per value (60,000 Fashion-MNIST
images are 47 MB). Only `normalise`, at the border to the network, makes float32 with channels first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64, UInt, UInt8
from numpy.typing import ArrayLike
from PIL import Image

CARVED_FRACTION = 0.2
"""Share of every class that becomes the test part where a source has none."""

CARVED_SEED = 0
"""Seed of that draw: fixed, so that a source means the same test images everywhere."""

_CHUNK = 1024  # images converted or counted at a time, so that temporaries stay small


class DataError(ValueError):
    """Images or labels that cannot be used; says where they came from, what was expected and what was found."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images to classify, in a training and a test part.

    `load_images` and `images_from_arrays` make it and check what the attributes promise.

    Attributes:
        name: For people.
        y_train: 0 to `n_classes` - 1; every class occurs.
        y_test: 0 to `n_classes` - 1.
        class_names: One per class, in the order of the labels.
        notes: What was decided about the data that its files do not say; empty if nothing was.
    """

    name: str
    x_train: UInt8[np.ndarray, "n_train h w c"]
    y_train: Int32[np.ndarray, " n_train"]
    x_test: UInt8[np.ndarray, "n_test h w c"]
    y_test: Int32[np.ndarray, " n_test"]
    class_names: tuple[str, ...]
    notes: str = ""

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return (self.x_train.shape[1], self.x_train.shape[2])

    @property
    def channels(self) -> int:
        """Values per pixel: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
        return int(self.x_train.shape[3])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of images, labels and class names (not of the name), 16 hexadecimal digits."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Images and labels as somebody gave them, unchecked, with the words by which errors name their origin."""

    images: np.ndarray
    labels: np.ndarray
    images_origin: str
    labels_origin: str


def images_from_arrays(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> ImageDataset:
    """A data set of arrays; uint8 images are not copied.

    Without a test part, `CARVED_FRACTION` of every class becomes it, and the data set's notes say so.

    Args:
        x_train: Shape (n, h, w) or (n, h, w, c), c from 1 to 4; uint8, or float from 0 to 1, rounded to steps of 1/255.
        y_train: Integers from 0, shape (n,) or (n, 1).
        x_test: As `x_train`; given together with `y_test` or not at all.
        y_test: As `y_train`.
        class_names: In the order of the labels; the labels themselves, if None.
        name: For people.

    Raises:
        DataError: Wrong shape, type, range or number of images or labels, a class without training images, NaN.
    """
    train = Part(np.asarray(x_train), np.asarray(y_train), f"{name}: x_train", f"{name}: y_train")
    if x_test is None and y_test is None:
        return assemble_carved(name, train, class_names)
    if x_test is None or y_test is None:
        missing = "x_test" if x_test is None else "y_test"
        raise DataError(f"{name}: expected x_test and y_test, or neither; {missing} is None")
    test = Part(np.asarray(x_test), np.asarray(y_test), f"{name}: x_test", f"{name}: y_test")
    return assemble(name, train, test, class_names)


def assemble(
    name: str, train: Part, test: Part, class_names: Sequence[str] | None = None, notes: str = ""
) -> ImageDataset:
    """The data set of two parts, once they pass every check.

    Raises:
        DataError: As `images_from_arrays`; names the origin of the part that is wrong.
    """
    x_train, x_test = (_checked_images(part.images, part.images_origin) for part in (train, test))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{test.images_origin}: expected images of height, width, channels {x_train.shape[1:]} as in "
            f"{train.images_origin}; found {x_test.shape[1:]}"
        )
    y_train, y_test = _checked_labels(train), _checked_labels(test)
    names = _checked_class_names(y_train, train.labels_origin, class_names)
    check_range(y_test, len(names), test.labels_origin)
    return ImageDataset(name, x_train, y_train.astype(np.int32), x_test, y_test.astype(np.int32), names, notes)


def assemble_carved(
    name: str, everything: Part, class_names: Sequence[str] | None = None, notes: str = ""
) -> ImageDataset:
    """The data set of one part, a stratified share of which becomes its test part; its notes say so.

    Raises:
        DataError: As `assemble`, or a class has a single image.
    """
    images = _checked_images(everything.images, everything.images_origin)
    labels = _checked_labels(everything)
    names = _checked_class_names(labels, everything.labels_origin, class_names)
    labels = labels.astype(np.int32)
    kept, drawn = stratified(labels, fraction=CARVED_FRACTION, seed=CARVED_SEED, origin=everything.labels_origin)
    carved = (
        f"no test part of its own: {CARVED_FRACTION:.0%} of each class, drawn with seed {CARVED_SEED}, are the test"
    )
    notes = f"{notes}; {carved}" if notes else carved
    return ImageDataset(name, images[kept], labels[kept], images[drawn], labels[drawn], names, notes)


# ---- checks ------------------------------------------------------------------------------------------------------


def check_range(labels: Int[np.ndarray, " n"] | UInt[np.ndarray, " n"], n_classes: int, origin: str) -> None:
    """Refuse labels outside 0 to `n_classes` - 1.

    Raises:
        DataError: Names `origin` and the first label that is wrong.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(wrong):
        raise DataError(
            f"{origin}: expected labels from 0 to {n_classes - 1}; found {labels[wrong[0]]} at index {wrong[0]}"
        )


def _checked_images(images: np.ndarray, origin: str) -> UInt8[np.ndarray, "n h w c"]:
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{origin}: expected at least one image, shape (n, height, width) or (n, height, width, channels); "
            f"found shape {images.shape}"
        )
    images = images[..., None] if images.ndim == 3 else images
    if not 1 <= images.shape[3] <= 4:
        raise DataError(f"{origin}: expected 1 to 4 channels on the last axis; found shape {images.shape}")
    if images.dtype == np.uint8:
        return images
    if np.issubdtype(images.dtype, np.floating):
        return _bytes_of_floats(images, origin)
    raise DataError(f"{origin}: expected uint8, or float from 0 to 1; found {images.dtype}")


def _bytes_of_floats(images: np.ndarray, origin: str) -> UInt8[np.ndarray, "n h w c"]:
    converted = np.empty(images.shape, dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        lowest, highest = float(chunk.min()), float(chunk.max())
        if not (lowest >= 0.0 and highest <= 1.0):  # NaN fails both
            found = "NaN" if np.isnan(lowest) else f"{lowest:g} to {highest:g}"
            raise DataError(
                f"{origin}: expected floats from 0 to 1 (or uint8 from 0 to 255); found {found} "
                f"in images {start} to {start + len(chunk) - 1}"
            )
        converted[start : start + len(chunk)] = np.rint(chunk * 255)
    return converted


def _checked_labels(part: Part) -> Int[np.ndarray, " n"] | UInt[np.ndarray, " n"]:
    labels = part.labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{part.labels_origin}: expected integer labels, shape (n,); found {part.labels.dtype}, "
            f"shape {part.labels.shape}"
        )
    if len(labels) != len(part.images):
        raise DataError(
            f"{part.labels_origin}: expected one label for each of the {len(part.images)} images of "
            f"{part.images_origin}; found {len(labels)}"
        )
    return labels


def _checked_class_names(
    labels: Int[np.ndarray, " n"] | UInt[np.ndarray, " n"], origin: str, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """One name for each class of the training labels, every one of which must occur."""
    occurring = np.unique(labels)
    n_classes = max(int(occurring[-1]), 0) + 1 if class_names is None else len(class_names)
    check_range(labels, n_classes, origin)
    if n_classes < 2:
        raise DataError(f"{origin}: expected at least 2 classes; found {n_classes}")
    if len(occurring) < n_classes:
        # The first place where the sorted labels run ahead of 0, 1, 2, ... (or end) is the first class without images.
        ahead = np.flatnonzero(occurring != np.arange(len(occurring)))
        empty = int(ahead[0]) if len(ahead) else len(occurring)
        label = f"{empty} ({class_names[empty]})" if class_names is not None else f"{empty}"
        raise DataError(
            f"{origin}: expected training images of each of {n_classes} classes; found none of class {label}"
        )
    return tuple(map(str, range(n_classes))) if class_names is None else tuple(class_names)


# ---- training and validation -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """The training part of a data set, less a validation part carved from it, and the statistics of what is left.

    Attributes:
        mean: Of each channel of `x_train`, pixels counted from 0 to 1.
        std: Standard deviation, likewise; 1 for a channel that never changes.
    """

    x_train: UInt8[np.ndarray, "n_train h w c"]
    y_train: Int32[np.ndarray, " n_train"]
    x_validation: UInt8[np.ndarray, "n_validation h w c"]
    y_validation: Int32[np.ndarray, " n_validation"]
    mean: Float32[np.ndarray, " c"]
    std: Float32[np.ndarray, " c"]


def split_validation(dataset: ImageDataset, *, fraction: float, seed: int) -> Split:
    """Carve `fraction` of every class (at least one image) from the training part; the test part is not looked at.

    Both parts come in random order, since data sets are often sorted by class and the first images calibrate and score.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
        DataError: A class has a single training image.
    """
    kept, drawn = stratified(dataset.y_train, fraction=fraction, seed=seed, origin=f"{dataset.name}: training labels")
    rng = np.random.default_rng([seed, 1])  # not the generator that drew the images
    kept, drawn = rng.permutation(kept), rng.permutation(drawn)
    x_train = dataset.x_train[kept]
    mean, std = channel_statistics(x_train)
    return Split(x_train, dataset.y_train[kept], dataset.x_train[drawn], dataset.y_train[drawn], mean, std)


def stratified(
    labels: Int32[np.ndarray, " n"], *, fraction: float, seed: int, origin: str
) -> tuple[Int64[np.ndarray, " n_kept"], Int64[np.ndarray, " n_drawn"]]:
    """Ascending indices of the images to keep, and of ``round(fraction * count)`` drawn from each class.

    At least one image of each class is drawn and one kept.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
        DataError: A class has a single image; names `origin`.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must be greater than 0 and less than 1; got {fraction}")
    rng = np.random.default_rng(seed)
    is_drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(f"{origin}: expected at least 2 images of class {label}, one for each part; found 1")
        n_drawn = min(max(round(fraction * len(members)), 1), len(members) - 1)
        is_drawn[rng.choice(members, n_drawn, replace=False)] = True
    return np.flatnonzero(~is_drawn), np.flatnonzero(is_drawn)


def channel_statistics(
    images: UInt8[np.ndarray, "n h w c"],
) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
    """Mean and standard deviation of each channel, pixels counted from 0 to 1; a deviation of 0 is given as 1.

    Computed from the counts of the 256 values: exact whatever the number of images, and none is turned into floats.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), _CHUNK):
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + _CHUNK, :, :, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    is_constant = (counts > 0).sum(axis=1) == 1
    return mean.astype(np.float32), np.where(is_constant, 1.0, std).astype(np.float32)


# ---- to the network ----------------------------------------------------------------------------------------------


def normalise(
    images: UInt8[np.ndarray, "n h w c"], mean: Float32[np.ndarray, " c"], std: Float32[np.ndarray, " c"]
) -> Float32[np.ndarray, "n c h w"]:
    """The network's input, ``(images / 255 - mean) / std`` with channels first."""
    values = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    values /= 255
    values -= mean[:, None, None]
    values /= std[:, None, None]
    return values


def resize(images: UInt8[np.ndarray, "n h w c"], side: int) -> UInt8[np.ndarray, "n side side c"]:
    """Square images of `side` pixels, as `fit_square`; `images` themselves if they are so already.

    Raises:
        ValueError: `side` is less than 1.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel; got {side}")
    if images.shape[1:3] == (side, side):
        return images
    resized = np.empty((len(images), side, side, images.shape[3]), dtype=np.uint8)
    for index, image in enumerate(images):
        square = fit_square(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), side)
        resized[index] = np.asarray(square).reshape(resized.shape[1:])
    return resized


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """`image`, its longer side cropped in the middle, at `side` by `side` pixels.

    Bilinear; where it shrinks, the filter grows to cover the area of each new pixel, so that nothing is skipped.
    """
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))  # `resize(box=...)` would blend in what lies around it
    return square.resize((side, side), Image.Resampling.BILINEAR)
