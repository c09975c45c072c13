"""The command ``sparsefx``: one module for each subcommand, put together in ``app``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    A mistake of the user ends in one message and exit code 2, an interrupt in exit code 130.
    """
    from rich.console import Console

    from sparsefx.cli.app import app
    from sparsefx.cli.console import LEADS
    from sparsefx.errors import SparsefxError, TrainingInterruptedError

    try:
        app(args=arguments, prog_name="sparsefx")
    except SparsefxError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        interrupted = isinstance(error, TrainingInterruptedError)
        if LEADS or not interrupted:
            console.print(f"[bold red]error[/] {type(error).__name__}", end=": ")
            console.print(str(error), markup=False)
        sys.exit(130 if interrupted else 2)
    except OSError as error:
        if error.filename is None:
            raise
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("[bold red]error[/]", end=" ")
        console.print(f"file at {error.filename}: {error.strerror}", markup=False)
        console.print("  hint: check that the path exists, is of the right kind and writable")
        sys.exit(2)
