"""The `ofa` package's own search, as a process of its environment that `_reproduce_ofa_search` talks to.

Runs with the Python of the environment that `_ofa_environment` makes, which has no Hanax. Everything that searches is
`ofa` as released: `EvolutionFinder`, `AccuracyPredictor`, `MobileNetArchEncoder`, `Mbv3LatencyModel`. Only the weights
of the predictor and the entries of the latency tables come from outside, in the folder that is named on the command
line: ``accuracy.npz`` (a state dictionary) and ``RESOLUTION_lookup_table.yaml``.

Requests and answers are JSON objects, one a line, on stdin and stdout.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# The folder of this file is where Python looks first, and the only part of Hanax that is to be seen here.
environment = importlib.import_module("_ofa_environment")


class Worker:
    """The predictors of `ofa` with our numbers in them; `info`, `predict` and `search` answer requests."""

    def __init__(self, folder: Path) -> None:
        """Build the predictors from what is in `folder`."""
        environment.stub_missing_modules()
        yaml: Any = importlib.import_module("yaml")
        # PyYAML 6 wants to be told which loader to use; `ofa` was written for versions that choose one.
        yaml.load = functools.partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self._torch = importlib.import_module("torch")
        self._torch.set_num_threads(len(os.sched_getaffinity(0)))
        accuracy = importlib.import_module("ofa.nas.accuracy_predictor")
        efficiency = importlib.import_module("ofa.nas.efficiency_predictor")
        networks = importlib.import_module("ofa.imagenet_classification.elastic_nn.networks")
        self._finder_class = importlib.import_module("ofa.nas.search_algorithm").EvolutionFinder
        tables = sorted(folder.glob("*_lookup_table.yaml"))
        resolutions = sorted(int(path.name.split("_")[0]) for path in tables)
        encoder = accuracy.MobileNetArchEncoder(image_size_list=resolutions)
        self._accuracy = accuracy.AccuracyPredictor(encoder, device="cpu")
        with np.load(folder / "accuracy.npz") as weights:
            self._accuracy.load_state_dict({name: self._torch.from_numpy(weights[name]) for name in weights})
        self._accuracy.eval()
        supernet = networks.OFAMobileNetV3(
            dropout_rate=0, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
        )
        self._latency = efficiency.Mbv3LatencyModel(supernet, dict.fromkeys(resolutions, str(folder)))

    def info(self) -> dict[str, Any]:
        """Versions, and how many threads torch uses."""
        versions = {name: importlib.metadata.version(name) for name in ("ofa", "torch", "numpy")}
        return {"versions": versions, "threads": self._torch.get_num_threads()}

    def predict(self, archs: list[dict[str, Any]]) -> dict[str, Any]:
        """Accuracy and latency of each of `archs`, as `ofa` writes them."""
        with self._torch.no_grad():
            accuracy = self._accuracy.predict_acc(archs).reshape(-1).tolist()
        return {"accuracy": accuracy, "latency_ms": [self._latency.get_efficiency(arch) for arch in archs]}

    def search(self, budget_ms: float, population: int, generations: int, seed: int) -> dict[str, Any]:
        """One `run_evolution_search`: its seconds, and the best network."""
        random.seed(seed)
        np.random.seed(seed)
        finder = self._finder_class(
            self._latency, self._accuracy, population_size=population, max_time_budget=generations
        )
        started = time.perf_counter()
        with self._torch.no_grad():
            _, (accuracy, arch, latency_ms) = finder.run_evolution_search(budget_ms)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "accuracy": accuracy, "arch": arch, "latency_ms": latency_ms}


def main() -> None:
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # `ofa` prints its progress
    worker = Worker(Path(sys.argv[1]))
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "info": worker.info,
        "predict": worker.predict,
        "search": worker.search,
    }
    with contextlib.closing(answers):
        for line in sys.stdin:
            request = json.loads(line)
            answers.write(json.dumps(commands[request.pop("command")](**request)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
