"""Mistakes on the command line that only the library's other parts can see."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from sparsefx.cli import main
from tests.programs import captured

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A tiny classifier with a tokenizer and 16 positions, and data of several kinds."""
    folder = tmp_path / "model"
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    rows = [f"{word} film {index},{index % 2}" for index in range(20) for word in ("good", "bad")]
    more = [*WORDS[:5], "other", "words", "here", *WORDS[5:]]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(more)})
    tokenizer.save_pretrained(tmp_path / "words")
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "semicolons.csv").write_text("text;label\ngood;1\nbad;0\n")
    (tmp_path / "long.csv").write_text(f"text,label\n{'good film ' * 20},1\nbad,0\n")
    (tmp_path / "scores.csv").write_text("text,label\ngood,0.9\nbad,0.1\n")
    (tmp_path / "nan.csv").write_text("text,label\ngood,0.9\nbad,nan\n")
    (tmp_path / "run" / "stages" / "1-dense").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "stages" / "1-dense" / "result.json").write_text("{}")
    (tmp_path / "run" / "stages" / "2-sparse" / "program").mkdir(parents=True)
    (tmp_path / "run" / "stages" / "2-sparse" / "program" / "manifest.json").write_text("{}")
    (tmp_path / "run" / "huggingface").mkdir()
    (tmp_path / "run" / "huggingface" / "config.json").write_text("{}")
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "hidden.csv").write_text("text,label\ngood,1\nbad,-1\n")
    (tmp_path / "named.csv").write_text("text,label\ngood,good\nbad,bad\n")
    (tmp_path / "odd.csv").write_text("a,b\ngood,1\nbad,0\n")
    (tmp_path / "three.csv").write_text("text,label\ngood,0\nbad,2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("evaluate model --data data.csv --metric acuracy", "did you mean 'accuracy'?"),
        ("evaluate model --data data.csv --batch-size 0", "--batch-size"),
        ("evaluate model --data data.csv --max-length 0", "--max-length"),
        ("evaluate model --data data.csv --tokenizer ./none", "give a folder with tokenizer.json"),
        ("evaluate model --data data.csv --tokenizer words", "the model's vocabulary has 8"),
        ("evaluate model --data long.csv", "the model has positions for 16"),
        ("evaluate model --data scores.csv", "a regression needs one output"),
        ("evaluate model --data nan.csv", "line 3: column 'label' holds 'nan', not a number"),
        (
            "evaluate model --data three.csv",
            "holds '2', which is none of the 2 classes",
        ),
        ("evaluate model --data named.csv", "names classes (bad, good), and the model does not"),
        ("evaluate model --data hidden.csv", "1 of 2 rows have no label: take them out"),
        ("evaluate model --data data.csv --classes a,b,c", "names; the head has 2 outputs"),
        ("evaluate model --data data.csv --classes a,a", "name each class once"),
        ("evaluate run/stages/2-sparse --data data.csv", "one of run/stages/2-sparse/program"),
        ("evaluate model --data odd.csv", "none of the columns 'a', 'b' is known to hold the text"),
        ("evaluate model --data data.csv --task MPRC", "did you mean 'MRPC'?"),
        ("evaluate data.onnx --data data.csv", "there is no such file"),
        ("evaluate words --data data.csv", "this is a tokenizer: name the folder of the model"),
        ("evaluate vocabulary --data data.csv", "this is a tokenizer: name the folder"),
        ("evaluate run --data data.csv", "finished by now: run/stages/1-dense/program"),
        ("bench model -t reference --shape 1x99", "shorten it: tokens in --shape 16 or less"),
        ("bench model -t reference --shape 1x4 --shape 1x4x4", "'1x4x4' is not BATCHxTOKENS"),
        ("bench model -t reference --shape \u00b2x4", "two whole numbers above 0"),
        ("bench model -t cpu{threads=9999}", "threads=9999: expected 0 to 1024"),
        ("explain-cpu model --shape 1x99", "the model has positions for 16"),
        ("simulate model --seq 99", "the model has positions for 16"),
        ("simulate model --seq 8 --html /dev/full", "/dev/full: cannot be written: No space left"),
        ("simulate bert-base --html data.csv/page.html", "data.csv is a file"),
        ("bench model --json data.csv/times.json", "data.csv is a file"),
        ("simulate --compare a.json b.json --html page.html --listing", "at --html, --listing: tw"),
        ("simulate --compare a.json b.json --pattern random", "at --pattern: two saved results"),
        ("simulate model --compare a.json b.json --seq 8 --ratio 2", "at MODEL, --seq, --ratio: "),
        ("sweep --out sweep --ratios 2,nan", "are between 1 (dense) and 1e6"),
        ("opt model -p simplify --program teacher=", "expected NAME=FOLDER"),
        ("opt model -p distill --program a=model --program a=model", "is given twice"),
        ("opt model -p distill", "with sparsefx opt --program teacher=FOLDER"),
        ("evaluate model --data semicolons.csv", "its columns are separated by ';'"),
        ("sensitivity model --data data.csv --pattern 7x7", "blocks of 7x7 do not divide"),
        (
            "sensitivity model --data data.csv --pattern 2:4 --levels 0.9",
            "2:4 ends at a sparsity of 0.5",
        ),
        ("sensitivity model --data data.csv --pattern some", "pattern='some': expected 'unstr"),
        ("import scores.csv --out recipe.yaml", "it holds a text; expected keys with values"),
        ("capture model data.csv", "save at data.csv: it is a file"),
        ("capture model data.csv/program", "data.csv is a file"),
        ("compress fine-tune --model model --data data.csv --folder model", "holds a model"),
        ("compress sparse-sentence-encoder --model model --data data.csv", "no --data"),
        (
            "compress fine-tune --model run --data data.csv",
            "json\n  hint: name run/huggingf",
        ),
        ("compress fine-tune --model model", "there is nothing to train on"),
        ("compress fine-tune --model model --unlabelled data.csv", "nothing to minimise"),
        (
            "compress fine-tune --model model --data a=data.csv --data train=data.csv",
            "the names are train, test",
        ),
        (
            "compress fine-tune --model model --data train=a --data train=b",
            "'train' is given twice",
        ),
        ("compress fine-tune --model model --data train=long.csv --data test=data.csv", "for 16"),
    ],
)
def test_mistakes_end_in_one_message(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    expected: str,
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert expected in said
    assert "Traceback" not in said


def test_simulate_takes_a_float_model_without_masks(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", str(place / "model"), "--seq", "8", "--pattern", "block"])
    assert ended.value.code == 0
    out, told = capsys.readouterr()
    assert "cycles" in out
    assert "--pattern is for bert-base and bert-large; the model's own zeros" in told


def test_simulate_refuses_more_tokens_than_a_table_of_positions_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(captured("handwritten").save(tmp_path / "p"))
    for tokens, code in (("128", 0), ("129", 2)):
        with pytest.raises(SystemExit) as ended:
            main(["simulate", folder, "--seq", tokens])
        assert ended.value.code == code
    said = capsys.readouterr().err
    assert "128 is outside the table 'places.weight', which has 128 rows" in said
