"""Plain data out of the ``.pt`` files of others, without PyTorch and without executing anything.

A pickle is a program for a stack machine, and some of its instructions import and call what they name. Here the
instructions are decoded by `pickletools.genops`, which executes none, and only those that build numbers, text, lists,
tuples and dicts are carried out. Calls exist in one form: the one in which NumPy writes a single integer or float. That
form is recognised as data; nothing is imported or called for it either. Everything else is refused by name.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from hanax.devices.public._folder import PublicDataError, zip_members

PROTOCOLS = (2, 3, 4)
SCALAR_TYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}

NUMPY_SCALAR = {"numpy.core.multiarray scalar", "numpy._core.multiarray scalar"}
GLOBALS = {*NUMPY_SCALAR, "numpy dtype", "_codecs encode"}

LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that a pickle wants imported; here only a label."""

    text: str


@dataclass(slots=True)
class _ScalarType:
    """A NumPy type, as a pickle describes it: its code, and once it is complete the byte order."""

    code: str
    order: str = ""


def read_pt(content: bytes, where: str) -> Any:
    """The plain data that ``torch.save`` stored: numbers, text, and lists, tuples and dicts of them.

    Raises:
        PublicDataError: The file is not a zip archive with one ``data.pkl``, or `read_plain_pickle` refuses that.
    """
    pickles = [data for name, data in zip_members(content, where).items() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise PublicDataError(f"{where} holds {len(pickles)} members data.pkl; a file of torch.save holds one")
    return read_plain_pickle(pickles[0], where)


def read_plain_pickle(content: bytes, where: str) -> Any:
    """The value that a pickle describes, if it is plain data; single NumPy numbers become Python's.

    Raises:
        PublicDataError: It imports or calls something, has an instruction that plain data does not need, or is damaged.
    """
    position = 0

    def refusal(text: str) -> PublicDataError:
        return PublicDataError(
            f"{where}, byte {position}: it {text}; only plain data is read, and nothing was executed"
        )

    stack: list[Any] = []
    below_marks: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    try:
        for instruction, argument, offset in pickletools.genops(content):
            name, position = instruction.name, offset or 0
            if name in LITERALS:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name])
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "MARK":
                below_marks.append(stack)
                stack = []
            elif name in ("APPENDS", "SETITEMS", "TUPLE"):
                items, stack = stack, below_marks.pop()
                if name == "APPENDS":
                    stack[-1].extend(items)
                elif name == "SETITEMS":
                    _set(stack[-1], items)
                else:
                    stack.append(tuple(items))
            elif name == "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [key, value])
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                size = int(name[-1])
                stack[-size:] = [tuple(stack[index] for index in range(-size, 0))]
            elif name == "GLOBAL":
                if argument not in GLOBALS:
                    raise refusal(f"wants to import {argument!r}")
                stack.append(_Name(argument))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                part = _number_part(function, arguments)
                if part is None:
                    raise refusal(f"calls {getattr(function, 'text', type(function).__name__)!r}, not for a number")
                stack.append(part)
            elif name == "BUILD":
                state = stack.pop()
                if not _complete(stack[-1], state):
                    raise refusal(f"sets the state of {type(stack[-1]).__name__.strip('_')!r}")
            elif name == "PROTO":
                if argument not in PROTOCOLS:
                    raise refusal(f"has protocol {argument}, and known are {', '.join(map(str, PROTOCOLS))}")
            elif name not in ("FRAME", "STOP"):
                raise refusal(f"has the instruction {name}")
        (result,) = stack
        if below_marks:
            raise ValueError("a mark is left over")
    except PublicDataError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        # Each instruction finds what it needs on the stack, unless the file is damaged.
        raise PublicDataError(f"{where} is a damaged pickle, at byte {position}: {error}") from error
    return result


def _set(target: Any, items: list[Any]) -> None:
    """Put keys and values, by turns, into a dict; no other keys than plain ones, as a deep tuple has no safe hash."""
    if not all(type(key) in (str, int) for key in items[::2]):
        raise TypeError("a key is neither text nor an integer")
    target.update(zip(items[::2], items[1::2], strict=True))


def _number_part(function: Any, arguments: Any) -> Any:
    """What NumPy's three calls for one number describe: raw bytes, a type, or the number; None for any other call."""
    match getattr(function, "text", None), arguments:
        case "_codecs encode", (str(text), "latin1"):
            return text.encode("latin1")
        case "numpy dtype", (str(code), 0 | False, 1 | True) if code in SCALAR_TYPES:
            return _ScalarType(code)
        case scalar, (_ScalarType() as kind, bytes(raw)) if scalar in NUMPY_SCALAR and kind.order:
            return np.frombuffer(raw, np.dtype(kind.order + kind.code)).item()
    return None


def _complete(kind: Any, state: Any) -> bool:
    """Give a NumPy type the byte order that its state names; False if it is no such state."""
    match kind, state:
        case _ScalarType(), (3 | 4, "<" | ">" | "|" as order, None, None, None, -1, -1, 0, *_):
            kind.order = order
            return True
    return False
