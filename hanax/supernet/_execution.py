"""How a subnet is run in training: as a chain of blocks or as one masked executable, and in which numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from hanax.search_spaces import Arch, SearchSpace
from hanax.supernet._chain import Params, Tape, backward_along, evaluate_block, forward_with_tape
from hanax.supernet._masked import masked_logits
from hanax.supernet._parallel import Parallel
from hanax.supernet._precision import ComputeDtype


@dataclass(frozen=True, slots=True)
class Execution:
    """How subnets are run in training: one of two ways, which compute the same and can take each other's place.

    Attributes:
        reason: Why this way.
        dtype: What blocks compute in, see `apply_block_in`.
        chain_s: Median seconds of a step as a chain; None where nothing was measured.
        masked_s: Median seconds of a step as the masked net.
    """

    name: Literal["chain", "masked"]
    reason: str
    dtype: ComputeDtype = "float32"
    chain_s: float | None = None
    masked_s: float | None = None

    def forward_with_tape(
        self,
        space: SearchSpace,
        params: Params,
        arch: Arch,
        x: Float[Array, "c h w n"],
        *,
        recurs: bool = False,
    ) -> tuple[Float[Array, "n classes"], Tape]:
        """Logits of `arch` in training mode (batch norm over the batch), and what `backward_along` needs.

        Args:
            recurs: `arch` is worth executables of its own, where it would be a chain.
        """
        if self.name == "chain":
            return forward_with_tape(space, params, arch, x, dtype=self.dtype, recurs=recurs)
        logits, vjp = _masked_forward(space, params, space.encode([arch])[0], x, self.dtype)
        return logits, [((), vjp)]

    def backward_along(self, tape: Tape, dlogits: Float[Array, "n classes"], gradient: Params) -> None:
        """Add the gradient for `dlogits` to `gradient`, whose old arrays must not be used after it. Empties `tape`."""
        if self.name == "chain":
            backward_along(tape, dlogits, gradient)
        else:
            _, vjp = tape.pop()
            gradient.update(_masked_backward(vjp, dlogits, gradient))

    def logits(
        self, space: SearchSpace, params: Params, arch: Arch, x: Float[Array, "c h w n"]
    ) -> Float[Array, "n classes"]:
        """Logits of `arch` in training mode, for nobody to go back through."""
        n_images = x.shape[-1]
        if self.name == "masked":
            codes = jnp.asarray(space.encode([arch])[0])
            logits: Array = masked_logits(space, params, codes, x, n_images, self.dtype)
            return logits
        for placed in space.blocks(arch):
            x, _ = evaluate_block(placed, params, x, n_images, dtype=self.dtype)
        return x


EXECUTIONS = {name: Execution(name, "as asked for") for name in ("chain", "masked")}


@partial(jax.jit, static_argnames=("space", "dtype"))
def _masked_forward(
    space: SearchSpace,
    params: Params,
    codes: Int[Array, " d"] | Int[np.ndarray, " d"],
    x: Float[Array, "c h w n"],
    dtype: ComputeDtype,
) -> tuple[Array, Any]:
    return jax.vjp(lambda params: masked_logits(space, params, jnp.asarray(codes), x, x.shape[-1], dtype), params)


@partial(jax.jit, donate_argnums=(2,))
def _masked_backward(vjp: Any, dlogits: Array, accumulated: Params) -> Params:
    (gradient,) = vjp(dlogits)
    total: Params = jax.tree.map(jnp.add, accumulated, gradient)
    return total


def choose_execution(
    space: SearchSpace,
    params: Params,
    batch_size: int,
    *,
    setting: Literal["auto", "chain", "masked"] = "auto",
    dtype: ComputeDtype = "float32",
    parallel: Parallel | None = None,
    repeats: int = 3,
) -> Execution:
    """The way that suits the devices there are, or the one that `setting` asks for.

    On a CPU the chain, without a measurement: the masked net computes the largest subnet each time, and time there goes
    into arithmetic. On a GPU or TPU the faster of the two: arithmetic is cheap, but the chain starts each block on its
    own. What was measured can change from one run to the next, and the two differ by rounding: keep the choice with a
    training that is to be resumed to the bit.

    Args:
        batch_size: Images that go through a subnet at once.
        dtype: What blocks are to compute in.
        parallel: The processes that train together; they measure together and choose alike.
        repeats: Steps measured of each.
    """
    if setting != "auto":
        return Execution(setting, "as the recipe says", dtype)
    if jax.default_backend() == "cpu":
        return Execution("chain", "on a CPU, where the masked net would compute the largest subnet each time", dtype)
    ways = [replace(way, dtype=dtype) for way in EXECUTIONS.values()]
    seconds = [step_seconds(way, space, params, batch_size, repeats=repeats) for way in ways]
    medians = (parallel or Parallel()).mean(np.median(seconds, axis=1).astype(np.float32))
    return _faster(dtype, *map(float, medians))


def _faster(dtype: ComputeDtype, chain_s: float, masked_s: float) -> Execution:
    name: Literal["chain", "masked"] = "chain" if chain_s <= masked_s else "masked"
    measured = f"a step took {chain_s * 1e3:.1f} ms as a chain and {masked_s * 1e3:.1f} ms as the masked net"
    return Execution(name, measured, dtype, chain_s, masked_s)


def step_seconds(
    execution: Execution, space: SearchSpace, params: Params, batch_size: int, *, repeats: int
) -> list[float]:
    """Seconds of the forward and backward passes of each of `repeats` steps: the sandwich with two random subnets.

    On images of noise, without what comes after the gradient; every step is done once before, to compile.
    """
    rng = np.random.default_rng(0)
    archs = [[space.largest, space.smallest, *space.decode(space.sample(rng, 2))] for _ in range(repeats)]
    images = _noise(space, batch_size, rng)

    def step(subnets: list[Arch]) -> None:
        gradient: Params = jax.tree.map(jnp.zeros_like, params)
        for arch in subnets:
            logits, tape = execution.forward_with_tape(space, params, arch, images(space.resolution(arch)))
            execution.backward_along(tape, jnp.ones_like(logits) / batch_size, gradient)
        jax.block_until_ready(gradient)

    for subnets in archs:
        step(subnets)
    seconds = []
    for subnets in archs:
        started = time.perf_counter()
        step(subnets)
        seconds.append(time.perf_counter() - started)
    return seconds


def _noise(space: SearchSpace, n_images: int, rng: np.random.Generator) -> Callable[[int], Array]:
    """``resolution -> images`` on the device."""
    made: dict[int, Array] = {}

    def images(side: int) -> Array:
        if side not in made:
            made[side] = jnp.asarray(rng.normal(size=(space.image_channels, side, side, n_images)).astype(np.float32))
        return made[side]

    return images
