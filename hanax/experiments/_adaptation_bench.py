"""The device that a predictor is for, at hand: what it is, and the measurements that a plan asks of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hanax.devices import (
    Agent,
    CostTable,
    DeviceSpec,
    LatencyTable,
    Ledger,
    LoadWatch,
    Method,
    Purpose,
    collect_instructions,
    collect_latency,
    identify,
    open_table,
)
from hanax.experiments._adaptation_plan import Plan
from hanax.experiments._progress import Reporter
from hanax.experiments._sources import costs_of_table
from hanax.search_spaces import Arch, SearchSpace

TABLE_FILE = "table.parquet"

BATCH_SIZE = 100
"""Networks that are measured in turn, to learn from and to judge by together: a machine that changes its speed then
does so for all of them. A crash loses as many."""


@dataclass(frozen=True)
class Bench:
    """A device to measure, and the folder that keeps what it says.

    Attributes:
        build_model: The model file of an architecture.
        watch: Waits for a quiet machine; None waits for nothing.
    """

    space: SearchSpace
    spec: DeviceSpec
    folder: Path
    start_agent: Callable[[DeviceSpec], Agent]
    build_model: Callable[[Arch], bytes]
    method: Method
    watch: LoadWatch | None
    reporter: Reporter

    @property
    def table_path(self) -> Path:
        """Where the measurements are."""
        return self.folder / TABLE_FILE

    def fingerprint(self) -> str:
        """Of the device, asked of its agent.

        Raises:
            AgentError: The device failed.
        """
        with self.start_agent(self.spec) as agent:
            return identify(agent).fingerprint

    def measure(self, plan: Plan) -> LatencyTable | CostTable:
        """The table with all networks of `plan`, measuring those that it lacks, and noting in the ledger what for."""
        ledger = Ledger(self.table_path.with_suffix(".ledger.jsonl"))
        if self.spec.kind == "counted":
            table = self._count(plan.samples, "table", ledger)
            return self._count(plan.held_out, "held-out", ledger) if plan.held_out else table
        purposes: dict[Arch, Purpose] = dict.fromkeys(plan.held_out, "held-out")
        purposes |= dict.fromkeys(plan.samples, "table")
        return collect_latency(
            self.space, list(purposes), self.spec, self.build_model, self.table_path, ledger,
            purpose=purposes, method=self.method, batch_size=BATCH_SIZE,
            start_agent=self.start_agent, on_progress=self.reporter.bar("networks measured"), watch=self.watch,
        )  # fmt: skip

    def _count(self, archs: tuple[Arch, ...], purpose: Purpose, ledger: Ledger) -> CostTable:
        label = "networks to learn from counted" if purpose == "table" else "networks to judge by counted"
        return collect_instructions(
            self.space, archs, self.spec, self.build_model, self.table_path, ledger,
            purpose=purpose, start_agent=self.start_agent, on_progress=self.reporter.bar(label),
        )  # fmt: skip


def asked_of_device(table_path: Path, table: LatencyTable | CostTable, plan: Plan) -> tuple[int, int]:
    """How many measurements were asked for, of the networks to learn from and of the others in `table`.

    From the ledger beside the table; without one, from the passes in the table.
    """
    planned = {str(arch) for arch in plan.samples}
    ledger = Ledger(table_path.with_suffix(".ledger.jsonl"))
    if ledger.path.exists():
        asked = [entry["arch"] for entry in ledger.entries() if entry["purpose"] != "winner"]
    elif isinstance(table, LatencyTable):
        rows = table.frame[table.frame["purpose"] != "winner"]
        asked = [arch for arch, of in zip(rows["arch"], rows["pass_latency_ms"], strict=True) for _ in of]
    else:
        asked = table.frame["arch"].to_list()
    to_learn_from = sum(arch in planned for arch in asked)
    return to_learn_from, len(asked) - to_learn_from


def measured_so_far(folder: Path, space: SearchSpace) -> dict[Arch, float]:
    """Costs in the table of `folder`; none if there is no table yet."""
    path = folder / TABLE_FILE
    return costs_of_table(open_table(path).for_space(space), space) if path.exists() else {}
