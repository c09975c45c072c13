"""compress, evaluate and sensitivity on labels of words and on any number of labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForTokenClassification

from sparsefx.cli import main
from tests.train import tiny_run
from tests.train.test_kinds import TAGS, marks, tags

RECIPE = """
name: short
data: {max_length: 16, batch_size: 8}
stages:
- name: dense
  training: {steps: 3, precision: fp32}
"""
Ended = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model, a recipe, and texts with labels of both kinds."""
    made = tiny_run.model()
    made.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    tiny_run.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "short.yaml").write_text(RECIPE)
    texts = tiny_run.texts(40, 0)
    sentences = (
        "".join(f"{word} {TAGS[tag]}\n" for word, tag in zip(text.split(), tags(text), strict=True))
        for text in texts
    )
    (tmp_path / "words.conll").write_text("\n".join(sentences))
    columns = ("text,a,b,c", *(f"{text},{','.join(map(str, marks(text)))}" for text in texts))
    (tmp_path / "marks.csv").write_text("\n".join(columns))
    lists = (
        {
            "text": text,
            "labels": [name for name, has in zip("abc", marks(text), strict=True) if has],
        }
        for text in texts
    )
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, lists)))
    return tmp_path


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    """Return a function that runs a command and returns what it printed."""

    def run(*words: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        assert stopped.value.code == code, shown.err
        return shown.out + shown.err

    return run


def compress(place: Path, data: str, *more: object) -> tuple[object, ...]:
    data = data if "=" in data else str(place / data)
    where = ("--model", place / "model", "--data", data, "--folder", place / "run")
    return "compress", place / "short.yaml", *where, *more


def score(place: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((place / "score.json").read_text())["parts"]
    return found


def test_words_all_the_way(place: Path, ended: Ended) -> None:
    told = ended(*compress(place, "words.conll"))
    assert "3 classes, with their training words: B-V (" in told
    forms = (place / "run", place / "run" / "model.onnx", place / "run" / "huggingface")
    scores = []
    for form in forms:
        to = ("--json", place / "score.json", "--overwrite")
        told = ended("evaluate", form, "--data", place / "words.conll", *to)
        assert told.startswith("entity_f1 ")
        scores.append(score(place))
    assert scores[0] == scores[1] == scores[2]
    config = json.loads((place / "run" / "huggingface" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    out = ("--out", place / "out", "--levels", "0.5")
    assert "loss of the untouched model" in ended(
        "sensitivity", place / "run", "--data", place / "words.conll", *out
    )


@pytest.mark.parametrize(
    ("data", "more"), [("lists.jsonl", ()), ("marks.csv", ("--label", "a,b,c"))]
)
def test_any_number_of_labels_all_the_way(
    data: str, more: tuple[str, ...], place: Path, ended: Ended
) -> None:
    told = ended(*compress(place, data, *more))
    assert "3 classes, with their training examples: a (" in told
    scores = []
    folder = place / "run" / "huggingface"
    to = ("--json", place / "score.json", "--overwrite")
    for given in (("lists.jsonl",), ("marks.csv",), ("marks.csv", "--label", "c,a,b")):
        name, *options = given
        told = ended("evaluate", folder, "--data", place / name, *options, *to)
        assert told.startswith("f1_micro ")
        scores.append(score(place))
    assert scores[0] == scores[1] == scores[2]
    wrong = ("--data", place / "marks.csv", "--label", "a,b")
    told = ended("evaluate", folder, *wrong, code=2)
    assert "the label columns a, b are not the model's classes" in told
    assert "give a column for each of a, b, c" in told
    out = ("--out", place / "out", "--levels", "0.5")
    assert "loss of the untouched model" in ended(
        "sensitivity", folder, "--data", place / "marks.csv", *out
    )


def test_a_head_keeps_the_order_of_its_classes(place: Path, ended: Ended) -> None:
    made: Any = tiny_run.model(4, BertForTokenClassification)
    # Not sorted, and one that the data lack.
    made.config.id2label = dict(enumerate(("O", "I-V", "B-V", "B-X")))
    made.save_pretrained(place / "model")
    stage = "{name: same, pipeline: decompose-attention}"
    (place / "short.yaml").write_text(f"name: same\ndata: {{max_length: 16}}\nstages: [{stage}]\n")
    words = place / "words.conll"
    told = ended(*compress(place, f"train={words}", "--data", f"test={words}"))
    assert "4 classes, with their training words: O (" in told
    assert "B-X (0)" in told
    found = []
    for form in (place / "model", place / "run", place / "run" / "huggingface"):
        ended("evaluate", form, "--data", words, "--json", place / "score.json", "--overwrite")
        found.append(score(place))
    assert found[0] == found[1] == found[2]


def test_a_head_whose_classes_get_other_names_is_told(place: Path, ended: Ended) -> None:
    made: Any = tiny_run.model(3, BertForTokenClassification)
    made.config.id2label = {0: "O", 1: "B-NP", 2: "I-NP"}
    made.save_pretrained(place / "model")
    told = " ".join(ended(*compress(place, "words.conll")).split())
    assert "were O, B-NP, I-NP; from here on they stand for B-V, I-V, O" in told


def test_numbers_are_those_of_the_outputs_of_a_named_head(place: Path, ended: Ended) -> None:
    made: Any = tiny_run.model(3, BertForTokenClassification)
    made.config.id2label = {0: "O", 1: "B-NP", 2: "I-NP"}
    made.save_pretrained(place / "model")
    rows = [{"tokens": text.split(), "tags": [i % 2 for i, _ in enumerate(text.split())]}
            for text in tiny_run.texts(20, 0)]  # fmt: skip
    (place / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = ended(*compress(place, "numbers.jsonl"))
    assert "labels are taken for the outputs of" in told
    assert ": 0 O, 1 B-NP, 2 I-NP\n" in told
    assert "3 classes, with their training words: O (" in told
    config = json.loads((place / "run" / "huggingface" / "config.json").read_text())
    assert config["id2label"] == {"0": "O", "1": "B-NP", "2": "I-NP"}


def test_numbers_of_classes_get_the_names_that_are_given(place: Path, ended: Ended) -> None:
    rows = ({"tokens": text.split(), "tags": tags(text)} for text in tiny_run.texts(20, 0))
    (place / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ("--classes", ",".join(TAGS))
    told = ended(*compress(place, "numbers.jsonl", *given))
    assert "3 classes, with their training words: B-V (" in told
    assert json.loads((place / "run" / "run.json").read_text())["data"]["metric"] == "entity_f1"
