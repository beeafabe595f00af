"""Experiment files: the schema, and reading them with errors that name what would be right.

pydantic lives only here; the library below takes plain arguments.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

if TYPE_CHECKING:
    from hanax.devices import DeviceSpec, Place
    from hanax.search_spaces import SearchSpace
    from hanax.searchers import Constraint, Objective, Searcher
    from hanax.supernet import ImageDataset, Recipe

_IN_WHEEL, _IN_CHECKOUT = Path(__file__).parent / "files", Path(__file__).parents[2] / "experiments"

PACKAGED_FILES = _IN_WHEEL if _IN_WHEEL.exists() else _IN_CHECKOUT
"""The experiment files that come with Hanax, so that ``hanax run quickstart`` works from anywhere."""

Activation = Literal["relu", "hswish"]
Cost = Literal[
    "accuracy",
    "latency_ms",
    "macs",
    "params",
    "peak_activation_bytes",
    "size_bytes",
    "bit_operations",
    "bitfusion_latency_ms",
    "bitfusion_energy_mj",
]

BITFUSION_COSTS = ("bitfusion_latency_ms", "bitfusion_energy_mj")
"""Costs on the BitFusion accelerator, which computes each block in its own bits; they need its public table."""

POLICY_COSTS = ("size_bytes", "bit_operations", *BITFUSION_COSTS)
"""Costs that number formats decide, so only a run that quantizes has them."""


class ExperimentError(ValueError):
    """An experiment file cannot be used; the message says where, what was given and what would be right."""


class Strict(BaseModel):
    """A section of an experiment file: fixed once read, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Strict):
    """The images.

    Attributes:
        path: ``digits`` (comes with scikit-learn), or a file or folder; see `hanax.supernet.load_images`.
        image_size: Resize every image to this height and width; needed for folders of images of different sizes.
        validation_fraction: Share of the training images, by class, that is kept out of training to choose by.
    """

    path: str = "digits"
    image_size: int | None = Field(default=None, ge=4)
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)


class SpaceConfig(Strict):
    """The search space; what is not given is the default of `hanax.search_spaces.mobilenet_v3`.

    Attributes:
        resolutions: Input sizes on offer; the size of the images if not given.
    """

    kind: Literal["mobilenet_v3"] = "mobilenet_v3"
    resolutions: tuple[int, ...] | None = None
    width_mult: float | None = Field(default=None, gt=0)
    kernel_sizes: tuple[int, ...] | None = None
    expand_ratios: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    stem_width: int | None = Field(default=None, ge=1)
    stem_stride: int | None = Field(default=None, ge=1)
    stage_widths: tuple[int, ...] | None = None
    stage_strides: tuple[int, ...] | None = None
    stage_activations: tuple[Activation, ...] | None = None
    stage_squeeze_excite: tuple[bool, ...] | None = None
    head_width: int | None = Field(default=None, ge=1)
    feature_width: int | None = Field(default=None, ge=1)

    @field_validator("kind", mode="before")
    @classmethod
    def _has_a_supernet(cls, kind: object) -> object:
        if kind in ("nas_bench_201", "fbnet"):
            raise ValueError("an experiment trains a supernet, and this space has none yet; mobilenet_v3 has one")
        return kind

    def build(self, image_side: int, image_channels: int, n_classes: int) -> SearchSpace:
        """The space for images of this side and these channels and classes."""
        from hanax.search_spaces import mobilenet_v3

        given = {name: value for name, value in self if name not in ("kind", "resolutions") and value is not None}
        resolutions = self.resolutions or (image_side,)
        return mobilenet_v3(resolutions=resolutions, image_channels=image_channels, n_classes=n_classes, **given)


class AugmentationConfig(Strict):
    """Random changes to training images; see `hanax.supernet.Augmentation`."""

    pad_crop: int = Field(default=0, ge=0)
    flip: bool = False
    cutout: int = Field(default=0, ge=0)
    mixup: float = Field(default=0.0, ge=0)


