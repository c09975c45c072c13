"""Where tables come from: files, tables that were read, datasets of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsefx.errors import DataError, first_line
from sparsefx.train.data.tables import Table, read_table

__all__ = ["Source", "from_dataset", "open_tables"]

_WHO = "task"
Source = str | Path | Table | Mapping[str, str | Path | Table]


Declared = Mapping[str, tuple[str, ...]]


def open_tables(source: Source, header: Sequence[str] | None) -> tuple[dict[str, Table], Declared]:
    """Return split -> table, and column -> the class names that the source itself declares.

    Raises:
        DataError: No file is named, or one cannot be read.
    """
    if isinstance(source, Mapping):
        if not source:
            raise DataError("no data file is named", who=_WHO)
        return {split: _table(each, header) for split, each in source.items()}, {}
    if isinstance(source, Table):
        return {"train": source}, {}
    looks_like_file = isinstance(source, Path) or Path(source).suffix or Path(source).exists()
    if looks_like_file:
        return {"train": read_table(source, header)}, {}
    return _hub_tables(str(source))


def _table(source: str | Path | Table, header: Sequence[str] | None) -> Table:
    return source if isinstance(source, Table) else read_table(source, header)


def _hub_tables(source: str) -> tuple[dict[str, Table], Declared]:
    import datasets

    name, _, configuration = source.partition(":")
    try:
        loaded: Any = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the Hugging Face dataset {source!r} cannot be loaded: {first_line(error)}",
            who=_WHO,
            hint="check the name and the network; a data file is named with its suffix",
        ) from error
    return from_dataset(source, loaded)


def from_dataset(name: str, loaded: Mapping[str, Any]) -> tuple[dict[str, Table], Declared]:
    """Turn a ``datasets.DatasetDict`` into tables and column -> the class names it declares.

    Raises:
        DataError: It holds no rows.
    """
    tables = {
        str(split): Table(f"{name} [{split}]", part.to_dict(), range(1, part.num_rows + 1))
        for split, part in loaded.items()
    }
    if not any(len(table) for table in tables.values()):
        raise DataError("the dataset holds no rows", who=_WHO, where=name)
    features = next(iter(loaded.values())).features
    # Of a list of classes, one for each word say, the feature of its items has the names.
    owners = {column: getattr(each, "feature", each) for column, each in features.items()}
    return tables, {
        column: tuple(owner.names) for column, owner in owners.items() if hasattr(owner, "names")
    }
