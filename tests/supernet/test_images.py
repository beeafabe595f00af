"""Image data sets: every format is read as it was written, and every kind of damage is named."""

from __future__ import annotations

import ast
import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hanax.supernet import _image_files, _images
from hanax.supernet._image_files import load_images
from hanax.supernet._images import (
    CARVED_FRACTION,
    DataError,
    ImageDataset,
    images_from_arrays,
    normalise,
    resize,
    split_validation,
    stratified,
)

ROOT = Path(__file__).parents[2]
SHARED_DATA = Path(os.environ.get("HANAX_DATA", ROOT.parent / "shared" / "data"))
# A loaded machine is not a failure, and a failure must come back on the next run.
PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def arrays(n_train: int = 40, n_test: int = 10, side: int = 6, channels: int = 1, n_classes: int = 5) -> Arrays:
    """x_train, y_train, x_test, y_test; random pixels, every class in turn."""
    rng = np.random.default_rng(0)
    x_train, x_test = (rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8) for n in (n_train, n_test))
    return (
        x_train,
        np.arange(n_train, dtype=np.int32) % n_classes,
        x_test,
        np.arange(n_test, dtype=np.int32) % n_classes,
    )


def assert_holds(dataset: ImageDataset, expected: Arrays) -> None:
    found = (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
    assert [array.dtype for array in found] == [np.uint8, np.int32, np.uint8, np.int32]


def refused(source: str | Path, *words: str, image_size: int | None = None) -> None:
    """Loading `source` ends in a DataError that holds all of `words`."""
    with pytest.raises(DataError) as caught:
        load_images(source, image_size=image_size)
    for word in words:
        assert word in str(caught.value)


# ---- digits ------------------------------------------------------------------------------------------------------


def test_digits_come_with_scikit_learn_and_a_test_part_is_carved() -> None:
    digits = load_images("digits")
    assert (digits.n_classes, digits.image_size, digits.channels) == (10, (8, 8), 1)
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 255)
    share = np.bincount(digits.y_test) / np.bincount(np.concatenate([digits.y_train, digits.y_test]))
    np.testing.assert_allclose(share, CARVED_FRACTION, atol=0.005)
    assert "20% of each class, drawn with seed 0" in digits.notes
    assert load_images("digits").fingerprint == digits.fingerprint


# ---- IDX ---------------------------------------------------------------------------------------------------------

OFFICIAL = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(array: np.ndarray) -> bytes:
    values = array[..., 0] if array.ndim == 4 else array
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, names: tuple[str, ...] = OFFICIAL, ending: str = "") -> Arrays:
    folder.mkdir(parents=True, exist_ok=True)
    written = arrays()
    for name, array in zip(names, written, strict=True):
        contents = idx_bytes(array)
        (folder / f"{name}{ending}").write_bytes(gzip.compress(contents) if ending == ".gz" else contents)
    return written


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_idx_files_are_found_plain_or_compressed_where_people_keep_them(
    tmp_path: Path, ending: str, below: str
) -> None:
    written = write_idx(tmp_path / "clothes" / below, ending=ending)
    dataset = load_images(tmp_path / "clothes")
    assert_holds(dataset, written)
    assert dataset.name == "clothes"
    assert dataset.class_names == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    "names",
    [
        tuple(name.replace("-idx", ".idx") for name in OFFICIAL),
        tuple(name.replace("t10k", "test") for name in OFFICIAL),
    ],
)
def test_other_spellings_of_the_idx_names_are_known(tmp_path: Path, names: tuple[str, ...]) -> None:
    written = write_idx(tmp_path, names)
    assert_holds(load_images(tmp_path), written)


def test_compression_is_seen_in_the_contents_not_in_the_name(tmp_path: Path) -> None:
    written = write_idx(tmp_path)
    for name in OFFICIAL[:2]:
        (tmp_path / name).rename(tmp_path / f"{name}.gz")
    (tmp_path / OFFICIAL[2]).write_bytes(gzip.compress((tmp_path / OFFICIAL[2]).read_bytes()))
    assert_holds(load_images(str(tmp_path)), written)


def test_idx_files_that_are_there_twice_are_read_once(tmp_path: Path) -> None:
    write_idx(tmp_path, ending=".gz")
    written = write_idx(tmp_path)
    assert_holds(load_images(tmp_path), written)


