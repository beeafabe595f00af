"""Native kernels compute what the pure-XLA forms do, in one order of summation, and are absent without harm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from hanax.search_spaces import Activation, ConvBlock, MBConv
from hanax.supernet import _depthwise, apply_block
from hanax.supernet._blocks import BlockParams, net_of
from hanax.supernet._depthwise import depthwise
from hanax.supernet._layers import Statistics, batch_norm, pointwise
from hanax.supernet._mbconv import apply_fused, is_fused
from hanax.supernet._native import COMPILERS, native_status

QUICK = {"xla_backend_optimization_level": 0}  # each is run a few times: the compiler's own time is what counts
TIMEOUT_S = 300
Compute = Callable[..., Array]


@pytest.fixture(scope="module")
def native() -> None:
    status = native_status()
    if not status.available:
        pytest.skip(f"no native kernels: {status.reason}")


def normal(*shape: int, seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32))


def output_and_gradients(compute: Compute, operands: tuple[Array, ...]) -> tuple[Array, ...]:
    y, pull_back = jax.vjp(compute, *operands)
    return (y, *pull_back(normal(*y.shape, seed=1)))


def in_pure_xla(compute: Compute) -> Compute:
    """`compute`, with native kernels switched off while it is traced."""

    def pure(*operands: Array) -> Array:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HANAX_NATIVE", "0")
            return compute(*operands)

    return pure


def assert_close(found: tuple[Array, ...], expected: tuple[Array, ...], what: object) -> None:
    """Each array to 2e-5 of its largest value, or of 1 where that is smaller."""
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        limit = 2e-5 * max(1.0, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=limit, err_msg=f"{what}, array {index}")


# ---- depthwise ------------------------------------------------------------------------------------------------

REACH = np.abs(np.mgrid[-3:4, -3:4]).max(axis=0)
"""Of each tap of a 7x7 kernel: half the size of the smallest kernel that has it."""


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [
    (1, 1, 1, 1), (3, 1, 1, 5), (2, 2, 5, 15), (1, 5, 7, 3), (5, 8, 8, 16), (3, 9, 6, 17), (1, 13, 13, 33),
    (2, 3, 14, 8), (23, 16, 16, 40),
])  # fmt: skip
def test_depthwise_convolutions_of_all_sizes_equal_those_of_xla(shape: tuple[int, int, int, int], stride: int) -> None:
    x, kernel = normal(*shape), normal(shape[0], 7, 7)

    @partial(jax.jit, compiler_options=QUICK)
    def both(x: Array, kernel: Array, size: Array) -> tuple[tuple[Array, ...], ...]:
        inside = (size // 2 >= REACH)[None]

        def ours(x: Array, kernel: Array) -> Array:
            return depthwise(x, kernel * inside, stride, size)

        def theirs(x: Array, kernel: Array) -> Array:
            return _depthwise._toeplitz(x, kernel * inside, stride)

        return tuple(output_and_gradients(way, (x, kernel)) for way in (ours, theirs))

    for size in (1, 3, 5, 7):
        assert_close(*both(x, kernel, jnp.int32(size)), f"size {size}")
    assert both._cache_size() == 1, "the size is data"


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("largest", "stride"), [(1, 1), (1, 2), (3, 2), (5, 1)])
def test_depthwise_kernels_are_used_whole_by_default(largest: int, stride: int) -> None:
    operands = (normal(3, 11, 6, 9), normal(3, largest, largest))

    def both(*operands: Array) -> tuple[tuple[Array, ...], ...]:
        ways = (depthwise, _depthwise._toeplitz)
        return tuple(output_and_gradients(lambda x, kernel, way=way: way(x, kernel, stride), operands) for way in ways)

    assert_close(*jax.jit(both, compiler_options=QUICK)(*operands), f"largest {largest}")


@pytest.mark.usefixtures("native")
def test_taps_outside_the_kernel_size_are_not_even_read() -> None:
    kernel = jnp.full((2, 7, 7), jnp.nan).at[:, 2:5, 2:5].set(normal(2, 3, 3))
    y, _, dkernel = output_and_gradients(lambda x, kernel: depthwise(x, kernel, 1, 3), (normal(2, 6, 6, 4), kernel))
    assert bool(jnp.isfinite(y).all())
    outside = np.ones((7, 7), bool)
    outside[2:5, 2:5] = False
    assert not np.asarray(dkernel)[:, outside].any()
    assert np.asarray(dkernel)[:, 2:5, 2:5].all()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("size", [0, 2, 9, -1])
def test_a_kernel_size_that_does_not_exist_is_an_error(size: int) -> None:
    with pytest.raises(Exception, match="the kernel size must be odd, at most 7 and at most that of the weights"):
        depthwise(normal(1, 4, 4, 2), normal(1, 7, 7), 1, size).block_until_ready()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("largest", "stride", "called"), [(7, 1, True), (7, 2, True), (9, 1, False), (3, 3, False)])
def test_kernels_and_strides_that_are_not_known_go_to_xla(largest: int, stride: int, called: bool) -> None:
    operands = (normal(1, 9, 9, 2), normal(1, largest, largest))
    program = jax.jit(lambda x, kernel: depthwise(x, kernel, stride)).lower(*operands).as_text()
    assert ("hanax_depthwise_forward" in program) == called


@pytest.mark.usefixtures("native")
def test_other_numbers_than_float32_go_to_xla() -> None:
    def net(x: Array, kernel: Array, taps: Array, scale: Array) -> Array:
        y = pointwise(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
        return batch_norm(depthwise(y, taps.astype(jnp.bfloat16)), scale, scale, x.shape[-1], "relu")[0]

    operands = (normal(2, 4, 4, 3), normal(5, 2), normal(5, 3, 3), normal(5))
    assert "hanax" not in jax.jit(net).lower(*operands).as_text()


# ---- pointwise ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("shape", "outputs"), [
    ((1, 1, 1, 1), 1), ((1, 1, 1, 3), 7), ((5, 3, 3, 5), 1), ((8, 1, 3, 5), 12), ((7, 5, 3, 7), 13),
    ((6, 4, 4, 4), 4), ((3, 1, 43, 3), 5), ((17, 9, 7, 11), 23), ((200, 2, 2, 9), 41), ((19, 16, 16, 24), 50),
])  # fmt: skip
def test_pointwise_convolutions_equal_those_of_xla(shape: tuple[int, int, int, int], outputs: int) -> None:
    def both(*operands: Array) -> tuple[tuple[Array, ...], ...]:
        return tuple(output_and_gradients(way, operands) for way in (pointwise, in_pure_xla(pointwise)))

    assert_close(*jax.jit(both, compiler_options=QUICK)(normal(*shape), normal(outputs, shape[0])), shape)


# ---- batch norm -----------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1, 1), (3, 1, 1, 5), (2, 4, 4, 16), (5, 3, 3, 7), (7, 9, 5, 13), (3, 16, 16, 65)]
ACTIVATIONS: list[Activation] = ["none", "relu", "hswish"]


def norm_operands(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Images and the scales and offsets of their channels, so that activations have values on all their pieces."""
    return 2.0 * normal(*shape) + 1.0, 2.0 * normal(shape[0]), normal(shape[0], seed=2)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norms_over_the_batch_equal_those_of_xla(shape: tuple[int, int, int, int]) -> None:
    operands = norm_operands(shape)

    def both(*operands: Array) -> list[list[tuple[Array, ...]]]:
        def way(activation: Activation) -> Compute:
            return lambda x, scale, offset: batch_norm(x, scale, offset, shape[-1], activation)[0]

        return [
            [output_and_gradients(form(way(activation)), operands) for form in (lambda compute: compute, in_pure_xla)]
            for activation in ACTIVATIONS
        ]

    for activation, (ours, theirs) in zip(ACTIVATIONS, jax.jit(both, compiler_options=QUICK)(*operands), strict=True):
        assert_close(ours, theirs, (activation, shape))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("shape", "n_statistics"), [
    ((1, 1, 1, 2), 1), ((5, 3, 3, 7), 4), ((2, 4, 4, 40), 17), ((3, 16, 16, 65), 64), ((2, 3, 3, 6), 9),
])  # fmt: skip
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_batch_norms_over_leading_images_equal_those_of_xla(
    shape: tuple[int, int, int, int], n_statistics: int, activation: Activation
) -> None:
    def compute(*operands: Array) -> tuple[Array, ...]:
        y, statistics = batch_norm(*operands, n_statistics, activation)
        return (y, *statistics)

    operands = norm_operands(shape)
    both = jax.jit(lambda *operands: (compute(*operands), in_pure_xla(compute)(*operands)), compiler_options=QUICK)
    assert_close(*both(*operands), (activation, shape))


