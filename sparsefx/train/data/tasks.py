"""Tasks: texts with labels from files, Hugging Face datasets or the GLUE folders."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsefx.errors import DataError, did_you_mean, first_line
from sparsefx.train.data.columns import find_label, find_text
from sparsefx.train.data.examples import Examples, hold_back
from sparsefx.train.data.labels import (
    Kind,
    check_classes,
    class_names,
    guess_kind,
    labels_are_hidden,
    read_labels,
)
from sparsefx.train.data.tables import FORMATS, Table, read_table
from sparsefx.train.metrics import MetricName, ScoreName, check_metric

__all__ = ["Task", "load_task", "load_texts", "text_task"]

_LOG = logging.getLogger(__name__)
_WHO = "task"
Source = str | Path | Table | Mapping[str, str | Path | Table]
_TEST_TEXTS = 2000


@dataclass(frozen=True)
class Task:
    """What a model is trained and scored on.

    Attributes:
        name: For reports.
        kind: Classification into ``classes``, regression to one value, or text without labels.
        classes: Names of the classes, in the order of the head's outputs; empty for the others.
        metric: The task's metric; of text it is the loss that passes put into the graph.
        splits: Split name -> examples; a trainable task has 'train' and 'test'.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    metric: ScoreName
    splits: Mapping[str, Examples]

    def split(self, name: str) -> Examples:
        """Return a split.

        Raises:
            DataError: There is no such split.
        """
        if name in self.splits:
            return self.splits[name]
        raise DataError(
            f"the task {self.name!r} has no split {name!r}",
            who=_WHO,
            hint=did_you_mean(name, self.splits),
        )

    def check_head(self, outputs: int) -> None:
        """Check the labels against the number of outputs of a model's head.

        Raises:
            DataError: A label has no output, or a regression task meets several outputs.
        """
        if self.kind == "text":
            return
        if self.kind == "regression":
            if outputs != 1:
                raise DataError(
                    f"a regression task needs a head with 1 output, this one has {outputs}",
                    who=_WHO,
                    where=self.name,
                    hint="load the model with num_labels=1",
                )
            return
        for examples in self.splits.values():
            largest = int(max(examples.labels or (0,)))
            if largest >= outputs:
                raise DataError(
                    f"label {largest} is outside the range 0..{outputs - 1} of the model's head",
                    who=_WHO,
                    where=examples.origin,
                    hint=f"load the model with num_labels={max(largest + 1, len(self.classes))}",
                )


def load_task(
    source: Source,
    *,
    text: str | tuple[str, str] | None = None,
    label: str | None = None,
    kind: Kind | None = None,
    classes: Sequence[str] | None = None,
    metric: MetricName | None = None,
    name: str | None = None,
    header: Sequence[str] | None = None,
    test_share: float = 0.15,
    seed: int = 0,
) -> Task:
    """Load a task from data files or from a Hugging Face dataset.

    Args:
        source: One file, or a table that was read; a mapping from split names to these; or the
            name of a Hugging Face dataset, with its configuration after a colon (``"glue:mrpc"``).
            Without a 'test' split 'validation', 'dev' or 'validation_matched' serves; without these
            a stratified ``test_share`` of 'train', or of the only split, is held back, and no text
            of it stays there.
        text: The text column, or the two columns of a sentence pair; by default found by the names
            ``text``, ``sentence`` and those of GLUE.
        label: The label column: class names, class indices from 0, or real numbers; by default
            ``label``, or another name that GLUE uses.
        kind: Classification or regression; by default regression when all labels are numbers and
            one of them has a decimal point; 0.0 and 1.0 alone are two classes.
        classes: Names of the classes in the order of the head; by default the dataset's own, or
            the sorted names found in the training split.
        metric: By default accuracy, or for regression Pearson's and Spearman's mean.
        name: For reports; by default taken from ``source``.
        header: Column names of a csv or tsv file without a header line; not for tables.
        test_share: Share of the only split that is held back.
        seed: Seed of the hold-back.

    A split whose labels are all hidden (-1 or empty, as in the test splits of GLUE) is left out.

    Raises:
        DataError: With file and line: a missing column, an empty text, a label that is no class,
            or a training split of one class; a metric that the labels do not have, or splits of
            which none is known to be the one that is trained on.
    """
    tables, declared = _tables(source, header)
    text, label = _columns(_main(tables), text, label)
    tables = _without_hidden(tables, label)
    main = _main(tables)
    classes = tuple(classes) if classes is not None else declared
    kind = kind or guess_kind(main.column(label), classes)
    names = () if kind == "regression" else classes or class_names(main, label)
    splits = {
        split: Examples(
            table.origin, *_sentences(table, text), read_labels(table, label, names, kind)
        )
        for split, table in tables.items()
    }
    if kind == "classification" and "train" in tables:
        check_classes(tables["train"], label)
    metric = _metric(metric, kind, len(names))
    return _with_test(Task(name or _name(source), kind, names, metric, splits), test_share, seed)


