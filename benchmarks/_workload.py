"""What both sides of `supernet_vs_ofa.py` are given, and how the parent process talks to them.

Standard library and numpy only: the file runs in both environments.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WIDTH_MULT, SIDE, N_CLASSES = 0.5, 32, 10
STEM_STRIDE, STAGE_STRIDES = 1, (2, 2, 1, 1, 2)
KERNEL_SIZES, EXPAND_RATIOS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
N_STAGES, BLOCKS_PER_STAGE = len(STAGE_STRIDES), max(DEPTHS)
N_BLOCKS = N_STAGES * BLOCKS_PER_STAGE

BATCH_SIZE = 64
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 1e-3, 0.9, 3e-5, 0.1
N_CALIBRATION, N_VALIDATION, EVALUATION_BATCH = 2000, 2000, 200
MUTATION_PROBABILITY = 0.1
GEMM_SIZES, GEMM_REPEATS = (1024, 2048), 5
SEED = 0

Net = dict[str, list[int]]
"""``ks`` and ``e``: kernel size and expansion ratio of each of the 20 blocks; ``d``: depth of each of the 5 stages."""


def draw_net(draw: Callable[[Sequence[int]], int]) -> Net:
    """A net whose every option is taken by `draw`: `min`, `max`, or the `choice` of a random generator."""
    return {name: [draw(options) for _ in range(count)] for name, (options, count) in GENES.items()}


GENES = {"ks": (KERNEL_SIZES, N_BLOCKS), "e": (EXPAND_RATIOS, N_BLOCKS), "d": (DEPTHS, N_STAGES)}


def draw_nets(n: int, seed: int) -> list[Net]:
    """`n` random nets, every option uniform: the distribution of Once-for-All."""
    rng = random.Random(seed)
    return [draw_net(rng.choice) for _ in range(n)]


def draw_steps(n: int, seed: int) -> list[list[Net]]:
    """For each of `n` sandwich steps, its nets after the largest: the smallest and two random ones."""
    nets = draw_nets(2 * n, seed)
    return [[draw_net(min), *nets[2 * step : 2 * step + 2]] for step in range(n)]


def draw_population(n_parents: int, n_mutants: int, seed: int) -> list[Net]:
    """Random parents and mutants of them, as one generation of the evolution of Once-for-All asks for.

    Each option of a mutant is drawn anew with `MUTATION_PROBABILITY`.
    """
    rng = random.Random(seed)
    parents = [draw_net(rng.choice) for _ in range(n_parents)]

    def mutant(parent: Net) -> Net:
        return {
            name: [rng.choice(options) if rng.random() < MUTATION_PROBABILITY else old for old in parent[name]]
            for name, (options, _) in GENES.items()
        }

    return parents + [mutant(rng.choice(parents)) for _ in range(n_mutants)]


def draw_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise, shape (n, side, side, 3), uint8, and their labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8), rng.integers(0, N_CLASSES, n).astype(np.int32)


def best_gflop_per_s(seconds: dict[int, list[float]]) -> float:
    """Highest rate of products of two square matrices: side -> seconds of each try."""
    return max(2 * side**3 / tried / 1e9 for side, times in seconds.items() for tried in times)


def peak_gb() -> float:
    """``VmHWM`` of this process, in GB of 10^9 bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM:"))


Answer = dict[str, Any]


def serve(commands: dict[str, Callable[..., Answer]], by_hand: list[str]) -> None:
    """Answer requests: JSON lines of ``{"command": name, arguments...}`` on stdin, or the commands given `by_hand`.

    Commands given by hand run with their default arguments. Every answer is one JSON line on stdout; whatever else
    prints goes to stderr.

    Raises:
        SystemExit: A command given by hand does not exist.
    """
    if unknown := [name for name in by_hand if name not in commands]:
        raise SystemExit(f"no such command: {', '.join(unknown)}; there are {', '.join(commands)}")
    answers = sys.stdout
    requests = ({"command": name} for name in by_hand) if by_hand else map(json.loads, sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        for request in requests:
            name = request.pop("command")
            answer = commands[name](**request)
            if by_hand:
                answer = {"command": name} | summary(answer)
            print(json.dumps(answer), file=answers, flush=True)


def summary(answer: Answer) -> Answer:
    """`answer` for people: the median beside a list of seconds."""
    if isinstance(seconds := answer.get("seconds"), list):
        return {"median_s": statistics.median(seconds)} | answer
    return answer