@pytest.mark.usefixtures("native")
def test_no_gradient_flows_through_the_statistics() -> None:
    def statistics(x: Array) -> Array:
        return sum(jnp.sum(values) for values in batch_norm(x, jnp.ones(2), jnp.ones(2), 6)[1])

    np.testing.assert_array_equal(jax.grad(statistics)(normal(2, 3, 3, 6)), np.zeros((2, 3, 3, 6)))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_that_are_not_finite_are_passed_on(activation: Activation) -> None:
    x = normal(2, 3, 3, 5).at[0, 1, 1, 2].set(jnp.nan)
    y, _ = batch_norm(x, jnp.ones(2), jnp.zeros(2), 5, activation)
    assert bool(jnp.isnan(y[0]).all()) and bool(jnp.isfinite(y[1]).all())
    assert bool(jnp.isnan(depthwise(x, normal(2, 3, 3))[0, 0, 0, 2]))
    assert bool(jnp.isnan(pointwise(x, normal(4, 2))[:, 1, 1, 2]).all())


@pytest.mark.usefixtures("native")
def test_a_program_calls_each_kernel_by_its_name() -> None:
    def net(x: Array, kernel: Array, taps: Array, scale: Array) -> Array:
        return batch_norm(depthwise(pointwise(x, kernel), taps), scale, scale, x.shape[-1], "relu")[0].sum()

    operands = (normal(2, 4, 4, 3), normal(5, 2), normal(5, 3, 3), normal(5))
    program = jax.jit(jax.grad(net, argnums=(0, 1, 2, 3))).lower(*operands).as_text()
    for kernel in ("depthwise", "pointwise", "batch_norm"):
        assert f"hanax_{kernel}_forward_{native_status().suffix}" in program
        assert f"hanax_{kernel}_backward_{native_status().suffix}" in program
    pure = jax.jit(in_pure_xla(lambda *operands: jax.grad(net)(*operands))).lower(*operands).as_text()
    assert "hanax" not in pure


