"""Chrome trace of a simulation, for Perfetto (ui.perfetto.dev) and chrome://tracing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsefx.backends.accelerator.simulation.tile_level import Simulation

__all__ = ["trace_events", "write_trace"]


def trace_events(run: Simulation) -> list[dict[str, Any]]:
    """Complete events (`ph` X), one thread a resource, times in microseconds."""
    scale = 1e6 / run.machine.clock
    threads: dict[str | int, int] = {}
    events: list[dict[str, Any]] = []
    for task in run.tasks:
        thread = threads.setdefault(task.resource, len(threads))
        events.append(
            {
                "name": run.workload.titles[run.ops[task.op].name],
                "cat": task.kind,
                "ph": "X",
                "ts": task.start * scale,
                "dur": task.cycles * scale,
                "pid": 0,
                "tid": thread,
                "args": {"bytes": task.bytes, "metadata": task.metadata, "waited": task.waited},
            }
        )
    names = [
        {
            "name": "thread_name",
            "ph": "M",
            "pid": 0,
            "tid": thread,
            "args": {"name": f"core {key}" if isinstance(key, int) else key},
        }
        for key, thread in threads.items()
    ]
    return [*names, *events]


def write_trace(run: Simulation, path: Path) -> Path:
    """Write the trace as JSON and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {"traceEvents": trace_events(run), "displayTimeUnit": "ns"}
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path
