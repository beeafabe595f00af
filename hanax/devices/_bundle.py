"""Bundles: one zip for a machine without network, and what comes back from it.

A bundle holds the models, named by their sha256, the files that measure (standard library only), a manifest and a
README. Whoever unpacks it runs ``python3 run.py`` and brings back ``results.jsonl``: the raw rounds. Checks and
statistics happen here, at import, by the code that live answers go through.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from hanax._files import write_atomically
from hanax.devices import _board
from hanax.devices._board import MANIFEST_FILE, MODELS_FOLDER, ResultsError, parse_results
from hanax.devices._ledger import Ledger
from hanax.devices._local_agent import AGENT_FILE
from hanax.devices._measure import DEFAULT_METHOD, Measurement, Method, measurement_of
from hanax.devices._requests import DeviceIdentity, Round, agent_stats, identify
from hanax.devices._rounds import ImpossibleAnswerError, check_number, check_round, may_stop
from hanax.devices._runtimes import RUNTIMES
from hanax.devices._specs import DeviceSpec
from hanax.devices._stored_table import TableError
from hanax.devices._table import LatencyTable
from hanax.search_spaces import Arch, SearchSpace

FORMAT = "hanax.bundle/1"
TRAVELLERS = ("agent.py", "_agent_client.py", "_board.py", "_rounds.py")
"""The files of this folder that a bundle holds."""

RUN_PY = '''"""Measures the networks of this bundle on this machine. README.txt says how."""

import os
import sys

if sys.version_info < (3, 8):
    sys.exit("run.py needs Python 3.8 or newer; this is Python " + sys.version.split()[0])

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, FOLDER)  # also where Python was told not to look beside the script
sys.dont_write_bytecode = True  # a full disk would cut it short, and a cut one stops the next start

from pathlib import Path

from hanax.devices._board import main

if __name__ == "__main__":
    sys.exit(main(Path(FOLDER)))
'''

README = """Latency measurements, to be made on this machine
================================================

{n_nets} measurements are asked for, of networks of the search space {space}, on:

{devices}

1. Unpack the zip on the machine to measure, and open a terminal in its folder.
2. Install what is missing (see the list above) for the Python that you will use.
3. Close what else runs, plug the machine in, and run:

       python3 run.py

   `python3 run.py --help` lists options: another Python, only some of the devices, another results file.
4. After a crash, a power cut or Ctrl-C, run it again: it goes on where it was. A network that failed is left out;
   `python3 run.py --retry` tries it again.
5. Bring back the file results.jsonl. Whoever made this bundle imports it with:

       hanax import-results results.jsonl --bundle {bundle} --out tables/

