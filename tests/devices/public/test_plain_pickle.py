from __future__ import annotations

import collections
import contextlib
import math
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanax.devices.public import PublicDataError, read_plain_pickle, read_pt

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=30,
)


class Shell:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@given(PLAIN, st.sampled_from([2, 3, 4]))
def test_plain_data_comes_back_as_pickle_would_read_it(value: object, protocol: int) -> None:
    assert read_plain_pickle(pickle.dumps(value, protocol), "x") == value


@pytest.mark.parametrize("value", [np.int64(-7), np.int8(3), np.uint16(65535), np.float32(0.1), np.float64(math.pi)])
def test_a_single_numpy_number_is_read_as_a_number(value: np.number[Any]) -> None:
    read = read_plain_pickle(pickle.dumps([value, value], 2), "x")
    assert read == [value.item(), value.item()]
    assert type(read[0]) in (int, float)


def test_what_occurs_twice_is_one_object() -> None:
    inner = [1]
    first, second = read_plain_pickle(pickle.dumps([inner, inner], 2), "x")
    assert first is second


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_a_command_is_refused_and_the_command_does_not_run(
    protocol: int, tmp_path: Path, pt_file: Callable[[bytes], bytes]
) -> None:
    victim = tmp_path / "was_here"
    harmful = pickle.dumps([1, Shell(f"touch {victim}")], protocol)
    with pytest.raises(PublicDataError) as error:
        read_pt(pt_file(harmful), "evil.pt")
    assert re.search(r"evil\.pt, byte \d+: .*nothing was executed", str(error.value))
    assert not victim.exists()
    pickle.loads(harmful)
    assert victim.exists(), "the pickle was not harmful, so the test proved nothing"


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (b"cos\nsystem\n.", "it wants to import 'os system'"),
        (b"(S'true'\nios\nsystem\n.", "the instruction STRING"),
        (b"(ios\nsystem\n.", "the instruction INST"),
        (b"(cos\nsystem\no.", "it wants to import 'os system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "the instruction STACK_GLOBAL"),
        (b"\x80\x02}}\x81.", "the instruction NEWOBJ"),
        (b"\x82\x01.", "the instruction EXT1"),
        (b"Pname\n.", "the instruction PERSID"),
        (b"K\x01Q.", "the instruction BINPERSID"),
        (b"c_codecs\nencode\nX\x03\x00\x00\x00abcX\x05\x00\x00\x00rot13\x86R.", "it calls '_codecs encode'"),
        (b"cnumpy\ndtype\nX\x01\x00\x00\x00OK\x00K\x01\x87R.", "it calls 'numpy dtype'"),
        (b"K\x05)R.", "it calls 'int'"),
        (b"}}b.", "it sets the state of 'dict'"),
        (b"\x80\x05K\x01.", "it has protocol 5, and known are 2, 3, 4"),
    ],
)
def test_instructions_that_plain_data_does_not_need_are_refused_by_name(code: bytes, complaint: str) -> None:
    with pytest.raises(PublicDataError, match=re.escape(complaint)):
        read_plain_pickle(code, "x")


def test_containers_of_other_classes_are_refused() -> None:
    with pytest.raises(PublicDataError, match="it wants to import 'collections OrderedDict'"):
        read_plain_pickle(pickle.dumps(collections.OrderedDict(a=1), 2), "x")


@pytest.mark.parametrize(
    "code",
    [b"", b"\x80\x02", b"]", b"K\x01K\x02.", b"a.", b"h\x05.", b"(.", b"]K\x01s.", b"t.", b"\x87.", b"(]].", b"u."],
)
def test_damaged_pickles_are_refused(code: bytes) -> None:
    with pytest.raises(PublicDataError, match="x is a damaged pickle"):
        read_plain_pickle(code, "x")


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8), st.integers(0, 400))
def test_no_change_of_bytes_gives_another_error(changes: list[tuple[int, int]], cut: int) -> None:
    value = {
        "arch": [{"ks": [3, 5, 7], "r": np.int64(204), "name": "net"}],
        "latency": [1.5, 2, None, True],
        "t": (1, 2),
    }
    code = bytearray(pickle.dumps(value, 2))
    for place, byte in changes:
        code[place % len(code)] = byte
    with contextlib.suppress(PublicDataError):
        read_plain_pickle(bytes(code[: len(code) - cut % 3]), "x")


def test_a_key_whose_hash_would_exhaust_the_stack_is_refused() -> None:
    with pytest.raises(PublicDataError, match="a key is neither text nor an integer"):
        read_plain_pickle(b"})" + 100_000 * b"\x85" + b"K\x01s.", "x")


def test_a_file_without_exactly_one_pickle_is_refused(pt_file: Callable[[bytes], bytes]) -> None:
    assert read_pt(pt_file(pickle.dumps([1, 2], 2)), "x.pt") == [1, 2]
    with pytest.raises(PublicDataError, match=r"x\.pt is not a readable zip archive"):
        read_pt(pickle.dumps([1, 2], 2), "x.pt")
    with pytest.raises(PublicDataError, match=r"x\.pt is not a readable zip archive"):
        read_pt(pt_file(pickle.dumps([1, 2], 2))[:-30], "x.pt")