def load_texts(
    source: str | Path | Table | Sequence[str | Path],
    text: str | tuple[str, str] | None = None,
) -> Examples:
    """Load texts without labels from data files of any kind, one after the other, or of a table.

    Columns but ``text`` are ignored; by default it is found as :func:`load_task` does, in each
    file. A ``.txt`` file has one column, which need not have that name.

    Raises:
        DataError: As :func:`load_task`.
    """
    texts: list[str] = []
    pairs: list[str] = []
    origins: list[str] = []
    for each in (source,) if isinstance(source, str | Path | Table) else source:
        tables, _ = _tables(each, None)
        table = _main(tables)
        wanted = text or find_text(table.columns, table.origin)
        if isinstance(text, str) and Path(table.origin).suffix == ".txt":
            (wanted,) = table.columns
        first, second = _sentences(table, wanted)
        if origins and (second is None) == bool(pairs):
            why = f"texts and pairs of texts cannot be mixed, and {origins[-1]} has the others"
            hint = "name one column, or two: --text FIRST,SECOND"
            raise DataError(why, who=_WHO, where=table.origin, hint=hint)
        texts += first
        pairs += second or ()
        origins.append(table.origin)
    return Examples(", ".join(origins), tuple(texts), tuple(pairs) or None)


def text_task(
    examples: Examples, *, name: str = "text", test_share: float = 0.05, seed: int = 0
) -> Task:
    """Return what a run trains on that has text alone: no labels, scored by its own loss.

    Args:
        examples: Texts; labels, if there are any, are not used.
        name: For reports.
        test_share: Share of the texts that is held back to score on, at most 2,000 of them.
        seed: Seed of the hold-back.

    Raises:
        DataError: There are too few texts.
    """
    plain = replace(examples, labels=None)
    count = min(_TEST_TEXTS, max(1, round(test_share * len(plain))))
    train, test = hold_back(plain, count, seed)
    return Task(name, "text", (), "loss", {"train": train, "test": test})


def _with_test(task: Task, share: float, seed: int) -> Task:
    """Name the split that is scored 'test', or hold one back from the only split."""
    if "test" in task.splits:
        return task
    for other in ("validation", "dev", "validation_matched"):
        if other in task.splits:
            return replace(task, splits={**task.splits, "test": task.splits[other]})
    if "train" not in task.splits and len(task.splits) > 1:
        raise DataError(
            f"none of the splits {', '.join(map(repr, task.splits))} is 'train' or 'test'",
            who=_WHO,
            where=task.name,
            hint="name the one to train on 'train', and the one to score on 'test'",
        )
    train = task.splits.get("train") or next(iter(task.splits.values()))
    rest, held = hold_back(train, round(share * len(train)), seed)
    others = {name: split for name, split in task.splits.items() if split is not train}
    return replace(task, splits={**others, "train": rest, "test": held})


