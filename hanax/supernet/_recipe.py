"""How a supernet is trained: the recipe as it is written down, and the phases that it stands for.

A phase says which options are elastic, which subnets a step draws from them, and who teaches them. The published
recipes are short lists of phases; the step (`_step`) is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int32

from hanax.search_spaces import RESOLUTION, Arch, SearchSpace
from hanax.supernet._augment import Augmentation

PUBLISHED_PHASES = ("largest", "kernel", "depth1", "depth2", "width1", "width2")
"""The phases of progressive shrinking, in the order of a recipe's `phase_...` values."""

SINGLE_PHASE = "subnet"
"""Name of the only phase of a training of one subnet, and of that subnet in its log."""

Options = tuple[tuple[int, ...], ...]
"""For each decision of a space, in the order of the codes, the indices of the options to draw from, ascending."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a supernet is trained.

    The defaults of `phase_epochs`, `phase_learning_rates` and `phase_subnets` are Once-for-All's (Cai et al., 2020,
    arXiv:1908.09791: SGD, the largest net 180 epochs from 2.6, kernels 125 epochs from 0.96, depths and widths 25
    epochs from 0.08 and 125 from 0.24 each). Each holds a value per phase, in the order of `PUBLISHED_PHASES`;
    ``sandwich`` does not use them.

    Attributes:
        epochs: Passes over the training images, of all phases together.
        batch_size: Images a step; a last, smaller batch is dropped.
        n_shards: Equal parts of a batch that are each normalised by their own batch statistics (ghost batch norm,
            Hoffer et al., 2017, arXiv:1705.08741) and augmented on their own. Processes and devices share them.
        optimizer: SGD with Nesterov momentum, or AdamW.
        learning_rate: The highest one; in each phase it rises linearly during `warmup_epochs`, at most half of the
            phase, then falls towards 0 as a cosine.
        momentum: Of SGD.
        weight_decay: Not applied to batch norms, biases and kernel transforms.
        label_smoothing: Share of probability given to all classes alike where a subnet learns from the labels.
        clip_norm: Largest global norm of the gradient, summed over the subnets of a step.
        schedule: Everything elastic from the start (``sandwich``), or one dimension after the other
            (``progressive_shrinking``); see `phases`.
        n_random_subnets: Random subnets of a step, in ``sandwich``.
        sampling: How random subnets are drawn: uniformly, or those of the best or worst predicted loss at their MACs
            (AttentiveNAS, Wang et al., 2021, arXiv:2011.09011), in ``sandwich`` only.
        divergence: What a subnet and its teacher differ by: Kullback-Leibler, or AlphaNet's clipped and adaptive
            alpha-divergence (Wang et al., 2021, arXiv:2102.07954).
        distillation_weight: Weight of the teacher beside the labels' 1, in ``progressive_shrinking``.
        sort_channels: By which importance channels are sorted before each width phase, in ``progressive_shrinking``;
            None leaves them in place.
        phase_epochs: Length of each phase, relative to the others.
        phase_learning_rates: Highest learning rate of each phase, relative to `learning_rate`.
        phase_subnets: Subnets of a step in each phase.
        execution: How subnets are run: block by block (``chain``) or by one masked executable for all (``masked``);
            ``auto`` takes the chain on a CPU and elsewhere what is faster when the training begins.
        compute_dtype: What blocks compute in; weights, gradients and batch-norm statistics are float32 anyway. ``auto``
            is bfloat16 on a GPU or TPU and float32 on a CPU.
        seed: Decides the initial weights, the batches, their augmentation and the random subnets.
        watch_epochs: How often some subnets are scored on validation images for the log; 0 for never.
        checkpoint_seconds: About how often the state is saved; the result depends on it only after a rollback, which
            goes back to the last checkpoint.

    Raises:
        ValueError: A value is out of range.
    """

    epochs: float = 10.0
    batch_size: int = 128
    n_shards: int = 1
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.02
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.1
    clip_norm: float = 5.0
    schedule: Literal["sandwich", "progressive_shrinking"] = "sandwich"
    n_random_subnets: int = 2
    sampling: Literal["uniform", "attentive_best", "attentive_worst"] = "uniform"
    divergence: Literal["kl", "alpha"] = "kl"
    distillation_weight: float = 1.0
    sort_channels: Literal["l1", "taylor"] | None = "l1"
    phase_epochs: tuple[float, ...] = (180.0, 125.0, 25.0, 125.0, 25.0, 125.0)
    phase_learning_rates: tuple[float, ...] = (1.0, 0.37, 0.031, 0.092, 0.031, 0.092)
    phase_subnets: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    augmentation: Augmentation = field(default_factory=Augmentation)
    execution: Literal["auto", "chain", "masked"] = "auto"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    watch_epochs: float = 1.0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "clip_norm", "checkpoint_seconds"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be above 0.0; got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, for batch norm; got {self.batch_size}")
        if self.n_shards < 1 or self.batch_size % self.n_shards or self.batch_size < 2 * self.n_shards:
            raise ValueError(
                f"n_shards must divide batch_size {self.batch_size} into parts of at least 2 images, for batch norm; "
                f"got {self.n_shards}"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}")
        for name in (
            "momentum", "weight_decay", "warmup_epochs", "n_random_subnets", "distillation_weight", "seed",
            "watch_epochs",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        if self.sampling != "uniform" and self.schedule != "sandwich":
            raise ValueError(
                f"sampling {self.sampling} needs schedule sandwich: it compares the loss of a subnet with that of the "
                f"largest one in the same step, which {self.schedule} does not draw; use sampling uniform with it"
            )
        for name in ("phase_epochs", "phase_learning_rates", "phase_subnets"):
            values = getattr(self, name)
            if len(values) != len(PUBLISHED_PHASES) or not all(0 < value < math.inf for value in values):
                raise ValueError(
                    f"{name} needs a value above 0 for each of the {len(PUBLISHED_PHASES)} phases "
                    f"{', '.join(PUBLISHED_PHASES)}; got {values}"
                )


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a training, with an optimizer state and a learning rate schedule of its own.

    Attributes:
        first_step: Steps of the training before this phase.
        steps: Steps of this phase.
        learning_rate: The highest one.
        options: What is elastic.
        draw: The subnets of a step: the largest of `options`, or that and the smallest and `n_random` random ones
            (``sandwich``), or `n_random` random ones. The resolution of the first and the last kind is drawn as well.
        teacher: Who teaches: the labels; the labels the largest net, and that one the others (``in_place``); or the
            labels and the largest net as it was at the end of the first phase (``frozen``).
        sort_channels: By which importance channels are sorted before the first step; None for not at all.
        kept_ratios: Expansion ratios that are elastic already: what sorting must not mix up.
    """

    name: str
    first_step: int
    steps: int
    learning_rate: float
    warmup_steps: int
    options: Options
    draw: Literal["largest", "sandwich", "random"]
    n_random: int
    teacher: Literal["labels", "in_place", "frozen"]
    sort_channels: Literal["l1", "taylor"] | None = None
    kept_ratios: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Steps of the training after this phase."""
        return self.first_step + self.steps

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step that comes after `step` steps of the training."""
        done = step - self.first_step
        if done < self.warmup_steps:
            return self.learning_rate * (done + 1) / self.warmup_steps
        progress = (done - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def n_steps(recipe: Recipe, n_images: int) -> int:
    """Steps of a whole training.

    Raises:
        ValueError: There are fewer images than one batch.
    """
    return max(1, round(recipe.epochs * steps_per_epoch(recipe, n_images)))


def steps_per_epoch(recipe: Recipe, n_images: int) -> int:
    """Whole batches of an epoch.

    Raises:
        ValueError: There are fewer images than one batch.
    """
    per_epoch = n_images // recipe.batch_size
    if per_epoch == 0:
        raise ValueError(f"batch_size {recipe.batch_size} is more than the {n_images} training images there are")
    return per_epoch


def phases(recipe: Recipe, space: SearchSpace, n_images: int) -> tuple[Phase, ...]:
    """The phases of `recipe` on `n_images` training images, in order.

    ``sandwich``: one phase in which everything is elastic. A step trains the largest subnet on the labels, and the
    smallest and random ones on the largest one's predictions (Yu & Huang, 2019, arXiv:1903.05134; BigNAS, Yu et al.,
    2020, arXiv:2003.11142). Differs from BigNAS in that label smoothing replaces its regularisation of the largest
    subnet, and that resolutions are drawn with the random subnets.

    ``progressive_shrinking``: first the largest subnet, then kernel sizes, depths and widths become elastic one after
    the other; depths and widths in two phases, the two largest options first, where there are three or more. Random
    subnets learn from the labels and from the largest net as it was after the first phase (Once-for-All, Cai et al.,
    2020, arXiv:1908.09791). Differs in that every subnet draws a resolution of its own (there: every batch), that the
    teacher always sees the largest one, and that a dimension with two options has one phase, with the epochs of both.

    Raises:
        ValueError: There are fewer images than one batch, or fewer steps than phases; or progressive shrinking is to
            train in number formats.
    """
    steps, per_epoch = n_steps(recipe, n_images), steps_per_epoch(recipe, n_images)
    if recipe.schedule == "sandwich":
        warmup = _warmup_steps(recipe, per_epoch, steps)
        rate, n_random = recipe.learning_rate, recipe.n_random_subnets
        return (Phase("sandwich", 0, steps, rate, warmup, _everything(space), "sandwich", n_random, "in_place"),)
    return _progressive_phases(recipe, space, steps, per_epoch)


def _everything(space: SearchSpace) -> Options:
    return tuple(tuple(range(len(decision.options))) for decision in space.decisions)


def quantized_phase(recipe: Recipe, space: SearchSpace, n_images: int) -> Phase:
    """The only phase of a quantization-aware training: everything elastic, formats with it, and a frozen teacher.

    Raises:
        ValueError: There are fewer images than one batch.
    """
    steps, per_epoch = n_steps(recipe, n_images), steps_per_epoch(recipe, n_images)
    warmup = _warmup_steps(recipe, per_epoch, steps)
    rate, n_random = recipe.learning_rate, recipe.n_random_subnets
    return Phase("quantized", 0, steps, rate, warmup, _everything(space), "sandwich", n_random, "frozen")


def single_phase(recipe: Recipe, space: SearchSpace, arch: Arch, n_images: int, *, is_distilled: bool) -> Phase:
    """The only phase of a training of `arch` alone, with the length and learning rate of the whole recipe.

    Raises:
        ValueError: There are fewer images than one batch.
    """
    steps, per_epoch = n_steps(recipe, n_images), steps_per_epoch(recipe, n_images)
    warmup = _warmup_steps(recipe, per_epoch, steps)
    options = tuple((choice,) for choice in space.encode([arch])[0].tolist())
    teacher: Literal["labels", "frozen"] = "frozen" if is_distilled else "labels"
    return Phase(SINGLE_PHASE, 0, steps, recipe.learning_rate, warmup, options, "largest", 0, teacher)


def largest_within(space: SearchSpace, options: Options) -> Arch:
    """The architecture with the last of `options` everywhere."""
    return _decode(space, [indices[-1] for indices in options])


def smallest_within(space: SearchSpace, options: Options) -> Arch:
    """The architecture with the first of `options` everywhere."""
    return _decode(space, [indices[0] for indices in options])


def _decode(space: SearchSpace, choices: list[int]) -> Arch:
    return space.decode(space.canonical(np.array([choices], dtype=np.int32)))[0]


def sample_within(space: SearchSpace, rng: np.random.Generator, n: int, options: Options) -> Int32[np.ndarray, "n d"]:
    """`n` canonical codes, every decision drawn uniformly and independently from its `options`.

    With all options of the space the same as `SearchSpace.sample`, number for number.
    """
    counts = np.array([len(indices) for indices in options])
    drawn = rng.integers(0, counts, size=(n, len(options)), dtype=np.int32)
    columns = [np.array(indices, dtype=np.int32)[drawn[:, column]] for column, indices in enumerate(options)]
    return space.canonical(np.stack(columns, axis=1))


def _warmup_steps(recipe: Recipe, per_epoch: int, steps: int) -> int:
    return min(round(recipe.warmup_epochs * per_epoch), steps // 2)


def _progressive_phases(recipe: Recipe, space: SearchSpace, steps: int, per_epoch: int) -> tuple[Phase, ...]:
    if any(slot.precision is not None for slot in space.slots):
        raise ValueError(
            f"progressive shrinking has no phase for the number formats of {space.name}; train its float_space, and go "
            "on from there by train_quantized (or train this space by the sandwich schedule)"
        )
    stages = _shrinking_stages(space)
    if steps < len(stages):
        raise ValueError(
            f"{recipe.epochs} epochs are {steps} steps, but progressive shrinking has {len(stages)} phases here; "
            "raise epochs or lower batch_size"
        )
    lengths = [sum(recipe.phase_epochs[position] for position in positions) for _, positions, _ in stages]
    ends = _cut(steps, lengths)
    result: list[Phase] = []
    for index, (name, positions, options) in enumerate(stages):
        first_step = ends[index - 1] if index else 0
        length = ends[index] - first_step
        shared = (
            name, first_step, length, recipe.learning_rate * recipe.phase_learning_rates[positions[-1]],
            _warmup_steps(recipe, per_epoch, length), options,
        )  # fmt: skip
        if index == 0:
            result.append(Phase(*shared, "largest", 0, "labels"))
            continue
        sorting = recipe.sort_channels if name.startswith("width") else None
        kept = _elastic_ratios(space, stages[index - 1][2]) if sorting is not None else ()
        result.append(Phase(*shared, "random", recipe.phase_subnets[positions[-1]], "frozen", sorting, kept))
    return tuple(result)


def _cut(steps: int, lengths: Sequence[float]) -> list[int]:
    """The last step of each part when `steps` are shared out as `lengths`, at least one for each."""
    ends: list[int] = []
    for index in range(len(lengths)):
        wanted = round(steps * sum(lengths[: index + 1]) / sum(lengths))
        earliest, latest = (ends[-1] if ends else 0) + 1, steps - (len(lengths) - 1 - index)
        ends.append(min(max(wanted, earliest), latest))
    return ends


def _shrinking_stages(space: SearchSpace) -> list[tuple[str, tuple[int, ...], Options]]:
    """Name, positions in `PUBLISHED_PHASES` and options of each phase that `space` has a use for."""
    options: Options = tuple(
        tuple(range(len(decision.options))) if decision.name == RESOLUTION else (len(decision.options) - 1,)
        for decision in space.decisions
    )
    stages: list[tuple[str, tuple[int, ...], Options]] = [("largest", (0,), options)]
    roles = _roles(space)
    for role, positions in (("kernel", (1,)), ("depth", (2, 3)), ("width", (4, 5))):
        columns = [column for column, decision in enumerate(space.decisions) if roles.get(decision.name) == role]
        most = max((len(space.decisions[column].options) for column in columns), default=1)
        if most == 1:
            continue
        if len(positions) == 2 and most > 2:
            options = _widened(space, options, columns, 2)
            stages.append((f"{role}1", positions[:1], options))
            role, positions = f"{role}2", positions[1:]
        options = _widened(space, options, columns, most)
        stages.append((role, positions, options))
    return stages


def _roles(space: SearchSpace) -> dict[str, str]:
    """What each decision makes elastic: a kernel, a depth (what no block is set by), or a width."""
    roles = {decision.name: "depth" for decision in space.decisions if decision.name != RESOLUTION}
    for slot in space.slots:
        for setting, parameter in zip(slot.settings, slot.block.elastic, strict=True):
            if isinstance(setting, str):
                roles[setting] = "kernel" if parameter == "kernel_size" else "width"
    return roles


def _widened(space: SearchSpace, options: Options, columns: Sequence[int], n: int) -> Options:
    """`options` with the `n` largest ones at `columns`."""
    counts = [len(decision.options) for decision in space.decisions]
    return tuple(
        tuple(range(max(0, counts[column] - n), counts[column])) if column in columns else indices
        for column, indices in enumerate(options)
    )


def _elastic_ratios(space: SearchSpace, options: Options) -> tuple[int, ...]:
    """The expansion ratios that `options` lets a subnet choose between."""
    roles = _roles(space)
    return tuple(
        sorted(
            {
                decision.options[index]
                for decision, indices in zip(space.decisions, options, strict=True)
                if roles.get(decision.name) == "width" and len(indices) > 1
                for index in indices
            }
        )
    )
