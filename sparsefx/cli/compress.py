"""``sparsefx compress``: a recipe on the user's own model and data."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsefx.cli.classes import given_classes
from sparsefx.cli.console import stderr
from sparsefx.cli.data_options import FILE_HELP, Label, Text, label_columns, text_columns
from sparsefx.cli.heads import check_head, in_order_of_head
from sparsefx.errors import DataError
from sparsefx.problem import name_classes, own_outputs

if TYPE_CHECKING:
    from sparsefx.train.data.examples import Examples
    from sparsefx.train.data.tasks import Task

__all__ = ["command"]

_SPLITS = ("train", "test", "validation", "dev")
_DATA_HELP = (
    f"{FILE_HELP[:-1]}; split=FILE for each of several (train, test); "
    "or the name of a Hugging Face dataset."
)


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    model: Annotated[str, typer.Option(help="Hugging Face id, or a folder.")],
    data: Annotated[list[str] | None, typer.Option(help=_DATA_HELP)] = None,
    text: Text = None,
    label: Label = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Names of the classes whose numbers the data hold, with commas."),
    ] = None,
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(
            help="Files with further texts for distillation; without --data, or beside --data "
            "test=FILE, a recipe that needs no labels is run on them."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where everything is kept; run again to go on. Default: runs/NAME of the recipe."
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="What the result is exported to.")] = "onnxruntime",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard files too.")] = False,
) -> None:
    """Compress your own model on your own data."""
    from sparsefx.cli.runs import train_and_report
    from sparsefx.huggingface import load_pretrained, load_tokenizer
    from sparsefx.recipe import Recipe
    from sparsefx.train.evaluation import SessionData
    from sparsefx.train.randomness import seed_everything

    found = Recipe.load(recipe)
    task, more = _read(data, unlabelled, text, label, classes, model)
    check_head(found, task, model, is_named=classes is not None)
    _show_classes(task)
    seed_everything(found.seed)
    network = load_pretrained(
        model,
        labels={"regression": 1, "text": None}.get(task.kind, len(task.classes)),
        kind=task.kind,
    )
    name_classes(network.config, task.classes)
    train_and_report(
        found,
        network,
        SessionData(task, load_tokenizer(model), more),
        folder or Path("runs") / found.name,
        title=f"{Path(model).name}: {found.name}",
        target=target,
        tensorboard=tensorboard,
    )


def _read(
    data: list[str] | None,
    unlabelled: list[str] | None,
    text: str | None,
    label: str | None,
    classes: str | None,
    model: str,
) -> tuple[Task, Examples | None]:
    """Return the task of a model, and the texts without labels beside it.

    Raises:
        DataError: There are neither data nor texts, or a file cannot be used.
    """
    from sparsefx.huggingface.model_folder import read_config
    from sparsefx.train.data.tasks import load_texts, text_task

    more = load_texts(unlabelled, text_columns(text)) if unlabelled else None
    if data:
        config: Any = read_config(model)
        outputs = own_outputs(config)
        task = _read_task(data, text, label, classes, outputs)
        _show_kept_head(task, outputs, model)
        task = in_order_of_head(task, config, model)
        if "train" in task.splits:
            return task, more
        if more is None:
            raise DataError(
                "there is nothing to train on: the data have no split 'train'",
                who="data",
                hint="give --data train=FILE, or for a recipe that needs no labels, such as "
                "sparse-fine-tuned, --unlabelled FILE",
            )
        return task.taught_on(more), None
    if more is not None:
        return text_task(more), None
    raise DataError(
        "there is nothing to train on",
        who="data",
        hint="give --data FILE, or for a recipe that needs no labels --unlabelled FILE",
    )


def _read_task(
    data: list[str],
    text: str | None,
    label: str | None,
    classes: str | None,
    outputs: int | None,
) -> Task:
    """Return the task that the options name, for a model whose own head has some ``outputs``.

    Raises:
        DataError: When several sources are given without split names, or a file cannot be used.
    """
    from sparsefx.train.data.tasks import load_task

    names = None if classes is None else given_classes(classes, None, None, who="compress")
    load = partial(
        load_task,
        text=text_columns(text),
        label=label_columns(label),
        classes=names,
        outputs=outputs,
    )
    if len(data) == 1 and "=" not in data[0]:
        return load(data[0])
    pairs = [(split, place) for split, mark, place in (d.partition("=") for d in data) if mark]
    named = dict(pairs)
    if len(pairs) != len(data):
        raise DataError(
            f"{len(data)} sources, of which {len(pairs)} name a split",
            who="data",
            hint="give --data train=FILE --data test=FILE",
        )
    if len(named) != len(pairs):
        splits = [split for split, _ in pairs]
        twice = next(split for split in splits if splits.count(split) > 1)
        hint = "put the examples of a split into one file"
        raise DataError(f"{twice!r} is given twice", who="data", where="--data", hint=hint)
    unknown = named.keys() - set(_SPLITS)
    if unknown:
        raise DataError(
            f"the splits are named {', '.join(named)}",
            who="data",
            hint=f"the names are {', '.join(_SPLITS)}",
        )
    return load(named)


def _show_kept_head(task: Task, outputs: int | None, model: str) -> None:
    """Say that labels which could be classes are values, as the head has one output for them."""
    if task.kind != "regression" or outputs != 1:
        return
    labels = [label for examples in task.splits.values() for label in examples.labels or ()]
    if all(not isinstance(label, tuple) and float(label).is_integer() for label in labels):
        told = "labels are values, not classes; --classes NAME,NAME trains a new head for classes"
        stderr.print(f"{model} keeps its head of one output: {told}")


def _show_classes(task: Task) -> None:
    """Print each class with its number of training examples: a stray label is one too."""
    labels = task.split("train").labels
    if not task.classes or labels is None:
        return
    counts: Counter[int] = Counter()
    for label in labels:
        if not isinstance(label, tuple):
            counts[int(label)] += 1
        elif task.kind == "multi-label":
            counts.update(place for place, has in enumerate(label) if has)
        else:
            counts.update(map(int, label))
    listed = ", ".join(f"{name} ({counts[i]})" for i, name in enumerate(task.classes))
    what = "words" if task.kind == "token-classification" else "examples"
    told = f"{len(task.classes)} classes, with their training {what}: {listed}"
    stderr.print(told)  # a name may stand in brackets
