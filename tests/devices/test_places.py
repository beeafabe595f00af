from __future__ import annotations

import pytest

from hanax.devices import DEVICES, LocalAgent, PlaceError, find_place, start_agent_at
from hanax.devices._adb_agent import AdbAgent, AdbPlace, AdbTransport
from hanax.devices._ssh_agent import SshAgent, SshPlace, SshTransport

SPEC = DEVICES["onnxruntime-fp32"]


@pytest.mark.parametrize(
    ("text", "place", "label"),
    [
        ("ssh://pi", SshPlace("pi"), "pi"),
        ("ssh://me@192.168.0.7:2222/", SshPlace("192.168.0.7", 2222, "me"), "192.168.0.7-2222"),
        ("ssh://a%40b@[fe80::1]:22/", SshPlace("fe80::1", 22, "a@b"), "fe80-1-22"),
        (
            "ssh://pi/?python=/opt/py%203/bin/python&key=~/.ssh/pi&known_hosts=/k&folder=a%3Bb",
            SshPlace("pi", None, None, "/opt/py 3/bin/python", "~/.ssh/pi", "/k", "a;b"),
            "pi",
        ),
    ],
)
def test_an_ssh_place_means_what_it_says(text: str, place: SshPlace, label: str) -> None:
    found = find_place(text)
    agent = found.start_agent(SPEC)
    assert isinstance(agent, SshAgent)
    assert isinstance(agent._transport, SshTransport)
    assert agent._transport.place == place
    assert found.label == label
    assert found.device_name(SPEC.name) == f"onnxruntime-fp32@{label}"


@pytest.mark.parametrize(
    ("text", "place", "label"),
    [
        ("adb://", AdbPlace(), "adb"),
        ("adb://emulator-5554", AdbPlace("emulator-5554"), "emulator-5554"),
        ("adb://192.168.0.7:5555/?python=/data/local/tmp/py", AdbPlace("192.168.0.7:5555", "/data/local/tmp/py"),
         "192.168.0.7-5555"),
        ("adb://adb-X%20(2)._adb-tls-connect._tcp", AdbPlace("adb-X (2)._adb-tls-connect._tcp"),
         "adb-X-2-._adb-tls-connect._tcp"),
    ],
)  # fmt: skip
def test_an_adb_place_means_what_it_says(text: str, place: AdbPlace, label: str) -> None:
    found = find_place(text)
    agent = found.start_agent(SPEC)
    assert isinstance(agent, AdbAgent)
    assert isinstance(agent._transport, AdbTransport)
    assert agent._transport.place == place
    assert found.label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pi", r"'pi' is not a place; examples: ssh://"),
        ("http://pi/", "is not a place"),
        ("ssh://", "needs a host"),
        ("ssh://pi/home", "needs a host and no path"),
        ("ssh://pi:port/", "is not a place"),
        ("ssh://pi:99999/", "is not a place"),
        ("ssh://pi/#x", "is not a place"),
        ("ssh://pi/?pyton=x", "unknown option 'pyton'; did you mean 'python'"),
        ("ssh://pi/?python", "is not a place"),
        ("ssh://pi/?python=", "python must be a path"),
        ("ssh://pi/?python=-c", "python must be a path, .* it is '-c'"),
        ("ssh://pi/?folder=a%0Ab", "folder must be a path, without control characters"),
        ("adb://x?key=k", "unknown option 'key'"),
        ("adb://x/y", "percent-encode the slash"),
        ("adb://-s", "is no serial"),
    ],
)
def test_what_is_no_place_is_refused_with_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        find_place(text)


@pytest.mark.parametrize("text", ["ssh://me:secret@pi/", "http://me:secret@pi/", "ssh://me:secret@pi:x/"])
def test_a_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(PlaceError) as error:
        find_place(text)
    assert "secret" not in str(error.value)


def test_without_a_place_agents_are_of_this_machine() -> None:
    assert start_agent_at(None) is LocalAgent
