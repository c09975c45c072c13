"""How commands find the Program that the user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsefx.errors import ArtifactError

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["open_program"]


def open_program(place: str) -> Program:
    """Return a saved Program, the final one of a run folder, or a Hugging Face model captured.

    Raises:
        ArtifactError: When it is none of these.
    """
    from sparsefx.program import Program

    folder = Path(place)
    if (folder / "manifest.json").exists() or (folder / "graph.json").exists():
        return Program.load(folder)
    if (folder / "result.json").exists() and (folder / "run.json").exists():
        from sparsefx.train.results import RunResult

        return RunResult.read(folder).program
    if folder.exists() and not (folder / "config.json").exists():
        raise ArtifactError(
            "neither a saved Program (manifest.json) nor a Hugging Face model (config.json)",
            who="open",
            where=place,
        )
    from sparsefx.huggingface import capture_pretrained

    return capture_pretrained(place)
