"""A predictor of what networks cost on a new device, from a handful of measurements and what is known of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hanax._files import write_atomically
from hanax.experiments._adaptation_bench import TABLE_FILE, Bench, asked_of_device
from hanax.experiments._adaptation_card import AdaptationCard
from hanax.experiments._adaptation_plan import (
    Plan,
    PlanError,
    candidates,
    extend_held_out,
    make_plan,
    plan_of_measured,
)
from hanax.experiments._export import latency_model_builder
from hanax.experiments._fitting import COVERAGE
from hanax.experiments._progress import Reporter, Silent
from hanax.experiments._sources import Sources, cost_name, costs_of_table, sources_of_atlas, sources_of_tables
from hanax.predictors import (
    BestSourcePredictor,
    Predictor,
    PredictorCard,
    TransferPredictor,
    compare_with_measured,
    latency_features,
    make_card,
    save_predictor,
)
from hanax.search_spaces import Arch, SearchSpace

if TYPE_CHECKING:
    from hanax.devices import Agent, CostTable, DeviceSpec, LatencyTable, LoadWatch, Method

LEAST_SAMPLES = 5
"""With fewer, leaving one out leaves too few to learn from."""

N_PROPOSED = 5
"""Networks that are named as worth measuring next."""

N_JUDGED = 400
"""Random networks over which further measurements should help."""

PLAN_FILE, PREDICTOR_FILE, CARD_FILE = "plan.json", "predictor.npz", "card.json"


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` made.

    Attributes:
        predictor: Takes `hanax.predictors.latency_features` of the space.
        card: What it is worth.
        path: The folder with ``predictor.npz``, ``card.json``, ``plan.json`` and, if the device was measured from here,
            ``table.parquet`` and its ledger.
    """

    predictor: Predictor
    card: AdaptationCard
    path: Path


def adapt(
    device: str,
    *,
    out: str | Path,
    samples: int = 10,
    held_out: int = 30,
    space: SearchSpace | None = None,
    pool: Sequence[str | Path] = (),
    place: str | None = None,
    threads: int = 1,
    batch: int = 1,
    keep_same_name: bool = False,
    seed: int = 0,
    method: Method | None = None,
    watch: LoadWatch | None = None,
    start_agent: Callable[[DeviceSpec], Agent] | None = None,
    build_model: Callable[[Arch], bytes] | None = None,
    reporter: Reporter | None = None,
) -> Adaptation:
    """Learn what networks cost on `device` from `samples` measurements and from costs on other devices.

    Which networks are measured is decided without measuring. Call it again with the same arguments to go on after an
    interruption, or with more `samples` to add those that help most. A source device that is the device itself, by
    fingerprint or by name, is not learned from.

    Args:
        device: Its name; see `hanax.devices.DEVICES`.
        out: The folder for what is made.
        held_out: Random other networks to measure as well, to judge by; they are not learned from.
        space: By default that of the atlas.
        pool: Tables of other devices for networks of `space`; by default the atlas that comes with Hanax.
        place: Where the device is, if not here; see `hanax.devices.find_place`.
        threads, batch: As in `DeviceSpec`.
        keep_same_name: Learn from a source of the same name all the same if its fingerprint is another: the same
            runtime on another machine.
        seed: Of the random networks to choose among, and of weights and inputs.
        method: How to measure.
        watch: Waits for a quiet machine; by default nothing is waited for.
        start_agent: Makes the agent; by default at `place`.
        build_model: Makes the model files; by default with random weights.
        reporter: Shows progress; nothing by default.

    Raises:
        UnknownDeviceError: No device has this name.
        PlanError: `out` has the plan of something else, or the space is too small.
        SpaceMismatchError: A table is of another space.
        TableError, AgentError, BusyMachineError: As `collect_latency` raises them; what was measured is kept.
        ValueError: The atlas has no costs of `space`, no source device is left, or a number is too small.
    """
    from hanax.devices import Method as DefaultMethod
    from hanax.devices import start_agent_at
    from hanax.experiments._config import DeviceConfig

    _check_numbers(samples, held_out)
    folder = Path(out)
    sources = find_sources(space, pool)
    config = DeviceConfig(name=device, place=place, threads=threads, batch=batch)
    spec = config.spec()
    bench = Bench(
        sources.space,
        spec,
        folder,
        start_agent or start_agent_at(config.find_place()),
        build_model or latency_model_builder(sources.space, spec.model_format, spec.batch, seed),
        method or DefaultMethod(),
        watch,
        reporter or Silent(),
    )
    known, left_out = leave_out_itself(sources, spec.name, bench.fingerprint(), keep_same_name)
    plan = open_plan(folder, spec.name, known, samples, held_out, seed)
    if len(plan.samples) < samples:
        plan = add_samples(plan, samples, known, costs_of_table(bench.measure(plan), known.space))
    plan = extend_held_out(plan, known.space, held_out)
    plan.write(folder / PLAN_FILE)
    return conclude(folder, spec.name, known, left_out, plan, bench.measure(plan), bench.table_path)


