"""Carrying out an experiment in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from hanax._files import write_atomically
from hanax.experiments._config import Experiment, ExperimentError
from hanax.experiments._folder import RunFolder, stage_keys
from hanax.experiments._gather import ENVIRONMENT_FILE, EXPERIMENT_FILE, environment
from hanax.experiments._pipeline import Pipeline
from hanax.experiments._progress import Reporter, Silent, duration


def run_experiment(
    experiment: Experiment, out: Path, *, from_stage: str | None = None, reporter: Reporter | None = None
) -> None:
    """Do every stage of `experiment` that is not done yet in folder `out`.

    Args:
        from_stage: Do this stage and those after it again, even if they are done.

    Raises:
        ExperimentError: `from_stage` does not exist, or the file does not fit the images.
        RunFolderError: `out` cannot be used.
        DataError: The images cannot be read.
        UnknownDeviceError: A device does not exist.
    """
    reporter = reporter or Silent()
    for device in experiment.devices:
        device.spec()
        if device.table is not None and not Path(device.table).exists():
            raise ExperimentError(f"devices: {device.name}: there is no latency table {device.table}")
    with RunFolder(out) as folder:
        from hanax.supernet import keep_compiled_code, keep_freed_memory, load_images, release_freed_memory

        keep_compiled_code()
        keep_freed_memory()
        dataset = load_images(experiment.data.path, image_size=experiment.data.image_size)
        pipeline = Pipeline(experiment, out, dataset, reporter)
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
            if folder.execute(stage, keys[stage.name]):
                release_freed_memory()
                seconds = json.loads((folder.stage(stage.name) / "done.json").read_text())["seconds"]
                reporter.say(f"    done in {duration(seconds)}")
            else:
                reporter.say("    done before")
