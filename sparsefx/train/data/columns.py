"""Which columns of a table hold text and label, when nobody says so, and the texts in them."""

from __future__ import annotations

from collections.abc import Collection

from sparsefx.errors import DataError
from sparsefx.train.data.labels import is_list
from sparsefx.train.data.tables import Table

__all__ = ["find_label", "find_text", "holds_words", "read_texts"]

_WHO = "task"

_PAIRS = (
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("#1 string", "#2 string"),
    ("text1", "text2"),
)
_WORDS, _OF_WORDS = ("tokens", "words"), ("ner_tags", "tags")
_TEXTS = ("sentence", "review", "content", *_WORDS)
_LABELS = (
    "label",
    "gold_label",
    "quality",
    "is_duplicate",
    "score",
    "labels",
    *_OF_WORDS,
)


def find_text(columns: Collection[str], origin: str) -> str | tuple[str, str]:
    """Return the text column, or the two of a pair: by names that GLUE's files have, in any case.

    >>> find_text(["index", "question", "sentence", "label"], "dev.tsv")
    ('question', 'sentence')
    >>> find_text(["Text", "Label"], "train.csv"), find_text(["sentence"], "more.csv")
    ('Text', 'sentence')
    >>> find_text(["text", "tokens", "ner_tags"], "train.jsonl")
    'tokens'

    Raises:
        DataError: None of the names is known.
    """
    known = _in_any_case(columns)
    label = next((name for name in _LABELS if name in known), None)
    words = next((name for name in _WORDS if name in known), None)
    if label in _OF_WORDS and words is not None:
        return known[words]  # though the text stands beside them as a whole
    if "text" in known or (len(known) == 1 and not known.keys() & set(_TEXTS)):
        return known.get("text", "text")  # a single one may be several that were not told apart
    for first, second in _PAIRS:
        if known.keys() >= {first, second}:
            return known[first], known[second]
    for name in _TEXTS:
        if name in known:
            return known[name]
    raise _unknown("text", columns, origin, "--text COLUMN, or --text FIRST,SECOND")


def find_label(columns: Collection[str], origin: str) -> str:
    """Return the label column.

    >>> find_label(["index", "sentence1", "sentence2", "score"], "dev.tsv")
    'score'

    Raises:
        DataError: None of the names is known.
    """
    known = _in_any_case(columns)
    for name in _LABELS:
        if name in known or len(columns) == 1:  # then the text column is looked for first
            return known.get(name, name)
    raise _unknown("labels", columns, origin, "--label COLUMN")


def _in_any_case(columns: Collection[str]) -> dict[str, str]:
    """Return name in lower case -> name; one that is written so goes before others."""
    lower = {name: name for name in columns if name == name.lower()}
    return {name.lower(): name for name in columns} | lower


def _unknown(what: str, columns: Collection[str], origin: str, option: str) -> DataError:
    listed = ", ".join(map(repr, columns))
    return DataError(
        f"none of the columns {listed} is known to hold the {what}",
        who="data",
        where=origin,
        hint=f"give {option}; a file of GLUE without a header needs --task",
    )


def holds_words(table: Table, text: str | tuple[str, str]) -> bool:
    """Whether the texts of a column are lists of words."""
    return isinstance(text, str) and any(map(is_list, table.column(text)))


def read_texts(
    table: Table, text: str | tuple[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return the texts of a column, or of the two columns of pairs; words are joined by blanks.

    Raises:
        DataError: With file and line: a text that is empty or none, or a word with a blank in it.
    """
    if isinstance(text, str):
        return _text_column(table, text), None
    first, second = text
    if first == second:
        raise DataError(
            f"the two texts of a pair are both of column {first!r}",
            who=_WHO,
            where=table.origin,
            hint=f"--text {first} takes one text; a pair is of two columns",
        )
    return _text_column(table, first), _text_column(table, second)


def _no_text(cell: object) -> str:
    """Return what to do about a cell that is no text; nothing if it is one."""
    if isinstance(cell, list | tuple) and cell and all(isinstance(word, str) for word in cell):
        wrong = next((word for word in cell if not word or " " in word), None)
        if wrong is None:
            return _no_text(" ".join(cell))
        return f"{wrong!r} is no word: a list holds the words of a text"
    if isinstance(cell, Collection) and cell and not isinstance(cell, str):
        return "fields inside of it are not read: write the text as a field of its own"
    if not isinstance(cell, str) or not cell.strip():
        return "fill the row or remove it"
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        return f"{half!r} is half of a character: mend or remove it"
    return ""


def _text_column(table: Table, name: str) -> tuple[str, ...]:
    cells = table.column(name)
    for row, cell in enumerate(cells):
        if hint := _no_text(cell):
            told = f"column {name!r} holds {cell!r}, not a text"
            raise DataError(told, who=_WHO, where=table.where(row), hint=hint)
    return tuple(" ".join(cell) if is_list(cell) else str(cell) for cell in cells)  # type: ignore[arg-type]  # of words
