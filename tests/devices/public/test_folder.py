from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import pickle
import re
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tar_files import tar_gz

from hanax.devices.public import PublicDataError, PublicFolder, _folder


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_was_read_leaves_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.json").write_bytes(b"[1]")
    folder = PublicFolder(tmp_path)
    assert folder.json("a/x.json") == [1]
    assert folder.checksums == {"a/x.json": hashlib.sha256(b"[1]").hexdigest()}


def test_a_missing_file_is_named_with_the_nearest_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "pixel2 (1).pt").touch()
    with pytest.raises(PublicDataError, match=r"holds no file pixel2\.pt; there is 'pixel2 \(1\)\.pt'"):
        PublicFolder(tmp_path).read("pixel2.pt")
    with pytest.raises(PublicDataError, match="nowhere is not a folder"):
        PublicFolder(tmp_path / "nowhere")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_folder, "MOST_BYTES", 2**20)
    (tmp_path / "x").write_bytes(bytes(2**20))
    assert len(PublicFolder(tmp_path).read("x")) == 2**20
    (tmp_path / "x").write_bytes(bytes(2**20 + 1))
    with pytest.raises(PublicDataError, match="x holds more than 1 MiB, which no file of this source does"):
        PublicFolder(tmp_path).read("x")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
    ],
)
def test_what_is_not_json_is_refused(content: bytes, complaint: str) -> None:
    with pytest.raises(PublicDataError, match=complaint):
        _folder.parse_json(content, "x.json")


# ---- archives --------------------------------------------------------------------------------------------------------


def test_a_tar_archive_is_read_in_its_order() -> None:
    content = tar_gz(("./b/2.csv", b"two"), ("./b/1.csv", b"one"))
    assert list(_folder.tar_gz_members(content, "x")) == [("b/2.csv", b"two"), ("b/1.csv", b"one")]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..\\b"])
def test_a_member_that_leads_out_of_its_archive_is_refused(name: str, tmp_path: Path) -> None:
    complaint = re.escape(f"the member {name!r} would lead out of the archive")
    with pytest.raises(PublicDataError, match=complaint):
        list(_folder.tar_gz_members(tar_gz((name, b"x")), "x.tar.gz"))
    with pytest.raises(PublicDataError, match=complaint):
        _folder.zip_members(zipped(**{name: b"x"}), "x.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    with pytest.raises(PublicDataError, match=r"the member 1\.csv is neither a plain file nor a folder"):
        list(_folder.tar_gz_members(tar_gz(("1.csv", b""), link="/etc/passwd", kind=kind), "x"))


def test_a_sparse_member_that_claims_a_terabyte_is_refused() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("1.csv")
        entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"0,1,{2**40},0"}
        entry.pax_headers |= {"GNU.sparse.size": str(2**40), "GNU.sparse.name": "1.csv"}
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(PublicDataError, match=r"the member 1\.csv is neither a plain file nor a folder"):
        list(_folder.tar_gz_members(file.getvalue(), "x"))


@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_to_the_header_of_an_array_gives_another_error(changes: list[tuple[int, int]]) -> None:
    stored = io.BytesIO()
    np.save(stored, np.arange(6.0).reshape(2, 3))
    content = bytearray(stored.getvalue())
    for place, byte in changes:
        content[place] = byte
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(PublicDataError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (Path(folder) / "x.npz").write_bytes(zipped(**{"a.npy": bytes(content)}))
        PublicFolder(Path(folder)).npz("x.npz", ["a"])


def test_archives_that_unpack_to_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_folder, "MOST_BYTES", 2**20)
    bomb = bytes(3 * 2**19)
    assert len(tar_gz(("x", bomb))) < 10_000
    for unpack in (
        lambda: list(_folder.tar_gz_members(tar_gz(("x", bomb)), "x")),
        lambda: _folder.zip_members(zipped(x=bomb), "x"),
        lambda: _folder.zip_members(zipped(x=bomb[: 2**19], y=bomb[: 2**19], z=b"1"), "x"),
    ):
        with pytest.raises(PublicDataError, match="x holds more than 1 MiB"):
            unpack()


@pytest.mark.parametrize("cut", [1, 10, 100, 4000])
def test_a_tar_archive_that_was_cut_short_is_refused(cut: int) -> None:
    noise = np.random.default_rng(0).bytes(20_000)
    content = tar_gz(("a", noise), ("b", noise))
    with pytest.raises(PublicDataError, match=r"x is not a readable \.tar\.gz archive"):
        list(_folder.tar_gz_members(content[:-cut], "x"))


def test_a_cut_tar_in_a_whole_gzip_is_refused() -> None:
    unpacked = gzip.decompress(tar_gz(("a", b"1" * 5000)))
    with pytest.raises(PublicDataError, match=r"x is not a readable \.tar\.gz archive"):
        list(_folder.tar_gz_members(gzip.compress(unpacked[:3000]), "x"))


# ---- NumPy archives --------------------------------------------------------------------------------------------------


def test_arrays_are_read_and_objects_are_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", numbers=np.arange(3), objects=np.array([{1}], dtype=object))
    folder = PublicFolder(tmp_path)
    assert folder.npz("x.npz", ["numbers"])["numbers"].tolist() == [0, 1, 2]
    with pytest.raises(PublicDataError, match="the array objects cannot be read: Object arrays cannot be loaded"):
        folder.npz("x.npz", ["objects"])
    with pytest.raises(PublicDataError, match="holds no array other; it holds numbers, objects"):
        folder.npz("x.npz", ["other"])


def test_an_array_that_is_a_pickle_or_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    for content in (pickle.dumps([1]), header.getvalue()):
        (tmp_path / "x.npz").write_bytes(zipped(**{"a.npy": content}))
        with pytest.raises(PublicDataError, match="the array a cannot be read"):
            PublicFolder(tmp_path).npz("x.npz", ["a"])
