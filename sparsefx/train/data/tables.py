"""Reading of data files (csv, tsv, jsonl, parquet, text, conll) into columns with line numbers."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparsefx.errors import DataError, did_you_mean

__all__ = ["FORMATS", "Cell", "Table", "read_table"]

Cell = str | int | float | bool | list[str] | None
_READER = "data reader"


@dataclass(frozen=True)
class Table:
    """Columns of one file or dataset split, all of one length.

    Attributes:
        origin: The file or dataset the rows came from, for messages.
        columns: Column name -> cells, in the order of the file.
        lines: For every row, the line of the file it starts on (1-based), or its row number.
    """

    origin: str
    columns: Mapping[str, Sequence[Cell]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> Sequence[Cell]:
        """Return the cells of a column.

        Raises:
            DataError: There is no such column; the closest name is suggested.
        """
        if name in self.columns:
            return self.columns[name]
        raise DataError(
            f"there is no column {name!r} (columns: {', '.join(map(repr, self.columns))})",
            who=_READER,
            where=self.origin,
            hint=self._other_separator() or did_you_mean(name, self.columns),
        )

    def _other_separator(self) -> str:
        """Return a hint when the only column looks like several that were not told apart."""
        names = list(self.columns)
        found = next((mark for mark in ";\t|," if mark in names[0]), "")
        if len(names) > 1 or not found:
            return ""
        return f"its columns are separated by {found!r}: .csv takes ',' and .tsv takes tabs"

    def with_header(self, names: Sequence[str]) -> Table:
        """Return the table of a file without a header, whose first row was read as one.

        Raises:
            DataError: The rows have another number of fields than there are names.
        """
        if len(names) != len(self.columns):
            raise DataError(
                f"the row has {len(self.columns)} fields, the header {len(names)}",
                who=_READER,
                where=f"{self.origin}, line 1",
            )
        pairs = zip(names, self.columns.items(), strict=True)
        columns = {name: [first, *cells] for name, (first, cells) in pairs}
        return Table(self.origin, columns, [1, *self.lines])

    def where(self, row: int) -> str:
        """Return 'file, line N' of a row, for messages."""
        return f"{self.origin}, line {self.lines[row]}"


def read_table(path: Path | str, header: Sequence[str] | None = None) -> Table:
    """Read one data file; the suffix decides the format.

    ``.csv`` has quoted fields; ``.tsv`` has none (a quote is a letter, as in GLUE); ``.jsonl``
    has one object a line; ``.txt`` has one text a line and yields the single column ``text``;
    ``.conll`` has a word and its tag a line, an empty line behind each sentence, and yields the
    columns ``tokens`` and ``tags``, lists of both.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, ``.txt`` or ``.conll`` file, in UTF-8.
        header: Column names of a csv or tsv file that has no header line (CoLA).

    Raises:
        DataError: The file is missing, empty, undecodable, ragged, or of an unknown format.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(
            "it is a folder", who=_READER, where=str(path), hint="give a file that lies in it"
        )
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"the format {path.suffix or '(no suffix)'!r} is not known",
            who=_READER,
            where=str(path),
            hint=f"give a file that ends in {', '.join(FORMATS)}",
        )
    if not path.is_file():
        raise DataError(
            "there is no such file",
            who=_READER,
            where=str(path),
            hint="check the path; a Hugging Face dataset is named without a suffix",
        )
    table = reader(path, header)
    if not len(table):
        raise DataError("the file holds no rows", who=_READER, where=str(path))
    return table


def _text(path: Path) -> str:
    """Return the decoded file; an error names the line of the first byte that is no text."""
    data = path.read_bytes()
    if not data.strip():
        raise DataError("the file is empty", who=_READER, where=str(path))
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
    hint = f"save the file as UTF-8, e.g. `iconv -f {encoding} -t utf-8 OLD > NEW`"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"byte 0x{data[error.start]:02x} is not valid UTF-8",
            who=_READER,
            where=f"{path}, line {line}",
            hint=hint,
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        if 4 * text.count("\0") < len(text):  # of UTF-16 without a mark they are every second byte
            hint = "remove it, e.g. `tr -d '\\000' < OLD > NEW`"
        else:
            hint = hint.replace(encoding, "utf-16le")
        raise DataError("it holds a NUL byte", who=_READER, where=f"{path}, line {line}", hint=hint)
    return text


def _lines(path: Path) -> list[str]:
    """Split at newlines only: U+2028 and its kin are part of the text."""
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _from_rows(
    path: Path, rows: Iterable[tuple[int, list[str]]], header: Sequence[str] | None
) -> Table:
    """Build a table from (line, fields); the first row is the header unless one is given."""
    pending = iter(rows)
    names = list(header) if header is not None else next(pending)[1]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"the header names {', '.join(map(repr, repeated))} twice", who=_READER, where=str(path)
        )
    cells: list[list[str]] = []
    lines: list[int] = []
    for line, fields in pending:
        if not any(field.strip() for field in fields):
            raise DataError("the row is empty", who=_READER, where=f"{path}, line {line}")
        if len(fields) != len(names):
            raise DataError(
                f"the row has {len(fields)} fields, the header {len(names)}",
                who=_READER,
                where=f"{path}, line {line}",
                hint="in .tsv files quotes do not protect a tab; in .csv files they protect commas",
            )
        cells.append(fields)
        lines.append(line)
    columns = {name: [fields[i] for fields in cells] for i, name in enumerate(names)}
    return Table(str(path), columns, lines)


