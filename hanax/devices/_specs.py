"""Which devices there are: names, what each one is, and whether it can be measured here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from hanax.devices._modelled import cost_model_names, give_file_command, missing_file
from hanax.devices._runtimes import RUNTIMES, is_present, missing_programs, runtime_python

Kind = Literal["measured", "counted", "modelled"]
Precision = Literal["fp32", "int8", "dynamic-int8"]
ModelFormat = Literal[
    "onnx", "onnx-int8", "onnx-dynamic-int8", "stablehlo", "mlir", "vmfb-cortex-a53", "tflite", "tflite-int8", "ncnn"
]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A way to run a model on a machine; together with the machine it is a device.

    Attributes:
        kind: Where its numbers come from; ``measured``: from a clock, ``counted``: from counting instructions,
            ``modelled``: from the graph alone.
        runtime: What executes the model, as in `RUNTIMES`.
        precision: Number format of weights and activations; ``dynamic-int8`` finds activation scales at run time.
        model_format: What `build_model` has to make. ``stablehlo`` is a serialised ``jax.export`` artefact, ``mlir``
            the StableHLO alone as MLIR bytecode, ``vmfb-cortex-a53`` that as IREE compiles it for that core, ``ncnn``
            a zip of ``model.param`` and ``model.bin``; ``tflite`` takes its images in NHWC, to which its agent brings
            them. ``-int8`` holds fixed scales, in ONNX as QDQ pairs.
        threads: Threads that may work on one inference.
        batch: Images per inference; latencies are per inference, not per image.

    Raises:
        ValueError: `threads` or `batch` is below 1.
    """

    name: str
    kind: Kind
    runtime: str
    precision: Precision
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
        DeviceSpec("onnxruntime-int8", "measured", "onnxruntime", "int8", "onnx-int8"),
        DeviceSpec("onnxruntime-dynamic-int8", "measured", "onnxruntime", "dynamic-int8", "onnx-dynamic-int8"),
        DeviceSpec("openvino-fp32", "measured", "openvino", "fp32", "onnx"),
        DeviceSpec("openvino-int8", "measured", "openvino", "int8", "onnx-int8"),
        DeviceSpec("mnn-fp32", "measured", "mnn", "fp32", "onnx"),
        DeviceSpec("tract-fp32", "measured", "tract", "fp32", "onnx"),
        DeviceSpec("torch-fp32", "measured", "torch", "fp32", "onnx"),
        DeviceSpec("onnxruntime-web-fp32", "measured", "onnxruntime-web", "fp32", "onnx"),
        DeviceSpec("xla-fp32", "measured", "xla", "fp32", "stablehlo"),
        DeviceSpec("iree-fp32", "measured", "iree", "fp32", "mlir"),
        DeviceSpec("iree-generic-fp32", "measured", "iree-generic", "fp32", "mlir"),
        DeviceSpec("ncnn-aarch64-instructions", "counted", "ncnn-aarch64", "fp32", "ncnn"),
        DeviceSpec("iree-cortex-a53-instructions", "counted", "iree-aarch64", "fp32", "vmfb-cortex-a53"),
        DeviceSpec("litert-fp32", "measured", "litert", "fp32", "tflite"),
        DeviceSpec("litert-int8", "measured", "litert", "int8", "tflite-int8"),
        DeviceSpec("litert-no-delegate-fp32", "measured", "litert-no-delegate", "fp32", "tflite"),
        DeviceSpec("litert-no-delegate-int8", "measured", "litert-no-delegate", "int8", "tflite-int8"),
        DeviceSpec("ncnn-fp32", "measured", "ncnn", "fp32", "ncnn"),
    )
}
"""The devices that can be named; ``dataclasses.replace(spec, threads=2)`` makes others."""


LEAST_LIKENESS = 0.4
"""Of a name to a device's, from 0 to 1, for it to be meant by it."""


def likeness(name: str, other: str) -> float:
    """How much two names have in common, from 0 to 1."""
    return difflib.SequenceMatcher(None, name, other).ratio()


class UnknownDeviceError(ValueError):
    """No device has this name; the message lists those there are and the nearest one."""


def find_device(name: str) -> DeviceSpec:
    """The device called `name`.

    Raises:
        UnknownDeviceError: There is none, or it is a cost model, which nothing runs on.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name in cost_model_names():
        raise UnknownDeviceError(
            f"{name} is a cost model: it is computed from a network's graph, so there is nothing to install or to run; "
            f"`hanax collect latency --device {name}` makes a table of its costs, `find_cost_model({name!r})` gives it"
        )
    known = [*DEVICES, *cost_model_names()]
    nearest = max(known, key=lambda other: likeness(name, other))  # of equals the first, which is the more common
    hint = f"; did you mean {nearest!r}?" if likeness(name, nearest) >= LEAST_LIKENESS else ""
    raise UnknownDeviceError(f"unknown device {name!r}; known devices: {', '.join(known)}{hint}")


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Whether a device can be measured, or its costs be computed, from here.

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
    """The status of every known device and cost model, without loading any runtime."""
    return [*(_status(spec) for spec in DEVICES.values()), *(_model_status(name) for name in cost_model_names())]


def _model_status(name: str) -> DeviceStatus:
    missing = missing_file(name)
    return DeviceStatus(name, "modelled", missing is None, missing, None if missing is None else give_file_command())


def _status(spec: DeviceSpec) -> DeviceStatus:
    runtime = RUNTIMES[spec.runtime]
    missing = missing_programs(runtime)
    needed = [runtime, *(RUNTIMES[name] for name in runtime.needs)]
    missing += [each.what for each in needed if runtime_python(each) is None]
    if not missing:
        return DeviceStatus(spec.name, spec.kind, True, None, None)
    return DeviceStatus(spec.name, spec.kind, False, ", ".join(missing), install_command(spec))


def install_command(spec: DeviceSpec) -> str:
    """The command that adds what `spec` needs and this machine lacks."""
    runtime = RUNTIMES[spec.runtime]
    packages = [package for program, package in runtime.programs if not is_present(program)]
    commands = [f"apt-get install {' '.join(packages)}"] if packages else []
    commands.append(
        f"hanax devices install {spec.name}" if runtime.extra else f"python -m pip install {runtime.package}"
    )
    return " && ".join(commands)
