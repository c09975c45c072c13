"""A simulation as CSV rows and as a JSON tree."""

from __future__ import annotations

import csv
import io
from math import isnan
from pathlib import Path
from typing import Any

from sparsefx.backends.accelerator.hardware.archfile import dump_architecture
from sparsefx.backends.accelerator.report.cost import cost_report
from sparsefx.backends.accelerator.report.reasons import reasons
from sparsefx.backends.accelerator.simulation.roofline import roofline
from sparsefx.backends.accelerator.simulation.tile_level import Simulation
from sparsefx.backends.accelerator.studies.sensitivity import LESS, MORE, Swing
from sparsefx.storage import files

__all__ = ["as_csv", "as_tree", "write_csv", "write_json"]


def as_tree(run: Simulation, swings: tuple[Swing, ...] = ()) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    bound = roofline(run.workload, run.architecture)
    return {
        "workload": run.workload.name,
        "program": run.workload.fingerprint,
        "batch": run.workload.batch,
        "tokens": run.workload.tokens,
        "cycles": run.cycles,
        "seconds": run.seconds,
        "roofline_seconds": bound.cycles / run.machine.clock,
        "sequences_per_second": run.throughput,
        "utilisation": run.utilisation,
        "dram_bytes": run.dram_bytes,
        "energy_pJ": run.energy,
        "waterfall": dict(run.waterfall),
        "notes": list(run.notes),
        "reasons": list(reasons(run)),
        "sensitivity": [_swing(swing) for swing in swings],
        "operations": _operations(run),
        "architecture": dump_architecture(run.architecture),
    }


def _swing(swing: Swing) -> dict[str, Any]:
    ways = {LESS: swing.less, MORE: swing.more}
    moved = {way: None if isnan(change) else change for way, change in ways.items()}
    return {"number": swing.path, "value": str(swing.quantity), "moves": swing.measure, **moved}


def _operations(run: Simulation) -> list[dict[str, Any]]:
    named = zip(run.workload.titles.values(), cost_report(run).rows, strict=True)
    return [
        {"operation": title, "node": row.where, "kind": row.op, **row.figures}
        for title, row in named
    ]


def as_csv(run: Simulation) -> str:
    """One line for each operation."""
    rows = _operations(run)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_json(run: Simulation, path: Path, swings: tuple[Swing, ...] = ()) -> Path:
    """Write the JSON tree and return the path."""
    files.write_json(path, as_tree(run, swings))
    return path


def write_csv(run: Simulation, path: Path) -> Path:
    """Write the CSV table and return the path."""
    files.write_text(path, as_csv(run))
    return path
