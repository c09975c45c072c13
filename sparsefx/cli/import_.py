"""``sparsefx import``: a recipe or configuration of another tool becomes a sparsefx recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsefx.cli.console import stdout
from sparsefx.errors import RecipeError

__all__ = ["command"]


def command(
    file: Annotated[
        Path,
        typer.Argument(help="SparseML recipe, or Neural Compressor or Prune OFA configuration."),
    ],
    out: Annotated[Path, typer.Option(help="Where the recipe is written (.yaml).")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file there.")] = False,
) -> None:
    """Turn a recipe of another tool into one of sparsefx; list what it cannot hold."""
    from sparsefx.importers.files import import_recipe

    found = import_recipe(file)
    if out.exists() and not overwrite:
        raise RecipeError(
            "it is a folder" if out.is_dir() else "there is a file already",
            who="import",
            where=str(out),
            hint="choose another --out" + ("" if out.is_dir() else ", or give --overwrite"),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(found.recipe.to_yaml(), encoding="utf-8")
    stages = ", ".join(stage.name for stage in found.recipe.stages)
    stdout.print(f"{out}: stages {stages}", markup=False)
    stdout.print(f"carried over ({len(found.carried)}):")
    for line in found.carried:
        stdout.print(f"  {line}", markup=False)
    stdout.print(f"not carried over ({len(found.left_out)}):")
    for item in found.left_out:
        stdout.print(f"  {item}", markup=False)
