"""From operations to tile tasks: loads, compute, vector pieces and stores with their needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from sparsefx.backends.accelerator.engines.base import ceil_div
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.simulation.tasks import TaskGraph
from sparsefx.backends.accelerator.simulation.work import Traffic, Work
from sparsefx.backends.accelerator.tiling.placement import Placement, place
from sparsefx.backends.accelerator.tiling.plan import MatmulPlan
from sparsefx.backends.accelerator.workload.operations import (
    HostOp,
    MatmulOp,
    Op,
    VectorOp,
    Workload,
)
from sparsefx.errors import TargetError

__all__ = ["Schedule", "schedule"]

_MOST_CHUNKS = 16
_VECTOR_PIECES = 16
_TASKS_A_CORE = 8  # few enough to be quick, enough that the last round hardly matters


class Piece(NamedTuple):
    """A share of an operation's independent copies, in 0..1, and the tasks that make it."""

    first: float
    end: float
    tasks: tuple[int, ...]


def _tasks_of(pieces: Iterable[Piece]) -> tuple[int, ...]:
    return tuple(task for piece in pieces for task in piece.tasks)


@dataclass
class Schedule:
    """The tasks of a workload with what is needed to explain them."""

    graph: TaskGraph
    plans: dict[int, MatmulPlan]
    traffic: list[Traffic]
    work: dict[int, Work]
    chunks: int
    resident: bool


