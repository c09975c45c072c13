from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # no stubs are installed
import pytest
import torch

from sparsefx.errors import DataError
from sparsefx.train.data import tasks
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.glue import GLUE, load_glue
from sparsefx.train.data.splits import hold_back, text_key
from sparsefx.train.data.tasks import load_task, load_texts


def _file(folder: Path, text: str, name: str = "a.tsv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_class_names_are_found_and_sorted(tmp_path: Path) -> None:
    train = _file(tmp_path, "text\tlabel\na\tyes\nb\tno\nc\tyes\n")
    task = load_task({"train": train, "dev": train})
    assert task.classes == ("no", "yes")
    assert task.split("test").labels == (1, 0, 1)
    assert (task.kind, task.metric, task.name) == ("classification", "accuracy", "a")


def test_two_classes_written_with_a_decimal_point(tmp_path: Path) -> None:
    train = _file(tmp_path, "text\tlabel\na\t1.0\nb\t0.0\nc\t1\n")
    task = load_task({"train": train, "dev": train})
    assert (task.kind, task.classes, task.split("test").labels) == (
        "classification",
        ("0", "1"),
        (1, 0, 1),
    )
    ratings = _file(tmp_path, "text\tlabel\na\t1.0\nb\t0.0\nc\t4.0\n", "ratings.tsv")
    assert load_task({"train": ratings, "dev": ratings}).kind == "regression"


def test_classes_may_end_like_numbers(tmp_path: Path) -> None:
    train = _file(tmp_path, "text\tlabel\na\tv1.0\nb\tv2.0\n")
    assert load_task({"train": train, "dev": train}).classes == ("v1.0", "v2.0")


def test_a_cell_without_a_label_is_no_class(tmp_path: Path) -> None:
    train = _file(tmp_path, "text\tlabel\na\tgood\nb\tbad\nc\tnan\n")
    with pytest.raises(DataError, match="'nan', which is none of the 2 classes") as caught:
        load_task({"train": train, "dev": train})
    assert caught.value.hint == "1 of 3 rows have no label: take them out, or label them"


def test_a_class_called_as_a_hidden_label_is_told(tmp_path: Path) -> None:
    train = _file(tmp_path, "text\tlabel\na\t1\nb\t-1\n")
    with pytest.raises(DataError, match="-1 stands for a hidden label"):
        load_task({"train": train, "dev": train})


def test_numbers_that_are_no_index_are_refused(tmp_path: Path) -> None:
    dates = _file(tmp_path, "text\tlabel\na\t20240131\nb\t20240201\n")
    with pytest.raises(DataError, match=r"holds 20240201; .* would be 20240202") as caught:
        load_task({"train": dates, "dev": dates})
    assert caught.value.where == str(dates)
    squares = _file(tmp_path, "text\tlabel\na\t\u00b2\nb\t1\n", "squares.tsv")
    assert load_task({"train": squares, "dev": squares}).classes == ("1", "\u00b2")


def test_a_pair_of_one_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("a,b,label\none,two,x\nthree,four,y\n")
    with pytest.raises(DataError, match="both of column 'a'") as caught:
        load_task(path, text=("a", "a"))
    assert caught.value.where == str(path)
    assert caught.value.hint.startswith("--text a takes one text")
    with pytest.raises(DataError, match="both of column 'b'"):
        load_texts(path, ("b", "b"))


def test_pairs_and_regression(tmp_path: Path) -> None:
    train = _file(tmp_path, "one\ttwo\tscore\na\tb\t5.000\nc\td\t2.5\n")
    task = load_task({"train": train, "test": train}, text=("one", "two"), label="score")
    assert (task.kind, task.classes, task.metric) == ("regression", (), "pearson_spearman")
    assert task.split("train").pairs == ("b", "d")
    assert task.split("train").labels == (5.0, 2.5)
    with pytest.raises(DataError, match="needs a head with 1 output, this one has 2"):
        task.check_head(2)


def test_one_file_is_split_without_leaks(tmp_path: Path) -> None:
    rows = [f"text {i}\t{i % 2}" for i in range(100)] + ["Text  7!\t1"]
    task = load_task(_file(tmp_path, "text\tlabel\n" + "\n".join(rows)), test_share=0.2)
    train, test = task.split("train"), task.split("test")
    assert (len(train), len(test)) == (80, 20)
    assert (test.labels or ()).count(1) == 10
    assert not {text_key(t) for t in train.texts} & {text_key(t) for t in test.texts}
    again = load_task(tmp_path / "a.tsv", test_share=0.2)
    assert again.split("test") == test


def test_texts_have_no_labels(tmp_path: Path) -> None:
    assert load_texts(_file(tmp_path, "one\ntwo\n", "a.txt")).labels is None


BAD = {
    "empty text": (
        "text\tlabel\n \t1\nb\t0\n",
        "a.tsv, line 2: column 'text' holds ' ', not a text",
    ),
    "missing column": (
        "texts\tlabel\na\t1\n",
        "none of the columns 'texts', 'label' is known to hold the text",
    ),
    "negative class": ("text\tlabel\na\t1\nb\t-1\n", "line 3: column 'label' holds '-1', which is"),
    "nan beside whole numbers": (
        "text\tlabel\na\t1\nb\tnan\n",
        "line 3: column 'label' holds 'nan', not a number",
    ),
    "nan": ("text\tlabel\na\t1.5\nb\tnan\n", "line 3: column 'label' holds 'nan', not a number"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    train = _file(tmp_path, text)
    with pytest.raises(DataError) as caught:
        load_task({"train": train, "test": train})
    assert message in str(caught.value)


def test_fields_inside_of_fields_are_refused(tmp_path: Path) -> None:
    rows = '{"text": "a", "label": {"x": 1}}\n{"text": "b", "label": {"x": 2}}\n'
    with pytest.raises(DataError, match=r"line 1: .*\{'x': 1\}, not one label\n.*a list of them"):
        load_task({"train": _file(tmp_path, rows, "a.jsonl")})
    nested = _file(tmp_path, '{"text": {"en": "a"}, "label": 1}\n', "b.jsonl")
    with pytest.raises(DataError, match="not a text\n  hint: fields inside of it are not read"):
        load_task({"train": nested})
    half = _file(tmp_path, '{"text": "a \\ud83d", "label": 1}\n', "c.jsonl")
    with pytest.raises(DataError, match=r"line 1: .*\n.* is half of a character"):
        load_task({"train": half})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": ("a", "b"), "labels": (1,)}, "task at by hand: 1 labels for 2 texts"),
        ({"texts": ("a", "b"), "pairs": ("c",)}, "1 pairs for 2 texts"),
        ({"texts": "ab", "labels": (0, 1)}, "texts is one text"),
        ({"texts": None}, "texts is None\n  hint: give a tuple"),
        ({"texts": ("a", None)}, r"texts\[1\] is None, not a text"),
        ({"texts": (["a", "b"],)}, r"not a text\n  hint: words that are split already are joined"),
        ({"texts": ("a",), "labels": ([0, 1],)}, r"labels\[0\] is \[0, 1\], .*\n.*or a tuple"),
    ],
)
def test_examples_made_by_hand_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Examples("by hand", **given)


def test_examples_are_made_of_columns_and_arrays() -> None:
    table = pd.DataFrame({"text": ["a b", "c d"], "label": [0, 1]})
    columns = Examples("by hand", table.text, labels=table.label)
    assert columns == Examples("by hand", ("a b", "c d"), labels=(0, 1))
    forms: list[tuple[Any, Any]] = [
        (table.label.to_numpy(), (0, 1)),
        (list(table.label.to_numpy()), (0, 1)),
        (torch.tensor([0, 1]), (0, 1)),
        (list(np.array([0.5, 2.0])), (0.5, 2.0)),
        (np.array([[0.0, 1.0], [1.0, 1.0]]), ((0.0, 1.0), (1.0, 1.0))),
        ([tuple(row) for row in np.array([[0, 1], [1, 1]])], ((0, 1), (1, 1))),
        ([tuple(row) for row in np.array([[True, False]] * 2)], ((True, False),) * 2),
    ]
    for given, held in forms:
        made = Examples("by hand", table.text.to_numpy(), labels=given)
        assert json.dumps([made.texts, made.labels]) == json.dumps([("a b", "c d"), held])


def test_labels_outside_classes_and_head(tmp_path: Path) -> None:
    path = _file(tmp_path, "text\tlabel\na\tpositve\nb\tnegative\n")
    with pytest.raises(DataError) as caught:
        load_task({"train": path}, classes=("negative", "positive"))
    assert "line 2: column 'label' holds 'positve'" in str(caught.value)
    assert "did you mean 'positive'?" in str(caught.value)
    three = _file(tmp_path, "text\tlabel\na\t0\nb\t2\n", "b.tsv")
    task = load_task({"train": three, "test": three})
    task.check_head(3)
    with pytest.raises(DataError) as caught:
        task.check_head(2)
    assert "label 2 is outside the range 0..1" in str(caught.value)
    assert "num_labels=3" in str(caught.value)


@pytest.mark.parametrize("hidden", ["-1", ""])
def test_splits_with_hidden_labels_are_left_out(
    hidden: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = _file(tmp_path, "text\tlabel\na\t1\nb\t0\n")
    test = _file(tmp_path, f"text\tlabel\nc\t{hidden}\nd\t{hidden}\n", "b.tsv")
    task = load_task({"train": train, "validation": train, "test": test})
    assert task.split("test").texts == ("a", "b")
    assert "b.tsv are hidden: it is left out" in caplog.text
    with pytest.raises(DataError, match="holds no label"):
        load_task({"test": test})


def test_a_training_split_of_one_class_is_refused(tmp_path: Path) -> None:
    one = _file(tmp_path, "text\tlabel\na\t1\nb\t1\n")
    with pytest.raises(DataError, match="holds '1' in every row") as caught:
        load_task({"train": one, "test": one}, classes=("0", "1"))
    assert caught.value.where == str(one)
    assert load_task({"test": one}, classes=("0", "1")).split("test").labels == (1, 1)


def test_of_several_splits_train_is_held_back_from_wherever_it_stands(tmp_path: Path) -> None:
    train = _file(tmp_path, "text\tlabel\n" + "\n".join(f"mine {n}\t{n % 2}" for n in range(20)))
    other = _file(tmp_path, "text\tlabel\nforeign\t0\nstrange\t1\n", "b.tsv")
    task = load_task({"other": other, "train": train}, test_share=0.2)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "other": 2,
        "train": 16,
        "test": 4,
    }
    assert all(text.startswith("mine") for text in task.split("test").texts)
    with pytest.raises(DataError, match=r"none of the splits 'one', 'two' is 'train' or 'test'"):
        load_task({"one": train, "two": other})


@pytest.mark.parametrize(
    ("labels", "metric", "message"),
    [
        ("012", "f1", "'f1' looks at class 1 alone, and there are 3 classes"),
        ("01", "pearson_spearman", "'pearson_spearman' is not for labels that are classes"),
        (("0.5", "0.25"), "accuracy", "'accuracy' is not for labels that are values"),
        ("01", "acuracy", "did you mean 'accuracy'"),
    ],
)
def test_a_metric_that_says_nothing_of_the_labels_is_refused(
    labels: Sequence[str], metric: Any, message: str, tmp_path: Path
) -> None:
    path = _file(tmp_path, "text\tlabel\n" + "\n".join(f"a{n}\t{n}" for n in labels))
    with pytest.raises(DataError, match=message):
        load_task({"test": path}, metric=metric)


@pytest.mark.parametrize(
    ("kind", "metric", "message"),
    [
        ("classification", "acuracy", "no metric 'acuracy'\n  hint: did you mean 'accuracy'"),
        ("classification", "loss", "no metric 'loss'"),
        ("regression", "accuracy", "'accuracy' is not for labels that are values"),
        ("clasification", "accuracy", "kind 'clasification'\n  hint: did you mean 'class"),
        ("text", "accuracy", "hint: texts without labels are a text_task"),
    ],
)
def test_a_task_by_hand_has_a_known_kind_and_a_metric_that_fits(
    kind: Any, metric: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        tasks.Task("t", kind, ("a", "b"), metric, {})
    if kind == "clasification":
        path = _file(tmp_path, "text\tlabel\na\t0\nb\t1\n")
        with pytest.raises(DataError, match=message):
            load_task({"test": path}, kind=kind)


def test_unknown_split_and_no_file() -> None:
    task = tasks.Task("t", "classification", ("a",), "accuracy", {"train": Examples("o", ("x",))})
    with pytest.raises(DataError, match="did you mean 'train'"):
        task.split("trian")
    with pytest.raises(DataError, match="no data file is named"):
        load_task({})


def test_hold_back_refuses_everything() -> None:
    with pytest.raises(DataError, match="2 of 2 different examples cannot be held back"):
        hold_back(Examples("o", ("a", "b", "A"), labels=(0, 1, 0)), 2)


def test_too_few_examples_to_hold_one_back(tmp_path: Path) -> None:
    few = _file(tmp_path, "text\tlabel\na\t0\nb\t1\nc\t1\n")
    with pytest.raises(DataError, match="0 of 3 different examples") as caught:
        load_task(few)
    # Of what the command line can do, and of what Python can.
    assert "--data train=FILE --data test=FILE; in Python load_task(" in caught.value.hint
    assert load_task({"train": few, "test": few}).split("test").labels == (0, 1, 1)


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    split = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    whole = datasets.DatasetDict({"train": split, "validation": split})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: whole)
    task = load_task("reviews:small")
    assert task.classes == ("neg", "pos")
    assert task.split("test").labels == (1, 0)


def test_hub_dataset_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, configuration: str | None) -> None:
        raise ConnectionError(f"cannot reach {name}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="'nowhere' cannot be loaded: cannot reach nowhere"):
        load_task("nowhere")


@pytest.mark.parametrize(
    ("task", "columns", "label", "splits", "scored"),
    [
        # Of MRPC the test split has labels: nobody may choose by them.
        ("MRPC", ("sentence1", "sentence2"), (1, 0), ("train", "test", "validation"), "validation"),
        ("MNLI", ("premise", "hypothesis"), (2, 0), ("train", "validation_matched"), None),
        ("STS-B", ("sentence1", "sentence2"), (2.5, 5.0), ("train", "validation"), None),
        ("SST-2", ("sentence",), (1, 0), ("train", "validation"), None),
    ],
)
def test_glue_by_its_name(
    task: str,
    columns: tuple[str, ...],
    label: tuple[float, ...],
    splits: tuple[str, ...],
    scored: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(name: str, configuration: str) -> datasets.DatasetDict:
        asked.append((name, configuration))
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {**{each: [f"{split} a", f"{split} b"] for each in columns}, "label": label}
                )
                for split in splits
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = load_glue(task)
    assert asked == [("nyu-mll/glue", task.replace("-", "").lower())]
    assert (found.classes, found.metric) == (GLUE[task].classes, GLUE[task].metric)
    for split, origin in (("train", "train"), ("test", scored or splits[-1])):
        assert found.split(split).texts == (f"{origin} a", f"{origin} b")
        assert found.split(split).labels == label


def test_glue_layouts(tmp_path: Path) -> None:
    cola = tmp_path / "CoLA"
    cola.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        _file(cola, 'gj04\t1\t\tThe "book fell.\ngj04\t0\t*\tBook the fell.\n', name)
    task = load_glue("CoLA", tmp_path)
    assert task.metric == "matthews"
    assert task.split("test").texts == ('The "book fell.', "Book the fell.")
    assert task.split("test").labels == (1, 0)
    sts = tmp_path / "STS-B"
    sts.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        _file(sts, "sentence1\tsentence2\tscore\na\tb\t5\nc\td\t2\n", name)
    assert load_glue("STS-B", tmp_path).split("train").labels == (5.0, 2.0)
    with pytest.raises(DataError, match="there is none of train"):
        load_glue("MRPC", tmp_path)
    with pytest.raises(DataError, match="did you mean 'CoLA'"):
        load_glue("CoLa", tmp_path)
    assert set(GLUE) == {"CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B"}


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence,score\nA film,0.5\nA play,1.5\nA book,1\nA song,2\n")
    (tmp_path / "b.txt").write_text("One more\nAnother\n")
    (tmp_path / "c.tsv").write_text("word\tof\nA third\tit\n")
    (tmp_path / "d.tsv").write_text("sentence1\tsentence2\nA\tB\n")
    task = load_task(tmp_path / "a.csv", test_share=0.25)
    assert (task.kind, len(task.split("train"))) == ("regression", 3)
    assert len(load_texts([tmp_path / "a.csv", tmp_path / "b.txt"])) == 6
    assert load_texts([tmp_path / "b.txt", tmp_path / "c.tsv"], "word").texts[2] == "A third"
    with pytest.raises(DataError, match="none of the columns 'word', 'of' is known"):
        load_texts(tmp_path / "c.tsv")
    with pytest.raises(DataError, match=r"cannot be mixed, and .*b\.txt has the others"):
        load_texts([tmp_path / "b.txt", tmp_path / "d.tsv"])
