"""The supernet of a run in number formats: trained on in them, or only calibrated, and an evaluator of either.

A folder that `quantize_supernet` wrote holds the checkpoints and the log of the training, and ``quantized.json``: which
formats it is for, and which float weights it began with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from hanax._files import write_atomically
from hanax.experiments._config import change_experiment
from hanax.experiments._folder import QUANTIZED_SUPERNET, RunFolder, RunFolderError, stage_states
from hanax.experiments._gather import EXPERIMENT_FILE, read_experiment
from hanax.experiments._pipeline import Pipeline, open_pipeline
from hanax.experiments._progress import Reporter, Silent
from hanax.search_spaces import Arch, SearchSpace, format_name, number_format, quantized_space

if TYPE_CHECKING:
    from hanax.supernet import Calibration, Evaluator, Params

FORMAT = "hanax.quantized_supernet/1"
CARD_FILE = "quantized.json"

EPOCHS_SHARE, LEARNING_RATE_SHARE = 0.2, 0.1
"""Of the float training's epochs and learning rate, what the phase in number formats takes by default."""


@dataclass(frozen=True, slots=True)
class Formats:
    """The number formats on offer in a quantized space, as names; see `hanax.search_spaces.quantized_space`."""

    weights: tuple[str, ...] = ("int4", "int6", "int8")
    activations: tuple[str, ...] = ("int4", "int6", "int8")
    granularity: Literal["block", "network"] = "block"

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            given = getattr(self, name)
            if not given:
                raise ValueError(f"{name}: give at least one number format, such as int8")
            codes = sorted({number_format(text) for text in given})
            object.__setattr__(self, name, tuple(map(format_name, codes)))

    def build(self, space: SearchSpace) -> SearchSpace:
        """`space` with these formats among its decisions."""
        return quantized_space(space, weights=self.weights, activations=self.activations, granularity=self.granularity)

    def __str__(self) -> str:
        return f"weights {', '.join(self.weights)}; activations {', '.join(self.activations)}; by {self.granularity}"


@dataclass(frozen=True, slots=True)
class QuantizedSupernetCard:
    """What a supernet was trained in, and where it began.

    Attributes:
        recipe: The ``supernet`` section that was used, of which schedule and sampling do not matter here, and the seed.
        float_fingerprint: Of the float weights that it began with; its teacher's.
        weights_fingerprint: Of the trained weights.
    """

    formats: Formats
    epochs: float
    recipe: dict[str, Any]
    space_fingerprint: str
    data_fingerprint: str
    float_fingerprint: str
    weights_fingerprint: str

    def write(self, folder: Path) -> None:
        """Write ``quantized.json`` into `folder`."""
        write_atomically(folder / CARD_FILE, json.dumps({"format": FORMAT} | asdict(self), indent=1).encode())


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedSupernet:
    """Weights of a supernet in number formats.

    Attributes:
        origin: Where they are from, for a person to read.
    """

    space: SearchSpace
    params: Params
    origin: str


