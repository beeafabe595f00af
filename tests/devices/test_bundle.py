from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import limit_files

from hanax.devices import (
    DEVICES,
    BundleError,
    DeviceMismatchError,
    LatencyTable,
    Ledger,
    LocalAgent,
    Method,
    TableError,
    identify,
    import_results,
    read_results,
    write_bundle,
)
from hanax.devices._board import chained, parse_results
from hanax.devices._bundle import RUN_PY, TRAVELLERS
from hanax.devices._local_agent import AGENT_FILE
from hanax.search_spaces import Arch, SearchSpace, unique_rows

SPEC = DEVICES["onnxruntime-fp32"]
BRIEF = Method(warmup_runs=1, min_rounds=6, max_rounds=8, inner_ms=0.2)
SITE = Path(np.__file__).parents[1]


@dataclass(frozen=True)
class Board:
    """An unpacked bundle in a folder that holds nothing else."""

    zip: Path
    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results.jsonl"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(self.folder / "run.py"), *arguments]

    def run(self, *arguments: str, file_limit: int | None = None) -> tuple[int, str]:
        """Exit status and output of ``run.py``, in a folder where nothing of Hanax is."""
        ran = subprocess.run(
            limit_files(self.command(*arguments), file_limit),
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return ran.returncode, ran.stdout + ran.stderr

    def replace_agent(self, program: str) -> None:
        (self.folder / "hanax" / "devices" / "agent.py").write_text(program)

    def events(self) -> list[dict[str, Any]]:
        return parse_results(self.results.read_bytes())[0]

    def rewrite(self, events: Sequence[dict[str, Any]]) -> None:
        """Store events with right checksums: what somebody could do who knows the format."""
        check, lines = "", []
        for event in events:
            check = chained(check, event)
            lines.append(json.dumps({**event, "check": check}) + "\n")
        self.results.write_text("".join(lines))


@pytest.fixture(scope="module")
def archs(space: SearchSpace) -> list[Arch]:
    codes = space.sample(np.random.default_rng(1), 30)
    return space.decode(codes[unique_rows(codes)][:5])


@pytest.fixture(scope="module")
def bundle(
    space: SearchSpace, archs: list[Arch], matmul_model: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle.zip"

    def build(spec: object, arch: Arch) -> bytes:
        return matmul_model(1 + sum(arch.choices), space.resolution(arch))

    write_bundle(path, space, archs, [SPEC], build, seed=3, method=BRIEF, batch_size=2, timeout_s=20.0)
    return path


def unpacked(bundle: Path, folder: Path) -> Board:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    return Board(bundle, folder)


@pytest.fixture
def board(bundle: Path, tmp_path: Path) -> Board:
    return unpacked(bundle, tmp_path / "board")


@pytest.fixture(scope="module")
def honest_results(bundle: Path, lying_program: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an honest machine gives back."""
    honest = unpacked(bundle, tmp_path_factory.mktemp("honest"))
    honest.replace_agent(lying_program("pass"))
    status, output = honest.run()
    assert status == 0, output
    return honest.results.read_bytes()


@pytest.fixture
def measured(board: Board, honest_results: bytes) -> Board:
    board.results.write_bytes(honest_results)
    return board


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python that has onnxruntime and numpy, and no other package."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in SITE.iterdir():
        if entry.name.startswith(("numpy", "onnxruntime")):
            (site / entry.name).symlink_to(entry)
    program = tmp_path / "bare_python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    return str(program)


# ---- a bundle and what it gives --------------------------------------------------------------------------------------


def test_a_bare_python_measures_a_bundle_and_the_import_is_a_table(
    board: Board, bare_python: str, space: SearchSpace, archs: list[Arch], tmp_path: Path
) -> None:
    status, output = board.run("--python", bare_python)
    assert status == 0, output
    assert "5 of 5 measurements are in" in output
    found, tables = import_results(board.results, board.zip, tmp_path / "tables")
    path, table = tables[SPEC.name]
    assert path == tmp_path / "tables" / "onnxruntime-fp32.parquet"
    assert LatencyTable.read(path).for_space(space).archs("table") == archs
    assert table.frame["n_rounds"].between(6, 8).all()
    assert (found.failures, found.torn) == ({}, False)
    assert found.missing == {SPEC.name: []}
    assert Ledger(tmp_path / "tables" / "onnxruntime-fp32.ledger.jsonl").counts() == {SPEC.name: {"table": 5}}
    with LocalAgent(SPEC) as here:
        assert table.for_device(identify(here)).device_description == str(identify(here))


def test_the_statistics_are_those_of_the_recorded_rounds(measured: Board) -> None:
    net = next(event for event in measured.events() if event["event"] == "net")
    row = read_results(measured.results, measured.zip).measurements[SPEC.name][Arch.parse(net["arch"])][0]
    clean = [round_ for round_ in net["rounds"] if round_["cpu_ns"] >= 0.95 * round_["wall_ns"]]
    assert row.latency_ms == pytest.approx(np.median([min(round_["runs_ns"]) for round_ in clean]) / 1e6)
    assert row.min_ms == pytest.approx(min(min(round_["runs_ns"]) for round_ in clean) / 1e6)
    assert row.n_rounds == len(clean)
    assert row.measured_at == net["measured_at"]


def test_the_same_arguments_give_the_same_zip_and_a_model_is_in_it_once(
    space: SearchSpace, archs: list[Arch], tmp_path: Path
) -> None:
    again = [DEVICES["onnxruntime-fp32"], DEVICES["xla-fp32"]]
    for name in ("first.zip", "second.zip"):
        write_bundle(tmp_path / name, space, archs, again, lambda spec, arch: str(arch).encode(), seed=3)
    first, second = (
        {name: archive.read(name) for name in archive.namelist()}
        for archive in map(zipfile.ZipFile, (tmp_path / "first.zip", tmp_path / "second.zip"))
    )
    assert {**first, "README.txt": b"", "manifest.json": b""} == {**second, "README.txt": b"", "manifest.json": b""}
    models = [name for name in first if name.startswith("models/")]
    assert len(models) == len(archs)
    assert all(hashlib.sha256(first[name]).hexdigest() == Path(name).name for name in models)
    assert len(json.loads(first["manifest.json"])["nets"]) == 2 * len(archs)


def test_the_readme_says_what_to_run_and_what_to_install(board: Board) -> None:
    readme = (board.folder / "README.txt").read_text()
    assert "python3 run.py" in readme
    assert "python3 -m pip install onnxruntime" in readme
    assert "hanax import-results results.jsonl --bundle bundle.zip" in readme


def test_what_travels_is_python_3_8_of_the_standard_library() -> None:
    sources = {name: AGENT_FILE.with_name(name).read_text() for name in TRAVELLERS} | {"run.py": RUN_PY}
    for name, source in sources.items():
        tree = ast.parse(source, feature_version=(3, 8))
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                inside = module.removeprefix("hanax.devices.") + ".py" in TRAVELLERS
                assert inside or module.split(".")[0] in sys.stdlib_module_names, f"{name}: {module}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archs": []}, "needs architectures and devices; got 0 and 1"),
        ({"devices": [SPEC, SPEC]}, "onnxruntime-fp32 is named twice"),
        ({"devices": [dataclasses.replace(SPEC, kind="modelled")]}, "is not measured with a clock"),
        ({"passes": 0}, "must be at least 1; got passes=0, batch_size=12"),
    ],
)
def test_a_bundle_of_nothing_is_refused(
    space: SearchSpace, archs: list[Arch], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    settings = {"archs": archs, "devices": [SPEC]} | change
    with pytest.raises(ValueError, match=message):
        write_bundle(tmp_path / "b.zip", space, build_model=lambda spec, arch: b"", seed=0, **settings)


def test_two_passes_are_made_in_two_orders_and_tell_the_reliability(
    space: SearchSpace, archs: list[Arch], lying_program: Callable[..., str], tmp_path: Path
) -> None:
    sent = tmp_path / "two.zip"
    write_bundle(sent, space, archs, [SPEC], lambda spec, arch: str(arch).encode(), seed=3, method=BRIEF, passes=2)
    board = unpacked(sent, tmp_path / "board")
    board.replace_agent(lying_program("pass"))
    status, output = board.run()
    assert status == 0, output
    assert "10 of 10 measurements" in output
    nets = [event for event in board.events() if event["event"] == "net"]
    first, second = ([net["arch"] for net in nets if net["pass"] == number] for number in (1, 2))
    assert first == [str(arch) for arch in archs]
    assert first != second and sorted(first) == sorted(second)
    _, tables = import_results(board.results, sent, tmp_path / "t.parquet")
    table = tables[SPEC.name][1]
    assert table.archs("table", passes=2) == archs
    assert table.reliability() is not None
    assert Ledger(tmp_path / "t.ledger.jsonl").counts() == {SPEC.name: {"table": 10}}


# ---- power cuts and other interruptions ------------------------------------------------------------------------------


def test_after_a_kill_it_goes_on_and_measures_nothing_twice(
    board: Board, lying_program: Callable[..., str], archs: list[Arch]
) -> None:
    board.replace_agent(lying_program("pass"))
    process = subprocess.Popen(board.command(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "onnxruntime-fp32, pass 1: 2 of 5 networks done\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = [event["arch"] for event in board.events() if event["event"] == "net"]
    assert kept == [str(arch) for arch in archs[: len(kept)]]
    with board.results.open("ab") as stream:
        stream.write(b'{"event": "asked", "dev')

    partial = read_results(board.results, board.zip)
    assert partial.torn
    assert partial.missing == {SPEC.name: archs[len(kept) :]}
    status, output = board.run()
    assert status == 0, output
    events = board.events()
    assert [event["arch"] for event in events if event["event"] == "net"] == [str(arch) for arch in archs]
    asked = Counter(event["arch"] for event in events if event["event"] == "asked")
    assert all(asked[arch] == 1 for arch in kept)
    assert not read_results(board.results, board.zip).torn


def test_a_full_disk_keeps_what_was_measured(
    board: Board, lying_program: Callable[..., str], honest_results: bytes
) -> None:
    board.replace_agent(lying_program("pass"))

    status, output = board.run(file_limit=len(honest_results) // 2)
    assert status == 2
    assert "cannot be written" in output and "what was measured before is kept" in output
    assert "Traceback" not in output
    found = read_results(board.results, board.zip)
    assert not found.torn
    assert 1 <= len(found.measurements[SPEC.name]) < 5
    status, output = board.run()
    assert status == 0, output
    assert len(read_results(board.results, board.zip).measurements[SPEC.name]) == 5


def test_a_bundle_without_its_manifest_says_so(board: Board) -> None:
    (board.folder / "manifest.json").unlink()
    status, output = board.run()
    assert status == 2
    assert "unpack the bundle again" in output and "Traceback" not in output


def test_two_at_once_are_refused(board: Board, lying_program: Callable[..., str]) -> None:
    board.replace_agent(lying_program("time.sleep(100)", op="info"))
    first = subprocess.Popen(board.command(), stdout=subprocess.PIPE)
    try:
        while not board.results.exists() or not board.results.stat().st_size:
            assert first.poll() is None
        status, output = board.run()
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate()
    assert status == 2
    assert "another run.py is writing to" in output


def test_results_of_another_bundle_are_not_continued(measured: Board) -> None:
    manifest = measured.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 3', '"seed": 4', 1))
    before = measured.results.read_bytes()
    status, output = measured.run()
    assert status == 2
    assert "holds the results of another bundle" in output
    assert measured.results.read_bytes() == before


# ---- machines that fail or lie ---------------------------------------------------------------------------------------

LIES = {
    "zero": ("result['runs_ns'][0] = 0", "runs_ns must be a finite number of at least 1; it is 0"),
    "not a number": ("result['runs_ns'][0] = float('nan')", "NaN is not a number"),
    "negative": ("result['cpu_ns'] = -1", "cpu_ns must be a finite number of at least 0; it is -1"),
    "text": ("result['runs_ns'][0] = 'fast'", "it is 'fast'"),
    "too long": ("result['wall_ns'] = 10**12", "reports a round of 1e.06 ms"),
    "impossible sum": ("result['runs_ns'] *= 9", "together in a round of"),
    "dies": ("os.kill(os.getpid(), 9)", "killed by signal 9"),
    "fills the disk": ("answer = {'id': request['id'], 'error': 'OSError: No space left on device'}", "No space left"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_network_that_a_machine_fails_or_lies_about_is_left_out_with_the_reason(
    lie: str, board: Board, lying_program: Callable[..., str], archs: list[Arch], tmp_path: Path
) -> None:
    code, message = LIES[lie]
    victim = json.loads((board.folder / "manifest.json").read_text())["nets"][2]["model"]
    board.replace_agent(lying_program(f"if request['sha256'] == {victim!r}: {code}"))
    status, output = board.run()
    assert status == 1
    assert "4 of 5 measurements are in" in output and "1 networks were left out" in output
    found, tables = import_results(board.results, board.zip, tmp_path / "t.parquet")
    assert found.missing == {SPEC.name: [archs[2]]}
    assert message in found.failures[SPEC.name, archs[2]].replace("1e+06", "1e.06")
    assert tables[SPEC.name][1].archs("table") == [archs[0], archs[1], archs[3], archs[4]]
    assert Ledger(tmp_path / "t.ledger.jsonl").counts()[SPEC.name]["table"] >= 5


@pytest.mark.parametrize(
    ("lie", "op"),
    [
        ("time.sleep(1000)", "load"),
        ("for c in json.dumps(answer): print(c, end='', flush=True); time.sleep(9)", "load"),
    ],
)
def test_a_machine_that_hangs_or_answers_too_slowly_is_given_up(
    lie: str, op: str, board: Board, lying_program: Callable[..., str]
) -> None:
    manifest = board.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"timeout_s": 20.0', '"timeout_s": 0.5', 1))
    board.replace_agent(lying_program(lie, op=op))
    status, output = board.run()
    assert status == 1
    assert output.count("no answer within 0.5 s; it was killed") == 5


def test_a_damaged_model_is_left_out_by_its_checksum(
    board: Board, bare_python: str, archs: list[Arch], tmp_path: Path
) -> None:
    victim = json.loads((board.folder / "manifest.json").read_text())["nets"][0]["model"]
    (board.folder / "models" / victim).write_bytes(b"damaged")
    status, _ = board.run("--python", bare_python)
    assert status == 1
    found = read_results(board.results, board.zip)
    assert "wrong checksum: 7 bytes" in found.failures[SPEC.name, archs[0]]
    assert list(found.measurements[SPEC.name]) == archs[1:]

    with zipfile.ZipFile(board.zip) as archive:
        archive.extract(f"models/{victim}", board.folder)
    assert board.run("--python", bare_python)[0] == 1
    status, output = board.run("--python", bare_python, "--retry")
    assert status == 0, output
    found = read_results(board.results, board.zip)
    assert found.failures == {} and found.missing == {SPEC.name: []}


def test_without_the_runtime_the_message_says_what_to_install(board: Board, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    status, output = board.run("--python", str(bare))
    assert status == 1
    assert "onnxruntime-fp32 cannot be measured here" in output
    assert "pip install onnxruntime` is needed first" in output
    with pytest.raises(BundleError, match="holds no measurement"):
        import_results(board.results, board.zip, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


# ---- results that were damaged or changed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:3], lines[3].replace(b"1", b"2", 1), *lines[4:]], "line 4 was changed"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4 was changed, or a line before it is missing"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2 was changed"),
        (lambda lines: [*lines, lines[-1]], "was changed, or a line before it"),
        (lambda lines: [*lines[:2], b"\0" * 80 + b"\n", *lines[3:]], "line 3 is damaged"),
        (lambda lines: [*lines[:2], b"[1]\n", *lines[3:]], "line 3 is damaged"),
        (lambda lines: [], "is empty"),
    ],
)
def test_a_damaged_file_is_refused(measured: Board, damage: Callable[[list[bytes]], list[bytes]], message: str) -> None:
    measured.results.write_bytes(b"".join(damage(measured.results.read_bytes().splitlines(keepends=True))))
    with pytest.raises(BundleError, match=message):
        read_results(measured.results, measured.zip)


def first_round(events: list[dict[str, Any]]) -> dict[str, Any]:
    round_: dict[str, Any] = next(event for event in events if event["event"] == "net")["rounds"][0]
    return round_


def first_net(events: list[dict[str, Any]]) -> dict[str, Any]:
    return next(event for event in events if event["event"] == "net")


def set_run(value: object) -> Callable[[list[dict[str, Any]]], None]:
    return lambda events: first_round(events)["runs_ns"].__setitem__(0, value)


FORGERIES: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "zero": (set_run(0), "runs_ns must be a finite number of at least 1; it is 0"),
    "negative": (set_run(-7), "runs_ns must be a finite number of at least 1; it is -7"),
    "text": (set_run("fast"), "it is 'fast'"),
    "not a number": (set_run(float("nan")), "NaN is not a number"),
    "impossible sum": (lambda events: first_round(events)["runs_ns"].append(10**10), "together in a round of"),
    "longer than waited": (lambda events: first_round(events).update(wall_ns=10**12), "reports a round of 1e.06 ms"),
    "longer than its batch": (lambda events: first_net(events).update(elapsed_ns=1000), "its batch took 0.001 ms"),
    "no CPU time": (lambda events: first_round(events).pop("cpu_ns"), "cpu_ns must be a finite number .* it is None"),
    "rounds left out": (lambda events: first_net(events)["rounds"].clear(), "0 rounds are not where the method stops"),
    "rounds added": (
        lambda events: first_net(events)["rounds"].extend(first_net(events)["rounds"]),
        "rounds are not where the method stops",
    ),
    "load": (lambda events: first_net(events)["stats"].update(load_average=-1), "load_average must be a finite number"),
    "time of day": (lambda events: first_net(events).update(measured_at=5), "measured_at must be a date; it is 5"),
    "a batch that is none": (lambda events: first_net(events).update(batch="x"), "batch must be a finite number"),
    "a duplicate": (lambda events: events.append(first_net(events)), "pass 1 is there twice"),
    "a pass too many": (lambda events: events.append({**first_net(events), "pass": 2}), "of 1 passes it has 1"),
    "a pass that is none": (lambda events: first_net(events).update({"pass": "x"}), "pass 'x' is there twice, or out"),
    "another net": (lambda events: first_net(events).update(arch="9.9"), "the bundle does not ask for 9.9"),
    "no arch": (lambda events: first_net(events).update(arch="?"), r"line \d+: "),
    "another device": (lambda events: first_net(events).update(device="tpu"), "the bundle has no device 'tpu'"),
    "unasked": (lambda events: events.__delitem__(slice(2, 4)), "was measured before it was asked for"),
    "no machine": (lambda events: events.pop(1), "was measured before it was asked for"),
    "another machine": (
        lambda events: events.append({**events[1], "info": {**events[1]["info"], "cpu_model": "y"}}),
        "was measured on two machines or runtimes",
    ),
    "another runtime": (lambda events: events[1]["info"].update(runtime="xla"), "its runtime is 'xla'"),
    "no info": (lambda events: events[1].update(info=5), "the answer is no object: 5"),
    "no field": (lambda events: first_net(events).pop("rounds"), "not an event of hanax.results/1"),
    "unknown event": (lambda events: first_net(events).update(event="note"), "there is no event 'note'"),
    "another format": (lambda events: events[0].update(format="x"), "its format is 'x'"),
    "another bundle": (lambda events: events[0].update(manifest="0" * 64), "the results of another bundle"),
    "no beginning": (lambda events: events.pop(0), "the first event, and no other, must be 'begin'"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_cannot_be_true_is_refused_even_with_right_checksums(
    measured: Board, forgery: str, tmp_path: Path
) -> None:
    change, message = FORGERIES[forgery]
    events = measured.events()
    change(events)
    measured.rewrite(events)
    with pytest.raises(BundleError, match=message) as error:
        import_results(measured.results, measured.zip, tmp_path / "tables")
    assert str(measured.results) in str(error.value)
    assert not (tmp_path / "tables").exists()


def test_rewriting_alone_changes_nothing(measured: Board, honest_results: bytes) -> None:
    measured.rewrite(measured.events())
    assert measured.results.read_bytes() == honest_results


@pytest.mark.parametrize("victim", ["models/", "hanax/devices/agent.py"])
def test_a_changed_bundle_is_refused(measured: Board, victim: str, tmp_path: Path) -> None:
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(measured.zip) as archive, zipfile.ZipFile(changed, "w") as copy:
        names = archive.namelist()
        name = next(name for name in names if name.startswith(victim))
        for entry in names:
            copy.writestr(entry, archive.read(entry) + b" " * (entry == name))
    with pytest.raises(BundleError, match=f"{name} was changed: its sha256 is"):
        read_results(measured.results, changed)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", None])
def test_a_file_that_is_no_bundle_is_refused(measured: Board, content: bytes | None, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    if content is None:
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("notes.txt", "x")
    else:
        other.write_bytes(content)
    with pytest.raises(BundleError, match="is not a bundle"):
        read_results(measured.results, other)


# ---- tables that exist -----------------------------------------------------------------------------------------------


def test_a_later_state_of_the_results_adds_what_is_new(measured: Board, archs: list[Arch], tmp_path: Path) -> None:
    out, events = tmp_path / "table.parquet", measured.events()
    third = [index for index, event in enumerate(events) if event["event"] == "net"][2]
    measured.rewrite(events[:third])
    _, tables = import_results(measured.results, measured.zip, out)
    assert tables[SPEC.name][1].archs("table") == archs[:2]
    measured.rewrite(events)
    for _ in range(2):
        _, tables = import_results(measured.results, measured.zip, out)
        assert tables[SPEC.name][1].archs("table") == archs
        assert Ledger(out.with_suffix(".ledger.jsonl")).counts() == {SPEC.name: {"table": 5}}


def test_a_table_with_other_figures_or_of_another_device_is_left_alone(measured: Board, tmp_path: Path) -> None:
    out = tmp_path / "table.parquet"
    import_results(measured.results, measured.zip, out)
    before, events = out.read_bytes(), measured.events()
    for round_ in first_net(events)["rounds"]:
        round_["runs_ns"] = [run - 1 for run in round_["runs_ns"]]
    measured.rewrite(events)
    with pytest.raises(TableError, match="from other measurements than the results"):
        import_results(measured.results, measured.zip, out)
    for event in events:
        if event["event"] == "device":
            event["info"]["cores"] = 7
    measured.rewrite(events)
    with pytest.raises(DeviceMismatchError, match=r"with 2 core.*with 7 core"):
        import_results(measured.results, measured.zip, out)
    assert out.read_bytes() == before
