"""Search spaces: decisions, the network they shape, and vectorised operations on architecture codes.

Shapes: `n` architectures, `d` decisions. Codes are int32 option indices; a decision that another choice switches off
(the kernel size of a block beyond the depth) has the canonical code 0, so that equal networks have equal codes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from hanax.search_spaces._arch import Arch
from hanax.search_spaces._blocks import Block, Choice
from hanax.search_spaces._graph import INPUT, Graph, Operator, Shape


class SpaceMismatchError(ValueError):
    """An artefact (table, predictor, supernet, subnet) belongs to another search space."""


@dataclass(frozen=True, slots=True)
class Condition:
    """True where `decision` takes one of `options`."""

    decision: str
    options: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice to make: a name, its options, and when it matters at all.

    Attributes:
        options: Ascending; the last one is the largest network.
        when: The decision counts only where this holds; always, if None.
    """

    name: str
    options: tuple[int, ...]
    when: Condition | None = None


Precision = tuple[int, int]
"""Number formats of weights and of activations, see ``_precision.py``."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of the network, in order: a block and the decisions that set its elastic parameters.

    Attributes:
        settings: For each elastic parameter of `block`, in its order, the name of the decision that sets it, or its
            fixed value.
        when: The block exists only where this holds; always, if None.
        precision: The names of the decisions that set the number formats of the block's weights and activations, or
            the formats; None if the block computes in floating point.
    """

    name: str
    block: Block
    settings: tuple[str | int, ...] = ()
    when: Condition | None = None
    precision: tuple[str | int, str | int] | None = None


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """An active slot of one architecture with the values of its elastic parameters, and its number formats if any."""

    slot: Slot
    choice: Choice
    precision: Precision | None = None

    @classmethod
    def of(cls, slot: Slot, chosen: Mapping[str, int]) -> PlacedBlock:
        """`slot` where decisions take the options `chosen`."""
        choice = _values(slot.settings, chosen)
        if slot.precision is None:
            return cls(slot, choice)
        weights, activations = _values(slot.precision, chosen)
        return cls(slot, choice, (weights, activations))


