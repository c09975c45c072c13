"""The two consoles of the command line, and how it shows numbers."""

from __future__ import annotations

import sys

from rich.console import Console

from sparsefx.cli import LEADS

__all__ = ["format_bytes", "format_count", "stderr", "stdout"]

# Files and pipes have no width of their own, and a table should not lose its names there.
_WIDE = 160


def _console(*, errors: bool) -> Console:
    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(stderr=errors, highlight=False, soft_wrap=True, width=width, quiet=not LEADS)


stdout = _console(errors=False)
stderr = _console(errors=True)


def format_count(count: float) -> str:
    """Return e.g. ``10.6 M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f}"


def format_bytes(count: float) -> str:
    """Return e.g. ``12.3 MB`` (1 MB is 10^6 bytes)."""
    return f"{format_count(count)}B" if count >= 1e3 else f"{count:.0f} B"
