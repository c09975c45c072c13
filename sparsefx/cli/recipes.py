"""``sparsefx recipes``: the shipped recipes, and one of them as a file to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsefx.cli.console import filled, stdout

__all__ = ["command"]


def command(
    name: Annotated[str | None, typer.Argument(help="Print this recipe as YAML.")] = None,
) -> None:
    """List the shipped recipes, or print one as YAML, to change and give to compress."""
    from sparsefx.recipe import Recipe

    if name is not None:
        print(Recipe.shipped(name).to_yaml(), end="")
        return
    told = {each: " ".join(Recipe.shipped(each).description.split()) for each in Recipe.names()}
    stdout.print(filled(("recipe", "what it does"), told.items()))
    stdout.print("\nsparsefx recipes NAME > mine.yaml begins one of your own.")
