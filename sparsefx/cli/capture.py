"""``sparsefx capture``: a Hugging Face model becomes a saved Program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsefx.cli.programs import save, warn_not_finite

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Argument(help="Hugging Face id, or a folder with config.json.")],
    out: Annotated[Path, typer.Argument(help="Folder for the Program.")],
) -> None:
    """Capture a Hugging Face encoder as a graph and save it."""
    from sparsefx.huggingface import capture_pretrained
    from sparsefx.storage.programs import check_free

    check_free(out)
    program = capture_pretrained(model)
    warn_not_finite(program, model)
    save(program, out)
