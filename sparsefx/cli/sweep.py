"""``sparsefx sweep``: many simulations, one table and one plot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from sparsefx.cli.console import filled, stderr, stdout
from sparsefx.cli.programs import open_program
from sparsefx.errors import DataError, TargetError, did_you_mean
from sparsefx.storage.places import is_program

if TYPE_CHECKING:
    from sparsefx.backends.accelerator.studies.sweep import Pattern, Point

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; gone on with.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Saved Programs or models, with their own zeros; none: by --size."),
    ] = None,
    archs: Annotated[
        str,
        typer.Option(help="Presets (simulate --arch list) or files, with commas."),
    ] = "anton",
    ratios: Annotated[str, typer.Option(help="Compressions, with commas.")] = "1,2,4,8,16",
    patterns: Annotated[
        str, typer.Option(help="Of random, balanced, n-of-m and block, with commas.")
    ] = "random,balanced",
    size: Annotated[str, typer.Option(help="bert-base or bert-large.")] = "bert-base",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 128,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
    ray: Annotated[str, typer.Option(help="Address of a Ray cluster, or local.")] = "",
) -> None:
    """Simulate architectures x compressions x patterns, or x saved Programs.

    A stopped sweep goes on where it was.
    """
    from sparsefx.backends.accelerator.hardware.archfile import load_architecture
    from sparsefx.backends.accelerator.studies.sweep import finished_points, program_grid, run_sweep
    from sparsefx.backends.accelerator.studies.sweep_page import sweep_table, write_sweep
    from sparsefx.cli.progress import counting

    names = _list(archs)
    if not names:
        raise DataError("no architecture is named", who="sweep", where="--archs")
    for name in names:
        load_architecture(name)
    finished_points(out)  # a folder of something else is refused before anything is written to it
    if models:
        folders = [_saved(model, out) for model in models]
        points = program_grid(names, folders, batch=batch, tokens=seq)
    else:
        points = _drawn(names, ratios, patterns, size=size, batch=batch, seq=seq)
    with counting("sweep", "simulating", "points") as tell:
        jobs = jobs or os.cpu_count() or 1
        results = run_sweep(points, out, jobs=jobs, ray_address=ray, progress=tell)
    stdout.print(filled(*sweep_table(results)))
    for path in write_sweep(results, out):
        stdout.print(f"wrote {path}")
    failed = [result for result in results if result.error]
    for result in failed:
        told = f"{result.point.arch}, {result.point.size}, {result.point.ratio:g}x"
        stderr.print(f"{told}: {result.error}")
    if len(failed) == len(results):
        raise TargetError(
            "nothing could be simulated",
            who="sweep",
            hint="mend what is said above and run the same command again",
        )


def _drawn(
    archs: list[str], ratios: str, patterns: str, *, size: str, batch: int, seq: int
) -> list[Point]:
    """The points of an encoder's sizes, with zeros that are drawn."""
    from sparsefx.backends.accelerator.studies.sweep import SIZES, grid
    from sparsefx.backends.accelerator.workload.bert import Zeros

    kinds = _list(patterns)
    if unknown := [kind for kind in kinds if kind not in get_args(Zeros)]:
        hint = did_you_mean(unknown[0], get_args(Zeros))
        told = f"there is no pattern {unknown[0]!r}"
        raise DataError(told, who="sweep", where="--patterns", hint=hint)
    if size not in SIZES:
        known = ", ".join(SIZES)
        raise DataError(f"there is no size {size!r}; known: {known}", who="sweep", where="--size")
    try:
        wanted = [float(ratio) for ratio in _list(ratios)]
    except ValueError as error:
        raise DataError(f"{ratios!r} are not numbers", who="sweep", where="--ratios") from error
    if not wanted or not kinds:
        raise DataError("name a ratio and a pattern", who="sweep", where="--ratios, --patterns")
    some = [cast("Pattern", kind) for kind in kinds]
    return grid(archs, wanted, some, size=size, batch=batch, tokens=seq)


def _saved(model: str, out: Path) -> Path:
    """The folder of a saved Program: the one named, or a copy of the model captured."""
    if is_program(Path(model)):
        return Path(model)
    program = open_program(model)
    return program.save(out / "programs" / f"{Path(model).name}-{program.fingerprint()[:8]}")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
