"""The instructions of a simulated run as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sparsefx.backends.accelerator.simulation.tile_level import Simulation
from sparsefx.backends.accelerator.tiling.mapper import mapping_options
from sparsefx.backends.accelerator.workload.lowering import weight_digest
from sparsefx.backends.accelerator.workload.operations import HostOp, MatmulOp
from sparsefx.errors import TargetError, closest

__all__ = ["layer_summary", "listing", "mapping_table"]

_MOST_MAPPINGS = 5
_MOST_NAMES = 8


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
        if isinstance(op, MatmulOp) and op.module:
            lines.append(f"  ; {op.module}")
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


def mapping_table(run: Simulation) -> str:
    """The best tile sizes of each product, as the mapper ranks them; equal products once."""
    lines: list[str] = []
    seen: set[tuple[int, int, int, int]] = set()
    for op in run.workload.matmuls:
        sizes = (op.copies, op.m, op.n, op.k)
        if sizes in seen:
            continue
        seen.add(sizes)
        lines.append(f"{run.workload.titles[op.name]}:{_sizes(op)}")
        options = mapping_options(op, run.machine, streamed=not run.schedule.resident)
        lines += [f"  {option}" for option in options[:_MOST_MAPPINGS]]
    return "\n".join(lines)


def _known(name: str, products: Iterable[str]) -> str:
    names = list(products)
    left = len(names) - _MOST_NAMES
    more = f" and {left} more" if left > 0 else ""
    listed = f"known: {', '.join(names[:_MOST_NAMES])}{more}"
    return closest(name.removeprefix("%"), names) or listed


def layer_summary(run: Simulation, name: str) -> str:
    """One product at the finest fidelity: the engine on the whole layer, memory left out.

    Raises:
        TargetError: When the workload has no such product.
    """
    nodes = {op.name: op for op in run.workload.matmuls}
    products = {run.workload.titles[node].removeprefix("%"): op for node, op in nodes.items()}
    wanted = name.removeprefix("%")
    op = products.get(wanted) or nodes.get(wanted)
    if op is None:
        raise TargetError(
            f"there is no product {name!r}",
            who="accelerator",
            where="layer",
            hint=_known(name, products),
        )
    timing = run.machine.engine.run(op.gemm)
    cycles = timing.cycles * op.copies
    ideal = timing.macs * op.copies / run.machine.engine.peak
    lines = [
        f"{run.workload.titles[op.name]}:{_sizes(op)} on one core of {run.architecture.name}",
        f"  {cycles:,} cycles, {ideal:,.0f} of them for {timing.macs * op.copies:,} products",
        f"  {timing.fill * op.copies:,} cycles of fill and drain",
    ]
    if timing.load is not None and timing.load.sum():
        even = timing.load.max(axis=0).sum() / timing.load.mean(axis=0).sum()
        lines.append(f"  {even:.3f} times the mean work of an element is waited for")
    return "\n".join(lines)
