"""The same run from Python, on arrays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TINY, CommandLine

pytestmark = pytest.mark.slow

PROGRAM = """
import hanax, yaml
from sklearn.datasets import load_digits

digits = load_digits()
images, labels = (digits.images / 16.0).astype("float32")[:900], digits.target[:900]
sections = yaml.safe_load({tiny!r})
outcome = hanax.search(
    (images, labels), out={out!r}, devices=[dict(sections["devices"][0])], space=sections["space"],
    supernet=sections["supernet"] | {{"epochs": 1}}, accuracy={{"archs": 12, "n_calibration": 100}},
    search={{"evaluations": 60, "candidates": 2}},
)
front = outcome.front("onnxruntime-fp32")
assert len(front) >= 1 and isinstance(front["settings"][0], dict)
assert (outcome.path / front["model_path"][0]).exists()
try:
    outcome.front("none")
except ValueError as error:
    print(error)
"""


def test_search_from_python_returns_the_front_of_each_device(command_line: CommandLine, tmp_path: Path) -> None:
    program = PROGRAM.format(tiny=TINY, out=str(tmp_path / "run"))
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=command_line.environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "this run has no device 'none'; it has onnxruntime-fp32" in ran.stdout


def test_a_search_from_python_can_quantize(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hanax.experiments import Experiment, search

    class Carried(Exception):
        pass

    def carry_out(experiment: Experiment, path: Path, **_: object) -> None:
        assert experiment.quantization is not None
        assert experiment.quantization.weights == ("int8",)
        assert [device.name for device in experiment.devices] == ["onnxruntime-int8"]
        raise Carried

    monkeypatch.setattr("hanax.experiments._run.run_experiment", carry_out)
    with pytest.raises(Carried):
        search("digits", out=tmp_path / "run", quantization={"weights": ["int8"], "activations": ["int8"]})
