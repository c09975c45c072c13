"""compress on a model with one output, whose labels are numbers: its head is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

from sparsefx.cli import main
from sparsefx.errors import DataError
from sparsefx.train.data.tables import Table
from sparsefx.train.data.tasks import load_task
from tests.train import tiny_run

HEAD = "classifier.weight"
SAME = "name: same\ndata: {max_length: 24}\nstages: [{name: same, pipeline: decompose-attention}]\n"
Ended = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A re-ranker as sentence-transformers saves it, and pairs with labels in three forms."""
    made: Any = tiny_run.model(1)
    made.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    made.save_pretrained(tmp_path / "model")
    tiny_run.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "same.yaml").write_text(SAME)
    pairs = tuple(zip(tiny_run.texts(40, 0), tiny_run.texts(40, 1), strict=True))
    for name, labels in (("binary", "01"), ("grades", "0123"), ("names", ("no", "yes"))):
        rows = (f"{a},{b},{labels[i % len(labels)]}" for i, (a, b) in enumerate(pairs))
        (tmp_path / f"{name}.csv").write_text("\n".join(("query,passage,relevance", *rows)))
    return tmp_path


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    """Return a function that runs a command and returns what it printed, on one line."""

    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        assert stopped.value.code == 0, shown.err
        return " ".join((shown.out + shown.err).split())

    return run


def compress(place: Path, data: str, *more: str) -> tuple[object, ...]:
    return (
        *("compress", place / "same.yaml", "--model", place / "model"),
        *("--data", f"train={place / data}", "--data", f"test={place / data}"),
        *("--text", "query,passage", "--label", "relevance"),
        *("--folder", place / "run", "--target", "reference", *more),
    )


def kept(place: Path) -> bool:
    """Whether the result has the head of the model."""
    new, old = (
        load_file(place / each / "model.safetensors")[HEAD] for each in ("run/huggingface", "model")
    )
    return new.shape == old.shape and torch.equal(new, old)


@pytest.mark.parametrize("data", ["binary.csv", "grades.csv"])
def test_numbers_keep_a_head_of_one_output(data: str, place: Path, ended: Ended) -> None:
    told = ended(*compress(place, data))
    assert "keeps its head of one output: labels are values, not classes; --classes" in told
    assert kept(place)
    config = json.loads((place / "run" / "huggingface" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    given = ("--data", place / data, "--text", "query,passage", "--label", "relevance")
    for form in ("model", "run"):
        ended("evaluate", place / form, *given, "--json", place / f"{form}.json")
    before, after = (json.loads((place / f"{form}.json").read_text()) for form in ("model", "run"))
    assert before["metric"] == "pearson_spearman"
    assert after["value"] == pytest.approx(before["value"], abs=1e-3)


@pytest.mark.parametrize(
    ("data", "more"), [("binary.csv", ("--classes", "no,yes")), ("names.csv", ())]
)
def test_names_of_classes_take_a_new_head(
    data: str, more: tuple[str, ...], place: Path, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    told = ended(*compress(place, data, *more))
    assert "2 classes, with their training examples: no (20), yes (20)" in told
    assert "keeps its head" not in told
    assert "labels that are numbers, and no names of classes, keep a head" in caplog.text
    assert not kept(place)


def test_a_model_without_a_head_gets_one_of_two_classes(place: Path, ended: Ended) -> None:
    base: Any = tiny_run.model(1, BertModel)
    base.save_pretrained(place / "model")
    assert "2 classes, with their training examples: 0 (20), 1 (20)" in ended(
        *compress(place, "binary.csv")
    )


@pytest.mark.parametrize(
    ("labels", "more", "kind"),
    [
        (("0", "1"), {}, "regression"),
        (("3", "0"), {}, "regression"),
        (("0", "1"), {"outputs": 2}, "classification"),
        (("0", "1"), {"outputs": None}, "classification"),
        (("0", "1"), {"classes": ("no", "yes")}, "classification"),
        (("0", "1"), {"kind": "classification"}, "classification"),
        (("no", "yes"), {}, "classification"),
    ],
)
def test_what_labels_are_for_a_head(
    labels: tuple[str, str], more: dict[str, Any], kind: str
) -> None:
    table = Table("pairs.csv", {"text": ["a", "b"], "label": list(labels)}, [2, 3])
    task = load_task({"train": table, "test": table}, **{"outputs": 1, **more})
    assert task.kind == kind
    if kind == "regression":
        assert task.split("train").labels == tuple(map(float, labels))


def test_labels_that_say_nothing_are_refused_for_one_output() -> None:
    rows = {"text": ["a", "b", "c"], "label": ["0", "1", "-1"]}
    hidden = Table("hidden.csv", rows, [2, 3, 4])
    with pytest.raises(DataError, match=r"hidden.csv, line 4: .*\n  hint: 1 of 3 rows have no"):
        load_task({"train": hidden, "test": hidden}, outputs=1)
    alike = Table("alike.csv", {"text": ["a", "b"], "label": ["1", "1"]}, [2, 3])
    with pytest.raises(DataError, match="nothing to tell apart"):
        load_task({"train": alike, "test": alike}, outputs=1)
    named = Table("named.csv", {"text": ["a", "b"], "label": ["no", "yes"]}, [2, 3])
    with pytest.raises(DataError, match=r"not a number\n  hint: labels for one output are"):
        load_task({"test": named}, kind="regression")
    two = Table("two.csv", {"text": ["a", "b"], "label": ["0", "1"]}, [2, 3])
    with pytest.raises(DataError, match="kind='regression' keeps a head of one output"):
        load_task({"train": two, "test": two}).check_head(1)