# ---- a block in evaluation ------------------------------------------------------------------------------------

N_IMAGES = 37  # two chunks of 16 images and a part of one
BLOCKS = {
    "without expansion": (MBConv(8, 9, 1, (3, 5), (1,), "relu", False), 9),
    "stride 2": (MBConv(5, 12, 2, (3, 5, 7), (2, 3), "relu", False), 7),
    "residual and squeeze-excite": (MBConv(16, 16, 1, (3, 5, 7), (1, 3), "hswish", True), 6),
    "stride 2 and squeeze-excite": (MBConv(8, 16, 2, (3, 7), (4,), "hswish", True), 8),
    "one pixel": (MBConv(16, 16, 1, (3, 5), (2,), "hswish", True), 1),
}


def block_operands(name: str) -> tuple[MBConv, BlockParams, Array]:
    """The block, weights that are nowhere zero or alike, and images of channels with means far from zero."""
    block, side = BLOCKS[name]
    rng = np.random.default_rng(3)
    params = {
        operator: {
            key: jnp.asarray(array + 0.3 * rng.standard_normal(array.shape), jnp.float32)
            for key, array in weights.items()
        }
        for operator, weights in net_of(block).init(block, rng).items()
    }
    x = normal(block.in_channels, side, side, N_IMAGES) * rng.uniform(0.2, 4.0, (block.in_channels, 1, 1, 1))
    return block, params, jnp.asarray(x + 5.0 * rng.standard_normal((block.in_channels, 1, 1, 1)), jnp.float32)


