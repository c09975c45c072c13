"""``sparsefx explain-cpu``: which format every linear gets on the cpu, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsefx.cli.bench import parse_shape
from sparsefx.cli.console import stderr, stdout
from sparsefx.cli.programs import open_program
from sparsefx.errors import DataError

__all__ = ["command"]


def command(
    program: Annotated[str, typer.Argument(help="Folder of a saved Program, or a model.")],
    shape: Annotated[str, typer.Option("--shape", help="BATCHxTOKENS.")] = "1x128",
    target: Annotated[
        str, typer.Option("--target", "-t", help="The cpu target with its options.")
    ] = "cpu",
    timed: Annotated[
        bool, typer.Option("--timed", help="Run every step and show the rate it reaches.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="One entry for each linear, not for each shape.")
    ] = False,
) -> None:
    """Show for every linear what was chosen, what else would cost, and when zeros pay."""
    from sparsefx import registry
    from sparsefx.backends.cpu.target import CpuTarget
    from sparsefx.inputs.lengths import check_length

    batch, tokens = parse_shape(shape, who="explain-cpu")
    chosen = registry.parse_target(target)
    if not isinstance(chosen, CpuTarget):
        raise DataError(
            f"{target!r} is not the cpu target", who="explain-cpu", hint="e.g. -t cpu{isa='avx2'}"
        )
    model = open_program(program).eval()
    check_length(model.config, tokens, "tokens in --shape")
    compiled = chosen.compile(model)
    found = compiled.explain(batch, tokens, timed=timed)
    stdout.print(str(found) if every else found.summary(), end="")
    for reason in compiled.outside:
        stderr.print(f"outside the plan: {reason}")