def replace_bytes(start: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda old: old[:start] + new + old[start + len(new) :]


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (OFFICIAL[0], lambda old: old[:-7], ["expected 1440 values", "(40, 6, 6)", "found 1433"]),
        (OFFICIAL[0], lambda old: old + b"\0", ["expected 1440 values", "found more"]),
        (OFFICIAL[0], lambda old: old[:9], ["header of 16 bytes", "found 9"]),
        (OFFICIAL[0], lambda old: b"", ["magic 00 00 08 03", "found an empty file"]),
        (OFFICIAL[0], replace_bytes(2, b"\x0d"), ["magic 00 00 08 03 (unsigned bytes, 3 axes)", "found 00 00 0d 03"]),
        (OFFICIAL[0], replace_bytes(4, b"\xff" * 12), ["found 1440"]),
        (OFFICIAL[0], replace_bytes(4, b"\0" * 4), ["expected 0 values", "found more"]),
        (OFFICIAL[1], replace_bytes(0, b"\1"), ["magic 00 00 08 01", "found 01 00 08 01"]),
        (OFFICIAL[1], lambda old: idx_bytes(np.zeros(39)), ["each of the 40 images", OFFICIAL[0], "found 39"]),
        (OFFICIAL[1], lambda old: idx_bytes(np.arange(40) % 4 * 2), ["each of 7 classes", "none of class 1"]),
        (OFFICIAL[1], lambda old: idx_bytes(np.zeros(40)), ["at least 2 classes", "found 1"]),
        (OFFICIAL[2], lambda old: idx_bytes(np.zeros((10, 5, 5))), ["(6, 6, 1)", "found (5, 5, 1)"]),
        (OFFICIAL[2], lambda old: idx_bytes(np.zeros((0, 6, 6))), ["at least one image", "(0, 6, 6)"]),
        (OFFICIAL[3], lambda old: idx_bytes(np.arange(10)), ["labels from 0 to 4", "found 5 at index 5"]),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_damaged_idx_file_is_named_with_what_it_should_hold(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], words: list[str], ending: str
) -> None:
    write_idx(tmp_path)
    contents = damage((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(gzip.compress(contents) if ending == ".gz" else contents)
    refused(tmp_path, name, *words)


def cut_short(contents: bytes) -> bytes:
    return contents[: len(contents) // 2]


def flip_a_bit(contents: bytes) -> bytes:
    return replace_bytes(len(contents) - 6, bytes([contents[-6] ^ 1]))(contents)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit])
def test_a_damaged_gzip_stream_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_idx(tmp_path, ending=".gz")
    path = tmp_path / f"{OFFICIAL[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, path.name, "expected a readable, complete file", "found damage")


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_idx_file_is_asked_for_by_its_name(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).unlink()
    refused(tmp_path, f"expected {name} (or .gz)", *set(OFFICIAL) - {name})


def test_two_data_sets_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST")
    write_idx(tmp_path / "FashionMNIST")
    refused(tmp_path, "expected one data set", "FashionMNIST, MNIST")


def test_a_single_idx_file_points_to_its_folder(tmp_path: Path) -> None:
    write_idx(tmp_path)
    refused(tmp_path / OFFICIAL[0], "give the folder that holds all four")


# ---- CIFAR -------------------------------------------------------------------------------------------------------

NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def records(images: np.ndarray, *labels: np.ndarray) -> bytes:
    columns = [label.astype(np.uint8)[:, None] for label in labels]
    return np.hstack([*columns, images.transpose(0, 3, 1, 2).reshape(len(images), -1)]).tobytes()


def cifar10() -> tuple[dict[str, bytes], Arrays]:
    x_train, y_train, x_test, y_test = arrays(n_train=30, side=32, channels=3, n_classes=10)
    files = {
        "data_batch_1.bin": records(x_train[:13], y_train[:13]),
        "data_batch_2.bin": records(x_train[13:], y_train[13:]),
        "test_batch.bin": records(x_test, y_test),
        "batches.meta.txt": ("\n".join(NAMES_10) + "\n\n").encode(),
    }
    return files, (x_train, y_train, x_test, y_test)


def cifar100() -> tuple[dict[str, bytes], Arrays]:
    x_train, y_train, x_test, y_test = arrays(n_train=200, side=32, channels=3, n_classes=100)
    files = {
        "train.bin": records(x_train, y_train // 5, y_train),
        "test.bin": records(x_test, y_test // 5, y_test),
        "fine_label_names.txt": "\n".join(f"kind{label}" for label in range(100)).encode(),
        "coarse_label_names.txt": b"group",
    }
    return files, (x_train, y_train, x_test, y_test)


def write_tar(path: Path, files: Mapping[str, bytes], folder: str = "cifar/") -> Path:
    is_gzip = path.name.endswith("gz")
    with tarfile.open(path, "w:gz") if is_gzip else tarfile.open(path, "w") as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder


@pytest.mark.parametrize("make", [cifar10, cifar100])
@pytest.mark.parametrize("layout", ["cifar.tar.gz", "cifar.tar", "folder", "folder/cifar", "folder of an archive"])
def test_cifar_is_read_from_its_archive_or_its_folder(
    tmp_path: Path, make: Callable[[], tuple[dict[str, bytes], Arrays]], layout: str
) -> None:
    files, written = make()
    if layout.startswith("cifar"):
        source = write_tar(tmp_path / layout, files)
    elif layout == "folder of an archive":
        source = write_tar(tmp_path / "cifar.tgz", files).parent
    else:
        source = tmp_path / "folder"
        write_folder(tmp_path / layout, files)
    dataset = load_images(source)
    assert_holds(dataset, written)
    assert dataset.class_names[:2] == (("airplane", "automobile") if make is cifar10 else ("kind0", "kind1"))
    if layout.startswith("cifar"):
        assert dataset.name == "cifar"


def test_nothing_of_an_archive_is_written_to_disk(tmp_path: Path) -> None:
    write_tar(tmp_path / "cifar.tar.gz", cifar10()[0], folder="../../escape/")
    assert load_images(tmp_path).n_classes == 10
    assert [path.name for path in tmp_path.iterdir()] == ["cifar.tar.gz"]
    assert not (tmp_path / "../../escape").exists()


def test_cifar_classes_have_numbers_where_the_file_of_names_is_missing(tmp_path: Path) -> None:
    files, written = cifar10()
    del files["batches.meta.txt"]
    dataset = load_images(write_folder(tmp_path / "cifar", files))
    assert_holds(dataset, written)
    assert dataset.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("data_batch_2.bin", cifar10()[0]["data_batch_2.bin"][:-1], ["data_batch_2.bin", "a multiple of 3073 bytes"]),
        ("data_batch_2.bin", b"", ["data_batch_2.bin", "a multiple of 3073 bytes", "found 0"]),
        ("data_batch_2.bin", bytes([10]) * 3073, ["data_batch_2.bin", "labels from 0 to 9", "found 10 at index 0"]),
        ("test_batch.bin", bytes([255]) * 6146, ["test_batch.bin", "labels from 0 to 9", "found 255 at index 0"]),
        ("batches.meta.txt", b"cat dog", ["batches.meta.txt", "expected 10 names", "found 2"]),
        ("batches.meta.txt", b"\xff\xfe", ["batches.meta.txt", "expected 10 names", "found 1"]),
        ("train.bin", bytes(3074), ["data_batch_1.bin", "test_batch.bin", "train.bin", "found"]),
    ],
)
@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_a_damaged_cifar_file_is_named(
    tmp_path: Path,
    name: str,
    contents: bytes,
    words: list[str],
    write: Callable[[Path, Mapping[str, bytes]], Path],
) -> None:
    refused(write(tmp_path / "cifar", cifar10()[0] | {name: contents}), *words)


@pytest.mark.parametrize("missing", ["test_batch.bin", "data_batch"])
def test_a_missing_part_of_cifar_is_asked_for(tmp_path: Path, missing: str) -> None:
    files = {name: contents for name, contents in cifar10()[0].items() if not name.startswith(missing)}
    refused(write_tar(tmp_path / "cifar.tar.gz", files), "data_batch_*.bin and test_batch.bin", "found")
    refused(write_folder(tmp_path / "cifar", files), "data_batch_*.bin and test_batch.bin", "found")


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    files, (x_train, y_train, _, _) = cifar10()
    del files["data_batch_2.bin"]
    files["data_batch_1.bin"] = records(x_train, np.where(y_train == 3, 4, y_train))
    refused(write_tar(tmp_path / "cifar.tar.gz", files), "data_batch_1.bin", "each of 10 classes", "class 3 (cat)")


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lambda contents: contents[:-4]])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_tar(tmp_path / "cifar.tar.gz", cifar10()[0])
    path.write_bytes(damage(path.read_bytes()))
    refused(path, "cifar.tar.gz", "found damage")


