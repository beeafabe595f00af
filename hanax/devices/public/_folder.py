"""Reading other people's files: bounded in size, nothing written or executed, every checksum kept.

Archives are taken apart in memory. So a member that is called ``../../x`` or is a link is refused for what it says
about the archive, not for what it could do here.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import json
import math
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

MOST_BYTES = 256 * 2**20
"""More than any of these files holds, and less than hurts."""


class PublicDataError(ValueError):
    """A public file is missing, damaged, or not what its name says; the message names it."""


@dataclass(frozen=True, slots=True)
class PublicFolder:
    """The folder that holds a source's files.

    Attributes:
        checksums: The sha256 of every file that was read, by its path below `path`; grows while files are read.

    Raises:
        PublicDataError: `path` is not a folder.
    """

    path: Path
    checksums: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise PublicDataError(f"{self.path} is not a folder")

    def read(self, name: str) -> bytes:
        """The content of the file `name`, a path below the folder.

        Raises:
            PublicDataError: There is no such file, with the nearest name that there is; it is larger than `MOST_BYTES`.
        """
        path = self.path / name
        if not path.is_file():
            nearest = difflib.get_close_matches(Path(name).name, self.names(str(Path(name).parent)), n=1, cutoff=0.5)
            hint = f"; there is {nearest[0]!r}" if nearest else ""
            raise PublicDataError(f"{self.path} holds no file {name}{hint}")
        with path.open("rb") as stream:
            content = _read_at_most(stream, MOST_BYTES, str(path))
        self.checksums[name] = hashlib.sha256(content).hexdigest()
        return content

    def names(self, folder: str, ending: str = "") -> list[str]:
        """The names of the files right below `folder` that end in `ending`, sorted."""
        path = self.path / folder
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in path.iterdir() if entry.is_file() and entry.name.endswith(ending))

    def json(self, name: str) -> Any:
        """The value in the JSON file `name`; see `parse_json`."""
        return parse_json(self.read(name), str(self.path / name))

    def npz(self, name: str, arrays: Sequence[str]) -> dict[str, np.ndarray]:
        """The `arrays` of the NumPy archive `name`; objects, which would be pickles, are refused.

        Raises:
            PublicDataError: As for `read`; it is not such an archive, or one of the arrays is missing or damaged.
        """
        where = str(self.path / name)
        members = zip_members(self.read(name), where)
        if missing := [array for array in arrays if f"{array}.npy" not in members]:
            there = ", ".join(member.removesuffix(".npy") for member in members)
            raise PublicDataError(f"{where} holds no array {', '.join(missing)}; it holds {there}")
        loaded = {}
        for array in arrays:
            try:
                loaded[array] = np.load(io.BytesIO(members[f"{array}.npy"]), allow_pickle=False)
            except (ValueError, TypeError, EOFError, MemoryError, OverflowError, tokenize.TokenError) as error:
                raise PublicDataError(f"{where}: the array {array} cannot be read: {error}") from error
        return loaded


def parse_json(content: bytes, where: str) -> Any:
    """The JSON value in `content`, whose keys must not repeat.

    Raises:
        PublicDataError: It is not that.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            again = next(name for name in names if names.count(name) > 1)
            raise PublicDataError(f"{where}: the key {again!r} is there twice")
        return value

    try:
        return json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, PublicDataError):
            raise
        raise PublicDataError(f"{where} is not JSON: {error}") from error


def check_positive(value: object, name: str, where: str) -> float:
    """`value`, if it is a positive finite number.

    Raises:
        PublicDataError: It is not.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise PublicDataError(f"{where}: {name} is {value!r}; it should be a positive number")
    return float(value)


def zip_members(content: bytes, where: str) -> dict[str, bytes]:
    """The files in a zip archive, by name.

    Raises:
        PublicDataError: It is not a readable zip archive, or unpacks to more than `MOST_BYTES`.
    """
    members: dict[str, bytes] = {}
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                _check_name(entry.filename, where)
                if entry.filename in members:
                    raise PublicDataError(f"{where}: the member {entry.filename} is there twice")
                with archive.open(entry) as stream:
                    members[entry.filename] = _read_at_most(stream, left, where)
                left -= len(members[entry.filename])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise PublicDataError(f"{where} is not a readable zip archive: {error}") from error
    return members


def tar_gz_members(content: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a gzipped tar archive, in its order.

    Raises:
        PublicDataError: It is not a readable archive, unpacks to more than `MOST_BYTES`, or has a member that is a
            link or a device, or whose name leads out of the archive.
    """
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            unpacked = _read_at_most(stream, MOST_BYTES, where)
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for entry in archive:
                _check_name(entry.name, where)
                if entry.isdir():
                    continue
                # A sparse member may claim any size for a few bytes.
                member = archive.extractfile(entry) if entry.isreg() and not entry.issparse() else None
                if member is None:
                    raise PublicDataError(f"{where}: the member {entry.name} is neither a plain file nor a folder")
                yield str(PurePosixPath(entry.name)), member.read()
    except PublicDataError:
        raise
    except (tarfile.TarError, ValueError, OSError, EOFError, zlib.error) as error:
        raise PublicDataError(f"{where} is not a readable .tar.gz archive: {error}") from error


def _check_name(name: str, where: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name:
        raise PublicDataError(f"{where}: the member {name!r} would lead out of the archive; nothing was imported")


def _read_at_most(stream: Any, most_bytes: int, where: str) -> bytes:
    content: bytes = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise PublicDataError(f"{where} holds more than {MOST_BYTES // 2**20} MiB, which no file of this source does")
    return content
