"""A worker of a study in a process of its own: ``python study_worker.py SETTINGS`` with JSON settings.

Every network that it begins to evaluate becomes a line of the file `log`, begun with the process number.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import optuna

from hanax.search_spaces import mobilenet_v3
from hanax.searchers import Objective, OptunaSearcher, _liveness

SPACE = mobilenet_v3(
    resolutions=(16, 24, 32, 40), n_classes=10, stem_stride=1, stage_widths=(16,), stage_strides=(1,),
    stage_activations=("relu",), stage_squeeze_excite=(False,), depths=(1,), kernel_sizes=(3, 5, 7), head_width=64,
    feature_width=64,
)  # fmt: skip
"""36 networks: few enough that workers often choose the same."""

OBJECTIVES = (Objective("accuracy", "maximise"), Objective("latency_ms", "minimise", "ms"))


def evaluate(codes: np.ndarray) -> dict[str, np.ndarray]:
    return {"accuracy": codes.sum(axis=1) / 20.0, "latency_ms": 1.0 + codes[:, 0] + codes.sum(axis=1) ** 2}


def main(
    storage: str, study: str, total: int, seed: int, log: str, seconds: float = 0.05, hang_at: int | None = None,
    heartbeat_s: float = 1.0, machine: str | None = None,
) -> None:  # fmt: skip
    """Evaluate until the study has `total` networks; hang in evaluation number `hang_at`.

    `machine` makes this worker one of another machine, whose processes nobody here can look at.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if machine is not None:
        _liveness._machine = lambda: machine
    searcher = OptunaSearcher(
        SPACE, sampler="random", objectives=OBJECTIVES, seed=seed, storage=storage, study_name=study, total=total,
        heartbeat_s=heartbeat_s,
    )  # fmt: skip
    n_begun = 0
    while len(codes := searcher.ask()):
        n_begun += 1
        with Path(log).open("a") as stream:
            stream.write(f"{os.getpid()} {SPACE.decode(codes)[0]}\n")
        time.sleep(1000.0 if n_begun == hang_at else seconds)
        costs = evaluate(codes)
        searcher.annotate(codes, costs)
        searcher.tell(codes, np.column_stack([-costs["accuracy"], costs["latency_ms"]]), np.zeros(len(codes)))
    searcher.close()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
