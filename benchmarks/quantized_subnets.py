"""What number formats cost subnets of a quantized-for-all supernet, without retraining any: accuracies on test images.

    python benchmarks/quantized_subnets.py --data DIR --json out.json

Training takes about half an hour on 2 cores if the cache folder does not hold it; the rest takes a quarter of an hour,
with ``--quick``, four architectures, a few minutes. DIR is the folder of the public files, with ``fashion-mnist/`` in
it. The supernet is that of ``experiments/fashion_mnist_int8.yaml``.

The same architectures (the smallest, the largest and random ones) are scored in every pair of formats, the same for all
blocks, and in random policies, one for each:
after the float training (post-training quantization) and after the quantization-aware phase. Batch norms and ranges are
calibrated on training images. A loss is against the same architecture, of the float supernet, in float32. The test
images are used for nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

from hanax._files import write_atomically
from hanax.experiments._quantized_supernet import FASHION_MNIST, QuantizedSupernet, quantized_supernet
from hanax.search_spaces import (
    SearchSpace,
    architecture_columns,
    float_space,
    format_name,
    format_options,
    with_precision,
)
from hanax.supernet import Calibration, Evaluator, Params, Split, with_steps

N_CALIBRATION = 1000
N_RANDOM = 18
SEED = 11


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the public files")
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    parser.add_argument("--calibration", choices=("minmax", "percentile", "mse"), default="minmax")
    parser.add_argument("--quick", action="store_true", help="two random subnets: to see that it runs")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, flush=True)

    supernet = quantized_supernet(FASHION_MNIST, arguments.data, say)
    space, dataset = float_space(supernet.space), supernet.dataset
    test = dataclasses.replace(supernet.split, x_validation=dataset.x_test, y_validation=dataset.y_test)
    rng = np.random.default_rng(SEED)
    drawn = space.sample(rng, 2 if arguments.quick else N_RANDOM)
    codes = np.concatenate([space.encode([space.smallest, space.largest]), drawn])
    about = {
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("hanax", "jax")},
        "n_images": len(dataset.y_test),
        "n_calibration": N_CALIBRATION,
        "calibration": arguments.calibration,
    }
    say(json.dumps(about))
    rows = compare(supernet, codes, test, arguments.calibration)
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(about | {"rows": rows}, indent=1).encode())


def compare(
    supernet: QuantizedSupernet, codes: np.ndarray, test: Split, calibration: Calibration
) -> list[dict[str, object]]:
    """A row per training and policy: accuracy, a share, and loss in points of each of `codes`."""
    n, plain = len(test.y_validation), float_space(supernet.space)

    def accuracies(space: SearchSpace, params: Params, codes: np.ndarray) -> np.ndarray:
        evaluator = Evaluator(space, params, test, n_calibration=N_CALIBRATION, n_validation=n, calibration=calibration)
        return evaluator.accuracies(space.decode(codes))

    reference = accuracies(plain, supernet.float_params, codes)
    rows = [row("float training", "float32", reference, reference)]
    rows.append(row("trained", "float32", accuracies(plain, supernet.params, codes), reference))
    after = {"post-training": with_steps(supernet.space, supernet.float_params), "trained": supernet.params}
    for training, params in after.items():
        for policy, in_formats in quantized_codes(supernet.space, codes).items():
            rows.append(row(training, policy, accuracies(supernet.space, params, in_formats), reference))
    return rows


def quantized_codes(space: SearchSpace, codes: np.ndarray) -> dict[str, np.ndarray]:
    """By policy, architectures `codes` in the quantized `space`."""
    of_weights, of_activations = format_options(space)
    policies = {
        f"w {format_name(weights)}, a {format_name(activations)}": with_precision(space, codes, weights, activations)
        for activations in reversed(of_activations)
        for weights in reversed(of_weights)
    }
    drawn = space.sample(np.random.default_rng([SEED, 1]), len(codes))
    drawn[:, architecture_columns(space)] = codes
    return policies | {"random per block": space.canonical(drawn)}


def row(training: str, policy: str, accuracy: np.ndarray, reference: np.ndarray) -> dict[str, object]:
    """One line, which is printed too."""
    loss = 100 * (reference - accuracy)
    low, middle, high = np.quantile(loss, (0.25, 0.5, 0.75))
    print(
        f"{training:15} {policy:17} accuracy {100 * accuracy.mean():6.2f} %   loss: mean {loss.mean():6.2f}, median "
        f"{middle:6.2f} (quartiles {low:.2f} to {high:.2f}), worst {loss.max():6.2f}   n {len(loss)}",
        flush=True,
    )
    return {"supernet": training, "policy": policy, "accuracy": accuracy.tolist(), "loss_points": loss.tolist()}


if __name__ == "__main__":
    main()
