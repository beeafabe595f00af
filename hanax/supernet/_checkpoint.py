"""Checkpoints of a training, by Orbax: complete or absent, tied to what is being trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from hanax._files import write_atomically
from hanax.supernet._parallel import Parallel

IDENTITY_FILE = "identity.json"
KEPT = 2


class Checkpoints:
    """The checkpoints in `directory`; a context manager.

    Of several processes that train together only the writer writes; the others read the same folder, on a shared file
    system. All of them make this object, restore and leave together, but each may save when it likes.

    Args:
        identity: Says what is being trained; None to open what is there.
        parallel: The processes that train together.

    Raises:
        ValueError: `directory` holds checkpoints of something else; names what differs.
        FileNotFoundError: `identity` is None and `directory` holds no checkpoints.
    """

    def __init__(self, directory: Path, identity: dict[str, Any] | None, parallel: Parallel | None = None) -> None:
        self._parallel = parallel or Parallel()
        self._directory = directory
        path, steps = directory / IDENTITY_FILE, directory / "steps"
        if identity is None:
            if not path.exists() or not steps.exists():
                raise FileNotFoundError(f"no supernet checkpoint in {directory}; train one with `hanax run`")
            self.identity: dict[str, Any] = json.loads(path.read_text())
        else:
            self.identity = json.loads(json.dumps(identity))
            self._claim(directory)
        import orbax.checkpoint as ocp

        self._ocp = ocp
        # Processes meet at the barriers here and nowhere in Orbax: to it, each is alone.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process{jax.process_index()}",
        )
        self._manager = ocp.CheckpointManager(
            steps.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                create=False,
                read_only=not self._parallel.is_writer,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            ),
        )

    def _claim(self, directory: Path) -> None:
        """Write the identity into `directory`, where there is no other one."""
        path = directory / IDENTITY_FILE
        if path.exists() and (known := json.loads(path.read_text())) != self.identity:
            differing = [key for key in self.identity if known.get(key) != self.identity[key]]
            raise ValueError(
                f"{directory} holds checkpoints of another training, differing in {', '.join(differing)}: "
                + "; ".join(f"{key} was {known.get(key)}, is {self.identity[key]}" for key in differing)
                + ". Use another folder, or delete this one to start anew."
            )
        self._parallel.barrier("no other identity")
        if self._parallel.is_writer:
            (directory / "steps").mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(self.identity, indent=1).encode())
        self._parallel.barrier("identity written")
        if not path.exists() or json.loads(path.read_text()) != self.identity:
            raise ValueError(
                f"process {self._parallel.process} does not find in {path} what process 0 wrote and it would write "
                "itself; give all processes one shared folder and the same space, data and recipe"
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._parallel.barrier("last checkpoint written")
        self._manager.close()

    def keep(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON values kept as `name` beside the identity; what `make` returns is kept, if there are none.

        All processes call it together, and `make` returns the same in each.
        """
        path = self._directory / f"{name}.json"
        is_kept = path.exists()
        self._parallel.barrier(f"looked for {name}")
        if not is_kept:
            made = json.dumps(make(), indent=1)
            if self._parallel.is_writer:
                write_atomically(path, made.encode())
            self._parallel.barrier(f"{name} written")
        values: dict[str, Any] = json.loads(path.read_text())
        return values

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` under its ``step``; nothing to do for a process that is not the writer."""
        if not self._parallel.is_writer:
            return
        stored = jax.tree.map(np.asarray, state)  # Orbax refuses arrays that one of several processes has to itself
        self._manager.save(state["step"], args=self._ocp.args.StandardSave(stored), force=True)
        self._manager.wait_until_finished()

    def restore_latest(self, like: dict[str, Any]) -> dict[str, Any] | None:
        """The newest state, shaped as `like`; None if there is none."""
        self._parallel.barrier("before restoring")  # the writer is not saving
        self._manager.reload()
        state = self._restore(self._manager.latest_step(), like)
        self._parallel.barrier("after restoring")  # nor does it delete what another still reads
        return state

    def _restore(self, step: int | None, like: dict[str, Any]) -> dict[str, Any] | None:
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
