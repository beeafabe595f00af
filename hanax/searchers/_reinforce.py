"""Policy gradient: one probability distribution per decision, learned from rewards."""

from __future__ import annotations

import numpy as np

from hanax.search_spaces import SearchSpace
from hanax.searchers._factorised import draw_networks, most_likely_network, option_mask
from hanax.searchers._memory import ROUNDS, Told, Unseen, row_keys
from hanax.searchers._problem import Codes, Floats
from hanax.searchers._scalarise import Scalarisation, scalar_losses

BASELINE_DECAY = 0.9
"""Share of the moving averages of reward and spread that stays at every step."""

ADAM_DECAYS, ADAM_EPSILON = (0.9, 0.999), 1e-8


class Reinforce:
    """REINFORCE (Williams, 1992, doi:10.1007/BF00992696) with a factorised policy, as a baseline in MnasNet's style.

    MnasNet (Tan et al., 2019, arXiv:1807.11626) trains a recurrent controller by PPO; here every decision has its own
    categorical distribution. The reward is minus the scalarised loss minus `penalty` times the violation: with an
    objective that is itself a reward (`with_mnasnet_reward`) weights of ``(1.0,)`` leave it as it is. Its advantage
    over a moving average, in units of a moving deviation, so that the scale of the reward does not matter, drives one
    step of Adam (Kingma & Ba, 2015, arXiv:1412.6980) per `ask`. Only decisions that count share in it.

    The policy proposes what it likes again and again. No network is handed out twice: samples of known networks are
    answered from memory and learned from like others. Where a bounded number of samples brings too few new networks,
    random ones fill the batch, which the policy does not learn from.

    Results may come back in any order, a few at a time or not at all; those that come late are learned from late.
    Networks that were not asked for may be told as well; the policy learns from them when it samples them.
    """

    def __init__(
        self,
        space: SearchSpace,
        scalarisation: Scalarisation,
        *,
        batch: int = 20,
        learning_rate: float = 0.1,
        entropy: float = 0.02,
        penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Start with uniform distributions.

        Args:
            space: Where to search.
            scalarisation: Weights of the losses, or a function that makes one of them, to be minimised.
            batch: Networks per `ask`.
            learning_rate: Of Adam, on logits.
            entropy: Weight of the policy's entropy, in deviations of the reward per nat.
            penalty: Reward taken away per unit of violation.
            seed: The same seed and the same results give the same proposals.

        Raises:
            ValueError: A batch of less than 1, a learning rate that is not above 0, or another setting below 0.
        """
        if batch < 1:
            raise ValueError(f"a batch is at least 1 network; got {batch}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is above 0; got {learning_rate}")
        for name, value in (("entropy", entropy), ("penalty", penalty)):
            if not value >= 0:
                raise ValueError(f"{name} is a weight of at least 0; got {value}")
        self._space = space
        self._scalarisation = scalarisation
        self._batch = batch
        self._learning_rate = learning_rate
        self._entropy = entropy
        self._penalty = penalty
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._told = Told(space)
        self._exists = option_mask(space)
        self._logits = np.where(self._exists, 0.0, -np.inf)
        self._moments = np.zeros((2, *self._logits.shape))
        self._steps = 0
        self._baseline: tuple[float, float] | None = None
        self._samples = np.zeros((0, len(space.decisions)), dtype=np.int32)

    @property
    def probabilities(self) -> Floats:
        """Of each option, shape (d, k) for k options at most; 0 for options that a decision does not have."""
        weights = np.exp(self._logits - self._logits.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    @property
    def most_likely(self) -> Codes:
        """The likeliest option of every decision, as a canonical network, shape (1, d)."""
        return most_likely_network(self._space, self.probabilities)

    def ask(self) -> Codes:
        """Learn from the results so far; then up to `batch` networks never proposed before, shape (n, d).

        No rows mean that the space is exhausted.
        """
        self._learn()
        proposals, probabilities = self._samples[:0], self.probabilities
        for _ in range(ROUNDS):
            sampled = draw_networks(self._space, self._rng, probabilities, self._batch - len(proposals))
            self._samples = np.concatenate([self._samples, sampled])
            proposals = np.concatenate([proposals, self._unseen.take(sampled)])
            if len(proposals) == self._batch:
                return proposals
        return np.concatenate([proposals, self._unseen.draw(self._rng, self._batch - len(proposals))])

    def tell(self, codes: Codes, losses: Floats, violations: Floats) -> None:
        """Report losses, shape (n, m), all minimised, and violations, shape (n,), 0 where feasible.

        Telling the same again changes nothing.

        Raises:
            ValueError: A network was told before with another outcome, values are not finite, or shapes do not fit;
                weights or results of the scalarisation do not fit the losses.
        """
        if np.ndim(losses) == 2:  # refused before anything is remembered
            scalar_losses(self._scalarisation, np.asarray(losses, dtype=np.float64))
        self._unseen.take(self._told.add(codes, losses, violations)[0])

    def _learn(self) -> None:
        """One step up the gradient of the expected reward, from the samples whose results are known."""
        keys = row_keys(self._samples)
        known = np.array([key in self._told for key in keys], dtype=bool)
        if not known.any():
            return
        codes, self._samples = self._samples[known], self._samples[~known]
        advantage = self._advantages(self._rewards(codes))
        probabilities = self.probabilities
        taken = codes[:, :, None] == np.arange(probabilities.shape[1])
        # The gradient of log p with respect to logits; decisions that do not count have no part in log p.
        scores = (taken - probabilities) * self._space.active(codes)[:, :, None]
        gradient = np.mean(advantage[:, None, None] * scores, axis=0)
        logs = np.log(np.where(self._exists, np.maximum(probabilities, 1e-300), 1.0))
        surprise = logs - np.sum(probabilities * logs, axis=1, keepdims=True)
        self._ascend(np.where(self._exists, gradient - self._entropy * probabilities * surprise, 0.0))

    def _rewards(self, codes: Codes) -> Floats:
        outcomes = [self._told[key] for key in row_keys(codes)]
        losses = scalar_losses(self._scalarisation, np.array([losses for losses, _ in outcomes]))
        return -losses - self._penalty * np.array([violation for _, violation in outcomes])

    def _advantages(self, rewards: Floats) -> Floats:
        """Rewards over their moving average, in units of their moving deviation; both move on afterwards."""
        mean, variance = self._baseline or (float(rewards.mean()), float(rewards.var()))
        kept = BASELINE_DECAY
        self._baseline = (
            kept * mean + (1 - kept) * float(rewards.mean()),
            kept * variance + (1 - kept) * float(np.mean((rewards - mean) ** 2)),
        )
        return (rewards - mean) / (np.sqrt(variance) if variance > 0 else 1.0)

    def _ascend(self, gradient: Floats) -> None:
        """A step of Adam."""
        self._steps += 1
        for index, (decay, power) in enumerate(zip(ADAM_DECAYS, (1, 2), strict=True)):
            self._moments[index] = decay * self._moments[index] + (1 - decay) * gradient**power
        mean, square = (
            moment / (1 - decay**self._steps) for moment, decay in zip(self._moments, ADAM_DECAYS, strict=True)
        )
        self._logits = self._logits + self._learning_rate * mean / (np.sqrt(square) + ADAM_EPSILON)
