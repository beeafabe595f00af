"""The two usual predictors of a search, fast enough to be called a hundred thousand times: an MLP and a block table.

They take codes of NumPy or of JAX, traced ones included, and answer with the same kind of array. Codes must be
canonical, shape (n, d).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from hanax.search_spaces import SearchSpace
from hanax.searchers._genotypes import Genotypes, genotypes_of
from hanax.searchers._random_words import Array


@dataclass(frozen=True, eq=False)
class OneHotMlp:
    """A multilayer perceptron with ReLU on one-hot codes, as Once-for-All's accuracy predictor; see `one_hot_mlp`.

    Attributes:
        genotypes: The space, as arrays.
        columns: The decision of each feature, int32, shape (f,).
        options: The option of each feature, int32, shape (f,); the feature is 1 where it is taken and counts.
        weights: Of each layer, float32, shape (inputs, outputs); the last one has one output.
        biases: Of each layer, float32, shape (outputs,).
    """

    genotypes: Genotypes
    columns: np.ndarray
    options: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def __call__(self, codes: Array) -> Array:
        """Predictions, float32, shape (n,).

        The first layer is a product with the one-hot rows: with few features it is faster than gathering and adding
        the rows of the weights, which no processor does in blocks.
        """
        xp = codes.__array_namespace__()
        marked = xp.where(self.genotypes.active(xp, codes), codes, -1)
        x = (marked[:, self.columns] == xp.asarray(self.options[None])).astype(xp.float32)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x if number == 0 else xp.maximum(x, 0)) @ xp.asarray(weight) + xp.asarray(bias[None])
        return x[:, 0]


def one_hot_mlp(space: SearchSpace, layers: Sequence[tuple[ArrayLike, ArrayLike]]) -> OneHotMlp:
    """The MLP on ``space.one_hot`` with these weights, shape (inputs, outputs), and biases, shape (outputs,).

    Features without any weight cost nothing.

    Raises:
        ValueError: Shapes do not follow from each other.
    """
    weights = [np.asarray(weight, dtype=np.float32) for weight, _ in layers]
    biases = [np.asarray(bias, dtype=np.float32) for _, bias in layers]
    width = int(space.option_counts.sum())
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.ndim != 2 or weight.shape[0] != width or bias.shape != weight.shape[1:]:
            raise ValueError(
                f"layer {number} has {width} inputs, so needs weights of shape ({width}, outputs) and biases of shape "
                f"(outputs,); got {weight.shape} and {bias.shape}"
            )
        width = weight.shape[1]
    if width != 1:
        raise ValueError(f"the last layer needs one output; got {width}")
    used = weights[0].any(axis=1)
    columns = np.repeat(np.arange(len(space.decisions)), space.option_counts)
    options = np.concatenate([np.arange(count) for count in space.option_counts])
    return OneHotMlp(
        genotypes_of(space),
        columns[used].astype(np.int32),
        options[used].astype(np.int32),
        (weights[0][used], *weights[1:]),
        tuple(biases),
    )


@dataclass(frozen=True, eq=False)
class BlockTable:
    """Costs as sums of table entries, each chosen by the joint setting of a few decisions; see `block_table`.

    Attributes:
        columns: The decisions that each term depends on, int32, shape (t, q).
        strides: How much the code of each adds to the index of the term's entry, int32, shape (t, q); 0 is padding.
        offsets: Where the entries of a term begin, int32, shape (t,).
        values: The entries, one column per device, float32, shape (entries, m).
        is_single: There is one device, so that costs have no axis for devices.
    """

    columns: np.ndarray
    strides: np.ndarray
    offsets: np.ndarray
    values: np.ndarray
    is_single: bool

    def __call__(self, codes: Array) -> Array:
        """Costs, float32, shape (n,), or (n, m) for tables of several devices."""
        xp = codes.__array_namespace__()
        index = (codes[:, self.columns] * xp.asarray(self.strides[None])).sum(axis=-1) + xp.asarray(self.offsets[None])
        costs = xp.asarray(self.values)[index].sum(axis=1)
        return costs[:, 0] if self.is_single else costs

    @property
    def n_devices(self) -> int:
        """Number of devices."""
        return int(self.values.shape[1])

    def of_device(self, device: int) -> BlockTable:
        """The table of one device, by its number."""
        return replace(self, values=self.values[:, [device]], is_single=True)


def block_table(space: SearchSpace, terms: Sequence[tuple[Sequence[str], ArrayLike]]) -> BlockTable:
    """The sum over `terms`, each of them the names of decisions and an array of its entries.

    The entries of a term have an axis per decision, as long as it has options, in the order of the names, and possibly
    a last axis for devices. Codes of decisions that do not count are 0, so a term must name the decision that switches
    its block off, with entries of 0 there.

    Raises:
        ValueError: An array does not have the shape that follows from its decisions, or terms differ in devices.
    """
    columns = np.zeros((len(terms), max(len(names) for names, _ in terms)), dtype=np.int32)
    strides = np.zeros_like(columns)
    offsets: list[int] = []
    parts: list[np.ndarray] = []
    kinds: set[tuple[int, ...]] = set()
    for number, (names, entries) in enumerate(terms):
        entries = np.asarray(entries, dtype=np.float32)
        decisions = [space.column(name) for name in names]
        shape = tuple(int(space.option_counts[column]) for column in decisions)
        if entries.shape[: len(shape)] != shape or entries.ndim > len(shape) + 1:
            raise ValueError(f"entries for {', '.join(names)} need the shape {shape}, and a last axis for devices, if "
                             f"any; got {entries.shape}")  # fmt: skip
        kinds.add(entries.shape[len(shape) :])
        offsets.append(sum(len(part) for part in parts))
        parts.append(entries.reshape(math.prod(shape), -1))
        columns[number, : len(names)] = decisions
        strides[number, : len(names)] = [math.prod(shape[axis + 1 :]) for axis in range(len(names))]
    if len(kinds) != 1:
        raise ValueError(f"all terms need entries for the same devices; got last axes of {sorted(kinds)}")
    return BlockTable(columns, strides, np.array(offsets, dtype=np.int32), np.concatenate(parts), kinds == {()})
