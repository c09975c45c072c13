"""A label column: what it holds, the names of its classes, and the labels as numbers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence

from sparsefx.errors import DataError, did_you_mean
from sparsefx.problem import Kind
from sparsefx.train.data.examples import Label
from sparsefx.train.data.tables import Cell, Table
from sparsefx.train.data.words import UNLABELLED

__all__ = [
    "as_number",
    "check_classes",
    "check_words",
    "class_names",
    "found_labels",
    "guess_kind",
    "is_list",
    "labels_are_hidden",
    "read_labels",
]

logger = logging.getLogger(__name__)
_WHO = "task"
_HIDDEN = frozenset({"", "-1", "-1.0", "None", "nan", str(UNLABELLED)})
_MOST_CLASSES = 1000
"""Of fewer texts than classes; a higher number is hardly an index."""
_FORMS = (
    "a label is a name, an index or a value; a list of them where a text has any number of "
    "classes, or where the text is a list of words"
)
_MARKS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}
_WRITTEN = re.compile(r"\[\s*(['\"\d].*)?\]", re.DOTALL)


def guess_kind(
    cells: Sequence[Cell],
    classes: Sequence[str],
    *,
    words: bool = False,
    outputs: int | None = None,
) -> Kind:
    """Return what a label column holds: numbers where one has a decimal point, else classes.

    Labels that are 0.0 or 1.0 alone are two classes, as pandas writes them beside a missing one.
    For a head of one of ``outputs`` they are values too, unless one is below 0, as -1 hides labels.
    Lists are the classes of each word if ``words``, as texts are lists too; else of a text.
    """
    if any(map(is_list, cells)):
        return "token-classification" if words else "multi-label"
    values = {as_number(cell) for cell in cells}
    if classes or None in values:
        return "classification"
    if outputs == 1 and all(value is not None and value >= 0 for value in values):
        return "regression"
    if values <= {0.0, 1.0}:
        return "classification"
    fractions = any(value is not None and not value.is_integer() for value in values)
    pointed = any("." in str(cell) for cell in cells)
    return "regression" if fractions or pointed else "classification"


def as_number(cell: Cell) -> float | None:
    """Return the number that a cell holds, None where it holds none."""
    try:
        return float(str(cell))
    except ValueError:
        return None


def is_list(cell: object) -> bool:
    """Whether a cell of JSON or parquet holds a list."""
    return isinstance(cell, list | tuple)


def class_names(table: Table, label: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names found in a column: indices count from 0, names are sorted.

    Several columns, each of which says whether a text has a class, are classes by their names.

    Raises:
        DataError: One is a number that is too high for an index, such as a date; or none is found.
    """
    if isinstance(label, tuple):
        return label
    found = found_labels(table, label)
    _refuse_written_lists(table, label)
    if not found:
        told = f"column {label!r} holds no label"
        raise DataError(told, who=_WHO, where=table.origin, hint="every list of it is empty")
    numbers = {name.removesuffix(".0") for name in found}
    if not all(number.removeprefix("-").isdecimal() for number in numbers):
        return tuple(sorted(found - {"", "None", "nan"}))
    highest = max(map(int, numbers))
    if highest >= max(_MOST_CLASSES, len(table)):
        raise DataError(
            f"column {label!r} holds {highest}; classes count from 0, that would be {highest + 1}",
            who=_WHO,
            where=table.origin,
            hint="name the column of the labels, or write classes as names",
        )
    return tuple(str(index) for index in range(highest + 1))


