from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import subprocess
import sys

import pytest

from hanax.devices import DEVICES, UnknownDeviceError, device_statuses, find_device


def test_a_device_is_found_by_its_name() -> None:
    for name, spec in DEVICES.items():
        assert find_device(name) is spec
        assert spec.name == name


def test_an_unknown_device_is_answered_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownDeviceError, match=r"unknown device 'onnxruntime-fp31'") as error:
        find_device("onnxruntime-fp31")
    assert all(name in str(error.value) for name in DEVICES)
    assert "did you mean 'onnxruntime-fp32'?" in str(error.value)


def test_a_device_needs_at_least_one_thread_and_one_image() -> None:
    with pytest.raises(ValueError, match="at least 1; got threads=0, batch=1"):
        dataclasses.replace(DEVICES["xla-fp32"], threads=0)


def test_what_is_installed_is_available() -> None:
    statuses = {status.name: status for status in device_statuses() if status.kind != "modelled"}
    assert list(statuses) == list(DEVICES)
    assert all(statuses[name].available for name in ("onnxruntime-fp32", "onnxruntime-int8", "xla-fp32"))
    for status in statuses.values():
        assert (status.missing is None) == (status.install is None) == status.available


def test_a_missing_runtime_is_named_with_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without_onnxruntime(name: str) -> importlib.machinery.ModuleSpec | None:
        return None if name == "onnxruntime" else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_onnxruntime)
    status = device_statuses()[0]
    assert not status.available
    assert status.missing == "the Python package onnxruntime"
    assert status.install == "python -m pip install onnxruntime"


def test_importing_devices_loads_no_runtime_and_no_data_frames() -> None:
    heavy = "pandas", "pyarrow", "onnxruntime", "onnx", "jax", "scipy"
    code = f"import sys, hanax.devices; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
