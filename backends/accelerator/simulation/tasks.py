"""Tile tasks: what each resource does, in order, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Kind", "Task", "TaskGraph"]

Kind = Literal["load", "compute", "vector", "store", "host", "launch"]


@dataclass(slots=True)
class Task:
    """One piece of work on one resource; times are cycles.

    Attributes:
        op: Index of the operation it belongs to.
        resource: `dram`, `vector`, `host`, `front` or the number of a core.
        needs: Tasks that must have ended.
        launch: Cycles at its start that are a launch, part of `cycles`.
        bytes: Bytes that it moves, metadata included.
        waited: What kind of task held it up last; its own resource when None.
        held_by: Number of that task, or of the one before it on its resource; -1 for none.
    """

    id: int
    kind: Kind
    op: int
    resource: str | int
    cycles: float
    needs: tuple[int, ...]
    bytes: float = 0.0
    metadata: float = 0.0
    launch: float = 0.0
    start: float = 0.0
    end: float = 0.0
    waited: Kind | None = None
    held_by: int = -1


@dataclass
class TaskGraph:
    """Tasks in issue order: each resource takes its tasks in this order, none overtakes."""

    tasks: list[Task] = field(default_factory=list)

    def add(
        self,
        kind: Kind,
        op: int,
        resource: str | int,
        cycles: float,
        needs: tuple[int, ...],
        *,
        size: float = 0.0,
        metadata: float = 0.0,
        launch: float = 0.0,
    ) -> int:
        """Append a task and return its number."""
        number = len(self.tasks)
        self.tasks.append(Task(number, kind, op, resource, cycles, needs, size, metadata, launch))
        return number

    def run(self, latency: float = 0.0) -> float:
        """Give every task its start and end; returns the last end.

        Resources serve in order, so times are maxima of sums: a shorter task can never delay
        another one. `latency` passes between the end of a load's transfer and its use.
        """
        before_it: dict[str | int, Task] = {}
        last = 0.0
        tasks = self.tasks
        for task in tasks:
            start = 0.0
            if (earlier := before_it.get(task.resource)) is not None:
                start, task.held_by = earlier.end, earlier.id
            for number in task.needs:
                before = tasks[number]
                ready = before.end + (latency if before.kind == "load" else 0.0)
                if ready > start:
                    start, task.waited, task.held_by = ready, before.kind, number
            task.start = start
            task.end = start + task.cycles
            before_it[task.resource] = task
            last = max(last, task.end)
        return last
