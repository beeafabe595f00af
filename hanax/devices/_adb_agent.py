"""Transport: an agent on an Android device, over adb.

adb (Debian: ``apt-get install adb``) must be here, USB debugging on there, and a Python with the runtime there that the
user ``shell`` may execute, such as one unpacked below ``/data/local/tmp``. Termux's Python belongs to the Termux app,
which ``shell`` is not: to use it, start ``sshd`` in Termux, ``adb forward tcp:8022 tcp:8022``, and measure at
``ssh://127.0.0.1:8022/``.

The parsers are tested on text in the documented formats. The whole has only met an adb that was a script so far, no
phone. When the connection ends, adbd sends the agent a hangup signal (Android's ``shell_service.cpp``), which ends it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanax.devices._agent_client import AgentClient, ProcessTransport, TransportError
from hanax.devices._local_agent import AGENT_FILE, agent_options
from hanax.devices._specs import DeviceSpec

FOLDER = "/data/local/tmp/hanax"
"""Where agents lie on the device: below the one folder that the user ``shell`` may write to and execute from."""

ADB_TIMEOUT_S = 30.0

STATES = (
    "device", "offline", "unauthorized", "authorizing", "connecting", "recovery", "rescue", "sideload", "bootloader",
    "host", "detached", "unknown",
)  # fmt: skip
"""The states of a connection that are single words; adb's own list (its ``adb.cpp``)."""

ADVICE = {
    "offline": "reconnect it, or `adb reconnect offline`",
    "unauthorized": "unlock it and accept this computer's key in the dialog that it shows",
    "authorizing": "wait a moment",
    "connecting": "wait a moment",
    "no permissions": "install udev rules (Debian: android-sdk-platform-tools-common) and join the group plugdev, then "
    "`adb kill-server`",
}

THERMAL_STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's `PowerManager.THERMAL_STATUS_*`, by value."""

HOTTEST = 1
"""The highest thermal status at which latencies count: light throttling."""

CORES = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
    0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD80: "Cortex-A520",
    0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
}  # fmt: skip
"""Arm's part numbers (implementer 0x41), from its cores' technical reference manuals (register MIDR_EL1)."""


@dataclass(frozen=True, slots=True)
class AdbDevice:
    """A line of ``adb devices -l``.

    Attributes:
        state: One of `STATES`, or ``no permissions``.
        model: As adb gives it, with underscores; empty where it does not.
    """

    serial: str
    state: str
    model: str = ""

    def __str__(self) -> str:
        return f"{self.serial} ({self.model or 'model unknown'}, {self.state})"


def parse_devices(text: str) -> list[AdbDevice]:
    """The devices in the output of ``adb devices -l``; serials may hold spaces and colons.

    Raises:
        ValueError: A line is not a device; has the line.
    """
    devices = []
    _, found, lines = text.partition("List of devices attached")
    if not found:
        raise ValueError(f"not the output of `adb devices -l`: {text.strip()[:200]!r}")
    for line in filter(None, map(str.strip, lines.splitlines())):
        if line.startswith("* "):  # the daemon's own remarks
            continue
        match = _DEVICE.fullmatch(line) or _NO_PERMISSIONS.fullmatch(line)
        if match is None:
            raise ValueError(f"not a line of `adb devices -l`: {line!r}")
        model = re.search(r"\smodel:(\S+)", match["details"])
        state = "no permissions" if "state" not in match.groupdict() else match["state"]
        devices.append(AdbDevice(match["serial"].strip(), state, model[1] if model else ""))
    return devices


_DEVICE = re.compile(rf"(?P<serial>.+?)\s+(?P<state>{'|'.join(STATES)})(?P<details>(?:\s+[a-z_]+:\S+)*)")
_NO_PERMISSIONS = re.compile(r"(?P<serial>.+?)\s+no permissions(?P<details>.*)")


def choose_device(devices: Sequence[AdbDevice], serial: str | None) -> AdbDevice:
    """The device with `serial`, or the only one there is.

    Raises:
        ValueError: It is not there, not ready, or one of several; says what to do.
    """
    listed = ", ".join(map(str, devices)) or "none"
    matching = [device for device in devices if serial in (None, device.serial)]
    if not matching:
        wanted = "" if serial is None else f" {serial!r}"
        raise ValueError(
            f"no Android device{wanted} is attached (attached: {listed}); plug it in and switch on USB debugging in "
            "its developer options, or `adb connect HOST:PORT`"
        )
    if len(matching) > 1:
        raise ValueError(f"several Android devices are attached; name one as adb://SERIAL: {listed}")
    (device,) = matching
    if device.state != "device":
        advice = ADVICE.get(device.state, "boot it into Android")
        raise ValueError(f"the Android device {device.serial!r} is {device.state}: {advice}")
    return device


def parse_properties(text: str) -> dict[str, str]:
    """The properties in the output of ``getprop``; values may run over several lines."""
    return dict(re.findall(r"^\[([^\]\n]+)\]: \[(.*?)\]\s*$", text, flags=re.MULTILINE | re.DOTALL))


def parse_cores(cpuinfo: str) -> dict[str, int]:
    """How many cores of each design the text of ``/proc/cpuinfo`` lists, the most frequent first.

    Arm's designs have names, others are ``implementer/part``; empty where the text names no parts (x86).
    """
    implementers = re.findall(r"^CPU implementer\s*:\s*(0x[0-9a-fA-F]+)", cpuinfo, flags=re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)", cpuinfo, flags=re.MULTILINE)
    names = [
        CORES.get(int(part, 16), f"{maker}/{part}") if int(maker, 16) == 0x41 else f"{maker}/{part}"
        for maker, part in zip(implementers, parts, strict=False)
    ]
    return dict(Counter(names).most_common())


