"""The Hanax side of `supernet_vs_ofa.py`: the same nets, images and optimizer through the chain of block executables.

The parent process drives it by JSON lines (`_workload.serve`). By hand, on two cores:

    taskset -c 0,1 python benchmarks/_hanax_worker.py compile step single evaluate gemm peak_memory

`_ofa_worker.py` says how to set malloc as the benchmark does. Images are bytes before the clock starts; scaling and
normalising them is inside the step, as is the clipping of the gradient.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _workload import (
    BATCH_SIZE,
    BLOCKS_PER_STAGE,
    DEPTHS,
    EXPAND_RATIOS,
    GEMM_REPEATS,
    GEMM_SIZES,
    KERNEL_SIZES,
    LABEL_SMOOTHING,
    LEARNING_RATE,
    MOMENTUM,
    N_CALIBRATION,
    N_CLASSES,
    N_VALIDATION,
    SEED,
    SIDE,
    STAGE_STRIDES,
    STEM_STRIDE,
    WEIGHT_DECAY,
    WIDTH_MULT,
    Answer,
    Net,
    best_gflop_per_s,
    draw_images,
    draw_net,
    draw_nets,
    draw_steps,
    peak_gb,
    serve,
)

from hanax.search_spaces import RESOLUTION, Arch, SearchSpace, mobilenet_v3
from hanax.supernet import (
    Evaluator,
    Params,
    Recipe,
    Split,
    compile_chain,
    init_params,
    keep_compiled_code,
    release_freed_memory,
)
from hanax.supernet._step import Batch, Lesson, Objective, flatten, make_optimizer, step_gradient, update

COMMANDS = ("info", "macs", "compile", "compile_evaluation", "step", "single", "evaluate", "gemm", "peak_memory")
MEAN, STD = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
RECIPE = Recipe(optimizer="sgd", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
LABELS = Objective(label_weight=1.0, label_smoothing=LABEL_SMOOTHING, teacher_weight=0.0, divergence="kl")
TEACHER = Objective(label_weight=0.0, label_smoothing=0.0, teacher_weight=1.0, divergence="kl")


class Training:
    """Weights, optimizer state, and the step that training is made of."""

    def __init__(self, space: SearchSpace) -> None:
        images, labels = draw_images(BATCH_SIZE, SEED)
        self.space = space
        self.batch = Batch(images, np.eye(N_CLASSES, dtype=np.float32)[labels])
        self.params: Params = init_params(space, SEED)
        optimizer = make_optimizer(RECIPE)
        self.opt_state = jax.jit(lambda params: optimizer.init(flatten(params)))(self.params)
        self._update = jax.jit(partial(update, optimizer), donate_argnums=(0, 1))

    def sandwich_step(self, archs: list[Arch]) -> float:
        """One step of the largest net on the labels and of `archs` on its predictions; the largest one's loss."""
        return self._step([Lesson("largest", self.space.largest, LABELS, recurs=True), *self._students(archs)])

    def _students(self, archs: list[Arch]) -> list[Lesson]:
        """Lessons by the largest net's predictions; the smallest is in every step, as in a training."""
        return [Lesson("", arch, TEACHER, recurs=arch == self.space.smallest) for arch in archs]

    def single_step(self, arch: Arch) -> float:
        """One step of `arch` on the labels; its loss."""
        return self._step([Lesson("single", arch, LABELS)])

    def _step(self, lessons: list[Lesson]) -> float:
        gradient, measures = step_gradient(self.space, self.params, lessons, self.batch, MEAN, STD)
        self.params, self.opt_state, _, finite = self._update(
            self.params, self.opt_state, gradient, measures["loss"], LEARNING_RATE
        )
        assert bool(jax.block_until_ready((finite, self.params))[0]), "a step is not finite"
        return float(measures["loss"][0])


