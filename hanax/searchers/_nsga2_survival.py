"""Who survives a generation of NSGA-II (Deb et al., 2002, doi:10.1109/4235.996017), on whole populations as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from hanax.searchers._domination import crowding, positions
from hanax.searchers._random_words import Array


@dataclass(frozen=True)
class Nsga2Survival:
    """Survival by front, within a front by crowding distance; of equals the earlier one survives.

    Shapes: ``...`` any leading axes, a population each; `n` rows, `m` objectives.

    Attributes:
        size: How many survive.
    """

    size: int

    def start(self, xp: ModuleType, batch: tuple[int, ...], n_objectives: int) -> tuple[()]:
        """What is remembered from one generation to the next: nothing."""
        return ()

    def select(
        self, xp: ModuleType, state: tuple[()], losses: Array, feasible: Array, rank: Array, words: Array
    ) -> tuple[Array, tuple[()]]:
        """Rows that survive, the best first, shape (..., size), and `state`.

        Args:
            losses: Shape (..., n, m).
            feasible: Whether a row keeps the constraints, shape (..., n).
            rank: The front of each row, shape (..., n).
            words: Random ones, shape (..., n); not needed here.
        """
        return xp.lexsort((-crowding(xp, losses, rank), rank), axis=-1)[..., : self.size], state

    def merits(self, xp: ModuleType, violations: Array) -> Array:
        """What a tournament between survivors compares, the smaller the better: their order.

        `violations` are those of the survivors, the best first, shape (..., size).
        """
        return positions(xp, violations)
