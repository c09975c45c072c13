"""The report page of a simulation: one file, no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sparsefx.backends.accelerator.hardware.architecture import quantities
from sparsefx.backends.accelerator.report import figures
from sparsefx.backends.accelerator.report.outcome import (
    Outcome,
    comparison,
    operations_apart,
    side_by_side,
)
from sparsefx.backends.accelerator.report.reasons import against_dense, causes
from sparsefx.backends.accelerator.simulation.tile_level import OpResult, Simulation
from sparsefx.backends.accelerator.studies.sensitivity import LESS, MORE, Swing, in_percent
from sparsefx.report.page import Page, paragraph, table
from sparsefx.report.svg import plain, short

__all__ = ["build_page", "write_page"]

_MOST_OPERATIONS: Final = 60
_CAUSES: Final = (
    "Every cycle of every core has one cause; the bars add up to the result. Ideal: the executed "
    "multiplications at the peak. Imbalance: elements that wait for others, and slots that no work "
    "fills. Overheads: what the machine's utilisation leaves for all that is not modelled, and "
    "operands that come too slowly from the core's memory. The causes below these are times in "
    "which a core stood still, by what it waited for; metadata is its share of the transfers."
)


_UNMOVED: Final = (
    "How the result moves with the numbers that nobody published was not computed for this page: "
    "it simulates twice for each of them. sparsefx simulate --html does so, and in Python "
    "save(path, sensitivity=True)."
)


def write_page(
    run: Simulation,
    path: Path,
    swings: tuple[Swing, ...] | None = None,
    compared: Sequence[Outcome] = (),
) -> Path:
    """Write the page to `path`, with its folder, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = build_page(run, swings, compared)
    return page.write(path, footer="; ".join(run.notes))


def build_page(
    run: Simulation,
    swings: tuple[Swing, ...] | None = None,
    compared: Sequence[Outcome] = (),
) -> Page:
    """Put a simulation's figures and tables together; without `swings` it says how to get them.

    Of two that are `compared`, and of which `run` is one, it has the figures side by side.
    """
    arch = run.architecture
    page = Page(
        f"{run.workload.name} on {arch.name}",
        f"{arch.description}. Simulated, not measured. Source of the numbers: {arch.source}.",
    )
    if len(compared) == 2:
        page.section("Side by side", *_beside(run, *compared))
    page.section("Result", _summary(run))
    page.section(
        "Why it is not faster",
        paragraph(against_dense(run)),
        *(paragraph(text) for text in causes(run)),
    )
    page.section(
        "Where the cycles go",
        paragraph(_CAUSES),
        figures.waterfall(run),
    )
    page.section("Who works when", figures.gantt(run))
    page.section("Roofline", figures.roofline_plot(run))
    worst = figures.worst_balanced(run)
    if worst:
        page.section(
            "Balance",
            paragraph(
                "Work of the array's elements by k block, for the least even products. Row groups "
                "are added up here, but each waits for its own fullest element: the array can lose "
                "more than a picture shows."
            ),
            *(part for op in worst for part in (_ratio(run, op), figures.heat_map(op))),
        )
    page.section("Energy", figures.energy_stack(run))
    page.section("Throughput against compression", figures.compression_curve(run))
    page.section("Operations", _operations(run))
    moved = paragraph(_UNMOVED) if swings is None else _swings(swings)
    page.section("What the assumptions are worth", moved)
    page.section("The machine's numbers", _numbers(run))
    return page


def _beside(run: Simulation, first: Outcome, second: Outcome) -> Iterator[str]:
    both = [first, second]
    if first.workload != second.workload:
        yield paragraph(f"Different runs: {first.workload}; {second.workload}.")
    yield table(*side_by_side(both, comparison(both)))
    if apart := operations_apart(first, second):
        yield paragraph("Microseconds of the operations that differ most:")
        yield table(*side_by_side(both, apart))
    yield paragraph(f"All that follows is of {run.architecture.name} alone.")


def _summary(run: Simulation) -> str:
    moved, energy = run.dram_bytes, sum(run.energy.values())
    executed = sum(op.macs.executed for op in run.ops if op.macs)
    rows = [
        ("cycles", f"{run.cycles:,.0f}"),
        ("time of one run", f"{plain(run.seconds * 1e3, 4)} ms"),
        ("sequences a second", f"{run.throughput:,.1f}"),
        ("multipliers busy with work", f"{run.utilisation:.1%}"),
        ("multiplications, dense", short(run.workload.dense_macs)),
        ("multiplications, executed", short(executed)),
        ("external memory traffic", f"{plain(moved / 1e6, 2)} MB"),
        ("energy", f"{plain(energy / 1e9, 3)} mJ"),
        ("program", run.workload.fingerprint[:16] or "made from sizes"),
    ]
    return table(["", ""], rows)


def _operations(run: Simulation) -> str:
    busiest = sorted(run.ops, key=lambda op: -op.busy)[:_MOST_OPERATIONS]
    rows = [
        (
            run.workload.titles[op.name],
            op.kind,
            f"{op.busy:,.0f}",
            f"{op.end - op.start:,.0f}",
            short(op.macs.executed) if op.macs else "",
            f"{figures.over_ideal(run, op):.2f}" if op.macs and op.macs.executed else "",
            f"{op.traffic.total / 1e3:,.1f}",
            f"{op.traffic.metadata / 1e3:,.1f}",
            f"{sum(op.energy.values()) / 1e6:.3f}",
            op.mapping.partition(":")[0],
        )
        for op in busiest
    ]
    head = [
        "operation", "kind", "busy cycles", "from start to end", "MACs", "array / ideal",
        "external kB", "metadata kB", "uJ", "tile",
    ]  # fmt: skip
    left = len(run.ops) - len(rows)
    more = paragraph(f"{left} operations with less work are left out.") if left else ""
    return f'<div class="scroll">{table(head, rows)}</div>{more}'


def _ratio(run: Simulation, op: OpResult) -> str:
    return paragraph(
        f"{run.workload.titles[op.name]}, {figures.over_ideal(run, op):.2f} times its ideal cycles"
    )


def _swings(swings: tuple[Swing, ...]) -> str:
    rows = [
        (
            s.path,
            f"{s.quantity.text}, {s.quantity.status}",
            s.measure,
            in_percent(s.less),
            in_percent(s.more),
        )
        for s in swings
    ]
    lead = paragraph(
        f"How time or energy moves when one of the {len(swings)} numbers that nobody published "
        f"is {LESS}, and when it is {MORE}."
    )
    return lead + figures.tornado(swings) + table(["number", "value", "moves", LESS, MORE], rows)


def _numbers(run: Simulation) -> str:
    counts = ", ".join(f"{n} {status}" for status, n in sorted(run.architecture.statuses().items()))
    rows = [
        (path, quantity.text, quantity.status, quantity.source)
        for path, quantity in quantities(run.architecture)
    ]
    return paragraph(counts) + table(["number", "value", "status", "source"], rows)
