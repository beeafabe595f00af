"""MACs and parameters of static subnets as the `ofa` package itself builds them, written as JSON.

    python benchmarks/ofa_reference_figures.py --out tests/search_spaces/ofa_reference_figures.json

The script makes a virtual environment of its own (1 GB, 2 minutes with a CPU build of torch), installs `ofa` and what
it imports there, and runs itself inside. No weights or data are downloaded: the figures depend on shapes alone. The
tests of `hanax.search_spaces.mobilenet_v3` compare with the file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH_MULTS = (1.0, 1.2)
RESOLUTIONS = tuple(range(128, 225, 4))
KERNEL_SIZES, EXPAND_RATIOS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
N_STAGES = 5
N_BLOCKS = N_STAGES * max(DEPTHS)
N_RANDOM_SUBNETS = 8
SEED = 0


def main() -> None:
    """Read the command line; outside the environment, prepare it and start this file again inside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--env", type=Path, help="virtual environment")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        arguments.out.write_text(as_json(reference_figures()))
        return
    from hanax._files import cache_folder
    from hanax.experiments import _ofa_environment

    python = _ofa_environment.prepare_environment(arguments.env or cache_folder() / _ofa_environment.FOLDER)
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(_ofa_environment.__file__).parent)}
    subprocess.run([python, __file__, "--inside", "--out", arguments.out], env=environment, check=True)


def reference_figures() -> dict[str, Any]:
    """Where the figures come from, and one row per subnet. Runs inside the environment."""
    from _ofa_environment import stub_missing_modules

    stub_missing_modules()
    rng = random.Random(SEED)
    rows = [row for width_mult in WIDTH_MULTS for row in count_subnets(width_mult, rng)]
    return {
        "origin": {
            "written_by": "benchmarks/ofa_reference_figures.py",
            "ofa": importlib.metadata.version("ofa"),
            "torch": importlib.metadata.version("torch"),
            "network": "ofa.imagenet_classification.elastic_nn.networks.OFAMobileNetV3.get_active_subnet()",
            "n_classes": 1000,
            "macs": "multiply-accumulates of every nn.Conv2d and nn.Linear for one image, counted by forward hooks",
            "params": "sum of numel() over parameters()",
            "ks, e": "kernel size and expansion ratio of the four blocks of each of five stages",
            "d": "blocks in use per stage",
        },
        "rows": rows,
    }


def as_json(figures: dict[str, Any]) -> str:
    """`figures` with one row a line."""
    rows = ",\n".join("    " + json.dumps(row) for row in figures["rows"])
    return f'{{\n  "origin": {json.dumps(figures["origin"], indent=4)[:-1]}  }},\n  "rows": [\n{rows}\n  ]\n}}\n'


def count_subnets(width_mult: float, rng: random.Random) -> list[dict[str, Any]]:
    """The smallest, the largest and random subnets of the supernet of `width_mult`, resolution included."""
    from _ofa_environment import count
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

    supernet = OFAMobileNetV3(
        dropout_rate=0, width_mult=width_mult,
        ks_list=list(KERNEL_SIZES), expand_ratio_list=list(EXPAND_RATIOS), depth_list=list(DEPTHS),
    )  # fmt: skip
    settings = [draw_setting(min), draw_setting(max)] + [draw_setting(rng.choice) for _ in range(N_RANDOM_SUBNETS)]
    rows = []
    for (resolution,), kernel_sizes, expand_ratios, depths in settings:
        supernet.set_active_subnet(ks=kernel_sizes, e=expand_ratios, d=depths)
        macs, params = count(supernet.get_active_subnet(preserve_weight=True), resolution)
        rows.append(
            {"width_mult": width_mult, "resolution": resolution, "ks": kernel_sizes, "e": expand_ratios, "d": depths,
             "macs": macs, "params": params}
        )  # fmt: skip
    return rows


def draw_setting(draw: Callable[[tuple[int, ...]], int]) -> tuple[list[int], ...]:
    """Resolution; kernel size and expansion ratio of every block; depth of every stage; drawn from their options."""
    decisions = ((RESOLUTIONS, 1), (KERNEL_SIZES, N_BLOCKS), (EXPAND_RATIOS, N_BLOCKS), (DEPTHS, N_STAGES))
    return tuple([draw(options) for _ in range(n)] for options, n in decisions)


if __name__ == "__main__":
    main()
