"""One self-contained HTML page: no scripts, no network, readable in print."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsefx.storage.files import write_text

__all__ = ["Page", "paragraph", "table"]

_SHORT = 32

_STYLE = """
:root { color-scheme: light; --ink: #1c1e21; --soft: #5f6670; --line: #d9dde2; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem;
  margin: 2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .5rem 0; } .lead { color: var(--soft); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums;
  font-size: 13.5px; } .whole { white-space: nowrap; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; } pre { background: #f5f6f8; padding: .8rem; overflow-x: auto;
  font-size: 12.5px; } .scroll { overflow-x: auto; } footer { color: var(--soft);
  font-size: 13px; margin-top: 3rem; }
@media screen and (max-width: 45rem) { svg { max-width: none; } }
"""


@dataclass
class Page:
    """Collects sections and writes the page.

    Attributes:
        title: Heading of the page.
        lead: One or two sentences below it.
    """

    title: str
    lead: str = ""

    def __post_init__(self) -> None:
        self._parts: list[str] = []

    def section(self, title: str, *bodies: str) -> None:
        """Add a heading and below it pieces of HTML (of this module or of plots)."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>\n" + "\n".join(map(_framed, bodies)))

    def render(self, footer: str = "") -> str:
        """Return the page."""
        lead = f'<p class="lead">{html.escape(self.lead)}</p>' if self.lead else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>{_STYLE}</style></head>\n"
            f"<body>\n<h1>{html.escape(self.title)}</h1>\n{lead}\n"
            + "\n".join(self._parts)
            + f"\n<footer>{html.escape(footer)}</footer>\n</body>\n</html>\n"
        )

    def write(self, path: Path, footer: str = "") -> Path:
        """Write the page to ``path`` and return it."""
        write_text(path, self.render(footer))
        return path


def _framed(body: str) -> str:
    """Let a figure scroll by itself: on a narrow screen its letters would be too small to read."""
    return f'<div class="scroll">{body}</div>' if body.startswith("<svg") else body


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its first column aligned left, others right; short cells do not wrap."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>\n{body}</table></div>'


def _cell(text: str) -> str:
    kept = ' class="whole"' if len(text) <= _SHORT else ""
    return f"<td{kept}>{html.escape(text)}</td>"
