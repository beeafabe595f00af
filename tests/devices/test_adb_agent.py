"""Texts in the formats that Android's tools document, and an adb that is a script of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hanax.devices import DEVICES, AgentError, Method, identify, measure
from hanax.devices._adb_agent import (
    AdbAgent,
    AdbDevice,
    AdbPlace,
    choose_device,
    describe_phone,
    parse_cores,
    parse_devices,
    parse_properties,
    parse_thermal_status,
)

SPEC = DEVICES["onnxruntime-fp32"]

LISTED = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
emulator-5554          device product:sdk_gphone64_x86_64 model:sdk_gphone64_x86_64 device:emu64x transport_id:1
28161FDH2000AB         device usb:1-4 product:panther model:Pixel_7 device:panther transport_id:2
192.168.0.7:5555       offline product:panther model:Pixel_7 device:panther transport_id:3
R58M123ABCD            unauthorized usb:1-2 transport_id:4
adb-28161F-x (2)._adb-tls-connect._tcp device product:panther model:Pixel_7 device:panther transport_id:9
my device 5            recovery usb:1-9 transport_id:11
0123456789ABCDEF       no permissions (missing udev rules? user is in the plugdev group); see \
[http://developer.android.com/tools/device.html] usb:1-3 transport_id:12

"""

PROPERTIES = """[dalvik.vm.heapsize]: [512m]
[persist.sys.boot.reason.history]: [reboot,1700000000
shutdown,1690000000]
[ro.board.platform]: [gs201]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 7]
[ro.soc.model]: [Tensor G2 [rev B]]
[sys.empty]: []
"""

CPUINFO = "".join(
    f"processor\t: {number}\nBogoMIPS\t: 49.15\nFeatures\t: fp asimd\nCPU implementer\t: {maker}\n"
    f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part}\nCPU revision\t: 0\n\n"
    for number, (maker, part) in enumerate(
        [("0x41", "0xd05")] * 4 + [("0x41", "0xd41")] * 2 + [("0x41", "0xd44"), ("0x51", "0x802")]
    )
)

THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=35.2, mType=3, mName=battery, mStatus=0}}
\tTemperature{{mValue=41.7, mType=0, mName=BIG, mStatus={status}}}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
"""


# ---- parsers ---------------------------------------------------------------------------------------------------------


def test_every_state_of_a_connection_is_read() -> None:
    assert parse_devices(LISTED) == [
        AdbDevice("emulator-5554", "device", "sdk_gphone64_x86_64"),
        AdbDevice("28161FDH2000AB", "device", "Pixel_7"),
        AdbDevice("192.168.0.7:5555", "offline", "Pixel_7"),
        AdbDevice("R58M123ABCD", "unauthorized"),
        AdbDevice("adb-28161F-x (2)._adb-tls-connect._tcp", "device", "Pixel_7"),
        AdbDevice("my device 5", "recovery"),
        AdbDevice("0123456789ABCDEF", "no permissions"),
    ]


def test_the_short_list_and_an_empty_one_are_read() -> None:
    assert parse_devices("List of devices attached\nABC\tdevice\n\n") == [AdbDevice("ABC", "device")]
    assert parse_devices("List of devices attached\n\n") == []


@pytest.mark.parametrize("text", ["", "adb: command failed", "List of devices attached\nABC flying usb:1\n"])
def test_what_is_no_list_of_devices_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not .* `adb devices -l`"):
        parse_devices(text)


@pytest.mark.parametrize(
    ("serial", "message"),
    [
        (
            None,
            r"several Android devices .* name one as adb://SERIAL: emulator-5554 .*28161FDH2000AB \(Pixel_7, device",
        ),
        ("nobody", "no Android device 'nobody' is attached .*USB debugging"),
        ("R58M123ABCD", "is unauthorized: unlock it and accept this computer's key"),
        ("192.168.0.7:5555", "is offline: reconnect it"),
        ("0123456789ABCDEF", "is no permissions: install udev rules"),
        ("my device 5", "is recovery: boot it into Android"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_with_what_to_do(serial: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_device(parse_devices(LISTED), serial)


def test_without_a_serial_the_only_device_is_meant() -> None:
    assert choose_device([AdbDevice("ABC", "device")], None).serial == "ABC"
    with pytest.raises(ValueError, match=r"no Android device is attached \(attached: none\)"):
        choose_device([], None)


def test_properties_may_hold_brackets_and_several_lines() -> None:
    properties = parse_properties(PROPERTIES)
    assert properties["ro.soc.model"] == "Tensor G2 [rev B]"
    assert properties["persist.sys.boot.reason.history"] == "reboot,1700000000\nshutdown,1690000000"
    assert properties["sys.empty"] == ""
    assert len(properties) == 7


def test_cores_have_their_designs_names() -> None:
    assert parse_cores(CPUINFO) == {"Cortex-A55": 4, "Cortex-A78": 2, "Cortex-X1": 1, "0x51/0x802": 1}
    assert parse_cores("processor\t: 0\nmodel name\t: Some x86\n") == {}


def test_a_phone_is_described_by_what_it_says_of_itself() -> None:
    described = describe_phone(parse_properties(PROPERTIES), parse_cores(CPUINFO))
    assert (
        described
        == "Google Pixel 7, Tensor G2 [rev B], 4 x Cortex-A55 + 2 x Cortex-A78 + 1 x Cortex-X1 + 1 x 0x51/0x802"
    )
    assert describe_phone({}, {}) == "unknown Android device"


def test_the_thermal_status_is_read_and_may_be_missing() -> None:
    assert parse_thermal_status(THERMAL.format(status=3)) == 3
    assert parse_thermal_status("Can't find service: thermalservice\n") is None


# ---- a whole agent, over a script that does as adb does --------------------------------------------------------------

FAKE_ADB = """#!{python}
import os, shutil, subprocess, sys
phone, arguments = {phone!r}, sys.argv[1:]
if arguments == ["devices", "-l"]:
    print("List of devices attached\\nABC 1  device product:p model:Phone device:d transport_id:1\\n")
    sys.exit()
