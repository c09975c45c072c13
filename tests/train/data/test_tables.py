from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sparsefx.errors import DataError
from sparsefx.train.data.tables import Table, read_table


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_csv_quotes_and_line_numbers(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", b'text,label\r\n"one,\ntwo",1\r\nthree,0\r\n\r\n')
    table = read_table(path)
    assert table.columns == {"text": ["one,\ntwo", "three"], "label": ["1", "0"]}
    assert list(table.lines) == [2, 4]


def test_tsv_leaves_quotes_alone(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.tsv", 'text\tlabel\nhe said "no\t1\nso\u2028what"\t0\n'.encode())
    assert read_table(path).column("text") == ['he said "no', 'so\u2028what"']


def test_tsv_without_header(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.tsv", b"gj04\t1\t\tOur friends\n")
    table = read_table(path, header=("source", "label", "mark", "sentence"))
    assert table.column("sentence") == ["Our friends"]
    assert list(table.lines) == [1]


def test_a_first_row_that_was_taken_for_a_header_is_given_back(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.tsv", b"gj04\t1\t\tOur friends\ngj05\t0\t*\tMine\n")
    names = ("source", "label", "mark", "sentence")
    table = read_table(path).with_header(names)
    assert table == Table(str(path), read_table(path, names).columns, [1, 2])
    with pytest.raises(DataError, match="line 1: the row has 4 fields, the header 3"):
        read_table(path).with_header(names[:3])


def test_jsonl_and_txt(tmp_path: Path) -> None:
    rows = _write(tmp_path, "a.jsonl", b'{"text": "x", "label": 1}\n{"label": 0, "text": "y"}\n')
    assert read_table(rows).columns == {"text": ["x", "y"], "label": [1, 0]}
    assert read_table(_write(tmp_path, "a.txt", b"x\ny\n")).column("text") == ["x", "y"]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["x", "y"], "score": [1.5, 2.0]}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").columns == {"text": ["x", "y"], "score": [1.5, 2.0]}


BAD = {
    "empty": ("a.csv", b"\n \n", "a.csv: the file is empty"),
    "header only": ("a.csv", b"text,label\n", "a.csv: the file holds no rows"),
    "unknown format": (
        "a.xml",
        b"<a/>",
        "the format '.xml' is not known\n  hint: give a file that",
    ),
    "undecodable": (
        "a.tsv",
        b"text\nfine\ncaf\xe9\n",
        "a.tsv, line 3: byte 0xe9 is not valid UTF-8",
    ),
    "NUL": ("a.csv", b"text,label\nfine,1\nx\x00,0\n", "a.csv, line 3: it holds a NUL byte"),
    "a single NUL": ("a.csv", b"text,label\nfi\x00ne,1\n", "hint: remove it, e.g. `tr -d"),
    "UTF-16 without a mark": ("a.csv", "text\nfine\n".encode("utf-16le"), "iconv -f utf-16le"),
    "UTF-16": ("a.csv", "text\ncaf\xe9\n".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
    "empty csv row": ("a.csv", b"text,label\nx,1\n\ny,0\n", "a.csv, line 3: the row is empty"),
    "empty jsonl row": ("a.jsonl", b'{"a": 1}\n\n{"a": 2}\n', "a.jsonl, line 2: the row is empty"),
    "ragged": ("a.tsv", b"text\tlabel\nx\n", "a.tsv, line 2: the row has 1 fields, the header 2"),
    "repeated key": (
        "a.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "a", "text": "b", "label": 1}\n',
        "a.jsonl, line 2: the line names 'text' twice",
    ),
    "repeated": ("a.csv", b"text,text\nx,y\n", "the header names 'text' twice"),
    "broken csv": (
        "a.csv",
        b'text,label\nx,1\n"y"z,0\n',
        "a.csv, line 3: the csv syntax is broken",
    ),
    "not json": ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl, line 2: this is not JSON"),
    "not an object": ("a.jsonl", b"[1]\n", "a.jsonl, line 1: the line is not a JSON object"),
    "other keys": (
        "a.jsonl",
        b'{"a": 1}\n{"b": 1}\n',
        "line 2: the keys differ from line 1: 'a', 'b'",
    ),
    "cut parquet": ("a.parquet", b"PAR1cut", "a.parquet: this is not a whole parquet file"),
}


@pytest.mark.parametrize(("name", "data", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(_write(tmp_path, name, data))
    assert message in str(caught.value)


def test_a_field_may_hold_a_book(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    book = "word " * 50_000
    path = _write(tmp_path, "a.csv", f'text,label\n"{book}",1\n'.encode())
    assert read_table(path).column("text") == [book]
    assert csv.field_size_limit() == limit


def test_missing_file_and_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"it is a folder\n.*give a file that lies in it"):
        read_table(tmp_path / "folder.csv")
    table = read_table(_write(tmp_path, "a.csv", b"sentence,label\nx,1\n"))
    with pytest.raises(DataError) as caught:
        table.column("sentense")
    assert "there is no column 'sentense' (columns: 'sentence', 'label')" in str(caught.value)
    assert "did you mean 'sentence'?" in str(caught.value)


def test_header_is_for_separated_files_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="header names"):
        read_table(_write(tmp_path, "a.txt", b"x\n"), header=("text",))
