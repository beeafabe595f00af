"""Quantized supernets for reproductions and benchmarks: an experiment that comes with Hanax, as far as its supernet.

The float supernet and the quantization-aware phase after it are trained once and kept in the cache folder, in folders
``float`` and ``quantized`` that `load_supernet` reads; a training that was interrupted goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hanax._files import cache_folder
from hanax.experiments._config import load_experiment
from hanax.experiments._progress import PLAIN_INTERVAL_S
from hanax.search_spaces import SearchSpace

if TYPE_CHECKING:
    from hanax.supernet import ImageDataset, Params, Split

Say = Callable[[str], None]

FASHION_MNIST, CIFAR10 = "fashion_mnist_int8", "quantized_cifar10"
"""Experiments, each of them on the images in the folder of the public files that `IMAGES` names."""
IMAGES = {FASHION_MNIST: "fashion-mnist", CIFAR10: "cifar-10"}


@dataclass(frozen=True, eq=False)
class QuantizedSupernet:
    """A supernet before and after its quantization-aware phase.

    Attributes:
        space: The quantized space; `float_space` of it is that of `float_params`.
        float_params: Weights before the phase.
        params: Weights after it.
        dataset: The images, of which `split` has those for training and validation.
    """

    space: SearchSpace
    float_params: Params
    params: Params
    dataset: ImageDataset
    split: Split


def quantized_supernet(name: str, data: Path, say: Say) -> QuantizedSupernet:
    """The supernet of the experiment `name`, a key of `IMAGES`.

    Without anything in the cache, training takes about half an hour on 2 cores.

    Args:
        data: The folder of the public files.
        say: Told what is trained and how it gets on.

    Raises:
        DataError: The images cannot be read.
        ValueError: The cache folder holds another training; names what differs.
        InUseError: Another process trains there.
    """
    from hanax.supernet import (
        keep_compiled_code,
        keep_freed_memory,
        load_images,
        split_validation,
        train_quantized,
        train_supernet,
    )

    keep_compiled_code()
    keep_freed_memory()
    experiment = load_experiment(name, [f"data.path={data / IMAGES[name]}"])
    dataset = load_images(experiment.data.path)
    split = split_validation(dataset, fraction=experiment.data.validation_fraction, seed=experiment.seed)
    space, folder, fingerprint = experiment.build_space(dataset), cache_folder() / name, dataset.fingerprint
    say("the float supernet, from where it was left, if it was begun")
    recipe = experiment.supernet.recipe(experiment.seed)
    float_params = train_supernet(
        space, split, recipe, folder / "float", fingerprint=fingerprint, on_progress=_steps(say)
    )
    say("the quantization-aware phase, from where it was left, if it was begun")
    quantized = experiment.searched_space(space)
    assert experiment.quantization is not None
    phase = experiment.quantization.recipe(experiment.supernet, experiment.seed)
    assert phase is not None
    params = train_quantized(
        quantized, float_params, split, phase, folder / "quantized", fingerprint=fingerprint, on_progress=_steps(say)
    )
    return QuantizedSupernet(quantized, float_params, params, dataset, split)


def _steps(say: Say) -> Callable[[int, int], None]:
    """Says now and then how many steps of a training are done."""
    said = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > PLAIN_INTERVAL_S:
            said = time.monotonic()
            say(f"    {done} of {total} steps")

    return on_progress
