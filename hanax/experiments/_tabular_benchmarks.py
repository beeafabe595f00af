"""Search problems whose answers are known: every network was evaluated, or enough of them to predict the others well.

`TabularBenchmark` looks costs up and knows its true front. `SurrogateBenchmark` predicts costs with a stated error, for
spaces of which only a sample was evaluated. Both give a `Problem` for any searcher. Their numbers are those of public
files, read by `hanax.devices.public`.

Shapes: `n` networks, `d` decisions, `m` objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanax.devices.public import PublicTable, find_source, import_source
from hanax.experiments._surrogate_costs import CostModel, SurrogateCosts, SurrogateError
from hanax.search_spaces import (
    SearchSpace,
    accel_nas_bench,
    accel_nas_bench_codes,
    graph_features,
    mobilenet_v3,
    nas_bench_201,
    nas_bench_201_codes,
    nas_bench_macro,
    nas_bench_macro_codes,
    unique_rows,
)
from hanax.searchers import Costs, Objective, Problem, hypervolume, non_dominated

Codes = NDArray[np.int32]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

ACCURACY = Objective("accuracy", "maximise", "%")
LATENCY = Objective("latency_ms", "minimise", "ms")
MACS = Objective("macs", "minimise", "MACs")
THROUGHPUT = Objective("throughput_images_per_s", "maximise", "images/s")

NB201_WORST_ACCURACY = 40.0
MACRO_WORST_ACCURACY = 85.0
ANB_WORST_ACCURACY = 50.0
OFA_REFERENCE = {"accuracy": 70.0, "macs": 600e6}
"""As in the evaluations that DyNAS-T's traces are known for."""

SETTINGS_OF_A_BLOCK = 4
"""Decisions per block of `accel_nas_bench`."""

LATENCY_DECIMALS = 6
"""Of published latencies in ms: equal sums differ in the last bit there, which would make ties dominate each other."""


@dataclass(frozen=True, eq=False)
class TabularBenchmark:
    """A space of which every network was evaluated.

    Attributes:
        name: For people.
        codes: Canonical, shape (n, d), each network of the space once.
        costs: Each of shape (n,); those that are objectives are in the units that these state.
        reference: For each objective the worst cost of interest: what is worse adds nothing to a hypervolume.

    Raises:
        ValueError: Codes that are not those of the space, a cost of another length or that is not finite, or a
            reference for something else than the objectives.
    """

    name: str
    space: SearchSpace
    codes: Codes
    costs: Mapping[str, Floats]
    objectives: tuple[Objective, ...]
    reference: Mapping[str, float]

    def __post_init__(self) -> None:
        _check(self.name, self.space, self.codes, self.costs, self.objectives, self.reference)
        if len(self.codes) != self.space.size:
            raise ValueError(f"{self.name}: {self.space.name} has {self.space.size} networks; got {len(self.codes)}")

    def problem(self) -> Problem:
        """The search for the front, with costs from the table."""
        return Problem(self.space, self.objectives, (), self.evaluate)

    def evaluate(self, codes: Codes) -> Costs:
        """The costs of canonical `codes`, shape (n, d)."""
        rows = self.rows(codes)
        return {name: values[rows] for name, values in self.costs.items()}

    def rows(self, codes: Codes) -> Indices:
        """Where the networks of canonical `codes`, shape (n, d), are in the table.

        Raises:
            ValueError: `codes` are not of the space.
        """
        self.space.check(codes)
        keys = np.ascontiguousarray(codes, dtype=np.int32)
        return np.array([self._row_of[row.tobytes()] for row in keys], dtype=np.int64)

    @cached_property
    def losses(self) -> Floats:
        """The objectives of every network, all to be minimised, shape (n, m)."""
        return self.problem().losses(self.costs)

    @cached_property
    def reference_losses(self) -> Floats:
        """The reference point, shape (m,)."""
        return _reference_losses(self.objectives, self.reference)

    @cached_property
    def true_front(self) -> Indices:
        """Rows of the networks better than the reference that no other one dominates, by the first objective."""
        within = np.flatnonzero((self.losses < self.reference_losses).all(axis=1))
        front = within[non_dominated(self.losses[within])]
        return front[np.argsort(self.losses[front, 0], kind="stable")]

    @cached_property
    def true_hypervolume(self) -> float:
        """What the true front dominates up to the reference, in the product of the objectives' units."""
        return hypervolume(self.losses[self.true_front], self.reference_losses)

    def losses_of(self, codes: Codes) -> Floats:
        """The objectives of canonical `codes`, all to be minimised, shape (n, m)."""
        return self.losses[self.rows(codes)]

    @cached_property
    def _row_of(self) -> dict[bytes, int]:
        codes = np.ascontiguousarray(self.codes, dtype=np.int32)
        return {row.tobytes(): index for index, row in enumerate(codes)}


