"""The PyTorch side of `supernet_vs_ofa.py`: the `ofa` package's own supernet, trained and evaluated with its own code.

Runs with the Python of the environment that `hanax/experiments/_ofa_environment.py` makes. The parent process drives it
by JSON lines (`_workload.serve`). By hand, on two cores and with the memory settings of the benchmark:

    export GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1
    GLIBC_TUNABLES+=:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647
    export PYTHONPATH=hanax/experiments  # for _ofa_environment.py, and nothing else of Hanax
    taskset -c 0,1 ~/.cache/hanax/ofa-env/bin/python benchmarks/_ofa_worker.py step single evaluate gemm

prints one JSON line per command, with the same architectures, images and batch size as

    taskset -c 0,1 python benchmarks/_hanax_worker.py step single evaluate gemm

Images are float tensors before the clock starts. Differs from the training loop of `ofa` in that gradients are summed
over the nets of a sandwich step, the teacher's predictions come from that step, and nothing is logged.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from _ofa_environment import count, stub_missing_modules
from _workload import (
    BATCH_SIZE,
    DEPTHS,
    EVALUATION_BATCH,
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
from torch import Tensor
from torch.nn import functional

COMMANDS = ("info", "macs", "step", "single", "evaluate", "gemm", "peak_memory")
N_WARM_UP = 2


class Worker:
    """One supernet and its optimizer; every public method is a command."""

    def __init__(self, memory_format: torch.memory_format) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._memory_format = memory_format
        self.net = build_supernet().to(memory_format=memory_format)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
        )
        self.warm: set[str] = set()

    def _tensors(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = draw_images(n, seed)
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        return x.contiguous(memory_format=self._memory_format), torch.from_numpy(labels).long()

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self._tensors(BATCH_SIZE, SEED)

    @cached_property
    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        return self._batches(N_CALIBRATION, SEED + 1)

    @cached_property
    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return self._batches(N_VALIDATION, SEED + 2)

    def _batches(self, n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        images, labels = self._tensors(n, seed)
        return list(zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True))

    def _timed(self, kind: str, work: Callable[[Any], float], items: list[Any]) -> Answer:
        """Seconds of `work` on each of `items`, after a few untimed ones the first time."""
        if kind not in self.warm:
            for item in items[:N_WARM_UP]:
                work(item)
            self.warm.add(kind)
        seconds, values = [], []
        for item in items:
            started = time.perf_counter()
            values.append(work(item))
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds, "values": values}

    def info(self) -> Answer:
        """Versions and settings."""
        return {
            "versions": {name: importlib.metadata.version(name) for name in ("ofa", "torch")},
            "threads": torch.get_num_threads(),
            "memory_format": str(self._memory_format),
            "mkldnn": torch.backends.mkldnn.is_available(),
        }

    def macs(self, nets: list[Net] | None = None) -> Answer:
        """MACs of each of `nets` for one image, counted in the static net that `ofa` builds."""
        counted = []
        for net in nets or [draw_net(max), draw_net(min)]:
            self._activate(net)
            static = self.net.get_active_subnet(preserve_weight=True)
            counted.append(count(static, SIDE)[0])
        return {"macs": counted}

    def _activate(self, net: Net) -> None:
        self.net.set_active_subnet(ks=net["ks"], e=net["e"], d=net["d"])

    def step(self, items: list[list[Net]] | None = None) -> Answer:
        """Sandwich steps: for each, the nets after the largest."""
        return self._timed("step", self._sandwich_step, items or draw_steps(5, SEED))

    def _sandwich_step(self, nets: list[Net]) -> float:
        images, labels = self.batch
        self.net.train()
        self.optimizer.zero_grad()
        self._activate(draw_net(max))
        logits = self.net(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        soft_targets = logits.detach().softmax(dim=1)
        for net in nets:
            self._activate(net)
            functional.cross_entropy(self.net(images), soft_targets).backward()
        self.optimizer.step()
        return loss.item()

    def single(self, items: list[Net] | None = None) -> Answer:
        """Training steps of one net each."""
        return self._timed("single", self._single_step, items or draw_nets(10, SEED + 1))

    def _single_step(self, net: Net) -> float:
        images, labels = self.batch
        self.net.train()
        self.optimizer.zero_grad()
        self._activate(net)
        loss = functional.cross_entropy(self.net(images), labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def evaluate(self, items: list[Net] | None = None) -> Answer:
        """Calibration with `set_running_statistics` of `ofa`, then accuracy, of each net: its seconds."""
        return self._timed("evaluate", self._accuracy, items or draw_nets(4, SEED + 2))

    def _accuracy(self, net: Net) -> float:
        from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics

        self._activate(net)
        static = self.net.get_active_subnet(preserve_weight=True)
        set_running_statistics(static, self.calibration)
        static.eval()
        with torch.no_grad():
            correct = sum(int((static(x).argmax(dim=1) == y).sum()) for x, y in self.validation)
        return correct / N_VALIDATION

    def gemm(self) -> Answer:
        """Best rate of a large float32 matrix product, in GFLOP/s."""
        seconds: dict[int, list[float]] = {}
        for side in GEMM_SIZES:
            first, second = torch.rand(side, side), torch.rand(side, side)
            seconds[side] = []
            for _ in range(GEMM_REPEATS):
                started = time.perf_counter()
                first @ second
                seconds[side].append(time.perf_counter() - started)
        return {"gflop_per_s": best_gflop_per_s(seconds)}

    def peak_memory(self) -> Answer:
        """Most memory the process has held, in GB."""
        return {"peak_gb": peak_gb()}


def build_supernet() -> Any:
    """The supernet of the workload: `ofa` fixes the strides for images of 224 pixels, so they are replaced."""
    stub_missing_modules()
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

    torch.manual_seed(SEED)
    net = OFAMobileNetV3(
        n_classes=N_CLASSES, dropout_rate=0, width_mult=WIDTH_MULT,
        ks_list=list(KERNEL_SIZES), expand_ratio_list=list(EXPAND_RATIOS), depth_list=list(DEPTHS),
    )  # fmt: skip
    net.first_conv.conv.stride = (STEM_STRIDE, STEM_STRIDE)
    for positions, stride in zip(net.block_group_info, STAGE_STRIDES, strict=True):
        first = net.blocks[positions[0]]
        assert first.shortcut is None, "the width changes at the start of every stage"
        first.conv.stride = first.conv.depth_conv.conv.stride = stride
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels-last", action="store_true", help="keep images and weights as N H W C")
    parser.add_argument("commands", nargs="*", metavar="command", help=f"any of {', '.join(COMMANDS)}; default: stdin")
    arguments = parser.parse_args()
    worker = Worker(torch.channels_last if arguments.channels_last else torch.contiguous_format)
    serve({name: getattr(worker, name) for name in COMMANDS}, arguments.commands)


if __name__ == "__main__":
    main()
