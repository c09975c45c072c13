"""How commands find the Program that the user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsefx.errors import ArtifactError

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["open_program"]


def open_program(place: str) -> Program:
    """Return the Program in a folder: a saved Program, or a Hugging Face model to capture.

    Raises:
        ArtifactError: When it is neither.
    """
    from sparsefx.program import Program

    folder = Path(place)
    if (folder / "manifest.json").exists() or (folder / "graph.json").exists():
        return Program.load(folder)
    if folder.is_dir() and (folder / "program").is_dir():
        return Program.load(folder / "program")
    if folder.exists() and not (folder / "config.json").exists():
        raise ArtifactError(
            "neither a saved Program (manifest.json) nor a Hugging Face model (config.json)",
            who="open",
            where=place,
        )
    from sparsefx.huggingface import capture_pretrained

    return capture_pretrained(place)