def test_an_archive_cut_between_two_files_lacks_a_part(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cifar.tar", cifar10()[0])
    with tarfile.open(path) as archive:
        end = archive.getmember("cifar/test_batch.bin").offset
    path.write_bytes(path.read_bytes()[:end])
    refused(path, "cifar.tar", "test_batch.bin", "found data_batch_1.bin, data_batch_2.bin")


def test_an_archive_that_claims_a_huge_file_is_refused_before_reading_it(tmp_path: Path) -> None:
    member = tarfile.TarInfo("data_batch_1.bin")
    member.size = 1 << 40
    (tmp_path / "cifar.tar").write_bytes(member.tobuf() + bytes(20480))
    refused(tmp_path / "cifar.tar", "data_batch_1.bin", "at most 1073741824 bytes", "found 1099511627776")


def test_links_and_repeated_files_in_an_archive_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("data_batch_1.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link)
    refused(tmp_path / "link.tar", "data_batch_1.bin", "expected a plain file")
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for folder in ("a", "b"):
            member = tarfile.TarInfo(f"{folder}/test_batch.bin")
            member.size = 3073
            archive.addfile(member, io.BytesIO(bytes(3073)))
    refused(tmp_path / "twice.tar", "expected one test_batch.bin")


def test_the_pickled_version_of_cifar_is_refused_with_the_version_to_get(tmp_path: Path) -> None:
    files = {"data_batch_1": b"pickle", "test_batch": b"pickle", "batches.meta": b"pickle"}
    refused(write_tar(tmp_path / "cifar-10-python.tar.gz", files), "the binary version", "found none of them")
    refused(write_folder(tmp_path / "cifar-10-batches-py", files), "binary version", "data_batch_1")


# ---- npz ---------------------------------------------------------------------------------------------------------

NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")


def write_npz(path: Path, written: Arrays, **changed: np.ndarray) -> Path:
    np.savez_compressed(path, **(dict(zip(NPZ_NAMES, written, strict=True)) | changed))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_npz_holds_images_with_channels_last(tmp_path: Path, channels: int) -> None:
    written = arrays(channels=channels)
    dataset = load_images(write_npz(tmp_path / "toys.npz", written))
    assert_holds(dataset, written)
    assert (dataset.name, dataset.channels, dataset.image_size) == ("toys", channels, (6, 6))
    assert load_images(tmp_path).fingerprint == dataset.fingerprint, "a folder with one archive stands for it"


def test_npz_may_leave_out_the_channel_and_give_labels_as_a_column(tmp_path: Path) -> None:
    x_train, y_train, x_test, y_test = written = arrays()
    flat = (x_train[..., 0], y_train[:, None].astype(np.int64), x_test[..., 0], y_test[:, None].astype(np.uint8))
    assert_holds(load_images(write_npz(tmp_path / "toys.npz", flat)), written)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_zero_to_one_become_the_bytes_they_came_from(tmp_path: Path, dtype: type) -> None:
    x_train, y_train, x_test, y_test = written = arrays(n_train=1500)
    as_floats: Arrays = ((x_train / 255).astype(dtype), y_train, (x_test / 255).astype(dtype), y_test)
    assert_holds(load_images(write_npz(tmp_path / "toys.npz", as_floats)), written)


def with_nan(images: np.ndarray) -> np.ndarray:
    damaged = images / 255
    damaged[7, 1, 2, 0] = np.nan
    return damaged


X_TRAIN, Y_TRAIN, X_TEST, Y_TEST = arrays()


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("x_train", with_nan(X_TRAIN), ["floats from 0 to 1", "found NaN in images 0 to 39"]),
        ("x_train", X_TRAIN.astype(np.float32), ["floats from 0 to 1 (or uint8", "found 0 to 255"]),
        ("x_train", -(X_TRAIN / 255), ["floats from 0 to 1", "found -1 to"]),
        ("x_test", X_TEST / np.float32(0.5), ["floats from 0 to 1"]),
        ("x_train", X_TRAIN.astype(np.int64), ["expected uint8, or float from 0 to 1; found int64"]),
        ("x_train", X_TRAIN > 9, ["found bool"]),
        ("x_train", np.zeros((40, 6, 6, 9), np.uint8), ["1 to 4 channels on the last axis", "(40, 6, 6, 9)"]),
        ("x_train", np.zeros((40, 36), np.uint8), ["(n, height, width)", "found shape (40, 36)"]),
        ("x_train", X_TRAIN[:0], ["at least one image", "(0, 6, 6, 1)"]),
        ("x_test", X_TEST[:, :5], ["(6, 6, 1) as in", "x_train", "found (5, 6, 1)"]),
        ("x_test", np.repeat(X_TEST, 3, axis=3), ["(6, 6, 1) as in", "found (6, 6, 3)"]),
        ("y_train", Y_TRAIN[:-1], ["each of the 40 images", "x_train", "found 39"]),
        ("y_train", Y_TRAIN.astype(float), ["integer labels", "found float64"]),
        ("y_train", np.eye(5, dtype=int)[Y_TRAIN], ["integer labels, shape (n,)", "shape (40, 5)"]),
        ("y_train", Y_TRAIN.astype(str), ["integer labels"]),
        ("y_train", Y_TRAIN - 1, ["labels from 0 to 3", "found -1 at index 0"]),
        ("y_train", Y_TRAIN + 1, ["each of 6 classes", "none of class 0"]),
        ("y_train", np.where(Y_TRAIN == 4, 2**62, Y_TRAIN.astype(np.int64)), ["none of class 4"]),
        ("y_train", np.where(Y_TRAIN == 4, 2**64 - 1, Y_TRAIN.astype(np.uint64)), ["none of class 4"]),
        ("y_test", Y_TEST + 3, ["labels from 0 to 4", "found 5 at index 2"]),
    ],
)
def test_a_wrong_array_is_named_with_what_was_expected(
    tmp_path: Path, name: str, array: np.ndarray, words: list[str]
) -> None:
    path = write_npz(tmp_path / "toys.npz", arrays(), **{name: array})
    refused(path, f"{path}: {name}: expected", *words)
    x_train, y_train, x_test, y_test = (dict(zip(NPZ_NAMES, arrays(), strict=True)) | {name: array}).values()
    with pytest.raises(DataError, match=f"arrays: {name}: expected"):
        images_from_arrays(x_train, y_train, x_test, y_test)


