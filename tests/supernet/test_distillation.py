"""Distillation losses: known values, gradients by finite differences, and what clipping bounds."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from hanax.supernet._distillation import DIVERGENCES, alpha_divergence, cross_entropy

UNLIMITED = 1e30


def logits(seed: int, n: int = 5, spread: float = 1.0) -> Array:
    return jnp.asarray(spread * np.random.default_rng(seed).standard_normal((n, 4)), jnp.float32)


STUDENT, TEACHER = logits(0), jax.nn.softmax(logits(1))


def divergence(student: np.ndarray, teacher: np.ndarray, alpha: float) -> np.ndarray:
    """D_alpha per image in float64, from its definition."""
    ratio = teacher / student
    if alpha == 1.0:
        return (teacher * np.log(ratio)).sum(axis=1)
    return ((student * ratio**alpha).sum(axis=1) - 1.0) / (alpha * (alpha - 1.0))


def adaptive(logits: np.ndarray, teacher: np.ndarray, alpha_min: float, alpha_max: float) -> float:
    student = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sides = [divergence(student, teacher, alpha) for alpha in (alpha_min, alpha_max)]
    return float(np.maximum(*sides).mean())


def test_cross_entropy_exceeds_the_divergence_by_the_entropy_and_has_its_gradient() -> None:
    student = np.asarray(jax.nn.softmax(STUDENT), np.float64)
    kl = float(divergence(student, np.asarray(TEACHER, np.float64), 1.0).mean())
    entropy = -float((TEACHER * jnp.log(TEACHER)).sum(axis=1).mean())
    assert float(cross_entropy(STUDENT, TEACHER)) - entropy == pytest.approx(kl, rel=1e-5)
    expected = (jax.nn.softmax(STUDENT) - TEACHER) / len(STUDENT)
    np.testing.assert_allclose(jax.grad(cross_entropy)(STUDENT, TEACHER), expected, atol=1e-7)


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (-0.5, 0.5), (-2.0, 2.0)])
def test_without_clipping_value_and_gradient_are_those_of_the_definition(alphas: tuple[float, float]) -> None:
    loss = partial(alpha_divergence, alpha_min=alphas[0], alpha_max=alphas[1], clip=UNLIMITED)
    value, gradient = jax.value_and_grad(loss)(STUDENT, TEACHER)
    at, teacher = np.asarray(STUDENT, np.float64), np.asarray(TEACHER, np.float64)
    assert float(value) == pytest.approx(adaptive(at, teacher, *alphas), rel=1e-4)
    for position in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[position] = 1e-5
        slope = (adaptive(at + step, teacher, *alphas) - adaptive(at - step, teacher, *alphas)) / 2e-5
        assert float(gradient[position]) == pytest.approx(slope, abs=2e-5)


def test_alpha_1_is_the_kullback_leibler_divergence_and_its_limit() -> None:
    sharp, flat = jnp.array([[0.97, 0.01, 0.01, 0.01]]), jnp.full((1, 4), 0.25)  # where KL is the larger side
    kl = float(divergence(np.asarray(sharp, np.float64), np.asarray(flat, np.float64), 1.0)[0])
    for alpha, tolerance in ((1.0, 1e-5), (0.99, 0.02), (1.01, 0.02)):
        found = alpha_divergence(jnp.log(sharp), flat, alpha_max=alpha, clip=UNLIMITED)
        assert float(found) == pytest.approx(kl, rel=tolerance)


def test_equal_distributions_cost_nothing_and_pull_nowhere() -> None:
    value, gradient = jax.value_and_grad(alpha_divergence)(jnp.log(TEACHER), TEACHER)
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_each_image_takes_the_side_that_diverges_more() -> None:
    sharp, flat = jnp.array([[0.97, 0.01, 0.01, 0.01]]), jnp.full((1, 4), 0.25)
    for student, teacher, side in ((flat, sharp, -1.0), (sharp, flat, 1.0)):
        expected = divergence(np.asarray(student, np.float64), np.asarray(teacher, np.float64), side)
        other = divergence(np.asarray(student, np.float64), np.asarray(teacher, np.float64), -side)
        assert expected > other
        found = alpha_divergence(jnp.log(student), teacher, clip=UNLIMITED)
        assert float(found) == pytest.approx(float(expected[0]), rel=1e-4)
    both = alpha_divergence(jnp.log(jnp.concatenate([flat, sharp])), jnp.concatenate([sharp, flat]), clip=UNLIMITED)
    parts = [alpha_divergence(jnp.log(s), t, clip=UNLIMITED) for s, t in ((flat, sharp), (sharp, flat))]
    assert float(both) == pytest.approx(float(sum(parts)) / 2.0, rel=1e-5)


@pytest.mark.parametrize("clip", [1.0, 5.0])
def test_clipping_bounds_the_gradient_whatever_the_distributions(clip: float) -> None:
    student = logits(2, n=50, spread=30.0)
    teacher = jax.nn.softmax(logits(3, n=50, spread=200.0))  # some probabilities are 0 in float32
    assert bool((teacher == 0.0).any())
    value, gradient = jax.value_and_grad(partial(alpha_divergence, clip=clip))(student, teacher)
    assert bool(jnp.isfinite(value))
    # |-1/a (w_i - q_i sum w)| with w_i <= clip q_i on the lower side; |q_i - p_i| on the upper one.
    bound = jnp.maximum(2.0 * clip * jax.nn.softmax(student), 1.0) / len(student)
    assert bool((jnp.abs(gradient) <= bound + 1e-6).all())
    np.testing.assert_allclose(gradient.sum(axis=1), 0.0, atol=1e-5)


def test_clipping_limits_the_power_of_the_ratio() -> None:
    student, teacher = jnp.array([[0.5, 0.5]]), jnp.array([[0.99, 0.01]])
    gradient = jax.grad(alpha_divergence)(jnp.log(student), teacher)
    weights = np.array([0.5 * min(0.5 / 0.99, 5.0), 0.5 * min(0.5 / 0.01, 5.0)])
    np.testing.assert_allclose(gradient[0], weights - 0.5 * weights.sum(), rtol=1e-4)


def test_alphas_on_the_wrong_side_of_0_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha_min must be negative and alpha_max positive; got 0\.5 and 1\.0"):
        alpha_divergence(STUDENT, TEACHER, alpha_min=0.5)
    with pytest.raises(ValueError, match="clip must be at least 1"):
        alpha_divergence(STUDENT, TEACHER, clip=0.5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_compiles_and_is_least_at_the_teacher(name: str) -> None:
    loss = jax.jit(DIVERGENCES[name])
    assert float(loss(jnp.log(TEACHER), TEACHER)) < float(loss(STUDENT, TEACHER))
