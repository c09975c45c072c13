"""``sparsefx evaluate``: score a saved model on a labelled file, or against another model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsefx.cli.against import answered_by, check_outputs
from sparsefx.cli.classes import Head, given_classes, labels_for
from sparsefx.cli.console import stdout
from sparsefx.cli.data_options import FILE_HELP, Label, Text, label_columns, text_columns
from sparsefx.cli.outputs import Overwrite, check_new
from sparsefx.cli.saved import Made, Saved, made_by, open_saved, tokenizer_of
from sparsefx.errors import DataError
from sparsefx.storage.files import write_json

if TYPE_CHECKING:
    from sparsefx.train.data.examples import Examples
    from sparsefx.train.data.glue import GlueLayout
    from sparsefx.train.data.tables import Table
    from sparsefx.train.data.tasks import Task
    from sparsefx.train.metrics import Score

__all__ = ["command"]

_METRIC_HELP = "Default: that of its run (not with --against), accuracy, or correlations."
_AGAINST_HELP = (
    "Another model, such as the one that was compressed: score by how often both answer alike. The "
    "data need no labels."
)
_TARGET_HELP = "Where it runs. Default: what it was compiled for, or reference."
_LENGTH = 128
_NAMING = "give --classes in the order of the head, or --task for a task of GLUE"


@dataclass(frozen=True)
class _Asked:
    """What the user says of the data; empty where the model, its run and the file tell."""

    data: str
    text: str | None
    label: str | None
    task: str | None
    classes: str | None
    metric: str | None


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="Run folder, Program, Hugging Face model, ONNX file, or folder compiled for cpu."
        ),
    ],
    data: Annotated[str, typer.Option(help=FILE_HELP)],
    text: Text = None,
    label: Label = None,
    task: Annotated[
        str | None, typer.Option(help="A GLUE task: columns, classes and metric are its own.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes in the head's order, with commas.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help=_METRIC_HELP)] = None,
    against: Annotated[str | None, typer.Option(help=_AGAINST_HELP)] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or id of the tokenizer.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help=_TARGET_HELP)] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longest sequence in tokens. Default: its run's, 128.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 32,
    to_json: Annotated[
        Path | None, typer.Option("--json", help="Write the score to this file too.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the score of a model on data, with its 95 % interval."""
    from sparsefx.cli.progress import counting
    from sparsefx.huggingface import load_tokenizer
    from sparsefx.train.data.batches import check_tokens, encode
    from sparsefx.train.metrics import check_metric, evaluate

    if metric is not None:
        check_metric(metric)
    check_new({"--json": to_json}, who="evaluate", overwrite=overwrite)
    made = made_by(model)
    saved = open_saved(model, target)
    length = max_length or (made.max_length if made else _LENGTH)
    asked = _Asked(data, text, label, task, classes, metric)
    if against is None:
        found = _read(model, asked, saved, made)
    else:
        texts = _without_labels(asked)
        found = answered_by(against, texts, saved, metric, length, batch_size)
    examples = encode(load_tokenizer(tokenizer or tokenizer_of(model)), found.split("test"), length)
    labels = examples.scored_labels()
    if labels is None:
        raise DataError("the data have no labels", who="evaluate", where=data)
    check_tokens(examples, saved.config)
    if against is not None:
        check_outputs(saved.outputs_on(examples, batch_size), len(found.classes) or 1, against)
    with counting("evaluate", "scoring", "texts") as tell:
        logits = saved.predict(examples, batch_size, tell)
    score = evaluate(found.metric, logits, labels, classes=found.classes)  # type: ignore[arg-type]  # evaluate names unknown ones
    labels_of = "" if against is None else f"; the answers of {against} are the labels"
    _show(score, saved.runs_on + labels_of)
    if to_json is not None:
        write_json(to_json, score.as_json())


def _without_labels(asked: _Asked) -> Examples:
    """Return the texts that another model gives the answers for.

    Raises:
        DataError: Something is said of labels.
    """
    from sparsefx.train.data.tasks import load_texts

    for option in ("label", "task", "classes"):
        if getattr(asked, option) is not None:
            raise DataError(
                "with --against the other model's answers stand for the labels",
                who="evaluate",
                where=f"--{option}",
                hint=f"leave out --{option}, or --against",
            )
    return load_texts(asked.data, text_columns(asked.text))


def _show(score: Score, runs_on: str) -> None:
    stdout.print(f"{score.metric} {score} on {score.count} examples, {runs_on}")
    for name, value in score.parts.items():
        if len(score.parts) > 1:  # else it is the score itself
            stdout.print(f"  {name} {100 * value:.2f}")


def _read(model: str, asked: _Asked, saved: Saved, made: Made | None) -> Task:
    """Return the data as a task with the classes of the model's head."""
    from sparsefx.train.data.columns import find_text
    from sparsefx.train.data.glue import glue_layout
    from sparsefx.train.data.tables import read_table
    from sparsefx.train.data.tasks import load_task

    table = read_table(asked.data)
    named = asked.task or _without_header(table)
    layout = glue_layout(named) if named else None
    if layout is not None and layout.header is not None and _lacks_header(table, layout.header):
        table = table.with_header(layout.header)
    columns, origin = table.columns, table.origin
    text = text_columns(asked.text) or (layout.text if layout else find_text(columns, origin))
    label = label_columns(asked.label) or (layout.label if layout else None)
    names = _classes(asked, saved, made, layout)
    head = Head(model, saved.outputs, saved.per_word, saved.config, made, names, _NAMING)
    labels = labels_for(table, label, head, "evaluate")
    return load_task(
        {"test": table},
        text=text,
        label=labels.column,
        kind=labels.kind,
        classes=labels.classes,
        metric=_metric(asked, made, layout),  # type: ignore[arg-type]  # evaluate names unknown ones
    )


def _metric(asked: _Asked, made: Made | None, layout: GlueLayout | None) -> str | None:
    """Return the metric: the first that know one count, but for a loss."""
    own = made.metric if made is not None and made.metric != "loss" else None
    return asked.metric or (layout.metric if layout else None) or own


def _without_header(table: Table) -> str | None:
    """Return CoLA for a file that looks like its own: no header, but source, 0 or 1, and mark."""
    if Path(table.origin).suffix != ".tsv":
        return None
    first = list(table.columns)
    return "CoLA" if len(first) == 4 and first[1] in ("0", "1") and first[2] in ("", "*") else None


def _lacks_header(table: Table, header: tuple[str, ...]) -> bool:
    """Return whether a file has no header where the task's own files have none."""
    if Path(table.origin).suffix not in (".tsv", ".csv"):
        return False
    return not set(header) & set(table.columns)


def _classes(
    asked: _Asked, saved: Saved, made: Made | None, layout: GlueLayout | None
) -> tuple[str, ...] | None:
    """Return the names of the classes in the head's order: the first that know them count."""
    if asked.classes is not None:
        known = (made.classes if made else None) or saved.classes
        return given_classes(asked.classes, saved.outputs, known, who="evaluate")
    if made is not None and made.classes:
        return made.classes
    return saved.classes or (layout.classes if layout else None) or None
