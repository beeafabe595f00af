from __future__ import annotations

import dataclasses
import hashlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hanax.devices import (
    DEVICES,
    AgentError,
    DeviceMismatchError,
    DeviceSpec,
    LatencyTable,
    Ledger,
    LocalAgent,
    Method,
    TableError,
    collect_latency,
)
from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError, mobilenet_v3, unique_rows

SPEC = DEVICES["onnxruntime-fp32"]
BRIEF = Method(warmup_runs=1, min_rounds=6, max_rounds=6, inner_ms=0.2)


@pytest.fixture
def archs(space: SearchSpace) -> list[Arch]:
    codes = space.sample(np.random.default_rng(1), 30)
    return space.decode(codes[unique_rows(codes)][:9])


@pytest.fixture
def build(space: SearchSpace, matmul_model: Callable[..., bytes]) -> Callable[[Arch], bytes]:
    return lambda arch: matmul_model(1 + sum(arch.choices), space.resolution(arch))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tables" / "latency.parquet"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def times_asked(ledger: Ledger) -> Counter[str]:
    return Counter(entry["arch"] for entry in ledger.entries())


def test_a_table_gets_one_row_for_every_architecture(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    progress: list[tuple[int, int]] = []
    table = collect_latency(
        space, archs, SPEC, build, path, ledger, method=BRIEF, batch_size=4, on_progress=lambda *at: progress.append(at)
    )
    assert table.archs("table") == archs
    assert LatencyTable.read(path).archs("table") == archs
    assert times_asked(ledger) == Counter(map(str, archs))
    assert ledger.counts() == {SPEC.name: {"table": 9}}
    assert (progress[0], progress[-1]) == ((0, 9), (9, 9))
    assert progress == sorted(progress)
    assert table.for_space(space).frame["device"].unique().tolist() == [SPEC.name]


def test_a_collection_that_stopped_half_way_goes_on_and_measures_nothing_twice(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    def build_until_the_fifth(arch: Arch) -> bytes:
        if arch == archs[4]:
            raise KeyboardInterrupt
        return build(arch)

    with pytest.raises(KeyboardInterrupt):
        collect_latency(space, archs, SPEC, build_until_the_fifth, path, ledger, method=BRIEF, batch_size=2)
    half = LatencyTable.read(path).frame
    assert half["arch"].tolist() == [str(arch) for arch in archs[:4]]

    progress: list[tuple[int, int]] = []
    table = collect_latency(
        space, archs, SPEC, build, path, ledger, method=BRIEF, on_progress=lambda *at: progress.append(at)
    )
    assert progress[0] == (4, 9)
    assert times_asked(ledger) == Counter(map(str, archs))
    assert table.frame["latency_ms"].tolist()[:4] == half["latency_ms"].tolist()


def test_equal_networks_are_measured_once_and_winners_again(
    space: SearchSpace, build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    shallow = space.arch({"stage1.depth": 1})
    same = Arch(tuple(np.where(space.active(space.encode([shallow]))[0], shallow.choices, 1).tolist()))
    assert same != shallow
    collect_latency(space, [same, shallow, same], SPEC, build, path, ledger, method=BRIEF)
    table = collect_latency(space, [shallow], SPEC, build, path, ledger, method=BRIEF, purpose="winner")
    assert table.archs("table") == table.archs("winner") == [shallow]
    assert ledger.counts() == {SPEC.name: {"table": 1, "winner": 1}}


def test_a_killed_collection_keeps_its_batches_and_goes_on(
    space: SearchSpace,
    space_code: str,
    archs: list[Arch],
    build: Callable[[Arch], bytes],
    path: Path,
    ledger: Ledger,
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for arch in archs:
        (models / str(arch)).write_bytes(build(arch))
    script = tmp_path / "collect.py"
    script.write_text(
        "import pathlib\n"
        "from hanax.devices import DEVICES, Ledger, Method, collect_latency\n"
        "from hanax.search_spaces import Arch, mobilenet_v3\n"
        f"space, archs = {space_code}, {archs!r}\n"
        f"build = lambda arch: pathlib.Path({str(models)!r}, str(arch)).read_bytes()\n"
        f"collect_latency(space, archs, DEVICES[{SPEC.name!r}], build, {str(path)!r}, Ledger({str(ledger.path)!r}),\n"
        "    method=Method(min_rounds=6, max_rounds=6), batch_size=2, on_progress=lambda *at: print(*at, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line.split()[0]) >= 5:
                process.send_signal(signal.SIGKILL)
                break
    kept = LatencyTable.read(path).archs("table")
    assert kept == archs[: len(kept)]
    assert 4 <= len(kept) < 9
    asked_in_vain = set(times_asked(ledger)) - set(map(str, kept))
    assert len(asked_in_vain) <= 2

    table = collect_latency(space, archs, SPEC, build, path, ledger, method=BRIEF)
    assert table.archs("table") == archs
    assert times_asked(ledger) == Counter(map(str, archs)) + Counter(asked_in_vain)
    assert ledger.torn() == []


def test_a_device_that_dies_leaves_the_batches_before(
    space: SearchSpace,
    archs: list[Arch],
    path: Path,
    ledger: Ledger,
    lying_agent: Callable[..., LocalAgent],
) -> None:
    dying = lying_agent(f"if {hash_of(archs[5])!r} == request['sha256']: sys.exit('no power')")

    def start_agent(spec: DeviceSpec) -> LocalAgent:
        return dying

    with pytest.raises(AgentError, match=rf"bench of {archs[5]}(?s:.*)no power"):
        collect_latency(space, archs, SPEC, bytes_of, path, ledger, method=BRIEF, batch_size=2, start_agent=start_agent)
    assert LatencyTable.read(path).archs("table") == archs[:4]


def bytes_of(arch: Arch) -> bytes:
    return str(arch).encode()


def hash_of(arch: Arch) -> str:
    return hashlib.sha256(bytes_of(arch)).hexdigest()


def must_not_build(arch: Arch) -> bytes:
    raise AssertionError("nothing may be measured")


def test_a_table_of_another_space_is_refused_before_anything_is_measured(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    collect_latency(space, archs[:1], SPEC, build, path, ledger, method=BRIEF)
    other = mobilenet_v3()
    with pytest.raises(SpaceMismatchError, match=f"{space.fingerprint}.*{other.fingerprint}"):
        collect_latency(other, [other.largest], SPEC, must_not_build, path, ledger)


def test_a_table_of_another_device_is_refused_before_anything_is_measured(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    collect_latency(space, archs[:1], SPEC, build, path, ledger, method=BRIEF)
    two_threads = dataclasses.replace(SPEC, threads=2)
    with pytest.raises(DeviceMismatchError, match=r"1 thread.* 2 thread"):
        collect_latency(space, archs, two_threads, must_not_build, path, ledger)


def test_a_file_that_is_no_table_is_refused_and_left_alone(
    space: SearchSpace, archs: list[Arch], tmp_path: Path, ledger: Ledger
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    with pytest.raises(TableError, match="not a readable Parquet file"):
        collect_latency(space, archs, SPEC, must_not_build, notes, ledger)
    assert notes.read_text() == "precious"


def test_an_unwritable_folder_is_found_out_before_anything_is_measured(
    space: SearchSpace, archs: list[Arch], tmp_path: Path, ledger: Ledger
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        collect_latency(space, archs, SPEC, must_not_build, tmp_path / "file" / "table.parquet", ledger)
    assert ledger.counts() == {}


def test_an_architecture_of_another_space_is_refused(space: SearchSpace, path: Path, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="decisions"):
        collect_latency(space, [mobilenet_v3().largest], SPEC, must_not_build, path, ledger)


def test_a_batch_holds_at_least_one_model(space: SearchSpace, archs: list[Arch], path: Path, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        collect_latency(space, archs, SPEC, must_not_build, path, ledger, batch_size=0)
