"""What a predictor for a new device learned from and what it is worth, for people and for programs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanax.predictors import PredictorCard


@dataclass(frozen=True, slots=True)
class AdaptationCard:
    """What a predictor for a new device learned from, and what it is worth.

    Attributes:
        device: As users name it.
        identity: What was measured, in words.
        device_fingerprint: Of the identity.
        cost: What is predicted, such as ``latency_ms``.
        unit: Of the cost, such as ``ms``.
        space: Whose networks, for people.
        space_fingerprint: Of that space.
        origin: Where the source devices are from.
        sources: The devices it learned from before it saw this one, `n_source_archs` networks in all.
        left_out: Source devices that it did not learn from, as they are the device itself or called the same.
        most_alike: The source device that ranks the samples most like the device does.
        pool_fingerprint: Of the sources' costs and features.
        predictor: The class that predicts.
        coverage: What the intervals promise.
        samples: Networks it learned from, as tables write them.
        held_out: Networks it was judged by.
        on_held_out: The figures of each way to predict, on the held-out networks; empty if there are none.
        leave_one_out: The same on the samples, each predicted without itself.
        asked_samples: Measurements that were asked of the device to learn from, repeated ones included.
        asked_held_out: And to judge by.
        proposals: Networks that would help most if they were measured next, in that order.
        width_after: Typical width of the intervals after these, as a share of what it is now.
    """

    device: str
    identity: str
    device_fingerprint: str
    cost: str
    unit: str
    space: str
    space_fingerprint: str
    origin: str
    sources: tuple[str, ...]
    n_source_archs: int
    left_out: tuple[str, ...]
    most_alike: str
    pool_fingerprint: str
    predictor: str
    coverage: float
    samples: tuple[str, ...]
    held_out: tuple[str, ...]
    on_held_out: dict[str, PredictorCard]
    leave_one_out: dict[str, PredictorCard]
    asked_samples: int
    asked_held_out: int
    proposals: tuple[str, ...]
    width_after: float

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values; what is infinite or undefined is null."""
        fields: dict[str, Any] = _finite(dataclasses.asdict(self))
        return fields

    def lines(self) -> list[str]:
        """All that a person wants to know, with units."""
        lines = [
            f"A predictor of {self.cost} on {self.device}, for networks of {self.space}",
            f"  the device: {self.identity}",
            f"  learned from {len(self.samples)} networks measured on it and, before that, {self.n_source_archs} "
            f"networks on {len(self.sources)} other device(s), from {self.origin}: {', '.join(self.sources)}",
        ]
        if self.left_out:
            lines.append(f"  left out of these, as the device itself or called the same: {', '.join(self.left_out)}")
        if self.on_held_out:
            lines += [f"On {len(self.held_out)} other networks, which it has not seen:"]
            lines += self._table(self.on_held_out)
        lines += [f"On the {len(self.samples)} networks it learned from, each left out in turn:"]
        lines += self._table(self.leave_one_out)
        lines += [
            f"The other device that ranks these networks most alike is {self.most_alike}.",
            f"Asked of the device in all: {self.asked_samples} measurement(s) to learn from, {self.asked_held_out} to "
            "judge by.",
        ]
        if self.proposals:
            share = 1 - self.width_after
            effect = f"{share:.0%} narrower" if share >= 0.005 else "as wide as now"
            lines += [
                f"These {len(self.proposals)} would help most if they were measured next; with all of them the "
                f"intervals should be {effect}:",
                *(f"  {arch}" for arch in self.proposals),
            ]
        return lines

    def _table(self, figures: dict[str, PredictorCard]) -> list[str]:
        rows = [("", "rank correlation", "mean error", "within 5 %", "within 10 %", f"{self.coverage:.0%} interval")]
        for way, card in figures.items():
            held = f"holds {card.interval_coverage * card.n:.0f} of {card.n}"
            rows.append((
                way, f"{card.spearman:.3f}", f"{card.mape:.1%}", f"{card.within_5_percent:.0%}",
                f"{card.within_10_percent:.0%}", f"+-{card.mean_interval_width / 2:.3g} {card.unit} {held}",
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  " + "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows]


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