Nothing is sent anywhere, and nothing outside this folder is changed. run.py needs Python 3.8 or newer, and no packages
but those listed above.
"""


class BundleError(ValueError):
    """A bundle or its results cannot be used: damaged, changed, or not what they should be; the message says where."""


def write_bundle(
    path: str | Path,
    space: SearchSpace,
    archs: Sequence[Arch],
    devices: Sequence[DeviceSpec],
    build_model: Callable[[DeviceSpec, Arch], bytes],
    *,
    seed: int,
    method: Method = DEFAULT_METHOD,
    passes: int = 1,
    batch_size: int = 12,
    timeout_s: float = 120.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a zip with which a machine without network measures `archs` on each of `devices`.

    The same arguments give the same bytes.

    Args:
        build_model: The model file of an architecture for a device.
        seed: That decided the architectures and the weights; noted.
        passes: How often every architecture is measured; see `collect_latency`.
        batch_size: Models in the device's memory at once, measured in turn.
        timeout_s: Longest wait for an answer of the agent there.
        on_progress: Called with the number of models built and of all.

    Raises:
        ValueError: A device is not measured with a clock, needs more than Python packages, or is named twice; or
            nothing is to be measured.
        OSError: The zip cannot be written.
    """
    counts = Counter(spec.name for spec in devices)
    if not archs or not devices:
        raise ValueError(f"a bundle needs architectures and devices; got {len(archs)} and {len(devices)}")
    if passes < 1 or batch_size < 1:
        raise ValueError(f"passes and batch_size must be at least 1; got passes={passes}, batch_size={batch_size}")
    if again := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"device {again[0]} is named twice")
    if unfit := [spec.name for spec in devices if spec.kind != "measured"]:
        raise ValueError(f"{unfit[0]} is not measured with a clock, so it needs no board")
    for spec in devices:
        if programs := RUNTIMES[spec.runtime].programs:
            names = ", ".join(program for program, _ in programs)
            raise ValueError(f"{spec.name} needs more than Python packages ({names}), which a bundle cannot bring")
    wanted = list(dict.fromkeys(space.decode(space.canonical(space.encode(archs)))))
    models: dict[str, bytes] = {}
    nets = []
    for spec in devices:
        for arch in wanted:
            model = build_model(spec, arch)
            sha256 = hashlib.sha256(model).hexdigest()
            models[sha256] = model
            shape = [spec.batch, *space.input_shape(arch)]
            nets.append({"device": spec.name, "arch": str(arch), "model": sha256, "input_shape": shape})
            if on_progress is not None:
                on_progress(len(nets), len(devices) * len(wanted))
    manifest = {
        "format": FORMAT,
        "space": {"name": space.name, "fingerprint": space.fingerprint},
        "seed": seed,
        "method": dataclasses.asdict(method),
        "passes": passes,
        "batch_size": batch_size,
        "timeout_s": timeout_s,
        "devices": [{**dataclasses.asdict(spec), "install": _install(spec)} for spec in devices],
        "nets": nets,
    }
    files = {f"{MODELS_FOLDER}/{sha256}": model for sha256, model in models.items()}
    files |= {f"hanax/devices/{name}": AGENT_FILE.with_name(name).read_bytes() for name in TRAVELLERS}
    files |= dict.fromkeys(("hanax/__init__.py", "hanax/devices/__init__.py"), b'"""What measures on a board."""\n')
    files |= {"run.py": RUN_PY.encode(), "README.txt": _readme(manifest, Path(path).name).encode()}
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    files[MANIFEST_FILE] = json.dumps(manifest, indent=1).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    write_atomically(Path(path), buffer.getvalue())


def _install(spec: DeviceSpec) -> str:
    """What pip installs for the runtime of `spec`."""
    runtime = RUNTIMES[spec.runtime]
    return " ".join(runtime.requirements) or runtime.package


def _readme(manifest: Mapping[str, Any], bundle: str) -> str:
    devices = "\n".join(
        f"  {spec['name']}: needs `python3 -m pip install {spec['install']}`" for spec in manifest["devices"]
    )
    n_nets = len(manifest["nets"]) * manifest["passes"]
    return README.format(n_nets=n_nets, space=manifest["space"]["name"], devices=devices, bundle=bundle)


# ---- what comes back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoardResults:
    """What a bundle's results say, all of it checked.

    Attributes:
        measurements: For each device that was measured, of each architecture, pass by pass.
        identities: What each of these devices is.
        asked: How often each device was asked for each architecture.
        failures: Why an architecture was left out and not measured later, by device and architecture.
        missing: Architectures that were not measured in every pass, for each device, those that failed among them.
        torn: A power cut left half a line at the end; it is not counted.
        space_name: Of the bundle's search space.
        space_fingerprint: Likewise.
    """

    measurements: Mapping[str, Mapping[Arch, Sequence[Measurement]]]
    identities: Mapping[str, DeviceIdentity]
    asked: Mapping[str, Counter[Arch]]
    failures: Mapping[tuple[str, Arch], str]
    missing: Mapping[str, Sequence[Arch]]
    torn: bool
    space_name: str
    space_fingerprint: str


def read_results(results: str | Path, bundle: str | Path) -> BoardResults:
    """Check and summarise what came back from a board.

    Args:
        results: The ``results.jsonl`` that ``run.py`` wrote.
        bundle: The zip that was sent.

    Raises:
        BundleError: The bundle or the results are damaged, do not belong together, or cannot be true; says where.
        OSError: A file cannot be read.
    """
    manifest, manifest_sha256 = _read_manifest(Path(bundle))
    try:
        events, torn = parse_results(Path(results).read_bytes())
    except ResultsError as error:
        raise BundleError(f"{results}: {error}") from error
    return _Reader(Path(results), manifest, events).read(manifest_sha256, bool(torn))