@dataclass
class _Builder:
    workload: Workload
    machine: Machine
    placement: Placement
    graph: TaskGraph = field(default_factory=TaskGraph)
    work: dict[int, Work] = field(default_factory=dict)
    pieces: dict[str, list[list[Piece]]] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)
    fetched: dict[tuple[str, int], int] = field(default_factory=dict)
    held: deque[tuple[float, tuple[int, ...]]] = field(default_factory=deque)
    held_bytes: float = 0.0
    previous: tuple[int, ...] = ()
    core: int = 0
    chunks: int = field(init=False)
    traffic: list[Traffic] = field(init=False)

    def __post_init__(self) -> None:
        self.chunks = self.chunk_count()
        self.traffic = [Traffic() for _ in self.workload.ops]

    def build(self) -> Schedule:
        for first, end in self.runs():
            gate = self.launch(first)
            op = self.workload.ops[first]
            if isinstance(op, MatmulOp):
                self.matmul(first, op, gate)
            elif isinstance(op, VectorOp):
                self.vectors(range(first, end), gate)
            else:
                self.host(first, op)
        plans, resident = self.placement.plans, self.placement.resident
        return Schedule(self.graph, plans, self.traffic, self.work, self.chunks, resident)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Operations that are issued together, `(first, end)`: neighbours on the vector unit.

        A machine with a launch cost runs its operations one by one.
        """
        ops, first = self.workload.ops, 0
        while first < len(ops):
            end = first + 1
            if isinstance(ops[first], VectorOp) and not self.machine.launch:
                while end < len(ops) and isinstance(ops[end], VectorOp):
                    end += 1
            yield first, end
            first = end

    def chunk_count(self) -> int:
        """Parts of the batch that follow each other through the operations."""
        if not self.machine.architecture.outermost("activations").double_buffered:
            return 1
        products = self.workload.matmuls
        if all(op.copies == 1 for op in products) and products:
            step = self.machine.engine.column_step
            return min(_MOST_CHUNKS, *(max(op.m // step, 1) for op in products))
        return min(self.workload.batch, _MOST_CHUNKS)

    def launch(self, index: int) -> tuple[int, ...]:
        """With a launch cost, operations run one after the other."""
        if not self.machine.launch:
            return ()
        gate = self.graph.add("launch", index, "front", self.machine.launch, self.previous)
        return (gate,)

    # -- what an operation waits for ---------------------------------------------------------------

    def needs(self, op: Op, chunk: int, share: tuple[float, float] | None) -> tuple[int, ...]:
        """Tasks that make a chunk of an operation's inputs, or a share of its copies."""
        found: list[int] = []
        for name in op.inputs:
            for piece in self.made(name, chunk):
                if share is None or (piece.first < share[1] and piece.end > share[0]):
                    found.extend(piece.tasks)
        return tuple(dict.fromkeys(found))

    def made(self, name: str, chunk: int) -> list[Piece]:
        """Pieces of a chunk of what the workload computes, none for what it is given."""
        return self.pieces[name][chunk] if name in self.pieces else []

    def finish(self, op: Op, pieces: list[list[Piece]]) -> None:
        """Note the pieces of each chunk of an operation's result, for those that come after it."""
        self.pieces[op.name] = pieces
        self.previous = _tasks_of(chain.from_iterable(pieces))

    def leaves(self, op: Op, end: int) -> bool:
        """Whether a result goes to external memory; what is read before `end` is taken at once."""
        last = self.workload.last_reader.get(op.name, -1)
        if last < end or last == len(self.workload.ops):
            return last >= end
        size = op.out_elements * self.machine.value_bytes / self.chunks
        return (
            self.machine.architecture.dram.holds_activations
            or size > self.placement.activation_room
        )

    # -- matrix products ---------------------------------------------------------------------------

    def matmul(self, index: int, op: MatmulOp, gate: tuple[int, ...]) -> None:
        """Go chunk by chunk where there is room for all weights, else group by group of them."""
        plan = self.placement.plans[index]
        arrived = [self.load_activations(index, op, chunk, gate) for chunk in range(self.chunks)]
        done: list[list[Piece]] = [[] for _ in range(self.chunks)]
        by_chunk = (
            not op.has_weights
            or self.placement.resident
            or sum(plan.stored_bytes) <= self.placement.weight_room / 2
        )
        groups = range(len(plan.rows))
        if by_chunk:
            loads = {group: self.load_weights(index, plan, group, gate) for group in groups}
            for chunk in range(self.chunks):
                for group in groups:
                    done[chunk] += self.compute(index, plan, group, chunk, arrived, loads[group])
            self.release(plan, groups, done)
        else:
            for group in groups:
                load = self.load_weights(index, plan, group, gate)
                mine: list[list[Piece]] = [[] for _ in range(self.chunks)]
                for chunk in range(self.chunks):
                    mine[chunk] = self.compute(index, plan, group, chunk, arrived, load)
                    done[chunk] += mine[chunk]
                self.release(plan, range(group, group + 1), mine)
        if self.leaves(op, index + 1):
            done = [self.store(index, op, chunk, done[chunk]) for chunk in range(self.chunks)]
        self.finish(op, done)

    def load_weights(
        self, index: int, plan: MatmulPlan, group: int, gate: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Load a group's weights as soon as the buffer has room, however far ahead that is."""
        if not plan.sizes or self.placement.resident:
            return gate
        values, metadata = (size * plan.weight_passes for size in plan.group_bytes(group))
        self.traffic[index].weights += values
        self.traffic[index].metadata += metadata
        needs = list(gate)
        size = (values + metadata) / plan.weight_passes
        buffered = self.machine.architecture.outermost("weights").double_buffered
        limit = self.placement.weight_room if buffered else 0.0
        while self.held and self.held_bytes + size > limit:
            freed, users = self.held.popleft()
            self.held_bytes -= freed
            needs.extend(users)
        cycles = self.machine.dram_cycles(values + metadata)
        total = values + metadata
        load = self.graph.add(
            "load", index, "dram", cycles, tuple(needs), size=total, metadata=metadata
        )
        return (load,)

    def release(self, plan: MatmulPlan, groups: range, done: list[list[Piece]]) -> None:
        """Note who must end before these groups' place in the buffer is free again."""
        if not plan.sizes or self.placement.resident:
            return
        users = _tasks_of(chain.from_iterable(done))
        size = sum(sum(plan.group_bytes(group)) for group in groups)
        self.held.append((size, users))
        self.held_bytes += size

    def load_activations(
        self, index: int, op: MatmulOp | VectorOp, chunk: int, gate: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Bring a chunk of the inputs in, when they lie outside; once, if they then stay."""
        arrived = gate
        stays = not self.machine.architecture.dram.holds_activations
        plan = self.placement.plans.get(index)
        passes = plan.activation_passes if plan else 1
        for name in dict.fromkeys(op.inputs):
            if name != "" and name not in self.outside:
                continue
            known = self.fetched.get((name, chunk))
            if known is not None and stays and passes == 1:
                arrived += (known,)
                continue
            share = op.in_elements / len(op.inputs) / self.chunks
            size = share * self.machine.value_bytes * passes
            self.traffic[index].activations_in += size
            needs = _tasks_of(self.made(name, chunk))
            cycles = self.machine.dram_cycles(size)
            task = self.graph.add("load", index, "dram", cycles, needs + gate, size=size)
            self.fetched[(name, chunk)] = task
            arrived += (task,)
        return arrived

    def compute(
        self,
        index: int,
        plan: MatmulPlan,
        group: int,
        chunk: int,
        arrived: list[tuple[int, ...]],
        load: tuple[int, ...],
    ) -> list[Piece]:
        """Compute one group for one chunk: a task for each core that shares the chunk's work."""
        op = plan.op
        pieces: list[Piece] = []
        for first, end, share in self.portions(op, plan, chunk):
            copies = end - first if op.copies > 1 else 1
            rows = (0, op.m) if op.copies > 1 else (first, end)
            cost = plan.cost(group, *rows)
            self.work.setdefault(index, Work()).add(cost, copies)
            cycles = cost.cycles * copies
            needs = self.needs(op, chunk, share) + arrived[chunk] + load
            core = self.core % self.machine.cores
            self.core += 1
            task = self.graph.add("compute", index, core, cycles, needs)
            low, high = share or (0.0, 1.0)
            pieces.append(Piece(low, high, (task,)))
        return pieces

    def portions(
        self, op: MatmulOp, plan: MatmulPlan, chunk: int
    ) -> list[tuple[int, int, tuple[float, float] | None]]:
        """Rows, or copies, of a chunk, cut so that all cores have work."""
        units = op.copies if op.copies > 1 else op.m
        first = units * chunk // self.chunks
        end = units * (chunk + 1) // self.chunks
        count = end - first
        tile = 1 if op.copies > 1 else plan.mapping.tile_m
        wanted = ceil_div(_TASKS_A_CORE * self.machine.cores, len(plan.rows) * self.chunks)
        parts = min(wanted, max(ceil_div(count, tile), 1))
        size = max(ceil_div(ceil_div(count, parts), tile) * tile, 1)
        cuts = [(a, min(a + size, end)) for a in range(first, end, size)]
        if op.copies == 1:
            return [(a, b, None) for a, b in cuts]
        return [(a, b, ((a - first) / count, (b - first) / count)) for a, b in cuts]

    def store(self, index: int, op: Op, chunk: int, done: list[Piece]) -> list[Piece]:
        """Write a chunk of the result to external memory; later operations read it there."""
        size = op.out_elements / self.chunks * self.machine.value_bytes
        self.traffic[index].activations_out += size
        needs = _tasks_of(done)
        cycles = self.machine.dram_cycles(size)
        task = self.graph.add("store", index, "dram", cycles, needs, size=size)
        self.outside.add(op.name)
        return [Piece(0.0, 1.0, (task,))]

    # -- everything else ---------------------------------------------------------------------------

    def vectors(self, indices: range, gate: tuple[int, ...]) -> None:
        """Run neighbouring vector operations, all of them on one chunk before the next."""
        ops = [
            (index, op) for index in indices if isinstance(op := self.workload.ops[index], VectorOp)
        ]
        done: dict[str, list[list[Piece]]] = {op.name: [] for _, op in ops}
        self.pieces |= done
        for chunk in range(self.chunks):
            for index, op in ops:
                done[op.name].append(self.vector(index, op, chunk, gate))
        for index, op in ops:
            if self.machine.architecture.vector.memory_bound:
                size = self.machine.value_bytes
                self.traffic[index].activations_in += op.in_elements * size
                self.traffic[index].activations_out += op.out_elements * size
            elif self.leaves(op, indices.stop):
                stored = enumerate(done[op.name])
                done[op.name] = [self.store(index, op, chunk, made) for chunk, made in stored]
            self.finish(op, done[op.name])

    def vector(self, index: int, op: VectorOp, chunk: int, gate: tuple[int, ...]) -> list[Piece]:
        """Run pieces behind the tasks that make their inputs, where the data flow allows it."""
        launch = 0.0 if chunk else self.machine.vector_launch
        pieces: list[Piece] = []
        if not self.machine.architecture.vector.memory_bound:  # such a unit counts them itself
            gate = self.load_activations(index, op, chunk, gate) + self.fetch(index, op)
        for low, high, needs in self.cut(op, chunk):
            cycles = self.machine.vector_cycles(op, (high - low) / self.chunks) + launch
            task = self.graph.add("vector", index, "vector", cycles, needs + gate, launch=launch)
            launch = 0.0
            pieces.append(Piece(low, high, (task,)))
        return pieces

    def fetch(self, index: int, op: VectorOp) -> tuple[int, ...]:
        """Bring a chunk of the rows of a table in."""
        if not op.fetched:
            return ()
        size = op.fetched / self.chunks * self.machine.value_bytes
        self.traffic[index].activations_in += size
        cycles = self.machine.dram_cycles(size)
        return (self.graph.add("load", index, "dram", cycles, (), size=size),)

    def cut(self, op: VectorOp, chunk: int) -> list[Piece]:
        """Shares of one chunk of a vector operation with the tasks that each waits for."""
        whole = self.needs(op, chunk, None)
        streams = self.machine.architecture.vector.streams
        if op.copies > 1 and streams:
            count = min(max(op.copies // self.chunks, 1), _VECTOR_PIECES)
            bounds = [(i / count, (i + 1) / count) for i in range(count)]
            return [Piece(a, b, self.needs(op, chunk, (a, b))) for a, b in bounds]
        if op.rowwise or not streams or len(whole) < 2:
            return [Piece(0.0, 1.0, whole)]
        count = min(len(whole), max(_VECTOR_PIECES // self.chunks, 2))
        step = ceil_div(len(whole), count)
        parts = [whole[i : i + step] for i in range(0, len(whole), step)]
        return [Piece(i / len(parts), (i + 1) / len(parts), p) for i, p in enumerate(parts)]

    def host(self, index: int, op: HostOp) -> None:
        """Send operands to the host, compute there, and bring the result back."""
        link = self.machine.architecture.host
        if link is None:
            raise AssertionError("schedule() lets no such operation through")
        needs = tuple(t for chunk in range(self.chunks) for t in self.needs(op, chunk, None))
        moved = (op.in_elements + op.out_elements) * self.machine.value_bytes
        seconds = moved / link.bandwidth.value + 2 * link.latency.value
        cycles = (seconds + op.elements / link.throughput.value) * self.machine.clock
        task = self.graph.add("host", index, "host", cycles, needs)
        self.finish(op, [[Piece(0.0, 1.0, (task,))] for _ in range(self.chunks)])


def schedule(workload: Workload, machine: Machine) -> Schedule:
    """Cut a workload into tile tasks for a machine.

    Raises:
        TargetError: When an operation's smallest tile does not fit, or the machine has no host for
            what it cannot do itself.
    """
    left = [op for op in workload.ops if isinstance(op, HostOp)]
    if left and machine.architecture.host is None:
        listed = "".join(f"\n  - %{op.name}: {op.reason}" for op in left)
        raise TargetError(
            f"{len(left)} operations need a host, and there is none:{listed}",
            who="accelerator",
            where=machine.architecture.name,
            hint="give the architecture a host",
        )
    return _Builder(workload, machine, place(workload, machine)).build()
