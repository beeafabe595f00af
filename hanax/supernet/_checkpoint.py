"""Checkpoints of a training, by Orbax: complete or absent, tied to what is being trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from hanax._files import write_atomically

IDENTITY_FILE = "identity.json"
KEPT = 2


class Checkpoints:
    """The checkpoints in `directory`; a context manager.

    Args:
        identity: Says what is being trained; None to open what is there.

    Raises:
        ValueError: `directory` holds checkpoints of something else; names what differs.
        FileNotFoundError: `identity` is None and `directory` holds no checkpoints.
    """

    def __init__(self, directory: Path, identity: dict[str, Any] | None) -> None:
        path = directory / IDENTITY_FILE
        if identity is None:
            if not path.exists():
                raise FileNotFoundError(f"no supernet checkpoint in {directory}; train one with `hanax run`")
            self.identity: dict[str, Any] = json.loads(path.read_text())
        else:
            directory.mkdir(parents=True, exist_ok=True)
            self.identity = json.loads(json.dumps(identity))
            if path.exists() and (known := json.loads(path.read_text())) != self.identity:
                differing = [key for key in self.identity if known.get(key) != self.identity[key]]
                raise ValueError(
                    f"{directory} holds checkpoints of another training, differing in {', '.join(differing)}: "
                    + "; ".join(f"{key} was {known.get(key)}, is {self.identity[key]}" for key in differing)
                    + ". Use another folder, or delete this one to start anew."
                )
            write_atomically(path, json.dumps(self.identity, indent=1).encode())
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            (directory / "steps").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True, enable_async_checkpointing=False),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` under its ``step``."""
        stored = {name: np.asarray(value) if isinstance(value, int) else value for name, value in state.items()}
        self._manager.save(state["step"], args=self._ocp.args.StandardSave(stored), force=True)
        self._manager.wait_until_finished()

    def restore_latest(self, like: dict[str, Any]) -> dict[str, Any] | None:
        """The newest state, shaped as `like`; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        stored = {name: np.asarray(value) if isinstance(value, int) else value for name, value in like.items()}
        abstract = jax.tree.map(_abstract, stored)
        restored = self._manager.restore(step, args=self._ocp.args.StandardRestore(abstract))
        return {name: int(restored[name]) if isinstance(value, int) else restored[name] for name, value in like.items()}

    def restore_params(self, like: Any) -> Any:
        """Only the weights of the newest state, shaped as `like`.

        Raises:
            FileNotFoundError: There is no checkpoint yet.
        """
        step = self._manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no finished supernet checkpoint in {self._manager.directory}")
        restored = self._manager.restore(step, args=self._ocp.args.StandardRestore())
        return jax.tree.map(lambda value, _: jax.numpy.asarray(value), restored["params"], like)


def _abstract(value: Any) -> Any:
    sharding = getattr(value, "sharding", None)
    return jax.ShapeDtypeStruct(np.shape(value), value.dtype, sharding=sharding)