@pytest.mark.parametrize("name", NPZ_NAMES)
def test_a_missing_array_is_asked_for(tmp_path: Path, name: str) -> None:
    kept = {key: array for key, array in zip(NPZ_NAMES, arrays(), strict=True) if key != name}
    np.savez(tmp_path / "toys.npz", **kept)  # type: ignore[arg-type]
    refused(tmp_path / "toys.npz", "expected arrays x_train, y_train, x_test, y_test; found " + ", ".join(kept))


@pytest.mark.parametrize("damage", [cut_short, lambda contents: replace_bytes(300, b"damage")(contents)])
def test_a_damaged_npz_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_npz(tmp_path / "toys.npz", arrays())
    path.write_bytes(damage(path.read_bytes()))
    refused(path, "toys.npz", "found damage")


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = np.empty(40, dtype=object)
    bomb[:] = Bomb()
    path = write_npz(tmp_path / "toys.npz", arrays(), y_train=bomb)
    refused(path, "toys.npz", "allow_pickle=False")
    assert not (tmp_path / "exploded").exists()


# ---- folders of images -------------------------------------------------------------------------------------------


def picture(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_images(folder: Path, mode: str = "RGB", n: int = 5, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(n):
            picture(100 * label + index, mode).save(folder / name / f"{index}.png")
    return folder


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation"])
def test_train_and_test_folders_hold_a_folder_per_class(tmp_path: Path, test_name: str) -> None:
    write_images(tmp_path / "insects" / "train")
    write_images(tmp_path / "insects" / test_name, n=2)
    (tmp_path / "insects" / "README.md").write_text("not an image")
    dataset = load_images(tmp_path / "insects")
    assert dataset.name == "insects"
    assert dataset.class_names == ("ant", "bee")
    assert dataset.y_train.tolist() == [0] * 5 + [1] * 5
    assert dataset.y_test.tolist() == [0, 0, 1, 1]
    assert np.array_equal(dataset.x_train[7], np.asarray(picture(102)))
    assert dataset.notes == f"{test_name}/ is the test part"


def test_a_folder_that_is_not_read_is_mentioned(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write_images(tmp_path / name)
    assert load_images(tmp_path).notes == "test/ is the test part; not read: val"


def test_one_folder_per_class_gets_a_stratified_test_part_and_says_so(tmp_path: Path) -> None:
    dataset = load_images(write_images(tmp_path / "insects", n=10))
    assert dataset.y_train.tolist() == [0] * 8 + [1] * 8
    assert dataset.y_test.tolist() == [0, 0, 1, 1]
    assert "20% of each class, drawn with seed 0" in dataset.notes
    everything = np.concatenate([dataset.x_train, dataset.x_test])
    assert len(np.unique(everything, axis=0)) == 20
    assert load_images(tmp_path / "insects").fingerprint == dataset.fingerprint


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_channels_follow_from_the_images(tmp_path: Path, mode: str, channels: int) -> None:
    assert load_images(write_images(tmp_path, mode)).channels == channels


@pytest.mark.parametrize("ending", ["jpg", "bmp", "gif", "webp", "tif", "ppm"])
def test_images_may_have_any_format_that_pillow_reads(tmp_path: Path, ending: str) -> None:
    for path in write_images(tmp_path).glob("*/*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(f".{ending}"))
        path.unlink()
    assert load_images(tmp_path).x_train.shape == (8, 8, 8, 3)


def test_transparent_colours_of_a_palette_are_alpha(tmp_path: Path) -> None:
    for path in write_images(tmp_path, "P").glob("*/*.png"):
        with Image.open(path) as image:
            image.load()
        image.save(path, transparency=b"\x00\x80")
    assert load_images(tmp_path).channels == 4


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    upright = picture(0)
    write_images(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "ant" / "0.png", exif=exif)
    dataset = load_images(tmp_path)
    everything = np.concatenate([dataset.x_train, dataset.x_test])
    assert (everything == np.asarray(upright)).all(axis=(1, 2, 3)).any()


def test_files_of_the_operating_system_are_not_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / ".git").mkdir()
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "ant" / name).write_bytes(b"junk")
    assert len(load_images(tmp_path).x_train) == 8


def test_images_of_many_sizes_need_an_image_size_and_get_it(tmp_path: Path) -> None:
    write_images(tmp_path)
    picture(size=(20, 12)).save(tmp_path / "bee" / "0.png")
    refused(tmp_path, "0.png", "(8, 8)", "found (12, 20)", "Give image_size")
    dataset = load_images(tmp_path, image_size=6)
    assert (dataset.image_size, len(dataset.x_train)) == ((6, 6), 8)


def write_junk(folder: Path) -> None:
    (folder / "ant" / "notes.txt").write_text("not an image")


def cut_image(folder: Path) -> None:
    path = folder / "ant" / "3.png"
    path.write_bytes(cut_short(path.read_bytes()))


def empty_class(folder: Path) -> None:
    (folder / "cow").mkdir()


def nest_folder(folder: Path) -> None:
    (folder / "ant" / "more").mkdir()


def grey_image(folder: Path) -> None:
    picture(mode="L").save(folder / "bee" / "2.png")


def deep_image(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "bee" / "2.png")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (write_junk, ["notes.txt", "found damage", "cannot identify image file"]),
        (cut_image, ["3.png", "found damage"]),
        (empty_class, ["cow", "at least one image of its class"]),
        (nest_folder, ["ant", "found the folder more"]),
        (grey_image, ["2.png", "3 channels", "0.png", "found 1"]),
        (deep_image, ["2.png", "8 bits", "I;16"]),
    ],
)
@pytest.mark.parametrize("image_size", [None, 4])
def test_a_wrong_file_among_the_images_is_named(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str], image_size: int | None
) -> None:
    write_images(tmp_path)
    damage(tmp_path)
    refused(tmp_path, *words, image_size=image_size)


