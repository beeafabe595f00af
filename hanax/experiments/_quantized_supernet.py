"""Our own quantized supernet: that of ``fashion_mnist.yaml``, and a quantization-aware phase after it.

Both are trained once and kept in the cache folder, as `FOLDER` says; a training that was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hanax._files import cache_folder
from hanax.experiments._config import load_experiment
from hanax.experiments._progress import PLAIN_INTERVAL_S
from hanax.search_spaces import SearchSpace, quantized_space

if TYPE_CHECKING:
    from hanax.supernet import ImageDataset, Params, Recipe, Split

Say = Callable[[str], None]

FOLDER = "fashion-mnist-supernet"
"""In the cache folder; below it, ``float`` and ``quantized`` are what `load_supernet` reads."""

IMAGES = "fashion-mnist"
"""In the folder of the public files."""

QUANTIZED_EPOCHS = 3.0
QUANTIZED_LEARNING_RATE_SHARE = 0.2
"""Of the float supernet's learning rate: the phase is to correct weights, not to learn them anew."""


def fashion_mnist_supernet(data: Path, say: Say) -> tuple[SearchSpace, Params, Split]:
    """The quantized space, the trained weights of its supernet, and the images that they were trained on.

    Without anything in the cache, training takes about half an hour on 2 cores.

    Args:
        data: The folder of the public files, with `IMAGES` in it.
        say: Told what is trained and how it gets on.

    Raises:
        DataError: The images cannot be read.
        ValueError: The cache folder holds another training; names what differs.
    """
    from hanax.supernet import train_quantized

    space, params, split, dataset, recipe = _train_float(data, say)
    quantized = quantized_space(space)
    say("the quantization-aware phase of the supernet, from where it was left, if it was begun")
    params = train_quantized(
        quantized,
        params,
        split,
        quantization_aware(recipe),
        cache_folder() / FOLDER / "quantized",
        fingerprint=dataset.fingerprint,
        on_progress=_steps(say),
    )
    return quantized, params, split


def quantization_aware(recipe: Recipe) -> Recipe:
    """The recipe of the phase that follows a float training by `recipe`."""
    return dataclasses.replace(
        recipe, epochs=QUANTIZED_EPOCHS, learning_rate=recipe.learning_rate * QUANTIZED_LEARNING_RATE_SHARE
    )


def float_supernet(data: Path, say: Say) -> tuple[SearchSpace, Params, Split]:
    """The space, the weights of its supernet before the quantization-aware phase, and the images; arguments as above.

    Raises:
        DataError: The images cannot be read.
        ValueError: The cache folder holds another training; names what differs.
    """
    return _train_float(data, say)[:3]


def _train_float(data: Path, say: Say) -> tuple[SearchSpace, Params, Split, ImageDataset, Recipe]:
    from hanax.supernet import keep_compiled_code, keep_freed_memory, load_images, split_validation, train_supernet

    keep_compiled_code()
    keep_freed_memory()
    experiment = load_experiment("fashion_mnist", [f"data.path={data / IMAGES}"])
    dataset = load_images(experiment.data.path)
    split = split_validation(dataset, fraction=experiment.data.validation_fraction, seed=experiment.seed)
    space, recipe = experiment.build_space(dataset), experiment.supernet.recipe(experiment.seed)
    say("the float supernet, from where it was left, if it was begun")
    params = train_supernet(
        space,
        split,
        recipe,
        cache_folder() / FOLDER / "float",
        fingerprint=dataset.fingerprint,
        on_progress=_steps(say),
    )
    return space, params, split, dataset, recipe


def _steps(say: Say) -> Callable[[int, int], None]:
    """Says now and then how many steps of a training are done."""
    said = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > PLAIN_INTERVAL_S:
            said = time.monotonic()
            say(f"    {done} of {total} steps")

    return on_progress
