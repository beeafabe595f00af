"""A subnet of a run trained on its own: what is left in its folder, what its card says, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine, trained_run

from hanax.experiments import ExperimentError, RunFolderError, finetune, train
from hanax.experiments._after import find_arch
from hanax.experiments._export import count_correct
from hanax.experiments._folder import RunFolder
from hanax.experiments._gather import EXPERIMENT_FILE
from hanax.experiments._pipeline import Pipeline
from hanax.experiments._progress import Progress, Silent
from hanax.search_spaces import Arch
from hanax.supernet import Evaluator, Subnet, load_supernet, supernet_fingerprint

pytestmark = pytest.mark.slow

SETTINGS = ("checkpoint_seconds=0.001", "watch_epochs=0")
ARCH = "smallest"


@pytest.fixture(scope="module")
def pipeline(command_line: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Of a run that has come as far as its supernet."""
    with trained_run(
        command_line, tmp_path_factory.mktemp("after"), ["supernet.epochs=0.7", "supernet.watch_epochs=0"]
    ) as made:
        yield made


@pytest.fixture(scope="module")
def finetuned(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a subnet that was fine-tuned without an interruption."""
    out = tmp_path_factory.mktemp("finetuned") / "net"
    finetune(pipeline.path, ARCH, out, epochs=0.4, overrides=SETTINGS)
    return out


def read_card(folder: Path) -> dict[str, object]:
    card: dict[str, object] = json.loads((folder / "card.json").read_text())
    return card


def test_the_subnet_is_what_its_card_says(pipeline: Pipeline, finetuned: Path) -> None:
    subnet, card = Subnet.load(finetuned, pipeline.space), read_card(finetuned)
    assert subnet.arch == pipeline.space.smallest == Arch.parse(str(card["arch"]))
    n_calibration, n_validation = pipeline.accuracy_images
    images, labels = pipeline.split.x_validation[:n_validation], pipeline.split.y_validation[:n_validation]
    after = card["validation_after"]
    assert isinstance(after, dict)
    assert after["n_images"] == n_validation
    assert after["accuracy"] == count_correct(subnet, images, labels) / n_validation
    assert after["accuracy_low"] < after["accuracy"] < after["accuracy_high"]
    (before,) = pipeline.evaluator.accuracies([subnet.arch])
    assert card["validation_before"] == after | {"accuracy": before} | {
        name: card["validation_before"][name]
        for name in ("accuracy_low", "accuracy_high")  # type: ignore[index]
    }
    assert card["supernet_fingerprint"] == supernet_fingerprint(pipeline.params)
    assert card["weights_fingerprint"] == supernet_fingerprint(load_supernet(pipeline.space, finetuned / "training"))
    assert card["images_used"] == {
        "training": len(pipeline.split.x_train),
        "calibration (of the training images)": n_calibration,
        "validation": n_validation,
        "test": 0,
    }
    assert card["test"] is None


def test_the_recipe_is_the_runs_but_for_what_was_set(pipeline: Pipeline, finetuned: Path) -> None:
    card, experiment = read_card(finetuned), pipeline.experiment
    set_here = {"epochs": 0.4, "checkpoint_seconds": 0.001, "watch_epochs": 0.0}
    expected = experiment.supernet.model_dump(mode="json") | set_here | {"seed": experiment.seed}
    assert card["recipe"] == expected
    assert card["epochs"] == 0.4
    steps = [json.loads(line)["step"] for line in (finetuned / "training" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, round(0.4 * (len(pipeline.split.x_train) // 64)) + 1))


class Interrupting(Silent):
    """Presses Ctrl-C after two steps."""

    def bar(self, label: str) -> Progress:
        def advance(done: int, total: int) -> None:
            if label == "steps" and done == 2:
                raise KeyboardInterrupt

        return advance


def test_a_finetune_that_was_interrupted_ends_with_the_same_weights(
    pipeline: Pipeline, finetuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net"
    with pytest.raises(KeyboardInterrupt):
        finetune(pipeline.path, ARCH, out, epochs=0.4, overrides=SETTINGS, reporter=Interrupting())
    assert not (out / "card.json").exists()
    card = finetune(pipeline.path, ARCH, out, epochs=0.4, overrides=SETTINGS)
    assert json.loads(json.dumps(dataclasses.asdict(card))).items() <= read_card(finetuned).items()
    for name in ("subnet.json", "card.json"):
        assert (out / name).read_bytes() == (finetuned / name).read_bytes()
    with np.load(out / "weights.npz") as ours, np.load(finetuned / "weights.npz") as theirs:
        assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_training_from_fresh_weights_needs_no_supernet(pipeline: Pipeline, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "net"
    run.mkdir()
    (run / EXPERIMENT_FILE).write_bytes((pipeline.path / EXPERIMENT_FILE).read_bytes())
    card = train(run, ARCH, out, epochs=0.2, overrides=SETTINGS)
    assert (card.began_with, card.validation_before, card.supernet_fingerprint) == ("fresh", None, None)
    params = load_supernet(pipeline.space, out / "training")
    n_calibration, n_validation = pipeline.accuracy_images
    evaluator = Evaluator(
        pipeline.space, params, pipeline.split, n_calibration=n_calibration, n_validation=n_validation
    )
    assert card.validation_after.accuracy == evaluator.accuracies([pipeline.space.smallest])[0]
    assert Subnet.load(out).arch == pipeline.space.smallest


def test_test_images_are_touched_only_if_asked_and_the_card_never_forgets_it(
    pipeline: Pipeline, finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"epochs": 0.2, "overrides": SETTINGS}
    asked = finetune(pipeline.path, ARCH, tmp_path, **arguments, test=True)  # type: ignore[arg-type]
    subnet, dataset = Subnet.load(tmp_path), pipeline.dataset
    assert asked.test is not None
    assert asked.test.n_images == asked.images_used["test"] == len(dataset.y_test)
    assert asked.test.accuracy == count_correct(subnet, dataset.x_test, dataset.y_test) / len(dataset.y_test)

    def refuse(*_: object) -> int:
        raise AssertionError("test images were scored")

    monkeypatch.setattr("hanax.experiments._export.count_correct", refuse)
    assert finetune(pipeline.path, ARCH, tmp_path, **arguments) == asked  # type: ignore[arg-type]
    assert finetune(pipeline.path, ARCH, finetuned, epochs=0.4, overrides=SETTINGS).test is None


def test_other_settings_in_the_same_folder_are_refused(pipeline: Pipeline, finetuned: Path) -> None:
    with pytest.raises(ValueError, match=r"holds checkpoints of another training, differing in recipe"):
        finetune(pipeline.path, ARCH, finetuned, epochs=0.6, overrides=SETTINGS)
    with pytest.raises(ValueError, match=r"differing in arch"):
        finetune(pipeline.path, "largest", finetuned, epochs=0.4, overrides=SETTINGS)
    with pytest.raises(ValueError, match=r"differing in inherit"):
        train(pipeline.path, ARCH, finetuned, epochs=0.4, overrides=SETTINGS)


def test_what_cannot_be_done_is_said_before_anything_is_trained(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"choose another one for the subnet"):
        finetune(pipeline.path, ARCH, pipeline.path)
    with pytest.raises(ExperimentError, match=r"supernet\.epoch: unknown key; did you mean 'epochs'\?"):
        finetune(pipeline.path, ARCH, tmp_path / "net", overrides=["epoch=3"])
    with pytest.raises(ExperimentError, match=r"supernet\.epochs: .* greater than 0; given: 0"):
        train(pipeline.path, ARCH, tmp_path / "net", epochs=0)
    with pytest.raises(ValueError, match=r"not an architecture: 'small'"):
        train(pipeline.path, "small", tmp_path / "net")
    with pytest.raises(RunFolderError, match=r"holds no run"):
        finetune(tmp_path, ARCH, tmp_path / "net")
    with RunFolder(tmp_path / "run") as folder:
        folder.write_plan(pipeline.stages())
    with pytest.raises(RunFolderError, match=r"is not started; train it first"):
        finetune(tmp_path / "run", ARCH, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_an_architecture_is_found_by_name_or_text_in_its_canonical_form(pipeline: Pipeline) -> None:
    space = pipeline.space
    assert find_arch(space, "largest") == find_arch(space, space.largest) == space.largest
    for code in space.sample(np.random.default_rng(0), 5):
        (arch,) = space.decode(code[None])
        assert find_arch(space, str(arch)) == arch