@dataclass(frozen=True, eq=False)
class SurrogateBenchmark:
    """A space of which a sample was evaluated, and a model of the costs of all others.

    The model answers for the networks of the sample, too, so that all are measured with one ruler.

    Attributes:
        codes: Those of the sample, canonical, shape (n, d), each network once.
        recorded: Their costs as published, each of shape (n,).
        model: What gives the costs of any network.
        reference: For each objective the worst cost of interest: what is worse adds nothing to a hypervolume.

    Raises:
        ValueError: Codes that are not of the space or repeated, a cost of another length or that is not finite, or a
            reference for something else than the objectives.
    """

    name: str
    space: SearchSpace
    codes: Codes
    recorded: Mapping[str, Floats]
    model: SurrogateCosts
    objectives: tuple[Objective, ...]
    reference: Mapping[str, float]

    def __post_init__(self) -> None:
        _check(self.name, self.space, self.codes, self.recorded, self.objectives, self.reference)

    def error(self, cost: str) -> SurrogateError:
        """How far the model is off, by cross-validation.

        Raises:
            ValueError: `cost` is computed exactly, or not there.
        """
        return self.model.error(cost)

    def problem(self) -> Problem:
        """The search for the front, with costs from the model."""
        return Problem(self.space, self.objectives, (), self.model)

    @cached_property
    def reference_losses(self) -> Floats:
        """The reference point, shape (m,)."""
        return _reference_losses(self.objectives, self.reference)

    def losses_of(self, codes: Codes) -> Floats:
        """The objectives of canonical `codes`, all to be minimised, shape (n, m)."""
        problem = self.problem()
        return problem.losses(problem.costs(codes))


def nb201_benchmark(folder: Path, device: str) -> TabularBenchmark:
    """NAS-Bench-201: CIFAR-100 accuracy after 200 epochs x latency on a `device` of HELP.

    The reference is the largest latency of the device and 40 % accuracy.

    Args:
        folder: Where the public files are, ``help`` and ``nas-bench-201`` in it.

    Raises:
        PublicDataError: Files are not there or not as published.
        ValueError: HELP has no such device; names those it has.
    """
    return nb201_benchmarks(folder, (device,))[0]


def nb201_benchmarks(folder: Path, devices: tuple[str, ...]) -> list[TabularBenchmark]:
    """`nb201_benchmark` of several devices, with the files read once."""
    accuracy = _tables(folder, "nas-bench-201")["nas_bench_201_accuracy"]
    latency = _tables(folder, "help")["help_nasbench201_latency"].frame.pivot(
        index="index", columns="device", values="latency_ms"
    )
    if unknown := [device for device in devices if device not in latency]:
        raise ValueError(f"HELP has no device {unknown[0]!r} for NAS-Bench-201; it has {', '.join(latency.columns)}")
    space, codes = nas_bench_201(), nas_bench_201_codes(accuracy.codes())
    percent = accuracy.frame["cifar100_accuracy"].to_numpy(dtype=np.float64)
    macs = accuracy.frame["macs"].to_numpy(dtype=np.float64)
    benchmarks = []
    for device in devices:
        latency_ms = latency[device].to_numpy(dtype=np.float64).round(LATENCY_DECIMALS)
        benchmarks.append(
            TabularBenchmark(
                f"nb201 x {device}",
                space,
                codes,
                {"accuracy": percent, "latency_ms": latency_ms, "macs": macs},
                (ACCURACY, LATENCY),
                {"accuracy": NB201_WORST_ACCURACY, "latency_ms": float(latency_ms.max())},
            )
        )
    return benchmarks


