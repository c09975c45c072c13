"""What is compared of two runs: of simulations, or of the JSON files that they were saved as."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparsefx.backends.accelerator.report.tables import as_tree
from sparsefx.backends.accelerator.simulation.tile_level import WATERFALL, Simulation
from sparsefx.errors import TargetError
from sparsefx.report.svg import plain

__all__ = ["Outcome", "Row", "comparison", "operations_apart", "read_outcome", "side_by_side"]

_HOW_TO_WRITE = "write one with: sparsefx simulate MODEL --arch PRESET --json FILE"
_MOST_APART = 6

Row = tuple[str, list[float], Callable[[float], str]]
"""Name of a figure, its value in each run, and how it is written."""


@dataclass(frozen=True)
class Outcome:
    """The figures of one run.

    Attributes:
        name: The architecture, or the file that the run was saved as.
        workload: What was run.
        program: Fingerprint of the Program; "" for masks made from sizes.
        bound_ms: Roofline bound, milliseconds.
        waterfall: Share of the cycles by cause, 0 to 1.
        operations: Microseconds of each.
    """

    name: str
    workload: str
    program: str
    cycles: float
    bound_ms: float
    ms: float
    sequences_per_second: float
    utilisation: float
    dram_bytes: float
    millijoules: float
    waterfall: Mapping[str, float]
    operations: Mapping[str, float]

    @staticmethod
    def of(run: Simulation) -> Outcome:
        """The figures of a simulation."""
        return _outcome(as_tree(run), run.architecture.name)


def read_outcome(path: Path) -> Outcome:
    """Read what `simulate --json` wrote.

    Raises:
        TargetError: When the file is not there or is not such a file.
    """
    if not path.is_file():
        raise TargetError(
            "there is no such file", who="simulate", where=str(path), hint=_HOW_TO_WRITE
        )
    try:
        return _outcome(json.loads(path.read_text(encoding="utf-8")), path.stem)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TargetError(
            f"this is no saved simulation: {_wrong(error)}",
            who="simulate",
            where=str(path),
            hint=_HOW_TO_WRITE,
        ) from error


def _wrong(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"`simulate --json` writes {error}, and it is not there"
    return str(error)


def _outcome(tree: Mapping[str, Any], name: str) -> Outcome:
    cycles = float(tree["cycles"])
    return Outcome(
        name,
        str(tree["workload"]),
        str(tree["program"]),
        cycles,
        float(tree["roofline_seconds"]) * 1e3,
        float(tree["seconds"]) * 1e3,
        float(tree["sequences_per_second"]),
        float(tree["utilisation"]),
        float(tree["dram_bytes"]),
        sum(tree["energy_pJ"].values()) / 1e9,
        {cause: float(tree["waterfall"][cause]) / cycles for cause in WATERFALL},
        {row["operation"]: float(row["us"]) for row in tree["operations"]},
    )


def comparison(outcomes: list[Outcome]) -> list[Row]:
    """The rows of a table with one column a run."""
    rows: list[Row] = [
        ("cycles", [o.cycles for o in outcomes], "{:,.0f}".format),
        ("ms, roofline bound", [o.bound_ms for o in outcomes], _digits(4)),
        ("ms", [o.ms for o in outcomes], _digits(4)),
        ("sequences/s", [o.sequences_per_second for o in outcomes], "{:,.1f}".format),
        ("multipliers busy, %", [100 * o.utilisation for o in outcomes], "{:.1f}".format),
        ("external traffic, MB", [o.dram_bytes / 1e6 for o in outcomes], _digits(3)),
        ("energy, mJ", [o.millijoules for o in outcomes], _digits(3)),
    ]
    shares = [
        (f"  {cause}, %", [100 * o.waterfall[cause] for o in outcomes], "{:.1f}".format)
        for cause in WATERFALL
    ]
    return rows + shares


def operations_apart(first: Outcome, second: Outcome) -> list[Row]:
    """The operations that both have and whose times differ most, in microseconds."""
    both = [name for name in first.operations if name in second.operations]
    apart = sorted(both, key=lambda n: -abs(first.operations[n] - second.operations[n]))
    return [
        (name, [first.operations[name], second.operations[name]], _digits(2))
        for name in apart[:_MOST_APART]
    ]


def side_by_side(outcomes: list[Outcome], rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table as text; of two runs with the second over the first."""
    pair = len(outcomes) == 2
    head = ["", *(outcome.name for outcome in outcomes), *["second / first"] * pair]
    return head, [_side_by_side(row, pair=pair) for row in rows]


def _side_by_side(row: Row, *, pair: bool) -> list[str]:
    name, values, text = row
    told = [name, *map(text, values)]
    if not pair:
        return told
    is_told = all(text(value) != text(0.0) for value in values)
    return [*told, f"{values[1] / values[0]:.3f}" if is_told else ""]


def _digits(decimals: int) -> Callable[[float], str]:
    return partial(plain, decimals=decimals)
