"""Deployment of an integer network: model files, parity certificates, and latencies beside the float32 network's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8

from hanax._files import write_atomically
from hanax._intervals import wilson_interval
from hanax.experiments._after import find_arch
from hanax.experiments._export import count_correct, export, export_integers
from hanax.experiments._parity_certificate import DEFAULT_TOLERANCES, Tolerances, certify
from hanax.search_spaces import Arch, float_arch, with_precision

if TYPE_CHECKING:
    from hanax.devices import Agent, DeviceSpec, LoadWatch, Method
    from hanax.experiments._pipeline import Pipeline
    from hanax.supernet import Calibration, QuantizedNet, Subnet

DEPLOYMENT_FILE = "deployment.json"


@dataclass(frozen=True, slots=True)
class DeployedRow:
    """An integer network on one device, beside the same architecture in float32 on the same runtime.

    Attributes:
        device: Of the integer model.
        model: Name of its file.
        model_bytes: Its size; kernels of fewer than 8 bits take 8 there.
        float_model: Name of the float32 file.
        n_images: Images that all accuracies are of.
        float_accuracy: Of the float32 network, in [0, 1].
        reference_accuracy: Of the fake-quantized network: what a search sees.
        runtime_accuracy: Of the model on the runtime; `runtime_accuracy_low` and ``_high`` end its 95 % interval.
        is_met: Whether the parity certificate is met.
        latency_ms: Of the integer model, median over interleaved rounds; with the ends of its 95 % interval.
        float_latency_ms: Of the float32 model, measured in turn with it.
        converged: Both intervals are as narrow as the method asks.
    """

    device: str
    runtime: str
    runtime_version: str
    model: str
    model_bytes: int
    float_model: str
    float_model_bytes: int
    n_images: int
    float_accuracy: float
    reference_accuracy: float
    runtime_accuracy: float
    runtime_accuracy_low: float
    runtime_accuracy_high: float
    equal_classes: float
    is_met: bool
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    float_latency_ms: float
    float_latency_low_ms: float
    float_latency_high_ms: float
    converged: bool

    @property
    def speedup(self) -> float:
        """How many times faster the integer model is; below 1 it is slower."""
        return self.float_latency_ms / self.latency_ms

    @property
    def words(self) -> str:
        """The comparison in a sentence, also where integers lose."""
        if self.latency_high_ms < self.float_latency_low_ms:
            latency = f"{self.speedup:.2f} times as fast as float32"
        elif self.latency_low_ms > self.float_latency_high_ms:
            latency = f"SLOWER than float32, which is {1 / self.speedup:.2f} times as fast"
        else:
            latency = "as fast as float32, as far as the measurement can tell"
        return (
            f"{self.device}: {self.latency_ms:.3f} ms ({self.latency_low_ms:.3f} to {self.latency_high_ms:.3f}), "
            f"float32 {self.float_latency_ms:.3f} ms ({self.float_latency_low_ms:.3f} to "
            f"{self.float_latency_high_ms:.3f}): {latency}; {self.runtime_accuracy:.2%} on {self.n_images} images, "
            f"float32 {self.float_accuracy:.2%} ({100 * (self.runtime_accuracy - self.float_accuracy):+.2f} points)"
            + ("" if self.converged else "; the machine was not quiet enough for the interval that was asked for")
        )


def quantized_subnet(
    pipeline: Pipeline,
    arch: str | Arch,
    *,
    weights: str = "int8",
    activations: str = "int8",
    calibration: Calibration = "minmax",
) -> tuple[QuantizedNet, Subnet]:
    """A subnet of a run in integers, and the same architecture in float32.

    It is of the run's quantized supernet, if that is trained, else of the float one, post-training; the pipeline's
    reporter is told which.

    Args:
        arch: Of the run's space, in one precision throughout; or with its policy, of its quantized space.
        weights: Format of the kernels that a policy is about, if `arch` has none.
        activations: Format of the activations that a policy is about, likewise.
        calibration: How ranges are found, see `hanax.supernet.activation_range`.

    Raises:
        ValueError: There is no such architecture, or a format is not offered or has no integers.
        RunFolderError: The run's supernet is not trained yet.
    """
    from hanax.experiments._folder import QUANTIZED_SUPERNET
    from hanax.experiments._run_quantized import Formats, quantized_evaluator

    space = pipeline.space
    chosen = find_arch(space, arch) if arch in ("largest", "smallest") else arch
    chosen = chosen if isinstance(chosen, Arch) else Arch.parse(chosen)
    has_policy = len(chosen.choices) != len(space.decisions)
    is_trained = (pipeline.folder(QUANTIZED_SUPERNET) / "checkpoints").exists()
    formats = None if has_policy or is_trained else Formats(weights=(weights,), activations=(activations,))
    evaluator = quantized_evaluator(pipeline, formats=formats, calibration=calibration, reporter=pipeline.reporter)
    if not has_policy:
        codes = space.encode([find_arch(space, chosen)])
        (chosen,) = evaluator.space.decode(with_precision(evaluator.space, codes, weights, activations))
    chosen = find_arch(evaluator.space, chosen)
    return evaluator.quantize(chosen), pipeline.evaluator.extract(float_arch(evaluator.space, chosen))


def float_twin(device: DeviceSpec) -> DeviceSpec:
    """The float32 device on the runtime of `device`, with its threads and batch.

    Raises:
        ValueError: `device` takes no integer models with fixed scales.
    """
    from hanax.devices import DEVICES

    if device.precision != "int8":
        raise ValueError(
            f"{device.name} runs models in {device.precision}; an integer network is deployed on "
            f"{', '.join(spec.name for spec in DEVICES.values() if spec.precision == 'int8')}"
        )
    twin = next(s for s in DEVICES.values() if (s.runtime, s.precision, s.kind) == (device.runtime, "fp32", "measured"))
    return dataclasses.replace(twin, threads=device.threads, batch=device.batch)


def deploy_quantized(
    net: QuantizedNet,
    float_subnet: Subnet,
    devices: Sequence[DeviceSpec],
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    folder: Path,
    *,
    method: Method | None = None,
    watch: LoadWatch | None = None,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
    start_agent: Callable[[DeviceSpec], Agent] | None = None,
) -> list[DeployedRow]:
    """Write `net` for `devices` into `folder`, certify it there, and time it in turn with the float32 network.

    The folder gets ``quantized.npz`` and ``quantized.json``, model files ``model.FORMAT`` in both precisions, a
    ``parity-DEVICE.json`` per device, and the rows as ``deployment.json``.

    Args:
        float_subnet: The same architecture in float32.
        images: Bytes; all accuracies are on these. As many as are a multiple of every device's batch.
        method: How latencies are measured; `Method()` by default.
        watch: Waits for a quiet machine before each measurement.
        start_agent: Makes a device's agent; by default a process of this machine.

    Raises:
        AgentError: A model does not run on its device.
        RuntimeMissingError: A runtime is not installed.
        ValueError: A device takes no integer models, or the network has no form there.
    """
    from hanax.devices import LocalAgent, Method, measure

    method = method or Method()
    start_agent = start_agent or LocalAgent
    twins = [float_twin(device) for device in devices]
    models = {(d.model_format, d.batch): export_integers(net, d.model_format, d.batch) for d in devices}
    floats = {(d.model_format, d.batch): export(float_subnet, d.model_format, d.batch) for d in twins}
    net.save(folder)
    names = {key: f"model.{key[0]}" for key in (*models, *floats)}
    for key, content in (*models.items(), *floats.items()):
        write_atomically(folder / names[key], content)
    normalised = net.normalise(images)
    expected = net.logits(normalised)
    float_accuracy = count_correct(float_subnet, images, labels) / len(labels)
    rows = []
    for device, twin in zip(devices, twins, strict=True):
        key, float_key = (device.model_format, device.batch), (twin.model_format, twin.batch)
        certificate = certify(
            net, device, normalised, labels,
            model=models[key], expected=expected, tolerances=tolerances, start_agent=start_agent,
        )  # fmt: skip
        certificate.save(folder / f"parity-{device.name}.json")
        shape = (device.batch, *net.graph.input_shape)
        with start_agent(device) as agent:
            measured = measure(
                agent,
                {"int8": models[key], "float32": floats[float_key]},
                {"int8": shape, "float32": shape},
                method,
                watch=watch,
            )
        own, other = measured["int8"], measured["float32"]
        low, high = wilson_interval(round(certificate.runtime_accuracy * len(labels)), len(labels))
        rows.append(
            DeployedRow(
                device=device.name,
                runtime=certificate.runtime,
                runtime_version=certificate.runtime_version,
                model=names[key],
                model_bytes=len(models[key]),
                float_model=names[float_key],
                float_model_bytes=len(floats[float_key]),
                n_images=len(labels),
                float_accuracy=float_accuracy,
                reference_accuracy=certificate.reference_accuracy,
                runtime_accuracy=certificate.runtime_accuracy,
                runtime_accuracy_low=low,
                runtime_accuracy_high=high,
                equal_classes=certificate.equal_classes,
                is_met=certificate.is_met,
                latency_ms=own.latency_ms,
                latency_low_ms=own.latency_low_ms,
                latency_high_ms=own.latency_high_ms,
                float_latency_ms=other.latency_ms,
                float_latency_low_ms=other.latency_low_ms,
                float_latency_high_ms=other.latency_high_ms,
                converged=own.converged and other.converged,
            )
        )
    deployment = {"arch": str(net.arch), "rows": [dataclasses.asdict(row) for row in rows]}
    write_atomically(folder / DEPLOYMENT_FILE, json.dumps(deployment, indent=1).encode())
    return rows