def read_labels(
    table: Table, label: str | tuple[str, ...], classes: Sequence[str], kind: Kind
) -> tuple[Label, ...]:
    """Return the labels of a table, as :class:`Examples` holds them.

    Raises:
        DataError: With file and line: a label that is no class, or no number, or no list.
    """
    if isinstance(label, tuple):
        columns = [[_mark(table, name, row) for row in range(len(table))] for name in label]
        return tuple(zip(*columns, strict=True))
    cells = table.column(label)
    indices = {name: index for index, name in enumerate(classes)}
    if kind in ("multi-label", "token-classification"):
        lists = [_several(table, row, label, indices, kind) for row in range(len(table))]
        if kind == "token-classification":
            return tuple(lists)
        return tuple(tuple(float(at in has) for at in range(len(classes))) for has in lists)
    labels: list[float] = []
    for row, cell in enumerate(cells):
        value = as_number(cell) if kind == "regression" else _class(str(cell).strip(), indices)
        if value is None or _is_several(cell) or not math.isfinite(value):
            raise _no_label(table, row, label, cell, classes, kind)
        labels.append(value)
    return tuple(labels)


def labels_are_hidden(cells: Sequence[Cell]) -> bool:
    """Return whether no cell of a label column says anything.

    >>> labels_are_hidden([-1, -1]), labels_are_hidden(["", None]), labels_are_hidden([-1, 0])
    (True, True, False)
    >>> labels_are_hidden([[-1, -1], [-1]]), labels_are_hidden([[], []])
    (True, False)
    """
    found = _items(cells)
    return bool(found) and found <= _HIDDEN


def check_classes(table: Table, label: str | tuple[str, ...], kind: Kind) -> None:
    """Refuse a training table of which every row, or every word, is of one class or value.

    Of several columns one may say the same of every text, which is told: a sample may lack a class.
    Of texts with any number of classes all may not have the same ones, as it seems where lists hold
    0 and 1 for each of two classes.

    Raises:
        DataError: Names the class, or the classes.
    """
    if isinstance(label, tuple):
        alike = [column for column in label if len(found_labels(table, column)) == 1]
        if alike != list(label):
            for column in alike:
                same = found_labels(table, column).pop()
                logger.warning("%s: column %r holds %r in every row", table.origin, column, same)
            return
        label = label[0]
    if kind == "multi-label":
        _refuse_same_lists(table, label)
    found = found_labels(table, label)
    if len(found) != 1:
        return
    lists = any(map(is_list, table.column(label)))
    where = "alone in its lists" if lists else "in every row"
    more = "; whether a text has one class is told by a label of 0 or 1" if lists else ""
    raise DataError(
        f"column {label!r} holds {found.pop()!r} {where}: there is nothing to tell apart",
        who=_WHO,
        where=table.origin,
        hint="give examples of each class, or check that this is the label column" + more,
    )


def _refuse_same_lists(table: Table, label: str) -> None:
    cells = table.column(label)
    held = {frozenset(_items([cell])) for cell in cells}
    if len(held) != 1 or len(next(iter(held))) < 2:
        return
    marks = next(iter(held)) <= _MARKS.keys() | {"0.0", "1.0", "False", "True"}
    hint = "a list names the classes that a text has"
    if marks:
        hint += "; 0 and 1 for each class are a column each: --label FIRST,SECOND"
    raise DataError(
        f"column {label!r} gives every row the same classes, {cells[0]!r} the first: there is "
        "nothing to tell apart",
        who=_WHO,
        where=table.origin,
        hint=hint,
    )


def check_words(table: Table, texts: Sequence[str], labels: Sequence[Label]) -> None:
    """Refuse more or fewer labels than a text has words, which one blank separates.

    Raises:
        DataError: With file and line.
    """
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        words, held = len(text.split(" ")), len(label) if isinstance(label, tuple) else 1
        if words != held:
            raise DataError(
                f"{held} labels stand beside {words} words",
                who=_WHO,
                where=table.where(row),
                hint="give a list of words, and a list of as many labels",
            )


def _refuse_written_lists(table: Table, label: str) -> None:
    """Refuse texts such as "['a', 'b']", as pandas writes lists to csv: each would be a class."""
    for row, cell in enumerate(table.column(label)):
        if isinstance(cell, str) and _WRITTEN.fullmatch(cell.strip()):
            raise DataError(
                f"column {label!r} holds {cell!r}, the text of a list",
                who=_WHO,
                where=table.where(row),
                hint="write lists as jsonl or parquet, or a column of 0 and 1 for each class",
            )


