"""Which columns of a table hold text and label, when nobody says so."""

from __future__ import annotations

from collections.abc import Collection

from sparsefx.errors import DataError

__all__ = ["find_label", "find_text"]

_PAIRS = (
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("#1 String", "#2 String"),
    ("text1", "text2"),
)
_TEXTS = ("sentence", "review", "content")
_LABELS = ("label", "gold_label", "Quality", "is_duplicate", "score", "labels")


def find_text(columns: Collection[str], origin: str) -> str | tuple[str, str]:
    """Return the text column, or the two of a pair: by the names that GLUE's files have.

    >>> find_text(["index", "question", "sentence", "label"], "dev.tsv")
    ('question', 'sentence')
    >>> find_text(["text", "label"], "train.csv"), find_text(["sentence"], "more.csv")
    ('text', 'sentence')

    Raises:
        DataError: None of the names is known.
    """
    names = set(columns)
    if "text" in names or (len(names) == 1 and not names & set(_TEXTS)):
        return "text"  # a single one may be several that were not told apart
    for pair in _PAIRS:
        if names >= set(pair):
            return pair
    for name in _TEXTS:
        if name in names:
            return name
    raise _unknown("text", columns, origin, "--text COLUMN, or --text FIRST,SECOND")


def find_label(columns: Collection[str], origin: str) -> str:
    """Return the label column.

    >>> find_label(["index", "sentence1", "sentence2", "score"], "dev.tsv")
    'score'

    Raises:
        DataError: None of the names is known.
    """
    for name in _LABELS:
        if name in columns or len(columns) == 1:  # then the text column is looked for first
            return name
    raise _unknown("labels", columns, origin, "--label COLUMN")


def _unknown(what: str, columns: Collection[str], origin: str, option: str) -> DataError:
    listed = ", ".join(map(repr, columns))
    return DataError(
        f"none of the columns {listed} is known to hold the {what}",
        who="data",
        where=origin,
        hint=f"give {option}; a file of GLUE without a header needs --task",
    )
