"""Parity says how far a device's outputs are from those expected, and refuses what cannot be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from hanax.devices import DEVICES, AgentError, LocalAgent, check_parity

SPEC = DEVICES["onnxruntime-fp32"]
SIDE = 8


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 1, SIDE, SIDE), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(images: np.ndarray) -> np.ndarray:
    """What a model of one multiplication by a matrix of 1/8 computes: the mean of each row, everywhere in it."""
    return np.repeat(images.mean(axis=3), SIDE, axis=2).reshape(4, -1)


def test_the_errors_are_those_that_were_made(
    images: np.ndarray, expected: np.ndarray, matmul_model: Callable[..., bytes]
) -> None:
    off = expected.copy()
    off[2, 5] += 0.5
    with LocalAgent(SPEC) as agent:
        right = check_parity(agent, "means", matmul_model(1, SIDE), images, expected)
        wrong = check_parity(agent, "means", matmul_model(1, SIDE), images, off)
    assert right.n_images == wrong.n_images == 4
    assert right.max_error < 1e-6
    assert wrong.max_error == pytest.approx(0.5, rel=1e-5)
    assert wrong.relative_rms == pytest.approx(0.5 / np.sqrt(off.size) / off.std(), rel=1e-4)


def test_outputs_of_another_shape_are_refused(
    images: np.ndarray, expected: np.ndarray, matmul_model: Callable[..., bytes]
) -> None:
    with LocalAgent(SPEC) as agent, pytest.raises(AgentError, match=r"shape \(4, 64\); expected \(4, 63\)"):
        check_parity(agent, "means", matmul_model(1, SIDE), images, expected[:, 1:])


@pytest.mark.parametrize("n", [0, 3])
def test_images_must_be_a_multiple_of_the_batch(
    n: int, images: np.ndarray, expected: np.ndarray, matmul_model: Callable[..., bytes]
) -> None:
    pairs = dataclasses.replace(SPEC, batch=2)
    with LocalAgent(pairs) as agent, pytest.raises(ValueError, match=f"takes 2 images at a time; got {n}"):
        check_parity(agent, "means", matmul_model(1, SIDE), images[:n], expected[:n])