def quantize_supernet(
    run: str | Path,
    *,
    out: str | Path | None = None,
    formats: Formats | None = None,
    epochs: float | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> QuantizedSupernetCard:
    """Train the supernet of `run` on in number formats, by `hanax.supernet.train_quantized`.

    Call it again with the same arguments to go on after an interruption.

    Args:
        run: The folder of a run whose supernet is trained.
        out: The folder for the result; by default that of the run's stage ``quantized-supernet``.
        formats: The formats to train in; 4, 6 and 8 bits of each block's weights and activations, if None.
        epochs: Passes over the training images; a fifth of those of the float supernet, if None.
        overrides: ``key=value`` settings of the experiment's ``supernet`` section to use in place of the run's. The
            learning rate is a tenth of the run's, if it is not among them.
        reporter: Shows progress; nothing by default.

    Returns:
        What the card in the folder says.

    Raises:
        RunFolderError: There is no run, its supernet is not trained yet, or the folder cannot be used.
        ExperimentError: A setting does not exist or a value is wrong.
        ValueError: There is no such format; or the folder holds a training with other settings, or another run's.
        DivergedError: Training left the finite numbers too often.
    """
    from hanax.supernet import supernet_fingerprint, train_quantized

    reporter, formats = reporter or Silent(), formats or Formats()
    _require_supernet(Path(run))
    given = read_experiment(Path(run))
    changes = {
        "learning_rate": given.supernet.learning_rate * LEARNING_RATE_SHARE,
        "epochs": given.supernet.epochs * EPOCHS_SHARE if epochs is None else epochs,
    }
    experiment = change_experiment(
        given, [*(f"supernet.{name}={value}" for name, value in changes.items()), *(f"supernet.{o}" for o in overrides)]
    )
    pipeline = open_pipeline(given, Path(run), reporter)
    folder = pipeline.folder(QUANTIZED_SUPERNET) if out is None else Path(out)
    if (folder / EXPERIMENT_FILE).exists():
        raise RunFolderError(f"{folder} is the folder of a run; choose another one for the quantized supernet")
    space = formats.build(pipeline.space)
    with RunFolder(folder):
        params = train_quantized(
            space,
            pipeline.params,
            pipeline.split,
            experiment.supernet.recipe(experiment.seed),
            folder,
            fingerprint=pipeline.dataset.fingerprint,
            watch=pipeline.accuracy_images,
            on_progress=reporter.bar("steps"),
            on_compiled=reporter.bar("compiling blocks"),
        )
        card = QuantizedSupernetCard(
            formats=formats,
            epochs=experiment.supernet.epochs,
            recipe=experiment.supernet.model_dump(mode="json") | {"seed": experiment.seed},
            space_fingerprint=space.fingerprint,
            data_fingerprint=pipeline.dataset.fingerprint,
            float_fingerprint=supernet_fingerprint(pipeline.params),
            weights_fingerprint=supernet_fingerprint(params),
        )
        card.write(folder)
    return card


def quantized_supernet(
    pipeline: Pipeline, *, formats: Formats | None = None, folder: Path | None = None
) -> QuantizedSupernet:
    """The weights of a run's supernet in number formats.

    Those in `folder`; by default those of the run's own stage ``quantized-supernet``; where there is none, those of its
    float supernet, to which no format was taught (post-training quantization).

    Args:
        formats: The formats on offer; by default those that `folder` was trained in as its card says, those of the run
            if it quantizes, or 4, 6 and 8 bits of each block's weights and activations.

    Raises:
        RunFolderError: Neither has the run a trained supernet, nor is there a `folder`.
        FileNotFoundError: `folder` holds no supernet.
        SpaceMismatchError: It was trained in other formats, or of another space.
    """
    from hanax.supernet import load_supernet, with_steps

    own = pipeline.folder(QUANTIZED_SUPERNET)
    if folder is None and (own / "checkpoints").exists():
        folder = own
    if folder is None:
        _require_supernet(pipeline.path)
        space = (formats or _formats_of_run(pipeline) or Formats()).build(pipeline.space)
        origin = f"the float supernet of {pipeline.path}, not trained in number formats (post-training quantization)"
        return QuantizedSupernet(space, with_steps(space, pipeline.params), origin)
    space = (formats or _formats_of(folder) or _formats_of_run(pipeline) or Formats()).build(pipeline.space)
    return QuantizedSupernet(space, load_supernet(space, folder), f"{folder}, trained in number formats")


def quantized_evaluator(
    run: str | Path | Pipeline,
    *,
    formats: Formats | None = None,
    calibration: Calibration = "minmax",
    folder: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Evaluator:
    """Scores pairs of architecture and policy of a run, on its own calibration and validation images.

    Args:
        run: The folder of a run whose supernet is trained, or its pipeline.
        formats: The formats on offer, as for `quantized_supernet`.
        calibration: How ranges are found, see `hanax.supernet.activation_range`.
        folder: Where the weights are from, as for `quantized_supernet`.
        reporter: Told where they are from; nothing by default.

    Raises:
        RunFolderError: There is no run, or neither a supernet nor a `folder`.
        FileNotFoundError: `folder` holds no supernet.
        SpaceMismatchError: It was trained in other formats, or of another space.
    """
    from hanax.supernet import Evaluator

    reporter = reporter or Silent()
    pipeline = run if isinstance(run, Pipeline) else open_pipeline(read_experiment(Path(run)), Path(run), reporter)
    found = quantized_supernet(pipeline, formats=formats, folder=None if folder is None else Path(folder))
    reporter.say(f"Supernet: {found.origin}")
    n_calibration, n_validation = pipeline.accuracy_images
    return Evaluator(
        found.space,
        found.params,
        pipeline.split,
        n_calibration=n_calibration,
        n_validation=n_validation,
        calibration=calibration,
    )


def read_archs(path: Path, space: SearchSpace) -> list[Arch]:
    """The architectures in the column ``arch`` of a table, Parquet or CSV, without repetitions.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no such column, or one of them is no architecture of `space` (names the row).
    """
    frame = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
    if "arch" not in frame.columns:
        raise ValueError(f"{path} has no column arch; it has {', '.join(map(str, frame.columns))}")
    archs = []
    for row, text in enumerate(frame["arch"]):
        try:
            archs += space.decode(space.canonical(space.encode([Arch.parse(text)])))
        except ValueError as error:
            raise ValueError(f"{path}, row {row}: {text} is no architecture of {space.name}: {error}") from error
    return list(dict.fromkeys(archs))


def _formats_of(folder: Path) -> Formats | None:
    """What the card in `folder` says it was trained in; None without one."""
    file = folder / CARD_FILE
    if not file.exists():
        return None
    known = json.loads(file.read_text())["formats"]
    return Formats(tuple(known["weights"]), tuple(known["activations"]), known["granularity"])


def _formats_of_run(pipeline: Pipeline) -> Formats | None:
    """What the run's own section `quantization` has on offer; None without one."""
    section = pipeline.experiment.quantization
    return None if section is None else Formats(section.weights, section.activations, section.granularity)


def _require_supernet(run: Path) -> None:
    unfinished = [state for name, state, _ in stage_states(run) if name == "supernet" and state != "done"]
    if unfinished:
        raise RunFolderError(f"the supernet of {run} is {unfinished[0]}; train it first, with `hanax run`")
