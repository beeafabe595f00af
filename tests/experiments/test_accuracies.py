"""A table of accuracies scores nothing twice, is tied to its supernet, and says which images it looked at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from hanax._files import InUseError, locked
from hanax.experiments._accuracies import AccuracyLedger, AccuracyTableError, collect_accuracy
from hanax.experiments._fitting import draw_archs
from hanax.experiments._frames import read_frame
from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError, mobilenet_v3
from hanax.supernet import Outcome, Params
from hanax.supernet._racing import front_rules, hold_race, looks_of

SPACE = mobilenet_v3(resolutions=(8,), n_classes=3)
N_VALIDATION = 1200


def weights(value: float) -> Params:
    return {"slot": {"conv": {"kernel": jnp.full(3, value)}}}


class Killed(BaseException):
    """What ends a collection in these tests: nothing catches it."""


@dataclasses.dataclass
class FakeEvaluator:
    """Knows the answers of every architecture without a supernet, and dies when asked for more than it may score."""

    space: SearchSpace = SPACE
    params: Params = dataclasses.field(default_factory=lambda: weights(0.0))
    n_calibration: int = 64
    n_validation: int = N_VALIDATION
    may_score: int = 1000
    scored: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)

    def compile(self, on_progress: object = None, *, first: int | None = None) -> None:
        assert first is None or first < self.n_validation

    def answers(self, arch: Arch) -> np.ndarray:
        rng = np.random.default_rng(arch.choices)
        return rng.random(self.n_validation) < rng.uniform(0.3, 0.95)

    def note(self, arch: Arch, start: int, stop: int) -> np.ndarray:
        if len(self.scored) == self.may_score:
            raise Killed
        self.scored.append((str(arch), start, stop))
        return self.answers(arch)[start:stop]

    def correct(self, archs: Sequence[Arch], on_scored: Callable[..., None]) -> np.ndarray:
        rows = []
        for arch in archs:
            rows.append(self.note(arch, 0, self.n_validation))
            on_scored(arch, 0, rows[-1])
        return np.array(rows)

    def race(
        self, archs: Sequence[Arch], costs: np.ndarray, *, first: int, confidence: float, **rest: Any
    ) -> list[Outcome]:
        def score(racing: Sequence[Arch], start: int, stop: int) -> Any:
            yield from ((index, self.note(arch, start, stop)) for index, arch in enumerate(racing))

        rules = front_rules(costs, confidence=confidence, n_looks=looks_of(self.n_validation, first))
        return hold_race(archs, rules, self.n_validation, first, score, **rest)


ARCHS = draw_archs(SPACE, 10, [0])


def collect(evaluator: FakeEvaluator, path: Path, archs: Sequence[Arch] = ARCHS, **settings: Any) -> pd.DataFrame:
    return collect_accuracy(evaluator, archs, path, **({"data_fingerprint": "d" * 16} | settings))  # type: ignore[arg-type]


def test_a_table_says_how_sure_each_accuracy_is(tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    frame = collect(evaluator, tmp_path / "accuracy.parquet")
    assert frame["arch"].tolist() == [str(arch) for arch in ARCHS]
    np.testing.assert_array_equal(frame["accuracy"], [evaluator.answers(arch).mean() for arch in ARCHS])
    assert (frame["n_images"] == N_VALIDATION).all() and not frame["stopped"].any()
    assert (frame["accuracy_low"] < frame["accuracy"]).all() and (frame["accuracy"] < frame["accuracy_high"]).all()
    assert (frame["n_calibration"] == 64).all() and (frame["seconds"] >= 0.0).all()
    stored, facts = read_frame(tmp_path / "accuracy.parquet", SPACE)
    pd.testing.assert_frame_equal(stored, frame)
    assert facts["data_fingerprint"] == facts["collected"]["data_fingerprint"] == "d" * 16
    assert len(facts["collected"]["supernet_fingerprint"]) == 16


@pytest.mark.parametrize("race", [False, True])
def test_images_used_are_on_record_and_none_is_a_test_image(race: bool, tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    frame = collect(evaluator, tmp_path / "accuracy.parquet", race=race)
    header, *lines = map(json.loads, (tmp_path / "accuracy.ledger.jsonl").read_text().splitlines())
    assert {line["scored_on"]["part"] for line in lines} == {"validation"}
    assert {line["calibrated_on"]["part"] for line in lines} == {"train"}
    assert {(line["calibrated_on"]["first"], line["calibrated_on"]["n"]) for line in lines} == {(0, 64)}
    on_record = [(line["arch"], line["scored_on"]["first"], line["scored_on"]["n"]) for line in lines]
    assert on_record == [(arch, start, stop - start) for arch, start, stop in evaluator.scored]
    assert header["order_of_validation_images"] == ("drawn" if race else "given")
    images = pd.DataFrame(on_record, columns=["arch", "first", "n"]).groupby("arch")["n"].sum()
    np.testing.assert_array_equal(images[frame["arch"]], frame["n_images"])
    facts = read_frame(tmp_path / "accuracy.parquet", SPACE)[1]
    assert facts["images_used"] == {"train": 64, "validation": N_VALIDATION, "test": 0}


def test_a_race_spends_fewer_images_on_what_is_dominated(tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    frame = collect(evaluator, tmp_path / "accuracy.parquet", race=True)
    assert frame["stopped"].any() and not frame["stopped"].all()
    assert (frame["stopped"] == (frame["n_images"] < N_VALIDATION)).all()
    for arch, n_images, accuracy in zip(ARCHS, frame["n_images"], frame["accuracy"], strict=True):
        assert accuracy == evaluator.answers(arch)[:n_images].mean()


def test_a_table_that_another_process_collects_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.parquet"
    with locked(path), pytest.raises(InUseError, match=r"accuracy\.parquet is in use by process \d+"):
        collect(FakeEvaluator(may_score=0), path)
    assert not path.exists() and not path.with_suffix(".ledger.jsonl").exists()
    assert len(collect(FakeEvaluator(), path)) == len(ARCHS)


@pytest.mark.parametrize("race", [False, True])
def test_a_killed_collection_goes_on_without_scoring_anything_twice(race: bool, tmp_path: Path) -> None:
    expected = collect(whole := FakeEvaluator(), tmp_path / "whole.parquet", race=race)
    for may_score in (0, 1, 7, len(whole.scored) - 1):
        path = tmp_path / f"killed{may_score}.parquet"
        before, after = FakeEvaluator(may_score=may_score), FakeEvaluator()
        with pytest.raises(Killed):
            collect(before, path, race=race)
        with path.with_suffix(".ledger.jsonl").open("a") as stream:
            stream.write('{"arch": "0.1')  # a line that the crash tore
        frame = collect(after, path, race=race)
        assert sorted(before.scored + after.scored) == sorted(whole.scored)
        pd.testing.assert_frame_equal(frame.drop(columns="seconds"), expected.drop(columns="seconds"))
        collect(again := FakeEvaluator(), path, race=race)
        assert not again.scored


def test_more_architectures_may_be_asked_for_later(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.parquet"
    collect(FakeEvaluator(), path, ARCHS[:4])
    evaluator = FakeEvaluator()
    assert len(collect(evaluator, path, ARCHS)) == len(ARCHS)
    assert [arch for arch, _, _ in evaluator.scored] == [str(arch) for arch in ARCHS[4:]]


@pytest.mark.parametrize("without", ["table", "ledger"])
@pytest.mark.parametrize(("evaluator", "settings", "differing"), [
    (FakeEvaluator(params=weights(1.0)), {}, "supernet_fingerprint was [0-9a-f]{16}, is [0-9a-f]{16}"),
    (FakeEvaluator(), {"data_fingerprint": "e" * 16}, f"data_fingerprint was {'d' * 16}, is {'e' * 16}"),
    (FakeEvaluator(n_calibration=32), {}, "n_calibration was 64, is 32"),
    (FakeEvaluator(n_validation=600), {}, "n_validation was 1200, is 600"),
    (FakeEvaluator(), {"race": True}, "race was None, is"),
])  # fmt: skip
def test_a_table_of_something_else_is_refused(
    without: str, evaluator: FakeEvaluator, settings: dict[str, Any], differing: str, tmp_path: Path
) -> None:
    path = tmp_path / "accuracy.parquet"
    collect(FakeEvaluator(), path)
    (path if without == "table" else path.with_suffix(".ledger.jsonl")).unlink()
    with pytest.raises(AccuracyTableError, match=differing):
        collect(evaluator, path, **settings)
    assert not evaluator.scored


def test_a_table_of_another_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.parquet"
    collect(FakeEvaluator(), path)
    other = FakeEvaluator(space=mobilenet_v3(resolutions=(9,), n_classes=3))
    with pytest.raises(SpaceMismatchError):
        collect(other, path)


def test_bits_survive_the_ledger(tmp_path: Path) -> None:
    ledger = AccuracyLedger.open(tmp_path / "a" / "ledger.jsonl", {"n_calibration": 1})
    rng = np.random.default_rng(0)
    parts = [rng.random(n) < 0.5 for n in (5, 8, 1, 0, 21)]
    for part, first in zip(parts, np.cumsum([0, 5, 8, 1, 0]).tolist(), strict=True):
        ledger.record(Arch((1, 2)), first, part, 0.5)
    np.testing.assert_array_equal(ledger.correct()[Arch((1, 2))], np.concatenate(parts))
    assert ledger.seconds() == {Arch((1, 2)): 2.5}
