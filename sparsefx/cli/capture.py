"""``sparsefx capture``: a Hugging Face model becomes a saved Program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsefx.cli.outputs import Overwrite, check_new_program
from sparsefx.cli.programs import save, warn_not_finite

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Argument(help="Hugging Face id, or a folder with config.json.")],
    out: Annotated[Path, typer.Argument(help="Folder for the Program.")],
    overwrite: Overwrite = False,
) -> None:
    """Capture a Hugging Face encoder as a graph and save it."""
    from sparsefx.huggingface import capture_pretrained

    check_new_program(out, who="capture", overwrite=overwrite)
    program = capture_pretrained(model)
    warn_not_finite(program, model)
    save(program, out)
