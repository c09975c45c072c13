"""``sparsefx sweep``: many simulations, one table and one plot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.progress import Progress

from sparsefx.cli.console import stderr, stdout
from sparsefx.errors import DataError

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; gone on with.")],
    archs: Annotated[str, typer.Option(help="Presets or files, with commas.")] = "anton",
    ratios: Annotated[str, typer.Option(help="Compressions, with commas.")] = "1,2,4,8,16",
    patterns: Annotated[str, typer.Option(help="random, balanced, or both.")] = "random,balanced",
    size: Annotated[str, typer.Option(help="bert-base or bert-large.")] = "bert-base",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 128,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
    ray: Annotated[str, typer.Option(help="Address of a Ray cluster, or local.")] = "",
) -> None:
    """Simulate architectures x compressions x patterns; a stopped sweep goes on where it was."""
    from sparsefx.backends.accelerator.archfile import load_architecture
    from sparsefx.backends.accelerator.sweep import Pattern, grid, run_sweep, write_sweep

    kinds = _list(patterns)
    if unknown := [kind for kind in kinds if kind not in ("random", "balanced")]:
        raise DataError(f"there is no pattern {unknown[0]!r}", who="sweep", where="--patterns")
    for name in _list(archs):
        load_architecture(name)
    try:
        wanted = [float(ratio) for ratio in _list(ratios)]
    except ValueError as error:
        raise DataError(f"{ratios!r} are not numbers", who="sweep", where="--ratios") from error
    points = grid(
        _list(archs),
        wanted,
        [cast("Pattern", kind) for kind in kinds],
        size=size,
        batch=batch,
        tokens=seq,
    )
    with Progress(console=stderr) as bar:
        task = bar.add_task("simulating", total=len(points))
        results = run_sweep(
            points,
            out,
            jobs=jobs or os.cpu_count() or 1,
            ray_address=ray,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for path in write_sweep(results, out):
        stdout.print(f"wrote {path}", markup=False)
    for result in results:
        if result.error:
            stderr.print(f"{result.point.arch} {result.point.ratio:g}x: {result.error}")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
