"""Parity certificates: what a runtime makes of an integer model, beside the fake-quantized network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int

from hanax._files import write_atomically

if TYPE_CHECKING:
    from hanax.devices import Agent, DeviceSpec
    from hanax.supernet import QuantizedNet


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What a runtime may differ by from the fake-quantized network.

    Attributes:
        accuracy_points: Largest difference in accuracy, in percentage points.
        equal_classes: Least share of images that get the same class.
    """

    accuracy_points: float = 0.5
    equal_classes: float = 0.98


DEFAULT_TOLERANCES = Tolerances()


@dataclass(frozen=True, slots=True)
class ParityCertificate:
    """How far an integer model on a runtime is from the fake-quantized network, on the images named here.

    Attributes:
        device: Name of the device, e.g. ``openvino-int8``.
        hardware: Processor and cores.
        model_sha256: Of the model file that was run.
        arch: Of its network, in the space with the fingerprint `space_fingerprint`.
        images_sha256: Of the normalised images.
        max_difference: Largest absolute difference of a logit, over the standard deviation of the network's logits.
        rms_difference: Root mean square of the differences, likewise.
        equal_classes: Share of the images that get the same class.
        reference_accuracy: Of the fake-quantized network on these images, in [0, 1].
        runtime_accuracy: Of the model on the runtime.
        tolerances: What the verdict is about.
    """

    device: str
    runtime: str
    runtime_version: str
    hardware: str
    model_sha256: str
    arch: str
    space_fingerprint: str
    n_images: int
    images_sha256: str
    max_difference: float
    rms_difference: float
    equal_classes: float
    reference_accuracy: float
    runtime_accuracy: float
    tolerances: Tolerances

    @property
    def difference_points(self) -> float:
        """Accuracy on the runtime less that of the network, in percentage points."""
        return 100 * (self.runtime_accuracy - self.reference_accuracy)

    @property
    def is_met(self) -> bool:
        """Whether the model keeps the tolerances."""
        return (
            # Rounded, as a difference of just as many images as are allowed is not always so in floating point.
            round(abs(self.difference_points), 9) <= self.tolerances.accuracy_points
            and self.equal_classes >= self.tolerances.equal_classes
        )

    @property
    def verdict(self) -> str:
        """The certificate in a sentence."""
        return (
            f"{self.device} ({self.runtime} {self.runtime_version}) {'keeps' if self.is_met else 'BREAKS'} parity: "
            f"{self.runtime_accuracy:.2%} on {self.n_images} images, fake-quantized {self.reference_accuracy:.2%} "
            f"({self.difference_points:+.2f} points, {self.tolerances.accuracy_points:g} allowed); the same class for "
            f"{self.equal_classes:.2%} ({self.tolerances.equal_classes:.0%} asked); logits differ by "
            f"{self.rms_difference:.2%} of their spread, at most {self.max_difference:.1%}"
        )

    def save(self, path: Path) -> None:
        """Write the certificate, with its verdict, as JSON."""
        content = dataclasses.asdict(self) | {
            "difference_points": self.difference_points,
            "is_met": self.is_met,
            "verdict": self.verdict,
        }
        write_atomically(path, json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> ParityCertificate:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no certificate.
        """
        content = json.loads(path.read_text())
        try:
            fields = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no parity certificate: {error} is missing") from error
        return cls(**fields | {"tolerances": Tolerances(**fields["tolerances"])})


def certify(
    net: QuantizedNet,
    device: DeviceSpec,
    images: Float32[np.ndarray, "n c h w"],
    labels: Int[np.ndarray, " n"],
    *,
    model: bytes | None = None,
    expected: Float32[np.ndarray, "n classes"] | None = None,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
    start_agent: Callable[[DeviceSpec], Agent] | None = None,
) -> ParityCertificate:
    """Run the integer model of `net` on `device`, image by image, and compare with what `net` computes.

    Args:
        images: Normalised; a multiple of the device's batch.
        model: The model file, if it was written before.
        expected: The logits of `net` for `images`, if known.
        start_agent: Makes the device's agent; by default a process of this machine.

    Raises:
        AgentError: The model does not run there.
        RuntimeMissingError: The runtime is not installed.
        ValueError: The device takes no integer model with fixed scales, or the images are no multiple of its batch.
    """
    from hanax.devices import LocalAgent, identify, runtime_outputs
    from hanax.experiments._export import export_integers

    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"a certificate needs a label for each image; got {len(images)} images, {len(labels)} labels")
    model = export_integers(net, device.model_format, device.batch) if model is None else model
    expected = net.logits(images) if expected is None else expected
    with (start_agent or LocalAgent)(device) as agent:
        identity = identify(agent)
        found = runtime_outputs(agent, "the integer model", model, images)
    difference = found.astype(np.float64) - expected
    spread = float(expected.std()) or 1.0
    return ParityCertificate(
        device=device.name,
        runtime=identity.runtime,
        runtime_version=identity.runtime_version,
        hardware=f"{identity.cpu_model}, {identity.cores} core(s)",
        model_sha256=hashlib.sha256(model).hexdigest(),
        arch=str(net.arch),
        space_fingerprint=net.space_fingerprint,
        n_images=len(images),
        images_sha256=hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest(),
        max_difference=float(np.abs(difference).max()) / spread,
        rms_difference=float(np.sqrt(np.mean(difference**2))) / spread,
        equal_classes=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        reference_accuracy=float((expected.argmax(axis=1) == labels).mean()),
        runtime_accuracy=float((found.argmax(axis=1) == labels).mean()),
        tolerances=tolerances,
    )