def nas_bench_macro_benchmark(folder: Path) -> TabularBenchmark:
    """NAS-Bench-Macro: CIFAR-10 accuracy, mean of three trainings, x MACs; ``params`` is among the costs.

    The reference is the largest network's MACs and 85 % accuracy.

    Raises:
        PublicDataError: Files are not there or not as published.
    """
    table = _tables(folder, "nas-bench-macro")["nas_bench_macro"]
    costs = {name: table.frame[name].to_numpy(dtype=np.float64) for name in ("accuracy", "macs", "params")}
    return TabularBenchmark(
        "nas-bench-macro",
        nas_bench_macro(),
        nas_bench_macro_codes(table.codes()),
        costs,
        (ACCURACY, MACS),
        {"accuracy": MACRO_WORST_ACCURACY, "macs": float(costs["macs"].max())},
    )


def ofa_benchmark(folder: Path) -> SurrogateBenchmark:
    """The Once-for-All supernet of width 1.0 at 224 px, ImageNet accuracy x MACs, after DyNAS-T's search traces.

    Accuracy is learnt from all subnets of the traces: kernel ridge regression on the options and the logarithms of MACs
    and parameters up to second order, on top of ridge regression on the same. MACs are those of the space's graph.
    What no trace came near is extrapolated. The reference is that of `OFA_REFERENCE`.

    Raises:
        PublicDataError: Files are not there or not as published.
    """
    from sklearn.kernel_ridge import KernelRidge

    space = mobilenet_v3(resolutions=(224,))
    table = _tables(folder, "dynas-t")["dynas_t"].for_space(space)
    codes, recorded = _different(table.codes(), {"accuracy": table.frame["top1"].to_numpy(dtype=np.float64)})

    description = _OfaDescription(space, np.zeros(2), np.ones(2))
    logs = np.log(description.sizes(codes))
    description = _OfaDescription(space, logs.mean(axis=0), logs.std(axis=0))
    model = SurrogateCosts(
        description, {"accuracy": CostModel(KernelRidge(alpha=0.01, kernel="rbf", gamma=0.01))}, codes, recorded
    )
    recorded = {**recorded, **description(codes)[0]}
    return SurrogateBenchmark("ofa x macs", space, codes, recorded, model, (ACCURACY, MACS), OFA_REFERENCE)


@dataclass(frozen=True, eq=False)
class _OfaDescription:
    """MACs of subnets; their options, and logarithms of MACs and parameters up to second order.

    Attributes:
        mean: Of the logarithms over the subnets that were evaluated, shape (2,).
        scale: Their standard deviations.
    """

    space: SearchSpace
    mean: Floats
    scale: Floats

    def __call__(self, codes: Codes) -> tuple[Costs, Floats]:
        sizes = self.sizes(codes)
        logs = (np.log(sizes) - self.mean) / self.scale
        features = np.column_stack([self.space.one_hot(codes), logs, logs**2, logs[:, 0] * logs[:, 1]])
        return {"macs": sizes[:, 0]}, features

    def sizes(self, codes: Codes) -> Floats:
        """MACs and parameters, shape (n, 2)."""
        names, sums = graph_features(self.space, codes)
        return np.asarray(sums[:, [names.index("macs"), names.index("params")]])


def ofa_traces(folder: Path) -> dict[str, tuple[Codes, Floats]]:
    """DyNAS-T's searches, by name: codes of the subnets in the order of evaluation, and their recorded losses.

    The losses are those of `ofa_benchmark`; a search may evaluate a subnet more than once.

    Raises:
        PublicDataError: Files are not there or not as published.
    """
    table = _tables(folder, "dynas-t")["dynas_t"].for_space(mobilenet_v3(resolutions=(224,)))
    codes, frame = table.codes(), table.frame
    losses = np.column_stack([-frame["top1"].to_numpy(dtype=np.float64), frame["macs"].to_numpy(dtype=np.float64)])
    return {
        str(search): (codes[frame["search"] == search], losses[frame["search"] == search])
        for search in frame["search"].unique()
    }


