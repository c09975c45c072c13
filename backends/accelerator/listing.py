"""The instructions of a simulated run as text."""

from __future__ import annotations

from collections import Counter

from sparsefx.backends.accelerator.lowering import weight_digest
from sparsefx.backends.accelerator.simulation import Simulation
from sparsefx.backends.accelerator.workload import HostOp, MatmulOp

__all__ = ["listing"]


def listing(run: Simulation) -> str:
    """One block for each operation: sizes, hash, mapping, and its tile instructions counted.

    Equal neighbours are written once with their count; times are cycles.
    """
    lines = [
        f"; {run.workload.name} on {run.architecture.name}",
        f"; program {run.workload.fingerprint[:16] or 'none'}",
        f"; {run.cycles:,.0f} cycles, {len(run.tasks):,} tile instructions",
    ]
    by_op: dict[int, Counter[str]] = {}
    for task in run.tasks:
        text = f"{task.kind:8}{task.cycles:>12,.0f} cycles"
        if task.bytes:
            text += f" {task.bytes:>12,.0f} bytes"
        if task.metadata:
            text += f", {task.metadata:,.0f} of them metadata"
        by_op.setdefault(task.op, Counter())[text] += 1
    for index, (op, result) in enumerate(zip(run.workload.ops, run.ops, strict=True)):
        lines.append(f"\n%{op.name}: {op.kind}{_sizes(op)}")
        if isinstance(op, MatmulOp) and op.weight is not None:
            lines.append(f"  ; weights {weight_digest(op.weight)}")
        if result.mapping:
            lines.append(f"  ; tile {result.mapping}")
        if isinstance(op, HostOp):
            lines.append(f"  ; {op.reason}")
        lines += [f"  {count:>5} x {text}" for text, count in by_op.get(index, Counter()).items()]
    return "\n".join(lines) + "\n"


def _sizes(op: object) -> str:
    if not isinstance(op, MatmulOp):
        return f" of {op.out_elements:,} values" if hasattr(op, "out_elements") else ""
    copies = f"{op.copies} x " if op.copies > 1 else ""
    return f" {copies}[{op.m}, {op.k}] by [{op.n}, {op.k}]"
