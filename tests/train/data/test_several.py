"""Data whose texts have any number of labels, or one for each word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsefx.errors import DataError
from sparsefx.problem import Kind
from sparsefx.train.data.examples import Examples, Label
from sparsefx.train.data.sources import from_dataset
from sparsefx.train.data.tables import read_table
from sparsefx.train.data.tasks import Task, load_task
from sparsefx.train.metrics import MetricName

CONLL = "-DOCSTART- -X- O\n\nAnn NNP B-PER\nLee NNP I-PER\nran VB O\n\n\nRome NNP B-LOC\n"


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    place = folder / "a.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def load(place: Path, **options: Any) -> Any:
    return load_task({"train": place, "test": place}, **options)


def test_conll_files_hold_words_and_tags(tmp_path: Path) -> None:
    place = tmp_path / "a.conll"
    place.write_text(CONLL)
    table = read_table(place)
    assert list(table.lines) == [3, 8]
    task = load(place)
    assert (task.kind, task.metric) == ("token-classification", "entity_f1")
    assert task.classes == ("B-LOC", "B-PER", "I-PER", "O")
    assert task.split("train").texts == ("Ann Lee ran", "Rome")
    assert task.split("train").labels == ((1, 2, 3), (0,))
    task.check_head(4)
    with pytest.raises(DataError, match="head has 5 outputs, and the task 4 classes"):
        task.check_head(5)
    place.write_text("Ann NNP B-PER\n# id domain = en\n")
    with pytest.raises(DataError, match=r"line 2: .* has 5 fields, and the lines before it 3"):
        read_table(place)
    place.write_text("Ann B-PER\nLee\n")
    with pytest.raises(DataError, match=r"line 2: 'Lee' is no word with a tag behind it"):
        read_table(place)


def test_lists_of_words_and_their_indices(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "ner_tags": [0, 2]}, {"tokens": ["c"], "ner_tags": [1]}]
    task = load(jsonl(tmp_path, rows))
    assert (task.kind, task.metric, task.classes) == (
        "token-classification",
        "token_accuracy",  # no class has a mark
        ("0", "1", "2"),
    )
    with pytest.raises(DataError, match="without marks, as B-PER and I-PER have"):
        load(jsonl(tmp_path, rows), metric="entity_f1")
    with pytest.raises(DataError, match=r"line 2: 2 labels stand beside 1 words"):
        load(jsonl(tmp_path, [rows[0], {"tokens": ["c"], "ner_tags": [1, 1]}]))


def test_lists_of_labels(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}]
    task = load(jsonl(tmp_path, rows))
    assert (task.kind, task.metric, task.classes) == ("multi-label", "f1_micro", ("x", "y"))
    assert task.split("test").labels == ((1.0, 1.0), (0.0, 0.0))
    with pytest.raises(DataError, match="is not for labels that are any number of classes\n"):
        load(jsonl(tmp_path, rows), metric="accuracy")
    with pytest.raises(DataError, match=r"line 1: column 'labels' holds 'y', which is none of"):
        load(jsonl(tmp_path, rows), classes=("x", "z"))
    with pytest.raises(DataError, match=r"line 2: column 'labels' holds None, not a list"):
        load(jsonl(tmp_path, [rows[0], {"text": "b", "labels": None}]))


def test_a_column_for_each_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "a.csv"
    place.write_text("text,toxic,rude\na,0,1\nb,True,false\nc,1.0,0\n")
    task = load(place, label=("toxic", "rude"))
    assert (task.kind, task.classes) == ("multi-label", ("toxic", "rude"))
    assert task.split("train").labels == ((0.0, 1.0), (1.0, 0.0), (1.0, 0.0))
    for names in (("toxic", "toxic"), ("toxic",), ()):
        with pytest.raises(DataError, match="are not several columns, one for each class"):
            load(place, label=names)
    for wrong in ({"kind": "classification"}, {"classes": ("rude", "toxic")}):
        with pytest.raises(DataError, match=r"'toxic', 'rude' say whether(.|\n)*say otherwise"):
            load(place, label=("toxic", "rude"), **wrong)
    place.write_text("text,toxic,rude\na,0,1\nb,2,0\n")
    with pytest.raises(DataError, match="line 3: column 'toxic' holds '2', not 0 or 1"):
        load(place, label=("toxic", "rude"))
    place.write_text("text,toxic,rude\na,0,1\nb,0,0\n")
    load(place, label=("toxic", "rude"))
    assert "column 'toxic' holds '0' in every row" in caplog.text
    place.write_text("text,toxic,rude\na,0,1\nb,0,1\n")
    with pytest.raises(DataError, match="column 'toxic' holds '0' in every row"):
        load(place, label=("toxic", "rude"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["New York"], "'New York' is no word"),
        (["a", ""], "'' is no word"),
        (["a", 1], "fields inside of it are not read"),
        ([], "fill the row or remove it"),
        ([["a"]], "fields inside of it are not read"),
    ],
)
def test_lists_that_are_no_words_are_refused(words: Any, told: str, tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": ["X"]}, {"tokens": words, "tags": ["O"] * len(words)}]
    with pytest.raises(DataError, match=f"line 2: (.|\n)*{told}"):
        load(jsonl(tmp_path, rows))


def test_lists_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'labels' holds no label\n.*every list"):
        load(jsonl(tmp_path, [{"text": "a", "labels": []}, {"text": "b", "labels": []}]))


def test_lists_of_one_label_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 'x' alone in its lists(.|\n)*label of 0 or 1"):
        load(jsonl(tmp_path, [{"text": "a", "labels": []}, {"text": "b", "labels": ["x"]}]))


def test_a_dataset_declares_the_classes_of_each_column() -> None:
    import datasets

    names = datasets.ClassLabel(names=["O", "B-X"])
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "pos_tags": datasets.Sequence(datasets.ClassLabel(names=["NN", "VB"])),
            "ner_tags": datasets.Sequence(names),
        }
    )
    rows = {"tokens": [["a", "b"]], "pos_tags": [[0, 1]], "ner_tags": [[1, 0]]}
    made = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)})
    tables, declared = from_dataset("made", made)
    assert declared == {"pos_tags": ("NN", "VB"), "ner_tags": ("O", "B-X")}
    task = load_task({"train": tables["train"], "test": tables["train"]}, classes=["O", "B-X"])
    assert task.split("train").labels == ((1, 0),)


def test_a_task_follows_the_order_of_a_head() -> None:
    forms: dict[Kind, tuple[MetricName, Label, Label]] = {
        "classification": ("accuracy", 1, 2),
        "multi-label": ("f1_micro", (0.0, 1.0), (0.0, 0.0, 1.0)),
        "token-classification": ("token_accuracy", (1, 0), (2, 1)),
    }
    for kind, (metric, before, after) in forms.items():
        examples = Examples("by hand", ("one two",), labels=(before,))
        task = Task("t", kind, ("a", "b"), metric, {"train": examples})
        moved = task.with_classes(("c", "a", "b"))
        assert moved.classes == ("c", "a", "b")
        assert moved.split("train").labels == (after,)
        with pytest.raises(DataError, match="the class 'b' is none of a, c"):
            task.with_classes(("a", "c"))


def test_a_head_with_the_same_classes_in_another_order_is_refused() -> None:
    task = Task("t", "classification", ("a", "b"), "accuracy", {})
    task.check_order({"id2label": {"0": "a", "1": "b"}}, "model")
    task.check_order({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, "model")
    task.check_order({}, "model")
    with pytest.raises(DataError, match=r"model: its outputs are b, a, and the task .* as a, b"):
        task.check_order({"id2label": {"1": "a", "0": "b"}}, "model")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "b", "labels": [0, 1, 0]}, r"line 2: .*\[0, 1, 0\], which names a class twice"),
        ({"text": "b", "labels": [None]}, r"holds None, (.|\n)*1 of 2 rows have no label"),
    ],
)
def test_lists_that_name_no_classes_are_refused(
    row: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        load(jsonl(tmp_path, [{"text": "a", "labels": [0, 1]}, row]))


@pytest.mark.parametrize(
    ("lists", "hint"),
    [
        (([1, 0], [0, 1]), "a column each: --label FIRST,SECOND"),
        (([1.0, 0.0], [0.0, 1.0]), "a column each: --label FIRST,SECOND"),
        ((["a", "b"], ["b", "a"]), "a list names the classes that a text has"),
    ],
)
def test_lists_that_tell_no_text_apart_are_refused(
    lists: tuple[list[Any], list[Any]], hint: str, tmp_path: Path
) -> None:
    rows = [{"text": f"t{i}", "labels": lists[i % 2]} for i in range(20)]
    with pytest.raises(DataError, match="gives every row the same classes") as caught:
        load(jsonl(tmp_path, rows))
    assert caught.value.hint.endswith(hint)
    assert load(jsonl(tmp_path, [*rows, {"text": "x", "labels": []}])).kind == "multi-label"


def test_lists_as_texts_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "a.csv"
    place.write_text("text,labels\na,\"['x', 'y']\"\nb,[]\n")
    with pytest.raises(DataError, match=r"line 2: column 'labels' .*, the text of a list"):
        load(place)


@pytest.mark.parametrize("mark", [-1, -100])
def test_a_split_whose_words_have_hidden_labels_is_left_out(mark: int, tmp_path: Path) -> None:
    place = jsonl(tmp_path, [{"tokens": [f"a{i}", "b"], "tags": [0, 1]} for i in range(20)])
    hidden = tmp_path / "hidden.jsonl"
    hidden.write_text(json.dumps({"tokens": ["a", "b"], "tags": [mark, mark]}))
    task = load_task({"train": place, "test": hidden})
    assert len(task.split("test")) == 3


@pytest.mark.parametrize(("one", "other"), [("O", "B-X"), (0, 1)])
def test_a_word_labelled_as_ignored_has_no_label(one: Any, other: Any, tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b", "c"], "tags": [one, -100, other]}] * 20
    task = load(jsonl(tmp_path, rows))
    assert len(task.classes) == 2
    assert task.split("train").labels[0][1] == -100
    assert task.with_classes(task.classes[::-1]).split("train").labels[0][1] == -100


def test_of_texts_the_mark_of_ignored_words_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'-100', which is none of the 2 classes"):
        load(jsonl(tmp_path, [{"text": "a", "labels": [0, 1]}, {"text": "b", "labels": ["-100"]}]))


def test_other_blanks_are_part_of_a_word_in_conll(tmp_path: Path) -> None:
    place = tmp_path / "a.conll"
    place.write_text("1\u00a0000 B-N\nran\tO\n")
    assert load(place).split("train").texts == ("1\u00a0000 ran",)
