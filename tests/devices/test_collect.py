from __future__ import annotations

import dataclasses
import hashlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import limit_files

from hanax._files import locked
from hanax.devices import (
    DEVICES,
    AgentError,
    BusyMachineError,
    DeviceMismatchError,
    DeviceSpec,
    InUseError,
    LatencyTable,
    Ledger,
    LoadGuard,
    LoadWatch,
    LocalAgent,
    Method,
    TableError,
    collect_latency,
)
from hanax.devices._local_agent import AGENT_FILE
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


def test_a_table_that_another_process_measures_is_left_alone(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    with locked(path), pytest.raises(InUseError, match=r"is in use by process \d+"):
        collect_latency(space, archs, SPEC, build, path, ledger, method=BRIEF)
    assert not path.exists() and not ledger.entries()


def test_networks_for_different_purposes_take_turns_and_are_counted_apart(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    purposes: dict[Arch, Any] = {arch: "held-out" if number % 2 else "table" for number, arch in enumerate(archs[:4])}
    for _ in range(2):  # the second time nothing is missing
        table = collect_latency(
            space, list(purposes), SPEC, build, path, ledger, method=BRIEF, purpose=purposes, batch_size=4
        )
    assert set(table.archs("table")) == {archs[0], archs[2]}
    assert set(table.archs("held-out")) == {archs[1], archs[3]}
    assert ledger.counts() == {SPEC.name: {"table": 2, "held-out": 2}}


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


@pytest.mark.parametrize("kill_at", [5, 14])
def test_a_killed_collection_keeps_its_batches_and_goes_on(
    kill_at: int,
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
        "    passes=2, method=Method(min_rounds=6, max_rounds=6), batch_size=2,\n"
        "    on_progress=lambda *at: print(*at, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line.split()[0]) >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
    half = LatencyTable.read(path)
    kept = Counter({str(arch): 1 + (arch in half.archs("table", passes=2)) for arch in half.archs("table")})
    assert half.archs("table") == archs[: len(half.archs("table"))]
    assert kill_at - 1 <= kept.total() < 18
    asked_in_vain = times_asked(ledger) - kept
    assert asked_in_vain.total() <= 2

    table = collect_latency(space, archs, SPEC, build, path, ledger, passes=2, method=BRIEF)
    assert table.archs("table", passes=2) == archs
    assert times_asked(ledger) == Counter({str(arch): 2 for arch in archs}) + asked_in_vain
    assert ledger.torn() == []
    firsts = [of_passes[: kept[arch]] for arch, of_passes in table.frame[["arch", "pass_latency_ms"]].values]
    known = dict(half.frame[["arch", "pass_latency_ms"]].values)
    assert firsts == [known.get(str(arch), []) for arch in archs]


def test_passes_follow_each_other_with_new_agents_and_in_another_order(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    agents: list[LocalAgent] = []
    progress: list[tuple[int, int]] = []

    def start_agent(spec: DeviceSpec) -> LocalAgent:
        agents.append(LocalAgent(spec))
        return agents[-1]

    table = collect_latency(
        space, archs, SPEC, build, path, ledger, passes=2, method=BRIEF, batch_size=4, start_agent=start_agent,
        on_progress=lambda *at: progress.append(at),
    )  # fmt: skip
    asked = [entry["arch"] for entry in ledger.entries()]
    assert len(agents) == 2
    assert asked[:9] == list(map(str, archs))
    assert sorted(asked[9:]) == sorted(asked[:9])
    assert asked[9:] != asked[:9]
    assert (progress[0], progress[-1]) == ((0, 18), (18, 18))
    assert progress == sorted(progress)
    assert table.archs("table", passes=2) == table.archs("table") == archs
    reliability = table.reliability()
    assert reliability is not None
    assert reliability.n == 9


def test_a_second_pass_can_come_later_and_is_not_done_again(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    once = collect_latency(space, archs, SPEC, build, path, ledger, method=BRIEF)
    assert once.reliability() is None
    twice = collect_latency(space, archs, SPEC, build, path, ledger, passes=2, method=BRIEF)
    again = collect_latency(space, archs, SPEC, must_not_build, path, ledger, passes=2, method=BRIEF)
    assert times_asked(ledger) == Counter({str(arch): 2 for arch in archs})
    firsts = [of_passes[0] for of_passes in again.frame["pass_latency_ms"]]
    assert firsts == once.frame["latency_ms"].tolist()
    assert again.frame["latency_ms"].tolist() == twice.frame["latency_ms"].tolist()


def test_a_busy_machine_that_is_refused_leaves_the_batches_before(
    space: SearchSpace,
    archs: list[Arch],
    path: Path,
    ledger: Ledger,
    lying_agent: Callable[..., LocalAgent],
) -> None:
    """A batch asks for stats four times; from the ninth time on the machine is busy."""
    lie = "count = globals().get('count', 0) + 1\nresult.update(busy_share=0.9 if count > 8 else 0.0, busy_over_s=0.1)"
    said: list[str] = []
    watch = LoadWatch(LoadGuard("refuse", wait_s=0.0, probe_s=0.001), said.append)
    with pytest.raises(BusyMachineError, match="other processes have 90% of the cores"):
        collect_latency(
            space, archs, SPEC, bytes_of, path, ledger, method=BRIEF, batch_size=2, watch=watch,
            start_agent=lambda spec: lying_agent(lie, op="stats"),
        )  # fmt: skip
    assert LatencyTable.read(path).archs("table") == archs[:4]
    assert LatencyTable.read(path).frame["busy_share"].tolist() == [0.0] * 4


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


LIES = {
    "zero": ("bench", "result['runs_ns'][0] = 0", "it is 0"),
    "not a number": ("bench", "result['wall_ns'] = float('nan')", "NaN is not a number"),
    "negative": ("bench", "result['cpu_ns'] = -1", "it is -1"),
    "text": ("bench", "result['runs_ns'][0] = 'fast'", "it is 'fast'"),
    "hangs": ("bench", "time.sleep(1000)", "no answer within 4 s; it was killed"),
    "dies": ("load", "os.kill(os.getpid(), 9)", "killed by signal 9"),
    "fills its disk": ("load", "raise OSError(28, 'No space left on device')", "exit status 1.*(?s:.*)No space left"),
    "floods us": ("load", "os.write(2, b'x' * 10**7)\nprint('x' * 2**25)", "more than 16777216 bytes without a line"),
    "answers slowly": (
        "load",
        "for c in json.dumps(answer): print(c, end='', flush=True); time.sleep(1)",
        "within 4 s",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_whatever_a_device_does_with_one_network_the_table_keeps_the_batches_before_and_goes_on_later(
    lie: str,
    space: SearchSpace,
    archs: list[Arch],
    path: Path,
    ledger: Ledger,
    lying_agent: Callable[..., LocalAgent],
) -> None:
    op, code, message = LIES[lie]
    code = "\n    ".join(f"if request['sha256'] == {hash_of(archs[5])!r}:\n{code}".splitlines())
    agents = iter([lying_agent(code, op=op, timeout_s=4.0 if "sleep" in code else 20.0)])

    def collect(start_agent: Callable[[DeviceSpec], LocalAgent]) -> LatencyTable:
        return collect_latency(
            space, archs[:8], SPEC, bytes_of, path, ledger, method=BRIEF, batch_size=2, start_agent=start_agent
        )

    with pytest.raises(AgentError, match=rf"{op} of {archs[5]}: .*{message}") as error:
        collect(lambda spec: next(agents))
    assert len(str(error.value)) < 4000
    assert LatencyTable.read(path).archs("table") == archs[:4]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [f".{path.name}.lock", path.name]
    assert collect(lambda spec: lying_agent("pass")).archs("table") == archs[:8]
    assert times_asked(ledger) == Counter(map(str, [*archs[:8], *archs[4:6]]))


def test_a_model_that_is_damaged_on_the_way_is_not_measured(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    victim = hashlib.sha256(build(archs[1])).hexdigest()
    damaging = (
        f"import runpy; agent = runpy.run_path({str(AGENT_FILE)!r}); put = agent['Agent'].put\n"
        f"def damage(self, sha256, base64): return put(self, sha256, 'AAAA' if sha256 == {victim!r} else base64)\n"
        "agent['Agent'].put = damage; agent['main'](['--runtime', 'onnxruntime'])"
    )
    command = [sys.executable, "-c", damaging]
    with pytest.raises(AgentError, match=rf"put of {archs[1]}: wrong checksum: 3 bytes .* came for {victim}"):
        collect_latency(
            space, archs[:2], SPEC, build, path, ledger, method=BRIEF, batch_size=1,
            start_agent=lambda spec: LocalAgent(spec, command=command),
        )  # fmt: skip
    assert LatencyTable.read(path).archs("table") == archs[:1]


def test_a_full_disk_here_keeps_the_table_as_it_was(
    space: SearchSpace, archs: list[Arch], build: Callable[[Arch], bytes], path: Path, ledger: Ledger
) -> None:
    table = collect_latency(space, archs[:2], SPEC, build, path, ledger, method=BRIEF)
    add_rows = (
        "import sys; from hanax.devices import LatencyTable\n"
        "table = LatencyTable.read(sys.argv[1])\n"
        "row = table.frame.to_dict('records')[0]\n"
        "table.append([row | {'arch': f'{number}.{number}'} for number in range(500)]).write(sys.argv[1])"
    )
    command = limit_files([sys.executable, "-c", add_rows, str(path)], path.stat().st_size + 10)
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in ran.stderr
    assert LatencyTable.read(path).frame.equals(table.frame)


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
    with pytest.raises(ValueError, match="must be at least 1; got batch_size=0, passes=1"):
        collect_latency(space, archs, SPEC, must_not_build, path, ledger, batch_size=0)
    with pytest.raises(ValueError, match="must be at least 1; got batch_size=12, passes=0"):
        collect_latency(space, archs, SPEC, must_not_build, path, ledger, passes=0)
