"""``sparsefx import``: a recipe or configuration of another tool becomes a sparsefx recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsefx.cli.console import stdout
from sparsefx.cli.outputs import Overwrite, check_new
from sparsefx.storage.files import write_text

__all__ = ["command"]


def command(
    file: Annotated[
        Path,
        typer.Argument(help="SparseML recipe, or Neural Compressor or Prune OFA configuration."),
    ],
    out: Annotated[Path, typer.Option(help="Where the recipe is written (.yaml).")],
    overwrite: Overwrite = False,
) -> None:
    """Turn a recipe of another tool into one of sparsefx; list what it cannot hold."""
    from sparsefx.importers.files import import_recipe

    found = import_recipe(file)
    check_new({"--out": out}, who="import", overwrite=overwrite)
    write_text(out, found.recipe.to_yaml())
    stages = ", ".join(stage.name for stage in found.recipe.stages)
    stdout.print(f"{out}: stages {stages}")
    stdout.print(f"carried over ({len(found.carried)}):")
    for line in found.carried:
        stdout.print(f"  {line}")
    stdout.print(f"not carried over ({len(found.left_out)}):")
    for item in found.left_out:
        stdout.print(f"  {item}")
