"""Cost models: devices without a device, whose costs follow from the operators of a network alone.

Shapes: `n` architectures, `d` decisions, `c` costs.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from hanax.devices._cost_table import CostDevice
from hanax.search_spaces import Graph, Operator, Precision, SearchSpace, fold_blocks, fold_precise_blocks

Setting = tuple[str, str | int | float]


@runtime_checkable
class CostModel(Protocol):
    """What a network costs, from its operators. Implementations are frozen values, one per set of parameters."""

    @property
    def name(self) -> str:
        """As users name the device."""

    @property
    def description(self) -> str:
        """What it computes, in a sentence."""

    @property
    def source(self) -> str:
        """The paper, datasheet or file that it is from."""

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs that it gives, the main one first; each name ends in its unit."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Everything that decides its costs."""

    @property
    def combine(self) -> Literal["sum", "max"]:
        """How the costs of the parts of a chain make that of the chain."""

    @property
    def reads_names(self) -> bool:
        """Whether costs depend on the names of operators, and not only on what these compute."""

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """The `costs` of a network or of a block of one, for one image; operators in execution order."""


@runtime_checkable
class PolicyModel(Protocol):
    """A `CostModel` whose costs also depend on the number formats of a block, which its operators do not tell."""

    def costs_under(self, operators: list[Operator], precision: Precision | None) -> tuple[float, ...]:
        """The costs of a block of that precision, None for one that computes in floating point."""


def cost_device(model: CostModel) -> CostDevice:
    """What tables of `model` are tied to."""
    return CostDevice(model.name, model.settings)


def graph_costs(model: CostModel, graph: Graph) -> dict[str, float]:
    """Every cost of one network, by name; a graph says nothing about number formats."""
    return dict(zip(model.costs, model.costs_of(list(graph.operators)), strict=True))


def code_costs(model: CostModel, space: SearchSpace, codes: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
    """The costs of many networks, in the order of ``model.costs``; what `graph_costs` says of each.

    A `PolicyModel` sees the number formats of each block as well. A block is costed once per choice (and precision) and
    input shape, whatever the number of architectures.
    """
    combine = np.add if model.combine == "sum" else np.maximum
    if isinstance(model, PolicyModel) and not model.reads_names:
        return fold_precise_blocks(space, codes, model.costs_under, len(model.costs), combine)
    return fold_blocks(space, codes, model.costs_of, len(model.costs), combine, reads_names=model.reads_names)


def cost_column(model: CostModel, cost: str | None) -> int:
    """Where `cost` is in ``model.costs``; the main one, if None.

    Raises:
        ValueError: `model` does not give it; says what it gives.
    """
    if cost is None:
        return 0
    if cost not in model.costs:
        raise ValueError(f"{model.name} gives {', '.join(model.costs)}; asked for was {cost}")
    return model.costs.index(cost)
