"""The little in which array programs differ between NumPy and JAX; JAX is imported on use only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np

from hanax.searchers._random_words import Array

BackendName = Literal["numpy", "jax"]

State = TypeVar("State")
Step = Callable[[Any, State], tuple[State, dict[str, Array]]]
"""From a generation's number and a state: the next state, and what to log of it."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What an array program needs beside `xp`.

    Attributes:
        xp: ``numpy`` or ``jax.numpy``.
        top: Indices of the `k` largest values along the last axis, descending; of equal ones the first comes first.
        repeats: Where a row of keys, uint32, shape (n, w), is equal to an earlier one; shape (n,).
        loop: Takes a number of steps, a `Step` and a state; gives the last state and the logs, stacked.
        compiled: A function of arrays as an executable, where there is such a thing.
        float64: A context in which arrays can be of 64 bits; functions are compiled anew in it.
    """

    xp: ModuleType
    top: Callable[[Array, int], Array]
    repeats: Callable[[Array], Array]
    loop: Callable[[int, Step[Any], Any], tuple[Any, dict[str, Array]]]
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
    float64: Callable[[], AbstractContextManager[Any]]


def backend_of(name: BackendName) -> Backend:
    """The backend called `name`.

    Raises:
        ValueError: There is no such backend.
    """
    if name == "numpy":
        return Backend(np, _numpy_top, _numpy_repeats, _numpy_loop, lambda function: function, nullcontext)
    if name == "jax":
        return _jax()
    raise ValueError(f"backend is 'numpy' or 'jax'; got {name!r}")


def _numpy_top(values: Array, k: int) -> Array:
    return np.argsort(-values, axis=-1, kind="stable")[..., :k]


def _numpy_repeats(keys: Array) -> Array:
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    repeats = np.zeros(len(keys), dtype=bool)
    repeats[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return repeats


def _numpy_loop(n: int, step: Step[State], state: State) -> tuple[State, dict[str, Array]]:
    logs = []
    for number in range(n):
        state, log = step(number, state)
        logs.append(log)
    return state, {name: np.stack([log[name] for log in logs]) for name in (logs[0] if logs else ())}


def _jax() -> Backend:
    import jax
    import jax.numpy as jnp
    from jax import lax

    def top(values: Array, k: int) -> Array:
        return lax.top_k(values, k)[1]

    def repeats(keys: Array) -> Array:
        n, n_words = keys.shape
        *ordered, order = lax.sort((*keys.T, jnp.arange(n)), num_keys=n_words, is_stable=True)
        same = jnp.stack([word[1:] == word[:-1] for word in ordered]).all(axis=0)
        return jnp.zeros(n, dtype=bool).at[order[1:]].set(same)

    def loop(n: int, step: Step[State], state: State) -> tuple[State, dict[str, Array]]:
        return lax.scan(lambda carry, number: step(number, carry), state, jnp.arange(n, dtype=jnp.uint32))

    return Backend(jnp, top, repeats, loop, jax.jit, lambda: jax.enable_x64(True))
