"""Tables of subnets' accuracies: resumable, tied to one supernet and its images, every image used on record.

Beside a table ``accuracy.parquet`` lies ``accuracy.ledger.jsonl``. Its first line says whose accuracies follow. Each
further line is one result: an architecture, the images its batch norms were calibrated on, the images it was scored on
and whether it was right on each. The table is computed from these lines alone, so no accuracy is known of images that
are not on record, and a killed collection goes on from them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hanax._files import locked, read_lines, write_atomically
from hanax._intervals import wilson_interval
from hanax.experiments._frames import read_frame, write_frame
from hanax.search_spaces import Arch, SearchSpace, format_name, graph_features, precision_columns

if TYPE_CHECKING:
    from hanax.supernet import Evaluator

FORMAT = "hanax.accuracy_ledger/1"

RACE_FIRST = 500
"""Validation images between two looks at the results of a race."""

RACE_CONFIDENCE = 0.99
"""Probability that a race stops nothing that belongs to the front of MACs and accuracy."""

RACE_COST = "macs"
"""What a subnet must have no more of to put another one out of a race."""

Progress = Callable[[int, int], None]
Bits = NDArray[np.bool_]


class AccuracyTableError(ValueError):
    """A table or ledger of accuracies belongs to another supernet, other images, or was collected in another way."""


@dataclass(frozen=True, slots=True)
class AccuracyLedger:
    """The results behind a table of accuracies.

    Attributes:
        path: Its file.
        identity: Whose accuracies these are, and how they are collected: the first line.
    """

    path: Path
    identity: dict[str, Any]

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any]) -> AccuracyLedger:
        """The ledger at `path`, which comes into being if there is none.

        Raises:
            AccuracyTableError: It is another's; names what differs.
        """
        lines = read_lines(path)
        if lines:
            require_same(path, lines[0], identity)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(identity) + "\n").encode())
        return cls(path, identity)

    def record(self, arch: Arch, first: int, correct: Bits, seconds: float) -> None:
        """Add that `arch` was scored on images from position `first`, and was right where `correct` says so."""
        line = {
            "arch": str(arch),
            "calibrated_on": {"part": "train", "first": 0, "n": self.identity["n_calibration"]},
            "scored_on": {"part": "validation", "first": first, "n": len(correct)},
            "correct": np.packbits(correct).tobytes().hex(),
            "seconds": round(seconds, 4),
        }
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def results(self) -> list[dict[str, Any]]:
        """All results, in the order in which they came."""
        return [json.loads(text) for text in self.path.read_text(encoding="utf-8").splitlines()[1:]]

    def correct(self) -> dict[Arch, Bits]:
        """For each architecture, whether it was right on each image it was scored on, from the first one on."""
        rows: dict[Arch, Bits] = {}
        for line in self.results():
            n = line["scored_on"]["n"]
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(line["correct"]), dtype=np.uint8), count=n).astype(bool)
            arch = Arch.parse(line["arch"])
            rows[arch] = np.concatenate([rows[arch], bits]) if arch in rows else bits
        return rows

    def seconds(self) -> dict[Arch, float]:
        """For each architecture, the time that its results took."""
        sums: dict[Arch, float] = {}
        for line in self.results():
            arch = Arch.parse(line["arch"])
            sums[arch] = sums.get(arch, 0.0) + line["seconds"]
        return sums

    def images_used(self) -> dict[str, int]:
        """For each part of the data, the number of its images that some result used."""
        used = {"train": 0, "validation": 0, "test": 0}
        for line in self.results():
            for images in (line["calibrated_on"], line["scored_on"]):
                used[images["part"]] = max(used[images["part"]], images["first"] + images["n"])
        return used


def require_same(path: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse what was `found` in `path` if it is not of `identity`.

    Raises:
        AccuracyTableError: Names what differs, with both values.
    """
    differing = [key for key in identity if found.get(key) != identity[key]]
    if differing:
        raise AccuracyTableError(
            f"{path} holds accuracies of another supernet, other images or another way to collect them: "
            + "; ".join(f"{key} was {found.get(key)}, is {identity[key]}" for key in differing)
            + ". Use another file, or delete this one and its ledger to start anew."
        )


