"""Where a device is, as a person writes it: ``ssh://user@host:port/?python=...`` or ``adb://SERIAL?python=...``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from hanax.devices._adb_agent import AdbAgent, AdbPlace
from hanax.devices._local_agent import Agent, LocalAgent
from hanax.devices._specs import DeviceSpec
from hanax.devices._ssh_agent import SshAgent, SshPlace

EXAMPLES = "ssh://user@host:22/?python=/usr/bin/python3&key=~/.ssh/id_ed25519, adb://SERIAL?python=/data/local/tmp/py3"


class PlaceError(ValueError):
    """A place cannot be understood; the message says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Place:
    """A machine other than this one.

    Attributes:
        label: A short name for it, of letters, digits, ``.``, ``_`` and ``-``.
        start_agent: Makes the agent of a device there; for `collect_latency`.
    """

    label: str
    start_agent: Callable[[DeviceSpec], Agent]

    def device_name(self, name: str) -> str:
        """What the device called `name` is called there: ``onnxruntime-fp32@pi``."""
        return f"{name}@{self.label}"


def find_place(text: str) -> Place:
    """The place that `text` means.

    ``ssh://[user@]host[:port]/`` with the options ``python`` (the interpreter that has the runtime there), ``key`` (a
    private key file; else ssh-agent and the usual files), ``known_hosts`` (a file; else ``~/.ssh/known_hosts``) and
    ``folder`` (for the agent, relative to the home folder). ``adb://[SERIAL]`` with ``python`` and ``folder``; without
    a serial the only device that is attached. Special characters are percent-encoded, as in any URL.

    Raises:
        PlaceError: It is not such a text, has an unknown option, or holds a password.
    """
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        port = parts.port if parts.scheme == "ssh" else None
    except ValueError as error:
        raise PlaceError(f"{_without_password(text)!r} is not a place ({error}); examples: {EXAMPLES}") from error
    if parts.scheme not in PLACES or parts.fragment:
        raise PlaceError(f"{_without_password(text)!r} is not a place; examples: {EXAMPLES}")
    known, find = PLACES[parts.scheme]
    for name, value in options.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise PlaceError(f"{parts.scheme}://: unknown option {name!r}; {hint}Known: {', '.join(known)}")
        if not value or value.startswith("-") or not value.isprintable():
            raise PlaceError(f"{parts.scheme}://: {name} must be a path, without control characters; it is {value!r}")
    return find(parts, port, options)


def start_agent_at(place: Place | None) -> Callable[[DeviceSpec], Agent]:
    """What makes agents at `place`; on this machine if it is None."""
    return LocalAgent if place is None else place.start_agent


def _find_ssh(parts: SplitResult, port: int | None, options: dict[str, str]) -> Place:
    if parts.password is not None:
        raise PlaceError(
            "ssh://: a password in a place would be seen in process lists and histories, so none is taken; use a key "
            "(`ssh-copy-id USER@HOST` installs it)"
        )
    host = unquote(parts.hostname or "")
    if not host or not host.isprintable() or parts.path not in ("", "/"):
        raise PlaceError(f"{parts.geturl()!r} needs a host and no path after it; example: ssh://pi@192.168.0.7:22/")
    user = unquote(parts.username) if parts.username else None
    at = SshPlace(host, port, user, **options)
    label = host if port is None else f"{host}-{port}"
    return Place(_label(label), lambda spec: SshAgent(spec, at))


def _find_adb(parts: SplitResult, port: int | None, options: dict[str, str]) -> Place:
    if parts.path not in ("", "/"):
        raise PlaceError(f"{parts.geturl()!r}: percent-encode the slash in the serial; example: adb://emulator-5554")
    serial = unquote(parts.netloc)
    if serial.startswith("-") or not serial.isprintable():
        raise PlaceError(f"{serial!r} is no serial; `adb devices -l` lists them")
    at = AdbPlace(serial or None, **options)
    return Place(_label(serial or "adb"), lambda spec: AdbAgent(spec, at))


PLACES: dict[str, tuple[tuple[str, ...], Callable[[SplitResult, int | None, dict[str, str]], Place]]] = {
    "ssh": (("python", "key", "known_hosts", "folder"), _find_ssh),
    "adb": (("python", "folder"), _find_adb),
}
"""The options and the meaning of each scheme."""


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or quote(text, safe="")


def _without_password(text: str) -> str:
    return re.sub(r"(?<=:)[^:@/]*(?=@)", "...", text)
