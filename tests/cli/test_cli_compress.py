"""compress and evaluate on a user's folder and files: the whole way, and what can go wrong."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from sparsefx.cli import main
from sparsefx.cli.runs import Timed, chosen_stages
from sparsefx.train.results import StageResult
from tests.train.tiny_run import LETTERS, texts, tokenizer

RECIPE = """
name: short
data: {max_length: 16, batch_size: 8}
stages:
- name: dense
  training: {steps: 3, precision: fp32}
- name: sparse
  pipeline: magnitude-prune{sparsity=0.5,end=2,frequency=1}
  training: {steps: 2, precision: fp32}
  after: fold-masks
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model, two data files and a recipe."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4 + len(LETTERS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    for name, seed in (("train", 1), ("test", 2)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["words", "kind"])
            writer.writerows((t, "early" if t[0] in "abcd" else "late") for t in texts(40, seed))
    (tmp_path / "short.yaml").write_text(RECIPE)
    return tmp_path


def run(*arguments: object) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def compress(place: Path, **changed: str) -> Any:
    options = {
        "--model": f"{place}/model",
        "--text": "words",
        "--label": "kind",
        "--folder": f"{place}/run",
        "--target": "reference",
        **changed,
    }
    data = ("--data", f"train={place}/train.csv", "--data", f"test={place}/test.csv")
    flat = [text for pair in options.items() for text in pair]
    return run("compress", place / "short.yaml", *data, *flat)


@pytest.mark.parametrize(
    ("timed", "names"), [("all", ["a", "b", "c"]), ("ends", ["a", "c"]), ("last", ["c"])]
)
def test_which_stages_are_timed(timed: Timed, names: list[str], tmp_path: Path) -> None:
    stages = [StageResult(name, tmp_path, 1, None, {}, None, ()) for name in "abc"]
    assert [stage.name for stage in chosen_stages(stages, timed)] == names
    assert chosen_stages(stages[:1], timed) == stages[:1]


def test_the_whole_way(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(place) == 0
    shown = capsys.readouterr().out
    assert "sparse" in shown
    assert "50.0%" in shown
    assert "The score is accuracy on 40 held-back examples." in shown
    assert "one sentence of 16 tokens" in shown
    page = (place / "run" / "report.html").read_text()
    assert page.count("<svg") == 4
    model = BertForSequenceClassification.from_pretrained(place / "run" / "huggingface")
    assert model.config.id2label == {0: "early", 1: "late"}
    weight = model.get_parameter("bert.encoder.layer.0.output.dense.weight")
    assert (weight == 0).float().mean() == 0.5
    assert (place / "run" / "compiled" / "manifest.json").exists()
    assert (place / "run" / "huggingface" / "tokenizer.json").exists()

    test = ("--data", place / "test.csv", "--text", "words", "--label", "kind")
    assert run("evaluate", place / "run", *test) == 0
    first = capsys.readouterr().out
    for form in ("huggingface", "stages/2-sparse/program"):
        assert run("evaluate", place / "run" / form, *test) == 0
        assert capsys.readouterr().out == first

    assert compress(place) == 0
    assert "finished before: dense, sparse" in capsys.readouterr().err

    (place / "run" / "report.html").unlink()
    (place / "run" / "report.html").mkdir()
    shutil.rmtree(place / "run" / "huggingface")
    (place / "run" / "huggingface").write_text("in the way")
    assert compress(place) == 2
    said = capsys.readouterr()
    assert "The score is accuracy on 40 held-back examples." in said.out
    assert "the run is finished and its results are saved" in said.err
    assert "the Hugging Face folder: [Errno" in said.err
    assert "the report: [Errno" in said.err


@pytest.mark.parametrize("name", ["recipe.yaml", "report.html", "huggingface", "compiled"])
def test_files_of_the_user_are_not_replaced(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / name).write_text("mine")
    before = sorted(each.name for each in place.iterdir())
    assert compress(place, **{"--folder": str(place)}) == 2
    assert f"a run would replace {name} in it\n  hint: choose" in capsys.readouterr().err
    assert (place / name).read_text() == "mine"
    assert sorted(each.name for each in place.iterdir()) == before


def test_a_model_without_configuration_is_no_failure(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "short.yaml").write_text(RECIPE.replace("fold-masks", "fold-masks,prune-heads"))
    assert compress(place) == 0
    said = capsys.readouterr().err
    assert "no Hugging Face folder: save_pretrained at bert.encoder.layer.0" in said
    assert (place / "run" / "compiled" / "manifest.json").exists()
    assert not (place / "run" / "huggingface").exists()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"--label": "kid"}, "did you mean 'kind'?"),
        ({"--model": "nowhere/at-all"}, "there is no such file or folder"),
        ({"--folder": "FILE/run"}, "Not a directory"),
        ({"--target": "refrence"}, "did you mean 'reference'?"),
        ({"--target": "cpu{isa='sse9'}"}, "unknown instruction set 'sse9'"),
        ({"--target": "cpu{isa='avx2',precision=bf16}"}, "'avx2' has no products of bf16"),
        ({"--target": "accelerator{arch='none'}"}, "there is no architecture 'none'"),
    ],
)
def test_mistakes(
    place: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], expected: str
) -> None:
    (place / "FILE").write_text("")
    changed = {key: text.replace("FILE", str(place / "FILE")) for key, text in changed.items()}
    assert compress(place, **changed) == 2
    assert expected in capsys.readouterr().err
    assert not (place / "run" / "result.json").exists()


def test_a_folder_without_tokenizer_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in place.glob("model/tokenizer*"):
        path.unlink()
    assert compress(place) == 2
    assert "no tokenizer can be loaded" in capsys.readouterr().err


def test_an_unknown_metric_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = ("--data", place / "test.csv", "--text", "words", "--label", "kind")
    assert run("evaluate", place / "model", *test, "--metric", "acuracy") == 2
    assert "did you mean 'accuracy'?" in capsys.readouterr().err


def test_a_wrong_key_of_a_recipe_is_named_with_its_path(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace("{steps: 2, precision: fp32}", "{steps: 2, precison: fp32}")
    (place / "short.yaml").write_text(text)
    assert compress(place) == 2
    shown = capsys.readouterr().err
    assert "stages[1].training.precison" in shown
    assert "did you mean 'precision'?" in shown


def test_text_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "self.yaml").write_text("""
name: self
data: {max_length: 16, batch_size: 8}
stages:
- name: sparse
  teacher: model
  pipeline: ["magnitude-prune{sparsity=0.5,end=2}", "distill{logits=0,hidden=1}"]
  training: {steps: 3, precision: fp32}
  after: [strip-distillation, fold-masks]
""")
    (place / "more.txt").write_text("\n".join(texts(20, 5)) + "\n")
    found = run(
        "compress", place / "self.yaml", "--model", place / "model", "--unlabelled",
        place / "more.txt", "--unlabelled", place / "train.csv", "--text", "word",
        "--folder", place / "run", "--target", "reference",
    )  # fmt: skip
    assert found == 2
    assert "no column 'word'" in capsys.readouterr().err
    found = run(
        "compress", place / "self.yaml", "--model", place / "model", "--unlabelled",
        place / "more.txt", "--folder", place / "run", "--target", "reference",
    )  # fmt: skip
    assert found == 0
    shown = capsys.readouterr().out
    assert "The score is loss (less is better) on 1 held-back examples." in shown
    assert (place / "run" / "huggingface" / "model.safetensors").exists()
