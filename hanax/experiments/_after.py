"""After a search: one subnet of a run trained on its own, from inherited or fresh weights, by the run's recipe.

The folder that is written holds what ``hanax extract`` writes (``weights.npz``, ``subnet.json``), a card
(``card.json``, see `SubnetCard`), and ``training/`` with the checkpoints and the log: an interrupted training goes on
from there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanax._files import write_atomically
from hanax._intervals import wilson_interval
from hanax.experiments._config import Experiment, change_experiment
from hanax.experiments._folder import RunFolder, RunFolderError, stage_states
from hanax.experiments._gather import EXPERIMENT_FILE, read_experiment
from hanax.experiments._pipeline import Pipeline, open_pipeline
from hanax.experiments._progress import Reporter, Silent
from hanax.search_spaces import Arch, SearchSpace, float_arch

if TYPE_CHECKING:
    from hanax.supernet import Evaluator, Params, Subnet

FORMAT = "hanax.subnet_card/1"
CARD_FILE = "card.json"
TRAINING_FOLDER = "training"


@dataclass(frozen=True, slots=True)
class Score:
    """A share of images that are classified correctly, with its 95 % Wilson interval."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n_images: int

    @classmethod
    def of(cls, n_correct: int, n_images: int) -> Score:
        """The score of `n_correct` among `n_images`."""
        return cls(n_correct / n_images, *wilson_interval(n_correct, n_images), n_images)


@dataclass(frozen=True, slots=True)
class SubnetCard:
    """How a subnet was trained on its own, and what it is worth.

    Attributes:
        arch: The architecture, as tables write it.
        began_with: A supernet's weights, or fresh ones.
        epochs: Passes over the training images.
        recipe: The ``supernet`` section that was used, of which the schedule and its subnets do not matter here, and
            the seed.
        validation_before: Of the inherited weights; None where it began with fresh ones.
        validation_after: Of the trained weights, on the same images, calibrated on the same training images.
        test: Of the exported model on all test images; None unless that was asked for.
        images_used: For each part of the data, how many of its images any of this used; test images are 0 unless the
            test score was asked for, now or in an earlier call.
        supernet_fingerprint: Of the inherited weights; None where it began with fresh ones.
        weights_fingerprint: Of the trained weights, in the arrays of the supernet.
    """

    arch: str
    began_with: Literal["inherited", "fresh"]
    epochs: float
    recipe: dict[str, Any]
    validation_before: Score | None
    validation_after: Score
    test: Score | None
    images_used: dict[str, int]
    macs: int
    params: int
    space_fingerprint: str
    data_fingerprint: str
    supernet_fingerprint: str | None
    weights_fingerprint: str

    def write(self, folder: Path) -> None:
        """Write ``card.json`` into `folder`."""
        content = {"format": FORMAT} | dataclasses.asdict(self)
        write_atomically(folder / CARD_FILE, json.dumps(content, indent=1).encode())


def finetune(
    run: str | Path,
    arch: str | Arch,
    out: str | Path,
    *,
    epochs: float | None = None,
    overrides: Sequence[str] = (),
    test: bool = False,
    reporter: Reporter | None = None,
) -> SubnetCard:
    """Train `arch` alone from the weights that it inherits from the supernet of `run`.

    `hanax.supernet.train_subnet` does, by the recipe of the run. Call it again with the same arguments to go on after
    an interruption. The subnet is then extracted, its batch norms calibrated on training images, and written into
    folder `out` with its card.

    Args:
        run: The folder of a run whose supernet is trained.
        arch: The architecture, as tables write it, or ``largest`` or ``smallest``.
        epochs: Passes over the training images; the recipe's, if None.
        overrides: ``key=value`` settings of the experiment's ``supernet`` section to use in place of the run's, e.g.
            ``learning_rate=0.001``.
        test: Score the exported model on the test images; they are not touched otherwise.
        reporter: Shows progress; nothing by default.

    Returns:
        What the card says.

    Raises:
        RunFolderError: There is no run, its supernet is not trained yet, or `out` cannot be used.
        ExperimentError: A setting does not exist or a value is wrong.
        ValueError: There is no such architecture; or `out` holds a training with other settings, or another run's.
        DivergedError: Training left the finite numbers too often.
    """
    unfinished = [state for name, state, _ in stage_states(Path(run)) if name == "supernet" and state != "done"]
    if unfinished:
        raise RunFolderError(f"the supernet of {run} is {unfinished[0]}; train it first, with `hanax run`")
    return _train_alone("inherited", run, arch, out, epochs, overrides, test, reporter or Silent())


def train(
    run: str | Path,
    arch: str | Arch,
    out: str | Path,
    *,
    epochs: float | None = None,
    overrides: Sequence[str] = (),
    test: bool = False,
    reporter: Reporter | None = None,
) -> SubnetCard:
    """Train `arch` alone from fresh weights by the recipe of `run`, whose supernet it does not need.

    All else is as in `finetune`.
    """
    return _train_alone("fresh", run, arch, out, epochs, overrides, test, reporter or Silent())