assert arguments[:2] == ["-s", "ABC 1"], arguments
operation, arguments = arguments[2], arguments[3:]
if operation == "push":
    shutil.copy(arguments[0], arguments[1])
elif operation == "shell":
    if arguments[0] == "-T":
        arguments.pop(0)
    (line,) = arguments
    for command in ("getprop", "dumpsys thermalservice", "cat /proc/cpuinfo"):
        if line == command:
            print(open(os.path.join(phone, command.split()[0])).read())
            sys.exit()
    os.execv("/bin/sh", ["sh", "-c", line])
"""


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    phone = tmp_path / "phone"
    phone.mkdir()
    (phone / "getprop").write_text(PROPERTIES)
    (phone / "cat").write_text(CPUINFO)
    (phone / "dumpsys").write_text(THERMAL.format(status=1))
    return phone


@pytest.fixture
def fake_adb(tmp_path: Path, phone: Path) -> str:
    program = tmp_path / "adb"
    program.write_text(FAKE_ADB.format(python=sys.executable, phone=str(phone)))
    program.chmod(0o755)
    return str(program)


def test_a_net_is_measured_and_the_identity_is_the_phones(
    fake_adb: str, phone: Path, matmul_model: Callable[..., bytes]
) -> None:
    place = AdbPlace("ABC 1", sys.executable, str(phone / "a folder; exit 1"))
    method = Method(warmup_runs=1, min_rounds=6, max_rounds=6, inner_ms=0.2)
    for _ in range(2):  # the second time the agent's file is there
        with AdbAgent(SPEC, place, adb=fake_adb) as agent:
            assert identify(agent).cpu_model.startswith("Google Pixel 7, Tensor G2")
            measured = measure(agent, {"net": matmul_model(2, 8)}, {"net": (1, 1, 8, 8)}, method)
        assert measured["net"].latency_ms > 0
    assert [path.suffix for path in (phone / "a folder; exit 1").iterdir()] == [".py"]


def test_a_hot_phone_is_not_measured_and_a_batch_in_which_it_became_hot_does_not_count(
    fake_adb: str, phone: Path
) -> None:
    place = AdbPlace("ABC 1", sys.executable, str(phone / "agents"))
    with AdbAgent(SPEC, place, adb=fake_adb) as agent:
        agent.request("stats")
        (phone / "dumpsys").write_text(THERMAL.format(status=2))
        with pytest.raises(AgentError, match=r"stats: the phone is too hot \(thermal status 2, moderate\)"):
            agent.request("stats")
    with pytest.raises(AgentError, match="start: the phone is too hot"), AdbAgent(SPEC, place, adb=fake_adb):
        pass


def test_without_python_there_the_message_names_the_option(fake_adb: str, phone: Path) -> None:
    place = AdbPlace("ABC 1", "/data/python", str(phone / "agents"))
    problem = r"'/data/python' cannot be run there; .* python=PATH"
    with AdbAgent(SPEC, place, adb=fake_adb) as agent, pytest.raises(AgentError, match=problem):
        identify(agent)


def test_without_adb_the_message_says_how_to_install_it() -> None:
    with pytest.raises(AgentError, match="apt-get install adb"), AdbAgent(SPEC, AdbPlace(), adb="no-such-adb"):
        pass


def test_another_serial_is_named(fake_adb: str) -> None:
    problem = "no Android device 'XYZ' is attached"
    with pytest.raises(AgentError, match=problem), AdbAgent(SPEC, AdbPlace("XYZ"), adb=fake_adb):
        pass