def accel_nas_bench_benchmark(folder: Path, device: str) -> SurrogateBenchmark:
    """Accel-NASBench: ImageNet accuracy after its short training x latency (FPGA boards) or throughput of `device`.

    Of 10^11 networks 5,125 were evaluated, at random, which no searcher would propose by itself; so both costs are
    learnt, as its authors do: ridge regression on the joint options of each block and products of all pairs of
    decisions, plus, for the accuracy, gradient boosting of what that leaves over. The reference is 50 % accuracy and
    the worst that was measured on the device.

    Raises:
        PublicDataError: Files are not there or not as published.
        ValueError: There is no such device; names those there are.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    tables = _tables(folder, "accel-nas-bench")
    archs, performance = tables["accel_nas_bench_archs"], tables["accel_nas_bench_performance"].frame
    of_device = performance[performance["device"] == device].set_index("record").loc[archs.frame["record"]]
    if of_device.empty:
        known = ", ".join(performance["device"].unique())
        raise ValueError(f"Accel-NASBench has no device {device!r}; it has {known}")
    cost = THROUGHPUT if of_device["latency_ms"].isna().all() else LATENCY
    values = of_device[cost.name].to_numpy(dtype=np.float64)
    measured = np.isfinite(values)
    space = accel_nas_bench()
    codes, recorded = _different(
        accel_nas_bench_codes(archs.codes())[measured],
        {"accuracy": archs.frame["top1"].to_numpy(dtype=np.float64)[measured], cost.name: values[measured]},
    )
    boosting = HistGradientBoostingRegressor(max_iter=400, learning_rate=0.05, max_leaf_nodes=8, random_state=0)
    models = {
        "accuracy": CostModel(boosting, rest_from=1 - len(space.decisions)),
        cost.name: CostModel(log=True),
    }
    worst = float(max(cost.sign * recorded[cost.name]) * cost.sign)
    return SurrogateBenchmark(
        f"accel-nas-bench x {device}",
        space,
        codes,
        recorded,
        SurrogateCosts(_describe_accel_nas_bench, models, codes, recorded),
        (ACCURACY, cost),
        {"accuracy": ANB_WORST_ACCURACY, cost.name: worst},
    )


def _describe_accel_nas_bench(codes: Codes) -> tuple[Costs, Floats]:
    """No costs; joint options of each block as columns of 0 and 1, products of pairs of decisions, the decisions."""
    space = accel_nas_bench()
    choices, counts = codes[:, 1:], space.option_counts[1:]
    columns = []
    for start in range(0, len(counts), SETTINGS_OF_A_BLOCK):
        block = slice(start, start + SETTINGS_OF_A_BLOCK)
        joint = np.ravel_multi_index(tuple(choices[:, block].T), tuple(counts[block]))
        columns.append(joint[:, None] == np.arange(np.prod(counts[block])))
    centred = choices / (counts - 1) * 2 - 1
    first, second = np.triu_indices(len(counts))
    return {}, np.column_stack([*columns, centred[:, first] * centred[:, second], centred])


def _different(codes: Codes, costs: Mapping[str, Floats]) -> tuple[Codes, dict[str, Floats]]:
    """Each network of `codes` once, in their order, with the mean of its costs."""
    first = unique_rows(codes)
    _, group = np.unique(codes, axis=0, return_inverse=True)
    sizes = np.bincount(group)
    means = {name: (np.bincount(group, values) / sizes)[group[first]] for name, values in costs.items()}
    return codes[first], means


def _tables(folder: Path, source: str) -> dict[str, PublicTable]:
    """The tables of a public source, by name, from its folder in `folder`."""
    return {table.name: table for table in import_source(find_source(source), folder / source).tables}


def _check(
    name: str,
    space: SearchSpace,
    codes: Codes,
    costs: Mapping[str, Floats],
    objectives: tuple[Objective, ...],
    reference: Mapping[str, float],
) -> None:
    """Refuse what is no table of networks of `space`."""
    if not np.array_equal(space.canonical(codes), codes):
        raise ValueError(f"{name}: the codes must be canonical codes of {space.name}")
    if (n_different := len(np.unique(codes, axis=0))) != len(codes):
        raise ValueError(f"{name}: {len(codes)} codes name {n_different} different networks")
    names = [objective.name for objective in objectives]
    if sorted(reference) != sorted(names):
        raise ValueError(f"{name}: the reference must name the objectives {', '.join(names)}; got {dict(reference)}")
    Problem(space, objectives, (), lambda _: costs).costs(codes)
    if odd := [cost for cost, values in costs.items() if values.shape != (len(codes),)]:
        raise ValueError(f"{name}: {odd[0]} must have shape ({len(codes)},); got {costs[odd[0]].shape}")


def _reference_losses(objectives: tuple[Objective, ...], reference: Mapping[str, float]) -> Floats:
    return np.array([objective.sign * reference[objective.name] for objective in objectives])
