"""The reference supernet: one jitted function for every subnet, the architecture as data, masks in place of slices.

Slower than the chain on a CPU (it computes the largest net each time) but free of its bookkeeping: the oracle in tests,
and a candidate where one large executable suits the hardware better.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from hanax.search_spaces import Condition, SearchSpace
from hanax.supernet._blocks import ElasticValue
from hanax.supernet._chain import Params
from hanax.supernet._precision import ComputeDtype, apply_block_in
from hanax.supernet._quantized_blocks import apply_quantized


@partial(jax.jit, static_argnames=("space", "n_statistics", "dtype"))
def masked_logits(
    space: SearchSpace,
    params: Params,
    codes: Int[Array, " d"],
    x: Float[Array, "c h w n"],
    n_statistics: int,
    dtype: ComputeDtype = "float32",
) -> Float[Array, "n classes"]:
    """Logits of the architecture `codes`; changing it does not recompile. `x` already has the resolution it asks for.

    Args:
        n_statistics: Batch-norm statistics come from this many leading images: all in training.
        dtype: What blocks compute in, see `apply_block_in`; logits are float32.
    """

    def option(name: str) -> Array:
        column = space.column(name)
        return jnp.array(space.decisions[column].options)[codes[column]]

    def holds(when: Condition) -> Array:
        return jnp.isin(option(when.decision), jnp.array(when.options))

    for slot in space.slots:
        choice: tuple[ElasticValue, ...] = tuple(s if isinstance(s, int) else option(s) for s in slot.settings)
        if slot.precision is None:
            y, _ = apply_block_in(dtype, slot.block, params[slot.name], x, choice, n_statistics)
        else:
            weights, activations = (s if isinstance(s, int) else option(s) for s in slot.precision)
            y, _ = apply_quantized(slot.block, params[slot.name], x, choice, (weights, activations), n_statistics)
        x = y if slot.when is None else jnp.where(holds(slot.when), y, x)
    return x
