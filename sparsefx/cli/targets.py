"""``sparsefx targets``: what a Program can be lowered to, with options."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsefx.cli.console import filled, stderr, stdout
from sparsefx.cli.passes import show_options, summary
from sparsefx.errors import RegistryError

__all__ = ["command"]


def command(
    name: Annotated[str | None, typer.Argument(help="Show this target whole.")] = None,
) -> None:
    """List the targets, or show the documentation and the options of one."""
    from sparsefx import registry

    if name is not None:
        show_options(registry.target_class(name))
        return
    rows = []
    for each in registry.names("targets"):
        try:
            rows.append((each, summary(registry.target_class(each))))
        except RegistryError as error:
            stderr.print(str(error))
    stdout.print(filled(("target", "what it is"), rows))
    stdout.print(
        "\nsparsefx targets NAME shows the options of one; bench, evaluate and compress take it "
        "with them, e.g. cpu{threads=2}.",
    )
