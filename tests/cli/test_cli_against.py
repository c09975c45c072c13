"""evaluate --against: how often two models answer alike, on texts without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from sparsefx import Pipeline
from sparsefx.cli import main
from sparsefx.huggingface import capture_pretrained, save_pretrained
from sparsefx.program import Program
from sparsefx.train.data.batches import encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.evaluation import predict
from tests.train import tiny_run

TEXTS = tiny_run.texts(24, 3)
Ended = Callable[..., str]


def answers(program: Program) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return predict(program, encode(tiny_run.tokenizer(), Examples("drawn", TEXTS), 16), 8)


def shifted(program: Program, by: float) -> Program:
    """The same model with another opinion of its first class."""
    found = program.copy()
    with torch.no_grad():
        found.tensor("classifier.bias")[0] += by
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    given = tiny_run.program().copy()
    given.config["id2label"] = {"0": "late", "1": "early"}
    logits = answers(given)
    middle = float(np.median(logits[:, 1] - logits[:, 0]))
    given = shifted(given, middle + 1e-4)  # half of the texts are of each class
    save_pretrained(given, tmp_path / "model")
    shifted(given, float(np.std(logits[:, 1] - logits[:, 0]))).save(tmp_path / "other")
    named = given.copy()
    named.config["id2label"] = {"0": "early", "1": "late"}
    named.save(tmp_path / "swapped")
    for folder in ("model", "other", "swapped"):
        tiny_run.tokenizer().save_pretrained(tmp_path / folder)
    (tmp_path / "texts.csv").write_text("\n".join(["text", *TEXTS]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    def run(line: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", *line.split()])
        out, err = capsys.readouterr()
        assert stopped.value.code == code, err
        return " ".join((out if code == 0 else err).split())

    return run


def test_it_is_the_share_of_texts_with_the_same_answer(place: Path, ended: Ended) -> None:
    told = ended("other --data texts.csv --against model --json score.json")
    assert "reference; the answers of model are the labels" in told
    ours, theirs = answers(Program.load(place / "other")), answers(capture_pretrained("model"))
    alike = float((ours.argmax(1) == theirs.argmax(1)).mean())
    assert 0.2 < alike < 1.0
    found = json.loads((place / "score.json").read_text())
    assert (found["value"], found["count"]) == (pytest.approx(alike), len(TEXTS))


def test_a_model_agrees_with_itself(place: Path, ended: Ended) -> None:
    assert "accuracy 100.0" in ended("model --data texts.csv --against model --max-length 16")


def test_embeddings_are_no_predictions(place: Path, ended: Ended) -> None:
    pooled = Pipeline.parse("pool-sentences{pooling=mean}").run(Program.load(place / "other"))
    pooled.save(place / "encoder")
    told = "encoder: it returns sentence embeddings, which are no predictions"
    assert told in ended("model --data texts.csv --against encoder", code=2)
    cast = helper.make_node("Cast", ["input_ids"], ["sentence_embedding"], to=TensorProto.FLOAT)
    taken = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    given = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([cast], "encoder", [taken], [given])
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), "encoder.onnx")
    told = "none of its outputs sentence_embedding is called 'logits'"
    assert told in ended("encoder.onnx --data texts.csv --against model", code=2)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_outputs_that_a_file_does_not_tell_are_counted(
    place: Path, ended: Ended, outputs: int
) -> None:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    cast = helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT)
    ends = [helper.make_tensor(name, TensorProto.INT64, [1], [at])
            for name, at in (("none", 0), ("some", outputs), ("axis", 1))]  # fmt: skip
    cut = helper.make_node("Slice", ["floats", "none", "some", "axis"], ["logits"])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "labels"])
    graph = helper.make_graph([cast, cut], "mute", [ids], [given], ends)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), "mute.onnx")
    tiny_run.tokenizer().save_pretrained("tokenizer")
    lines = (
        ("mute.onnx --data texts.csv --against model", f"2 outputs, and the model {outputs}"),
        ("model --data texts.csv --against mute.onnx", f"{outputs} outputs, and the model 2"),
    )
    for line, counts in lines:
        if outputs == 2:
            assert "accuracy" in ended(f"{line} --tokenizer tokenizer")
        else:
            told = ended(f"{line} --tokenizer tokenizer", code=2)
            assert f"{line.split(' --data texts.csv ')[1]}: it has {counts}" in told


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("swapped --data texts.csv --against model", "its outputs are late, early, and the model"),
        ("model --data texts.csv --against model --label text", "leave out --label, or --against"),
        ("model --data texts.csv --against nowhere", "nowhere"),
        ("model --data texts.csv --against model --metric f1_micro", "take accuracy"),
    ],
)
def test_mistakes(place: Path, ended: Ended, line: str, expected: str) -> None:
    assert expected in ended(line, code=2)
