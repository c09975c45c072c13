"""compress of a model that is fine-tuned already, on texts with few labels or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from sparsefx.cli import main
from sparsefx.huggingface import load_pretrained
from sparsefx.train.results import RunResult
from tests.train.tiny_run import LETTERS, texts, tokenizer

CLASSES = ("low", "middle", "high")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier of three classes, texts without labels, and some with."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4 + len(LETTERS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        id2label=dict(enumerate(CLASSES)),
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    BertModel(config).save_pretrained(tmp_path / "body")
    for folder in ("model", "body"):
        tokenizer().save_pretrained(tmp_path / folder)
    write(tmp_path / "plain.csv", [(text,) for text in texts(40, 1)], "text")
    rows = [(text, "low" if text[0] in "abcd" else "high") for text in texts(20, 2)]
    write(tmp_path / "few.csv", rows, "text,label")
    write(tmp_path / "other.csv", [(text, f"{label}er") for text, label in rows], "text,label")
    named = [(text, ("cold", "mild", "hot")[row % 3]) for row, (text, _) in enumerate(rows)]
    write(tmp_path / "named.csv", named, "text,label")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: Sequence[Sequence[str]], header: str) -> None:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def compress(line: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["compress", *line.split(), "--target", "reference", "--folder", "run"])
    return ended.value.code


def finished(place: Path) -> RunResult:
    result = RunResult.read(place / "run")
    assert [stage.name for stage in result.stages] == ["dense", "sparse", "int8"]
    return result


def test_it_learns_from_texts_and_is_scored_on_labels(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "sparse-fine-tuned --model model --unlabelled plain.csv --data test=few.csv"
    assert compress(line) == 0, capsys.readouterr().err
    result = finished(place)
    assert [each.score is not None for each in result.stages] == [True, True, True]
    held = json.loads((place / "run" / "huggingface" / "config.json").read_text())
    assert tuple(held["id2label"].values()) == CLASSES
    # a copy, as weights that begin anywhere in a file are rounded otherwise in products
    dense, given = result.stage("dense").program(), deepcopy(load_pretrained("model"))
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4).long()}
    with torch.no_grad():
        assert torch.equal(dense.eval()(**batch)["logits"], given(**batch).logits)
    rows = [json.loads(row) for row in (place / "run" / "metrics.jsonl").open()]
    assert {name for row in rows for name in row.get("terms", ())} == {"logits", "hidden"}


def test_it_needs_no_label_at_all(place: Path) -> None:
    assert compress("sparse-fine-tuned --model model --unlabelled plain.csv") == 0
    result = finished(place)
    scores = [each.score for each in result.stages]
    assert [score and score.metric for score in scores] == [None, "loss", "loss"]


@pytest.mark.parametrize("scored", ["", "--data test=named.csv --classes cold,mild,hot"])
def test_a_stage_of_unlabelled_texts_takes_those_of_a_run(place: Path, scored: str) -> None:
    recipe = """
name: own
data: {batch_size: 8}
stages:
- {name: dense}
- name: sparse
  teacher: dense
  pipeline: "magnitude-prune{sparsity=0.5,end=2,frequency=1},distill{hidden=1}"
  training: {steps: 2, data: unlabelled, label_weight: 0}
  after: strip-distillation,fold-masks
"""
    (place / "own.yaml").write_text(recipe)
    assert compress(f"own.yaml --model model --unlabelled plain.csv {scored}") == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "sparse-fine-tuned --model body --unlabelled plain.csv --data test=few.csv",
            "it has no head for such labels, and the new one of 2 would learn nothing",
        ),
        (
            "sparse-fine-tuned --model model --unlabelled plain.csv --data test=other.csv",
            "its head has 3 outputs, and the new one of 2 would learn nothing: no stage of",
        ),
        (
            "sparse-fine-tuned --model model --unlabelled plain.csv --data test=named.csv",
            "are low, middle, high; the labels are cold, hot, mild, and no stage of sparse-",
        ),
        (
            "sparse-fine-tuned --model model --data test=few.csv",
            "such as sparse-fine-tuned, --unlabelled FILE",
        ),
        (
            "fine-tune --model model --unlabelled plain.csv --data test=few.csv",
            "give labelled texts to train on, or add distill to the pipeline",
        ),
        ("prune-ofa-transfer --model body --data few.csv", "there is no folder './teacher'"),
        ("sparse-sentence-encoder --model body --data few.csv", "and no --data"),
    ],
    ids=[
        "no head",
        "other classes",
        "other names",
        "no texts",
        "labels needed",
        "other teacher",
        "no head stays",
    ],
)
def test_what_cannot_be_is_said_before_training(
    place: Path, capsys: pytest.CaptureFixture[str], line: str, expected: str
) -> None:
    assert compress(line) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert not (place / "run" / "stages").exists()
