"""Whether a runtime computes what the network computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from hanax.devices._local_agent import Agent
from hanax.devices._requests import identify, load_model, run_model, unload_model


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a runtime's outputs are from those expected.

    Attributes:
        max_error: Largest absolute difference.
        relative_rms: Root mean square of the differences, over the standard deviation of what was expected.
        n_images: Images compared.
    """

    max_error: float
    relative_rms: float
    n_images: int


def runtime_outputs(
    agent: Agent, name: str, model: bytes, images: Float32[np.ndarray, "n c h w"]
) -> Float32[np.ndarray, "n classes"]:
    """What `model` computes for `images` on the device behind `agent`, as many at a time as that takes.

    Args:
        name: For errors.

    Raises:
        AgentError: The agent failed, or its answer is not one array of finite numbers per image.
        ValueError: The images are no multiple of the device's batch.
    """
    identify(agent)
    batch = agent.spec.batch
    if len(images) == 0 or len(images) % batch:
        raise ValueError(f"{agent.spec.name} takes {batch} images at a time; got {len(images)}, no multiple of it")
    sha256 = load_model(agent, name, model, (batch, *images.shape[1:]), seed=0)
    starts = range(0, len(images), batch)
    found = np.concatenate([run_model(agent, name, sha256, images[start : start + batch]) for start in starts])
    unload_model(agent, name, sha256)
    return found


def check_parity(
    agent: Agent,
    name: str,
    model: bytes,
    images: Float32[np.ndarray, "n c h w"],
    expected: Float32[np.ndarray, "n classes"],
) -> Parity:
    """Runs `model` on the device behind `agent`, as many `images` at a time as it takes, and compares with `expected`.

    Args:
        name: For errors.

    Raises:
        AgentError: The agent failed, or its output has another shape than expected.
        ValueError: The images are no multiple of the device's batch.
    """
    found = runtime_outputs(agent, name, model, images)
    if found.shape != expected.shape:
        agent.fail("run", name, f"its outputs have shape {found.shape}; expected {expected.shape}")
    difference = found.astype(np.float64) - expected
    return Parity(
        max_error=float(np.abs(difference).max()),
        relative_rms=float(np.sqrt(np.mean(difference**2)) / expected.std()),
        n_images=len(images),
    )
