"""Carrying out an experiment in a folder, alone or with other processes that train the supernet together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hanax._files import write_atomically
from hanax.experiments._config import Experiment, ExperimentError
from hanax.experiments._fitting import formats_costs
from hanax.experiments._folder import RunFolder, stage_keys
from hanax.experiments._gather import ENVIRONMENT_FILE, EXPERIMENT_FILE, environment
from hanax.experiments._pipeline import Pipeline, open_pipeline
from hanax.experiments._progress import Reporter, Silent, duration

if TYPE_CHECKING:
    from hanax.supernet import Parallel

SHARED_STAGE = "supernet"
"""The stage that several processes work on."""


def run_experiment(
    experiment: Experiment,
    out: Path,
    *,
    from_stage: str | None = None,
    reporter: Reporter | None = None,
    parallel: Parallel | None = None,
) -> None:
    """Do every stage of `experiment` that is not done yet in folder `out`.

    Args:
        from_stage: Do this stage and those after it again, even if they are done.
        parallel: Processes that train the supernet together, connected. Each calls this with the same experiment and
            the same folder, on a shared file system. The writer locks the folder and does all other stages; the others
            return as soon as the supernet is trained. The processes are not connected any more then.

    Raises:
        ExperimentError: `from_stage` does not exist, or the file does not fit the images.
        RunFolderError: `out` cannot be used.
        DataError: The images cannot be read.
        UnknownDeviceError: A device does not exist.
        ValueError: The processes cannot share the shards of a batch equally.
    """
    reporter = reporter or Silent()
    for device in experiment.devices:
        device.spec()
        if device.table is not None and not Path(device.table).exists():
            raise ExperimentError(f"devices: {device.label}: there is no latency table {device.table}")
    if parallel is not None:
        parallel.shards_here(experiment.supernet.n_shards)
        if not parallel.is_writer:
            _help_to_train(open_pipeline(experiment, out, reporter, parallel), parallel)
            return
    with RunFolder(out) as folder:
        from hanax.supernet import release_freed_memory

        pipeline = open_pipeline(experiment, out, reporter, parallel)
        if pipeline.asks_bitfusion:  # a missing table, or one without these formats, is found out before training
            space = pipeline.searched_space
            formats_costs(space, space.encode([space.largest, space.smallest]), on_bitfusion=True)
        stages = pipeline.stages()
        names = [stage.name for stage in stages]
        if from_stage is not None:
            if from_stage not in names:
                raise ExperimentError(f"--from {from_stage}: no such stage; there are {', '.join(names)}")
            folder.forget(names[names.index(from_stage) :])
        write_atomically(out / EXPERIMENT_FILE, experiment.model_dump_json(indent=1).encode())
        write_atomically(out / ENVIRONMENT_FILE, json.dumps(environment(), indent=1).encode())
        folder.write_plan(stages)
        keys = stage_keys(stages)
        for number, stage in enumerate(stages, start=1):
            reporter.say(f"[{number}/{len(stages)}] {stage.name}")
            shared = parallel if stage.name == SHARED_STAGE else None
            if shared is not None:
                _agree(shared, folder.is_done(stage, keys[stage.name]))
            if folder.execute(stage, keys[stage.name]):
                release_freed_memory()
                seconds = json.loads((folder.stage(stage.name) / "done.json").read_text())["seconds"]
                reporter.say(f"    done in {duration(seconds)}")
            else:
                reporter.say("    done before")
            if shared is not None:
                shared.disconnect()


def _help_to_train(pipeline: Pipeline, parallel: Parallel) -> None:
    """The part of a process that is not the writer: it marks no stage and leaves nothing in the folder."""
    say = pipeline.reporter.say
    say(f"[process {parallel.process} of {parallel.n_processes}] {SHARED_STAGE}")
    if _agree(parallel, False):
        say("    done before")
    else:
        pipeline.train(pipeline.folder(SHARED_STAGE))
        say("    done")
    parallel.disconnect()
    say("The supernet is trained; process 0 does the other stages")


def _agree(parallel: Parallel, is_done: bool) -> bool:
    """The writer's `is_done`, in every process; waits for all of them."""
    own = np.float32(is_done and parallel.is_writer)
    return bool(parallel.mean(own) > 0.0)
