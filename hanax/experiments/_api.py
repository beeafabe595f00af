"""The same as an experiment file, from Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanax.experiments._config import make_experiment
from hanax.experiments._progress import Reporter, Silent

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Arrays = tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SearchOutcome:
    """What a run left.

    Attributes:
        path: The run's folder, with ``report.html`` and the models.
        winners: One row per shipped net and device: architecture, predicted and measured latency with intervals,
            validation and test accuracy, path of the ONNX model; of an integer model also its policy, its latency in
            float32, and whether its file is as accurate as promised.
    """

    path: Path
    winners: pd.DataFrame

    def front(self, device: str) -> pd.DataFrame:
        """The front of a device: the rows of `winners` that are not there for reference only.

        Raises:
            ValueError: The run has no such device.
        """
        known = list(dict.fromkeys(self.winners["device"]))
        if device not in known:
            raise ValueError(f"this run has no device {device!r}; it has {', '.join(known)}")
        rows = self.winners[(self.winners["device"] == device) & ~self.winners["reference"]]
        return rows.reset_index(drop=True)


def search(
    data: str | Path | Arrays,
    *,
    out: str | Path,
    devices: Sequence[str | Mapping[str, Any]] | None = None,
    seed: int = 0,
    space: Mapping[str, Any] | None = None,
    supernet: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    accuracy: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    validation_fraction: float = 0.15,
    reporter: Reporter | None = None,
) -> SearchOutcome:
    """Train a supernet on `data`, measure `devices`, search, and ship a Pareto front per device into folder `out`.

    Call it again with the same arguments to go on after an interruption; finished stages are not repeated.

    Args:
        data: ``"digits"``; a path that `hanax.supernet.load_images` reads; or arrays ``(x, y)`` or ``(x_train, y_train,
            x_test, y_test)``: images (n, h, w) or (n, h, w, c), bytes or floats in [0, 1], and integer labels (n,).
            Arrays are kept as ``data.npz`` in `out`.
        out: The run's folder.
        devices: Names, or sections of an experiment file such as ``{"name": ..., "max_latency_ms": 2.0}``;
            onnxruntime on this machine, if not given.
        space, supernet, accuracy, search: Sections of an experiment file, as mappings.
        quantization: That section, if number formats are to be searched and integer models shipped; ``{}`` has its
            defaults. Devices are then such as ``onnxruntime-int8``.
        image_size: Resize every image to this height and width.
        validation_fraction: Share of the training images kept out of training.
        reporter: Shows progress; nothing by default.

    Raises:
        ExperimentError: A section has an unknown key or a wrong value; all problems are listed.
        DataError: The images cannot be read.
        UnknownDeviceError: A device does not exist.
        InfeasibleConstraintError: No network keeps a constraint; says the closest value.
        RunFolderError: `out` cannot be used.
    """
    import pandas as pd

    from hanax.experiments._run import run_experiment

    path = Path(out)
    source = str(data) if isinstance(data, str | Path) else str(_keep_arrays(data, path))
    sections: dict[str, Any] = {} if quantization is None else {"quantization": dict(quantization)}
    if devices is not None:
        sections["devices"] = [{"name": device} if isinstance(device, str) else dict(device) for device in devices]
    experiment = make_experiment(
        {
            "name": path.name,
            "seed": seed,
            "data": {"path": source, "image_size": image_size, "validation_fraction": validation_fraction},
            "space": dict(space or {}),
            "supernet": dict(supernet or {}),
            "accuracy": dict(accuracy or {}),
            "search": dict(search or {}),
            **sections,
        },
        "hanax.search",
    )
    run_experiment(experiment, path, reporter=reporter or Silent())
    winners = pd.read_parquet(path / "pareto.parquet")
    winners["settings"] = [json.loads(s) if isinstance(s, str) else s for s in winners["settings"]]
    return SearchOutcome(path, winners)


def _keep_arrays(arrays: Arrays, folder: Path) -> Path:
    """The arrays as a file that the run can be resumed from."""
    import io

    import numpy as np

    from hanax._files import write_atomically
    from hanax.experiments._folder import RunFolder
    from hanax.supernet import images_from_arrays

    dataset = images_from_arrays(*arrays)
    content = io.BytesIO()
    np.savez(content, x_train=dataset.x_train, y_train=dataset.y_train, x_test=dataset.x_test, y_test=dataset.y_test)
    with RunFolder(folder):
        write_atomically(folder / "data.npz", content.getvalue())
    return folder / "data.npz"
