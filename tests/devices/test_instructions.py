"""Instruction counts: what qemu counts is exact, so unlike times these numbers may be compared in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hanax.devices import (
    DEVICES,
    AgentError,
    CompileError,
    CostTable,
    Ledger,
    LocalAgent,
    check_parity,
    collect_instructions,
    collect_latency,
    compile_with_iree,
    count_instructions,
    device_statuses,
    identify,
    load_model,
    run_model,
    unload_model,
)
from hanax.devices._requests import count_runs
from hanax.search_spaces import Arch, Graph, SearchSpace

SPEC = DEVICES["ncnn-aarch64-instructions"]


@pytest.fixture(scope="module")
def agent() -> Iterator[LocalAgent]:
    """An agent under qemu, started once."""
    skip_without_emulator()
    with LocalAgent(SPEC) as running:
        yield running


@pytest.fixture(scope="module")
def counts(agent: LocalAgent, space: SearchSpace) -> dict[str, int]:
    """Instructions of the smallest and the largest network."""
    return count_instructions(agent, *ends(space))


def skip_without_emulator() -> None:
    (status,) = [status for status in device_statuses() if status.name == SPEC.name]
    if not status.available:
        pytest.skip(f"{status.missing} is missing; `{status.install}` adds it")


@cache
def model_file(graph: Graph, seed: int = 0) -> bytes:
    from hanax.supernet import random_weights, to_ncnn

    return to_ncnn(graph, random_weights(graph, np.random.default_rng(seed)))


def builder(space: SearchSpace) -> Callable[[Arch], bytes]:
    return lambda arch: model_file(space.graph(arch))


def ends(space: SearchSpace) -> tuple[dict[str, bytes], dict[str, tuple[int, ...]]]:
    """Model files of the smallest and the largest network, and their inputs' shapes."""
    archs = {"smallest": space.smallest, "largest": space.largest}
    models = {name: model_file(space.graph(arch)) for name, arch in archs.items()}
    return models, {name: (1, *space.input_shape(arch)) for name, arch in archs.items()}


# ---- under the emulator ----------------------------------------------------------------------------------------------


def test_two_processes_count_the_same_to_a_tenth_of_a_percent(counts: dict[str, int], space: SearchSpace) -> None:
    with LocalAgent(SPEC) as other:
        again = count_instructions(other, *ends(space), seed=1)
    assert again == pytest.approx(counts, rel=1e-3)


def test_a_larger_network_executes_more(counts: dict[str, int], space: SearchSpace) -> None:
    macs = {"smallest": space.graph(space.smallest).macs, "largest": space.graph(space.largest).macs}
    assert counts["largest"] > counts["smallest"]
    # One vector instruction of this processor does 4 multiply-accumulates; nothing could do with fewer of them.
    assert all(counts[name] > macs[name] / 4 for name in macs)


def test_two_inferences_execute_twice_what_one_does(agent: LocalAgent, space: SearchSpace) -> None:
    models, shapes = ends(space)
    sha256 = load_model(agent, "largest", models["largest"], shapes["largest"], seed=0)
    count_runs(agent, "largest", sha256, 20)  # Python adapts its bytecode in the first runs
    one, two, twenty = (count_runs(agent, "largest", sha256, runs) for runs in (1, 2, 20))
    unload_model(agent, "largest", sha256)
    assert two == pytest.approx(2 * one, rel=5e-3)
    assert twenty == pytest.approx(20 * one, rel=5e-3)


def test_the_numbers_in_the_weights_do_not_matter(
    agent: LocalAgent, counts: dict[str, int], space: SearchSpace
) -> None:
    graph = space.graph(space.largest)
    other = count_instructions(agent, {"largest": model_file(graph, seed=1)}, {"largest": (1, *graph.input_shape)})
    assert other["largest"] == pytest.approx(counts["largest"], rel=1e-3)


def test_the_emulated_runtime_computes_what_the_network_computes(agent: LocalAgent) -> None:
    from hanax.experiments._export import parity_case

    assert check_parity(agent, "a small network", *parity_case(SPEC, 4, seed=0)).max_error < 1e-4


def test_the_emulated_runtime_computes_what_the_same_runtime_computes_here(
    agent: LocalAgent, space: SearchSpace
) -> None:
    (status,) = [status for status in device_statuses() if status.name == "ncnn-fp32"]
    if not status.available:
        pytest.skip(f"{status.missing} is missing; `{status.install}` adds it")
    graph = space.graph(space.largest)
    images = np.random.default_rng(0).standard_normal((1, *graph.input_shape), dtype=np.float32)
    with LocalAgent(DEVICES["ncnn-fp32"]) as here:
        logits = []
        for each in (agent, here):
            sha256 = load_model(each, "largest", model_file(graph), images.shape, seed=0)
            logits.append(run_model(each, "largest", sha256, images))
            unload_model(each, "largest", sha256)
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_what_is_compiled_for_the_emulated_processor_computes_right_and_counts_the_same_twice() -> None:
    from hanax.experiments._export import parity_case

    spec = DEVICES["iree-cortex-a53-instructions"]
    (status,) = [status for status in device_statuses() if status.name == spec.name]
    if not status.available:
        pytest.skip(f"{status.missing} is missing; `{status.install}` adds it")
    model, images, expected = parity_case(spec, 2, seed=0)
    counts = []
    for _ in range(2):
        with LocalAgent(spec) as running:
            assert check_parity(running, "a small network", model, images, expected).max_error < 1e-4
            counts.append(count_instructions(running, {"net": model}, {"net": (1, *images.shape[1:])})["net"])
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)
    assert counts[0] > 100_000