def flat(found: tuple[Array, dict[str, Statistics]]) -> tuple[Array, ...]:
    return (found[0], *(array for name in sorted(found[1]) for array in found[1][name]))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_in_evaluation_equals_its_operators_one_by_one(name: str) -> None:
    block, params, x = block_operands(name)
    for ratio in block.expand_ratios:

        @partial(jax.jit, compiler_options=QUICK, static_argnames=("n_statistics",))
        def both(size: Array, n_statistics: int, ratio: int = ratio) -> tuple[Any, ...]:
            arguments = (block, params, x, (size, ratio), n_statistics)
            ours, theirs = apply_fused(*arguments), apply_block(*arguments)
            again = apply_fused(block, params, x, (size, ratio), ours[1])
            return ours, theirs, again

        for size in block.kernel_sizes:
            for n_statistics in (N_IMAGES - 1, 20) if size == 3 else (7,):
                assert is_fused(block, (size, ratio), x.dtype)
                ours, theirs, again = both(jnp.int32(size), n_statistics)
                assert list(ours[1]) == list(theirs[1])
                assert_close(flat(ours), flat(theirs), (name, ratio, size, n_statistics))
                assert_close(flat(again), flat(ours), "with the statistics given")


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("n_images", [N_IMAGES, 32, 5])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_in_training_equals_its_operators_one_by_one(name: str, n_images: int) -> None:
    """Output, statistics, and the gradients by images and all weights, of which none is always nearly zero."""
    block, params, x = block_operands(name)
    x = x[..., :n_images]
    ratio = block.expand_ratios[-1]

    @partial(jax.jit, compiler_options=QUICK)
    def both(size: Array) -> tuple[Any, ...]:
        def way(apply: Callable[..., Any]) -> Any:
            def compute(params: BlockParams, x: Array) -> Any:
                return apply(block, params, x, (size, ratio), n_images)

            (y, statistics), pull_back = jax.vjp(compute, params, x)
            return (y, statistics), pull_back((normal(*y.shape, seed=1), jax.tree.map(jnp.zeros_like, statistics)))

        return way(apply_fused), way(apply_block)

    for size in block.kernel_sizes:
        (ours, our_gradients), (theirs, their_gradients) = both(jnp.int32(size))
        assert_close(flat(ours), flat(theirs), (name, size))
        for (path, found), expected in zip(
            jax.tree_util.tree_leaves_with_path(our_gradients), jax.tree.leaves(their_gradients), strict=True
        ):
            assert_close((found,), (expected,), (name, size, jax.tree_util.keystr(path)))
    assert all(float(jnp.abs(gradient).max()) > 1e-3 for gradient in our_gradients[0]["project"].values())


@pytest.mark.usefixtures("native")
def test_an_evaluated_image_does_not_depend_on_the_other_images_scored() -> None:
    block, params, x = block_operands("residual and squeeze-excite")
    y, statistics = apply_fused(block, params, x, (5, 3), 20)
    alone, same = apply_fused(block, params, x[..., :21], (5, 3), 20)
    np.testing.assert_array_equal(alone[..., 20], y[..., 20])
    for name, found in statistics.items():
        np.testing.assert_array_equal(found, same[name])


@pytest.mark.usefixtures("native")
def test_a_channel_that_never_varies_has_no_variance() -> None:
    block, params, x = block_operands("stride 2")
    params["expand"]["kernel"] = params["expand"]["kernel"].at[2].set(0.0)
    y, statistics = apply_fused(block, params, 1e4 + 1e-3 * x, (3, 3), N_IMAGES)
    assert float(statistics["expand"][1][2]) == 0.0
    assert bool(jnp.isfinite(y).all())
    assert all(bool((variance >= 0.0).all()) for _, variance in statistics.values())


@pytest.mark.usefixtures("native")
def test_only_what_the_kernel_knows_is_evaluated_by_it() -> None:
    block, _ = BLOCKS["stride 2"]
    assert is_fused(block, (jnp.int32(3), 2), jnp.float32)
    assert not is_fused(block, (3, jnp.int32(2)), jnp.float32), "a masked expansion"
    assert not is_fused(block, (3, 2), jnp.bfloat16)
    assert not is_fused(replace(block, kernel_sizes=(3, 9)), (3, 2), jnp.float32)
    assert not is_fused(ConvBlock(3, 8, 3, 1, "relu"), (), jnp.float32)


# ---- threads --------------------------------------------------------------------------------------------------

