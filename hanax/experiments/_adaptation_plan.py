"""Which networks to measure on a new device: some to learn from, chosen without measuring, and others to judge by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hanax._files import write_atomically
from hanax.search_spaces import Arch, SearchSpace, unique_rows

if TYPE_CHECKING:
    from hanax.predictors import SourcePool

FORMAT = "hanax.adaptation_plan/1"
N_CANDIDATES = 1000
"""Random networks of the space among which those to measure are chosen."""


class PlanError(ValueError):
    """A plan cannot be made, read or carried on; the message says why and what would help."""


@dataclass(frozen=True)
class Plan:
    """What to measure on a device.

    Attributes:
        device: As users name it.
        space_fingerprint: Of the networks' space.
        seed: That drew the candidates.
        samples: Canonical; to learn from, in the order of choice.
        held_out: Canonical; to judge by.
    """

    device: str
    space_fingerprint: str
    seed: int
    samples: tuple[Arch, ...]
    held_out: tuple[Arch, ...]

    @classmethod
    def read(cls, path: Path, device: str, space: SearchSpace) -> Plan:
        """The plan that `write` stored, for `device`.

        Raises:
            PlanError: It is damaged or for another device.
            SpaceMismatchError: It is for another space; names both fingerprints.
        """
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] != FORMAT:
                raise ValueError(f"its format is {stored['format']!r}, not {FORMAT!r}")
            samples, held_out = (tuple(map(Arch.parse, stored[name])) for name in ("samples", "held_out"))
            plan = cls(str(stored["device"]), str(stored["space_fingerprint"]), int(stored["seed"]), samples, held_out)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise PlanError(f"{path} is not a plan of `hanax adapt`, or it is damaged: {error!r}") from error
        space.require(plan.space_fingerprint, f"the plan {path}")
        if plan.device != device:
            raise PlanError(f"{path} is for {plan.device}, not for {device}; choose another folder")
        return plan

    def write(self, path: Path) -> None:
        """Store as JSON, atomically."""
        stored = {
            "format": FORMAT,
            "device": self.device,
            "space_fingerprint": self.space_fingerprint,
            "seed": self.seed,
            "samples": list(map(str, self.samples)),
            "held_out": list(map(str, self.held_out)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(stored, indent=1).encode())

    def with_samples(self, archs: Sequence[Arch]) -> Plan:
        """This plan with `archs` to learn from as well."""
        return dataclasses.replace(self, samples=(*self.samples, *archs))


def candidates(space: SearchSpace, seed: int) -> list[Arch]:
    """Different random networks of `space`, `N_CANDIDATES` or as many as drawing finds, in random order."""
    codes = space.sample(np.random.default_rng([seed, 12]), 3 * N_CANDIDATES)
    return space.decode(codes[unique_rows(codes)[:N_CANDIDATES]])


def choose_samples(
    space: SearchSpace, pool: SourcePool | None, archs: Sequence[Arch], n: int, seed: int
) -> tuple[Arch, ...]:
    """`n` of `archs` to learn from, chosen by their features and what is known of other devices."""
    from hanax.predictors import choose_archs, latency_features

    features = latency_features(space, space.encode(archs))
    chosen = choose_archs(pool, features, n, np.random.default_rng([seed, 13]))
    return tuple(archs[index] for index in chosen)


def make_plan(device: str, space: SearchSpace, pool: SourcePool | None, n: int, n_held_out: int, seed: int) -> Plan:
    """A plan with `n` networks to learn from and `n_held_out` random others.

    Raises:
        PlanError: The space has not so many networks.
    """
    drawn = candidates(space, seed)
    if n + n_held_out > len(drawn):
        raise PlanError(
            f"{n} networks to learn from and {n_held_out} to judge by are more than the {len(drawn)} that were found "
            f"in {space.name}; ask for fewer"
        )
    samples = choose_samples(space, pool, drawn, n, seed)
    others = [arch for arch in drawn if arch not in samples]
    return Plan(device, space.fingerprint, seed, samples, tuple(others[:n_held_out]))


def plan_of_measured(
    device: str, space: SearchSpace, pool: SourcePool | None, measured: Sequence[Arch], n: int, seed: int
) -> Plan:
    """A plan for networks that are measured already: `n` of them to learn from, all others to judge by.

    Which ones is decided without looking at their costs.
    """
    samples = tuple(measured) if len(measured) <= n else choose_samples(space, pool, measured, n, seed)
    others = tuple(arch for arch in measured if arch not in samples)
    return Plan(device, space.fingerprint, seed, samples, others)


def extend_held_out(plan: Plan, space: SearchSpace, n: int) -> Plan:
    """`plan` with `n` networks to judge by, those that it has among them.

    Raises:
        PlanError: The space has not so many networks.
    """
    taken = {*plan.samples, *plan.held_out}
    others = [arch for arch in candidates(space, plan.seed) if arch not in taken]
    missing = n - len(plan.held_out)
    if missing > len(others):
        raise PlanError(f"there are {len(others)} more networks to judge by in {space.name}; {missing} were asked for")
    return dataclasses.replace(plan, held_out=(*plan.held_out, *others[:missing]))