def test_train_and_test_folders_must_agree(tmp_path: Path) -> None:
    write_images(tmp_path / "train", classes=("ant", "bee", "cow"))
    refused(tmp_path, "expected train/ and one of test, val", "found train", f"Give {tmp_path / 'train'}")
    write_images(tmp_path / "test", classes=("ant", "bee", "dog"))
    refused(tmp_path, "expected the classes of", "found in one of them only: cow, dog")


def test_train_and_test_images_must_be_of_one_kind(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", mode="L")
    refused(tmp_path, str(tmp_path / "test"), "(8, 8, 3)", "found (8, 8, 1)")


def test_a_single_class_or_a_single_image_of_a_class_is_refused(tmp_path: Path) -> None:
    refused(write_images(tmp_path / "lonely", classes=("ant",)), "at least 2 classes", "found ant")
    refused(write_images(tmp_path / "few", n=1), "few", "at least 2 images of class 0", "found 1")


# ---- sources that are none ---------------------------------------------------------------------------------------


def test_a_source_that_holds_no_images_is_answered_with_what_can_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing", "there is none", "Fashion-MNIST", ".npz")
    refused(tmp_path, "found nothing", "digits")
    (tmp_path / "table.csv").write_text("a,b")
    refused(tmp_path, "found table.csv", "digits")
    refused(tmp_path / "table.csv", "starts with b'a,b'", "digits")
    (tmp_path / "void.npz").write_bytes(b"")
    refused(tmp_path / "void.npz", "starts with b''")


def test_several_archives_in_a_folder_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, arrays())
    refused(tmp_path, "expected one archive; found a.npz, b.npz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    write_npz(tmp_path / "toys.npz", arrays()).chmod(0)
    refused(tmp_path / "toys.npz", "toys.npz", "Permission denied")


def test_an_image_size_below_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel; got 0"):
        load_images("digits", image_size=0)


# ---- the data set ------------------------------------------------------------------------------------------------


def test_arrays_without_a_test_part_get_one() -> None:
    x, y, _, _ = arrays()
    dataset = images_from_arrays(x, y, class_names=list("abcde"), name="mine")
    assert np.bincount(dataset.y_test).tolist() == [2] * 5
    assert (dataset.name, dataset.class_names) == ("mine", tuple("abcde"))
    assert "drawn with seed 0" in dataset.notes
    with pytest.raises(DataError, match="mine: expected x_test and y_test, or neither; y_test is None"):
        images_from_arrays(x, y, x, name="mine")


def test_class_names_must_cover_the_labels_and_no_more() -> None:
    with pytest.raises(DataError, match="labels from 0 to 3; found 4"):
        images_from_arrays(*arrays(), class_names=list("abcd"))
    with pytest.raises(DataError, match=r"each of 6 classes; found none of class 5 \(f\)"):
        images_from_arrays(*arrays(), class_names=list("abcdef"))


def test_bytes_are_not_copied_and_lists_are_welcome() -> None:
    x_train, y_train, x_test, y_test = arrays()
    assert np.shares_memory(images_from_arrays(x_train, y_train, x_test, y_test).x_train, x_train)
    listed = images_from_arrays((x_train / 255).tolist(), y_train.tolist(), (x_test / 255).tolist(), y_test.tolist())
    assert_holds(listed, arrays())


def test_the_fingerprint_is_of_the_contents_only(tmp_path: Path) -> None:
    written = write_idx(tmp_path / "folder")
    dataset = load_images(tmp_path / "folder")
    assert re.fullmatch("[0-9a-f]{16}", dataset.fingerprint)
    assert load_images(write_npz(tmp_path / "toys.npz", written)).fingerprint == dataset.fingerprint
    for position in range(4):
        x_train, y_train, x_test, y_test = changed = [array.copy() for array in written]
        changed[position].flat[0] = 1 if changed[position].flat[0] != 1 else 2
        assert images_from_arrays(x_train, y_train, x_test, y_test).fingerprint != dataset.fingerprint
    assert images_from_arrays(*written, class_names=list("abcde")).fingerprint != dataset.fingerprint


# ---- training and validation -------------------------------------------------------------------------------------


@PROPERTY
@given(
    counts=st.lists(st.integers(2, 60), min_size=2, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_is_disjoint_complete_stratified_and_seeded(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    kept, drawn = stratified(labels, fraction=fraction, seed=seed, origin="labels")
    assert np.array_equal(np.sort(np.concatenate([kept, drawn])), np.arange(len(labels)))
    drawn_counts, kept_counts = (np.bincount(labels[part], minlength=len(counts)) for part in (drawn, kept))
    assert (drawn_counts >= 1).all()
    assert (kept_counts >= 1).all()
    assert (np.abs(drawn_counts - fraction * np.array(counts)) <= 1).all()
    again = stratified(labels, fraction=fraction, seed=seed, origin="labels")
    assert np.array_equal(again[0], kept)
    assert np.array_equal(again[1], drawn)


def test_another_seed_draws_another_validation_part() -> None:
    dataset = images_from_arrays(*arrays())
    first, second = (split_validation(dataset, fraction=0.5, seed=seed) for seed in (1, 2))
    assert not np.array_equal(first.x_validation, second.x_validation)


def test_images_keep_their_labels_in_a_split() -> None:
    dataset = load_images("digits")
    split = split_validation(dataset, fraction=0.25, seed=3)
    known = {image.tobytes(): label for image, label in zip(dataset.x_train, dataset.y_train, strict=True)}
    images = np.concatenate([split.x_train, split.x_validation])
    labels = np.concatenate([split.y_train, split.y_validation])
    assert [known[image.tobytes()] for image in images] == labels.tolist()


def test_the_first_images_of_both_parts_are_of_all_classes_though_the_data_is_sorted_by_class() -> None:
    labels = np.repeat(np.arange(5, dtype=np.int32), 200)
    images = np.zeros((1000, 8, 8, 1), np.uint8)
    split = split_validation(images_from_arrays(images, labels, images, labels), fraction=0.3, seed=0)
    for part in (split.y_train, split.y_validation):
        counts = np.bincount(part[:100], minlength=5)
        assert counts.min() >= 8 and counts.max() <= 34, "20 of each are expected, with a deviation of 4"


def test_statistics_are_those_of_the_training_part_only() -> None:
    dataset = images_from_arrays(*arrays(channels=3))
    split = split_validation(dataset, fraction=0.3, seed=0)
    for image in dataset.x_train:  # wipe out what is not for training, and split again
        if not (split.x_train == image).all(axis=(1, 2, 3)).any():
            image[:] = 255
    dataset.x_test[:] = 255
    again = split_validation(dataset, fraction=0.3, seed=0)
    assert (again.x_validation == 255).all()
    assert np.array_equal(again.mean, split.mean)
    assert np.array_equal(again.std, split.std)
    pixels = split.x_train.astype(np.float64) / 255
    np.testing.assert_allclose(split.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(split.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_channel_that_never_changes_is_not_divided_by_zero() -> None:
    x_train, y_train, x_test, y_test = arrays(channels=3)
    x_train[..., 1] = 77
    split = split_validation(images_from_arrays(x_train, y_train, x_test, y_test), fraction=0.3, seed=0)
    assert split.std[1] == 1.0
    np.testing.assert_allclose(normalise(split.x_train, split.mean, split.std)[:, 1], 0.0, atol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_that_leaves_a_part_empty_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"greater than 0 and less than 1; got {fraction}"):
        split_validation(images_from_arrays(*arrays()), fraction=fraction, seed=0)


def test_a_class_of_one_image_cannot_be_split() -> None:
    x_train, _, x_test, y_test = arrays(n_classes=2)
    y_train = np.zeros(len(x_train), np.int32)
    y_train[3] = 1
    dataset = images_from_arrays(x_train, y_train, x_test, y_test, name="few")
    with pytest.raises(DataError, match="few: training labels: expected at least 2 images of class 1"):
        split_validation(dataset, fraction=0.2, seed=0)


# ---- to the network ----------------------------------------------------------------------------------------------


def test_normalised_images_are_centred_with_channels_first() -> None:
    split = split_validation(images_from_arrays(*arrays(channels=3)), fraction=0.3, seed=0)
    values = normalise(split.x_train, split.mean, split.std)
    assert values.dtype == np.float32
    assert values.shape == (len(split.x_train), 3, 6, 6)
    assert values.flags.c_contiguous
    np.testing.assert_allclose(values.mean(axis=(0, 2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=(0, 2, 3)), 1.0, atol=1e-5)
    expected = (split.x_train[4, 2, 5, 1] / 255 - split.mean[1]) / split.std[1]
    np.testing.assert_allclose(values[4, 1, 2, 5], expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("side", [3, 8])
def test_resizing_keeps_a_flat_image_flat(channels: int, side: int) -> None:
    flat = np.full((2, 6, 5, channels), 200, dtype=np.uint8)
    assert np.array_equal(resize(flat, side), np.full((2, side, side, channels), 200))


def test_resizing_crops_the_middle_and_counts_every_pixel() -> None:
    image = np.zeros((1, 4, 12, 1), dtype=np.uint8)
    image[:, :, :4] = image[:, :, 8:] = 255  # outside the middle square
    assert not resize(image, 2).any()
    checkerboard = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    np.testing.assert_allclose(resize(checkerboard, 4)[0, 1:-1, 1:-1], 127, atol=3)


def test_images_of_the_right_size_are_returned_as_they_are() -> None:
    images = arrays()[0]
    assert resize(images, 6) is images
    with pytest.raises(ValueError, match="side must be at least 1 pixel; got 0"):
        resize(images, 0)


def test_every_format_is_resized_alike(tmp_path: Path) -> None:
    written = write_idx(tmp_path)
    dataset = load_images(tmp_path, image_size=4)
    assert np.array_equal(dataset.x_train, resize(written[0], 4))
    assert np.array_equal(dataset.x_test, resize(written[2], 4))


@pytest.mark.parametrize("module", [_images, _image_files])
def test_reading_images_needs_no_jax(module: object) -> None:
    tree = ast.parse(Path(str(getattr(module, "__file__", ""))).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] in ("jax", "flax", "optax")}


# ---- published files ---------------------------------------------------------------------------------------------


def published(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; HANAX_DATA names the folder that holds {name}")
    return path


def test_fashion_mnist_is_read_within_its_memory() -> None:
    code = (
        "import re, sys\n"
        "from hanax.supernet._image_files import load_images\n"
        "images = load_images(sys.argv[1])\n"
        "print(images.x_train.shape, images.x_test.shape)\n"
        "status = open('/proc/self/status').read()\n"  # getrusage would count what the parent had before exec
        "print(1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]))\n"
    )
    command = [sys.executable, "-c", code, str(published("fashion-mnist"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    described, peak_bytes = done.stdout.splitlines()
    assert described == "(60000, 28, 28, 1) (10000, 28, 28, 1)"
    assert int(peak_bytes) < 400e6


def test_fashion_mnist_has_its_known_statistics() -> None:
    split = split_validation(load_images(published("fashion-mnist")), fraction=0.1, seed=0)
    assert np.bincount(split.y_validation).tolist() == [600] * 10
    # The mean and deviation of all 60,000 training images are 0.2860 and 0.3530.
    np.testing.assert_allclose([split.mean[0], split.std[0]], [0.2860, 0.3530], atol=1e-3)


def test_cifar_10_is_read_from_the_archive_as_published() -> None:
    dataset = load_images(published("cifar-10"))
    assert (dataset.n_classes, dataset.image_size, dataset.channels) == (10, (32, 32), 3)
    assert dataset.class_names == tuple(NAMES_10)
    split = split_validation(dataset, fraction=0.1, seed=0)
    # The known means of CIFAR-10's channels; a wrong order of planes would exchange red and blue.
    np.testing.assert_allclose(split.mean, [0.4914, 0.4822, 0.4465], atol=5e-3)
