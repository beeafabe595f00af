"""What number formats cost subnets of a quantized-for-all supernet, without retraining any: accuracies on test images.

    python benchmarks/quantized_subnets.py --data DIR --json out.json    # 10 minutes, beside half an hour of training

DIR is the folder of the public files, with ``fashion-mnist/`` in it. The float supernet of
``experiments/fashion_mnist.yaml`` and its quantization-aware phase are trained if the cache folder does not hold them.

The same architectures (the smallest, the largest and random ones) are scored in every policy, the same for all blocks:
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
from hanax.experiments._quantized_supernet import fashion_mnist_supernet, float_supernet
from hanax.search_spaces import SearchSpace, format_name, with_precision
from hanax.supernet import Calibration, Evaluator, Params, Split, load_images, with_steps

POLICIES = ((8, 8), (6, 8), (4, 8), (8, 6), (6, 6), (4, 6), (8, 4), (4, 4))
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

    space, float_params, _ = float_supernet(arguments.data, say)
    quantized, params, split = fashion_mnist_supernet(arguments.data, say)
    dataset = load_images(str(arguments.data / "fashion-mnist"))
    test = dataclasses.replace(split, x_validation=dataset.x_test, y_validation=dataset.y_test)
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
    rows = compare(space, quantized, codes, float_params, params, test, arguments.calibration)
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(about | {"rows": rows}, indent=1).encode())


def compare(
    space: SearchSpace,
    quantized: SearchSpace,
    codes: np.ndarray,
    float_params: Params,
    trained: Params,
    test: Split,
    calibration: Calibration,
) -> list[dict[str, object]]:
    """A row per supernet and policy: accuracy, a share, and loss in points of each of `codes`."""
    n = len(test.y_validation)
    archs = space.decode(codes)
    reference = Evaluator(space, float_params, test, n_calibration=N_CALIBRATION, n_validation=n).accuracies(archs)
    rows = [row("float training", "float32", reference, reference)]
    after = Evaluator(space, trained, test, n_calibration=N_CALIBRATION, n_validation=n).accuracies(archs)
    rows.append(row("trained", "float32", after, reference))
    for name, params in (("post-training", with_steps(quantized, float_params)), ("trained", trained)):
        evaluator = Evaluator(
            quantized, params, test, n_calibration=N_CALIBRATION, n_validation=n, calibration=calibration
        )
        for weight, activation in POLICIES:
            archs_in = quantized.decode(with_precision(quantized, codes, weight, activation))
            policy = f"w {format_name(weight)}, a {format_name(activation)}"
            rows.append(row(name, policy, evaluator.accuracies(archs_in), reference))
    return rows


def row(supernet: str, policy: str, accuracy: np.ndarray, reference: np.ndarray) -> dict[str, object]:
    """One line, which is printed too."""
    loss = 100 * (reference - accuracy)
    low, middle, high = np.quantile(loss, (0.25, 0.5, 0.75))
    print(
        f"{supernet:15} {policy:15} accuracy {100 * accuracy.mean():6.2f} %   loss: mean {loss.mean():6.2f}, median "
        f"{middle:6.2f} (quartiles {low:.2f} to {high:.2f}), worst {loss.max():6.2f}   n {len(loss)}",
        flush=True,
    )
    return {"supernet": supernet, "policy": policy, "accuracy": accuracy.tolist(), "loss_points": loss.tolist()}


if __name__ == "__main__":
    main()
