"""Networks as points between networks: one-hot features that are linear in the weights of options.

Shapes: `n` architectures, `d` decisions, `k` options of the decision that has most, `f` columns of
`SearchSpace.one_hot`. JAX is loaded when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._factorised import draw_networks, most_likely_network, option_mask
from hanax.searchers._problem import Codes, Floats

if TYPE_CHECKING:
    import jax
    import pandas as pd

Differentiable = Callable[["jax.Array"], "jax.Array"]
"""A JAX function of relaxed one-hot features, shape (n, f), that gives a value per row, shape (n,)."""

ABSENT = -1e9
"""Logit of an option that a decision does not have."""


@dataclass(frozen=True, eq=False)
class GradientResult:
    """What a search by gradients learned.

    Attributes:
        space: Where it searched.
        probabilities: Of each option, shape (d, k), 0 for options that a decision does not have.
        history: A row per step: ``step``, ``loss`` of the networks of the step (mean), ``expected_cost`` and
            ``entropy`` of the distribution (in nats, summed over decisions) before it.
    """

    space: SearchSpace
    probabilities: Floats
    history: pd.DataFrame

    @property
    def most_likely(self) -> Codes:
        """The likeliest option of every decision, as a canonical network, shape (1, d)."""
        return most_likely_network(self.space, self.probabilities)

    def sample(self, rng: np.random.Generator, n: int) -> Codes:
        """`n` canonical networks from the distribution, shape (n, d); duplicates can occur."""
        return draw_networks(self.space, rng, self.probabilities, n)


def relaxed_one_hot(space: SearchSpace, weights: Any) -> jax.Array:
    """Features, shape (n, f), of options mixed with `weights`, shape (n, d, k).

    One-hot weights give `SearchSpace.one_hot`. Otherwise the columns of a decision are its weights times the weight
    with which it counts: that of its parent times that of the parent's options that switch it on. With probabilities as
    weights the features are therefore the expected ones of decisions drawn independently.
    """
    import jax.numpy as jnp

    weights = jnp.asarray(weights)
    counts: list[jax.Array] = []
    for decision in space.decisions:
        if decision.when is None:
            counts.append(jnp.ones_like(weights[:, 0, 0]))
        else:
            parent = space.column(decision.when.decision)
            accepted = np.isin(space.decisions[parent].options, decision.when.options)
            counts.append(counts[parent] * (weights[:, parent, : len(accepted)] @ accepted.astype(weights.dtype)))
    columns = (weights * jnp.stack(counts, axis=1)[:, :, None]).reshape(len(weights), -1)
    features: jax.Array = columns[:, np.flatnonzero(option_mask(space))]
    return features


def expected_cost(space: SearchSpace, cost: Differentiable, probabilities: Any) -> jax.Array:
    """`cost` of the expected features under `probabilities`, shape (d, k); a number, differentiable.

    The exact expectation for a cost that adds up over decisions, as a look-up table does: the sum over decisions of
    probability times cost (Cai et al., 2019, arXiv:1812.00332, section 3.3), and for one that multiplies features of
    different decisions, none of which switches the other on.
    """
    return cost(relaxed_one_hot(space, probabilities[None]))[0]


def history_of(loss: Any, cost: Any, entropy: Any) -> pd.DataFrame:
    """The columns of `GradientResult.history`.

    Raises:
        ValueError: A loss or cost is not a finite number.
    """
    import pandas as pd

    history = pd.DataFrame({
        "step": np.arange(len(loss)), "loss": np.asarray(loss), "expected_cost": np.asarray(cost),
        "entropy": np.asarray(entropy),
    })  # fmt: skip
    wrong = np.flatnonzero(~np.isfinite(history[["loss", "expected_cost"]]).all(axis=1))
    if len(wrong):
        row = history.iloc[wrong[0]]
        raise ValueError(f"step {wrong[0]}: loss {row['loss']} and expected cost {row['expected_cost']}; both must be "
                         "finite numbers for every mixture of networks")  # fmt: skip
    return history


def entropy_of(probabilities: jax.Array) -> jax.Array:
    """Sum over decisions of the entropy of `probabilities`, shape (d, k), in nats."""
    import jax.numpy as jnp

    return -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, 1e-30)))
