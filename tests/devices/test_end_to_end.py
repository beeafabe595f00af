from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hanax.devices import (
    DEVICES,
    END_TO_END,
    STAGES,
    AgentError,
    DeviceTable,
    Ledger,
    LocalAgent,
    Method,
    collect_end_to_end,
    measure_end_to_end,
)
from hanax.devices import agent as agent_module
from hanax.search_spaces import Arch, SearchSpace

SPEC = DEVICES["onnxruntime-fp32"]
BRIEF = Method(warmup_runs=0, min_rounds=6, max_rounds=6, inner_ms=0.2, inner_runs=2)
SHAPE = {"model": (1, 1, 8, 8)}

SCRIPT = """
time.sleep(2e-3)
count = globals().get('count', -1) + 1
result['runs_ns'] = [[100_000 + 1000 * count, 20_000, 500_000, 50_000], [150_000, 10_000, 600_000, 40_000]]
result['wall_ns'], result['cpu_ns'] = 1_600_000, 1_600_000
"""
"""Two runs a round; the first run's preprocessing takes longer by 1 us from round to round."""


@pytest.fixture
def scripted(lying_agent: Callable[..., LocalAgent]) -> Callable[[str], dict[str, Any]]:
    def measured(lie: str) -> dict[str, Any]:
        with lying_agent(lie, op="stages") as agent:
            return measure_end_to_end(agent, {"model": b""}, SHAPE, {"model": 8}, BRIEF)["model"]

    return measured


def test_every_part_has_the_median_of_its_least_times_and_its_interval(
    scripted: Callable[[str], dict[str, Any]],
) -> None:
    row = scripted(SCRIPT)
    assert row["preprocess_ms"] == pytest.approx(0.1025)
    assert (row["preprocess_low_ms"], row["preprocess_high_ms"]) == (pytest.approx(0.1), pytest.approx(0.105))
    assert (row["copy_ms"], row["compute_ms"], row["postprocess_ms"]) == (0.01, 0.5, 0.04)
    # The total is of one run: 100 + 20 + 500 + 50 us and more, not the sum of the parts' least times.
    assert row["total_ms"] == pytest.approx(0.6725)
    assert (row["n_runs"], row["n_rounds"], row["rejected_rounds"], row["converged"]) == (12, 6, 0, True)


def test_rounds_with_stolen_time_are_rejected(scripted: Callable[[str], dict[str, Any]]) -> None:
    row = scripted(SCRIPT + "result['cpu_ns'] = 1_000_000 if count == 3 else 1_600_000")
    assert (row["rejected_rounds"], row["converged"]) == (1, False)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("result.clear()", "runs_ns must be a list of 2 or more durations; it is None"),
        (
            "result['runs_ns'] = [[1, 2, 3]] * 2",
            r"a run must be 4 durations \(preprocess, copy, compute, postprocess\)",
        ),
        ("result['runs_ns'] = [7, 8]", "a run must be 4 durations"),
        ("result['runs_ns'] = [[1, 2, 3, -4]] * 2", "must be a finite number of at least 0; it is -4"),
        ("result['runs_ns'] = [[1, 2, 'x', 4]] * 2", "must be a finite number of at least 0; it is 'x'"),
        ("result['runs_ns'] = [[0, 0, 0, 0]] * 2", "must be a finite number of at least 1; it is 0"),
        ("result['wall_ns'] = 900_000", "runs of 1.47 ms together in a round of 0.9 ms"),
        ("result['wall_ns'] = 1e12", "it reports a round of 1e[+]06 ms"),
        ("result['cpu_ns'] = None", "cpu_ns must be a finite number of at least 0; it is None"),
    ],
)
def test_parts_that_cannot_be_true_are_refused(
    lie: str, message: str, scripted: Callable[[str], dict[str, Any]]
) -> None:
    with pytest.raises(AgentError, match=rf"stages of model: .*{message}"):
        scripted(SCRIPT + lie)


def test_a_runtime_in_another_process_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_module.Agent("onnxruntime", 1)
    monkeypatch.setattr(agent_module, "IN_ANOTHER_PROCESS", frozenset({"onnxruntime"}))
    agent.loaded["0"] = agent_module.Model(lambda x: x, lambda x: x, list), None
    answer = agent.answer({"id": 1, "op": "stages", "sha256": "0", "inner_ms": 1.0, "inner_runs": 1, "image_size": 8})
    assert "onnxruntime computes in another process: copying cannot be told from computing there" in answer["error"]


@pytest.mark.parametrize(("size", "resized"), [(4, 4), (8, 4), (2, 4)])
def test_the_agent_times_the_parts_of_a_model_that_sleeps(size: int, resized: int) -> None:
    seen: list[np.ndarray] = []

    def nap(seconds: float) -> Callable[[Any], Any]:
        def step(value: Any) -> Any:
            time.sleep(seconds)
            return value

        return step

    def run(image: np.ndarray) -> list[np.ndarray]:
        seen.append(image)
        time.sleep(0.02)
        return [np.zeros((2, 5), np.float32)]

    agent = agent_module.Agent("onnxruntime", 1)
    agent.loaded["0"] = agent_module.Model(nap(0.01), run, nap(0.005)), None
    agent.input_shapes["0"] = [2, 3, resized, resized]
    answer = agent.answer(
        {"id": 1, "op": "stages", "sha256": "0", "inner_ms": 0.0, "inner_runs": 3, "image_size": size}
    )
    runs = np.array(answer["result"]["runs_ns"]) / 1e6
    assert runs.shape == (3, 4)
    assert (runs >= [0, 10, 20, 5]).all()
    assert runs.sum() <= answer["result"]["wall_ns"] / 1e6
    assert all(image.shape == (2, 3, resized, resized) and image.dtype == np.float32 for image in seen)
    assert all(image.flags.c_contiguous for image in seen)
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, size, size, 3), dtype=np.uint8)
    nearest = [index * size // resized for index in range(resized)]
    expected = (pixels[:, nearest][:, :, nearest].transpose(0, 3, 1, 2) - 127.5) / 64
    assert seen[0] == pytest.approx(expected)


def test_networks_are_measured_end_to_end_by_onnxruntime_and_none_twice(
    space: SearchSpace, matmul_model: Callable[..., bytes], tmp_path: Path
) -> None:
    archs = space.decode(space.canonical(space.encode([space.largest, space.smallest])))
    ledger, path = Ledger(tmp_path / "ledger.jsonl"), tmp_path / "table.parquet"

    def build(arch: Arch) -> bytes:
        return matmul_model(2 + sum(arch.choices), space.resolution(arch))

    def collect(image_size: int | None) -> DeviceTable:
        return collect_end_to_end(space, archs, SPEC, build, path, ledger, image_size=image_size, method=BRIEF)

    own = collect(None)
    assert own.keys() == [(str(arch), str(space.resolution(arch))) for arch in archs]
    assert collect(None).frame.equals(own.frame)
    both = collect(64)
    assert both.keys() == [*own.keys(), *[(str(arch), "64") for arch in archs]]
    assert ledger.counts() == {SPEC.name: {"end-to-end": 4}}
    for row in DeviceTable.read(END_TO_END, path).frame.to_dict("records"):
        assert all(row[f"{stage}_ms"] < row["total_ms"] for stage in STAGES)
        for part in (*STAGES, "total"):
            assert 0 <= row[f"{part}_low_ms"] <= row[f"{part}_ms"] <= row[f"{part}_high_ms"]
