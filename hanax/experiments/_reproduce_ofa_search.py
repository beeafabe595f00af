"""Once-for-All's search in Hanax beside the `ofa` package's own, with the same predictors, in the same job.

Both search OFA's MobileNetV3 space at eight resolutions. The accuracy predictor is OFA's (128 features, three hidden
layers of 400), trained here, since the published weights are a download: on the accuracies of DyNAS-T's traces where
those files are, otherwise on accuracies that are made up. The latency tables hold what a roofline with an overhead per
operator says of each block. The peer is a process of its own environment (`_ofa_search_worker`); before anything is
timed, both sides must predict the same for the same networks.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanax._files import cache_folder
from hanax.devices import DeviceProfile, Roofline
from hanax.experiments._ofa_environment import FOLDER, prepare_environment
from hanax.experiments._reproduction import Reproduction, Row
from hanax.search_spaces import INPUT, RESOLUTION, Arch, MBConv, SearchSpace, Shape, graph_features, mobilenet_v3
from hanax.searchers import BlockTable, ConstrainedEvolution, OneHotMlp, block_table, one_hot_mlp

Codes = NDArray[np.int32]
Floats = NDArray[np.float64]
Say = Callable[[str], None]

RESOLUTIONS = tuple(range(112, 225, 16))
POPULATION, GENERATIONS = 100, 500
QUICK_GENERATIONS = 20
N_BUDGETS = 20
TIMED_BUDGETS = (4, 10, 16)
"""Of the twenty budgets, those that the peer searches, too: twice each."""

HIDDEN = 400
POINTS_PER_HALVING = 0.07
"""What half the resolution costs, in accuracy: an assumption, as the traces are of one resolution."""

PEAKS, BANDWIDTHS, OVERHEADS_MS = (5e9, 20e9, 80e9), (3e9, 12e9, 48e9), (0.0, 0.02, 0.1)
"""MACs per second, bytes per second and ms per operator of the 27 modelled devices; the middle one is for the peer."""

MOST_DIFFERENCE = 1e-4
"""By which the predictions of both sides may differ, relative to the largest one."""


@dataclass(frozen=True, eq=False)
class Predictors:
    """What both sides search with.

    Attributes:
        accuracy: Between 0 and 1.
        latency: In ms, on each of the devices.
        layers: Weights, shape (inputs, outputs), and biases of `accuracy` on ``space.one_hot``.
        entries: The latency of each block on the middle device, by its key in OFA's tables, for each resolution.
    """

    space: SearchSpace
    accuracy: OneHotMlp
    latency: BlockTable
    layers: Sequence[tuple[Floats, Floats]]
    entries: dict[int, dict[str, float]]

    def latency_on(self, device: int) -> BlockTable:
        """The table of one device."""
        return self.latency.of_device(device)


def reproduce_ofa_search(data: Path, quick: bool, say: Say) -> Reproduction:
    """Speed and results of one search, of twenty budgets at once and of 27 devices at once.

    Raises:
        RuntimeError: Both sides do not predict the same, the peer's process ended, or its environment was not made.
        ValueError: The folder of its environment holds something else.
    """
    started = time.monotonic()
    generations = QUICK_GENERATIONS if quick else GENERATIONS
    say("training the accuracy predictor")
    devices = modelled_devices()
    predictors = make_predictors(mobilenet_v3(resolutions=RESOLUTIONS), data, devices)
    middle = len(devices) // 2
    budgets = _budgets(predictors, predictors.latency_on(middle))
    one, compile_s = _compiled(predictors, predictors.latency_on(middle), budgets[:1], generations)
    say("preparing the environment of ofa")
    python = prepare_environment(cache_folder() / FOLDER)
    with tempfile.TemporaryDirectory(prefix="ofa-search.") as folder:
        write_for_peer(predictors, Path(folder))
        with Peer.start(python, Path(folder)) as peer:
            difference = largest_difference(predictors, middle, peer)
            versions = peer.ask("info")["versions"]
            duels = [_duel(one, peer, float(budgets[i]), generations, say) for i in TIMED_BUDGETS[: 1 if quick else 3]]
    say("twenty budgets at once")
    twenty, _ = _compiled(predictors, predictors.latency_on(middle), budgets, generations)
    shared_s, separate_s = _interleaved(lambda: twenty.run(budgets), lambda: one.run(budgets[:1]))
    shared = twenty.run(budgets).scores
    alone = np.array([one.run([budget]).scores[0] for budget in budgets])
    say("27 devices with twenty budgets each")
    every = np.stack([_budgets(predictors, predictors.latency_on(j)) for j in range(predictors.latency.n_devices)])
    many, _ = _compiled(predictors, predictors.latency, every, generations)
    seconds = time.perf_counter()
    many.run(every, seed=1)
    many_s = time.perf_counter() - seconds
    calls = POPULATION * (generations + 1)
    rows = [
        _row("speedup", [duel.peer_s / duel.ours_s for duel in duels], "x"),
        _row("ours_s", [duel.ours_s for duel in duels], "s"),
        _row("peer_s", [duel.peer_s for duel in duels], "s"),
        _row("compile_s", [compile_s], "s"),
        _row("best_score_gap", [gap for duel in duels for gap in duel.gaps], "accuracy", min),
        _row("twenty_constraints_ratio", [a / b for a, b in zip(shared_s, separate_s, strict=True)], "x"),
        _row("twenty_constraints_gap", (shared - alone).tolist(), "accuracy", min),
        _row("devices27_constraints20_s", [many_s], "s"),
        _row("prediction_difference", [difference], "relative"),
    ]
    title = f"{calls:,} predictor calls, ofa {versions['ofa']} on torch {versions['torch']}; gaps are the worst"
    return Reproduction("ofa-search", title, rows, time.monotonic() - started)


# ---- predictors ------------------------------------------------------------------------------------------------------


def make_predictors(
    space: SearchSpace, data: Path, devices: Sequence[tuple[Roofline, float]], epochs: int = 40
) -> Predictors:
    """The accuracy predictor, trained with a fixed seed, and the latency tables of `devices`."""
    codes, accuracy = accuracy_data(space, data)
    layers = train_mlp(space, codes, accuracy, epochs)
    terms, entries = latency_entries(space, devices, len(devices) // 2)
    return Predictors(space, one_hot_mlp(space, layers), block_table(space, terms), layers, entries)


def accuracy_data(space: SearchSpace, data: Path) -> tuple[Codes, Floats]:
    """Networks at random resolutions and their accuracies between 0 and 1.

    At 224 pixels those of DyNAS-T's traces, if there are any in `data`; else a logarithm of the MACs and a contribution
    of each option. Elsewhere less by `POINTS_PER_HALVING`.
    """
    rng = np.random.default_rng(0)
    if (data / "dynas-t").is_dir():
        from hanax.devices.public import find_source, import_source

        frame = import_source(find_source("dynas-t"), data / "dynas-t").tables[0].frame
        codes = np.array([Arch.parse(text).choices for text in frame["arch"]], dtype=np.int32)
        at_largest = frame["top1"].to_numpy() / 100
    else:
        codes = space.sample(rng, 2000)
        codes[:, space.column(RESOLUTION)] = space.largest.choices[space.column(RESOLUTION)]
        names, sums = graph_features(space, codes)
        at_largest = 0.76 + 0.04 * np.log2(sums[:, names.index("macs")] / 3e8)
        one_hot = space.one_hot(codes)
        at_largest += one_hot @ rng.normal(0, 5e-4, one_hot.shape[1])
    codes, at_largest = np.tile(codes, (3, 1)), np.tile(at_largest, 3)
    sides = np.array(space.decisions[space.column(RESOLUTION)].options)
    resolution = rng.integers(0, len(sides), len(codes))
    codes[:, space.column(RESOLUTION)] = resolution
    return codes, at_largest + POINTS_PER_HALVING * np.log2(sides[resolution] / sides[-1])


def train_mlp(space: SearchSpace, codes: Codes, accuracy: Floats, epochs: int) -> list[tuple[Floats, Floats]]:
    """Weights and biases of OFA's accuracy predictor on ``space.one_hot``; those of the depths are 0: it has none."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    is_feature = np.repeat([not name.endswith(".depth") for name in _names(space)], space.option_counts)
    mean, scale = accuracy.mean(), accuracy.std()
    net = MLPRegressor(hidden_layer_sizes=(HIDDEN,) * 3, alpha=1e-4, batch_size=256, max_iter=epochs, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is what was asked for
        net.fit(space.one_hot(codes)[:, is_feature].astype(np.float32), ((accuracy - mean) / scale).astype(np.float32))
    first = np.zeros((len(is_feature), HIDDEN))
    first[is_feature] = net.coefs_[0]
    *hidden, last = zip([first, *net.coefs_[1:]], net.intercepts_, strict=True)
    return [*hidden, (last[0] * scale, last[1] * scale + mean)]


def modelled_devices() -> list[tuple[Roofline, float]]:
    """The 27 devices: a roofline, and ms per operator."""
    return [
        (
            Roofline(DeviceProfile(f"modelled-{number}", "fp32", peak, bandwidth, "one of a grid, no device")),
            overhead_ms,
        )
        for number, (peak, bandwidth, overhead_ms) in enumerate(itertools.product(PEAKS, BANDWIDTHS, OVERHEADS_MS))
    ]


def latency_entries(
    space: SearchSpace, devices: Sequence[tuple[Roofline, float]], chosen: int
) -> tuple[list[tuple[tuple[str, ...], Floats]], dict[int, dict[str, float]]]:
    """Terms for `block_table` on all `devices`, and the same as entries of OFA's tables for device number `chosen`."""
    sides = space.decisions[space.column(RESOLUTION)].options
    fixed = np.zeros((len(sides), len(devices)))
    terms: list[tuple[tuple[str, ...], Floats]] = [((RESOLUTION,), fixed)]
    entries: dict[int, dict[str, float]] = {side: {} for side in sides}
    shapes: list[Shape] = [(space.image_channels, side, side) for side in sides]
    for slot in space.slots:
        outs = []
        decisions = [space.decisions[space.column(name)] for name in slot.settings if isinstance(name, str)]
        options = list(itertools.product(*slot.block.elastic.values()))
        costs = np.zeros((len(sides), len(options), len(devices)))
        for (row, shape), (column, choice) in itertools.product(enumerate(shapes), enumerate(options)):
            operators = slot.block.lower(slot.name, choice, INPUT, shape)
            costs[row, column] = [
                device.costs_of(operators)[0] + overhead_ms * len(operators) for device, overhead_ms in devices
            ]
            key = ofa_keys(slot.block, choice, shape, operators[-1].out_shape, operators[0].out_shape)
            entries[sides[row]] |= dict.fromkeys(key[1:], 0.0) | {key[0]: float(costs[row, column, chosen])}
            if column == 0:
                outs.append(operators[-1].out_shape)
        shapes = outs
        if not decisions:
            fixed += costs[:, 0]
            continue
        table = costs.reshape(len(sides), *(len(decision.options) for decision in decisions), len(devices))
        names = (RESOLUTION, *(decision.name for decision in decisions))
        if slot.when is not None:
            depths = space.decisions[space.column(slot.when.decision)].options
            is_there = np.array([depth in slot.when.options for depth in depths], dtype=float)
            table = is_there.reshape(-1, *(1,) * table.ndim) * table
            names = (slot.when.decision, *names)
        terms.append((names, table))
    return terms, entries


def ofa_keys(block: Any, choice: tuple[int, ...], shape: Shape, out: Shape, first_out: Shape) -> list[str]:
    """The keys of one block in `ofa`'s latency tables; all but the first are for parts that the first one includes."""

    def key(kind: str, before: Shape, after: Shape, *more: str) -> str:
        text = ["x".join(map(str, (*shape[1:], shape[0]))) for shape in (before, after)]
        return "-".join([kind, f"input:{text[0]}", f"output:{text[1]}", *more])

    if isinstance(block, MBConv):
        kernel_size, expand_ratio = choice
        settings = {
            "expand": block.mid_channels(expand_ratio), "kernel": kernel_size, "stride": block.stride,
            "idskip": int(block.has_residual), "se": int(block.has_squeeze_excite),
            "hs": int(block.activation == "hswish"),
        }  # fmt: skip
        return [key("expanded_conv", shape, out, *(f"{name}:{value}" for name, value in settings.items()))]
    if not hasattr(block, "wide_channels"):
        return [key("Conv", shape, out)]
    pooled, features = (block.wide_channels, 1, 1), (block.feature_channels, 1, 1)
    return [
        key("Conv_1", shape, first_out),
        key("AvgPool2D", first_out, pooled),
        key("Conv_2", pooled, features),
        f"Logits-input:1x1x{block.feature_channels}-output:{block.n_classes}",
    ]


def _names(space: SearchSpace) -> list[str]:
    return [decision.name for decision in space.decisions]


# ---- the peer --------------------------------------------------------------------------------------------------------


def write_for_peer(predictors: Predictors, folder: Path) -> None:
    """The weights as a state dictionary of `ofa`'s predictor, and a table per resolution, as JSON, which YAML includes.

    Its features are the resolution, all kernel sizes and all expansion ratios, in this order.
    """
    columns = np.repeat(_names(predictors.space), predictors.space.option_counts)
    order = [
        index
        for ending in (RESOLUTION, ".kernel_size", ".expand_ratio")
        for index, name in enumerate(columns)
        if name.endswith(ending)
    ]
    *hidden, (last, base) = predictors.layers
    state = {"layers.3.weight": last.T, "base_acc": base}
    for number, (weight, bias) in enumerate(hidden):
        state[f"layers.{number}.0.weight"] = (weight[order] if number == 0 else weight).T
        state[f"layers.{number}.0.bias"] = bias
    arrays: dict[str, Any] = {name: np.ascontiguousarray(values, np.float32) for name, values in state.items()}
    np.savez(folder / "accuracy.npz", **arrays)
    for resolution, entries in predictors.entries.items():
        table = {key: {"mean": latency_ms} for key, latency_ms in entries.items()}
        (folder / f"{resolution}_lookup_table.yaml").write_text(json.dumps(table))


def ofa_archs(space: SearchSpace, codes: Codes) -> list[dict[str, Any]]:
    """Networks as `ofa` writes them: lists of kernel sizes, expansion ratios and depths, and the image size."""
    archs = []
    for row in codes:
        taken = {d.name: d.options[code] for d, code in zip(space.decisions, row.tolist(), strict=True)}
        lists = {
            short: [value for name, value in taken.items() if name.endswith(long)]
            for short, long in (("ks", ".kernel_size"), ("e", ".expand_ratio"), ("d", ".depth"))
        }
        archs.append({**lists, "image_size": taken[RESOLUTION]})
    return archs


@dataclass(frozen=True, slots=True)
class Peer:
    """A process of `_ofa_search_worker`."""

    process: subprocess.Popen[str]

    @classmethod
    @contextmanager
    def start(cls, python: Path, folder: Path) -> Iterator[Peer]:
        """The worker with what `write_for_peer` wrote into `folder`; it ends with the context."""
        worker = Path(__file__).with_name("_ofa_search_worker.py")
        process = subprocess.Popen(
            [str(python), str(worker), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        with process:
            yield cls(process)
            assert process.stdin is not None
            process.stdin.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of ofa ended with status {self.process.wait()} at the command {command!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def largest_difference(predictors: Predictors, device: int, peer: Peer, n: int = 100) -> float:
    """The largest difference between the predictions of both sides for `n` random networks, relative to the largest.

    Raises:
        RuntimeError: It is above `MOST_DIFFERENCE`.
    """
    codes = predictors.space.sample(np.random.default_rng(1), n)
    theirs = peer.ask("predict", archs=ofa_archs(predictors.space, codes))
    ours = {"accuracy": predictors.accuracy(codes), "latency_ms": predictors.latency_on(device)(codes)}
    difference = max(
        float(np.abs(ours[name] - np.array(theirs[name])).max() / np.abs(ours[name]).max()) for name in ours
    )
    if difference > MOST_DIFFERENCE:
        raise RuntimeError(
            f"ofa's predictions for the same networks differ from ours by {difference:.2g}, relative to the largest; "
            f"at most {MOST_DIFFERENCE:g} is rounding"
        )
    return difference


# ---- searches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Duel:
    """One budget, searched in the order A B B A: medians, and by how much our best accuracies exceed the peer's."""

    ours_s: float
    peer_s: float
    gaps: tuple[float, ...]


def _duel(evolution: ConstrainedEvolution, peer: Peer, budget_ms: float, generations: int, say: Say) -> Duel:
    def ours(seed: int) -> tuple[float, float]:
        started = time.perf_counter()
        result = evolution.run([budget_ms], seed=seed)
        return time.perf_counter() - started, float(result.scores[0])

    def theirs(seed: int) -> tuple[float, float]:
        answer = peer.ask("search", budget_ms=budget_ms, population=POPULATION, generations=generations, seed=seed)
        return answer["seconds"], answer["accuracy"]

    turns = {(side, seed): turn(seed) for side, turn, seed in
             (("ours", ours, 0), ("peer", theirs, 0), ("peer", theirs, 1), ("ours", ours, 1))}  # fmt: skip
    seconds = {side: statistics.median(turns[side, seed][0] for seed in (0, 1)) for side in ("ours", "peer")}
    gaps = tuple(turns["ours", seed][1] - turns["peer", seed][1] for seed in (0, 1))
    say(f"{budget_ms:.1f} ms: ours {seconds['ours']:.2f} s, ofa {seconds['peer']:.2f} s, accuracy {gaps[0]:+.4f}")
    return Duel(seconds["ours"], seconds["peer"], gaps)


def _budgets(predictors: Predictors, latency: BlockTable) -> Floats:
    """Twenty budgets in ms, from the 5th to the 95th percentile of random networks, evenly."""
    latencies = latency(predictors.space.sample(np.random.default_rng(2), 2000))
    low, high = np.percentile(latencies, (5, 95))
    return np.linspace(low, high, N_BUDGETS)


def _compiled(
    predictors: Predictors, latency: BlockTable, budgets: Floats, generations: int
) -> tuple[ConstrainedEvolution, float]:
    """An evolution that has run for as many budgets before, and what the compilation took, in seconds."""
    evolution = ConstrainedEvolution(
        predictors.space, predictors.accuracy, latency, population=POPULATION, generations=generations, backend="jax"
    )
    started = time.perf_counter()
    evolution.run(budgets)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    evolution.run(budgets)
    return evolution, max(0.0, first_s - (time.perf_counter() - started))


def _interleaved(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of each, in the order A B B A, twice."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for side in (0, 1, 1, 0) * 2:
        started = time.perf_counter()
        (first, second)[side]()
        seconds[side].append(time.perf_counter() - started)
    return seconds


def _row(metric: str, values: Sequence[float], unit: str, summary: Callable[[Any], float] = statistics.median) -> Row:
    spread = float(np.std(values)) if len(values) > 1 else None
    return Row(metric, None, float(summary(values)), spread, None, len(values), unit)
