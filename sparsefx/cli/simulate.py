"""``sparsefx simulate``: what a sparse accelerator would do with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sparsefx.cli.console import stderr, stdout
from sparsefx.cli.programs import open_program

if TYPE_CHECKING:
    from sparsefx.backends.accelerator.simulation import Simulation
    from sparsefx.backends.accelerator.workload import Workload
    from sparsefx.program import Program

__all__ = ["command"]


def command(
    model: Annotated[
        str, typer.Argument(help="Saved Program or model; or bert-base, bert-large by size alone.")
    ],
    arch: Annotated[str, typer.Option("--arch", help="Preset or architecture file.")] = "anton",
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--compare", help="Two architectures, side by side.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 128,
    ratio: Annotated[
        float, typer.Option(min=1, help="With bert-base or -large: dense over remaining weights.")
    ] = 1.0,
    html: Annotated[Path | None, typer.Option(help="Write the report page.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace for Perfetto.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line for each operation.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Move every assumed number by 20 %.")
    ] = False,
    listing: Annotated[bool, typer.Option("--listing", help="Print the instructions.")] = False,
    mappings: Annotated[
        bool, typer.Option("--mappings", help="Print the best tile sizes of each product.")
    ] = False,
    layer: Annotated[
        str, typer.Option(help="Time one product element by element, without memory.")
    ] = "",
) -> None:
    """Simulate a model on an accelerator, tile by tile, with its real zeros."""
    from sparsefx.backends.accelerator.archfile import load_architecture
    from sparsefx.backends.accelerator.report import page, tables
    from sparsefx.backends.accelerator.report import trace as traces
    from sparsefx.backends.accelerator.sensitivity import sensitivity as swings_of
    from sparsefx.backends.accelerator.simulation import simulate

    names = compare or (arch,)
    archs = [load_architecture(name) for name in names]
    workloads = {
        integers: _workload(model, integers=integers, batch=batch, seq=seq, ratio=ratio)
        for integers in {a.value_bits.value == 8 for a in archs}
    }
    runs = [simulate(workloads[a.value_bits.value == 8], a) for a in archs]
    stdout.print(_table(runs))
    for run in runs:
        for note in run.notes:
            stdout.print(f"{run.architecture.name}: {note}", markup=False)
    first = runs[0]
    swings = swings_of(first.workload, first.architecture) if sensitivity else ()
    for swing in swings[:12]:
        text = f"{swing.path} ({swing.quantity}): {swing.less:+.1%} / {swing.more:+.1%}"
        stdout.print(text, markup=False)
    _print_instructions(first, mappings=mappings, layer=layer, listing=listing)
    written = [
        page.write_page(first, html, swings) if html else None,
        traces.write_trace(first, trace) if trace else None,
        tables.write_csv(first, csv) if csv else None,
        tables.write_json(first, json) if json else None,
    ]
    for path in filter(None, written):
        stderr.print(f"wrote {path}", markup=False)


def _print_instructions(run: Simulation, *, mappings: bool, layer: str, listing: bool) -> None:
    from sparsefx.backends.accelerator import listing as instructions

    if mappings:
        stdout.print(instructions.mapping_table(run), markup=False)
    if layer:
        stdout.print(instructions.layer_summary(run, layer), markup=False)
    if listing:
        stdout.print(instructions.listing(run), markup=False)


def _workload(model: str, *, integers: bool, batch: int, seq: int, ratio: float) -> Workload:
    from sparsefx.backends.accelerator.bert import encoder_workload
    from sparsefx.backends.accelerator.lowering import Lowering, lower_program
    from sparsefx.backends.accelerator.sweep import SIZES
    from sparsefx.backends.accelerator.target import legalise
    from sparsefx.properties import Property

    if model in SIZES and not Path(model).exists():
        return encoder_workload(SIZES[model], batch=batch, tokens=seq, ratio=ratio)
    program = open_program(model).eval()
    if integers and Property.QUANTIZED not in program.properties:
        program = _quantized(program, seq)
    program = legalise(integers).run(program)
    sizes = {"batch": batch, "sequence": seq}
    return lower_program(program, Lowering(sizes, integers, {}))


def _quantized(program: Program, seq: int) -> Program:
    from sparsefx.passes.quantize.calibrate import calibrate
    from sparsefx.pipeline import Pipeline
    from sparsefx.properties import Property
    from sparsefx.timing import random_batch

    stderr.print(
        "the model is float: its weights are quantized here, for the timing; "
        "quantize it with real data before you run it",
        markup=False,
    )
    fold = "fold-masks," if Property.MASKED in program.properties else ""
    program = Pipeline.parse(f"{fold}quantize-prepare{{requantize='all'}}").run(program)
    calibrate(program, [random_batch(program, 1, min(seq, 32))])
    return Pipeline.parse("quantize-convert").run(program)


def _bound_ms(run: Simulation) -> float:
    from sparsefx.backends.accelerator.roofline import roofline

    return roofline(run.workload, run.architecture).cycles / run.machine.clock * 1e3


def _table(runs: list[Simulation]) -> Table:
    from sparsefx.backends.accelerator.simulation import WATERFALL

    table = Table("", *(run.architecture.name for run in runs), box=None)
    if len(runs) == 2:
        table.add_column("second / first")

    def add(name: str, values: list[float], shape: str) -> None:
        last = [f"{values[1] / values[0]:.3f}"] if len(values) == 2 and values[0] else []
        table.add_row(name, *(format(value, shape) for value in values), *last)

    add("cycles", [run.cycles for run in runs], ",.0f")
    add("ms, roofline bound", [_bound_ms(run) for run in runs], ",.4f")
    add("ms", [run.seconds * 1e3 for run in runs], ",.4f")
    add("sequences/s", [run.throughput for run in runs], ",.1f")
    add("multipliers busy, %", [100 * run.utilisation for run in runs], ".1f")
    add("external traffic, MB", [run.dram_bytes / 1e6 for run in runs], ",.3f")
    add("energy, mJ", [sum(run.energy.values()) / 1e9 for run in runs], ",.3f")
    for cause in WATERFALL:
        add(f"  {cause}, %", [100 * run.waterfall[cause] / run.cycles for run in runs], ".1f")
    return table
