"""A subnet on its own: what extraction hands over and what is saved, exported and shipped."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanax._files import write_atomically
from hanax.search_spaces import Arch, Graph, Operator, SearchSpace
from hanax.supernet._weights import Weights, check_weights, load_weights, save_weights


@dataclass(frozen=True)
class Subnet:
    """One architecture with its own calibrated weights; needs nothing of the supernet any more.

    Attributes:
        input_mean: Mean per channel that inputs are normalised with, for pixels in [0, 1].
        input_std: Standard deviation per channel, likewise.
        n_calibration: Training images that the batch-norm statistics come from.

    Raises:
        UncalibratedError: A batch norm has no statistics.
        ValueError: The weights do not fit the graph.
    """

    arch: Arch
    graph: Graph
    weights: Weights
    space_fingerprint: str
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    n_calibration: int

    def __post_init__(self) -> None:
        check_weights(self.graph, self.weights)

    def save(self, directory: Path) -> None:
        """Write ``weights.npz`` and ``subnet.json`` into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(directory / "weights.npz", self.weights)
        description = {
            "arch": str(self.arch),
            "space_fingerprint": self.space_fingerprint,
            "input_mean": self.input_mean,
            "input_std": self.input_std,
            "n_calibration": self.n_calibration,
            "graph": dataclasses.asdict(self.graph),
        }
        write_atomically(directory / "subnet.json", json.dumps(description, indent=1).encode())

    @classmethod
    def load(cls, directory: Path, space: SearchSpace | None = None) -> Subnet:
        """Read what `save` wrote.

        Args:
            directory: The folder.
            space: The space it must be of; any, if None.

        Raises:
            FileNotFoundError: There is no subnet in `directory`.
            SpaceMismatchError: It belongs to another space than `space`.
            ValueError: The files are damaged or do not fit together.
        """
        description = json.loads((directory / "subnet.json").read_text())
        if space is not None:
            space.require(description["space_fingerprint"], f"subnet {directory}")
        return cls(
            arch=Arch.parse(description["arch"]),
            graph=graph_of(description["graph"]),
            weights=load_weights(directory / "weights.npz"),
            space_fingerprint=description["space_fingerprint"],
            input_mean=tuple(description["input_mean"]),
            input_std=tuple(description["input_std"]),
            n_calibration=description["n_calibration"],
        )


def graph_of(description: dict[str, Any]) -> Graph:
    """The graph whose `dataclasses.asdict` is `description`; JSON made lists of its tuples."""

    def restore(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

    operators = [Operator(**restore(fields)) for fields in description["operators"]]
    return Graph(tuple(description["input_shape"]), tuple(operators))
