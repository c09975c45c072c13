"""How labels are read for a head, and which labels it is not scored on."""

from __future__ import annotations

from typing import Any

import pytest

from sparsefx.cli.classes import Head, Labels, labels_for
from sparsefx.cli.saved import Made
from sparsefx.errors import DataError
from sparsefx.train.data.tables import Table

ONE = Table("one.csv", {"text": ["good", "bad"], "label": ["1", "0"]}, [2, 3])
NAMED = Table("named.csv", {"text": ["good", "bad"], "label": ["up", "down"]}, [2, 3])
LISTS = Table("lists.jsonl", {"text": ["good", "bad"], "labels": [["a"], ["a", "b"]]}, [1, 2])
MARKS = Table("marks.csv", {"text": ["good", "bad"], "a": ["1", "0"], "b": ["0", "1"]}, [2, 3])
CHOOSES, GIVES = "single_label_classification", "multi_label_classification"


def head(outputs: int = 2, problem: str | None = None, **more: Any) -> Head:
    fields: dict[str, Any] = {"per_word": False, "made": None, "names": ("a", "b"), **more}
    return Head(model="model", outputs=outputs, config={"problem_type": problem}, **fields)


@pytest.mark.parametrize(
    ("table", "column", "given", "expected"),
    [
        (ONE, None, head(), Labels("label", None, ("a", "b"))),
        (ONE, None, head(1), Labels("label", "regression", None)),
        (LISTS, None, head(), Labels("labels", "multi-label", ("a", "b"))),
        (LISTS, None, head(per_word=True), Labels("labels", "token-classification", ("a", "b"))),
        (LISTS, None, head(1, per_word=True), Labels("labels", "token-classification", ("a", "b"))),
        (MARKS, ("b", "a"), head(), Labels(("a", "b"), "multi-label", None)),
        (MARKS, None, head(problem=GIVES), Labels(("a", "b"), "multi-label", None)),
        (
            ONE,
            None,
            head(problem=GIVES, made=Made("classification", ("a", "b"), "accuracy", 8)),
            Labels("label", "classification", ("a", "b")),
        ),
    ],
)
def test_labels_are_read_for_the_head(
    table: Table, column: Any, given: Head, expected: Labels
) -> None:
    assert labels_for(table, column, given, "evaluate") == expected


@pytest.mark.parametrize(
    ("table", "column", "given", "told"),
    [
        (ONE, None, head(per_word=True), "what the model predicts for each token"),
        (ONE, None, head(1, per_word=True), "what the model predicts for each token"),
        (MARKS, ("a", "b"), head(per_word=True), "what the model predicts for each token"),
        (ONE, None, head(problem=GIVES), "was trained to give it any number of them"),
        (LISTS, None, head(problem=CHOOSES), "this model was trained to choose one"),
        (MARKS, ("a", "b"), head(problem=CHOOSES), "this model was trained to choose one"),
        (MARKS, ("a", "text"), head(), "label columns a, text are not the model's classes"),
        (NAMED, None, head(names=None, naming="say it"), "which of its outputs is which\n.*say it"),
    ],
)
def test_labels_that_the_head_does_not_predict_are_refused(
    table: Table, column: Any, given: Head, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        labels_for(table, column, given, "evaluate")