def import_results(
    results: str | Path, bundle: str | Path, out: str | Path
) -> tuple[BoardResults, dict[str, tuple[Path, LatencyTable]]]:
    """Add what came back from a board to latency tables, and to the ledger beside each.

    Rows that a table has already, from an earlier state of the same results, are not added again.

    Args:
        out: A folder, for one table per device; or a ``.parquet`` file, if only one device was measured.

    Returns:
        The results, and the path and the table of each device.

    Raises:
        BundleError: As for `read_results`; nothing is written then. Or `out` is one file for several devices, or
            nothing was measured.
        SpaceMismatchError, DeviceMismatchError: A table at `out` is another's.
        TableError: What is at `out` is not a latency table, or has other figures for the same architecture.
        OSError: A file cannot be read or written.
    """
    found = read_results(results, bundle)
    if not found.measurements:
        reasons = "".join(f"\n{device}: {arch}: {problem}" for (device, arch), problem in found.failures.items())
        raise BundleError(f"{results} holds no measurement{reasons}")
    paths = _table_paths(Path(out), list(found.measurements))
    tables = {name: _extended(paths[name], found, name) for name in paths}
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(path.with_suffix(".ledger.jsonl"))
        known = Counter(
            entry["arch"] for entry in ledger.entries() if entry["device"] == name and entry["purpose"] == "table"
        )
        for arch, count in found.asked[name].items():
            for _ in range(count - known[str(arch)]):
                ledger.record(name, arch, "table")
        tables[name].write(path)
    return found, {name: (paths[name], tables[name]) for name in paths}


def _table_paths(out: Path, devices: Sequence[str]) -> dict[str, Path]:
    if out.suffix != ".parquet":
        return {name: out / f"{name}.parquet" for name in devices}
    if len(devices) > 1:
        raise BundleError(f"{out} is one table, but {', '.join(devices)} were measured; give a folder")
    return {devices[0]: out}


def _extended(path: Path, found: BoardResults, device: str) -> LatencyTable:
    """The table at `path`, or a new one, with what was found for `device`."""
    identity = found.identities[device]
    table = LatencyTable.read(path) if path.exists() else None
    if table is None:
        table = LatencyTable.of(found.space_name, found.space_fingerprint, identity)
    if table.space_fingerprint != found.space_fingerprint:
        raise BundleError(
            f"{path} belongs to the search space with fingerprint {table.space_fingerprint}; the bundle's space "
            f"{found.space_name} has {found.space_fingerprint}"
        )
    table = table.for_device(identity)
    frame = table.frame[table.frame["purpose"] == "table"]
    held = {arch: list(latencies) for arch, latencies in zip(frame["arch"], frame["pass_latency_ms"], strict=True)}
    rows: dict[int, list[dict[str, Any]]] = {}
    for arch, measurements in found.measurements[device].items():
        known = held.get(str(arch), [])
        new = [measurement.latency_ms for measurement in measurements]
        if known[: len(new)] != new[: len(known)]:
            raise TableError(
                f"{path} has {known} ms for {arch}, from other measurements than the results, which have {new} ms; "
                "choose another --out"
            )
        for number, measurement in enumerate(measurements[len(known) :], start=len(known) + 1):
            row = {"arch": str(arch), **dataclasses.asdict(measurement), "purpose": "table"}
            rows.setdefault(number, []).append(row)
    for number in sorted(rows):
        table = table.append(rows[number]) if number == 1 else table.add_pass(rows[number])
    return table


