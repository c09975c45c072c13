"""What commands write to: nothing that is there is lost unless the user says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sparsefx.errors import ArtifactError
from sparsefx.storage.places import is_program

__all__ = ["Overwrite", "check_new", "check_new_program"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def check_new(outputs: Mapping[str, Path | None], *, who: str, overwrite: bool) -> None:
    """Refuse files that are there already, or cannot be, before the work that makes them.

    Args:
        outputs: The files, by the options that name them; None where an option is not given.
        who: The command.
        overwrite: Whether the user lets them be replaced; folders never are.

    Raises:
        ArtifactError: Names the first of them.
    """
    for option, path in outputs.items():
        is_there = path is not None and path.is_file() and not overwrite
        why = "there is a file already" if is_there else _unwritable(path)
        if why:
            hint = f"choose another {option}" + (", or give --overwrite" if is_there else "")
            raise ArtifactError(why, who=who, where=str(path), hint=hint)


def _unwritable(path: Path | None) -> str:
    """Say why no file can be written at a path; "" where one can, as far as rights tell."""
    if path is None:
        return ""
    if path.is_dir():
        return "it is a folder"
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if nearest != path and not nearest.is_dir():
        return f"{nearest} is a file"
    return "" if os.access(nearest, os.W_OK) else f"{nearest} cannot be written to"


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
