"""Scalar rewards of accuracy and one cost, as published; to be maximised.

Shapes: `n` architectures.
"""

from __future__ import annotations

import numpy as np

from hanax.searchers._problem import Evaluate, Floats
from hanax.searchers._worst_case import with_cost


def mnasnet_reward(
    accuracy: Floats, cost: Floats, target: float, exponent: float = -0.07, hard: bool = False
) -> Floats:
    """``accuracy * (cost / target) ** w``, shape (n,): the reward of MnasNet (Tan et al., 2019, arXiv:1807.11626).

    Args:
        accuracy: Shape (n,), as a fraction or in percent; the reward is in the same unit.
        cost: Shape (n,), above 0, such as a latency.
        target: The cost to aim at, in the unit of `cost`.
        exponent: ``w``; -0.07 lets 5 % more accuracy pay for a doubled latency (section 3.1).
        hard: Do not reward costs below the target: ``w`` is 0 there (eq. 3 with alpha 0); the paper then sets
            `exponent` (beta) to -1.

    Raises:
        ValueError: `target` or a cost is not above 0.
    """
    relative = _relative(cost, target)
    weight = np.where(hard & (relative <= 1.0), 0.0, exponent)
    return np.asarray(accuracy * relative**weight)


def tunas_reward(accuracy: Floats, cost: Floats, target: float, beta: float = -0.07) -> Floats:
    """``accuracy + beta * |cost / target - 1|``, shape (n,): the absolute reward of TuNAS (arXiv:2008.06120).

    Best on the target itself, so that no exponent has to be tuned for a search to end there (Bender et al., 2020).

    Args:
        accuracy: Shape (n,), a fraction.
        cost: Shape (n,), above 0, such as a latency.
        target: The cost to aim at, in the unit of `cost`.
        beta: Reward per relative distance from the target, below 0.

    Raises:
        ValueError: `target` or a cost is not above 0, or `beta` is not below 0.
    """
    if not beta < 0:
        raise ValueError(f"beta takes reward away for missing the target, so it is below 0; got {beta}")
    return np.asarray(accuracy + beta * np.abs(_relative(cost, target) - 1.0))


def with_mnasnet_reward(
    evaluate: Evaluate,
    cost: str,
    target: float,
    *,
    accuracy: str = "accuracy",
    exponent: float = -0.07,
    hard: bool = False,
    name: str = "reward",
) -> Evaluate:
    """`evaluate` with one more cost, `name`, to be maximised: the `mnasnet_reward` of its `accuracy` and `cost`."""
    return with_cost(evaluate, name, lambda costs: mnasnet_reward(costs[accuracy], costs[cost], target, exponent, hard))


def with_tunas_reward(
    evaluate: Evaluate,
    cost: str,
    target: float,
    *,
    accuracy: str = "accuracy",
    beta: float = -0.07,
    name: str = "reward",
) -> Evaluate:
    """`evaluate` with one more cost, `name`, to be maximised: the `tunas_reward` of its `accuracy` and `cost`."""
    return with_cost(evaluate, name, lambda costs: tunas_reward(costs[accuracy], costs[cost], target, beta))


def _relative(cost: Floats, target: float) -> Floats:
    if not 0.0 < target < np.inf:
        raise ValueError(f"the target of a reward is a cost above 0; got {target}")
    if not np.all(np.asarray(cost) > 0):
        raise ValueError(f"a reward needs costs above 0; the least is {np.min(cost)}")
    return np.asarray(cost) / target
