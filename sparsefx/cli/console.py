"""The two consoles of the command line, and how it shows numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from sparsefx.cli import LEADS

__all__ = ["filled", "format_bytes", "format_count", "say", "show_table", "stderr", "stdout"]

# Files and pipes have no width of their own, and a table should not lose its names there.
_WIDE = 160


def _console(*, errors: bool) -> Console:
    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(
        stderr=errors, highlight=False, markup=False, soft_wrap=True, width=width, quiet=not LEADS
    )


stdout = _console(errors=False)
stderr = _console(errors=True)


def say(text: str) -> None:
    """Print prose: a terminal breaks it between words, and a file has each line whole."""
    stdout.print(text, soft_wrap=not stdout.is_terminal)


def filled(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table; what has no room goes on in the next line, and nothing is cut."""
    table = Table(box=None)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; where a terminal has no room for its columns, they become its rows."""
    rows = list(rows)
    table = filled(head, rows)
    unlimited = stdout.options.update(max_width=sys.maxsize)
    if Measurement.get(stdout, unlimited, table).maximum > stdout.width:
        first, *others = zip(head, *rows, strict=True)
        table = filled(first, others)
        table.columns[0].no_wrap = True
    stdout.print(table)


def format_count(count: float) -> str:
    """Return e.g. ``10.6 M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f}"


def format_bytes(count: float) -> str:
    """Return e.g. ``12.3 MB`` (1 MB is 10^6 bytes)."""
    return f"{format_count(count)}B" if count >= 1e3 else f"{count:.0f} B"
