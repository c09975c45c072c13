"""evaluate scores every form of a saved model, on labels of every form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sparsefx import registry
from sparsefx.cli import main
from sparsefx.frontend.capture import capture
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.train.data.batches import encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tables import FORMATS, Table
from sparsefx.train.evaluation import predict
from tests.train import tiny_run

TEXTS = tiny_run.texts(24, 3)
Scored = Callable[..., dict[str, float]]


@pytest.fixture
def program() -> Program:
    """A classifier that tells some of the texts from others."""
    found = tiny_run.program().copy()
    found.config["id2label"] = {"0": "late", "1": "early"}
    return found


@pytest.fixture
def place(tmp_path: Path, program: Program) -> Path:
    """The model, its tokenizer and labels that it gets right in 3 of 4 texts."""
    program.save(tmp_path / "model")
    tiny_run.tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    coded = encode(tiny_run.tokenizer(), Examples("drawn", TEXTS), 16)
    chosen = predict(program, coded, 8).argmax(1)
    chosen[::4] = 1 - chosen[::4]
    np.save(tmp_path / "labels.npy", chosen)
    return tmp_path


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    """Return a function that evaluates and returns the parts of the score."""

    def run(model: Path, *options: object) -> dict[str, float]:
        out = tmp_path / "new" / "score.json"
        words = ["evaluate", str(model), *map(str, options), "--json", str(out), "--overwrite"]
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        parts: dict[str, float] = json.loads(out.read_text())["parts"]
        return parts

    return run


def write(place: Path, name: str, lines: list[str]) -> Path:
    (place / name).write_text("\n".join(lines) + "\n")
    return place / name


def labels(place: Path) -> list[int]:
    found: list[int] = np.load(place / "labels.npy").tolist()
    return found


@pytest.mark.parametrize("form", ["{}", "{}.0", "names"])
def test_labels_by_name_number_or_float(place: Path, scored: Scored, form: str) -> None:
    words = [("late", "early")[n] if form == "names" else form.format(n) for n in labels(place)]
    rows = [f"{text}\t{word}" for text, word in zip(TEXTS, words, strict=True)]
    data = write(place, "data.tsv", ["sentence\tlabel", *rows])
    assert scored(place / "model", "--data", data) == {"accuracy": 0.75}


def test_a_task_brings_columns_and_metric(place: Path, scored: Scored) -> None:
    rows = [f"x\t{n}\t\t{text}" for text, n in zip(TEXTS, labels(place), strict=True)]
    data = write(place, "dev.tsv", rows)
    found = scored(place / "model", "--data", data, "--task", "CoLA")
    assert list(found) == ["matthews", "accuracy"]
    assert found["accuracy"] == 0.75
    assert scored(place / "model", "--data", data) == found  # told by its missing header


def test_a_file_is_read_once(place: Path, scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def count(path: Path, header: Sequence[str] | None) -> Table:
        read.append(path)
        return reader(path, header)

    reader = FORMATS[".tsv"]
    monkeypatch.setitem(FORMATS, ".tsv", count)
    rows = [f"x\t{n}\t\t{text}" for text, n in zip(TEXTS, labels(place), strict=True)]
    data = write(place, "dev.tsv", rows)
    scored(place / "model", "--data", data)
    assert read == [data]


def test_pairs_and_the_score_of_mrpc(place: Path, scored: Scored) -> None:
    rows = [f"{text}\ta b\t{n}" for text, n in zip(TEXTS, labels(place), strict=True)]
    data = write(place, "dev.tsv", ["#1 String\t#2 String\tQuality", *rows])
    found = scored(place / "model", "--data", data, "--task", "MRPC")
    assert list(found) == ["accuracy_f1", "accuracy", "f1"]


def test_names_in_the_order_of_the_head(place: Path, program: Program, scored: Scored) -> None:
    program.config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1"}
    program.save(place / "model")
    words = [("z", "a")[n] for n in labels(place)]
    rows = [f"{text}\t{word}" for text, word in zip(TEXTS, words, strict=True)]
    data = write(place, "data.tsv", ["text\tlabel", *rows])
    tokens = ("--tokenizer", place / "tokens")
    tiny_run.tokenizer().save_pretrained(place / "tokens")
    assert scored(place / "model", "--data", data, "--classes", "z,a", *tokens)["accuracy"] == 0.75


@pytest.mark.parametrize("target", ["onnxruntime", "cpu", "cpu{threads=1}"])
def test_compiled_models(place: Path, program: Program, scored: Scored, target: str) -> None:
    rows = [f"{text}\t{n}" for text, n in zip(TEXTS, labels(place), strict=True)]
    data = write(place, "data.tsv", ["text\tlabel", *rows])
    compiled = registry.parse_target(target).compile(program)
    saved = compiled.save(place / ("model.onnx" if target == "onnxruntime" else "compiled"))
    options = ["--data", data, "--tokenizer", place / "model" / "tokenizer", "-t", target]
    assert scored(saved, *options) == {"accuracy": 0.75}


def test_a_folder_compiled_for_cpu_runs_there_unless_told_otherwise(
    place: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = registry.parse_target("cpu").compile(program).save(place / "compiled")
    (place / "data.csv").write_text("text,label\na b,0\nb a,1\n")
    words = ["evaluate", str(saved), "--tokenizer", str(place / "model" / "tokenizer")]
    for more, where in (([], "cpu"), (["-t", "reference"], "reference")):
        with pytest.raises(SystemExit):
            main([*words, "--data", str(place / "data.csv"), *more])
        assert f"on 2 examples, {where}\n" in capsys.readouterr().out


def test_an_onnx_file_says_where_it_ran_and_what_is_too_long(
    place: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = registry.parse_target("onnxruntime").compile(program).save(place / "model.onnx")
    (place / "data.csv").write_text("text,label\na b,0\nb a,1\n")
    (place / "long.csv").write_text(f"text,label\n{'a b ' * 90},0\n")
    words = ["evaluate", str(saved), "--tokenizer", str(place / "model" / "tokenizer"), "--data"]
    for data, more, code in (("data.csv", [], 0), ("long.csv", ["--max-length", "200"], 2)):
        with pytest.raises(SystemExit) as ended:
            main([*words, str(place / data), *more])
        assert ended.value.code == code
    told = capsys.readouterr()
    assert "on 2 examples, onnxruntime" in told.out
    assert "it cannot compute texts of" in told.err
    assert "try a smaller --max-length" in told.err


def test_other_names_than_the_model_has_are_warned_of(
    place: Path, scored: Scored, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{text}\t{n}" for text, n in zip(TEXTS, labels(place), strict=True)]
    data = write(place, "data.tsv", ["text\tlabel", *rows])
    scored(place / "model", "--data", data, "--classes", "early,late")
    assert "taken for early, late; the model was saved with late, early" in capsys.readouterr().err


def test_a_fixed_batch_is_filled_on_onnxruntime(place: Path, scored: Scored) -> None:
    batch = tiny_run.example_inputs(tiny_run.data())  # of two texts
    dynamic = {name: {1: "sequence"} for name in batch}
    of_two = capture(tiny_run.model(), batch, dynamic=dynamic)
    registry.parse_target("onnxruntime").compile(of_two).save(place / "two.onnx")
    rows = [f"{text}\t{n}" for text, n in zip(TEXTS[:5], labels(place), strict=False)]
    options = ("--data", write(place, "five.tsv", ["text\tlabel", *rows]))
    tokenizer = ("--tokenizer", place / "model" / "tokenizer")
    assert scored(place / "two.onnx", *options, *tokenizer) == scored(place / "model", *options)


@pytest.mark.parametrize("form", ["tokens", "tokens.onnx"])
def test_a_head_for_each_token_is_told(
    form: str, place: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = Pipeline.parse("mlm-head,keep-outputs{outputs=mlm_logits}").run(program)
    masked.save(place / "tokens")
    if form.endswith(".onnx"):
        registry.parse_target("onnxruntime").compile(masked).save(place / form)
    data = write(place, "data.csv", ["text,label", "a b,0", "f,1"])
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(place / form), "--data", str(data)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "for each token" in told
    assert "give a model with a classification or regression head" in told


@pytest.mark.parametrize("command", ["evaluate", "sensitivity"])
def test_a_model_of_any_number_of_labels_is_refused(
    command: str, place: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    program.config["problem_type"] = "multi_label_classification"
    program.save(place / "model")
    data = write(place, "data.csv", ["text,label", "a b,0", "f,1"])
    out = ("--out", str(place / "out")) if command == "sensitivity" else ()
    with pytest.raises(SystemExit) as ended:
        main([command, str(place / "model"), "--data", str(data), *out])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "number of them (problem_type multi_label_classification)" in told
    assert "set problem_type to single_label_classification" in told


def test_a_head_with_one_output_is_a_regression(place: Path, scored: Scored) -> None:

    regressor = capture(tiny_run.model(1), tiny_run.example_inputs(tiny_run.data()))
    regressor.save(place / "regressor")
    tiny_run.tokenizer().save_pretrained(place / "regressor" / "tokenizer")
    rows = [f"{text}\tb\t{len(text) % 5}" for text in TEXTS]
    data = write(place, "dev.tsv", ["sentence1\tsentence2\tscore", *rows])
    found = scored(place / "regressor", "--data", data)
    assert list(found) == ["pearson_spearman", "pearson", "spearman"]