def _values(settings: tuple[str | int, ...], chosen: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(setting if isinstance(setting, int) else chosen[setting] for setting in settings)


RESOLUTION = "resolution"
"""Name of the decision that every space has: height and width of the square input, in pixels."""


@dataclass(frozen=True)
class SearchSpace:
    """The architectures made of `slots` by every combination of `decisions`.

    Attributes:
        name: For people; two spaces of different name but equal definition are the same space.
        image_channels: Channels of the input image.
        n_classes: Width of the classifier.
        decisions: In the order of the codes; a decision comes after the one its condition names. One of them is
            `RESOLUTION`.
        slots: The network at its largest, in order of execution.

    Raises:
        ValueError: The declaration contradicts itself (unknown or late names, options that blocks do not offer).
    """

    name: str
    image_channels: int
    n_classes: int
    decisions: tuple[Decision, ...]
    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        seen: dict[str, Decision] = {}
        for decision in self.decisions:
            if decision.name in seen:
                raise ValueError(f"{self.name}: two decisions are named {decision.name!r}")
            if not decision.options or list(decision.options) != sorted(set(decision.options)):
                raise ValueError(f"{self.name}: options of {decision.name} must ascend; got {decision.options}")
            self._check_condition(decision.name, decision.when, seen)
            seen[decision.name] = decision
        if RESOLUTION not in seen:
            raise ValueError(f"{self.name}: no decision is named {RESOLUTION!r}")
        for slot in self.slots:
            self._check_condition(slot.name, slot.when, seen)
            elastic = slot.block.elastic
            if len(slot.settings) != len(elastic):
                raise ValueError(f"{self.name}: {slot.name} needs settings for {tuple(elastic)}; got {slot.settings}")
            for setting, (parameter, offered) in zip(slot.settings, elastic.items(), strict=True):
                if isinstance(setting, str) and setting not in seen:
                    raise ValueError(f"{self.name}: {parameter} of {slot.name} is set by {setting!r}, no decision")
                options = (setting,) if isinstance(setting, int) else seen[setting].options
                if not set(options) <= set(offered):
                    raise ValueError(
                        f"{self.name}: {setting} offers {options}; {parameter} of {slot.name} takes {offered}"
                    )
            for setting in slot.precision or ():
                if isinstance(setting, str) and setting not in seen:
                    raise ValueError(f"{self.name}: precision of {slot.name} is set by {setting!r}, no decision")

    def _check_condition(self, owner: str, when: Condition | None, seen: dict[str, Decision]) -> None:
        if when is None:
            return
        if when.decision not in seen:
            raise ValueError(f"{self.name}: {owner} depends on {when.decision!r}, which is not an earlier decision")
        if not set(when.options) <= set(seen[when.decision].options):
            raise ValueError(
                f"{self.name}: {owner} asks for {when.decision} in {when.options}; "
                f"it offers {seen[when.decision].options}"
            )

    # ---- what the space is -----------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the definition (not of the name), 16 hexadecimal digits. Artefacts of a space carry it."""
        definition = {
            "image_channels": self.image_channels,
            "n_classes": self.n_classes,
            "decisions": [dataclasses.asdict(decision) for decision in self.decisions],
            "slots": [
                {
                    "name": slot.name,
                    "block": [type(slot.block).__name__, dataclasses.asdict(slot.block)],
                    "settings": slot.settings,
                    "when": slot.when and dataclasses.asdict(slot.when),
                    **({} if slot.precision is None else {"precision": slot.precision}),
                }
                for slot in self.slots
            ],
        }
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]

    def require(self, fingerprint: str, artefact: str) -> None:
        """Refuse an `artefact` that carries another space's fingerprint.

        Raises:
            SpaceMismatchError: Names the artefact and both fingerprints.
        """
        if fingerprint != self.fingerprint:
            raise SpaceMismatchError(
                f"{artefact} belongs to the search space with fingerprint {fingerprint}; "
                f"this one, {self.name}, has fingerprint {self.fingerprint}"
            )

    @cached_property
    def size(self) -> int:
        """Number of different networks (canonical codes), exactly."""

        def below(parent: str | None, option: int | None) -> int:
            count = 1
            for decision in self.decisions:
                when = decision.when
                if (when is None) != (parent is None):
                    continue
                if when is not None and (when.decision != parent or option not in when.options):
                    continue
                count *= sum(below(decision.name, choice) for choice in decision.options)
            return count

        return below(None, None)

    @cached_property
    def option_counts(self) -> Int[np.ndarray, " d"]:
        """Number of options of each decision."""
        return np.array([len(decision.options) for decision in self.decisions])

    @property
    def largest(self) -> Arch:
        """The architecture with the last option everywhere."""
        return Arch(tuple(int(count) - 1 for count in self.option_counts))

    @property
    def smallest(self) -> Arch:
        """The architecture with the first option everywhere."""
        return Arch((0,) * len(self.decisions))

    # ---- codes and architectures -----------------------------------------------------------------------------

    def check(self, codes: Int[np.ndarray, "n d"]) -> None:
        """Refuse codes that name no architecture of this space.

        Raises:
            ValueError: The number of columns is wrong, or an index is out of range; names the decision.
        """
        if codes.ndim != 2 or codes.shape[1] != len(self.decisions):
            raise ValueError(f"{self.name} has {len(self.decisions)} decisions; got codes of shape {codes.shape}")
        wrong = np.argwhere((codes < 0) | (codes >= self.option_counts))
        if len(wrong):
            row, column = wrong[0]
            decision = self.decisions[column]
            raise ValueError(
                f"{decision.name}: option {codes[row, column]} does not exist; {self.name} offers indices "
                f"0 to {len(decision.options) - 1}, for {decision.options}"
            )

    def encode(self, archs: Sequence[Arch]) -> Int32[np.ndarray, "n d"]:
        """Codes of `archs`, not made canonical; `decode` is the inverse.

        Raises:
            ValueError: An arch is not of this space.
        """
        for arch in archs:
            if len(arch.choices) != len(self.decisions):
                raise ValueError(
                    f"{self.name} has {len(self.decisions)} decisions; arch {arch} has {len(arch.choices)}"
                )
        codes = np.array([arch.choices for arch in archs], dtype=np.int32).reshape(len(archs), len(self.decisions))
        self.check(codes)
        return codes

    def decode(self, codes: Int[np.ndarray, "n d"]) -> list[Arch]:
        """Architectures of `codes`.

        Raises:
            ValueError: A row is not of this space.
        """
        self.check(codes)
        return [Arch(tuple(row)) for row in codes.tolist()]

    def arch(self, options: Mapping[str, int]) -> Arch:
        """The largest architecture with some options replaced, e.g. ``{"stage1.depth": 2}``; `options_of` inverted.

        Raises:
            ValueError: An unknown decision or option.
        """
        choices = list(self.largest.choices)
        for name, option in options.items():
            decision = self.decisions[self.column(name)]
            if option not in decision.options:
                raise ValueError(f"{name}: {option} is not offered; {self.name} offers {decision.options}")
            choices[self.column(name)] = decision.options.index(option)
        return self.decode(self.canonical(self.encode([Arch(tuple(choices))])))[0]

    def options_of(self, arch: Arch) -> dict[str, int]:
        """The chosen option of every decision that counts in `arch`, by name."""
        codes = self.encode([arch])
        active = self.active(codes)[0]
        return {
            decision.name: decision.options[choice]
            for decision, choice, counts in zip(self.decisions, arch.choices, active, strict=True)
            if counts
        }

    def active(self, codes: Int[np.ndarray, "n d"]) -> Bool[np.ndarray, "n d"]:
        """Where a decision counts, given the others."""
        active = np.ones(codes.shape, dtype=bool)
        for column, decision in enumerate(self.decisions):
            if decision.when is not None:
                active[:, column] = self.holds(decision.when, codes, active)
        return active

    def holds(
        self, when: Condition, codes: Int[np.ndarray, "n d"], active: Bool[np.ndarray, "n d"]
    ) -> Bool[np.ndarray, " n"]:
        """Where `when` is true, given `codes` and which decisions count in them."""
        parent = self.column(when.decision)
        accepted = np.array([option in when.options for option in self.decisions[parent].options])
        holds: Bool[np.ndarray, " n"] = active[:, parent] & accepted[codes[:, parent]]
        return holds

    def column(self, name: str) -> int:
        """Position of decision `name` in the codes.

        Raises:
            ValueError: There is no such decision; lists those there are.
        """
        if name not in self._columns:
            raise ValueError(f"{self.name} has no decision {name!r}; it has {', '.join(self._columns)}")
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {decision.name: column for column, decision in enumerate(self.decisions)}

    def canonical(self, codes: Int[np.ndarray, "n d"]) -> Int32[np.ndarray, "n d"]:
        """`codes` with every decision that does not count set to 0; equal rows are equal networks."""
        self.check(codes)
        return np.where(self.active(codes), codes, 0).astype(np.int32)

    def sample(self, rng: np.random.Generator, n: int) -> Int32[np.ndarray, "n d"]:
        """`n` canonical codes, every decision drawn uniformly and independently (Once-for-All's distribution).

        Networks with more depth are therefore rarer each than their share of `size`; duplicates can occur.
        """
        return self.canonical(self._uniform(rng, n))

    def _uniform(self, rng: np.random.Generator, n: int) -> Int32[np.ndarray, "n d"]:
        return rng.integers(0, self.option_counts, size=(n, len(self.decisions)), dtype=np.int32)

    def mutate(
        self, rng: np.random.Generator, codes: Int[np.ndarray, "n d"], probability: float = 0.1
    ) -> Int32[np.ndarray, "n d"]:
        """Canonical copies of `codes` in which each decision that counts changes with `probability`.

        At least one decision changes in every row. What a change of depth switches on is drawn uniformly.
        """
        active = self.active(codes)
        changeable = active & (self.option_counts > 1)
        chosen = changeable & (rng.random(codes.shape) < probability)
        forced = np.argmax(np.where(changeable, rng.random(codes.shape), -1.0), axis=1)
        untouched = ~chosen.any(axis=1) & changeable.any(axis=1)
        chosen[untouched, forced[untouched]] = True
        # A shift by 1..count-1, modulo the count, reaches every other option with the same probability.
        shift = rng.integers(1, np.maximum(self.option_counts, 2), size=codes.shape)
        mutants = np.where(active, codes, self._uniform(rng, len(codes)))
        mutants = np.where(chosen, (mutants + shift) % self.option_counts, mutants)
        return self.canonical(mutants.astype(np.int32))

    def crossover(
        self, rng: np.random.Generator, first: Int[np.ndarray, "n d"], second: Int[np.ndarray, "n d"]
    ) -> Int32[np.ndarray, "n d"]:
        """Canonical children of the rows of `first` and `second`: each decision comes from either with probability 1/2.

        A decision that counts in one parent only comes from that one: the other has no say in it.
        """
        first_active, second_active = self.active(first), self.active(second)
        take_first = np.where(first_active == second_active, rng.random(first.shape) < 0.5, first_active)
        return self.canonical(np.where(take_first, first, second).astype(np.int32))

    def distance(self, first: Int[np.ndarray, "n d"], second: Int[np.ndarray, "m d"]) -> Int[np.ndarray, "n m"]:
        """Number of decisions in which networks differ; one that counts in a single one of them differs."""
        marked = [np.where(self.active(codes), codes, -1) for codes in (first, second)]
        differences: Int[np.ndarray, "n m"] = (marked[0][:, None, :] != marked[1][None, :, :]).sum(axis=2)
        return differences

    # ---- networks --------------------------------------------------------------------------------------------

    def resolution(self, arch: Arch) -> int:
        """Height and width of the network's input, in pixels."""
        column = self.column(RESOLUTION)
        return self.decisions[column].options[arch.choices[column]]

    def input_shape(self, arch: Arch) -> Shape:
        """Channels, height, width of the network's input."""
        return (self.image_channels, self.resolution(arch), self.resolution(arch))

    def blocks(self, arch: Arch) -> list[PlacedBlock]:
        """The blocks of `arch`, in order of execution.

        Raises:
            ValueError: `arch` is not of this space.
        """
        chosen = self.options_of(arch)
        return [
            PlacedBlock.of(slot, chosen)
            for slot in self.slots
            if slot.when is None or chosen.get(slot.when.decision) in slot.when.options
        ]

    def graph(self, arch: Arch) -> Graph:
        """The network of `arch` as operators."""
        operators: list[Operator] = []
        source, shape = INPUT, self.input_shape(arch)
        for placed in self.blocks(arch):
            operators += placed.slot.block.lower(placed.slot.name, placed.choice, source, shape)
            source, shape = operators[-1].name, operators[-1].out_shape
        return Graph(self.input_shape(arch), tuple(operators))

    # ---- features for predictors -----------------------------------------------------------------------------

    def one_hot(self, codes: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n f"]:
        """One column per option of every decision, 1 where it is taken and counts."""
        marked = np.where(self.active(codes), codes, -1)
        return np.concatenate(
            [marked[:, [column]] == np.arange(count) for column, count in enumerate(self.option_counts)], axis=1
        ).astype(np.float64)


def unique_rows(codes: Int[np.ndarray, "n d"]) -> Int[np.ndarray, " m"]:
    """Indices of the first occurrence of every different row, in order."""
    _, first = np.unique(codes, axis=0, return_index=True)
    return np.sort(first)
