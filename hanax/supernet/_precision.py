"""In which floating-point numbers blocks compute; weights, their gradients and batch-norm statistics stay float32."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from hanax.search_spaces import Block, Head
from hanax.supernet._blocks import BlockParams, ElasticValue, Norms, apply_block
from hanax.supernet._layers import Statistics
from hanax.supernet._mbconv import apply_fused, is_fused

ComputeDtype = Literal["float32", "bfloat16"]

_OF_BATCH_NORM = ("scale", "offset")


def compute_dtype_for(setting: Literal["auto", "float32", "bfloat16"]) -> ComputeDtype:
    """What `setting` stands for on the devices there are: by default bfloat16 on a GPU or TPU, float32 on a CPU.

    CPUs emulate most operations on bfloat16, which is slower than float32.
    """
    if setting != "auto":
        return setting
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def apply_block_in(
    dtype: ComputeDtype,
    block: Block,
    params: BlockParams,
    x: Float[Array, "c h w n"],
    choice: tuple[ElasticValue, ...],
    norms: Norms,
) -> tuple[Array, dict[str, Statistics]]:
    """`apply_block` on images and kernels as `dtype`: mixed precision (Micikevicius et al., 2018, arXiv:1710.03740).

    The casts are part of what is differentiated, so gradients come back as float32. bfloat16 has the exponents of
    float32, so that no loss scaling is needed (Kalamkar et al., 2019, arXiv:1905.12322). Logits are float32.
    """
    if dtype == "float32":
        if is_fused(block, choice, x.dtype):
            return apply_fused(block, params, x, choice, norms)
        return apply_block(block, params, x, choice, norms)
    cast = {
        operator: {name: w if name in _OF_BATCH_NORM else w.astype(dtype) for name, w in weights.items()}
        for operator, weights in params.items()
    }
    y, statistics = apply_block(block, cast, x.astype(dtype), choice, norms)
    return (y.astype(jnp.float32) if isinstance(block, Head) else y), statistics
