"""Differentiable search with binary gates, after ProxylessNAS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._factorised import option_mask
from hanax.searchers._relaxation import (
    ABSENT,
    Differentiable,
    GradientResult,
    entropy_of,
    expected_cost,
    history_of,
    relaxed_one_hot,
)

if TYPE_CHECKING:
    import jax


def proxyless_search(
    space: SearchSpace,
    loss: Differentiable,
    cost: Differentiable,
    *,
    cost_weight: float,
    steps: int = 2000,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> GradientResult:
    """A distribution over networks that lowers ``loss + cost_weight * E[cost]``, learned through binary gates.

    ProxylessNAS (Cai et al., 2019, arXiv:1812.00332). Every step draws two options per decision, and one of the two by
    their probabilities alone, so that one real network is looked at. The gradient of its loss with respect to the gates
    stands for that with respect to the probabilities (eq. 4), that of the expected cost is exact (section 3.3). Both
    move the two logits by Adam without momentum; then these are shifted alike, so that the probabilities of the other
    options stay (section 3.2). For a loss that multiplies features of different decisions each pair of options moves,
    on average, towards the better of the two; of two options in all, by the exact gradient.
    The paper trains a supernet at the same time; here `loss` and `cost` are given, such as predictors, and fixed. Its
    other form, by REINFORCE, is `Reinforce`, for losses that have no gradient.

    Args:
        space: Where to search.
        loss: What to minimise, such as a predicted error; see `relaxed_one_hot`.
        cost: Such as a latency.
        cost_weight: What a unit of the expected cost adds to the loss.
        steps: Networks looked at.
        learning_rate: Of Adam.
        seed: Of the draws.

    Raises:
        ValueError: `steps` is less than 1, the rate is not above 0, or a value is not a finite number.
    """
    if steps < 1:
        raise ValueError(f"steps is a number of at least 1; got {steps}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is above 0; got {learning_rate}")
    import jax
    import jax.numpy as jnp
    import optax

    exists = option_mask(space)
    optimizer = optax.adam(learning_rate, b1=0.0)

    def step(state: Any, noise: Any) -> Any:
        logits, moments = state
        probabilities = jax.nn.softmax(logits, axis=-1)
        value, gradient, paths = gate_gradient(space, loss, noise, logits)
        mean_cost, towards_cost = jax.value_and_grad(lambda p: expected_cost(space, cost, p))(probabilities)
        gradient += cost_weight * towards_cost
        updates, moments = optimizer.update(through_softmax(gradient, logits, paths), moments)
        moved = jnp.where(paths, logits + updates, logits)
        shift = _log_mass(logits, paths) - _log_mass(moved, paths)
        logits = jnp.where(exists, jnp.where(paths, moved + shift, logits), ABSENT)
        return (logits, moments), (value, mean_cost, entropy_of(probabilities))

    def learn(noise: jax.Array) -> Any:
        logits = jnp.where(exists, 0.0, ABSENT)
        (logits, _), facts = jax.lax.scan(step, (logits, optimizer.init(logits)), noise)
        return jax.nn.softmax(logits, axis=-1), facts

    noise = np.random.default_rng(seed).gumbel(size=(steps, 2, *exists.shape))
    probabilities, facts = jax.jit(learn)(noise.astype(np.float32))
    return GradientResult(space, np.asarray(probabilities, dtype=np.float64), history_of(*facts))


def gate_gradient(
    space: SearchSpace, loss: Differentiable, noise: jax.Array, logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss of one network drawn from two paths per decision, its gradient at the gates, the paths; shapes (d, k).

    `noise` from the standard Gumbel distribution, shape (2, d, k), makes the draws.
    """
    import jax
    import jax.numpy as jnp

    options = np.arange(logits.shape[1])[None]
    # The two largest of logits with Gumbel noise are two draws without replacement.
    first = jnp.argmax(logits + noise[0], axis=1, keepdims=True) == options
    second = jnp.argmax(jnp.where(first, 2 * ABSENT, logits + noise[0]), axis=1, keepdims=True) == options
    paths = first | second
    gates = jnp.argmax(jnp.where(paths, logits + noise[1], 2 * ABSENT), axis=1, keepdims=True) == options
    value, gradient = jax.value_and_grad(lambda g: loss(relaxed_one_hot(space, g[None]))[0])(gates.astype(logits.dtype))
    return value, gradient, paths


def through_softmax(gradient: jax.Array, logits: jax.Array, paths: jax.Array) -> jax.Array:
    """`gradient` at the gates carried on to the logits of `paths` by the softmax over these, shape (d, k) (eq. 4)."""
    import jax
    import jax.numpy as jnp

    shares = jax.nn.softmax(jnp.where(paths, logits, 2 * ABSENT), axis=1) * paths
    return shares * (gradient - jnp.sum(shares * gradient, axis=1, keepdims=True))


def _log_mass(logits: jax.Array, paths: jax.Array) -> jax.Array:
    """Logarithm of the unnormalised probability of `paths` together, shape (d, 1)."""
    import jax
    import jax.numpy as jnp

    return jax.nn.logsumexp(jnp.where(paths, logits, 2 * ABSENT), axis=1, keepdims=True)