WORK = """
import hashlib, json, os, sys, threading

n_cores, n_threads, repeats, is_busy = (int(text) for text in sys.argv[1:])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])

import jax, jax.numpy as jnp, numpy as np
from hanax.search_spaces import MBConv
from hanax.supernet._blocks import net_of
from hanax.supernet._depthwise import depthwise
from hanax.supernet._layers import batch_norm, pointwise
from hanax.supernet._mbconv import apply_fused

rng = np.random.default_rng(0)

def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))

def net(x, kernel, taps, scale, offset, size):
    y = depthwise(pointwise(x, kernel), taps, 2, size)
    return batch_norm(y, scale, offset, x.shape[-1], "hswish")[0]

@jax.jit
def results(branches, size):  # independent branches: XLA may run their kernels at the same time
    outputs = []
    for operands in branches:
        y, pull_back = jax.vjp(lambda *operands: net(*operands, size), *operands)
        outputs.append((y, pull_back(y), apply_fused(block, block_params, y, (size, 3), 17)))
        z, pull_back = jax.vjp(lambda *operands: apply_fused(block, *operands, (size, 3), 24)[0], block_params, y)
        outputs.append((z, pull_back(z)))
    return outputs

block = MBConv(37, 37, 1, (3, 5, 7), (3,), "hswish", True)
block_params = net_of(block).init(block, rng)

branches = [
    (normal(channels, 14, 14, 24), normal(37, channels), normal(37, 7, 7), normal(37), normal(37))
    for channels in (11, 16)
]
digests, finished, stop = set(), [], threading.Event()

def repeat():
    for step in range(repeats):
        leaves = jax.tree.leaves(results(branches, jnp.int32(5)))
        digests.add(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest())
    finished.append(repeats)

def keep_busy():
    matrix = normal(400, 400)
    while not stop.is_set():
        (matrix @ matrix).block_until_ready()

results(branches, jnp.int32(5))
other = threading.Thread(target=keep_busy)
if is_busy:
    other.start()
threads = [threading.Thread(target=repeat) for _ in range(n_threads)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stop.set()
if is_busy:
    other.join()
print(json.dumps({"finished": finished, "digests": sorted(digests)}))
"""