class Worker:
    """One supernet; every public method is a command."""

    def __init__(self) -> None:
        keep_compiled_code()
        self.space = mobilenet_v3(
            resolutions=(SIDE,), n_classes=N_CLASSES, width_mult=WIDTH_MULT, kernel_sizes=KERNEL_SIZES,
            expand_ratios=EXPAND_RATIOS, depths=DEPTHS, stem_stride=STEM_STRIDE, stage_strides=STAGE_STRIDES,
        )  # fmt: skip
        self.warm: set[str] = set()

    @cached_property
    def training(self) -> Training:
        return Training(self.space)

    @cached_property
    def evaluator(self) -> Evaluator:
        x_train, y_train = draw_images(N_CALIBRATION, SEED + 1)
        x_validation, y_validation = draw_images(N_VALIDATION, SEED + 2)
        split = Split(x_train, y_train, x_validation, y_validation, MEAN, STD)
        params = init_params(self.space, SEED)
        return Evaluator(self.space, params, split, n_calibration=N_CALIBRATION, n_validation=N_VALIDATION)

    def info(self) -> Answer:
        """Versions and settings."""
        return {
            "versions": {name: importlib.metadata.version(name) for name in ("hanax", "jax", "jaxlib")},
            "threads": len(os.sched_getaffinity(0)),
            "backend": jax.default_backend(),
        }

    def macs(self, nets: list[Net] | None = None) -> Answer:
        """MACs of each of `nets` for one image."""
        return {"macs": [self.space.graph(self._arch(net)).macs for net in nets or [draw_net(max), draw_net(min)]]}

    def _arch(self, net: Net) -> Arch:
        options = {RESOLUTION: SIDE}
        for stage, depth in enumerate(net["d"]):
            options[f"stage{stage + 1}.depth"] = depth
            for block in range(depth):
                name, index = f"stage{stage + 1}.block{block + 1}", stage * BLOCKS_PER_STAGE + block
                options |= {f"{name}.kernel_size": net["ks"][index], f"{name}.expand_ratio": net["e"][index]}
        return self.space.arch(options)

    def compile(self) -> Answer:
        """Seconds until every executable of training is there; a first step, with its optimizer, included."""
        started = time.perf_counter()
        ends = (self.space.largest, self.space.smallest)
        n_parts = compile_chain(self.space, self.training.params, BATCH_SIZE, recurring=ends)
        self.training.sandwich_step([self._arch(net) for net in draw_steps(1, SEED)[0]])
        return {"seconds": time.perf_counter() - started, "n_parts": n_parts}

    def compile_evaluation(self) -> Answer:
        """Seconds until every executable of evaluation is there, each run once."""
        started = time.perf_counter()
        self.evaluator.compile()
        return {"seconds": time.perf_counter() - started}

    def step(self, items: list[list[Net]] | None = None) -> Answer:
        """Sandwich steps: for each, the nets after the largest."""
        self._warm_up_training()
        return timed(
            self.training.sandwich_step,
            [[self._arch(net) for net in nets] for nets in items or draw_steps(5, SEED)],
        )

    def single(self, items: list[Net] | None = None) -> Answer:
        """Training steps of one net each."""
        self._warm_up_training()
        return timed(self.training.single_step, [self._arch(net) for net in items or draw_nets(10, SEED + 1)])

    def _warm_up_training(self) -> None:
        if "training" not in self.warm:
            self.compile()
            self.training.single_step(self.space.smallest)
            self.warm.add("training")

    def evaluate(self, items: list[Net] | None = None) -> Answer:
        """Calibration and accuracy of all nets together, which share what they have in common: seconds for all."""
        if "evaluate" not in self.warm:
            release_freed_memory()  # as between the stages of a run
            self.evaluator.compile()
            self.evaluator.accuracies([self.space.smallest])
            self.warm.add("evaluate")
        archs = [self._arch(net) for net in items or draw_nets(4, SEED + 2)]
        started = time.perf_counter()
        accuracies = self.evaluator.accuracies(archs)
        return {"seconds": [time.perf_counter() - started], "values": accuracies.tolist()}

    def gemm(self) -> Answer:
        """Best rate of a large float32 matrix product, by XLA or numpy, in GFLOP/s."""
        rng = np.random.default_rng(SEED)
        seconds: dict[int, list[float]] = {}
        for side in GEMM_SIZES:
            first, second = rng.random((2, side, side), dtype=np.float32)
            on_device = (jnp.asarray(first), jnp.asarray(second))
            by_xla = jax.jit(jnp.matmul)
            by_xla(*on_device).block_until_ready()
            tries = [lambda a=on_device, f=by_xla: f(*a).block_until_ready(), lambda a=first, b=second: a @ b]
            seconds[side] = [timed_once(tried) for _ in range(GEMM_REPEATS) for tried in tries]
        return {"gflop_per_s": best_gflop_per_s(seconds)}

    def peak_memory(self) -> Answer:
        """Most memory the process has held, in GB."""
        return {"peak_gb": peak_gb()}


def timed(work: Callable[[Any], float], items: list[Any]) -> Answer:
    """Seconds and value of `work` on each of `items`."""
    seconds, values = [], []
    for item in items:
        started = time.perf_counter()
        values.append(work(item))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "values": values}


def timed_once(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="command", help=f"any of {', '.join(COMMANDS)}; default: stdin")
    arguments = parser.parse_args()
    worker = Worker()
    serve({name: getattr(worker, name) for name in COMMANDS}, arguments.commands)


if __name__ == "__main__":
    main()
