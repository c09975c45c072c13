"""Tile-level simulation, the default fidelity, and what it says of each operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sparsefx.backends.accelerator.engines.base import IntArray
from sparsefx.backends.accelerator.hardware.architecture import Architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.simulation.energy import LEVELS, MacCount, energy_of
from sparsefx.backends.accelerator.simulation.schedule import Schedule, schedule
from sparsefx.backends.accelerator.simulation.tasks import Kind, Task
from sparsefx.backends.accelerator.simulation.work import Traffic
from sparsefx.backends.accelerator.workload.operations import (
    FLOAT_PRODUCT,
    HostOp,
    MatmulOp,
    Workload,
)
from sparsefx.report.svg import plain

__all__ = ["WATERFALL", "OpResult", "Simulation", "simulate"]

WATERFALL: Final = (
    "ideal",
    "imbalance",
    "overheads",
    "fill and drain",
    "DRAM",
    "metadata",
    "vector unit",
    "dependencies",
    "launch and host",
)


@dataclass(frozen=True)
class OpResult:
    """What one operation took. Times are cycles, energies pJ, sizes bytes.

    Attributes:
        start, end: First and last moment at which something of it ran.
        busy: Cycles of work, added up over the cores (or the vector unit's).
        macs: Multiplications; None for what is not a product.
        mapping: The tiles, as text.
        energy: By level; see `sparsefx.backends.accelerator.simulation.energy.LEVELS`.
    """

    name: str
    kind: str
    start: float
    end: float
    busy: float
    macs: MacCount | None
    traffic: Traffic
    energy: Mapping[str, float]
    mapping: str = ""
    heat: IntArray | None = field(default=None, repr=False, compare=False)
    fill: float = 0.0
    engine_cycles: float = 0.0


@dataclass(frozen=True)
class Simulation:
    """The result of simulating a workload on an architecture.

    Attributes:
        cycles: From the first load to the last result.
        waterfall: Cycles by cause, `WATERFALL`; they add up to `cycles`.
        tasks: All tile tasks with their times.
    """

    workload: Workload
    architecture: Architecture
    machine: Machine
    cycles: float
    ops: tuple[OpResult, ...]
    waterfall: Mapping[str, float]
    schedule: Schedule
    notes: tuple[str, ...]

    @property
    def tasks(self) -> list[Task]:
        """The tile tasks in issue order."""
        return self.schedule.graph.tasks

    @property
    def seconds(self) -> float:
        """Time of one run."""
        return self.cycles / self.machine.clock

    @property
    def throughput(self) -> float:
        """Sequences a second."""
        return self.workload.batch / self.seconds

    @property
    def energy(self) -> dict[str, float]:
        """Energy in pJ by level; leakage over the whole run under `idle`."""
        total = {level: sum(op.energy[level] for op in self.ops) for level in LEVELS}
        total["idle"] += self.architecture.energy.leakage.value * self.seconds * 1e12
        return total

    @property
    def dram_bytes(self) -> float:
        """Bytes moved to and from external memory."""
        return sum(op.traffic.total for op in self.ops)

    @property
    def utilisation(self) -> float:
        """Executed multiplications over what the peak would do in the same time; at most 1."""
        executed = sum(op.macs.executed for op in self.ops if op.macs)
        return executed / (self.cycles * self.machine.engine.peak * self.machine.cores)


def simulate(
    workload: Workload, architecture: Architecture, *, like: Simulation | None = None
) -> Simulation:
    """Simulate a workload tile by tile with its real non-zeros.

    Args:
        workload: What to run.
        architecture: What it runs on.
        like: An earlier run; what its engine timed is not timed again if the workload is the same.

    Raises:
        TargetError: When the architecture cannot hold a tile.
    """
    timed = like.machine.timings if like and like.workload is workload else {}
    machine = Machine(architecture, timed)
    planned = schedule(workload, machine)
    cycles = planned.graph.run(machine.dram_latency)
    results = _results(workload, machine, planned)
    notes = _notes(workload, machine, planned)
    waterfall = _waterfall(cycles, machine, planned, results)
    return Simulation(workload, architecture, machine, cycles, results, waterfall, planned, notes)


def _results(workload: Workload, machine: Machine, planned: Schedule) -> tuple[OpResult, ...]:
    spans: dict[int, list[Task]] = {}
    for task in planned.graph.tasks:
        spans.setdefault(task.op, []).append(task)
    found = []
    for index, op in enumerate(workload.ops):
        tasks = spans.get(index, [])
        plan = planned.plans.get(index)
        macs = None
        if isinstance(op, MatmulOp):
            effectual = op.gemm.effectual_macs * op.copies
            macs = MacCount(op.dense_macs, planned.work[index].macs, effectual)
        work = [t for t in tasks if t.kind in ("compute", "vector", "host")]
        result = OpResult(
            name=op.name,
            kind=op.kind,
            start=min((t.start for t in work), default=0.0),
            end=max((t.end for t in tasks), default=0.0),
            busy=sum(t.cycles for t in work),
            macs=macs,
            traffic=planned.traffic[index],
            energy=energy_of(op, machine, planned.traffic[index], plan, macs),
        )
        if plan is not None:
            done = planned.work[index]
            result = replace(
                result,
                mapping=str(plan.mapping),
                heat=done.heat,
                fill=done.fill,
                engine_cycles=done.engine_cycles,
            )
        found.append(result)
    return tuple(found)


def _notes(workload: Workload, machine: Machine, planned: Schedule) -> tuple[str, ...]:
    arch = machine.architecture
    counts = ", ".join(f"{count} {status}" for status, count in sorted(arch.statuses().items()))
    notes = [f"simulated on {arch.name}: {counts} numbers; not a measurement"]
    stored = sum(sum(plan.stored_bytes) for plan in planned.plans.values())
    if planned.resident:
        once = machine.dram_cycles(stored) / machine.clock * 1e3
        notes.append(
            f"all weights ({plain(stored / 1e6, 2)} MB stored) stay on chip; loading them once "
            f"takes {plain(once, 3)} ms and is not counted"
        )
    floats = [op.name for op in workload.ops if op.kind == FLOAT_PRODUCT]
    if floats:
        notes.append(
            f"{len(floats)} products have a float operand and run on the vector unit, not on the "
            f"int8 array: {', '.join(floats)}; quantize-prepare{{requantize='all'}} makes operands "
            "integer"
        )
    host = {op.name: 0.0 for op in workload.ops if isinstance(op, HostOp)}
    for task in planned.graph.tasks:
        if task.kind == "host":
            host[workload.ops[task.op].name] += task.cycles / machine.clock * 1e6
    if host:
        told = ", ".join(f"{name} ({us:,.1f} us)" for name, us in host.items())
        notes.append(f"{len(host)} operations run on the host, over its link: {told}")
    dead = [op.name for op in workload.matmuls if op.nonzero is not None and not op.nonzero.any()]
    if dead:
        notes.append(f"all weights are zero in {', '.join(dead)}")
    return tuple(notes)


_CAUSES: Final[dict[Kind, str]] = {
    "load": "DRAM",
    "store": "DRAM",
    "vector": "vector unit",
    "compute": "dependencies",
    "host": "launch and host",
    "launch": "launch and host",
}


def _book(found: dict[str, float], task: Task, span: tuple[float, float], share: float) -> None:
    """Add a span of a task to its cause; what the task spends on its launch is a launch."""
    begin, end = span
    launch = max(min(end, task.start + task.launch) - begin, 0.0)
    found["launch and host"] += launch * share
    found[_CAUSES[task.kind]] += (end - begin - launch) * share


def _blame(
    found: dict[str, float],
    tasks: list[Task],
    waiting: Task,
    gap: tuple[float, float],
    share: float,
) -> None:
    """Add the gap before a task to the causes: back along the tasks that each was held up by."""
    low, at = gap
    while at > low:
        if waiting.held_by < 0:
            raise AssertionError(f"task {waiting.id} waits for nothing before cycle {at}")
        waiting = tasks[waiting.held_by]
        begin = min(max(waiting.start, low), at)
        _book(found, waiting, (begin, at), share)
        at = begin


def _waterfall(
    cycles: float, machine: Machine, planned: Schedule, results: tuple[OpResult, ...]
) -> dict[str, float]:
    """Share the run's cycles among causes: every core's every cycle has exactly one.

    A busy cycle is ideal work, fill, imbalance or overhead; an idle one belongs to the task that
    ran in it and that the core waited for, at whatever distance.
    """
    cores, tasks = machine.cores, planned.graph.tasks
    found = dict.fromkeys(WATERFALL, 0.0)
    free = dict.fromkeys(range(cores), 0.0)
    busy = 0.0
    for task in tasks:
        if task.kind != "compute" or not isinstance(task.resource, int):
            continue
        if task.start > free[task.resource]:
            _blame(found, tasks, task, (free[task.resource], task.start), 1 / cores)
        free[task.resource] = task.end
        busy += task.cycles / cores
    if tasks:
        last = max(tasks, key=lambda task: task.end)
        for end, count in Counter(free.values()).items():
            low = max(end, min(last.start, cycles))
            _book(found, last, (low, cycles), count / cores)
            _blame(found, tasks, last, (end, low), count / cores)
    peak = machine.engine.peak * cores
    ideal = sum(r.macs.executed for r in results if r.macs) / peak
    fill = sum(r.fill for r in results) / cores
    engine = sum(r.engine_cycles for r in results) / cores
    found["ideal"] = min(ideal, busy)
    found["fill and drain"] = min(fill, max(busy - ideal, 0.0))
    found["imbalance"] = max(min(engine, busy) - found["ideal"] - found["fill and drain"], 0.0)
    found["overheads"] = busy - sum(found[k] for k in ("ideal", "fill and drain", "imbalance"))
    moved = sum(r.traffic.total for r in results)
    share = sum(r.traffic.metadata for r in results) / moved if moved else 0.0
    found["metadata"] = found["DRAM"] * share
    found["DRAM"] -= found["metadata"]
    return found
