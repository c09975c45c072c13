"""Tasks: texts with labels from files, Hugging Face datasets or the GLUE folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsefx.errors import DataError, did_you_mean
from sparsefx.problem import Kind, head_classes
from sparsefx.train.data.columns import find_label, find_text, holds_words, read_texts
from sparsefx.train.data.examples import Examples, Label
from sparsefx.train.data.fitting import metric_for
from sparsefx.train.data.labels import (
    check_classes,
    check_words,
    class_names,
    guess_kind,
    labels_are_hidden,
    read_labels,
)
from sparsefx.train.data.sources import Rows, Source, open_tables
from sparsefx.train.data.splits import hold_back, with_test
from sparsefx.train.data.tables import FORMATS, Table
from sparsefx.train.data.words import UNLABELLED
from sparsefx.train.metrics import MetricName, ScoreName

__all__ = ["Task", "load_task", "load_texts", "text_task"]

logger = logging.getLogger(__name__)
_WHO = "task"
_TEST_TEXTS = 2000


@dataclass(frozen=True)
class Task:
    """What a model is trained and scored on.

    Attributes:
        name: For reports.
        kind: Classification into one or any number of ``classes``, or of each word; regression to
            one value; or text without labels.
        classes: Names of the classes, in the order of the head's outputs; empty for the others.
        metric: The task's metric; of text it is the loss that passes put into the graph.
        splits: Split name -> examples; a trainable task has 'train' and 'test'.

    Raises:
        DataError: Labels are of another kind, or of more or fewer classes; there is no such kind,
            or the metric does not fit it.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    metric: ScoreName
    splits: Mapping[str, Examples]

    def __post_init__(self) -> None:
        for examples in self.splits.values():
            examples.check_kind(self.kind, len(self.classes))
        if (self.kind, self.metric) != ("text", "loss"):
            metric_for(self.kind, self.classes, self.metric)

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

    def taught_on(self, texts: Examples) -> Task:
        """Return the task with texts to train on whose labels are not used."""
        return replace(self, splits={**self.splits, "train": replace(texts, labels=None)})

    def with_classes(self, classes: Sequence[str]) -> Task:
        """Return the task with the classes of a head in its order; some may have no example.

        Raises:
            DataError: One of the task's classes is not among them.
        """
        lacking = [name for name in self.classes if name not in classes]
        if lacking:
            raise DataError(
                f"the class {lacking[0]!r} is none of {', '.join(classes)}",
                who=_WHO,
                where=self.name,
                hint="name every class of the task",
            )
        places = [tuple(classes).index(name) for name in self.classes]

        def moved(label: Label) -> Label:
            if not isinstance(label, tuple):
                return places[int(label)]
            if self.kind == "token-classification":
                return tuple(w if w == UNLABELLED else places[int(w)] for w in label)
            has = {place for place, marked in zip(places, label, strict=True) if marked}
            return tuple(float(place in has) for place in range(len(classes)))

        splits = {
            name: replace(each, labels=each.labels and tuple(map(moved, each.labels)))
            for name, each in self.splits.items()
        }
        return replace(self, classes=tuple(classes), splits=splits)

    def check_order(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse a head that has the classes of this task in another order.

        Args:
            config: Hugging Face configuration of the model.
            where: The model, for messages.

        Raises:
            DataError: Its outputs would be taken for those of other classes.
        """
        names = head_classes(config)
        if names != self.classes and sorted(names) == sorted(self.classes):
            raise DataError(
                f"its outputs are {', '.join(names)}, and the task counts its classes as "
                f"{', '.join(self.classes)}",
                who=_WHO,
                where=where,
                hint=f"load the task with classes={names!r}, or write id2label of the model's "
                "config.json in the order of the task if that is what its head tells",
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
                    hint="give a model with one output (num_labels=1), or labels that are classes",
                )
            return
        if self.kind != "classification":
            if outputs != len(self.classes):
                raise DataError(
                    f"the model's head has {outputs} outputs, and the task {len(self.classes)} "
                    "classes",
                    who=_WHO,
                    where=self.name,
                    hint=f"load the model with num_labels={len(self.classes)}",
                )
            return
        for examples in self.splits.values():
            largest = int(max(examples.labels or (0,)))  # type: ignore[arg-type]  # no tuples
            if largest >= outputs:
                keep = "; kind='regression' keeps a head of one output" if outputs == 1 else ""
                wanted = max(largest + 1, len(self.classes))
                raise DataError(
                    f"label {largest} is outside the range 0..{outputs - 1} of the model's head",
                    who=_WHO,
                    where=examples.origin,
                    hint=f"load the model with num_labels={wanted}{keep}",
                )


def load_task(
    source: Source,
    *,
    text: str | tuple[str, str] | None = None,
    label: str | Sequence[str] | None = None,
    kind: Kind | None = None,
    classes: Sequence[str] | None = None,
    outputs: int | None = None,
    metric: MetricName | None = None,
    name: str | None = None,
    header: Sequence[str] | None = None,
    test_share: float = 0.15,
    seed: int = 0,
) -> Task:
    """Load a task from data files, tables in memory, or a Hugging Face dataset.

    Args:
        source: One file, table, ``datasets.Dataset`` or ``pandas.DataFrame``; a mapping from split
            names to these, such as a ``DatasetDict``; or the name of a Hugging Face dataset, with
            its configuration after a colon (``"glue:mrpc"``).
            Without a 'test' split 'validation', 'dev' or 'validation_matched' serves; without these
            a stratified ``test_share`` of 'train', or of the only split, is held back, and no text
            of it stays there.
        text: The text column, or the two columns of a sentence pair; by default found by the names
            ``text``, ``sentence`` and those of GLUE. A text may be a list of words.
        label: The label column: class names, class indices from 0, or real numbers; lists of
            classes, one for each word where texts are lists of words, else as many as a text has;
            by default ``label``, or another name that GLUE uses. Or several columns, each of
            which says by 0 or 1 whether a text has the class of that name.
        kind: By default regression when all labels are numbers and one of them has a decimal
            point; 0.0 and 1.0 alone are two classes. Lists and several columns are as said above.
        classes: Names of the classes in the order of the head; by default the dataset's own, or
            the sorted names found in the training split.
        outputs: Of the head that the model brings, if it is to be kept: for one output labels that
            are numbers from 0 on are values, whole ones too, unless ``kind`` or ``classes`` say
            otherwise.
        metric: By default accuracy; micro-averaged F1 for texts with any number of classes; F1 of
            entities for words, or their accuracy where no class is named B- or I-; for regression
            Pearson's and Spearman's mean.
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
    tables, declared = open_tables(source, header)
    name = name or _name(source, tables)
    text, label = _columns(_main(tables), text, label)
    tables = _without_hidden(tables, label)
    if classes is None and isinstance(label, str):
        classes = declared.get(label)
    kind, names = _kind_and_classes(_main(tables), text, label, kind, tuple(classes or ()), outputs)
    splits = {each: _examples(table, text, label, names, kind) for each, table in tables.items()}
    if "train" in tables:
        check_classes(tables["train"], label, kind)
    score = metric_for(kind, names, metric)
    return Task(name, kind, names, score, with_test(splits, test_share, seed, where=name))


def _kind_and_classes(
    table: Table,
    text: str | tuple[str, str],
    label: str | tuple[str, ...],
    kind: Kind | None,
    classes: tuple[str, ...],
    outputs: int | None,
) -> tuple[Kind, tuple[str, ...]]:
    """Return what the labels are, and the names of their classes, where nobody gave them.

    Raises:
        DataError: Several label columns are said to be something else.
    """
    if isinstance(label, str):
        words = holds_words(table, text)
        kind = kind or guess_kind(table.column(label), classes, words=words, outputs=outputs)
        return kind, () if kind == "regression" else classes or class_names(table, label)
    if kind in (None, "multi-label") and (classes or label) == label:
        return "multi-label", label
    raise DataError(
        f"{', '.join(map(repr, label))} say whether a text has the class of that name, and "
        f"kind={kind!r}, classes={classes!r} say otherwise",
        who=_WHO,
        where=table.origin,
        hint="leave kind and classes out: the columns are the classes, in their order",
    )


def _examples(
    table: Table,
    text: str | tuple[str, str],
    label: str | tuple[str, ...],
    classes: Sequence[str],
    kind: Kind,
) -> Examples:
    """Return what a table holds.

    Raises:
        DataError: With file and line: a text or a label that cannot be used, or words without one.
    """
    texts, pairs = read_texts(table, text)
    labels = read_labels(table, label, classes, kind)
    if kind == "token-classification":
        check_words(table, texts, labels)
    return Examples(table.origin, texts, pairs, labels)


def load_texts(
    source: Rows | Sequence[Rows],
    text: str | tuple[str, str] | None = None,
) -> Examples:
    """Load texts without labels from all that :func:`load_task` takes, or from several of these.

    Columns but ``text`` are ignored; by default it is found as :func:`load_task` does, in each
    file. A ``.txt`` file has one column, which need not have that name.

    Raises:
        DataError: As :func:`load_task`.
    """
    texts: list[str] = []
    pairs: list[str] = []
    origins: list[str] = []
    for each in source if isinstance(source, list | tuple) else (source,):
        tables, _ = open_tables(each, None)
        table = _main(tables)
        wanted = text or find_text(table.columns, table.origin)
        if isinstance(text, str) and Path(table.origin).suffix == ".txt":
            (wanted,) = table.columns
        first, second = read_texts(table, wanted)
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
    hint = "give more texts; in Python text_task takes another test_share"
    train, test = hold_back(plain, count, seed, hint=hint)
    return Task(name, "text", (), "loss", {"train": train, "test": test})


def _without_hidden(tables: dict[str, Table], label: str | tuple[str, ...]) -> dict[str, Table]:
    columns = (label,) if isinstance(label, str) else label
    hidden = [
        name
        for name, table in tables.items()
        if all(labels_are_hidden(table.column(column)) for column in columns)
    ]
    for name in hidden:
        logger.warning("the labels of %s are hidden: it is left out", tables[name].origin)
    if len(hidden) == len(tables):
        raise DataError(
            f"column {', '.join(map(repr, columns))} holds no label",
            who=_WHO,
            where=tables[hidden[0]].origin,
            hint="texts without labels are given as unlabelled texts",
        )
    return {name: table for name, table in tables.items() if name not in hidden}


def _main(tables: Mapping[str, Table]) -> Table:
    """Return the table that says what the columns and classes of all are."""
    return tables["train"] if "train" in tables else next(iter(tables.values()))


def _columns(
    table: Table, text: str | tuple[str, str] | None, label: str | Sequence[str] | None
) -> tuple[str | tuple[str, str], str | tuple[str, ...]]:
    """Return the text and label columns, found by their names where nobody gave them.

    Raises:
        DataError: None is known, or several label columns are named but are one, or one twice.
    """
    text = text or find_text(table.columns, table.origin)
    if label is None or isinstance(label, str):
        return text, label or find_label(table.columns, table.origin)
    if len(label) < 2 or len(set(label)) < len(label):
        raise DataError(
            f"{', '.join(map(repr, label)) or 'no names'} are not several columns, one for each "
            "class",
            who=_WHO,
            where=table.origin,
            hint="a column of classes is named alone",
        )
    return text, tuple(label)


def _name(source: Source, tables: Mapping[str, Table]) -> str:
    text = str(source) if isinstance(source, str | Path) else next(iter(tables.values())).origin
    return Path(text).stem if Path(text).suffix in FORMATS else text
