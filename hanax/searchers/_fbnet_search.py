"""Differentiable search with Gumbel-softmax weights, after FBNet."""

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


def fbnet_loss(loss: jax.Array, cost: jax.Array, alpha: float = 0.2, beta: float = 0.6) -> jax.Array:
    """``loss * alpha * log(cost) ** beta``, elementwise (Wu et al., 2019, arXiv:1812.03443, eq. 2).

    The logarithm depends on the unit: `cost` must be above 1 in it. The paper's latencies are in microseconds.
    """
    import jax.numpy as jnp

    return loss * alpha * jnp.log(cost) ** beta


def fbnet_search(
    space: SearchSpace,
    loss: Differentiable,
    cost: Differentiable,
    *,
    alpha: float = 0.2,
    beta: float = 0.6,
    epochs: int = 90,
    steps_per_epoch: int = 10,
    batch: int = 8,
    temperature: float = 5.0,
    temperature_decay: float = 0.956,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> GradientResult:
    """A distribution over networks that lowers `fbnet_loss`, learned through Gumbel-softmax weights.

    FBNet (Wu et al., 2019, arXiv:1812.03443, section 3.3). Every step draws `batch` soft networks, with weights
    ``softmax((logits + gumbel) / temperature)`` per decision and a temperature that falls every epoch, and moves the
    logits by Adam down the gradient of their mean loss. The paper trains a supernet at the same time; here `loss` and
    `cost` are given, such as predictors, and fixed.

    Args:
        space: Where to search.
        loss: What to minimise, above 0, such as a predicted cross entropy or error; see `relaxed_one_hot`.
        cost: Such as a latency, above 1 in its unit.
        alpha: Factor of the loss.
        beta: Exponent of the logarithm of the cost; 0 ignores the cost.
        epochs: Number of temperatures.
        steps_per_epoch: Steps at each.
        batch: Soft networks per step.
        temperature: That of the first epoch.
        temperature_decay: Factor from one epoch to the next.
        learning_rate: Of Adam.
        seed: Of the Gumbel noise.

    Raises:
        ValueError: A count is less than 1, a temperature or a rate is not above 0, or a value is not a finite number,
            as for a cost of 1 or less.
    """
    for name, count in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch), ("batch", batch)):
        if count < 1:
            raise ValueError(f"{name} is a number of at least 1; got {count}")
    rates = {"temperature": temperature, "temperature_decay": temperature_decay, "learning_rate": learning_rate}
    for name, rate in rates.items():
        if not rate > 0:
            raise ValueError(f"{name} is above 0; got {rate}")
    import jax
    import jax.numpy as jnp
    import optax

    exists = option_mask(space)
    optimizer = optax.adam(learning_rate)

    def mean_loss(logits: jax.Array, noise: jax.Array, tau: jax.Array) -> jax.Array:
        features = relaxed_one_hot(space, jax.nn.softmax((logits[None] + noise) / tau, axis=-1))
        return jnp.mean(fbnet_loss(loss(features), cost(features), alpha, beta))

    def step(state: Any, inputs: Any) -> Any:
        logits, moments = state
        probabilities = jax.nn.softmax(logits, axis=-1)
        value, gradient = jax.value_and_grad(mean_loss)(logits, *inputs)
        updates, moments = optimizer.update(gradient, moments)
        facts = (value, expected_cost(space, cost, probabilities), entropy_of(probabilities))
        return (jnp.where(exists, logits + updates, ABSENT), moments), facts

    def learn(noise: jax.Array, temperatures: jax.Array) -> Any:
        logits = jnp.where(exists, 0.0, ABSENT)
        (logits, _), facts = jax.lax.scan(step, (logits, optimizer.init(logits)), (noise, temperatures))
        return jax.nn.softmax(logits, axis=-1), facts

    temperatures = np.repeat(temperature * temperature_decay ** np.arange(epochs), steps_per_epoch)
    noise = np.random.default_rng(seed).gumbel(size=(len(temperatures), batch, *exists.shape))
    probabilities, facts = jax.jit(learn)(noise.astype(np.float32), temperatures.astype(np.float32))
    return GradientResult(space, np.asarray(probabilities, dtype=np.float64), history_of(*facts))
