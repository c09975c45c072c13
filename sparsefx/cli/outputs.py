"""What commands write to: nothing that is there is lost unless the user says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sparsefx.errors import ArtifactError
from sparsefx.storage.places import is_program

__all__ = ["Overwrite", "check_new", "check_new_program"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def check_new(outputs: Mapping[str, Path | None], *, who: str, overwrite: bool) -> None:
    """Refuse files that are there already, before the work that makes them.

    Args:
        outputs: The files, by the options that name them; None where an option is not given.
        who: The command.
        overwrite: Whether the user lets them be replaced; folders never are.

    Raises:
        ArtifactError: Names the first of them.
    """
    for option, path in outputs.items():
        is_folder = path is not None and path.is_dir()
        if path is None or not (is_folder or (path.is_file() and not overwrite)):
            continue
        raise ArtifactError(
            "it is a folder" if is_folder else "there is a file already",
            who=who,
            where=str(path),
            hint=f"choose another {option}" + ("" if is_folder else ", or give --overwrite"),
        )


def check_new_program(folder: Path, *, who: str, overwrite: bool) -> None:
    """Refuse a folder where no Program can be saved, or where one lies.

    Raises:
        ArtifactError: Says what is there.
    """
    from sparsefx.storage.programs import check_free

    check_free(folder)
    if is_program(folder) and not overwrite:
        raise ArtifactError(
            "there is a Program already",
            who=who,
            where=str(folder),
            hint="choose another folder, or give --overwrite",
        )
