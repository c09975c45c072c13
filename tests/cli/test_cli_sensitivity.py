"""sensitivity on a user's folder and file: table, page, and curves that allocate-sparsity reads."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from sparsefx.cli import main
from sparsefx.errors import DataError
from sparsefx.passes.prune.loss_curves import read_loss_curves
from sparsefx.passes.prune.patterns import Pattern, mask_for
from tests.tiny_models import small_bert
from tests.train.tiny_run import LETTERS, texts, tokenizer


def run(*arguments: object) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model and a labelled file."""
    model = small_bert(vocab_size=4 + len(LETTERS), num_hidden_layers=1, type_vocab_size=2)
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((each, int(each[0] in "abcd")) for each in texts(20, 1))
    return tmp_path


def test_outputs_for_each_token_are_no_head(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BertConfig.from_pretrained(place / "model")
    BertForMaskedLM(config).save_pretrained(place / "model")
    assert run("sensitivity", place / "model", "--data", place / "data.csv") == 2
    said = capsys.readouterr().err
    assert "what the model predicts for each token" in said
    assert "give a model with a classification or regression head" in said


def test_it_writes_curves_and_a_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "out"
    command = ("sensitivity", place / "model", "--data", place / "data.csv", "--out", out)
    assert run(*command, "--levels", "0.5,0.9", "--batch-size", 8) == 0
    curves = read_loss_curves(out / "curves.json")
    assert len(curves) == 6
    assert all([s for s, _ in curve.points] == [0.5, 0.9] for curve in curves.values())
    assert json.loads((out / "int8.json").read_text(encoding="utf-8")).keys() == curves.keys()
    assert "<svg" in (out / "sensitivity.html").read_text(encoding="utf-8")
    assert not (out / "unfinished.json").exists()
    said = capsys.readouterr()
    assert "loss of the untouched model" in said.out
    begin = "sensitivity: 19 losses, each over 3 batches: 6 linears, each with 50%, 90% zeros and"
    assert begin in said.err


def test_a_loss_that_falls_is_shown_as_it_was_measured(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "out"
    command = ("sensitivity", place / "model", "--data", place / "data.csv", "--out", out)
    assert run(*command, "--levels", "0.3,0.6,0.9") == 0
    rows = capsys.readouterr().out.splitlines()
    curves = read_loss_curves(out / "curves.json")
    assert any(loss < 0 for curve in curves.values() for _, loss in curve.points)
    page = (out / "sensitivity.html").read_text(encoding="utf-8")
    for name, curve in curves.items():
        measured = [f"{loss:+.4f}" for _, loss in curve.points]
        assert next(row.split()[1:4] for row in rows if name in row) == measured
        cells = "".join(f'<td class="whole">{each}</td>' for each in measured)
        assert f"<td>{name}</td>{cells}" in page
    worst = max(curves, key=lambda name: curves[name].points[-1][1])
    told = f"with 90% zeros the loss rises most at {worst} {curves[worst].points[-1][1]:+.4f}, "
    assert told in page
    assert any(row.startswith(told) for row in rows)


def test_a_pipe_is_told_how_far_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsefx.cli.progress._SECONDS", 0)
    command = ("sensitivity", place / "model", "--data", place / "data.csv", "--out", place / "out")
    assert run(*command, "--levels", "0.5", "--batch-size", 10) == 0
    said = capsys.readouterr().err
    assert re.search(r"sensitivity: measuring: 0/13 losses, 0:00:\d\d left\n", said)
    assert "sensitivity: measuring: 13/13 losses, 0:00:00 left\n" in said


def stop_at(call: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Send a signal when the mask of that number is made; return the levels of all masks."""
    made: list[float] = []

    def mask(scores: Tensor, level: float, pattern: Pattern) -> Tensor:
        made.append(level)
        if len(made) == call:
            signal.raise_signal(number)
        return mask_for(scores, level, pattern)

    monkeypatch.setattr("sparsefx.passes.prune.sensitivity.mask_for", mask)
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_goes_on_where_it_was(
    number: signal.Signals,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--data", place / "data.csv", "--levels", "0.5,0.9", "--batch-size", 8)
    assert run("sensitivity", place / "model", *options, "--out", place / "whole") == 0
    made = stop_at(4, number, monkeypatch)
    assert run("sensitivity", place / "model", *options, "--out", place / "out") == 130
    said = capsys.readouterr().err
    # The untouched model, two levels and int8 of the first weight, two of the second.
    assert "sensitivity: stopped; 6 of 19 losses are kept" in said
    assert "run the same command again to go on from there" in said
    assert [path.name for path in (place / "out").iterdir()] == ["unfinished.json"]
    assert run("sensitivity", place / "model", *options, "--out", place / "out") == 0
    assert "; 6 are kept from before\n" in capsys.readouterr().err
    assert len(made) == 12
    assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (place / "whole").iterdir()
    }


def test_what_is_kept_of_something_else_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place / "out"
    command = ("sensitivity", place / "model", "--data", place / "data.csv", "--out", out)
    stop_at(2, signal.SIGINT, monkeypatch)
    assert run(*command, "--levels", "0.5") == 130
    kept = (out / "unfinished.json").read_bytes()
    capsys.readouterr()

    def refused(*options: object, told: str) -> None:
        assert run(*command, *options) == 2
        said = capsys.readouterr().err
        assert told in said
        assert "choose another --out, or give --overwrite to begin anew" in said
        assert (out / "unfinished.json").read_bytes() == kept

    refused("--levels", "0.7", told="  levels[0]: was 0.5, is 0.7\n")
    refused("--levels", "0.5", "--batch-size", 5, told="  batch_size: was 32, is 5\n")
    refused("--levels", "0.5", "--examples", 8, told='  examples: was "20 examples, ')
    model = BertForSequenceClassification.from_pretrained(place / "model")
    model.classifier.bias.data.add_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(place / "model")
    refused("--levels", "0.5", told='  model: was "')
    (out / "unfinished.json").write_bytes(kept := b"{")
    refused("--levels", "0.5", told="  not JSON: ")
    assert run(*command, "--levels", "0.5", "--overwrite") == 0
    assert "kept from before" not in capsys.readouterr().err
    assert not (out / "unfinished.json").exists()


def test_linears_of_other_roles(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("sensitivity", place / "model", "--data", place / "data.csv", "--out", place / "out")
    assert run(*command, "--levels", "0.5", "--roles", "other") == 2
    assert "there is no linear to measure (roles=other: no weight" in capsys.readouterr().err
    assert run(*command, "--levels", "0.5", "--roles", "encoder,head") == 0
    assert len(read_loss_curves(place / "out" / "curves.json")) > 6


def test_interrupted_at_once_it_leaves_the_older_results_whole(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place / "out"
    command = ("sensitivity", place / "model", "--data", place / "data.csv", "--out", out)
    assert run(*command, "--levels", "0.5") == 0
    older = {path: path.read_bytes() for path in out.iterdir()}

    def interrupt(_: fx.Interpreter, *__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fx.Interpreter, "run_node", interrupt)
    assert run(*command, "--levels", "0.9", "--overwrite") == 130
    assert "run the same command again: what is finished is kept" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == older


def test_groups_have_one_level(place: Path) -> None:
    command = ("sensitivity", place / "model", "--data", place / "data.csv")
    assert run(*command, "--out", place / "out", "--pattern", "2:4", "--examples", 8) == 0
    (curve, *_) = read_loss_curves(place / "out" / "curves.json").values()
    assert [sparsity for sparsity, _ in curve.points] == [0.5]


def test_a_folder_of_curves_is_told_from_its_file(place: Path) -> None:
    (place / "curves.json").write_text("{}")
    with pytest.raises(DataError, match=r"it is a folder[^$]*name .*curves\.json"):
        read_loss_curves(place)


def test_wrong_levels_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("sensitivity", place / "model", "--data", place / "data.csv")
    assert run(*command, "--levels", "0.5,1.5") == 2
    assert "expected sparsities between 0 and 1" in capsys.readouterr().err


def test_names_of_classes_in_an_unknown_order_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (place / "data.csv").read_text() + "abc,1\n" * 8
    (place / "data.csv").write_text(text.replace(",0", ",up").replace(",1", ",down"))
    command = ("sensitivity", place / "model", "--data", place / "data.csv", "--out", place / "out")
    assert run(*command) == 2
    said = capsys.readouterr().err
    assert "column 'label' names classes (down, up), and the model does not know which of" in said
    assert "give --classes in the order of the head" in said
    assert "--task" not in said
    model = BertForSequenceClassification.from_pretrained(place / "model")
    model.classifier.bias.data.copy_(torch.tensor([1.0, -1.0]))
    model.save_pretrained(place / "model")
    losses = set()
    for order in ("up,down", "down,up"):
        assert run(*command, "--levels", "0.5", "--classes", order, "--overwrite") == 0
        losses.add(capsys.readouterr().out.rpartition("untouched model ")[2].partition(";")[0])
    assert len(losses) == 2