def test_a_module_that_cannot_be_compiled_is_refused_with_the_compilers_words() -> None:
    (status,) = [status for status in device_statuses() if status.name == "iree-fp32"]
    if not status.available:
        pytest.skip(f"{status.missing} is missing; `{status.install}` adds it")
    with pytest.raises(CompileError, match="IREE's compiler failed"):
        compile_with_iree(b"no module")


def test_nothing_of_this_machine_is_in_the_identity_of_an_emulated_one(agent: LocalAgent) -> None:
    identity = identify(agent)
    assert (identity.cpu_model, identity.cores) == ("Arm Cortex-A53 under qemu-user", 1)
    assert agent.request("info")["machine"] == "aarch64"


def test_a_table_of_instructions_is_completed_and_nothing_is_counted_twice(space: SearchSpace, tmp_path: Path) -> None:
    skip_without_emulator()
    archs = [space.smallest, space.largest]
    path, ledger = tmp_path / "table.parquet", Ledger(tmp_path / "ledger.jsonl")
    first = collect_instructions(space, archs[:1], SPEC, builder(space), path, ledger)
    both = collect_instructions(space, archs, SPEC, builder(space), path, ledger)
    assert both.archs() == archs and both.cost == "instructions"
    assert both.costs()[0] == first.costs()[0] < both.costs()[1]
    assert ledger.counts() == {SPEC.name: {"table": 2}}
    assert CostTable.read(path).for_space(space).costs().tolist() == both.costs().tolist()


def test_an_emulated_agent_that_is_killed_is_reported_and_the_table_keeps_the_batches_before(
    space: SearchSpace, tmp_path: Path
) -> None:
    skip_without_emulator()
    agents: list[LocalAgent] = []

    def start(spec: object) -> LocalAgent:
        agents.append(LocalAgent(SPEC))
        return agents[0]

    def build(arch: Arch) -> bytes:
        if arch == space.largest:
            agents[0]._transport.kill()
        return model_file(space.graph(arch))

    path, archs = tmp_path / "table.parquet", [space.smallest, space.largest]
    with pytest.raises(AgentError, match="killed by signal 9"):
        collect_instructions(
            space, archs, SPEC, build, path, Ledger(tmp_path / "ledger"), batch_size=1, start_agent=start
        )
    assert CostTable.read(path).archs() == archs[:1]


# ---- without it ------------------------------------------------------------------------------------------------------


def test_an_agent_that_is_not_emulated_says_that_it_cannot_count(matmul_model: Callable[..., bytes]) -> None:
    with LocalAgent(DEVICES["onnxruntime-fp32"]) as agent:
        sha256 = load_model(agent, "product", matmul_model(1, 8), (1, 1, 8, 8), seed=0)
        with pytest.raises(AgentError, match="count of product: nothing counts instructions here"):
            count_runs(agent, "product", sha256, 1)
        identify(agent)


@pytest.mark.parametrize("lie", ["0", "-5", "None", "'many'", "True", "1.5", "float('inf')"])
def test_a_count_that_cannot_be_true_is_an_error(lying_agent: Callable[..., LocalAgent], lie: str) -> None:
    with lying_agent(f"result['instructions'] = {lie}", op="count") as agent, pytest.raises(AgentError, match="count"):
        count_runs(agent, "model", "00", 1)


def test_counts_that_differ_are_an_error_that_shows_them(lying_agent: Callable[..., LocalAgent]) -> None:
    lie = "result['instructions'] = 20_000_000 + 20_000 * answer['id']"
    with (
        lying_agent(lie, op="count") as agent,
        pytest.raises(AgentError, match=r"count of net: counts of the same inference differ by more than 0\.1%: \["),
    ):
        count_instructions(agent, {"net": b"model"}, {"net": (1, 1, 8, 8)})


def test_a_count_spans_enough_inferences_and_is_of_one(lying_agent: Callable[..., LocalAgent]) -> None:
    lie = "result['instructions'] = 1000 * request['runs']\nassert request['runs'] in (1, 10_000)"
    with lying_agent(lie, op="count") as agent:
        assert count_instructions(agent, {"net": b"model"}, {"net": (1, 1, 8, 8)}) == {"net": 1000}


def test_times_are_not_asked_of_a_counted_device_nor_counts_of_a_measured_one(
    space: SearchSpace, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    arguments = tmp_path / "table.parquet", ledger
    with pytest.raises(ValueError, match="ncnn-aarch64-instructions is a counted device; it has no latencies"):
        collect_latency(space, [space.smallest], SPEC, builder(space), *arguments)
    with pytest.raises(ValueError, match="onnxruntime-fp32 is a measured device; instructions are those of counted"):
        collect_instructions(space, [space.smallest], DEVICES["onnxruntime-fp32"], builder(space), *arguments)
    assert not ledger.path.exists()
