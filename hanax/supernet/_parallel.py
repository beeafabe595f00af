"""Training on several processes, hosts and devices: each takes some shards of a batch, and gradients are averaged.

A batch is cut into shards that are each normalised by their own batch statistics (ghost batch norm, Hoffer et al.,
2017, arXiv:1705.08741). So nothing is exchanged inside a block, only one averaged gradient a step, and the result
depends on the number of shards but, up to rounding, not on how many devices share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

Tree = TypeVar("Tree")
Shard = TypeVar("Shard")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Parallel:
    """Who shares a training: by default one process with one device.

    `Parallel(n_devices=4)` is one process with four devices; `Parallel.connect` joins processes. Every process runs the
    same program and holds all weights; those of all processes stay equal to the bit, as all apply the same mean.

    Attributes:
        n_processes: Processes that train together.
        process: Which of them this one is, from 0.
        n_devices: Devices of this process that work, the first ones of `jax.local_devices()`.

    Raises:
        ValueError: A count is not positive, or `process` is not below `n_processes`.
    """

    n_processes: int = 1
    process: int = 0
    n_devices: int = 1

    def __post_init__(self) -> None:
        for name in ("n_processes", "n_devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.process < self.n_processes:
            raise ValueError(f"process must lie in [0, {self.n_processes}); got {self.process}")

    @classmethod
    def connect(
        cls, coordinator: str, n_processes: int, process: int, *, n_devices: int = 1, timeout_s: int = 300
    ) -> Parallel:
        """Join the other processes; returns once all are there. Call it before anything else uses JAX.

        Args:
            coordinator: ``host:port`` at which process 0 listens and the others find it.
            timeout_s: How long to wait for the others, now and for a sign of life later. A process that loses one of
                them ends with an error.

        Raises:
            ValueError: An argument is out of range.
            RuntimeError: JAX was used before, or not all processes came in time.
        """
        parallel = cls(n_processes, process, n_devices)
        # JAX would catch SIGTERM and go on; a training may be killed at any moment, and then should end.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            coordinator, n_processes, process, initialization_timeout=timeout_s, heartbeat_timeout_seconds=timeout_s
        )
        return parallel

    def disconnect(self) -> None:
        """Part from the other processes; returns once all are here. What this one does later is its own affair."""
        if self.n_processes > 1:
            jax.distributed.shutdown()

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the checkpoints and the log."""
        return self.process == 0

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices of this process that work.

        Raises:
            ValueError: There are fewer than `n_devices`.
        """
        found = jax.local_devices()
        if len(found) < self.n_devices:
            raise ValueError(f"n_devices is {self.n_devices}, but this process has {len(found)}: {found}")
        return tuple(found[: self.n_devices])

    def shards_here(self, n_shards: int) -> range:
        """Which of the shards 0, 1, ... of a batch this process takes.

        Raises:
            ValueError: The shards cannot be dealt out equally.
        """
        workers = self.n_processes * self.n_devices
        if n_shards < 1 or n_shards % workers != 0:
            raise ValueError(
                f"n_shards must be a multiple of {workers}, as {self.n_processes} processes with {self.n_devices} "
                f"devices each share the shards of a batch; got {n_shards}"
            )
        here = n_shards // self.n_processes
        return range(self.process * here, (self.process + 1) * here)

    def over_devices(
        self, work: Callable[[Tree, Shard], Result], params: Tree, shards: Sequence[Shard]
    ) -> list[Result]:
        """``work(params, shard)`` for each of `shards`, in their order, the devices side by side.

        Each device has a thread, its own copy of `params` and an equal run of the shards. Results (trees of arrays)
        come back to the first device.

        Raises:
            ValueError: The number of shards is not a multiple of `n_devices`.
        """
        if self.n_devices == 1:
            return [work(params, shard) for shard in shards]
        if len(shards) % self.n_devices != 0:
            raise ValueError(f"{len(shards)} shards cannot be dealt out equally to {self.n_devices} devices")
        devices = self.devices
        each = len(shards) // len(devices)

        def work_on(device: jax.Device, own: Sequence[Shard]) -> list[Result]:
            with jax.default_device(device):
                copy = jax.device_put(params, device)
                return [jax.device_put(work(copy, shard), devices[0]) for shard in own]

        with ThreadPoolExecutor(max_workers=len(devices)) as pool:
            parts = [
                pool.submit(work_on, device, shards[position * each : (position + 1) * each])
                for position, device in enumerate(devices)
            ]
            return [result for part in parts for result in part.result()]

    def mean(self, tree: Tree) -> Tree:
        """The mean of `tree`, a tree of arrays, over the processes; the same bits in each of them.

        All processes must call it alike. What is not finite in one is not finite in the mean, so all of them see it.

        Raises:
            RuntimeError: The processes are not connected.
        """
        if self.n_processes == 1:
            return tree
        if jax.process_count() != self.n_processes:
            raise RuntimeError(
                f"{self.n_processes} processes are to share the work, but JAX is connected to {jax.process_count()}; "
                "make this object with `Parallel.connect`"
            )
        across = NamedSharding(_one_device_per_process(), PartitionSpec("process"))

        def own_row(value: Array) -> Array:
            row = jax.device_put(jnp.asarray(value)[None], jax.local_devices()[0])
            return jax.make_array_from_single_device_arrays((self.n_processes, *row.shape[1:]), across, [row])

        means = _mean_of_rows()(jax.tree.map(own_row, tree))
        local: Tree = jax.tree.map(lambda value: value.addressable_data(0), means)
        return local

    def barrier(self, name: str) -> None:
        """Wait until all processes are here.

        Raises:
            RuntimeError: Another process waits at a barrier of another name.
        """
        if self.n_processes == 1:
            return
        try:
            multihost_utils.sync_global_devices(name)
        except AssertionError as error:
            raise RuntimeError(f"process {self.process} waits at the barrier {name!r}, another at another") from error


def mean_in_order(trees: Sequence[Tree]) -> Tree:
    """The mean of `trees`, added from the first to the last, so that rounding is always the same."""
    total = trees[0]
    for tree in trees[1:]:
        total = _add(total, tree)
    if len(trees) == 1:
        return total
    mean: Tree = _divide(total, len(trees))
    return mean


@jax.jit
def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)


@jax.jit
def _divide(tree: Any, count: Int[Array, ""] | int) -> Any:
    return jax.tree.map(lambda value: value / count, tree)


@cache
def _one_device_per_process() -> Mesh:
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    return Mesh(np.array([firsts[process] for process in sorted(firsts)]), ("process",))


@cache
def _mean_of_rows() -> Callable[[Any], Any]:
    """Compiled: arrays with a row in each process -> the mean of the rows, in every process."""
    everywhere = NamedSharding(_one_device_per_process(), PartitionSpec())
    return jax.jit(lambda tree: jax.tree.map(lambda rows: rows.mean(axis=0), tree), out_shardings=everywhere)
