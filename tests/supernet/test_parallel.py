"""Processes and devices that share a training: who takes what, what they agree on, and what a loss of one does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from hanax.supernet import Parallel
from hanax.supernet._checkpoint import Checkpoints
from hanax.supernet._parallel import mean_in_order

TIMEOUT_S = 120


def start(script: str, *arguments: object, n_devices: int = 1) -> subprocess.Popen[str]:
    """A process of its own on the CPU, which appears to it as `n_devices` devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}",
    }
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(script: str, *arguments: object, timeout_s: int = 60) -> list[subprocess.Popen[str]]:
    """Two processes that run `script` with `parallel` connected."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    connect = f"""
import sys
from hanax.supernet import Parallel
parallel = Parallel.connect({address!r}, 2, int(sys.argv[1]), timeout_s={timeout_s})
"""
    return [start(connect + textwrap.dedent(script), process, *arguments) for process in (0, 1)]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each process printed; all must succeed."""
    try:
        ended = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(text for _, text in ended)
    return [output for output, _ in ended]


# ---- one process ----------------------------------------------------------------------------------------------


def test_every_shard_is_taken_by_exactly_one_process() -> None:
    taken = [list(Parallel(n_processes=3, process=process, n_devices=2).shards_here(12)) for process in range(3)]
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert Parallel().shards_here(3) == range(3)


@pytest.mark.parametrize("n_shards", [0, 4, 9])
def test_shards_that_cannot_be_dealt_out_equally_are_refused(n_shards: int) -> None:
    with pytest.raises(ValueError, match=rf"n_shards must be a multiple of 6, as 3 processes .* got {n_shards}$"):
        Parallel(n_processes=3, process=0, n_devices=2).shards_here(n_shards)


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_devices must be at least 1; got 0"):
        Parallel(n_devices=0)
    with pytest.raises(ValueError, match=r"process must lie in \[0, 2\); got 2"):
        Parallel(n_processes=2, process=2)


def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_devices is 1000, but this process has"):
        _ = Parallel(n_devices=1000).devices


def test_alone_nothing_is_copied_or_waited_for() -> None:
    tree = {"gradient": jnp.ones(3)}
    assert Parallel().mean(tree) is tree
    Parallel().barrier("anywhere")
    assert Parallel().over_devices(lambda params, shard: params["gradient"] * shard, tree, [2.0])[0][0] == 2.0


def test_processes_that_are_not_connected_have_no_mean() -> None:
    with pytest.raises(RuntimeError, match=r"2 processes are to share the work, but JAX is connected to 1"):
        Parallel(n_processes=2).mean(jnp.ones(3))


def test_the_mean_of_shards_is_added_from_the_first_to_the_last() -> None:
    values = np.float32([1e8, 1.0, -1e8, 1.0])
    trees = [{"a": jnp.asarray(value), "b": jnp.asarray([value, 0.0])} for value in values]
    mean = mean_in_order(trees)
    assert mean["a"] == 0.25  # 1e8 + 1 is 1e8 in float32; another order gives another sum
    np.testing.assert_array_equal(mean["b"], np.float32([0.25, 0.0]))
    assert mean_in_order(trees[:1]) is trees[0]


# ---- several devices ------------------------------------------------------------------------------------------

OVER_DEVICES = """
import threading
import jax, jax.numpy as jnp, numpy as np
from hanax.supernet import Parallel

parallel = Parallel(n_devices=2)
together = threading.Barrier(2, timeout=60)

def work(params, shard):
    together.wait()  # passes only if both devices work at the same time
    result = params["scale"] * jnp.full(3, shard)
    (device,) = result.devices()
    return {"values": result, "device": np.int32(device.id)}

results = parallel.over_devices(work, {"scale": jnp.float32(10)}, [0.0, 1.0, 2.0, 3.0])
assert [float(result["values"][0]) for result in results] == [0.0, 10.0, 20.0, 30.0]
assert [int(result["device"]) for result in results] == [0, 0, 1, 1]
assert all(result["values"].devices() == {jax.devices()[0]} for result in results)
try:
    parallel.over_devices(work, {}, [0.0])
except ValueError as error:
    print(error)
"""


def test_devices_share_the_shards_side_by_side_and_keep_their_order() -> None:
    (output,) = finish([start(OVER_DEVICES, n_devices=2)])
    assert output == "1 shards cannot be dealt out equally to 2 devices\n"


# ---- several processes ----------------------------------------------------------------------------------------

MEAN = """
import numpy as np, jax.numpy as jnp
own = np.random.default_rng(parallel.process).normal(size=1000).astype(np.float32)
worst = np.float32(np.nan if parallel.process == 1 else 0.0)
mean = parallel.mean({"gradient": jnp.asarray(own), "losses": [jnp.float32(parallel.process), worst]})
assert (mean["gradient"] + 1).devices() == {parallel.devices[0]}  # an ordinary array again
print(np.asarray(mean["gradient"]).tobytes().hex(), *map(float, mean["losses"]))
parallel.barrier("the same")
try:
    parallel.barrier(f"at {parallel.process}")
except RuntimeError as error:
    print(error)
"""


