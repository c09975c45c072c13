"""A simulation as the CostReport that all targets share."""

from __future__ import annotations

from sparsefx.backends.accelerator.simulation.tile_level import Simulation
from sparsefx.report.svg import plain
from sparsefx.target import CostReport, CostRow

__all__ = ["cost_report"]


def cost_report(run: Simulation) -> CostReport:
    """One row for each operation: cycles, time, multiplications, bytes and energy by level."""
    rows = []
    for op in run.ops:
        figures = {
            "cycles": op.end - op.start,
            "busy cycles": op.busy,
            "us": (op.end - op.start) / run.machine.clock * 1e6,
            "weight bytes": op.traffic.weights,
            "metadata bytes": op.traffic.metadata,
            "activation bytes": op.traffic.activations_in + op.traffic.activations_out,
            "pJ": sum(op.energy.values()),
        }
        figures |= {f"{level} pJ": energy for level, energy in op.energy.items() if energy}
        if op.macs:
            figures |= {
                "MACs": float(op.macs.dense),
                "executed MACs": float(op.macs.executed),
                "effective MACs": float(op.macs.effectual),
            }
        rows.append(CostRow(f"%{op.name}", op.kind, figures))
    summary = (
        f"{run.cycles:,.0f} cycles, {plain(run.seconds * 1e3, 4)} ms, "
        f"{run.throughput:,.1f} sequences/s; rows overlap in time and add up to more"
    )
    return CostReport("simulated", tuple(rows), (summary, *run.notes))
