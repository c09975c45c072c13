"""``sparsefx opt``: run a pipeline text on a saved Program and show before and after."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsefx.cli.console import filled, stdout
from sparsefx.cli.outputs import Overwrite, check_new, check_new_program
from sparsefx.cli.programs import open_program, save
from sparsefx.errors import SpecError

if TYPE_CHECKING:
    from sparsefx.program import HistoryEntry

__all__ = ["command"]


def command(
    program: Annotated[str, typer.Argument(help="Folder of a saved Program, or a model.")],
    passes: Annotated[
        str, typer.Option("--passes", "-p", help="Passes, with commas, e.g. simplify,fold-masks.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Save the result here.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--program", help="A further Program by name, e.g. teacher=FOLDER."),
    ] = None,
    facts: Annotated[bool, typer.Option(help="Show shapes, zeros and origins.")] = False,
    full: Annotated[bool, typer.Option(help="Print both graphs whole.")] = False,
    dump_dir: Annotated[
        Path | None, typer.Option(help="Write the graph after each pass to this folder.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Run passes on a Program and print the graph before and after."""
    from sparsefx.instruments import DumpDir, Timing
    from sparsefx.pipeline import Instrument, Pipeline

    pipeline = Pipeline.parse(passes)
    if out is not None:
        check_new_program(out, who="opt", overwrite=overwrite)
    dump = DumpDir(dump_dir, facts) if dump_dir else None
    check_new({"--dump-dir": dump.first if dump else None}, who="opt", overwrite=overwrite)
    opened = open_program(program)
    old, digests = opened.dump(facts=facts), opened.digests()
    begun = len(opened.history)
    others = _named(given or [])
    timing = Timing()
    watchers: list[Instrument] = [timing, *([dump] if dump else [])]
    after = pipeline.run(
        opened,
        programs={name: open_program(place) for name, place in others.items()},
        instruments=watchers,
        in_place=True,
    )
    new = after.dump(facts=facts)
    if full:
        stdout.print(f"before:\n{old}\nafter:\n{new}")
    else:
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), "before", "after", lineterm="", n=2
        )
        stdout.print("\n".join(lines) or "the graph is the same")
    stdout.print(_tensors(digests, after.digests()))
    entries = after.history[begun:]
    rows = _rows(entries, [seconds for _, seconds in timing.seconds])
    stdout.print(filled(("pass", "applied", "skipped", "changed", "seconds"), rows))
    for entry in entries:
        for text in (*entry.notes, *(f"skipped {skip}" for skip in entry.skipped)):
            stdout.print(f"{entry.spec}: {text}")
    if out is not None:
        save(after, out)


def _named(given: list[str]) -> dict[str, str]:
    """Return name -> place of texts such as ``teacher=FOLDER``."""
    found: dict[str, str] = {}
    for text in given:
        name, _, place = text.partition("=")
        if not (name and place):
            raise SpecError("expected NAME=FOLDER", text=text, position=len(name))
        if name in found:
            raise SpecError(f"the program {name!r} is given twice", text=text, position=0)
        found[name] = place
    return found


def _tensors(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Say how many tensors changed, came and went, from their hashes by name."""
    counts = {
        "changed": sum(new[name] != old[name] for name in old.keys() & new.keys()),
        "added": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"tensors: {told or 'none changed'} (of {len(old)})"


def _rows(entries: tuple[HistoryEntry, ...], seconds: list[float]) -> Iterator[tuple[str, ...]]:
    for entry, duration in zip(entries, seconds, strict=True):
        changed = "yes" if entry.changed else "no"
        counts = (str(entry.applied), str(len(entry.skipped)))
        yield entry.spec, *counts, changed, f"{duration:.2f}"