def work(
    *, n_cores: int = 64, pool: int | None = None, n_threads: int = 1, repeats: int = 2, is_busy: bool = False
) -> str:
    """Digest of all that the kernels compute in a process of its own, in which all repeats must agree.

    Args:
        n_cores: That the process may use, if there are so many.
        pool: Threads in XLA's pool; by default one for each core.
    """
    environment = dict(os.environ) if pool is None else os.environ | {"NPROC": str(pool)}
    command = [sys.executable, "-c", WORK, *map(str, (n_cores, n_threads, repeats, int(is_busy)))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finished"] == [repeats] * n_threads
    (digest,) = found["digests"]
    assert isinstance(digest, str)
    return digest


@pytest.fixture(scope="module")
def alone(native: None) -> str:
    """What one thread on one core computes."""
    return work(n_cores=1)


@pytest.mark.parametrize(("n_cores", "pool"), [(1, 7), (64, None), (64, 3)])
def test_the_result_does_not_depend_on_how_many_threads_work(alone: str, n_cores: int, pool: int | None) -> None:
    assert work(n_cores=n_cores, pool=pool, repeats=5) == alone


@pytest.mark.parametrize("pool", [1, None, 5])
def test_calls_side_by_side_finish_and_are_right_to_the_bit(alone: str, pool: int | None) -> None:
    assert work(pool=pool, n_threads=2, repeats=100, is_busy=True) == alone


# ---- where they come from -------------------------------------------------------------------------------------

STATUS = """
import dataclasses, json
import numpy as np, jax.numpy as jnp
from hanax.supernet._layers import pointwise
from hanax.supernet._native import native_status
mixed = pointwise(jnp.asarray(np.arange(6, dtype=np.float32).reshape(2, 1, 1, 3)), jnp.asarray([[1.0, 10.0]]))
print(json.dumps(dataclasses.asdict(native_status()) | {"mixed": np.asarray(mixed).ravel().tolist()}))
"""


def start_status(cache: Path, **variables: str | None) -> subprocess.Popen[str]:
    changed = os.environ | {"HANAX_CACHE": str(cache), "HANAX_NATIVE": "1"} | variables
    environment = {name: value for name, value in changed.items() if value is not None}
    command = [sys.executable, "-c", STATUS]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_status(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(output)
    assert found.pop("mixed") == [30.0, 41.0, 52.0], "layers work either way"
    return found


def status_of(cache: Path, **variables: str | None) -> dict[str, Any]:
    """What a new process says, whose environment has other `variables`; None takes one away."""
    return finish_status(start_status(cache, **variables))


def unavailable(reason: str) -> dict[str, Any]:
    return {"available": False, "reason": reason, "suffix": ""}


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@dataclass(frozen=True)
class Filled:
    """A cache that two processes found empty at the same time, and the status that both gave."""

    cache: Path
    compiler: str
    status: dict[str, Any]


@pytest.fixture(scope="module")
def filled(native: None, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("native")
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    found = next(path for name in names if (path := shutil.which(name)))
    compiler = program(folder / "in-haste", f'exec {found} "$@" -O0')  # 8 s in place of 25
    processes = [start_status(folder / "cache", CXX=compiler) for _ in range(2)]
    first, second = (finish_status(process) for process in processes)
    assert first == second
    return Filled(folder / "cache", compiler, first)


@pytest.mark.slow
def test_what_was_compiled_is_kept_in_the_cache_and_used_again(filled: Filled) -> None:
    status = filled.status
    (library,) = (filled.cache / "native").iterdir()  # nothing besides
    assert status["available"] and library.name == f"{status['suffix']}.so"
    assert status["reason"].startswith("compiled by ")
    assert status["reason"].endswith(f" for this processor: {library}")
    written = library.stat()
    assert status_of(filled.cache, CXX=filled.compiler) == status
    assert (library.stat().st_ino, library.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


@pytest.mark.slow
def test_another_compiler_gets_a_library_of_its_own(filled: Filled, tmp_path: Path) -> None:
    compiler = program(tmp_path / "other", 'for last in "$@"; do :; done; echo "error: asked to compile $last"; exit 1')
    found = status_of(filled.cache, CXX=compiler)
    assert not found["available"], "what another compiler has made is not taken"
    assert len(list((filled.cache / "native").glob("*.so"))) == 1
    assert filled.status["available"]


@pytest.mark.slow
def test_a_broken_library_is_named(filled: Filled, tmp_path: Path) -> None:
    (library,) = (filled.cache / "native").glob("*.so")
    broken = tmp_path / "native" / library.name
    shutil.copytree(library.parent, broken.parent)
    broken.write_bytes(b"not a library")
    found = status_of(tmp_path, CXX=filled.compiler)
    assert not found["available"] and found["suffix"] == ""
    assert found["reason"].startswith(f"{broken} cannot be loaded (")
    assert found["reason"].endswith("); delete it to have it compiled again")


def test_native_kernels_can_be_switched_off(tmp_path: Path) -> None:
    assert status_of(tmp_path, HANAX_NATIVE="0") == unavailable("switched off by HANAX_NATIVE=0")
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_the_status_says_what_to_install(tmp_path: Path) -> None:
    expected = unavailable("no C++ compiler found; install g++ or clang++, or name one in $CXX")
    assert status_of(tmp_path, PATH=str(tmp_path), CXX=None) == expected


def test_a_compiler_that_is_named_but_not_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    reason = "$CXX names g++-99, which is not a program; name one without arguments, or unset it"
    assert status_of(tmp_path, CXX="g++-99") == unavailable(reason)


@pytest.mark.parametrize(("text", "problem"), [
    ("echo 'kernels.cc: In function' >&2; echo 'kernels.cc:9: error: no vectors' >&2; exit 1",
     "kernels.cc:9: error: no vectors"),
    ("echo 'out of memory' >&2; exit 1", "out of memory"),
    ("exit 3", "exit status 3"),
])  # fmt: skip
def test_the_first_error_of_a_compiler_that_fails_is_shown(tmp_path: Path, text: str, problem: str) -> None:
    compiler = program(tmp_path / "compiler", text)
    cache = tmp_path / "cache"
    assert status_of(cache, CXX=compiler) == unavailable(f"{compiler} could not compile them: {problem}")
    assert list((cache / "native").iterdir()) == [], "nothing half made is left"


# ---- the pure-XLA forms on their own --------------------------------------------------------------------------


@pytest.mark.slow
def test_chains_and_blocks_are_the_same_networks_without_native_kernels() -> None:
    folder = Path(__file__).parent
    tests = [
        f"{folder / 'test_chain.py'}::test_logits_and_gradients_of_chain_masked_and_static_agree",
        f"{folder / 'test_chain.py'}::test_after_compile_chain_no_subnet_compiles_anything",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        env=os.environ | {"HANAX_NATIVE": "0"},
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
