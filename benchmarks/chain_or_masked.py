"""The two ways to run a subnet, timed on the devices that JAX finds: the chain of blocks and the masked net.

    python benchmarks/chain_or_masked.py [--json out.json] [--batch-size 64] [--repeats 15] [--quick]

Trains (images/s through the passes of sandwich steps: largest, smallest, two random subnets) and evaluates (subnets/s:
calibration and validation together). Both ways see the same subnets. The chain evaluates with `Evaluator`, which shares
the blocks that subnets have in common; the masked net runs each subnet whole. Compilation comes first and is not timed.
Prints medians and quartiles. A few minutes on a CPU, most of them for the masked net; `--quick` takes a tiny space.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hanax.search_spaces import Arch, SearchSpace, mobilenet_v3
from hanax.supernet import Evaluator, Params, Split, init_params, keep_freed_memory, masked_logits, prepare
from hanax.supernet._execution import EXECUTIONS, choose_execution, step_seconds

N_CALIBRATION, N_VALIDATION = 2000, 2000
N_SUBNETS = 20
SEED = 0
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a training step")
    parser.add_argument("--repeats", type=int, default=15, help="steps, and rounds of evaluation a fifth of it")
    parser.add_argument("--quick", action="store_true", help="a tiny space and few images: shows that it runs")
    arguments = parser.parse_args()
    keep_freed_memory()
    started = time.perf_counter()
    space = tiny_space() if arguments.quick else small_images_space()
    params = init_params(space, SEED)
    n_images = 64 if arguments.quick else N_CALIBRATION
    rows = training_rows(space, params, arguments.batch_size, arguments.repeats)
    rows += evaluation_rows(space, params, n_images, max(arguments.repeats // 5, 1))
    choice = choose_execution(space, params, arguments.batch_size)
    result = {
        "name": "chain_or_masked",
        "wall_s": round(time.perf_counter() - started, 1),
        "versions": {name: importlib.metadata.version(name) for name in ("hanax", "jax", "jaxlib")},
        "machine": f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}",
        "chosen": {"name": choice.name, "reason": choice.reason},
        "rows": rows,
    }
    print(as_table(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def small_images_space() -> SearchSpace:
    """Once-for-All's MobileNetV3 at half width for images of 32 x 32."""
    return mobilenet_v3(
        resolutions=(32,), n_classes=10, width_mult=0.5, stem_stride=1, stage_strides=(2, 2, 1, 1, 2)
    )  # fmt: skip


def tiny_space() -> SearchSpace:
    return mobilenet_v3(
        resolutions=(8,), n_classes=10, kernel_sizes=(3, 5), expand_ratios=(2,), depths=(1, 2), stem_width=8,
        stem_stride=1, stage_widths=(8,), stage_strides=(1,), stage_activations=("relu",),
        stage_squeeze_excite=(False,), head_width=16, feature_width=16,
    )  # fmt: skip


def training_rows(space: SearchSpace, params: Params, batch_size: int, repeats: int) -> list[Row]:
    """Images/s of each way, and how many times as fast as the chain the masked net is."""
    rates = {
        name: batch_size / np.array(step_seconds(way, space, params, batch_size, repeats=repeats))
        for name, way in EXECUTIONS.items()
    }
    return as_rows("train", "images/s", rates)


def evaluation_rows(space: SearchSpace, params: Params, n_images: int, rounds: int) -> list[Row]:
    """Subnets/s of each way, and how many times as fast as the chain the masked net is.

    Raises:
        RuntimeError: The two disagree on an accuracy by more than an image in a hundred.
    """
    split = noise(space, n_images)
    archs = space.decode(space.sample(np.random.default_rng(SEED), N_SUBNETS))
    evaluator = Evaluator(space, params, split, n_calibration=n_images, n_validation=n_images)
    ways: dict[str, Callable[[Sequence[Arch]], Any]] = {
        "chain": evaluator.accuracies,
        "masked": lambda archs: masked_accuracies(space, params, split, archs),
    }
    accuracies = {name: np.asarray(way(archs)) for name, way in ways.items()}
    if np.abs(accuracies["chain"] - accuracies["masked"]).max() > 0.01:
        raise RuntimeError(f"the chain and the masked net disagree: {accuracies}")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(archs)
            rates[name].append(len(archs) / (time.perf_counter() - started))
    return as_rows("evaluate", "subnets/s", {name: np.array(values) for name, values in rates.items()})


def masked_accuracies(space: SearchSpace, params: Params, split: Split, archs: Sequence[Arch]) -> np.ndarray:
    """The accuracy of each of `archs` on the validation images, calibrated on the training images."""
    images = np.concatenate([split.x_train, split.x_validation])
    n_calibration = len(split.x_train)
    accuracies = []
    for arch, codes in zip(archs, space.encode(archs), strict=True):
        x = prepare(images, split.mean, split.std, space.resolution(arch))
        logits = masked_logits(space, params, jnp.asarray(codes), x, n_calibration)[n_calibration:]
        accuracies.append(float((np.asarray(logits).argmax(axis=1) == split.y_validation).mean()))
    return np.array(accuracies)


def noise(space: SearchSpace, n_images: int) -> Split:
    """Images of noise as training and as validation part."""
    rng = np.random.default_rng(SEED)
    shape = (2, n_images, *[max(space.resolution(arch) for arch in (space.largest, space.smallest))] * 2, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    labels = rng.integers(0, space.n_classes, (2, n_images)).astype(np.int32)
    half = np.full(3, 0.5, np.float32)
    return Split(images[0], labels[0], images[1], labels[1], mean=half, std=half)


def as_rows(what: str, unit: str, rates: dict[str, np.ndarray]) -> list[Row]:
    rows = [as_row(f"{what}_{name}", unit, values) for name, values in rates.items()]
    return [*rows, as_row(f"{what}_masked_to_chain", "ratio", rates["masked"] / rates["chain"])]


def as_row(metric: str, unit: str, values: np.ndarray) -> Row:
    """Median, distance of the quartiles and least of `values`."""
    lower, median, upper = np.percentile(values, (25, 50, 75))
    figures = {"ours": median, "spread": upper - lower, "worst": values.min()}
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    return {"metric": metric, "published": None, **rounded, "n": len(values), "unit": unit}


def as_table(result: dict[str, Any]) -> str:
    chosen = result["chosen"]
    lines = [f"{result['machine']}; {result['versions']}", f"chosen: {chosen['name']}, {chosen['reason']}"]
    lines += [f"{'':28}{'median':>12}{'quartiles apart':>18}{'least':>12}{'n':>5}"]
    for row in result["rows"]:
        label = f"{row['metric']} [{row['unit']}]"
        lines.append(f"{label:36}{row['ours']:>10g}{row['spread']:>15g}{row['worst']:>12g}{row['n']:>5}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
