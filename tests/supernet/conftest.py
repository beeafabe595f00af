"""One small supernet for the whole folder: what is compiled for it is compiled once.

It has what larger ones have: two resolutions, maps on which depthwise kernels are data (8 px) and on which they are
static without native kernels (9 px), stride 2 on an odd map, squeeze-excite, residuals, and widths, depths and kernels
to choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest

if TYPE_CHECKING:
    from hanax.search_spaces import SearchSpace
    from hanax.supernet import Evaluator, Params, Recipe, Split

N_CALIBRATION = 128
N_VALIDATION = 96


@dataclass(frozen=True)
class Trained:
    """A finished training: its result and the folder it was written to."""

    params: Params
    recipe: Recipe
    directory: Path


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    from hanax.search_spaces import mobilenet_v3

    whole = mobilenet_v3(
        resolutions=(8, 9), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2, 4), depths=(1, 2),
        stem_width=8, stem_stride=1, stage_widths=(8, 16), stage_strides=(1, 2), stage_activations=("relu", "hswish"),
        stage_squeeze_excite=(False, True), head_width=32, feature_width=32,
    )  # fmt: skip
    # The second block of stage 2 would show nothing new, and take a quarter of the time to compile.
    return dataclasses.replace(
        whole,
        decisions=tuple(d for d in whole.decisions if not d.name.startswith(("stage2.depth", "stage2.block2"))),
        slots=tuple(slot for slot in whole.slots if slot.name != "stage2.block2"),
    )


@pytest.fixture(scope="session")
def split() -> Split:
    """The digits that come with scikit-learn, a fifth of their training part as validation."""
    from hanax.supernet import load_images, split_validation

    return split_validation(load_images("digits"), fraction=0.2, seed=0)


@pytest.fixture(scope="session")
def trained(space: SearchSpace, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The supernet after a short training on digits."""
    from hanax.supernet import Recipe, train_supernet

    recipe = Recipe(epochs=4.0, batch_size=32, learning_rate=1e-2, n_random_subnets=1)
    directory = tmp_path_factory.mktemp("supernet")
    return Trained(train_supernet(space, split, recipe, directory), recipe, directory)


@pytest.fixture(scope="session")
def make_evaluator(space: SearchSpace, split: Split, trained: Trained) -> Callable[..., Evaluator]:
    """An `Evaluator` of other weights or images, for which nothing needs to be compiled any more."""
    from hanax.supernet import Evaluator

    def make(params: Params = trained.params, split: Split = split) -> Evaluator:
        return Evaluator(space, params, split, n_calibration=N_CALIBRATION, n_validation=N_VALIDATION)

    make().compile()
    return make


@pytest.fixture(scope="session")
def evaluator(make_evaluator: Callable[..., Evaluator]) -> Evaluator:
    """An `Evaluator` of the trained supernet."""
    return make_evaluator()


@pytest.fixture(scope="session")
def random_params() -> Callable[[SearchSpace, int], Params]:
    """Weights without special values: no norm is the identity, no bias or residual branch 0, logits of all sizes."""
    from hanax.supernet import init_params

    def draw(space: SearchSpace, seed: int) -> Params:
        rng = np.random.default_rng(seed)
        spread = {"kernel": 0.0, "scale": 0.3, "offset": 0.3, "bias": 0.3}  # around the values of a fresh supernet

        def perturb(path: tuple[jax.tree_util.DictKey, ...], array: jax.Array) -> jax.Array:
            name = path[-1].key
            deviation = 0.5 if path[-2].key == "classify" else spread.get(name, 0.1)
            values = np.asarray(array) + rng.normal(0.0, deviation, array.shape)
            values = values + 0.7 * (name == "scale") * (np.asarray(array) == 0.0)
            return jax.numpy.asarray(values.astype(np.float32))

        return jax.tree_util.tree_map_with_path(perturb, init_params(space, seed))

    return draw


@pytest.fixture
def blocks_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images of each block that an evaluator runs."""
    from hanax.supernet import _evaluate

    n_images: list[int] = []
    compute = _evaluate.evaluate_block

    def counting(placed: Any, params: Any, x: Any, norms: Any, **settings: Any) -> Any:
        n_images.append(x.shape[-1])
        return compute(placed, params, x, norms, **settings)

    monkeypatch.setattr(_evaluate, "evaluate_block", counting)
    return n_images