def _without_hidden(tables: dict[str, Table], label: str) -> dict[str, Table]:
    hidden = [name for name, table in tables.items() if labels_are_hidden(table.column(label))]
    for name in hidden:
        _LOG.warning("the labels of %s are hidden: it is left out", tables[name].origin)
    if len(hidden) == len(tables):
        raise DataError(
            f"column {label!r} holds no label",
            who=_WHO,
            where=tables[hidden[0]].origin,
            hint="texts without labels are given as unlabelled texts",
        )
    return {name: table for name, table in tables.items() if name not in hidden}


def _main(tables: Mapping[str, Table]) -> Table:
    """Return the table that says what the columns and classes of all are."""
    return tables["train"] if "train" in tables else next(iter(tables.values()))


def _metric(given: MetricName | None, kind: Kind, classes: int) -> MetricName:
    """Return the metric, by default that of the kind of labels.

    Raises:
        DataError: There is no such metric, or it says nothing about these labels.
    """
    if given is None:
        return "pearson_spearman" if kind == "regression" else "accuracy"
    check_metric(given)
    wrong = ""
    if (given == "pearson_spearman") != (kind == "regression"):
        wrong = f"is not for labels that are {'values' if kind == 'regression' else 'classes'}"
    elif given in ("f1", "accuracy_f1") and classes > 2:
        wrong = f"looks at class 1 alone, and there are {classes} classes"
    if wrong:
        fit = "pearson_spearman" if kind == "regression" else "accuracy or matthews"
        raise DataError(f"the metric {given!r} {wrong}", who=_WHO, hint=f"take {fit}")
    return given


def _columns(
    table: Table, text: str | tuple[str, str] | None, label: str | None
) -> tuple[str | tuple[str, str], str]:
    """Return the text and label columns, found by their names where nobody gave them."""
    return (
        text or find_text(table.columns, table.origin),
        label or find_label(table.columns, table.origin),
    )


def _name(source: Source) -> str:
    if isinstance(source, Mapping):
        source = next(iter(source.values()))
    text = source.origin if isinstance(source, Table) else str(source)
    return Path(text).stem if Path(text).suffix in FORMATS else text


def _tables(
    source: Source, header: Sequence[str] | None
) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Return split -> table, and the class names that the source itself declares."""
    if isinstance(source, Mapping):
        if not source:
            raise DataError("no data file is named", who=_WHO)
        return {split: _table(each, header) for split, each in source.items()}, ()
    if isinstance(source, Table):
        return {"train": source}, ()
    looks_like_file = isinstance(source, Path) or Path(source).suffix or Path(source).exists()
    if looks_like_file:
        return {"train": read_table(source, header)}, ()
    return _hub_tables(str(source))


def _table(source: str | Path | Table, header: Sequence[str] | None) -> Table:
    return source if isinstance(source, Table) else read_table(source, header)


def _hub_tables(source: str) -> tuple[dict[str, Table], tuple[str, ...]]:
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


def from_dataset(name: str, loaded: Mapping[str, Any]) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Turn a ``datasets.DatasetDict`` into tables and the class names it declares.

    Raises:
        DataError: It holds no rows.
    """
    tables = {
        str(split): Table(f"{name} [{split}]", part.to_dict(), range(1, part.num_rows + 1))
        for split, part in loaded.items()
    }
    if not any(len(table) for table in tables.values()):
        raise DataError("the dataset holds no rows", who=_WHO, where=name)
    features = next(iter(loaded.values())).features.values()
    declared = [tuple(f.names) for f in features if getattr(f, "names", None)]
    return tables, declared[0] if len(declared) == 1 else ()


def _sentences(
    table: Table, text: str | tuple[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
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
    if isinstance(cell, Collection) and not isinstance(cell, str):
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
    return tuple(map(str, cells))
