"""BitFusion: latency and energy per layer for 4-, 6- and 8-bit weights and activations, from APQ's public file.

The file (``lut/BitFusion_new.b1.dict`` of https://github.com/mit-han-lab/apq, JSON) has what the simulator of Sharma
et al. (2018, arXiv:1712.01507) says of the layers of APQ's space at 224 pixels (Wang et al., 2020, arXiv:2006.08509),
in ms and mJ. It is the user's; Hanax ships none of it. A network costs the sum of its layers' rows, as in APQ. Layers
that the file lacks are estimated by a fit to it, and the result says how much of the network that is.

How wrong the fit is on rows that it has not seen, as a share of the true cost, median and 90th percentile over all bits
(`BitFusionTable.fit_errors`, computed from the file by ``tests/devices/test_bitfusion.py``):

========================  =================  ==============================
left out                  each row           all rows of the same map size
========================  =================  ==============================
1x1, latency              6 %, 15 %          11 %, 37 %
1x1, energy               6 %, 16 %          13 %, 39 %
depthwise, latency        1 %, 5 %           2 %, 7 %
depthwise, energy         12 %, 24 %         23 %, 51 %
========================  =================  ==============================

The first column is the error between rows, the second that at resolutions the file does not have. More bits are not
always dearer in the file: of 8,608 pairs of rows that differ by 2 bits, 18 get faster and 193 take less energy.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from hanax.devices._cost_models import Setting
from hanax.devices._stored_table import TableError
from hanax.search_spaces import Graph, Operator, Precision, Shape, operator_precision

Layer = tuple[int, int, int, int, int, int, int]
"""Input channels, output channels, input height (= width), kernel size, stride, padding, groups."""
Bits = tuple[int, int]
"""Of weights, of activations."""

COSTS = ("latency_ms", "energy_mj")
FILE_KEYS = ("latency", "energy")
VARIABLE = "HANAX_BITFUSION"
"""The environment variable that may name the file."""
POLICY_NAME = "bitfusion"
"""The device that costs each network of a quantized space by its policy."""
FILE = "BitFusion_new.b1.dict of github.com/mit-han-lab/apq (folder lut)"


@dataclass(frozen=True, slots=True)
class FitError:
    """How wrong a fit is on rows that it has not seen, as a share of the true cost.

    Attributes:
        median: Of the absolute errors.
        p90: Their 90th percentile.
    """

    median: float
    p90: float
    n_rows: int


@dataclass(frozen=True, slots=True)
class BitFusionCost:
    """Costs of one network.

    Attributes:
        exact_share: Share of its MACs in layers that the file holds.
        interpolated_share: In layers that the fit estimates within the range of the file's layers.
        extrapolated_share: In layers that lie outside: other kinds of layer, sizes or numbers of channels.
    """

    latency_ms: float
    energy_mj: float
    exact_share: float
    interpolated_share: float
    extrapolated_share: float


@dataclass(frozen=True)
class _Fit:
    """Costs as sums of prices per MAC, per value and per pixel, none of which is negative.

    So an estimate never falls when a layer grows, nor turns around outside the range of the rows.

    Attributes:
        prices: One column per cost.
        low: Least value of each term among the rows.
        high: Greatest.
        kernels: Kernel sizes and strides among the rows.
    """

    prices: Float[np.ndarray, "t c"]
    low: Float[np.ndarray, " t"]
    high: Float[np.ndarray, " t"]
    kernels: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, layers: list[Layer], terms: Float[np.ndarray, "n t"], costs: Float[np.ndarray, "n c"]) -> _Fit:
        """The fit with the least sum of squared relative errors (non-negative least squares; Lawson & Hanson, 1974)."""
        from scipy.optimize import nnls

        scale = terms.max(axis=0)
        prices = [nnls(terms / scale / of[:, None], np.ones(len(of)))[0] / scale for of in costs.T]
        kernels = frozenset((layer[3], layer[4]) for layer in layers)
        return cls(np.column_stack(prices), terms.min(axis=0), scale, kernels)

    def costs(self, layer: Layer) -> tuple[float, float]:
        """Estimated latency in ms and energy in mJ."""
        latency_ms, energy_mj = (np.array(_terms(layer)) @ self.prices).tolist()
        return latency_ms, energy_mj

    def covers(self, layer: Layer) -> bool:
        """Whether all about `layer` lies within the range of the rows."""
        terms = np.array(_terms(layer))
        return layer[3:5] in self.kernels and bool(((self.low <= terms) & (terms <= self.high)).all())


@dataclass(frozen=True, eq=False)
class BitFusionTable:
    """The rows of the file.

    Attributes:
        rows: Latency in ms and energy in mJ by layer and bits.
        sha256: Of the file.
    """

    rows: Mapping[tuple[Layer, Bits], tuple[float, float]] = field(repr=False)
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> BitFusionTable:
        """The table in APQ's file.

        Raises:
            FileNotFoundError: There is no file.
            TableError: It is not such a file.
        """
        content = Path(path).read_bytes()
        rows: dict[tuple[Layer, Bits], tuple[float, float]] = {}
        try:
            for key, costs in json.loads(content).items():
                values = tuple(float(costs[name]) for name in FILE_KEYS)
                if not all(math.isfinite(value) and value > 0 for value in values):
                    raise ValueError(f"the costs of {key} must be positive; they are {costs}")
                if key in ("head", "tail"):  # of APQ's own network, whose layers the file does not say
                    continue
                text, _, bits = key.rpartition("-W")
                layer, (weight, activation) = ast.literal_eval(text), bits.split("A")
                if len(layer) != 7 or not all(isinstance(value, int) for value in layer):
                    raise ValueError(f"{key} is not a layer of 7 integers")
                rows[layer, (int(weight), int(activation))] = (values[0], values[1])
        except (AttributeError, KeyError, SyntaxError, TypeError, ValueError) as error:
            raise TableError(f"{path} is not {FILE}: {error}") from error
        if not rows:
            raise TableError(f"{path} is not {FILE}: it has no layers")
        return cls(rows, hashlib.sha256(content).hexdigest())

    @cached_property
    def bits(self) -> list[Bits]:
        """The pairs of bits that the file has."""
        return sorted({bits for _, bits in self.rows})

    def layer_cost(self, op: Operator, bits: Bits) -> tuple[tuple[float, float], str]:
        """Latency in ms and energy in mJ of one operator, and ``exact``, ``interpolated`` or ``extrapolated``.

        Other convolutions than 1x1 and depthwise ones count as the 1x1 convolution of as many MACs, with their kernel's
        values as input channels; so do dense layers. Operators without a kernel cost 0 and are exact, as in APQ.

        Raises:
            ValueError: The file has no rows for `bits`.
        """
        if bits not in self.bits:
            raise ValueError(f"{FILE} has W/A bits {self.bits}, integers; asked for was {bits}")
        if not op.is_weighted:
            return (0.0, 0.0), "exact"
        padding = op.kernel_size // 2
        layer = (op.in_shape[0], op.out_shape[0], op.in_shape[1], op.kernel_size, op.stride, padding, op.groups)
        if op.kind == "conv" and op.in_shape[1] == op.in_shape[2] and (layer, bits) in self.rows:
            return self.rows[layer, bits], "exact"
        fit, similar = self._fit(op.is_depthwise, bits), _similar(op)
        return fit.costs(similar), "interpolated" if similar == layer and fit.covers(layer) else "extrapolated"

    def graph_cost(self, graph: Graph, bits: Bits | Mapping[str, Bits]) -> BitFusionCost:
        """The sum over the operators of `graph`, and how much of it was looked up.

        Args:
            bits: Of all operators, or by the name of each that has a kernel.

        Raises:
            ValueError: The file has no rows for some bits, or an operator has none in `bits`.
        """
        latency_ms, energy_mj = 0.0, 0.0
        macs = {"exact": 0, "interpolated": 0, "extrapolated": 0}
        for op in graph.operators:
            costs, origin = self.layer_cost(op, _bits_of(op, bits, self.bits[-1]))
            latency_ms, energy_mj = latency_ms + costs[0], energy_mj + costs[1]
            macs[origin] += op.macs
        shares = [macs[origin] / max(1, graph.macs) for origin in ("exact", "interpolated", "extrapolated")]
        return BitFusionCost(latency_ms, energy_mj, *shares)

    def fit_errors(self, *, leave_out: Literal["row", "size"] = "row") -> dict[str, FitError]:
        """Errors of the fit, per kind of layer and cost (``depthwise.latency_ms``), over all pairs of bits.

        Args:
            leave_out: ``row``: each row by a fit without it. Rows have near twins, with 8 channels more, so this is the
                error between rows. ``size``: each row by a fit without any row of its map size: the error at other
                resolutions.
        """
        errors: dict[str, list[float]] = {}
        for is_depthwise, bits in itertools.product((False, True), self.bits):
            layers, terms, costs = self._rows_of(is_depthwise, bits)
            held_out = np.array([index if leave_out == "row" else layer[2] for index, layer in enumerate(layers)])
            for out in np.unique(held_out):
                seen, unseen = held_out != out, held_out == out
                fit = _Fit.of(list(itertools.compress(layers, seen)), terms[seen], costs[seen])
                wrong = np.abs(terms[unseen] @ fit.prices / costs[unseen] - 1)
                for column, cost in enumerate(COSTS):
                    kind = "depthwise" if is_depthwise else "pointwise"
                    errors.setdefault(f"{kind}.{cost}", []).extend(wrong[:, column].tolist())
        return {
            name: FitError(float(np.median(of)), float(np.quantile(of, 0.9)), len(of)) for name, of in errors.items()
        }

    @cached_property
    def _fits(self) -> dict[tuple[bool, Bits], _Fit]:
        return {}

    def _fit(self, is_depthwise: bool, bits: Bits) -> _Fit:
        if (is_depthwise, bits) not in self._fits:
            self._fits[is_depthwise, bits] = _Fit.of(*self._rows_of(is_depthwise, bits))
        return self._fits[is_depthwise, bits]

    def _rows_of(
        self, is_depthwise: bool, bits: Bits
    ) -> tuple[list[Layer], Float[np.ndarray, "n t"], Float[np.ndarray, "n c"]]:
        """The layers of one kind, their terms and their costs."""
        layers = [layer for layer, of in self.rows if of == bits and (layer[6] > 1) == is_depthwise]
        terms = np.array([_terms(layer) for layer in layers])
        return layers, terms, np.array([self.rows[layer, bits] for layer in layers])


@dataclass(frozen=True, eq=False)
class BitFusion:
    """The table as a cost model, at one pair of bits for all operators, some for each, or those of a policy.

    Attributes:
        bits: As for `BitFusionTable.graph_cost`; names of operators are the same in each network of a space. None is
            the bits of the policy, which the codes of a quantized space hold and a graph alone does not: `code_costs`.
    """

    table: BitFusionTable
    bits: Bits | Mapping[str, Bits] | None = (8, 8)
    costs: ClassVar[tuple[str, ...]] = COSTS
    combine: ClassVar[Literal["sum", "max"]] = "sum"

    @property
    def name(self) -> str:
        """``bitfusion-wXaY``, ``bitfusion-mixed``, or ``bitfusion`` for a policy's bits."""
        if self.bits is None:
            return POLICY_NAME
        return f"bitfusion-w{self.bits[0]}a{self.bits[1]}" if isinstance(self.bits, tuple) else "bitfusion-mixed"

    @property
    def description(self) -> str:
        """What it looks up."""
        return "latency and energy on the BitFusion simulator, looked up per layer; other layers by a fit"

    @property
    def source(self) -> str:
        """The file and its papers."""
        return f"{FILE}: Wang et al., 2020, arXiv:2006.08509; Sharma et al., 2018, arXiv:1712.01507"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The file and the bits."""
        bits = dict(sorted(self.bits.items())) if isinstance(self.bits, Mapping) else self.bits
        return (("file", self.table.sha256), ("bits", "policy" if bits is None else json.dumps(bits)))

    @property
    def reads_names(self) -> bool:
        """Whether there are bits for each operator."""
        return isinstance(self.bits, Mapping)

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """Latency in ms and energy in mJ of `operators`.

        Raises:
            ValueError: The bits are those of a policy, or the file has no rows for some.
        """
        if self.bits is None:
            raise ValueError(
                f"{self.name} costs a network by its policy, which only the codes of a quantized space hold; "
                "for another space choose bitfusion-w8a8 or the like"
            )
        return self._sums(operators, {op.name: _bits_of(op, self.bits, self.table.bits[-1]) for op in operators})

    def costs_under(self, operators: list[Operator], precision: Precision | None) -> tuple[float, ...]:
        """The same of a block of that precision.

        Raises:
            ValueError: The bits are given, and not the policy's; or there is no policy, or no rows for its formats.
        """
        if precision is None:
            return self.costs_of(operators)
        if self.bits is not None:
            raise ValueError(
                f"{self.name} costs all networks at its own bits; for a space with a policy use {POLICY_NAME}"
            )
        return self._sums(operators, {op.name: operator_precision(op, precision) for op in operators})

    def _sums(self, operators: list[Operator], bits: Mapping[str, Bits]) -> tuple[float, ...]:
        costs = [self.table.layer_cost(op, bits[op.name])[0] for op in operators if op.is_weighted]
        return sum(latency_ms for latency_ms, _ in costs), sum(energy_mj for _, energy_mj in costs)


def _bits_of(op: Operator, bits: Bits | Mapping[str, Bits], without_kernel: Bits) -> Bits:
    if isinstance(bits, tuple):
        return bits
    if not op.is_weighted:
        return without_kernel
    if op.name not in bits:
        raise ValueError(f"no bits are given for {op.name}; there are some for {', '.join(bits)}")
    return bits[op.name]


def _similar(op: Operator) -> Layer:
    """The layer that `op` counts as in a fit, which knows 1x1 and depthwise convolutions of square maps."""
    if op.is_depthwise:
        channels, padding = op.in_shape[0], op.kernel_size // 2
        return (channels, op.out_shape[0], _side(op.in_shape), op.kernel_size, op.stride, padding, channels)
    return (math.prod(op.kernel_shape[1:]), op.out_shape[0], _side(op.out_shape), 1, 1, 0, 1)


def _side(shape: Shape) -> int:
    return round(math.sqrt(shape[1] * shape[2]))


def _terms(layer: Layer) -> tuple[float, ...]:
    """What the costs of a layer are made of: MACs, values that are read or written, channels, pixels, and itself."""
    in_channels, out_channels, side, kernel_size, stride, _, groups = layer
    pixels = (-(-side // stride)) ** 2
    if groups > 1:
        per_channel = (pixels * kernel_size**2, pixels * kernel_size, pixels, side**2, kernel_size**2, 1)
        return (*(float(in_channels * value) for value in per_channel), 1.0)
    inputs, outputs, weights = pixels * in_channels, pixels * out_channels, in_channels * out_channels
    return (float(pixels * weights), float(inputs), float(outputs), float(weights),
            float(pixels), float(in_channels), float(out_channels), 1.0)  # fmt: skip