def test_two_processes_get_the_same_mean_to_the_bit_and_notice_different_barriers() -> None:
    outputs = [output.splitlines()[-2:] for output in finish(start_two(MEAN))]
    assert outputs[0][0] == outputs[1][0]
    found, *losses = outputs[0][0].split()
    own = [np.random.default_rng(process).normal(size=1000).astype(np.float32) for process in (0, 1)]
    np.testing.assert_allclose(np.frombuffer(bytes.fromhex(found), np.float32), (own[0] + own[1]) / 2, rtol=1e-6)
    assert losses == ["0.5", "nan"]  # what one process finds not finite, all do
    assert [lines[1] for lines in outputs] == [
        "process 0 waits at the barrier 'at 0', another at another",
        "process 1 waits at the barrier 'at 1', another at another",
    ]


LOSS = """
import os, signal
import numpy as np
parallel.barrier("both are there")
if parallel.process == 1:
    os.kill(os.getpid(), int(sys.argv[2]))
parallel.mean(np.ones(3, np.float32))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_loses_the_other_ends_with_an_error(signal_name: str) -> None:
    left, lost = start_two(LOSS, int(signal.Signals[signal_name]), timeout_s=15)
    started = time.monotonic()
    try:
        _, errors = left.communicate(timeout=60)
    finally:
        for process in (left, lost):
            process.kill()
            process.communicate()
    assert left.returncode not in (None, 0)
    assert "Gloo all-reduce failed" in errors or "another task died" in errors
    assert time.monotonic() - started < 60


CHECKPOINTS = """
from pathlib import Path
import jax.numpy as jnp, numpy as np
from hanax.supernet._checkpoint import Checkpoints

def state(step):
    return {"params": {"a": jnp.full(3, float(step))}, "step": step}

with Checkpoints(Path(sys.argv[2]), {"seed": 0}, parallel) as checkpoints:
    assert checkpoints.restore_latest(state(0)) is None
    for step in range(1, 4 + parallel.process):  # only what the writer saves counts
        checkpoints.save(state(step))
    restored = checkpoints.restore_latest(state(0))
    assert restored["step"] == 3 and restored["params"]["a"].tolist() == [3.0] * 3, restored
    checkpoints.save(state(5))
try:
    Checkpoints(Path(sys.argv[2]), {"seed": 1}, parallel)
except ValueError as error:
    print(error)
"""


def test_one_process_writes_checkpoints_that_all_restore(tmp_path: Path) -> None:
    for output in finish(start_two(CHECKPOINTS, tmp_path / "checkpoints")):
        assert "another training, differing in seed: seed was 0, is 1" in output
    with Checkpoints(tmp_path / "checkpoints", {"seed": 0}) as checkpoints:
        restored = checkpoints.restore_latest({"params": {"a": jnp.zeros(3)}, "step": 0})
    assert restored is not None
    assert restored["step"] == 5


# ---- training -------------------------------------------------------------------------------------------------

TRAIN = """
import dataclasses, json, sys
from pathlib import Path
import jax, numpy as np
from hanax.search_spaces import mobilenet_v3
from hanax.supernet import Augmentation, Parallel, Recipe, load_images, split_validation, train_supernet

space = mobilenet_v3(
    resolutions=(8,), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2,), depths=(1, 2),
    stem_width=8, stem_stride=1, stage_widths=(8,), stage_strides=(1,), stage_activations=("relu",),
    stage_squeeze_excite=(False,), head_width=16, feature_width=16,
)
recipe = Recipe(
    epochs=0.12, batch_size=32, n_shards=2, optimizer="sgd", learning_rate=1e-2, warmup_epochs=0.0, n_random_subnets=1,
    augmentation=Augmentation(pad_crop=1),
)
split = split_validation(load_images("digits"), fraction=0.2, seed=0)
directory = Path(sys.argv[2])
params = train_supernet(space, split, recipe, directory, parallel=parallel)
np.savez(directory / f"weights{parallel.process}.npz", *map(np.asarray, jax.tree.leaves(params)))
"""


def train(directory: Path, *, n_processes: int = 1, n_devices: int = 1) -> tuple[list[dict[str, float]], np.ndarray]:
    """The log and the weights (of all processes the same ones) of a short training with two shards a batch."""
    if n_processes == 1:
        alone = f"from hanax.supernet import Parallel\nparallel = Parallel(n_devices={n_devices})\n"
        finish([start(alone + TRAIN, 0, directory, n_devices=n_devices)])
    else:
        finish(start_two(TRAIN, directory))
    weights = [
        np.concatenate([leaf.ravel() for leaf in np.load(directory / f"weights{process}.npz").values()])
        for process in range(n_processes)
    ]
    assert len({flat.tobytes() for flat in weights}) == 1
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()], weights[0]


@pytest.fixture(scope="module")
def trained_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], np.ndarray]:
    return train(tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [{"n_processes": 2}, {"n_devices": 2}], ids=["two processes", "two devices"])
def test_two_workers_train_as_one_does(
    workers: dict[str, int], trained_alone: tuple[list[dict[str, float]], np.ndarray], tmp_path: Path
) -> None:
    expected_log, expected = trained_alone
    log, weights = train(tmp_path, **workers)
    assert len(log) == len(expected_log) == 4
    for line, expected_line in zip(log, expected_log, strict=True):
        for name in ("loss_largest", "loss_smallest", "loss_random", "accuracy_largest"):
            assert line[name] == pytest.approx(expected_line[name], rel=1e-5)
    assert np.linalg.norm(weights - expected) <= 1e-5 * np.linalg.norm(expected)
