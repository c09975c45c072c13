"""Options that name labelled texts, which several commands have, and what they mean."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["FILE_HELP", "Label", "Text", "label_columns", "text_columns"]

FILE_HELP = "A csv, tsv, jsonl, parquet or conll file."
_LABEL_HELP = (
    "Label column, or several with commas, each 0 or 1 for the class of its name. Default: by its "
    "name."
)
_TEXT_HELP = "Text column, or two: first,second. Default: by their names."
Label = Annotated[str | None, typer.Option(help=_LABEL_HELP)]
Text = Annotated[str | None, typer.Option(help=_TEXT_HELP)]


def text_columns(text: str | None) -> str | tuple[str, str] | None:
    """Return one column, or the two that a comma separates; None where nobody said."""
    if text is None:
        return None
    first, comma, second = text.partition(",")
    return (first.strip(), second.strip()) if comma else first


def label_columns(label: str | None) -> str | tuple[str, ...] | None:
    """Return one column, or several that commas separate; None where nobody said."""
    if label is None or "," not in label:
        return label
    return tuple(name.strip() for name in label.split(","))
