"""``sparsefx simulate``: what a sparse accelerator would do with a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from sparsefx.cli.console import filled, say, stderr, stdout
from sparsefx.cli.outputs import Overwrite, check_new
from sparsefx.cli.programs import open_program
from sparsefx.errors import TargetError, did_you_mean

if TYPE_CHECKING:
    from sparsefx.backends.accelerator.hardware.architecture import Architecture
    from sparsefx.backends.accelerator.report.outcome import Outcome
    from sparsefx.backends.accelerator.simulation.tile_level import Simulation
    from sparsefx.backends.accelerator.studies.sensitivity import Swing
    from sparsefx.backends.accelerator.workload.bert import Zeros
    from sparsefx.backends.accelerator.workload.operations import Workload

__all__ = ["command"]

_PATTERN_HELP = "With --ratio: random, balanced (default), n-of-m or block zeros."


def command(
    model: Annotated[
        str, typer.Argument(help="Saved Program or model; or bert-base, bert-large by size alone.")
    ] = "",
    arch: Annotated[
        str,
        typer.Option("--arch", help="Preset or architecture file; 'list' shows the presets."),
    ] = "anton",
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option("--compare", help="Two architectures, or files that --json wrote."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 128,
    ratio: Annotated[
        float,
        typer.Option(
            min=1, max=1e6, help="With bert-base or -large: dense over remaining weights."
        ),
    ] = 1.0,
    pattern: Annotated[str | None, typer.Option(help=_PATTERN_HELP)] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report page.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace for Perfetto.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line for each operation.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    sensitivity: Annotated[
        bool | None,
        typer.Option(help="Move assumed numbers by 20 %; --html does unless switched off."),
    ] = None,
    listing: Annotated[bool, typer.Option("--listing", help="Print the instructions.")] = False,
    mappings: Annotated[
        bool, typer.Option("--mappings", help="Print the best tile sizes of each product.")
    ] = False,
    layer: Annotated[
        str, typer.Option(help="Time one product, by its module or node, without memory.")
    ] = "",
    overwrite: Overwrite = False,
) -> None:
    """Simulate a model on an accelerator, tile by tile, with its real zeros."""
    if arch == "list" and not compare:
        _print_presets()
        return
    files = {"--html": html, "--trace": trace, "--csv": csv, "--json": json}
    check_new(files, who="simulate", overwrite=overwrite)
    names = compare or (arch,)
    archs = _to_simulate(model, names)
    if not archs:
        sizes = {"--batch": batch != 1, "--seq": seq != 128, "--ratio": ratio != 1}
        shown = {"--listing": listing, "--mappings": mappings, "--layer": layer}
        others = {"MODEL": model, "--pattern": pattern, "--sensitivity": sensitivity}
        _check_unasked({**others, **sizes, **files, **shown})
    drawn = _Drawn(ratio, _zeros(pattern or "balanced"), is_pattern_given=pattern is not None)
    runs = _simulate(model, archs, drawn, batch=batch, seq=seq)
    outcomes = _outcomes(names, runs)
    _print_outcomes(outcomes, runs)
    if not runs:
        return
    wanted = html is not None if sensitivity is None else sensitivity
    if len(runs) == 2 and (wanted or listing or mappings or layer or any(files.values())):
        _print_alone(runs[0], html)
    _report(runs[0], outcomes, html, trace, csv, json, sensitivity=wanted)
    _print_instructions(runs[0], mappings=mappings, layer=layer, listing=listing)


def _print_presets() -> None:
    from sparsefx.backends.accelerator.hardware.archfile import load_architecture, preset_names

    rows = [(name, load_architecture(name).description) for name in preset_names()]
    stdout.print(filled(("preset", "what it is"), rows))


def _to_simulate(model: str, names: Iterable[str]) -> list[str]:
    """Return the names that are no files of earlier runs."""
    archs = [name for name in names if Path(name).suffix != ".json"]
    if archs and not model:
        raise TargetError(
            "no model is named",
            who="simulate",
            where="MODEL",
            hint="name a saved Program or model, or bert-base; or compare two saved .json files",
        )
    return archs


def _check_unasked(options: Mapping[str, object]) -> None:
    """Refuse what only a machine that is simulated can tell, where two files are compared."""
    if asked := [option for option, given in options.items() if given]:
        raise TargetError(
            "two saved results are compared, which nothing is simulated for",
            who="simulate",
            where=", ".join(asked),
            hint="leave it out, or give it where a machine is simulated",
        )


@dataclass(frozen=True)
class _Drawn:
    """Zeros for a model that is known by its sizes alone."""

    ratio: float
    zeros: Zeros
    is_pattern_given: bool


def _zeros(pattern: str) -> Zeros:
    from sparsefx.backends.accelerator.workload.bert import Zeros

    for known in get_args(Zeros):
        if pattern == known:
            return cast("Zeros", known)
    raise TargetError(
        f"there is no pattern {pattern!r}",
        who="simulate",
        where="--pattern",
        hint=did_you_mean(pattern, get_args(Zeros)),
    )


def _simulate(
    model: str, names: list[str], drawn: _Drawn, *, batch: int, seq: int
) -> list[Simulation]:
    from sparsefx.backends.accelerator.hardware.archfile import load_architecture
    from sparsefx.backends.accelerator.simulation.tile_level import simulate

    archs = [load_architecture(name) for name in names]
    workloads = {
        integers: _workload(model, drawn, integers=integers, batch=batch, seq=seq)
        for integers in {_is_integer(a) for a in archs}
    }
    return [simulate(workloads[_is_integer(a)], a) for a in archs]


def _is_integer(arch: Architecture) -> bool:
    return arch.value_bits.value == 8


def _outcomes(names: Iterable[str], runs: list[Simulation]) -> list[Outcome]:
    """What to show, in the order of the names: simulated just now, or read from a file."""
    from sparsefx.backends.accelerator.report.outcome import Outcome, read_outcome

    left = iter(runs)
    return [
        read_outcome(Path(name)) if Path(name).suffix == ".json" else Outcome.of(next(left))
        for name in names
    ]


def _print_outcomes(outcomes: list[Outcome], runs: list[Simulation]) -> None:
    """Print the results side by side, what is to be known of each run, and why they are so."""
    from sparsefx.backends.accelerator.report.outcome import comparison, side_by_side

    stdout.print(filled(*side_by_side(outcomes, comparison(outcomes))))
    for run in runs:
        for note in run.notes:
            say(f"{run.architecture.name}: {note}")
    if len(outcomes) == 2:
        _print_apart(*outcomes)
    elif runs:
        _print_reasons(runs[0])


def _print_alone(run: Simulation, html: Path | None) -> None:
    """Say that details are those of one run, where two are compared."""
    both = "; the page has the tables of both too" if html else ""
    name = run.architecture.name
    stderr.print(f"what follows, and files, are of {name}, named first{both}")


def _report(
    run: Simulation,
    outcomes: list[Outcome],
    html: Path | None,
    trace: Path | None,
    csv: Path | None,
    json: Path | None,
    *,
    sensitivity: bool,
) -> None:
    """Print how the assumptions weigh, when asked, and write the files that were asked for."""
    from sparsefx.backends.accelerator.report import page, tables
    from sparsefx.backends.accelerator.report import trace as traces
    from sparsefx.backends.accelerator.studies.sensitivity import sensitivity as swings_of

    swings = swings_of(run) if sensitivity else None
    if swings:
        _print_swings(swings)
    try:
        written = [
            page.write_page(run, html, swings, outcomes) if html else None,
            traces.write_trace(run, trace) if trace else None,
            tables.write_csv(run, csv) if csv else None,
            tables.write_json(run, json, swings or ()) if json else None,
        ]
    except OSError as error:
        names = ", ".join(str(path) for path in (html, trace, csv, json) if path)
        raise TargetError(
            f"cannot be written: {error.strerror}", who="simulate", where=error.filename or names
        ) from error
    for path in filter(None, written):
        stderr.print(f"wrote {path}")


def _print_reasons(run: Simulation) -> None:
    from sparsefx.backends.accelerator.report.reasons import reasons

    if told := reasons(run):
        stdout.print("why it is not faster:")
    for text in told:
        say(f"  {text}")


def _print_swings(swings: tuple[Swing, ...]) -> None:
    from sparsefx.backends.accelerator.studies.sensitivity import LESS, MORE, VISIBLE, in_percent

    stdout.print(f"what moves when a number that nobody published is {LESS} / {MORE}:")
    moving = [swing for swing in swings if not swing.size < VISIBLE]
    for swing in moving:
        moved = f"{swing.measure} {in_percent(swing.less)} / {in_percent(swing.more)}"
        say(f"  {moved}: {swing.path} ({swing.quantity})")
    if left := len(swings) - len(moving):
        stdout.print(f"  {left} other numbers move it by less than {100 * VISIBLE:g} %")


def _print_instructions(run: Simulation, *, mappings: bool, layer: str, listing: bool) -> None:
    from sparsefx.backends.accelerator.report import listing as instructions

    if mappings:
        stdout.print(instructions.mapping_table(run))
    if layer:
        stdout.print(instructions.layer_summary(run, layer))
    if listing:
        stdout.print(instructions.listing(run))


def _workload(model: str, drawn: _Drawn, *, integers: bool, batch: int, seq: int) -> Workload:
    from sparsefx.backends.accelerator.studies.sweep import SIZES
    from sparsefx.backends.accelerator.workload.bert import encoder_workload
    from sparsefx.backends.accelerator.workload.programs import is_float, workload_of
    from sparsefx.inputs.failures import check_rows
    from sparsefx.inputs.lengths import check_length

    if model in SIZES and not Path(model).exists():
        size, ratio, zeros = SIZES[model], drawn.ratio, drawn.zeros
        if ratio == 1 and drawn.is_pattern_given:
            stderr.print("--pattern says where zeros are, and there are none: give --ratio too")
        return encoder_workload(size, batch=batch, tokens=seq, ratio=ratio, zeros=zeros)
    given = {"--ratio": drawn.ratio != 1, "--pattern": drawn.is_pattern_given}
    for option in (option for option, is_given in given.items() if is_given):
        stderr.print(f"{option} is for bert-base and bert-large; the model's own zeros are used")
    program = open_program(model)
    check_length(program.config, seq, "--seq")
    program.signature.check_taken(batch, seq)
    check_rows(program, program.signature.example(program.signature.sizes(batch, seq)))
    if integers and is_float(program):
        stderr.print(
            "the model is float: its weights are quantized here, for the timing; "
            "quantize it with real data before you run it",
        )
    return workload_of(program, integers=integers, batch=batch, tokens=seq)


def _print_apart(first: Outcome, second: Outcome) -> None:
    """Where two runs of one workload differ."""
    from sparsefx.backends.accelerator.report.outcome import operations_apart, side_by_side

    if first.workload != second.workload:
        stdout.print(f"different runs: {first.workload}; {second.workload}")
    if rows := operations_apart(first, second):
        stdout.print("us, where they differ most:")
        stdout.print(filled(*side_by_side([first, second], rows)))
