"""Random numbers by counting: the same on NumPy and JAX, to the last bit, whatever the order or the batch.

Everything takes the array module `xp` (``numpy`` or ``jax.numpy``) and does its arithmetic in uint32. Arrays broadcast
over equal ranks only.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

Array = Any
"""An array of `xp`."""

SEEDS = 2**32
"""Seeds, streams and counters are whole numbers from 0 to below this."""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(
    xp: ModuleType, key: tuple[Array | int, Array | int], counter: tuple[Array | int, Array | int]
) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds: two random words per `key` and `counter` (Salmon et al., 2011, section 3.3).

    `key` and `counter` are two words each; arrays of them broadcast (doi:10.1145/2063384.2063405).
    """

    def words(value: Array | int) -> Array:
        return xp.reshape(array, (1,)) if (array := xp.asarray(value, dtype=xp.uint32)).ndim == 0 else array

    first, second = words(key[0]), words(key[1])
    keys = (first, second, first ^ second ^ words(_PARITY))
    x0, x1 = words(counter[0]) + first, words(counter[1]) + second
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + (keys[(group + 2) % 3] + words(group + 1))
    return x0, x1


def random_words(xp: ModuleType, shape: tuple[int, ...], seed: int, stream: int, counter: Array | int) -> Array:
    """Uniform uint32 words of `shape` that depend on `seed`, `stream`, `counter` and their position alone.

    Words of a larger leading axis begin with those of a smaller one. At most 2^33 words.

    Args:
        seed: Of everything that belongs together.
        stream: Says for what the words are; other streams are independent.
        counter: For example the generation; may be traced by JAX.
    """
    size = math.prod(shape)
    pairs = threefry2x32(xp, (seed, stream), (xp.arange((size + 1) // 2, dtype=xp.uint32), counter))
    return xp.stack(pairs, axis=-1).reshape(-1)[:size].reshape(shape)


def happens(xp: ModuleType, words: Array, thresholds: Array) -> Array:
    """True with the probabilities that `thresholds` (see `threshold`) stand for; reads the upper 24 bits of `words`."""
    return (words >> 8) < thresholds


def threshold(probability: float) -> int:
    """What `happens` compares with; probabilities are multiples of 2^-24."""
    return round(probability * 2**24)


def bounded(xp: ModuleType, words: Array, bounds: Array) -> Array:
    """Int32 numbers from 0 to below `bounds`, uint32 of at most 2^16, one per word: ``floor(word * bound / 2^32)``.

    Every number comes with its probability up to 2^-32. A bound of 0 gives 0.
    """
    upper, lower = words >> 16, words & 0xFFFF
    return ((upper * bounds + ((lower * bounds) >> 16)) >> 16).astype(xp.int32)
