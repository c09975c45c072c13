"""How commands find the Program that the user names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sparsefx.cli.console import stderr, stdout
from sparsefx.errors import ArtifactError
from sparsefx.names import natural
from sparsefx.storage.places import is_program, is_tokenizer

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["open_program", "save", "warn_not_finite"]

_PLACES = "name a folder that capture, opt or compress wrote, or a Hugging Face folder or id"


def open_program(place: str) -> Program:
    """Return a saved Program, the final one of a run folder, or a Hugging Face model captured.

    Weights that are no numbers are warned of.

    Raises:
        ArtifactError: When it is none of these.
    """
    program = _open(place)
    warn_not_finite(program, place)
    return program


def warn_not_finite(program: Program, place: str) -> None:
    """Print a warning that names weights which are no numbers."""
    from sparsefx.graph.finite import describe_weights, not_finite

    if names := not_finite(program):
        stderr.print(f"warning: {place} holds {describe_weights(names)}")


def save(program: Program, folder: Path) -> None:
    """Save a Program, and say so when it takes the place of another."""
    replaced = is_program(folder)
    program.save(folder)
    told = "saved over the Program that was in" if replaced else "saved to"
    stdout.print(f"{told} {folder}: {program!r}")


def _open(place: str) -> Program:
    from sparsefx.program import Program

    if not place:
        raise ArtifactError("no model is named", who="open", hint=_PLACES)
    folder = Path(place)
    if is_program(folder) or (folder / "graph.json").exists():
        return Program.load(folder)
    if (folder / "result.json").exists() and (folder / "run.json").exists():
        from sparsefx.train.results import RunResult

        return RunResult.read(folder).program
    if (folder / "run.json").exists():
        raise ArtifactError(
            "the run is not finished", who="open", where=place, hint=_finished_stages(folder)
        )
    if folder.exists() and not (folder / "config.json").exists():
        raise ArtifactError(
            "neither a saved Program (manifest.json) nor a Hugging Face model (config.json)",
            who="open",
            where=place,
            hint=_inside(folder) or _PLACES,
        )
    from sparsefx.huggingface import capture_pretrained

    return capture_pretrained(place)


def _inside(folder: Path) -> str:
    """Name what was meant where a folder in or around a run is given; "" elsewhere."""
    inside = (folder / "program", *_in_order(folder.glob("*/program")))
    found = [each for each in inside if is_program(each)]
    if not found and is_tokenizer(folder):
        return "this is a tokenizer: name the folder of the model"
    return f"name one of {', '.join(map(str, found))}" if found else ""


def _finished_stages(folder: Path) -> str:
    """Say how a run goes on, and which of its stages can be used meanwhile."""
    again = "run its command again to go on"
    done = _in_order(path.parent / "program" for path in folder.glob("stages/*/result.json"))
    return f"{again}; finished by now: {', '.join(map(str, done))}" if done else again


def _in_order(folders: Iterable[Path]) -> list[Path]:
    return sorted(folders, key=lambda folder: natural(str(folder)))
