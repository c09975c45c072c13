"""Where tables come from: files, what was read by others, datasets of Hugging Face."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsefx.errors import DataError, first_line
from sparsefx.train.data.tables import Table, read_table

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Rows", "Source", "from_dataset", "open_tables"]

_WHO = "task"
_TAKEN = (
    "a file, the name of a Hugging Face dataset, a datasets.Dataset, a pandas.DataFrame, or a "
    "mapping from split names to these"
)
DataFrame: TypeAlias = Any  # of pandas, which sparsefx does not depend on
Rows: TypeAlias = "str | Path | Table | Dataset | DataFrame"
Source: TypeAlias = "Rows | Mapping[str, Rows]"


Declared = Mapping[str, tuple[str, ...]]


def open_tables(source: Source, header: Sequence[str] | None) -> tuple[dict[str, Table], Declared]:
    """Return split -> table, and column -> the class names that the source itself declares.

    Raises:
        DataError: Nothing is named or what is given holds no rows, or it cannot be read.
    """
    if isinstance(source, str) and not Path(source).suffix and not Path(source).exists():
        return _hub_tables(source)
    splits = source if isinstance(source, Mapping) else {"train": source}
    if not splits:
        raise DataError("no data file is named", who=_WHO)
    tables: dict[str, Table] = {}
    declared: Declared = {}
    for split, each in splits.items():
        mark = f" [{split}]" if isinstance(source, Mapping) else ""
        tables[str(split)], names = _table(each, mark, header)
        declared = {**names, **declared}
    if not any(map(len, tables.values())):
        origin = next(iter(tables.values())).origin
        raise DataError("the data hold no rows", who=_WHO, where=origin)
    return tables, declared


def _table(given: Rows, mark: str, header: Sequence[str] | None) -> tuple[Table, Declared]:
    if isinstance(given, Table):
        return given, {}
    if isinstance(given, str | Path):
        return read_table(given, header), {}
    if _is_of(given, "datasets", "Dataset"):
        return _of_dataset(given, f"Dataset{mark}")
    if _is_of(given, "pandas", "DataFrame"):
        return _of_frame(given, f"DataFrame{mark}"), {}
    why = f"data{mark} are of type {type(given).__name__}"
    raise DataError(why, who=_WHO, hint=f"give {_TAKEN}")


def _is_of(given: object, library: str, name: str) -> bool:
    """Whether it is of a class of a library, which is slow to import only to ask."""
    module = sys.modules.get(library)
    return module is not None and isinstance(given, getattr(module, name))


def _of_frame(frame: Any, origin: str) -> Table:
    import pyarrow as pa

    try:
        columns = pa.Table.from_pandas(frame, preserve_index=False).to_pydict()
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"its columns cannot be read: {first_line(error)}",
            who=_WHO,
            where=origin,
            hint="give columns of different names, each of values of one type",
        ) from error
    return Table(origin, columns, range(1, len(frame) + 1))


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
    read = {split: _of_dataset(part, f"{name} [{split}]") for split, part in loaded.items()}
    if not any(len(table) for table, _ in read.values()):
        raise DataError("the dataset holds no rows", who=_WHO, where=name)
    _, declared = next(iter(read.values()))
    return {str(split): table for split, (table, _) in read.items()}, declared


def _of_dataset(part: Any, origin: str) -> tuple[Table, Declared]:
    # Of a list of classes, one for each word say, the feature of its items has the names.
    owners = {column: getattr(each, "feature", each) for column, each in part.features.items()}
    names = {
        column: tuple(owner.names) for column, owner in owners.items() if hasattr(owner, "names")
    }
    return Table(origin, part.to_dict(), range(1, part.num_rows + 1)), names
