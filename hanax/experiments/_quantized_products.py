"""What a run that quantizes ships: integer models, beside what the same architectures are in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hanax.experiments._export import CHUNK, export_integers, latency_model_builder
from hanax.experiments._products import Columns, measured_latencies
from hanax.search_spaces import Arch, SearchSpace, float_arch, format_name, policy_of

if TYPE_CHECKING:
    from hanax.devices import DeviceSpec
    from hanax.experiments._config import DeviceConfig
    from hanax.experiments._pipeline import Pipeline
    from hanax.supernet import QuantizedNet


def policy_text(space: SearchSpace, arch: Arch) -> str:
    """The bits of weights and activations of every block: ``stem 8/8, stage1 4/6 4/8, head 8/8``.

    ``8/8 throughout``, if they are the same everywhere.
    """
    policy = policy_of(space, arch)
    texts = {slot: "/".join(format_name(code).removeprefix("int") for code in pair) for slot, pair in policy.items()}
    if len(set(texts.values())) == 1:
        return f"{next(iter(texts.values()))} throughout"
    parts = groupby(texts, key=lambda slot: slot.partition(".")[0])
    return ", ".join(f"{part} {' '.join(texts[slot] for slot in slots)}" for part, slots in parts)


def float_device(device: DeviceConfig) -> DeviceSpec:
    """The device `device`, which runs integer models, with models in float32."""
    from hanax.devices import find_device
    from hanax.experiments._deploy import float_twin

    return device.model_copy(update={"name": float_twin(find_device(device.name)).name}).spec()


@dataclass(frozen=True)
class IntegerProducts:
    """Networks as integers, each in its own formats."""

    pipeline: Pipeline
    device: DeviceConfig

    @cached_property
    def _nets(self) -> dict[Arch, QuantizedNet]:
        return {}

    def net(self, arch: Arch) -> QuantizedNet:
        """`arch` in integers."""
        if arch not in self._nets:
            self._nets[arch] = self.pipeline.searched_evaluator.quantize(arch)
        return self._nets[arch]

    def model(self, arch: Arch) -> bytes:
        """The model file of `arch` for the device."""
        spec = self.device.spec()
        return export_integers(self.net(arch), spec.model_format, spec.batch)

    def count_correct(self, arch: Arch, images: np.ndarray, labels: np.ndarray) -> int:
        """How many of the byte images the exported model of `arch` classifies correctly, by onnxruntime."""
        return count_correct_integers(self.net(arch), images, labels)

    def beside(self, archs: Sequence[Arch], folder: Path) -> Columns:
        """Policy, accuracy of the fake-quantized network on the images of the search, and what it is in float32.

        Latencies in float32 are in the table ``float.parquet`` in `folder`.
        """
        pipeline, spec = self.pipeline, float_device(self.device)
        space = pipeline.searched_space
        in_float = [float_arch(space, arch) for arch in archs]
        build = latency_model_builder(pipeline.space, spec.model_format, spec.batch, pipeline.experiment.seed)
        table = pipeline.measure(self.device, spec, pipeline.space, in_float, build, folder / "float.parquet")
        return {
            "policy": [policy_text(space, arch) for arch in archs],
            **{f"float_{name}": values for name, values in measured_latencies(table, in_float).items()},
            "float_accuracy": pipeline.evaluator.accuracies(in_float),
            "promised_accuracy": pipeline.searched_evaluator.accuracies(archs),
        }


def count_correct_integers(net: QuantizedNet, images: np.ndarray, labels: np.ndarray) -> int:
    """How many of the byte images the ONNX file of `net` classifies correctly."""
    from hanax.supernet import run_onnx

    model = export_integers(net, "onnx-int8", None)
    logits = np.concatenate(
        [run_onnx(model, net.normalise(images[start : start + CHUNK])) for start in range(0, len(images), CHUNK)]
    )
    return int((logits.argmax(axis=1) == labels).sum())
