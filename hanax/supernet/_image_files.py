"""Image data sets as people have them on disk: which format it is follows from what the files hold.

Everything is read in memory and nothing is unpacked or unpickled. What is damaged, missing or contradictory ends in a
`DataError`.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from hanax.supernet._images import (
    DataError,
    ImageDataset,
    Part,
    assemble,
    assemble_carved,
    check_range,
    fit_square,
    resize,
)

FORMATS = (
    '"digits"; a folder with the four IDX files of MNIST or Fashion-MNIST (plain or .gz); CIFAR-10 or CIFAR-100 in the '
    "binary version (.tar.gz or its folder); an .npz file with x_train, y_train, x_test, y_test; a folder with train/ "
    "and test/ (or val/), each with one folder of images per class; a folder with one folder of images per class"
)

_CHUNK_BYTES = 1 << 20
_DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""What reading a truncated, corrupted or unreadable file raises; a wrong gzip magic is an OSError."""


def load_images(source: str | Path, *, image_size: int | None = None) -> ImageDataset:
    """The data set at `source`, whose format is recognised from its contents.

    Args:
        source: "digits" (1,797 grey images of 8x8, part of scikit-learn), or the path of an IDX folder, a CIFAR archive
            or folder, an `.npz`, or a folder of images. A folder that holds one archive stands for it.
        image_size: Height and width of the images, in pixels; others are cropped to a square in the middle and resized.
            If None, they stay as they are, and image files must all have one size.

    Raises:
        ValueError: `image_size` is less than 1.
        DataError: There is nothing to read, or something is damaged, missing or contradictory; says which file, what
            was expected and what was found.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel; got {image_size}")
    dataset = _digits() if source == "digits" else _read(Path(source).expanduser(), image_size)
    if image_size is None:
        return dataset
    x_train, x_test = resize(dataset.x_train, image_size), resize(dataset.x_test, image_size)
    return dataclasses.replace(dataset, x_train=x_train, x_test=x_test)


def _read(path: Path, image_size: int | None) -> ImageDataset:
    if path.is_file():
        return _read_archive(path)
    if not path.is_dir():
        raise DataError(f"{path}: expected a file or a folder; there is none. Images come from: {FORMATS}")
    if idx_folder := _folder_with(path, _IDX_NAME):
        return _read_idx(path, idx_folder)
    if cifar_folder := _folder_with(path, _CIFAR_DATA):
        return _read_cifar(path, _folder_entries(cifar_folder))
    if _folders_in(path):
        return _read_image_folders(path, image_size)
    archives = [file for file in _files_in(path) if file.name.endswith((".npz", ".tar", ".tgz", ".tar.gz"))]
    if len(archives) == 1:
        return _read_archive(archives[0])
    if archives:
        raise DataError(f"{path}: expected one archive; found {_listed(archives)}. Give the path of one")
    raise DataError(f"{path}: expected images; found {_listed(_files_in(path))}. Images come from: {FORMATS}")


def _read_archive(path: Path) -> ImageDataset:
    with _damage_named(path):
        magic = _first_bytes(path, 4)
        is_tar = tarfile.is_tarfile(path)
    if magic.startswith(b"PK"):
        return _read_npz(path)
    if is_tar:
        return _read_cifar(path, _tar_entries(path))
    hint = " (a single IDX file: give the folder that holds all four)" if _IDX_NAME.fullmatch(path.name) else ""
    raise DataError(
        f"{path}: expected an .npz or a complete .tar.gz; found a file that starts with {magic!r}{hint}. "
        f"Images come from: {FORMATS}"
    )


def _digits() -> ImageDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # its pixels run from 0 to 16
    return assemble_carved("digits", Part(images, bunch.target, "digits", "digits"))


def _read_npz(path: Path) -> ImageDataset:
    names = ("x_train", "y_train", "x_test", "y_test")
    # NumPy leaves a file that it opened itself open if it is no zip archive after all.
    with (
        _damage_named(path, ValueError, RuntimeError),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        arrays = {name: archive[name] for name in names if name in archive.files}
        found = archive.files
    for name in names:
        if not isinstance(arrays.get(name), np.ndarray):
            raise DataError(f"{path}: expected arrays {', '.join(names)}; found {', '.join(found) or 'none'}")
    train, test = (
        Part(arrays[f"x_{part}"], arrays[f"y_{part}"], f"{path}: x_{part}", f"{path}: y_{part}")
        for part in ("train", "test")
    )
    return assemble(path.stem, train, test)


# ---- IDX (http://yann.lecun.com/exdb/mnist: "the IDX file format") -----------------------------------------------

_IDX_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_IDX_UNSIGNED_BYTE = 0x08


def _read_idx(path: Path, folder: Path) -> ImageDataset:
    train, test = (_read_idx_part(folder, spellings) for spellings in (("train",), ("t10k", "test")))
    return assemble(path.resolve().name, train, test)


def _read_idx_part(folder: Path, spellings: Sequence[str]) -> Part:
    images = _idx_file(folder, spellings, "images")
    labels = _idx_file(folder, spellings, "labels")
    return Part(_read_idx_file(images, n_axes=3), _read_idx_file(labels, n_axes=1), str(images), str(labels))


def _idx_file(folder: Path, spellings: Sequence[str], content: str) -> Path:
    """The file with `content` of one part; plain before compressed, where both are there."""
    files = _files_in(folder)
    for file in files:
        match = _IDX_NAME.fullmatch(file.name)
        if match and match[1] in spellings and match[2] == content:
            return file
    n_axes = 3 if content == "images" else 1
    raise DataError(f"{folder}: expected {spellings[0]}-{content}-idx{n_axes}-ubyte (or .gz); found {_listed(files)}")


def _read_idx_file(path: Path, n_axes: int) -> np.ndarray:
    with _damage_named(path), _open_plain_or_gzip(path) as file:
        magic = file.read(4)
        if magic != bytes((0, 0, _IDX_UNSIGNED_BYTE, n_axes)):
            raise DataError(
                f"{path}: expected the IDX magic 00 00 08 {n_axes:02x} (unsigned bytes, {n_axes} axes); "
                f"found {magic.hex(' ') or 'an empty file'}"
            )
        header = file.read(4 * n_axes)
        if len(header) < 4 * n_axes:
            raise DataError(f"{path}: expected an IDX header of {4 + 4 * n_axes} bytes; found {4 + len(header)}")
        shape = tuple(np.frombuffer(header, dtype=">u4").tolist())
        n_values = math.prod(shape)
        contents = _read_up_to(file, n_values + 1)
    if len(contents) != n_values:
        found = "more" if len(contents) > n_values else f"{len(contents)}"
        raise DataError(f"{path}: expected {n_values} values for the shape {shape} in its header; found {found}")
    return np.frombuffer(contents, dtype=np.uint8).reshape(shape)


def _open_plain_or_gzip(path: Path) -> BufferedReader | gzip.GzipFile:
    """Decompressed whatever its name: browsers unpack `.gz` files in passing and keep the name."""
    return gzip.open(path) if _first_bytes(path, 2) == b"\x1f\x8b" else path.open("rb")


def _read_up_to(file: BufferedReader | gzip.GzipFile, n_bytes: int) -> bytearray:
    """At most `n_bytes`, in pieces: memory follows what is there, not what a damaged header claims."""
    contents = bytearray()
    while len(contents) < n_bytes and (piece := file.read(min(_CHUNK_BYTES, n_bytes - len(contents)))):
        contents += piece
    return contents


# ---- CIFAR-10 and CIFAR-100, binary version (https://www.cs.toronto.edu/~kriz/cifar.html) ------------------------

_CIFAR_SIDE = 32
_CIFAR_DATA = re.compile(r"data_batch_\d+\.bin|test_batch\.bin|train\.bin|test\.bin")
_CIFAR_FILE = re.compile(_CIFAR_DATA.pattern + r"|batches\.meta\.txt|fine_label_names\.txt")
_CIFAR_MOST_BYTES = 1 << 30
"""Of one file; the largest official one has 154 MB."""


@dataclasses.dataclass(frozen=True, slots=True)
class _CifarLayout:
    """How one of the two data sets is written: label bytes, then red, green and blue planes, image after image.

    Attributes:
        label_bytes: The last one counts; CIFAR-100 puts a coarse label first.
        train: Pattern of the names of its training files.
        test: Name of its test file.
        class_names: Name of its file of class names.
    """

    n_classes: int
    label_bytes: int
    train: str
    test: str
    class_names: str


_CIFAR_LAYOUTS = (
    _CifarLayout(10, 1, r"data_batch_\d+\.bin", "test_batch.bin", "batches.meta.txt"),
    _CifarLayout(100, 2, r"train\.bin", "test.bin", "fine_label_names.txt"),
)


def _read_cifar(path: Path, entries: Iterable[tuple[str, bytes]]) -> ImageDataset:
    parts: dict[str, Part] = {}
    texts: dict[str, str] = {}
    for name, contents in entries:
        if name in parts or name in texts:
            raise DataError(f"{path}: expected one {name}; found several")
        if name.endswith(".txt"):
            texts[name] = contents.decode(errors="replace")
        else:
            parts[name] = _cifar_part(f"{path}: {name}", contents, _cifar_layout(name))
    layouts = {layout for layout in _CIFAR_LAYOUTS if any(_cifar_layout(name) is layout for name in parts)}
    train_names = [name for name in sorted(parts) if name != _cifar_layout(name).test]
    test_names = [name for name in parts if name not in train_names]
    if len(layouts) != 1 or not train_names or not test_names:
        raise DataError(
            f"{path}: expected data_batch_*.bin and test_batch.bin (CIFAR-10) or train.bin and test.bin (CIFAR-100), "
            f"the binary version; found {', '.join(sorted(parts)) or 'none of them'}"
        )
    (layout,) = layouts
    class_names = texts.get(layout.class_names, " ".join(map(str, range(layout.n_classes)))).split()
    if len(class_names) != layout.n_classes:
        raise DataError(
            f"{path}: {layout.class_names}: expected {layout.n_classes} names of classes; found {len(class_names)}"
        )
    origin = f"{path}: {', '.join(train_names)}"
    images = np.concatenate([parts[name].images for name in train_names])
    labels = np.concatenate([parts[name].labels for name in train_names])
    return assemble(_stem(path), Part(images, labels, origin, origin), parts[layout.test], class_names)


def _cifar_layout(name: str) -> _CifarLayout:
    return next(layout for layout in _CIFAR_LAYOUTS if name == layout.test or re.fullmatch(layout.train, name))


def _cifar_part(origin: str, contents: bytes, layout: _CifarLayout) -> Part:
    record = layout.label_bytes + 3 * _CIFAR_SIDE**2
    if not contents or len(contents) % record:
        raise DataError(f"{origin}: expected a multiple of {record} bytes, one record an image; found {len(contents)}")
    records = np.frombuffer(contents, dtype=np.uint8).reshape(-1, record)
    labels = records[:, layout.label_bytes - 1]
    check_range(labels, layout.n_classes, origin)
    planes = records[:, layout.label_bytes :].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return Part(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels, origin, origin)


def _folder_entries(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in _files_in(folder):
        if _CIFAR_FILE.fullmatch(file.name):
            _check_cifar_bytes(str(file), file.stat().st_size)
            with _damage_named(file):
                contents = file.read_bytes()
            yield file.name, contents


def _tar_entries(path: Path) -> Iterator[tuple[str, bytes]]:
    with _damage_named(path), _open_plain_or_gzip(path) as file:
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if _CIFAR_FILE.fullmatch(name):
                    _check_cifar_bytes(f"{path}: {name}", member.size)
                    contents = archive.extractfile(member) if member.isfile() else None
                    if contents is None:
                        raise DataError(f"{path}: {name}: expected a plain file; found a link or a folder")
                    yield name, contents.read()
        while file.read(_CHUNK_BYTES):  # gzip compares its checksum at the very end, which no member reaches
            pass


def _check_cifar_bytes(origin: str, n_bytes: int) -> None:
    if n_bytes > _CIFAR_MOST_BYTES:
        raise DataError(f"{origin}: expected at most {_CIFAR_MOST_BYTES} bytes; found {n_bytes}")


# ---- folders of images -------------------------------------------------------------------------------------------

_TEST_FOLDERS = ("test", "val", "valid", "validation")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # besides those whose names start with a dot
_MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"}
"""As what an image of each Pillow mode is read: grey, grey and alpha, RGB, RGB and alpha."""


def _read_image_folders(path: Path, image_size: int | None) -> ImageDataset:
    folders = {folder.name: folder for folder in _folders_in(path)}
    name = path.resolve().name
    if "train" not in folders:
        class_names = _class_names(path)
        return assemble_carved(name, _read_classes(path, class_names, image_size), class_names)
    test_folder = next((folders[spelling] for spelling in _TEST_FOLDERS if spelling in folders), None)
    if test_folder is None:
        raise DataError(
            f"{path}: expected train/ and one of {', '.join(_TEST_FOLDERS)}; found {_listed(folders.values())}. "
            f"Give {folders['train']} to have a test part carved from it"
        )
    class_names = _class_names(folders["train"])
    if differing := sorted({*class_names} ^ {*_class_names(test_folder)}):
        raise DataError(
            f"{test_folder}: expected the classes of {folders['train']}; found in one of them only: "
            f"{', '.join(differing[:5])}"
        )
    train, test = (_read_classes(folder, class_names, image_size) for folder in (folders["train"], test_folder))
    unread = sorted({*folders} - {"train", test_folder.name})
    notes = f"{test_folder.name}/ is the test part" + (f"; not read: {', '.join(unread)}" if unread else "")
    return assemble(name, train, test, class_names, notes)


def _class_names(folder: Path) -> list[str]:
    names = [path.name for path in _folders_in(folder)]
    if len(names) < 2:
        raise DataError(
            f"{folder}: expected one folder for each of at least 2 classes; found {', '.join(names) or 'no folder'}"
        )
    return names


def _read_classes(folder: Path, class_names: Sequence[str], image_size: int | None) -> Part:
    files = [_image_paths(folder / name) for name in class_names]
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(paths) for paths in files])
    return Part(_read_images([path for paths in files for path in paths], image_size), labels, str(folder), str(folder))


def _image_paths(folder: Path) -> list[Path]:
    if folders := _folders_in(folder):
        raise DataError(f"{folder}: expected images of one class; found the folder {folders[0].name}")
    files = [file for file in _files_in(folder) if file.name.lower() not in _SYSTEM_FILES]
    if not files:
        raise DataError(f"{folder}: expected at least one image of its class; found none")
    return files


def _read_images(paths: Sequence[Path], image_size: int | None) -> UInt8[np.ndarray, "n h w c"]:
    first = _read_image(paths[0], image_size)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    for index, path in enumerate(paths):
        image = _read_image(path, image_size)
        if image.shape[2] != first.shape[2]:
            raise DataError(f"{path}: expected {first.shape[2]} channels as in {paths[0]}; found {image.shape[2]}")
        if image.shape != first.shape:
            raise DataError(
                f"{path}: expected height and width {first.shape[:2]} as in {paths[0]}; found {image.shape[:2]}. "
                "Give image_size to have images of different sizes cropped and resized"
            )
        images[index] = image
    return images


def _read_image(path: Path, image_size: int | None) -> UInt8[np.ndarray, "h w c"]:
    # Pillow's decoders let slip whatever a damaged file makes them stumble over, down to a TypeError.
    with _damage_named(path, Exception), Image.open(path) as opened:
        if opened.mode not in _MODES:
            raise DataError(f"{path}: expected grey, RGB or CMYK of 8 bits; found Pillow's mode {opened.mode!r}")
        mode = _MODES[opened.mode]
        mode += "A" if opened.has_transparency_data and not mode.endswith("A") else ""
        image = ImageOps.exif_transpose(opened).convert(mode)
    image = image if image_size is None else fit_square(image, image_size)
    return np.asarray(image).reshape(image.height, image.width, len(mode))


# ---- files -------------------------------------------------------------------------------------------------------


@contextmanager
def _damage_named(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn what reading a damaged file raises, and `more`, into a `DataError` that names `path`."""
    damage: tuple[type[Exception], ...] = (*_DAMAGE, *more)
    try:
        yield
    except DataError:
        raise
    except damage as error:
        raise DataError(
            f"{path}: expected a readable, complete file; found damage: {error or type(error).__name__}"
        ) from error


def _first_bytes(path: Path, n_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(n_bytes)


def _folder_with(path: Path, name: re.Pattern[str]) -> Path | None:
    """The folder with files of that `name`: `path`, else the one at most two levels below (MNIST/raw), if any."""
    for levels in ("*", "*/*", "*/*/*"):
        folders = sorted({file.parent for file in path.glob(levels) if name.fullmatch(file.name) and file.is_file()})
        if len(folders) > 1:
            raise DataError(f"{path}: expected one data set; found {_listed(folders)}. Give the path of one")
        if folders:
            return folders[0]
    return None


def _files_in(folder: Path) -> list[Path]:
    with _damage_named(folder):
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _folders_in(folder: Path) -> list[Path]:
    with _damage_named(folder):
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _listed(paths: Iterable[Path]) -> str:
    """The first few names, for messages."""
    names = [path.name for path in paths]
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) or "nothing"


def _stem(path: Path) -> str:
    """The name without the ending of an archive."""
    return re.sub(r"\.(tar|tgz|tar\.gz)$", "", path.resolve().name)