def _read_tsv(path: Path, header: Sequence[str] | None) -> Table:
    rows = ((number, line.split("\t")) for number, line in enumerate(_lines(path), start=1))
    return _from_rows(path, rows, header)


def _read_csv(path: Path, header: Sequence[str] | None) -> Table:
    reader = csv.reader(io.StringIO(_text(path).rstrip("\r\n"), newline=""), strict=True)

    def rows() -> Iterable[tuple[int, list[str]]]:
        start = 1
        for fields in reader:
            yield start, fields
            start = reader.line_num + 1

    limit = csv.field_size_limit(sys.maxsize)  # a text may be a book
    try:
        return _from_rows(path, rows(), header)
    except csv.Error as error:
        raise DataError(
            f"the csv syntax is broken: {error}",
            who=_READER,
            where=f"{path}, line {reader.line_num}",
            hint="a quote inside a quoted field is written twice; files without quoting are .tsv",
        ) from error
    finally:
        csv.field_size_limit(limit)


def _read_jsonl(path: Path, header: Sequence[str] | None) -> Table:
    _refuse_header(path, header)
    rows: list[dict[str, Cell]] = []
    for number, line in enumerate(_lines(path), start=1):
        rows.append(_json_object(path, number, line))
        missing = rows[0].keys() ^ rows[-1].keys()
        if missing:
            raise DataError(
                f"the keys differ from line 1: {', '.join(sorted(map(repr, missing)))}",
                who=_READER,
                where=f"{path}, line {number}",
            )
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return Table(str(path), columns, range(1, len(rows) + 1))


def _json_object(path: Path, number: int, line: str) -> dict[str, Cell]:
    where = f"{path}, line {number}"
    if not line.strip():
        raise DataError("the row is empty", who=_READER, where=where)
    try:
        row = json.loads(line, object_pairs_hook=partial(_object, where))
    except json.JSONDecodeError as error:
        raise DataError(f"this is not JSON: {error.msg}", who=_READER, where=where) from error
    if not isinstance(row, dict):
        raise DataError(
            "the line is not a JSON object",
            who=_READER,
            where=where,
            hint='write one {"text": ..., "label": ...} a line',
        )
    return row


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        told = f"the line names {', '.join(map(repr, repeated))} twice"
        raise DataError(told, who=_READER, where=where)
    return found


def _read_parquet(path: Path, header: Sequence[str] | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _refuse_header(path, header)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"this is not a whole parquet file: {error}", who=_READER, where=str(path)
        ) from error
    return Table(str(path), table.to_pydict(), range(1, table.num_rows + 1))


def _read_txt(path: Path, header: Sequence[str] | None) -> Table:
    _refuse_header(path, header)
    lines = _lines(path)
    return Table(str(path), {"text": lines}, range(1, len(lines) + 1))


def _read_conll(path: Path, header: Sequence[str] | None) -> Table:
    """Read lines of a word, anything, and its tag; an empty line ends a sentence (CoNLL 2003)."""
    _refuse_header(path, header)
    words: list[list[str]] = []
    tags: list[list[str]] = []
    begins: list[int] = []
    inside, width = False, 0
    for number, line in enumerate(_lines(path), start=1):
        fields = [field for field in re.split(r"[ \t]+", line) if field]  # U+00A0 is of a word
        if not fields or fields[0] == "-DOCSTART-":
            inside = False
            continue
        if len(fields) < 2:
            raise DataError(
                f"{line!r} is no word with a tag behind it",
                who=_READER,
                where=f"{path}, line {number}",
                hint="write WORD TAG on each line, and an empty line behind each sentence",
            )
        width = width or len(fields)
        if len(fields) != width:
            raise DataError(
                f"{line!r} has {len(fields)} fields, and the lines before it {width}",
                who=_READER,
                where=f"{path}, line {number}",
                hint="the tag is the last of as many fields in every line; take comments out",
            )
        if not inside:
            words.append([])
            tags.append([])
            begins.append(number)
            inside = True
        words[-1].append(fields[0])
        tags[-1].append(fields[-1])
    return Table(str(path), {"tokens": words, "tags": tags}, begins)


def _refuse_header(path: Path, header: Sequence[str] | None) -> None:
    if header is not None:
        raise DataError(
            "header names can be given for .csv and .tsv files only", who=_READER, where=str(path)
        )


FORMATS: Mapping[str, Callable[[Path, Sequence[str] | None], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
    ".conll": _read_conll,
}
