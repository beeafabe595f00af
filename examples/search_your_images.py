"""A Pareto front for your own arrays on this machine, from Python.

    python examples/search_your_images.py

Takes about two minutes on 2 cores with the digits that come with scikit-learn; put your own arrays in their place.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

import hanax


def main() -> None:
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)  # (n, height, width), in [0, 1]
    outcome = hanax.search(
        (images, digits.target),
        out="runs/your_images",
        devices=[{"name": "onnxruntime-fp32", "archs": 40, "max_latency_ms": 1.0}],
        space={
            "stem_width": 8,
            "stem_stride": 1,
            "stage_widths": [16, 24],
            "stage_strides": [1, 2],
            "stage_activations": ["relu", "hswish"],
            "stage_squeeze_excite": [False, True],
            "depths": [1, 2],
            "head_width": 64,
            "feature_width": 64,
        },
        supernet={"epochs": 8, "batch_size": 64, "learning_rate": 3e-3},
        accuracy={"archs": 30, "n_calibration": 300},
        search={"evaluations": 2000, "candidates": 8},
    )
    front = outcome.front("onnxruntime-fp32")
    print(front[["predicted_latency_ms", "measured_latency_ms", "test_accuracy", "model_path"]].to_string(index=False))


if __name__ == "__main__":
    main()
