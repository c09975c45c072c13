"""Tables that others have read."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # no stubs are installed
import pytest

from sparsefx.errors import DataError
from sparsefx.train.data.tasks import load_task, load_texts

ROWS: dict[str, Any] = {"text": [f"film {number}" for number in range(8)], "label": [1, 0] * 4}
FEATURES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
)


def test_a_frame_is_a_task() -> None:
    task = load_task(pd.DataFrame(ROWS), test_share=0.25)
    assert (task.name, task.classes) == ("DataFrame", ("0", "1"))
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 6, "test": 2}
    frame = pd.DataFrame(ROWS, index=range(20, 28)).astype({"label": "category"})
    both = load_task({"train": frame, "test": frame})
    assert both.split("test").texts == tuple(ROWS["text"])
    assert both.split("test").labels == tuple(ROWS["label"])
    words = pd.DataFrame({"tokens": [np.array(["Ann", "ran"])], "ner_tags": [np.array([1, 0])]})
    named = load_task({"train": words, "test": words}, classes=("O", "B-PER"))
    assert named.split("train").labels == ((1, 0),)


def test_a_dataset_is_a_task_with_its_classes() -> None:
    rows = datasets.Dataset.from_dict(ROWS, FEATURES)
    assert load_task(rows, test_share=0.25).classes == ("bad", "good")
    whole = load_task(datasets.DatasetDict({"train": rows, "validation": rows}))
    assert whole.classes == ("bad", "good")
    assert whole.split("test").labels == tuple(ROWS["label"])


def test_texts_come_from_frames_and_datasets() -> None:
    frame, rows = pd.DataFrame(ROWS), datasets.Dataset.from_dict(ROWS)
    assert load_texts(frame).texts == tuple(ROWS["text"])
    assert load_texts([frame, rows]).texts == tuple(ROWS["text"]) * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([ROWS], r"task: data are of type list\n  hint: give a file, .* a pandas.DataFrame, or"),
        (ROWS, r"data \[text\] are of type list"),
        (pd.DataFrame({"text": [], "label": []}), "DataFrame: the data hold no rows"),
        (
            pd.DataFrame({"text": ["a", None], "label": [0, 1]}),
            "DataFrame, line 2: column 'text' holds None",
        ),
        (
            pd.DataFrame({"text": ["a", "b"], "label": ["a", 1]}),
            "DataFrame: its columns cannot be read: .*label",
        ),
        (pd.DataFrame([["a", 1]], columns=["text", "text"]), "Duplicate column names"),
    ],
)
def test_what_is_no_table_is_refused(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(given)
