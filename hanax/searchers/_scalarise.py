"""One number in place of several losses, as the user states it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hanax.searchers._problem import Floats

Scalarisation = Sequence[float] | Callable[[Floats], Floats]
"""A weight per loss, for their sum; or a function of losses, shape (n, m), that gives one to minimise, shape (n,)."""


def scalar_losses(scalarisation: Scalarisation, losses: Floats) -> Floats:
    """One loss per row of `losses`, shape (n, m), to be minimised; shape (n,).

    Raises:
        ValueError: There are not as many weights as losses, or the function gives another shape or no finite numbers.
    """
    if callable(scalarisation):
        values = np.asarray(scalarisation(losses), dtype=np.float64)
        if values.shape != (len(losses),) or not np.isfinite(values).all():
            raise ValueError(f"the scalarisation of losses of shape {losses.shape} must be finite numbers of shape "
                             f"({len(losses)},); got shape {values.shape}")  # fmt: skip
        return values
    if len(scalarisation) != losses.shape[1]:
        raise ValueError(f"{losses.shape[1]} objectives need as many weights; got {len(scalarisation)}")
    return losses @ np.asarray(scalarisation, dtype=np.float64)
