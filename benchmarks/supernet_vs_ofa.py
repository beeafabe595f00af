"""Hanax against the `ofa` package on torch: training steps and evaluation of the same nets on the same cores.

    python benchmarks/supernet_vs_ofa.py --json results.json     # an hour on 2 cores, by estimate
    python benchmarks/supernet_vs_ofa.py --rounds 1              # a round of each, 20 minutes: no quartiles
    python benchmarks/supernet_vs_ofa.py --quick                 # minutes: does it run? Its figures are no result.

The script makes a virtual environment of its own for `ofa` and a CPU build of torch. The space is Once-for-All's
MobileNetV3 of width 0.5 for images of 32 pixels and 10 classes; both sides must count the same MACs in it. Either side
is a process that takes commands on stdin (`_ofa_worker.py`, `_hanax_worker.py`): same architectures, images, batch
size, cores and malloc settings. First one process is there alone, then the other, then both, of which one waits; they
take turns A B B A, and a ratio compares the two within such a round.

* sandwich: one training step of the largest net (on labels), the smallest and two random ones (on the largest one's
  predictions), gradients summed, SGD with momentum. single: one training step of a random net.
* evaluation: batch-norm calibration on 2,000 images and accuracy on 2,000, of 50 random nets, and of the 200 nets of an
  evolution (50 random parents, 150 mutants). `ofa` calibrates with its `set_running_statistics` and does one net after
  the other, so it is timed on part of the nets, other ones in each turn, and scaled by their number; Hanax is timed on
  all of them, as they share what they have in common.
* `gemm_share`: the floating-point operations of a sandwich step (three times those of the forward passes) per second,
  as a share of the fastest large float32 matrix product in the same process.
* `compile_*`: fresh process, empty or filled cache, until every executable is there and has run once.
* `*_channels_last`: torch with its images and weights as N H W C, which the `ofa` package does not ask for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _workload import BATCH_SIZE, SEED, draw_net, draw_nets, draw_population, draw_steps

from hanax._files import cache_folder
from hanax.experiments import _ofa_environment
from hanax.experiments._ofa_environment import FOLDER, prepare_environment

HERE = Path(__file__).resolve().parent
EXPECTED_MACS = {"largest": 38_940_416, "smallest": 7_390_976}
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647"
)
PAUSE_S = 0.3
"""Before a turn: the threads of the other side have stopped spinning by then."""

MOST_LOAD = 0.5
"""Load average of the last minute from which the machine does not count as idle."""


@dataclass(frozen=True)
class Work:
    """One thing that both sides do.

    Attributes:
        items: What Hanax does in one turn.
        n_torch: How many of them torch does in one turn.
        n_rounds: A B B A.
    """

    name: str
    command: str
    items: list[Any]
    n_torch: int
    n_rounds: int

    @property
    def n_alone(self) -> int:
        """Turns alone."""
        return 1 if self.command == "evaluate" else 2


def main() -> None:
    """Read the command line, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each kind of work; 7 or 3 by default")
    parser.add_argument(
        "--env", type=Path, default=cache_folder() / FOLDER, help="virtual environment with ofa and torch"
    )
    parser.add_argument("--threads", type=int, default=2, help="cores that both sides get")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= arguments.threads <= len(cores):
        parser.error(f"--threads must lie between 1 and the {len(cores)} cores there are; got {arguments.threads}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {arguments.rounds}")
    torch_python = prepare_environment(arguments.env)
    os.sched_setaffinity(0, cores[: arguments.threads])
    started = time.monotonic()
    work_list = works(arguments.quick)
    if arguments.rounds is not None:
        work_list = [replace(work, n_rounds=arguments.rounds) for work in work_list]
    report = compare(torch_python, work_list)
    report = {"name": "supernet_vs_ofa", "wall_s": round(time.monotonic() - started, 1)} | report
    report["settings"] |= {"threads": arguments.threads, "quick": arguments.quick}
    report["settings"]["n_rounds"] = {work.name: work.n_rounds for work in work_list}
    print_report(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def works(quick: bool) -> list[Work]:
    """What is compared. Quick: as little of each as can run."""
    if quick:
        return [
            Work("sandwich", "step", draw_steps(1, SEED), 1, 1),
            Work("single", "single", draw_nets(2, SEED + 1), 2, 1),
            Work("eval_random", "evaluate", draw_nets(2, SEED + 2), 1, 1),
            Work("eval_population", "evaluate", draw_population(2, 6, SEED + 3), 1, 1),
        ]
    return [
        Work("sandwich", "step", draw_steps(5, SEED), 5, 7),
        Work("single", "single", draw_nets(10, SEED + 1), 10, 7),
        Work("eval_random", "evaluate", draw_nets(50, SEED + 2), 10, 3),
        Work("eval_population", "evaluate", draw_population(50, 150, SEED + 3), 10, 3),
    ]


class Worker:
    """A process that answers commands, one at a time, and sleeps in between."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()} at {command!r}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def seconds(self, work: Work, items: list[Any]) -> float:
        """Seconds for `items`, in one turn."""
        time.sleep(PAUSE_S)
        return sum(self.ask(work.command, items=items)["seconds"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


@dataclass(frozen=True)
class Sides:
    """How the two kinds of process are started."""

    torch_python: Path
    cache: Path

    def torch(self, *options: str) -> Worker:
        """A process with the supernet of `ofa`."""
        return Worker(
            "the torch worker",
            [str(self.torch_python), str(HERE / "_ofa_worker.py"), *options],
            dict(os.environ) | {"GLIBC_TUNABLES": MALLOC, "PYTHONPATH": str(Path(_ofa_environment.__file__).parent)},
        )

    def hanax(self) -> Worker:
        """A process with the supernet of Hanax."""
        python_path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        return Worker(
            "the Hanax worker",
            [sys.executable, str(HERE / "_hanax_worker.py")],
            dict(os.environ) | {"GLIBC_TUNABLES": MALLOC, "HANAX_CACHE": str(self.cache), "PYTHONPATH": python_path},
        )


Turns = list[float]
"""Seconds per item, one value per turn."""


def compare(torch_python: Path, work_list: list[Work]) -> dict[str, Any]:
    """Everything but the time it took: versions, machine, settings, rows, and the seconds behind them."""
    before = machine()
    if before["load_average"] > MOST_LOAD:
        say(f"other processes keep {before['load_average']} cores busy: ratios will not repeat; stop them first")
    with tempfile.TemporaryDirectory(prefix="supernet_vs_ofa.") as cache:
        sides = Sides(torch_python, Path(cache))
        with sides.torch() as torch, sides.hanax() as hanax:
            versions = check_same_space(torch, hanax)
            step_flop = flop_per_step(hanax, work_list)
        compiling = compile_rows(sides)
        alone = turns_alone(sides, work_list)
        with sides.torch() as torch, sides.hanax() as hanax:
            gemms = [hanax.ask("gemm")["gflop_per_s"]]
            rounds = {work.name: interleaved(torch, hanax, work) for work in work_list}
            gemms.append(hanax.ask("gemm")["gflop_per_s"])
            torch_gemm = torch.ask("gemm")["gflop_per_s"]
            peak_gb = hanax.ask("peak_memory")["peak_gb"]
    shares = [100 * step_flop / seconds / (max(gemms) * 1e9) for _, seconds in rounds["sandwich"]]
    return {
        "versions": versions,
        "machine": before,
        "settings": {
            "batch_size": BATCH_SIZE,
            "malloc": MALLOC,
            "hanax_gemm_gflop_per_s": max(gemms),
            "torch_gemm_gflop_per_s": torch_gemm,
            "sandwich_step_gflop": step_flop / 1e9,
        },
        "rows": [
            *(row(f"{name}_ratio", [torch / hanax for torch, hanax in pairs], "x") for name, pairs in rounds.items()),
            *channels_last_rows(alone),
            row("gemm_share", shares, "%"),
            *compiling,
            row("peak_gb", [peak_gb], "GB", worst=max),
        ],
        "alone_s": alone,
        "rounds_s": rounds,
    }


def check_same_space(torch: Worker, hanax: Worker) -> dict[str, str]:
    """Versions of both sides, once they have been seen to count the same MACs.

    Raises:
        RuntimeError: They do not.
    """
    nets = [draw_net(max), draw_net(min), *draw_nets(5, SEED)]
    by_torch, by_hanax = torch.ask("macs", nets=nets)["macs"], hanax.ask("macs", nets=nets)["macs"]
    if by_torch != by_hanax or by_torch[:2] != list(EXPECTED_MACS.values()):
        raise RuntimeError(f"MACs differ: torch counts {by_torch}, Hanax {by_hanax}; expected {EXPECTED_MACS}")
    return {
        "python": platform.python_version(),
        **torch.ask("info")["versions"],
        **hanax.ask("info")["versions"],
    }


def compile_rows(sides: Sides) -> list[dict[str, Any]]:
    """Seconds to compile in a fresh process, with an empty and with a filled cache. Fills the cache of `sides`."""
    rows = []
    for cache in ("cold", "cached"):
        say(f"compile, {cache}")
        with sides.hanax() as hanax:
            rows.append(row(f"compile_{cache}_s", [hanax.ask("compile")["seconds"]], "s", worst=max))
            training_gb = hanax.ask("peak_memory")["peak_gb"]
            seconds = hanax.ask("compile_evaluation")["seconds"]
            rows.append(row(f"compile_evaluation_{cache}_s", [seconds], "s", worst=max))
            rows.append(row(f"peak_compile_{cache}_gb", [training_gb], "GB", worst=max))
    return rows


def turns_alone(sides: Sides, work_list: list[Work]) -> dict[str, dict[str, Turns]]:
    """Turns of each side while there is no other process: two of training, one of evaluation, which takes minutes.

    torch trains also with channels last.
    """
    turns: dict[str, dict[str, Turns]] = {work.name: {} for work in work_list}
    with sides.torch() as torch:
        for work in work_list:
            say(f"{work.name}: torch alone")
            parts = torch_parts(work, 0)[: work.n_alone]
            turns[work.name]["torch"] = [torch_turn(torch, work, part) for part in parts]
    with sides.torch("--channels-last") as torch:
        for work in work_list:
            if work.command != "evaluate":
                say(f"{work.name}: torch alone, channels last")
                parts = torch_parts(work, 0)
                turns[work.name]["torch_channels_last"] = [torch_turn(torch, work, part) for part in parts]
    with sides.hanax() as hanax:
        for work in work_list:
            say(f"{work.name}: Hanax alone")
            turns[work.name]["hanax"] = [hanax_turn(hanax, work) for _ in range(work.n_alone)]
    return turns


def interleaved(torch: Worker, hanax: Worker, work: Work) -> list[tuple[float, float]]:
    """Seconds per item of torch and of Hanax in each round of torch, Hanax, Hanax, torch."""
    rounds = []
    for number in range(1, work.n_rounds + 1):
        first, last = torch_parts(work, number)
        by_torch = torch_turn(torch, work, first)
        by_hanax = hanax_turn(hanax, work) + hanax_turn(hanax, work)
        by_torch += torch_turn(torch, work, last)
        rounds.append((by_torch / 2, by_hanax / 2))
        say(f"{work.name}: round {number} of {work.n_rounds}: {by_torch / by_hanax:.2f}x")
    return rounds


def torch_parts(work: Work, number: int) -> tuple[list[Any], list[Any]]:
    """What torch does in its two turns of round `number`: all items, or two parts without a common item."""
    order = work.items.copy()
    if work.n_torch < len(order):
        random.Random(number).shuffle(order)
    return order[: work.n_torch], order[-work.n_torch :]


def torch_turn(torch: Worker, work: Work, items: list[Any]) -> float:
    """Seconds per item."""
    return torch.seconds(work, items) / len(items)


def hanax_turn(hanax: Worker, work: Work) -> float:
    """Seconds per item."""
    return hanax.seconds(work, work.items) / len(work.items)


def flop_per_step(hanax: Worker, work_list: list[Work]) -> float:
    """Floating-point operations of a sandwich step, on average: two per MAC; forward, and twice that backward."""
    steps = next(work.items for work in work_list if work.name == "sandwich")
    nets = [net for others in steps for net in (draw_net(max), *others)]
    return 2 * 3 * BATCH_SIZE * sum(hanax.ask("macs", nets=nets)["macs"]) / len(steps)


def channels_last_rows(alone: dict[str, dict[str, Turns]]) -> list[dict[str, Any]]:
    """Ratios of turns alone, where torch had its images and weights as N H W C."""
    return [
        row(
            f"{name}_ratio_channels_last",
            [torch / hanax for torch, hanax in zip(turns["torch_channels_last"], turns["hanax"], strict=True)],
            "x",
        )
        for name, turns in alone.items()
        if "torch_channels_last" in turns
    ]


def row(metric: str, values: Sequence[float], unit: str, *, worst: Any = min) -> dict[str, Any]:
    """Median of `values`, the distance of their quartiles, and the worst of them."""
    low, middle, high = quartiles(values)
    return {
        "metric": metric,
        "published": None,
        "ours": round(middle, 4),
        "spread": round(high - low, 4),
        "worst": round(worst(values), 4),
        "n": len(values),
        "unit": unit,
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def machine() -> dict[str, Any]:
    """What the figures depend on besides the software, and how many processes run already."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "load_average": round(os.getloadavg()[0], 2),
    }