PerPhase = tuple[float, float, float, float, float, float]
"""A positive value for each phase of progressive shrinking; see `hanax.supernet.Recipe`."""


class SupernetConfig(Strict):
    """How the supernet is trained; see `hanax.supernet.Recipe`."""

    epochs: float = Field(default=10.0, gt=0)
    batch_size: int = Field(default=128, ge=2)
    n_shards: int = Field(default=1, ge=1)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = Field(default=2e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.02, ge=0)
    warmup_epochs: float = Field(default=0.5, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float = Field(default=5.0, gt=0)
    schedule: Literal["sandwich", "progressive_shrinking"] = "sandwich"
    n_random_subnets: int = Field(default=2, ge=0)
    sampling: Literal["uniform", "attentive_best", "attentive_worst"] = "uniform"
    divergence: Literal["kl", "alpha"] = "kl"
    distillation_weight: float = Field(default=1.0, ge=0)
    sort_channels: Literal["l1", "taylor"] | None = "l1"
    phase_epochs: PerPhase = (180.0, 125.0, 25.0, 125.0, 25.0, 125.0)
    phase_learning_rates: PerPhase = (1.0, 0.37, 0.031, 0.092, 0.031, 0.092)
    phase_subnets: tuple[int, int, int, int, int, int] = (1, 1, 2, 2, 4, 4)
    execution: Literal["auto", "chain", "masked"] = "auto"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    watch_epochs: float = Field(default=1.0, ge=0)
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="after")
    def _makes_a_recipe(self) -> SupernetConfig:
        if self.batch_size % self.n_shards or self.batch_size < 2 * self.n_shards:
            raise ValueError(
                f"n_shards must divide batch_size {self.batch_size} into parts of at least 2 images; "
                f"given: {self.n_shards}"
            )
        if self.sampling != "uniform" and self.schedule != "sandwich":
            raise ValueError(f"sampling {self.sampling} needs schedule sandwich; given: {self.schedule}")
        for name in ("phase_epochs", "phase_learning_rates", "phase_subnets"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must all be above 0; given: {list(getattr(self, name))}")
        return self

    def recipe(self, seed: int) -> Recipe:
        """The recipe with a seed."""
        from hanax.supernet import Augmentation, Recipe

        fields = {name: value for name, value in self if name != "augmentation"}
        return Recipe(**fields, augmentation=Augmentation(**dict(self.augmentation)), seed=seed)


class QuantizationConfig(Strict):
    """Number formats of weights and activations among the decisions; the run ships integer models.

    Attributes:
        weights: Formats on offer for weights, ``int2`` to ``int8``; one alone fixes it.
        activations: Formats on offer for activations.
        granularity: Whether every block but the first and the last decides, or the network as a whole.
        calibration: How the ranges of tensors are found on the calibration images; see `hanax.supernet.Evaluator`.
        epochs: Passes over the training images with quantization, after the supernet is trained in float32; a fifth of
            the supernet's, if not given. 0: none, which is post-training quantization.
        learning_rate: The highest one of these passes; a tenth of the supernet's, if not given.
    """

    weights: tuple[str, ...] = Field(default=("int4", "int6", "int8"), min_length=1)
    activations: tuple[str, ...] = Field(default=("int4", "int6", "int8"), min_length=1)
    granularity: Literal["block", "network"] = "block"
    calibration: Literal["minmax", "percentile", "mse"] = "minmax"
    epochs: float | None = Field(default=None, ge=0)
    learning_rate: float | None = Field(default=None, gt=0)

    @field_validator("weights", "activations")
    @classmethod
    def _are_integers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from hanax.search_spaces import INT8, number_format

        for name in names:
            if number_format(name) > INT8:
                raise ValueError(f"a run ships integer models, so formats are int2 to int8; {name} is none of them")
        return names

    def build(self, space: SearchSpace) -> SearchSpace:
        """`space` with number formats among its decisions."""
        from hanax.search_spaces import quantized_space

        return quantized_space(space, weights=self.weights, activations=self.activations, granularity=self.granularity)

    def recipe(self, supernet: SupernetConfig, seed: int) -> Recipe | None:
        """How the quantized supernet is trained, which began as the one that `supernet` says; None: not at all."""
        epochs = supernet.epochs / 5 if self.epochs is None else self.epochs
        if epochs == 0:
            return None
        rate = supernet.learning_rate / 10 if self.learning_rate is None else self.learning_rate
        changes = {"epochs": epochs, "learning_rate": rate, "schedule": "sandwich", "sampling": "uniform"}
        return supernet.model_copy(update=changes).recipe(seed)


class AccuracyConfig(Strict):
    """Accuracies that the accuracy predictor learns from.

    Attributes:
        archs: Subnets to evaluate, the largest and smallest among them.
        n_calibration: Training images that set a subnet's batch norms.
        n_validation: Validation images it is scored on (all, if there are fewer).
    """

    archs: int = Field(default=60, ge=12)
    n_calibration: int = Field(default=1000, ge=1)
    n_validation: int = Field(default=2000, ge=1)


INTEGER_FORMATS = ("onnx-int8", "tflite-int8")
"""Model files that hold integers with fixed scales, as a run with `QuantizationConfig` ships them."""


def integer_devices() -> list[str]:
    """The devices of a run that quantizes."""
    from hanax.devices import DEVICES

    return [spec.name for spec in DEVICES.values() if spec.kind == "measured" and spec.model_format in INTEGER_FORMATS]


class DeviceConfig(Strict):
    """A device to find a front for.

    Attributes:
        place: Where it is, if not here: ``ssh://user@host:port/?python=...`` or ``adb://SERIAL``; see
            `hanax.devices.find_place`.
        archs: Networks to measure for the latency predictor, the largest and smallest among them.
        table: A latency table measured before, to use in place of measuring.
        max_latency_ms: Networks slower than this are not wanted.
        max_latency_probability: With which a network must keep `max_latency_ms` when it is measured, by its predicted
            interval; if not given, its predicted latency must keep it.
        target_relative_ci: When a latency is known well enough: half the 95 % interval over the value.
    """

    name: str = "onnxruntime-fp32"
    place: str | None = None
    archs: int = Field(default=60, ge=12)
    threads: int = Field(default=1, ge=1)
    batch: int = Field(default=1, ge=1)
    table: str | None = None
    max_latency_ms: float | None = Field(default=None, gt=0)
    max_latency_probability: float | None = Field(default=None, gt=0.5, lt=1)
    target_relative_ci: float = Field(default=0.02, gt=0, lt=1)

    @field_validator("place")
    @classmethod
    def _is_a_place(cls, place: str | None) -> str | None:
        from hanax.devices import find_place

        if place is not None:
            find_place(place)
        return place

    @model_validator(mode="after")
    def _certifies_a_bound(self) -> DeviceConfig:
        if self.max_latency_probability is not None and self.max_latency_ms is None:
            raise ValueError("max_latency_probability says how surely max_latency_ms is kept; set that as well")
        return self

    @property
    def label(self) -> str:
        """What it is called in folders, tables and reports: its name, and where it is, if not here."""
        place = self.find_place()
        return self.name if place is None else place.device_name(self.name)

    def find_place(self) -> Place | None:
        """Where it is; None: here."""
        from hanax.devices import find_place

        return None if self.place is None else find_place(self.place)

    def spec(self) -> DeviceSpec:
        """The device.

        Raises:
            UnknownDeviceError: No device has this name; lists those there are.
            ValueError: It cannot be measured at its place.
        """
        import dataclasses

        from hanax.devices import RUNTIMES, find_device

        known = find_device(self.name)
        if self.place is not None and (known.kind != "measured" or RUNTIMES[known.runtime].programs):
            raise ValueError(f"{self.name} works on this machine only: it needs more than a Python with its runtime")
        return dataclasses.replace(known, name=self.label, threads=self.threads, batch=self.batch)


class ConstraintConfig(Strict):
    """Bounds of a cost, for every device.

    Attributes:
        probability: With which a network must keep the bounds when it is measured, by its predicted interval; if not
            given, its predicted cost must keep them. For costs that are predicted.
    """

    cost: Cost
    at_most: float | None = None
    at_least: float | None = None
    probability: float | None = Field(default=None, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _has_a_bound(self) -> ConstraintConfig:
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"the constraint on {self.cost} needs at_most, at_least or both")
        if self.probability is not None and self.cost not in ("accuracy", "latency_ms"):
            raise ValueError(f"{self.cost} is known exactly, so its bounds are kept or not; leave probability out")
        return self


class Nsga2Config(Strict):
    """Our vectorised NSGA-II."""

    kind: Literal["nsga2"] = "nsga2"
    population: int = Field(default=100, ge=4)

    def build(self, space: SearchSpace, n_objectives: int, seed: int) -> Searcher:
        """The searcher."""
        from hanax.searchers import Nsga2

        return Nsga2(space, population=self.population, seed=seed)


class OptunaConfig(Strict):
    """An Optuna study over the same space."""

    kind: Literal["optuna"] = "optuna"
    sampler: Literal["linas", "evolution", "nsga2", "tpe", "random"] = "nsga2"

    def build(self, space: SearchSpace, n_objectives: int, seed: int) -> Searcher:
        """The searcher."""
        from hanax.searchers import OptunaSearcher

        return OptunaSearcher(space, sampler=self.sampler, n_objectives=n_objectives, seed=seed)


class RandomConfig(Strict):
    """Networks drawn at random, the baseline."""

    kind: Literal["random"] = "random"

    def build(self, space: SearchSpace, n_objectives: int, seed: int) -> Searcher:
        """The searcher."""
        from hanax.searchers import RandomSearcher

        return RandomSearcher(space, seed=seed)


class GridConfig(Strict):
    """Every network of a small space, in lexical order; see `hanax.searchers.GridSearcher`."""

    kind: Literal["grid"] = "grid"

    def build(self, space: SearchSpace, n_objectives: int, seed: int) -> Searcher:
        """The searcher."""
        from hanax.searchers import GridSearcher

        return GridSearcher(space)


class LocalConfig(Strict):
    """Whole neighbourhoods of the best networks; see `hanax.searchers.LocalSearcher`."""

    kind: Literal["local"] = "local"
    starts: int = Field(default=10, ge=1)

    def build(self, space: SearchSpace, n_objectives: int, seed: int) -> Searcher:
        """The searcher."""
        from hanax.searchers import LocalSearcher

        return LocalSearcher(space, starts=self.starts, seed=seed)


class AgingConfig(Strict):
    """Aging evolution; see `hanax.searchers.AgingSearcher`.

    Attributes:
        sample: Members that compete to be a parent.
        weights: One per objective, in their order, of costs to minimise (of the negative of those to maximise); their
            sum decides. If not given, dominance does.
    """

    kind: Literal["aging"] = "aging"
    population: int = Field(default=100, ge=1)
    sample: int = Field(default=25, ge=1)
    weights: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _samples_from_the_population(self) -> AgingConfig:
        if self.sample > self.population:
            raise ValueError(f"sample is at most the population of {self.population}; given: {self.sample}")
        return self

    def build(self, space: SearchSpace, n_objectives: int, seed: int) -> Searcher:
        """The searcher."""
        from hanax.searchers import AgingSearcher

        return AgingSearcher(
            space, population=self.population, sample=self.sample, seed=seed, scalarisation=self.weights
        )


class ReinforceConfig(Strict):
    """A policy gradient on one reward; see `hanax.searchers.Reinforce`.

    Attributes:
        weights: One per objective, in their order, of costs to minimise (of the negative of those to maximise); the
            reward is minus their sum.
        penalty: Reward taken away per unit of violation of the constraints.
    """

    kind: Literal["reinforce"] = "reinforce"
    weights: tuple[float, ...]
    batch: int = Field(default=20, ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    entropy: float = Field(default=0.02, ge=0)
    penalty: float = Field(default=1.0, ge=0)

    def build(self, space: SearchSpace, n_objectives: int, seed: int) -> Searcher:
        """The searcher."""
        from hanax.searchers import Reinforce

        return Reinforce(
            space, self.weights, batch=self.batch, learning_rate=self.learning_rate, entropy=self.entropy,
            penalty=self.penalty, seed=seed,
        )  # fmt: skip


AnySearcher = Nsga2Config | OptunaConfig | RandomConfig | GridConfig | LocalConfig | AgingConfig | ReinforceConfig
SEARCHER_KINDS = tuple(option.model_fields["kind"].default for option in typing.get_args(AnySearcher))


LINAS_EVALUATIONS = 1000
"""Up to which a run may search with ``linas``, whose models take longer the more there are."""


class SearchConfig(Strict):
    """The search on the predictors, and how much of its front is confirmed by measurement.

    Attributes:
        evaluations: Networks the searcher may look at.
        warm_start: Begin with the exact front under the predictors, where it can be computed.
        objectives: Costs to trade off.
        constraints: Bounds beside each device's `max_latency_ms`.
        candidates: Members of the predicted front that are extracted, evaluated and measured; the front that is
            shipped is what of them is not dominated in measured latency and validation accuracy.
    """

    searcher: Annotated[AnySearcher, Field(discriminator="kind")] = Nsga2Config()
    evaluations: int = Field(default=5000, ge=50)
    warm_start: bool = True
    objectives: tuple[Cost, ...] = Field(default=("accuracy", "latency_ms"), min_length=1)
    constraints: tuple[ConstraintConfig, ...] = ()
    candidates: int = Field(default=24, ge=1)

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Those that the search looks at."""
        return (*self.objectives, *(constraint.cost for constraint in self.constraints))

    @model_validator(mode="after")
    def _can_end(self) -> SearchConfig:
        if getattr(self.searcher, "sampler", None) == "linas" and self.evaluations > LINAS_EVALUATIONS:
            raise ValueError(
                f"sampler linas fits models of all evaluations anew every few of them, which takes hours for "
                f"{self.evaluations}; set evaluations to at most {LINAS_EVALUATIONS}, or take another searcher"
            )
        return self

    @model_validator(mode="after")
    def _weighs_every_objective(self) -> SearchConfig:
        weights = getattr(self.searcher, "weights", None)
        if weights is not None and len(weights) != len(self.objectives):
            raise ValueError(
                f"searcher.weights has a weight for each of {', '.join(self.objectives)}; given: {list(weights)}"
            )
        return self


class Experiment(Strict):
    """One run: everything that decides its numbers is in this file."""

    name: str
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    space: SpaceConfig = SpaceConfig()
    supernet: SupernetConfig = SupernetConfig()
    quantization: QuantizationConfig | None = None
    accuracy: AccuracyConfig = AccuracyConfig()
    devices: tuple[DeviceConfig, ...] = Field(default=(DeviceConfig(),), min_length=1)
    search: SearchConfig = SearchConfig()

    @model_validator(mode="before")
    @classmethod
    def _is_for_a_device_that_runs_what_ships(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and settings.get("quantization") is not None and "devices" not in settings:
            return settings | {"devices": [{"name": integer_devices()[0]}]}
        return settings

    @model_validator(mode="after")
    def _devices_differ(self) -> Experiment:
        labels = [device.label for device in self.devices]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"device {label} is listed {labels.count(label)} times; list it once")
        return self

    @model_validator(mode="after")
    def _enough_is_measured_to_certify(self) -> Experiment:
        for device in self.devices:
            for constraint in self.constraints(device):
                if constraint.name == "accuracy":
                    archs, where = self.accuracy.archs, "accuracy"
                elif device.table is None:
                    archs, where = device.archs, f"device {device.label}"
                else:
                    continue  # the table says what was measured, when it is read
                needed = max([archs_to_certify(max(level, 1.0 - level)) for level in constraint.levels], default=0)
                if archs < needed:
                    raise ValueError(
                        f"{constraint} takes at least {needed} measured networks; {where} has archs {archs}"
                    )
        return self

    @model_validator(mode="after")
    def _devices_run_what_ships(self) -> Experiment:
        for device in self.devices:
            spec = device.spec()
            what = f"{spec.name} ({spec.kind}, {spec.precision})"
            is_integer = spec.kind == "measured" and spec.model_format in INTEGER_FORMATS
            if self.quantization is None and (spec.kind, spec.precision) != ("measured", "fp32"):
                way_out = "; with a section `quantization` a run ships integer models" if is_integer else ""
                raise ValueError(
                    f"a run ships networks in float32 and times them, so {what} cannot be one of its devices; "
                    f"`hanax collect latency` makes tables for it{way_out}"
                )
            if self.quantization is not None and not is_integer:
                raise ValueError(
                    f"a run with `quantization` ships and times integer models with fixed scales, so {what} cannot "
                    f"be one of its devices; there are {', '.join(integer_devices())}. What a network takes in float32 "
                    "is measured beside them; without `quantization` a run searches for float32 devices"
                )
        return self

    @model_validator(mode="after")
    def _costs_are_known(self) -> Experiment:
        cost = next((cost for cost in self.search.costs if cost in POLICY_COSTS), None)
        if self.quantization is None and cost is not None:
            raise ValueError(
                f"{cost} is decided by number formats; add a section `quantization`, or take params or macs"
            )
        return self

    def build_space(self, dataset: ImageDataset) -> SearchSpace:
        """The search space for `dataset`.

        Raises:
            ExperimentError: The images are not square and no resolution was chosen, or the space is too large for a
                grid.
        """
        height, width = dataset.image_size
        if height != width:
            raise ExperimentError(
                f"{dataset.name}: images of {height} x {width} pixels are not square; set data.image_size to one side"
            )
        space = self.space.build(height, dataset.channels, dataset.n_classes)
        if isinstance(self.search.searcher, GridConfig):
            try:
                self.search.searcher.build(self.searched_space(space), len(self.search.objectives), self.seed)
            except ValueError as error:
                raise ExperimentError(f"search.searcher: {error}; choose another kind than grid") from error
        return space

    def searched_space(self, space: SearchSpace) -> SearchSpace:
        """What is searched: `space`, with number formats among its decisions if the run quantizes."""
        return space if self.quantization is None else self.quantization.build(space)

    def objectives(self) -> tuple[Objective, ...]:
        """What to trade off."""
        from hanax.searchers import Objective

        return tuple(
            Objective(cost, "maximise" if cost == "accuracy" else "minimise", UNITS[cost])
            for cost in self.search.objectives
        )

    def constraints(self, device: DeviceConfig) -> tuple[Constraint, ...]:
        """The bounds that hold for `device`."""
        from hanax.searchers import Constraint

        bounds = [
            Constraint(c.cost, c.at_most, c.at_least, UNITS[c.cost], c.probability) for c in self.search.constraints
        ]
        if device.max_latency_ms is not None:
            probability = device.max_latency_probability
            bounds.append(Constraint("latency_ms", at_most=device.max_latency_ms, unit="ms", probability=probability))
        return tuple(bounds)


def archs_to_certify(level: float) -> int:
    """Measured networks from which a predictor's interval has a finite end at the quantile `level`, above 0.5.

    The interval of coverage ``2 * level - 1`` ends at the ``ceil((n + 1) * coverage)``-th of `n` values.
    """
    coverage = 2.0 * level - 1.0
    return math.ceil(coverage / (1.0 - coverage) - 1e-9)


UNITS: dict[Cost, str] = {
    "accuracy": "", "latency_ms": "ms", "macs": "", "params": "", "peak_activation_bytes": "bytes",
    "size_bytes": "bytes", "bit_operations": "", "bitfusion_latency_ms": "ms", "bitfusion_energy_mj": "mJ",
}  # fmt: skip


def load_experiment(file: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in `file` (a path, or the name of one that comes with Hanax) with ``key.path=value`` overrides.

    Raises:
        ExperimentError: The file is missing or not YAML, or something in it is wrong; all problems are listed.
    """
    path = Path(file)
    if not path.is_file() and (packaged := PACKAGED_FILES / f"{file}.yaml").exists():
        path = packaged
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in PACKAGED_FILES.glob("*.yaml"))) or "none"
        raise ExperimentError(f"no experiment file {path}; those that come with Hanax: {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ExperimentError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ExperimentError(f"{path} must hold sections with keys; it holds {type(settings).__name__}")
    if settings.get("quantization", {}) is None:  # a heading with nothing below it: the section's defaults
        settings["quantization"] = {}
    for override in overrides:
        _override(settings, override)
    settings.setdefault("name", path.stem)
    return make_experiment(settings, str(path))


def make_experiment(settings: Mapping[str, Any], origin: str) -> Experiment:
    """The experiment described by `settings`; `origin` says in errors where they come from.

    Raises:
        ExperimentError: Something in it is wrong; all problems are listed.
    """
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise ExperimentError(f"{origin}:\n{problems}") from None


def change_experiment(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """`experiment` with ``key.path=value`` overrides.

    Raises:
        ExperimentError: A key does not exist or a value is wrong; all problems are listed.
    """
    settings = experiment.model_dump(mode="json")
    for override in overrides:
        _override(settings, override)
    return make_experiment(settings, "--set")


def _override(settings: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ExperimentError(f"--set {override}: expected KEY=VALUE, such as supernet.epochs=5")
    *parents, last = key.split(".")
    section: Any = settings
    for parent in parents:
        section = section[_index(section, parent)] if isinstance(section, list) else section.setdefault(parent, {})
        if not isinstance(section, dict | list):
            raise ExperimentError(f"--set {override}: {parent} is {section!r}, not a section")
    try:
        section[_index(section, last) if isinstance(section, list) else last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"--set {override}: the value is not YAML: {error}") from error


def _index(items: list[Any], text: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise ExperimentError(f"--set: {text!r} is not an index of a list of {len(items)} (they start at 0)")
    return int(text)


def _describe(problem: Any) -> str:
    """One validation problem, with the nearest known key where a key is unknown."""
    location = [part for part in problem["loc"] if part not in SEARCHER_KINDS]
    where = ".".join(map(str, location)) or "the file"
    if problem["type"] != "extra_forbidden":
        given = problem["input"]
        shown = "" if isinstance(given, dict | BaseModel) else f"; given: {given!r}"
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}{shown}"
    known = sorted(_keys_at(problem["loc"][:-1]))
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{where}: unknown key; {hint}Known here: {', '.join(known)}"


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys that the section at `location` of an experiment may have."""
    kind: Any = Experiment
    for part in location:
        if isinstance(part, int):
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation
            if type(None) in typing.get_args(kind):  # a section that may be absent
                kind = typing.get_args(kind)[0]
        else:  # the tag of a union, one of SEARCHER_KINDS
            kind = next(option for option in typing.get_args(kind) if option.model_fields["kind"].default == part)
    return list(kind.model_fields)
