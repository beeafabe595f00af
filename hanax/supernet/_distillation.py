"""Losses between a subnet's logits and what it is to learn: labels, or the probabilities of a teacher.

Shapes: `n` images. Losses are means over the images, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def cross_entropy(logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]) -> Float[Array, ""]:
    """Cross-entropy on labels, smoothed or not, or on a teacher's probabilities.

    Has the gradient of ``KL(targets || softmax(logits))``, which is less by the entropy of `targets`: distillation at
    temperature 1 (Hinton et al., 2015, arXiv:1503.02531).
    """
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=1).mean()


def alpha_divergence(
    logits: Float[Array, "n classes"],
    teacher_probabilities: Float[Array, "n classes"],
    *,
    alpha_min: float = -1.0,
    alpha_max: float = 1.0,
    clip: float = 5.0,
) -> Float[Array, ""]:
    """AlphaNet's adaptive alpha-divergence of the teacher p from the student q (Wang et al., 2021, arXiv:2102.07954).

    ``D_a(p || q) = (sum_i q_i (p_i / q_i)^a - 1) / (a (a - 1))``; D_1 is ``KL(p || q)``. For each image the larger one
    of D at `alpha_min`, which punishes a student that is less certain than its teacher, and at `alpha_max`, which
    punishes one that misses classes of its teacher.

    The gradient, ``-1/a sum_i w_i grad log q_i`` with the weights ``w_i = q_i (p_i / q_i)^a``, is unbounded for a
    outside [0, 1]. There ``(p_i / q_i)^a`` is limited to `clip` (and so in the value); inside, the weights sum to at
    most 1 and stay as they are. The derivative by `logits` that JAX takes is this gradient, not that of the limited
    value; it must not be taken twice.

    Raises:
        ValueError: `alpha_min` is not negative, `alpha_max` not positive, or `clip` below 1.
    """
    if not alpha_min < 0.0 < alpha_max:
        raise ValueError(f"alpha_min must be negative and alpha_max positive; got {alpha_min} and {alpha_max}")
    if clip < 1.0:
        raise ValueError(f"clip must be at least 1, which equal distributions have; got {clip}")
    log_student, log_teacher = jax.nn.log_softmax(logits), jnp.log(teacher_probabilities)
    lower, lower_slope = _divergence(log_student, log_teacher, alpha_min, clip)
    upper, upper_slope = _divergence(log_student, log_teacher, alpha_max, clip)
    value = jnp.maximum(lower, upper)
    slope = jnp.where(lower > upper, lower_slope, upper_slope)
    loss: Array = slope + jax.lax.stop_gradient(value - slope)
    return loss.mean()


def _divergence(
    log_student: Float[Array, "n classes"], log_teacher: Float[Array, "n classes"], alpha: float, clip: float
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """D_alpha per image, and a term whose derivative is its gradient."""
    fixed = jax.lax.stop_gradient(log_student)
    # In logarithms: the weight of a class that the teacher excludes is then the limit, and not 0 times infinity.
    log_power = alpha * (log_teacher - fixed)
    if not 0.0 <= alpha <= 1.0:
        log_power = jnp.minimum(log_power, math.log(clip))
    weights = jnp.exp(fixed + log_power)
    slope = -(weights * log_student).sum(axis=1) / alpha
    if alpha == 1.0:
        return jnp.where(weights > 0.0, weights * (log_teacher - fixed), 0.0).sum(axis=1), slope
    return (weights.sum(axis=1) - 1.0) / (alpha * (alpha - 1.0)), slope


Divergence = Callable[[Array, Array], Array]
"""``(logits of the student, probabilities of the teacher) -> loss``."""

DIVERGENCES: dict[str, Divergence] = {"kl": cross_entropy, "alpha": alpha_divergence}
