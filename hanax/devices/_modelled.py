"""Which cost models can be named, and what they need."""

from __future__ import annotations

import os
from pathlib import Path

from hanax.devices import _bitfusion
from hanax.devices._bitfusion import POLICY_NAME, BitFusion, BitFusionTable, Bits
from hanax.devices._cost_models import CostModel
from hanax.devices._counts import COUNTS
from hanax.devices._policy_costs import BitOperations, ModelSize
from hanax.devices._roofline import ROOFLINES
from hanax.devices._systolic import SYSTOLIC_ARRAYS

_MODELS: tuple[CostModel, ...] = (*COUNTS, ModelSize(), BitOperations(), *ROOFLINES, *SYSTOLIC_ARRAYS)

COST_MODELS: dict[str, CostModel] = {model.name: model for model in _MODELS}
"""The cost models that need nothing, by name; users make others of the same classes with their own parameters."""

BITFUSION_BITS: dict[str, Bits | None] = {
    **{f"bitfusion-w{bits}a{bits}": (bits, bits) for bits in (4, 6, 8)},
    POLICY_NAME: None,
}
"""The BitFusion devices by name, with the bits of all weights and activations, None for those of a quantized space's
policies; they need the public file."""


class ModelFileError(ValueError):
    """A cost model needs a file that was not given; the message says which one and how to give it."""


def cost_model_names() -> list[str]:
    """The names that `find_cost_model` knows."""
    return [*COST_MODELS, *BITFUSION_BITS]


def find_cost_model(name: str, file: str | Path | None = None) -> CostModel:
    """The cost model called `name`.

    Args:
        file: BitFusion's public file; by default the one that the environment variable ``HANAX_BITFUSION`` names.

    Raises:
        ValueError: There is no such model, or it reads no file and `file` was given.
        ModelFileError: It needs a file and none was given.
        FileNotFoundError, TableError: There is no such file, or it is another one.
    """
    if name in BITFUSION_BITS:
        path = file or os.environ.get(_bitfusion.VARIABLE)
        if not path:
            raise ModelFileError(
                f"{name} reads {_bitfusion.FILE}, which does not come with Hanax; give its path (--model-file), or "
                f"have the environment variable {_bitfusion.VARIABLE} name it"
            )
        return BitFusion(BitFusionTable.read(path), BITFUSION_BITS[name])
    if name not in COST_MODELS:
        raise ValueError(f"there is no cost model {name!r}; known: {', '.join(cost_model_names())}")
    if file is not None:
        raise ValueError(f"{name} reads no file; got {file}")
    return COST_MODELS[name]


def missing_file(name: str) -> str | None:
    """The file that the cost model `name` lacks, in words; None if it lacks none."""
    if name not in BITFUSION_BITS:
        return None
    path = os.environ.get(_bitfusion.VARIABLE)
    if not path:
        return f"the file {_bitfusion.FILE}"
    return None if Path(path).is_file() else f"the file that {_bitfusion.VARIABLE} names, {path}"


def give_file_command() -> str:
    """The command that makes the BitFusion devices available."""
    return f"export {_bitfusion.VARIABLE}=PATH/TO/BitFusion_new.b1.dict"
