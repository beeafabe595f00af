"""A tiny experiment, and ``hanax`` in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hanax._files import write_atomically
from hanax.experiments import load_experiment
from hanax.experiments._folder import RunFolder, stage_keys
from hanax.experiments._gather import EXPERIMENT_FILE
from hanax.experiments._pipeline import Pipeline, open_pipeline
from hanax.experiments._progress import Silent

TINY = """
seed: 3
data: {path: digits, validation_fraction: 0.3}
space:
  stem_width: 8
  stem_stride: 2
  stage_widths: [8, 8]
  stage_strides: [1, 2]
  stage_activations: [relu, hswish]
  stage_squeeze_excite: [false, true]
  kernel_sizes: [3, 5]
  expand_ratios: [3, 4]
  depths: [1, 2]
  head_width: 16
  feature_width: 16
supernet: {epochs: 3, batch_size: 64, learning_rate: 0.005, n_random_subnets: 1, checkpoint_seconds: 0.5}
accuracy: {archs: 16, n_calibration: 200, n_validation: 300}
devices:
  - {name: onnxruntime-fp32, archs: 16, target_relative_ci: 0.2, max_latency_ms: 1000, max_latency_probability: 0.9}
search: {searcher: {kind: nsga2, population: 20}, evaluations: 200, candidates: 4}
"""

QUANTIZED_TINY = """
seed: 3
data: {path: digits, validation_fraction: 0.3}
space:
  stem_width: 8
  stem_stride: 2
  stage_widths: [8]
  stage_strides: [1]
  stage_activations: [relu]
  stage_squeeze_excite: [false]
  kernel_sizes: [3]
  expand_ratios: [2, 3, 4]
  depths: [1, 2]
  head_width: 16
  feature_width: 16
supernet: {epochs: 1.5, batch_size: 64, learning_rate: 0.005, n_random_subnets: 1, watch_epochs: 0}
quantization: {weights: [int4, int8], activations: [int8], epochs: 0.2}
accuracy: {archs: 12, n_calibration: 100, n_validation: 300}
devices: [{name: onnxruntime-int8, archs: 12, target_relative_ci: 0.5}]
search:
  searcher: {kind: nsga2, population: 20}
  objectives: [accuracy, latency_ms, size_bytes]
  evaluations: 100
  candidates: 2
"""
"""A run that quantizes, with as few different blocks to compile as there can be."""


@dataclass(frozen=True)
class CommandLine:
    """Runs ``hanax`` in processes of its own, with a cache of compiled code that the tests share.

    Attributes:
        settings: More variables of the environment.
    """

    cache: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"HANAX_CACHE": str(self.cache), "COLUMNS": "200"} | dict(self.settings)

    def start(self, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hanax.experiments", *map(str, arguments)],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str | Path, cwd: Path) -> tuple[int, str]:
        """Exit status and output."""
        process = self.start(*arguments, cwd=cwd)
        output, _ = process.communicate(timeout=500)
        return process.returncode, output


@dataclass(frozen=True)
class TinyRun:
    file: Path
    folder: Path
    output: str


def finished_run(command_line: CommandLine, home: Path, text: str) -> TinyRun:
    """A whole run of the experiment `text` in the folder `home`, from the command line."""
    file = home / "tiny.yaml"
    file.write_text(text)
    status, output = command_line.run("run", file, "--out", home / "run", cwd=home)
    assert status == 0, output
    return TinyRun(file, home / "run", output)


@contextmanager
def trained_run(command_line: CommandLine, home: Path, settings: Sequence[str]) -> Iterator[Pipeline]:
    """A run of `TINY` with `settings` in the folder `home`, in this process, as far as its supernet is trained."""
    import jax

    cache = jax.config.jax_compilation_cache_dir
    (home / "tiny.yaml").write_text(TINY)
    experiment = load_experiment(home / "tiny.yaml", settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANAX_CACHE", str(command_line.cache))
        made = open_pipeline(experiment, home / "run", Silent())
        with RunFolder(made.path) as folder:
            write_atomically(made.path / EXPERIMENT_FILE, experiment.model_dump_json().encode())
            folder.write_plan(made.stages())
            keys = stage_keys(made.stages())
            for stage in made.stages()[:2]:
                folder.execute(stage, keys[stage.name])
        yield made
    jax.config.update("jax_compilation_cache_dir", cache)