def parse_thermal_status(text: str) -> int | None:
    """The thermal status, 0 to 6, in the output of ``dumpsys thermalservice``; None where there is none (Android 9)."""
    match = re.search(r"^\s*Thermal Status:\s*(\d+)\s*$", text, flags=re.MULTILINE)
    return None if match is None else int(match[1])


def describe_phone(properties: Mapping[str, str], cores: Mapping[str, int]) -> str:
    """The phone and its processor, as a device's identity names it."""
    product = " ".join(filter(None, map(properties.get, ("ro.product.manufacturer", "ro.product.model"))))
    chip = properties.get("ro.soc.model") or properties.get("ro.board.platform") or properties.get("ro.hardware", "")
    designs = " + ".join(f"{n} x {name}" for name, n in cores.items())
    return ", ".join(filter(None, (product, chip, designs))) or "unknown Android device"


@dataclass(frozen=True, slots=True)
class AdbPlace:
    """An Android device and what is used there.

    Attributes:
        serial: As ``adb devices`` lists it; the only one attached, if None.
        python: The interpreter there that has the runtime.
        folder: There, for the agent.
    """

    serial: str | None = None
    python: str = "python3"
    folder: str = FOLDER


class AdbAgent(AgentClient[DeviceSpec]):
    """An agent on an Android device. Refuses to count what was measured while the phone throttled.

    Args:
        spec: The device.
        place: The phone.
        adb: The program here.
        timeout_s: Longest wait for any answer. The agent is killed after it.
    """

    def __init__(self, spec: DeviceSpec, place: AdbPlace, *, adb: str = "adb", timeout_s: float = 120.0) -> None:
        self._adb = AdbTransport(place, AGENT_FILE, agent_options(spec), adb=adb)
        super().__init__(spec, self._adb, timeout_s)

    def request(self, op: str, about: str = "", **fields: object) -> dict[str, Any]:
        """As any agent; ``info`` names the phone, and ``stats``, which ends every batch, looks at its temperature."""
        result = super().request(op, about, **fields)
        try:
            if op == "info":
                properties = parse_properties(self._adb.shell("getprop"))
                result["cpu_model"] = describe_phone(properties, parse_cores(self._adb.shell("cat /proc/cpuinfo")))
            elif op == "stats":
                self._adb.check_temperature()
        except TransportError as error:
            self.fail(op, about, str(error))
        return result


class AdbTransport(ProcessTransport):
    """A program on an Android device, spoken to over ``adb shell``.

    Args:
        program: A Python file; copied under its checksum, and reused if it is there.
        arguments: Of its command line.
    """

    def __init__(self, place: AdbPlace, program: Path, arguments: Sequence[str], *, adb: str = "adb") -> None:
        no_python = f"{place.python!r} cannot be run there; name the Python that has the runtime with python=PATH"
        super().__init__((), {126: no_python, 127: no_python})
        self.place = place
        self.serial = place.serial
        self.program = program
        self.arguments = tuple(arguments)
        self.adb = adb

    def start(self) -> None:
        """Find the device, copy the program, and start it."""
        try:
            self.serial = choose_device(parse_devices(self._run("devices", "-l")), self.serial).serial
        except ValueError as error:
            raise TransportError(str(error)) from error
        self.check_temperature()
        path = self._put_program()
        # adb hands one line to the device's shell: quoted here, and without a terminal that would change the bytes.
        line = "exec " + shlex.join([self.place.python, "-u", path, *self.arguments])
        self.command = (self.adb, "-s", self.serial, "shell", "-T", line)
        super().start()

    def shell(self, line: str) -> str:
        """What the device's shell prints for `line`. Raises TransportError if it fails."""
        return self._run("-s", str(self.serial), "shell", line)

    def check_temperature(self) -> None:
        """Raises TransportError if the phone throttles: what is measured then is its case, not its processor."""
        try:
            status = parse_thermal_status(self.shell("dumpsys thermalservice"))
        except TransportError:
            return  # Android before 10
        if status is not None and status > HOTTEST:
            name = THERMAL_STATUSES[min(status, len(THERMAL_STATUSES) - 1)]
            raise TransportError(f"the phone is too hot (thermal status {status}, {name}): let it cool, then go on")

    def _put_program(self) -> str:
        digest = hashlib.sha256(self.program.read_bytes()).hexdigest()
        path = f"{self.place.folder}/{digest}.py"
        partial = f"{self.place.folder}/.{digest}.{secrets.token_hex(8)}"
        try:
            held = self.shell(
                f"mkdir -p {shlex.quote(self.place.folder)} && sha256sum {shlex.quote(path)} 2>&1 || true"
            )
            if not held.startswith(digest):
                self._run("-s", str(self.serial), "push", str(self.program), partial)
                self.shell(f"mv {shlex.quote(partial)} {shlex.quote(path)}")
        except TransportError as error:
            raise TransportError(f"cannot copy the agent to {self.place.folder} there: {error}") from error
        return path

    def _run(self, *arguments: str) -> str:
        try:
            ran = subprocess.run(
                [self.adb, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ADB_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise TransportError(f"the program {self.adb} is missing (Debian: `apt-get install adb`)") from error
        except OSError as error:
            raise TransportError(f"cannot run {self.adb}: {error}") from error
        except subprocess.TimeoutExpired as error:
            said = f"`adb {shlex.join(arguments)}` did not end within {ADB_TIMEOUT_S:g} s; is the device still there?"
            raise TransportError(said) from error
        said = ran.stdout.decode("utf-8", errors="replace")
        if ran.returncode:
            words = (ran.stderr.decode("utf-8", errors="replace") + said).strip()[-500:]
            raise TransportError(f"`adb {shlex.join(arguments)}` failed with exit status {ran.returncode}: {words}")
        return said