def print_report(report: dict[str, Any]) -> None:
    """Machine, versions, seconds of both sides and the rows, for people."""
    for title in ("machine", "versions", "settings"):
        print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in report[title].items()))
    print("\nseconds per step or net: median [quartiles]")
    print(f"{'':18}{'torch alone':>24}{'Hanax alone':>24}{'torch in turns':>24}{'Hanax in turns':>24}")
    for name, pairs in report["rounds_s"].items():
        alone = report["alone_s"][name]
        columns = [alone["torch"], alone["hanax"], [pair[0] for pair in pairs], [pair[1] for pair in pairs]]
        print(f"{name:18}" + "".join(f"{in_words(values):>24}" for values in columns))
    print(f"\n{'metric':32}{'median':>10}{'q3 - q1':>10}{'worst':>10}{'n':>4}  unit")
    for line in report["rows"]:
        figures = "".join(f"{line[name]:10.3f}" for name in ("ours", "spread", "worst"))
        print(f"{line['metric']:32}{figures}{line['n']:4}  {line['unit']}")
    print(f"\n{report['wall_s']} s" + (" (--quick: no result)" if report["settings"]["quick"] else ""))


def in_words(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = quartiles(values)
    return f"{middle:.3f} [{low:.3f} {high:.3f}]"


def say(text: str) -> None:
    """Progress, for those who wait."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
