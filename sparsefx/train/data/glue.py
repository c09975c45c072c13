"""The GLUE tasks, from a folder with the official .tsv files or from Hugging Face's datasets.

Class names are in the order of Hugging Face's ``glue`` datasets, so that published heads fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sparsefx.errors import DataError, did_you_mean
from sparsefx.problem import Kind
from sparsefx.train.data.tasks import Task, load_task
from sparsefx.train.metrics import MetricName

__all__ = ["GLUE", "GlueLayout", "glue_layout", "load_glue"]


@dataclass(frozen=True)
class GlueLayout:
    """Columns, classes and metric of one GLUE task.

    Attributes:
        text: The text column or the two columns of a pair.
        label: The label column.
        classes: Names of the classes in the order of the head; empty for regression.
        metric: The metric that GLUE reports.
        header: Column names, where the files have no header line.
    """

    text: str | tuple[str, str]
    label: str
    classes: tuple[str, ...]
    metric: MetricName = "accuracy"
    header: tuple[str, ...] | None = None


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")

GLUE: Mapping[str, GlueLayout] = {
    "CoLA": GlueLayout(
        "sentence", "label", _BINARY, "matthews", ("source", "label", "mark", "sentence")
    ),
    "MNLI": GlueLayout(_SENTENCES, "gold_label", ("entailment", "neutral", "contradiction")),
    "MRPC": GlueLayout(("#1 String", "#2 String"), "Quality", _BINARY, "accuracy_f1"),
    "QNLI": GlueLayout(("question", "sentence"), "label", _ENTAILMENT),
    "QQP": GlueLayout(("question1", "question2"), "is_duplicate", _BINARY, "accuracy_f1"),
    "RTE": GlueLayout(_SENTENCES, "label", _ENTAILMENT),
    "SST-2": GlueLayout("sentence", "label", _BINARY),
    "STS-B": GlueLayout(_SENTENCES, "score", (), "pearson_spearman"),
}
_FILES = {
    "train": ("train.tsv", "subset_train.tsv"),
    "test": ("dev.tsv", "dev_matched.tsv", "subset_dev.tsv"),  # GLUE's own test has no labels
}


def glue_layout(task: str) -> GlueLayout:
    """Return columns, classes and metric of a task.

    Args:
        task: A name as in :data:`GLUE`.

    Raises:
        DataError: The task is not known.
    """
    if task not in GLUE:
        raise DataError(f"{task!r} is not a GLUE task", who="GLUE", hint=did_you_mean(task, GLUE))
    return GLUE[task]


def load_glue(task: str, folder: Path | str | None = None) -> Task:
    """Load a GLUE task; its development split, the one with labels, serves as 'test'.

    Args:
        task: A name as in :data:`GLUE`.
        folder: The folder with one folder a task; by default the dataset ``nyu-mll/glue`` of
            Hugging Face is loaded by its name.

    Raises:
        DataError: The task is not known, or its files are missing or malformed.
    """
    layout = glue_layout(task)
    kind: Kind = "classification" if layout.classes else "regression"
    load = partial(load_task, kind=kind, classes=layout.classes, metric=layout.metric, name=task)
    if folder is None:
        found = load(f"nyu-mll/glue:{task.replace('-', '').lower()}")
        # Of MRPC the dataset has the labels of GLUE's own test split, by which nobody may choose.
        test = found.split("validation_matched" if task == "MNLI" else "validation")
        return replace(found, splits={"train": found.split("train"), "test": test})
    files = {split: _file(Path(folder) / task, names) for split, names in _FILES.items()}
    return load(files, text=layout.text, label=layout.label, header=layout.header)


def _file(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"there is none of {', '.join(names)}", who="GLUE", where=str(folder))
