"""Which devices there are: names, what each one is, and whether it can be measured here."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from typing import Literal

Kind = Literal["measured"]
Runtime = Literal["onnxruntime", "xla"]
ModelFormat = Literal["onnx", "stablehlo"]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A way to run a model on a machine; together with the machine it is a device.

    Attributes:
        kind: Where its numbers come from; ``measured``: from a clock.
        runtime: What executes the model.
        precision: Number format of weights and activations.
        model_format: What `build_model` has to make: ONNX, or a serialised ``jax.export`` artefact.
        threads: Threads that may work on one inference.
        batch: Images per inference; latencies are per inference, not per image.

    Raises:
        ValueError: `threads` or `batch` is below 1.
    """

    name: str
    kind: Kind
    runtime: Runtime
    precision: Literal["fp32"]
    model_format: ModelFormat
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1 or self.batch < 1:
            raise ValueError(
                f"{self.name}: threads and batch must be at least 1; got threads={self.threads}, batch={self.batch}"
            )


DEVICES: dict[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        DeviceSpec("onnxruntime-fp32", "measured", "onnxruntime", "fp32", "onnx"),
        DeviceSpec("xla-fp32", "measured", "xla", "fp32", "stablehlo"),
    )
}
"""The devices that can be named; ``dataclasses.replace(spec, threads=2)`` makes others."""

PACKAGES: dict[Runtime, str] = {"onnxruntime": "onnxruntime", "xla": "jax"}
"""The Python package that each runtime needs."""


class UnknownDeviceError(ValueError):
    """No device has this name; the message lists those there are and the nearest one."""


def find_device(name: str) -> DeviceSpec:
    """The device called `name`.

    Raises:
        UnknownDeviceError: There is none.
    """
    if name in DEVICES:
        return DEVICES[name]
    nearest = difflib.get_close_matches(name, DEVICES, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise UnknownDeviceError(f"unknown device {name!r}; known devices: {', '.join(DEVICES)}{hint}")


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Whether a device can be measured from here.

    Attributes:
        missing: What is not there, in words; None if available.
        install: The command that adds it; None if available.
    """

    name: str
    kind: Kind
    available: bool
    missing: str | None
    install: str | None


def device_statuses() -> list[DeviceStatus]:
    """The status of every known device, without loading any runtime."""
    return [_status(spec) for spec in DEVICES.values()]


def _status(spec: DeviceSpec) -> DeviceStatus:
    package = PACKAGES[spec.runtime]
    if importlib.util.find_spec(package) is not None:
        return DeviceStatus(spec.name, spec.kind, True, None, None)
    missing = f"the Python package {package}"
    return DeviceStatus(spec.name, spec.kind, False, missing, f"python -m pip install {package}")