def adapt_from_table(
    device: str,
    table: str | Path,
    *,
    out: str | Path,
    samples: int = 10,
    space: SearchSpace | None = None,
    pool: Sequence[str | Path] = (),
    keep_same_name: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Adaptation:
    """As `adapt`, from measurements that exist: a latency or cost table of the device.

    If `out` has a plan, as after `bundle_for_adapting`, the table's networks are learned from or judged by as planned,
    and those that it does not know are judged by. Without one, `samples` of them are chosen, by their features alone,
    to learn from, and all others are judged by.

    Args:
        device: What to call it.

    Raises:
        ValueError: As `adapt`, or the table has fewer than `LEAST_SAMPLES` networks to learn from.
        FileNotFoundError, TableError, SpaceMismatchError, PlanError: Of the tables and the plan.
    """
    from hanax.devices import open_table

    _check_numbers(samples, 0)
    folder = Path(out)
    sources = find_sources(space, pool)
    stored = open_table(table).for_space(sources.space)
    costs = costs_of_table(stored, sources.space)
    known, left_out = leave_out_itself(sources, device, stored.device_fingerprint, keep_same_name)
    if (folder / PLAN_FILE).exists():
        plan = Plan.read(folder / PLAN_FILE, device, known.space)
    else:
        plan = plan_of_measured(device, known.space, known.pool, list(costs), samples, seed)
        plan.write(folder / PLAN_FILE)
    if missing := [str(arch) for arch in plan.samples if arch not in costs]:
        (reporter or Silent()).say(
            f"{table} has no measurement of {len(missing)} of the {len(plan.samples)} networks to learn from: "
            f"{', '.join(missing)}"
        )
    return conclude(folder, device, known, left_out, plan, stored, Path(table))


def bundle_for_adapting(
    device: str,
    bundle: str | Path,
    *,
    out: str | Path,
    samples: int = 10,
    held_out: int = 30,
    space: SearchSpace | None = None,
    pool: Sequence[str | Path] = (),
    threads: int = 1,
    batch: int = 1,
    keep_same_name: bool = False,
    seed: int = 0,
    method: Method | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """Plan as `adapt` does, and write a zip with which a machine without network measures what the plan asks for.

    What comes back is imported into ``table.parquet`` of `out`, and `adapt_from_table` goes on from there. Networks
    that are in that table already are not asked for again.

    Raises:
        ValueError: As `adapt` and `write_bundle`; or nothing is left to measure.
    """
    from hanax.devices import Method as DefaultMethod
    from hanax.devices import write_bundle
    from hanax.experiments._adaptation_bench import measured_so_far
    from hanax.experiments._config import DeviceConfig

    _check_numbers(samples, held_out)
    folder = Path(out)
    sources = find_sources(space, pool)
    spec = DeviceConfig(name=device, threads=threads, batch=batch).spec()
    known, _ = leave_out_itself(sources, spec.name, "", keep_same_name)
    plan = open_plan(folder, spec.name, known, samples, held_out, seed)
    measured = measured_so_far(folder, known.space)
    if len(plan.samples) < samples:
        plan = add_samples(plan, samples, known, measured)
    plan = extend_held_out(plan, known.space, held_out)
    plan.write(folder / PLAN_FILE)
    archs = [arch for arch in (*plan.samples, *plan.held_out) if arch not in measured]
    if not archs:
        raise ValueError(f"all networks that {folder / PLAN_FILE} asks for are in {folder / TABLE_FILE} already")
    build = latency_model_builder(known.space, spec.model_format, spec.batch, seed)
    write_bundle(
        bundle,
        known.space,
        archs,
        [spec],
        lambda _, arch: build(arch),
        seed=seed,
        method=method or DefaultMethod(),
        on_progress=(reporter or Silent()).bar("models built"),
    )
    return plan


def find_sources(space: SearchSpace | None, pool: Sequence[str | Path]) -> Sources:
    """The costs of tables, or of the atlas if there are none.

    Raises:
        ValueError: There are no tables, and `space` is not that of the atlas.
    """
    if pool and space is not None:
        return sources_of_tables(pool, space)
    atlas = sources_of_atlas()
    if pool:
        return sources_of_tables(pool, atlas.space)
    if space is not None and space.fingerprint != atlas.space.fingerprint:
        raise ValueError(
            f"the atlas has costs of networks of {atlas.space.name} with fingerprint {atlas.space.fingerprint}; this "
            f"is {space.name} with fingerprint {space.fingerprint}. Give tables of other devices for it (--pool; "
            "`hanax collect latency` makes them)"
        )
    return atlas


def leave_out_itself(
    sources: Sources, name: str, fingerprint: str, keep_same_name: bool
) -> tuple[Sources, tuple[str, ...]]:
    """`sources` without the device itself, and the names of those that were left out.

    Raises:
        ValueError: None is left.
    """
    own = tuple(
        source.name
        for source in sources.devices
        if source.fingerprint == fingerprint or (source.name == name and not keep_same_name)
    )
    if len(own) == len(sources.devices):
        raise ValueError(
            f"{sources.origin} has no device but {', '.join(own)}, which is {name} itself or called the same; give "
            "tables of other devices (--pool)"
        )
    return sources.without(own), own


def open_plan(folder: Path, device: str, sources: Sources, samples: int, held_out: int, seed: int) -> Plan:
    """The plan in `folder`, which may have fewer networks than `samples` and `held_out`; or a new one.

    Raises:
        PlanError: It is for something else, or has more than is asked for.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        plan = make_plan(device, sources.space, sources.pool, samples, held_out, seed)
    else:
        plan = Plan.read(path, device, sources.space)
        if seed != plan.seed or samples < len(plan.samples) or held_out < len(plan.held_out):
            raise PlanError(
                f"{path} has {len(plan.samples)} networks to learn from, {len(plan.held_out)} to judge by and seed "
                f"{plan.seed}. More can be asked for, but not {samples}, {held_out} and seed {seed}: choose another "
                "folder"
            )
    plan.write(path)
    return plan


def add_samples(plan: Plan, samples: int, sources: Sources, costs: dict[Arch, float]) -> Plan:
    """`plan` with `samples` networks to learn from: those that help most are added, given the `costs` so far.

    Raises:
        PlanError: The space has not so many networks, or too few of those planned before were measured.
    """
    known = [arch for arch in plan.samples if arch in costs]
    if len(known) < LEAST_SAMPLES:
        raise PlanError(
            f"which networks to add depends on those planned before, of which {len(known)} are measured; at least "
            f"{LEAST_SAMPLES} are needed"
        )
    missing = samples - len(plan.samples)
    learned = TransferPredictor(sources.pool).fit(_features(sources.space, known), [costs[arch] for arch in known])
    added, _ = propose(learned, sources.space, plan, missing)
    if len(added) < missing:
        raise PlanError(
            f"there are {len(added)} more networks to learn from in {sources.space.name}; {missing} were asked for"
        )
    return plan.with_samples(added)


def propose(predictor: TransferPredictor, space: SearchSpace, plan: Plan, n: int) -> tuple[list[Arch], float]:
    """Up to `n` networks that would help most if they were measured next, and how wide intervals are then, as a share.

    Networks of `plan` are not among them; there are fewer than `n` where the space has no more.
    """
    taken = {*plan.samples, *plan.held_out}
    others = [arch for arch in candidates(space, plan.seed) if arch not in taken][: max(N_JUDGED, n)]
    if not others:
        return [], 1.0
    chosen, deviations = predictor.next_measurements(_features(space, others), min(n, len(others)))
    return [others[index] for index in chosen], float(deviations[-1] / deviations[0])


def conclude(
    folder: Path,
    device: str,
    sources: Sources,
    left_out: tuple[str, ...],
    plan: Plan,
    table: LatencyTable | CostTable,
    table_path: Path,
) -> Adaptation:
    """Learn from what was measured, judge it, and write predictor and card to `folder`.

    Raises:
        ValueError: Fewer than `LEAST_SAMPLES` of the networks to learn from were measured.
    """
    space, pool, costs = sources.space, sources.pool, costs_of_table(table, sources.space)
    samples = [arch for arch in plan.samples if arch in costs]
    held_out = [arch for arch in costs if arch not in plan.samples]
    if len(samples) < LEAST_SAMPLES:
        raise ValueError(f"{table_path} has {len(samples)} networks to learn from; at least {LEAST_SAMPLES} are needed")
    (X, y), (X_new, y_new) = (
        (_features(space, archs), np.array([costs[arch] for arch in archs])) for archs in (samples, held_out)
    )
    predictor, most_alike = TransferPredictor(pool).fit(X, y), BestSourcePredictor(pool).fit(X, y)
    ways: dict[str, Any] = {
        "this predictor": predictor,
        "the most alike device alone": most_alike,
        "no other devices": TransferPredictor(groups=pool.groups).fit(X, y),
    }
    unit = cost_name(table).rpartition("_")[2]
    proposals, width_after = propose(predictor, space, plan, N_PROPOSED)
    asked_samples, asked_held_out = asked_of_device(table_path, table, plan)
    card = AdaptationCard(
        device=device,
        identity=table.device_description,
        device_fingerprint=table.device_fingerprint,
        cost=cost_name(table),
        unit=unit,
        space=space.name,
        space_fingerprint=space.fingerprint,
        origin=sources.origin,
        sources=pool.devices,
        n_source_archs=len(sources.archs),
        left_out=left_out,
        most_alike=pool.devices[most_alike.source_],
        pool_fingerprint=pool.fingerprint,
        predictor=type(predictor).__name__,
        coverage=COVERAGE,
        samples=tuple(map(str, samples)),
        held_out=tuple(map(str, held_out)),
        on_held_out=_judge(ways, X_new, y_new, unit),
        leave_one_out={
            way: make_card(each, X, y, unit=unit, coverage=COVERAGE, folds=len(y)) for way, each in ways.items()
        },
        asked_samples=asked_samples,
        asked_held_out=asked_held_out,
        proposals=tuple(map(str, proposals)),
        width_after=width_after,
    )
    save_predictor(folder / PREDICTOR_FILE, predictor, space, card.cost)
    write_atomically(folder / CARD_FILE, json.dumps(card.as_json(), indent=1).encode())
    return Adaptation(predictor, card, folder)


def _judge(ways: Mapping[str, Any], X: Any, costs: Any, unit: str) -> dict[str, PredictorCard]:
    """The figures of fitted predictors on networks that they never saw; none if there are no such networks."""
    return {
        way: compare_with_measured(
            each.predict(X), each.predict_interval(X, COVERAGE), costs, unit=unit, coverage=COVERAGE
        )
        for way, each in (ways.items() if len(costs) else ())
    }


def _features(space: SearchSpace, archs: Sequence[Arch]) -> Any:
    return latency_features(space, space.canonical(space.encode(archs)))


def _check_numbers(samples: int, held_out: int) -> None:
    if samples < LEAST_SAMPLES or held_out < 0:
        raise ValueError(
            f"at least {LEAST_SAMPLES} networks to learn from and 0 to judge by; got {samples} and {held_out}"
        )