def _train_alone(
    began_with: Literal["inherited", "fresh"],
    run: str | Path,
    arch: str | Arch,
    out: str | Path,
    epochs: float | None,
    overrides: Sequence[str],
    test: bool,
    reporter: Reporter,
) -> SubnetCard:
    from hanax.supernet import release_freed_memory, train_subnet

    path = Path(out)
    changes = [f"supernet.{item}" for item in overrides] + ([] if epochs is None else [f"supernet.epochs={epochs}"])
    given = read_experiment(Path(run))
    experiment = change_experiment(given, changes)
    pipeline = open_pipeline(given, Path(run), reporter)
    chosen = find_float_arch(pipeline, arch)
    if (path / EXPERIMENT_FILE).exists():
        raise RunFolderError(f"{path} is the folder of a run; choose another one for the subnet")
    inherited = pipeline.params if began_with == "inherited" else None
    with RunFolder(path):
        trained = train_subnet(
            pipeline.space,
            chosen,
            pipeline.split,
            experiment.supernet.recipe(experiment.seed),
            path / TRAINING_FOLDER,
            inherit=inherited,
            fingerprint=pipeline.dataset.fingerprint,
            watch=pipeline.accuracy_images,
            on_progress=reporter.bar("steps"),
        )
        release_freed_memory()
        subnet, card = _judge(pipeline, experiment, chosen, inherited, trained, _known_test(path), test)
        subnet.save(path)
        card.write(path)
    return card


def _judge(
    pipeline: Pipeline,
    experiment: Experiment,
    arch: Arch,
    inherited: Params | None,
    trained: Params,
    known_test: tuple[str, Score] | None,
    test: bool,
) -> tuple[Subnet, SubnetCard]:
    """The trained subnet, calibrated, and its card.

    Args:
        known_test: The fingerprint of weights that were scored on the test images before, and their score.
    """
    from hanax.supernet import Evaluator, supernet_fingerprint

    n_calibration, n_validation = pipeline.accuracy_images
    evaluator = Evaluator(
        pipeline.space, trained, pipeline.split, n_calibration=n_calibration, n_validation=n_validation
    )
    subnet = evaluator.extract(arch)
    fingerprint = supernet_fingerprint(trained)
    test_score = known_test[1] if known_test is not None and known_test[0] == fingerprint else None
    if test and test_score is None:
        test_score = _score_on_test(pipeline, subnet)
    card = SubnetCard(
        arch=str(arch),
        began_with="fresh" if inherited is None else "inherited",
        epochs=experiment.supernet.epochs,
        recipe=experiment.supernet.model_dump(mode="json") | {"seed": experiment.seed},
        validation_before=None if inherited is None else _score(pipeline.evaluator, arch),
        validation_after=_score(evaluator, arch),
        test=test_score,
        images_used={
            "training": len(pipeline.split.x_train),
            "calibration (of the training images)": n_calibration,
            "validation": n_validation,
            "test": 0 if test_score is None else test_score.n_images,
        },
        macs=subnet.graph.macs,
        params=subnet.graph.params,
        space_fingerprint=pipeline.space.fingerprint,
        data_fingerprint=pipeline.dataset.fingerprint,
        supernet_fingerprint=None if inherited is None else supernet_fingerprint(inherited),
        weights_fingerprint=fingerprint,
    )
    return subnet, card


def _score(evaluator: Evaluator, arch: Arch) -> Score:
    (correct,) = evaluator.correct([arch])
    return Score.of(int(correct.sum()), len(correct))


def _score_on_test(pipeline: Pipeline, subnet: Subnet) -> Score:
    from hanax.experiments._export import count_correct

    dataset = pipeline.dataset
    return Score.of(count_correct(subnet, dataset.x_test, dataset.y_test), len(dataset.y_test))


def _known_test(folder: Path) -> tuple[str, Score] | None:
    """Fingerprint of the weights and test score of the card in `folder`, if it has one: what was seen stays on it."""
    path = folder / CARD_FILE
    card = json.loads(path.read_text()) if path.exists() else {}
    return (card["weights_fingerprint"], Score(**card["test"])) if card.get("test") else None


def find_float_arch(pipeline: Pipeline, arch: str | Arch) -> Arch:
    """As `find_arch`, for what works in float32 alone, in a run that may quantize.

    Raises:
        ValueError: There is no such architecture; or `arch` has number formats, too: says what it is without.
    """
    if has_formats(pipeline, arch):
        space = pipeline.searched_space
        given = find_arch(space, arch)
        raise ValueError(
            f"{given} is an architecture with number formats, and a subnet is trained in float32: "
            f"give {float_arch(space, given)}, which it is without them"
        )
    return find_arch(pipeline.space, arch)


def has_formats(pipeline: Pipeline, arch: str | Arch) -> bool:
    """Whether `arch` is of a run that quantizes and has number formats, which ``largest`` and ``smallest`` have not."""
    searched = pipeline.searched_space
    if arch in ("largest", "smallest") or len(searched.decisions) == len(pipeline.space.decisions):
        return False
    given = arch if isinstance(arch, Arch) else Arch.parse(arch)
    return len(given.choices) == len(searched.decisions)


def find_arch(space: SearchSpace, arch: str | Arch) -> Arch:
    """The canonical form of `arch`, which is an architecture, its text, or ``largest`` or ``smallest``.

    Raises:
        ValueError: `space` has no such architecture.
    """
    ends = {"largest": space.largest, "smallest": space.smallest}
    chosen = arch if isinstance(arch, Arch) else ends.get(arch) or Arch.parse(arch)
    return space.decode(space.canonical(space.encode([chosen])))[0]
