"""What formats chosen block by block after training save on BitFusion, and at what accuracy, on Fashion-MNIST.

    python benchmarks/bit_allocation.py --data DIR --json out.json

Training the supernet takes about half an hour on 2 cores if the cache folder does not hold it, the rest as long again.
DIR is the folder of the public files, with ``fashion-mnist/`` and ``apq/`` in it. The supernet is that of
``experiments/fashion_mnist_int8.yaml`` before its quantization-aware phase.

Of each subnet (the smallest, the largest and random ones) the sensitivities of its blocks to pairs of formats are
measured on validation images. Blocks then get formats with which BitFusion needs at most 80 % of its time for int8:
once as if losses added up, once with the terms of pairs of blocks. Beside these, each pair of formats for all blocks.
Every network is rounded to nearest, with corrected biases, with re-estimated norms, and reconstructed, by the same
training images. The test images are used for the accuracies alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hanax._files import write_atomically
from hanax.devices import BitFusion, BitFusionTable, code_costs
from hanax.experiments._export import count_correct
from hanax.experiments._quantized_supernet import FASHION_MNIST, QuantizedSupernet, quantized_supernet
from hanax.search_spaces import (
    INT8,
    Arch,
    SearchSpace,
    float_space,
    format_name,
    precision_plan,
    quantized_space,
    with_precision,
)
from hanax.searchers import allocate
from hanax.supernet import (
    Evaluator,
    FoldedNet,
    RoundedNet,
    correct_biases,
    normalise,
    reconstruct,
    reestimate_norms,
    round_to_nearest,
    sensitivities,
    slot_layers,
)

BUDGET = 0.8
"""Of the latency in int8."""
WEIGHTS, ACTIVATIONS = (4, 6, INT8), (6, INT8)
OPTIONS = tuple(itertools.product(WEIGHTS, ACTIVATIONS))
"""Formats that a block may have."""
N_CALIBRATION = 1000
"""Training images for batch norms."""
N_TUNING = 256
"""Training images for ranges, biases, norms and reconstruction."""
N_SENSITIVITY = 500
"""Validation images for losses."""
N_RANDOM = 3
SEED = 12
CHUNK = 500


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the public files")
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    parser.add_argument("--quick", action="store_true", help="the smallest subnet alone: to see that it runs")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, flush=True)

    table = BitFusionTable.read(arguments.data / "apq" / "BitFusion_new.b1.dict")
    supernet = quantized_supernet(FASHION_MNIST, arguments.data, say)
    plain = float_space(supernet.space)
    archs = {"smallest": plain.smallest}
    if not arguments.quick:
        drawn = plain.decode(plain.sample(np.random.default_rng(SEED), N_RANDOM))
        archs |= {"largest": plain.largest, **{f"random {number}": arch for number, arch in enumerate(drawn)}}
    about = {
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("hanax", "jax")},
        "budget": BUDGET,
        "options": [[format_name(weights), format_name(activations)] for weights, activations in OPTIONS],
        "n_images": {
            "test": len(supernet.dataset.y_test),
            "calibration": N_CALIBRATION,
            "tuning": N_TUNING,
            "sensitivity": N_SENSITIVITY,
        },
    }
    say(json.dumps(about))
    nets = {name: measure(name, arch, supernet, table) for name, arch in archs.items()}
    print_losses(nets)
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(about | {"nets": nets}, indent=1).encode())


def measure(name: str, arch: Arch, supernet: QuantizedSupernet, table: BitFusionTable) -> dict[str, Any]:
    """Latencies and accuracies of one subnet under all policies, by all ways to round it."""
    split, test = supernet.split, (supernet.dataset.x_test, supernet.dataset.y_test)
    plain = float_space(supernet.space)
    evaluator = Evaluator(plain, supernet.float_params, split, n_calibration=N_CALIBRATION, n_validation=N_SENSITIVITY)
    subnet = evaluator.extract(arch)
    net = FoldedNet.of(subnet)
    tuning, validation, x_test = (
        normalise(images, split.mean, split.std)
        for images in (split.x_train[:N_TUNING], split.x_validation[:N_SENSITIVITY], test[0])
    )
    layers = slot_layers(plain, arch)
    space = quantized_space(plain, weights=WEIGHTS, activations=ACTIVATIONS)
    widest = with_precision(space, plain.encode([arch]), INT8, INT8)[0]

    def codes_of(choices: np.ndarray) -> np.ndarray:
        return in_formats(space, widest, list(layers), choices)

    def latencies_ms(codes: np.ndarray) -> np.ndarray:
        return np.asarray(code_costs(BitFusion(table, None), space, codes)[:, 0])

    int8, n_options = OPTIONS.index((INT8, INT8)), len(OPTIONS)
    started = time.perf_counter()
    found = sensitivities(net, validation, split.y_validation[:N_SENSITIVITY], OPTIONS, layers=layers,
                          base=(INT8, INT8), ranges_from=tuning)  # fmt: skip
    seconds = time.perf_counter() - started
    one_by_one = np.full((len(layers), n_options, len(layers)), int8)
    for layer in range(len(layers)):
        one_by_one[layer, :, layer] = np.arange(n_options)
    in_int8 = float(latencies_ms(widest[None])[0])
    costs = latencies_ms(codes_of(one_by_one.reshape(-1, len(layers)))).reshape(len(layers), n_options) - in_int8
    budget = (BUDGET - 1.0) * in_int8
    alone, joint = allocate(found.single, costs, budget), allocate(found.single, costs, budget, pairs=found.pairs)
    policies = {
        f"w {format_name(weights)}, a {format_name(activations)}": np.full(len(layers), option)
        for option, (weights, activations) in enumerate(OPTIONS)
    } | {"allocated, losses add up": alone.choices, "allocated, with pairs": joint.choices}
    in_float32 = count_correct(subnet, *test) / len(test[1])
    print(f"{name}: {len(layers)} blocks, {100 * in_float32:.2f} % in float32, {found.n_evaluations} losses in "
          f"{seconds:.0f} s, pairs: {joint}", flush=True)  # fmt: skip

    rows = []
    for policy, choices in policies.items():
        codes = codes_of(choices[None])
        plan = precision_plan(space, space.decode(codes)[0])
        nearest = round_to_nearest(net, plan, tuning)
        ways: dict[str, RoundedNet] = {
            "nearest": nearest,
            "biases": correct_biases(net, nearest, tuning),
            "norms": reestimate_norms(net, nearest, tuning),
            "reconstructed": reconstruct(net, plan, tuning),
        }
        accuracies = {way: rounded.accuracy(x_test, test[1], chunk=CHUNK) for way, rounded in ways.items()}
        saved = 1.0 - float(latencies_ms(codes)[0]) / in_int8
        rows.append({"policy": policy, "choices": choices.tolist(), "saved": saved, "accuracies": accuracies})
        shown = "   ".join(f"{way} {100 * accuracy:.2f}" for way, accuracy in accuracies.items())
        print(f"  {policy:26} {100 * saved:5.1f} % saved   {shown}", flush=True)
    return {
        "arch": str(arch),
        "blocks": list(layers),
        "float32": in_float32,
        "int8_latency_ms": in_int8,
        "gap": joint.gap,
        "rows": rows,
    }


def in_formats(space: SearchSpace, codes: np.ndarray, slots: list[str], choices: np.ndarray) -> np.ndarray:
    """Codes of one architecture with other formats, a row of `choices` each: of every slot, a position in `OPTIONS`."""
    columns = {decision.name: (column, decision.options) for column, decision in enumerate(space.decisions)}
    made = np.repeat(codes[None], len(choices), axis=0)
    for slot, chosen in zip(slots, choices.T, strict=True):
        for kind, values in zip(("weight_bits", "activation_bits"), zip(*OPTIONS, strict=True), strict=True):
            column, options = columns[f"{slot}.{kind}"]
            made[:, column] = [options.index(values[option]) for option in chosen]
    return made


def print_losses(nets: dict[str, dict[str, Any]]) -> None:
    """Points lost against int8 rounded to nearest, over all networks."""
    rows = {name: {row["policy"]: row for row in net["rows"]} for name, net in nets.items()}
    reference = {name: of["w int8, a int8"]["accuracies"]["nearest"] for name, of in rows.items()}
    print(f"points lost against int8 rounded to nearest by {len(nets)} subnets: mean, median (quartiles), worst")
    for policy in next(iter(rows.values())):
        saved = [100 * of[policy]["saved"] for of in rows.values()]
        print(f"{policy}, {min(saved):.1f} to {max(saved):.1f} % saved")
        for way in next(iter(rows.values()))[policy]["accuracies"]:
            lost = [100 * (reference[name] - of[policy]["accuracies"][way]) for name, of in rows.items()]
            low, middle, high = np.quantile(lost, (0.25, 0.5, 0.75))
            spread = f"{middle:6.2f} ({low:.2f} to {high:.2f})"
            print(f"  {way:13} {np.mean(lost):6.2f} {spread} {max(lost):6.2f}", flush=True)


if __name__ == "__main__":
    main()