def _read_manifest(bundle: Path) -> tuple[dict[str, Any], str]:
    """The manifest of a bundle whose files are all there and as they were written, and its sha256."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            content = archive.read(MANIFEST_FILE)
            manifest = json.loads(content)
            if manifest.get("format") != FORMAT:
                raise BundleError(f"{bundle} is not a bundle: its format is {manifest.get('format')!r}, not {FORMAT!r}")
            for name, sha256 in manifest["files"].items():
                if (actual := hashlib.sha256(archive.read(name)).hexdigest()) != sha256:
                    raise BundleError(f"{bundle}: {name} was changed: its sha256 is {actual}; it was {sha256}")
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BundleError(f"{bundle} is not a bundle, or is damaged: {error}") from error
    return manifest, hashlib.sha256(content).hexdigest()


class _RecordedAgent:
    """Gives the recorded answers to ``info`` and ``stats``, so that they are checked as live ones are."""

    def __init__(self, spec: DeviceSpec, where: str, answers: Mapping[str, Any]) -> None:
        self.spec = spec
        self._where = where
        self._answers = answers

    def request(self, op: str, about: str = "", **fields: object) -> dict[str, Any]:
        answer = self._answers[op]
        if not isinstance(answer, dict):
            self.fail(op, about, f"the answer is no object: {answer!r}")
        return answer

    def fail(self, op: str, about: str, problem: str) -> NoReturn:
        raise BundleError(f"{self._where}: {op}: {problem}")

    def __enter__(self) -> _RecordedAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Reader:
    """Goes through the events of a results file, in order."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], events: Sequence[dict[str, Any]]) -> None:
        self.path = path
        self.manifest = manifest
        self.events = events
        self.measurements: dict[str, dict[Arch, list[Measurement]]] = {}
        self.identities: dict[str, DeviceIdentity] = {}
        self.asked: dict[str, Counter[Arch]] = {}
        self.failures: dict[tuple[str, Arch], str] = {}
        self.busy_ns: Counter[tuple[str, int]] = Counter()

    @cached_property
    def method(self) -> Method:
        return Method(**self.manifest["method"])

    @cached_property
    def specs(self) -> dict[str, DeviceSpec]:
        fields = [field.name for field in dataclasses.fields(DeviceSpec)]
        return {spec["name"]: DeviceSpec(**{key: spec[key] for key in fields}) for spec in self.manifest["devices"]}

    @cached_property
    def wanted(self) -> dict[str, list[Arch]]:
        wanted: dict[str, list[Arch]] = {name: [] for name in self.specs}
        for net in self.manifest["nets"]:
            wanted[net["device"]].append(Arch.parse(net["arch"]))
        return wanted

    def read(self, manifest_sha256: str, torn: bool) -> BoardResults:
        try:
            _ = self.method, self.specs, self.wanted
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the bundle is of another version of Hanax: {error!r}") from error
        if not self.events:
            raise BundleError(f"{self.path} is empty: run.py has not written to it")
        for number, event in enumerate(self.events, start=1):
            where = f"{self.path}, line {number}"
            try:
                self._take(event, number, where, manifest_sha256)
            except (KeyError, TypeError, AttributeError) as error:
                raise BundleError(f"{where}: not an event of {_board.FORMAT}: {error!r}") from error
        missing = {
            name: [arch for arch in archs if self._n_passes(name, arch) < self.manifest["passes"]]
            for name, archs in self.wanted.items()
        }
        return BoardResults(
            measurements=self.measurements,
            identities=self.identities,
            asked=self.asked,
            failures={key: problem for key, problem in self.failures.items() if key[1] in missing[key[0]]},
            missing=missing,
            torn=torn,
            space_name=self.manifest["space"]["name"],
            space_fingerprint=self.manifest["space"]["fingerprint"],
        )

    def _n_passes(self, device: str, arch: Arch) -> int:
        return len(self.measurements.get(device, {}).get(arch, ()))

    def _take(self, event: dict[str, Any], number: int, where: str, manifest_sha256: str) -> None:
        kind = event["event"]
        if (kind == "begin") != (number == 1):
            raise BundleError(f"{where}: the first event, and no other, must be 'begin'; it is {kind!r}")
        if kind == "begin":
            if event["format"] != _board.FORMAT:
                raise BundleError(f"{where}: its format is {event['format']!r}, not {_board.FORMAT!r}")
            if event["manifest"] != manifest_sha256:
                raise BundleError(
                    f"{where}: these are the results of another bundle: their manifest has sha256 {event['manifest']}, "
                    f"and this one's {manifest_sha256}"
                )
            return
        device = event["device"]
        if device not in self.specs:
            raise BundleError(f"{where}: the bundle has no device {device!r}; it has {', '.join(self.specs)}")
        if kind == "device":
            self._take_device(device, event, where)
            return
        arch = self._arch(device, event["arch"], where)
        if kind == "asked":
            self.asked.setdefault(device, Counter())[arch] += 1
        elif kind == "failure":
            self.failures[device, arch] = str(event["problem"])
        elif kind == "net":
            self._take_net(device, arch, event, where)
        else:
            raise BundleError(f"{where}: there is no event {kind!r}")

    def _take_device(self, device: str, event: dict[str, Any], where: str) -> None:
        found = identify(_RecordedAgent(self.specs[device], where, {"info": event["info"]}))
        known = self.identities.setdefault(device, found)
        if found != known:
            raise BundleError(f"{where}: {device} was measured on two machines or runtimes: {known}; then {found}")

    def _arch(self, device: str, text: str, where: str) -> Arch:
        try:
            arch = Arch.parse(text)
        except ValueError as error:
            raise BundleError(f"{where}: {error}") from error
        if arch not in self.wanted[device]:
            raise BundleError(f"{where}: the bundle does not ask for {text} on {device}")
        return arch

    def _take_net(self, device: str, arch: Arch, event: dict[str, Any], where: str) -> None:
        about = f"{where}: {device}, {arch}"
        before = self.measurements.get(device, {}).get(arch, [])
        if event["pass"] != len(before) + 1 or len(before) == self.manifest["passes"]:
            raise BundleError(
                f"{about}: pass {event['pass']!r} is there twice, or out of turn: of {self.manifest['passes']} passes "
                f"it has {len(before)}"
            )
        if device not in self.identities or self.asked.get(device, Counter())[arch] <= len(before):
            raise BundleError(f"{about} was measured before it was asked for")
        try:
            rounds = [self._round(record) for record in event["rounds"]]
            elapsed_ns, number = check_number(event, "elapsed_ns", 1), int(check_number(event, "batch", 0))
        except ImpossibleAnswerError as error:
            raise BundleError(f"{about}: {error}") from error
        self._check_count(rounds, about)
        batch = device, number
        self.busy_ns[batch] += sum(record["waited_ns"] for record in event["rounds"])
        if (busy_ns := self.busy_ns[batch]) > elapsed_ns:
            raise BundleError(
                f"{about}: its batch took {elapsed_ns / 1e6:.3f} ms, but the rounds in it {busy_ns / 1e6:.3f} ms"
            )
        stats = agent_stats(_RecordedAgent(self.specs[device], about, {"stats": event["stats"]}))
        try:
            datetime.fromisoformat(event["measured_at"])
        except (TypeError, ValueError) as error:
            raise BundleError(f"{about}: measured_at must be a date; it is {event['measured_at']!r}") from error
        measurement = measurement_of(
            rounds,
            self.method,
            device,
            self.identities[device],
            stats.load_average,
            event["measured_at"],
            busy_share=stats.busy_share,
        )
        self.measurements.setdefault(device, {}).setdefault(arch, []).append(measurement)

    def _round(self, record: Mapping[str, Any]) -> Round:
        waited_ns = int(check_number(record, "waited_ns", 1))
        return Round.of(check_round(record, self.method.inner_ms, self.method.inner_runs, waited_ns))

    def _check_count(self, rounds: Sequence[Round], about: str) -> None:
        """The rounds must be those after which the method stops: no fewer, and no more."""
        n, method = len(rounds), self.method
        is_between = method.min_rounds <= n <= method.max_rounds
        if not is_between or [k for k in range(1, n + 1) if may_stop(rounds[:k], method)] != [n]:
            raise BundleError(
                f"{about}: {n} rounds are not where the method stops (from {method.min_rounds} to {method.max_rounds}, "
                f"once the interval is within {method.target_relative_ci:.1%}); some were left out or added"
            )