def collect_accuracy(
    evaluator: Evaluator,
    archs: Sequence[Arch],
    path: Path,
    *,
    data_fingerprint: str,
    race: bool = False,
    on_compiled: Progress | None = None,
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """The accuracies of `archs`, a table that is also written to `path`; what its ledger knows is not scored again.

    Columns: ``arch``; ``accuracy``, a share of ``n_images`` validation images; ``accuracy_low`` and ``accuracy_high``,
    its 95 % Wilson interval; ``stopped``, whether a race put it out before the last image; ``n_calibration`` training
    images set its batch norms; ``seconds``, the time from the result before to this one. In a quantized space ``arch``
    says the formats too, and the identity of the ledger names those on offer and how ranges were calibrated.

    Args:
        data_fingerprint: Of the data set that the evaluator's images come from.
        race: Stop subnets for which another one with no more MACs is more accurate beyond doubt (see
            `Evaluator.race`). Such a table is for finding the front: accuracies of stopped subnets are less certain.
        on_progress: Called with the number of architectures done and of all.

    Raises:
        AccuracyTableError: The table or the ledger belongs to another supernet or other images, or was collected in
            another way.
        SpaceMismatchError: The table belongs to another search space.
        InUseError: Another process collects into the same table.
        ValueError: Networks in number formats are to race.
    """
    if race and _is_quantized(evaluator.space):
        raise ValueError(
            "a race is between networks of equal MACs, and number formats do not change them: those of few bits would "
            "all be stopped; score them without a race"
        )
    identity = _identity(evaluator, data_fingerprint, race)
    with locked(path):
        if path.exists():
            require_same(path, read_frame(path, evaluator.space)[1]["collected"], identity)
        ledger = AccuracyLedger.open(path.with_suffix(".ledger.jsonl"), identity)
        work = _race if race else _score
        frame = _frame(archs, *work(evaluator, archs, ledger, on_compiled, on_progress), ledger)
        write_frame(
            path, frame, evaluator.space, data_fingerprint=data_fingerprint, n_calibration=evaluator.n_calibration,
            n_validation=evaluator.n_validation, images_used=ledger.images_used(), collected=identity,
        )  # fmt: skip
    return frame


def _identity(evaluator: Evaluator, data_fingerprint: str, race: bool) -> dict[str, Any]:
    from hanax.supernet import supernet_fingerprint

    return {
        "format": FORMAT,
        "space_fingerprint": evaluator.space.fingerprint,
        "data_fingerprint": data_fingerprint,
        "supernet_fingerprint": supernet_fingerprint(evaluator.params),
        "n_calibration": evaluator.n_calibration,
        "n_validation": evaluator.n_validation,
        "order_of_validation_images": "drawn" if race else "given",
        "race": {"first": RACE_FIRST, "confidence": RACE_CONFIDENCE, "cost": RACE_COST} if race else None,
        **({"quantized": _quantization(evaluator)} if _is_quantized(evaluator.space) else {}),
    }


def _is_quantized(space: SearchSpace) -> bool:
    return any(slot.precision is not None for slot in space.slots)


def _quantization(evaluator: Evaluator) -> dict[str, Any]:
    """The formats on offer, of weights and of activations, and how ranges are calibrated."""
    offered: dict[str, set[int]] = {"weight_bits": set(), "activation_bits": set()}
    for column in precision_columns(evaluator.space):
        decision = evaluator.space.decisions[column]
        offered[decision.name.rpartition(".")[2]].update(decision.options)
    formats = {kind: [format_name(code) for code in sorted(codes)] for kind, codes in offered.items()}
    return formats | {"calibration": evaluator.calibration}


def _score(
    evaluator: Evaluator,
    archs: Sequence[Arch],
    ledger: AccuracyLedger,
    on_compiled: Progress | None,
    on_progress: Progress | None,
) -> tuple[dict[Arch, Bits], set[Arch]]:
    """For each of `archs`, whether it is right on each image, scoring those that `ledger` lacks; nothing is stopped."""
    known = ledger.correct()
    missing = [arch for arch in dict.fromkeys(archs) if arch not in known]
    if not missing:
        return known, set()
    evaluator.compile(on_compiled)
    done = len(archs) - len(missing)
    record = _recorder(ledger)

    def note(arch: Arch, first: int, correct: Bits) -> None:
        nonlocal done
        record(arch, first, correct)
        done += 1
        if on_progress is not None:
            on_progress(done, len(archs))

    rows = evaluator.correct(missing, note)
    return known | dict(zip(missing, rows, strict=True)), set()


def _recorder(ledger: AccuracyLedger) -> Callable[[Arch, int, Bits], None]:
    """Records results in `ledger`, each with the time from the one before, or from now, to it."""
    before = time.perf_counter()

    def record(arch: Arch, first: int, correct: Bits) -> None:
        nonlocal before
        now = time.perf_counter()
        ledger.record(arch, first, correct, now - before)
        before = now

    return record


def _race(
    evaluator: Evaluator,
    archs: Sequence[Arch],
    ledger: AccuracyLedger,
    on_compiled: Progress | None,
    on_progress: Progress | None,
) -> tuple[dict[Arch, Bits], set[Arch]]:
    """For each of `archs`, whether it is right on each image until it is stopped, and which are; from `ledger` on."""
    names, sums = graph_features(evaluator.space, evaluator.space.encode(archs))
    n_scored = 0

    def decided(_: object) -> None:
        nonlocal n_scored
        n_scored += 1
        if on_progress is not None:
            on_progress(n_scored, len(archs))

    evaluator.compile(on_compiled, first=RACE_FIRST)
    outcomes = evaluator.race(
        archs,
        sums[:, [names.index(RACE_COST)]],
        first=RACE_FIRST,
        confidence=RACE_CONFIDENCE,
        known=ledger.correct(),
        on_scored=_recorder(ledger),
        on_result=decided,
    )
    return {o.arch: o.correct for o in outcomes}, {o.arch for o in outcomes if o.stopped}


def _frame(
    archs: Sequence[Arch], correct: dict[Arch, Bits], stopped: set[Arch], ledger: AccuracyLedger
) -> pd.DataFrame:
    seconds = ledger.seconds()
    rows = [correct[arch] for arch in archs]
    intervals = [wilson_interval(int(row.sum()), len(row)) for row in rows]
    return pd.DataFrame({
        "arch": [str(arch) for arch in archs],
        "accuracy": [float(row.mean()) for row in rows],
        "n_images": [len(row) for row in rows],
        "accuracy_low": [low for low, _ in intervals],
        "accuracy_high": [high for _, high in intervals],
        "stopped": [arch in stopped for arch in archs],
        "n_calibration": ledger.identity["n_calibration"],
        "seconds": [seconds[arch] for arch in archs],
    })  # fmt: skip