def _class(name: str, indices: Mapping[str, int]) -> int | None:
    """Return the index of a class given by name, or by index (as datasets or pandas store it)."""
    if name in indices:
        return indices[name]
    plain = name.removesuffix(".0")
    return int(plain) if plain.isdecimal() and int(plain) < len(indices) else None


def found_labels(table: Table, label: str) -> set[str]:
    """Return the labels of a column as texts, also those inside of lists.

    Of lists without ``UNLABELLED``, which datasets of words say of one that has none.
    """
    cells = table.column(label)
    return _items(cells) - ({str(UNLABELLED)} if any(map(is_list, cells)) else set())


def _items(cells: Sequence[Cell]) -> set[str]:
    lists = (each if is_list(each) else (each,) for each in cells)
    return {str(item).strip() for cell in lists for item in cell}  # type: ignore[union-attr]


def _several(
    table: Table, row: int, label: str, indices: Mapping[str, int], kind: Kind
) -> tuple[int, ...]:
    """Return the classes in a list of labels."""
    cell: object = table.column(label)[row]
    if not isinstance(cell, list | tuple):
        told = f"column {label!r} holds {cell!r}, not a list of labels"
        raise DataError(told, who=_WHO, where=table.where(row), hint=_FORMS)
    none = {str(UNLABELLED): UNLABELLED} if kind == "token-classification" else {}
    found = [_class(str(item).strip(), {**indices, **none}) for item in cell]
    if None in found:
        raise _no_label(table, row, label, cell[found.index(None)], tuple(indices), kind)
    if kind == "multi-label" and len({*found}) < len(found):
        raise DataError(
            f"column {label!r} holds {cell!r}, which names a class twice",
            who=_WHO,
            where=table.where(row),
            hint="a list names the classes that a text has; 0 and 1 for each class are a column "
            "each: --label FIRST,SECOND",
        )
    return tuple(each for each in found if each is not None)


def _mark(table: Table, name: str, row: int) -> float:
    """Return whether a text has the class of a column: 0.0 or 1.0."""
    cell = table.column(name)[row]
    found = _MARKS.get(str(cell).strip().lower().removesuffix(".0"))
    if found is None:
        raise DataError(
            f"column {name!r} holds {cell!r}, not 0 or 1",
            who=_WHO,
            where=table.where(row),
            hint="each of several label columns says whether a text has that class",
        )
    return found


def _is_several(cell: object) -> bool:
    """Whether a cell of JSON or parquet holds a list or an object, whose text is no name."""
    return isinstance(cell, Collection) and not isinstance(cell, str)


def _no_label(
    table: Table, row: int, label: str, cell: Cell, classes: Sequence[str], kind: Kind
) -> DataError:
    if _is_several(cell):
        told = f"column {label!r} holds {cell!r}, not one label"
        return DataError(told, who=_WHO, where=table.where(row), hint=_FORMS)
    if kind == "regression":
        return DataError(
            f"column {label!r} holds {cell!r}, not a number",
            who=_WHO,
            where=table.where(row),
            hint="labels for one output are numbers; classes need a head with an output for each",
        )
    hint = did_you_mean(str(cell), classes)
    if str(cell).strip() in _HIDDEN:
        count = sum(bool(_items([each]) & _HIDDEN) for each in table.column(label))
        hint = f"{count} of {len(table)} rows have no label: take them out, or label them"
        if str(cell).strip().startswith("-1"):
            hint += "; -1 stands for a hidden label, so give a class of that name another one"
    elif tuple(classes) != tuple(map(str, range(len(classes)))):
        hint += f"; or as numbers, 0 to {len(classes) - 1}"
    return DataError(
        f"column {label!r} holds {cell!r}, which is none of the {len(classes)} classes",
        who=_WHO,
        where=table.where(row),
        hint=hint,
    )
