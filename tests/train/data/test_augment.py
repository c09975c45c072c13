"""TinyBERT's augmentation: candidates from both sources, by hand; labels, pairs, the command."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import sparsefx
from sparsefx import Program
from sparsefx.cli import main
from sparsefx.errors import DataError
from sparsefx.train.data.augment import Augmentation, Augmenter
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tables import read_table

WORDS = ("cat", "dog", "bird", "sees", "eats", "likes", "the", "un", "##real", "7")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IDS = {token: place for place, token in enumerate((*SPECIAL, *WORDS))}


def tokenizer(*, masks: bool = True) -> Any:
    core = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names: dict[str, str] = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                             "sep_token": "[SEP]"}  # fmt: skip
    if masks:
        names["mask_token"] = "[MASK]"
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=core, **names)


class Guesser(nn.Module):
    """Predicts at each place from all tokens of a text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(len(IDS), 8)
        self.head = nn.Linear(8, len(IDS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.table(input_ids) * attention_mask[..., None]
        found: Tensor = self.head(states + states.mean(1, keepdim=True))
        return found


@cache
def guesser() -> Program:
    ids = torch.ones(2, 6).long()
    return sparsefx.capture(Guesser().eval(), {"input_ids": ids, "attention_mask": ids})


def test_a_masked_word_gets_what_the_model_predicts() -> None:
    augmenter = Augmenter(tokenizer(), guesser(), Augmentation(candidates=6))
    found = augmenter.candidates("the cat eats 7")
    assert augmenter.predicts
    assert [word.group() for word, _ in found] == ["cat", "eats"]  # no stop word, no number
    for place, (_, options) in zip((2, 3), found, strict=True):
        ids = torch.tensor([[IDS[t] for t in ("[CLS]", "the", "cat", "eats", "7", "[SEP]")]])
        ids[0, place] = IDS["[MASK]"]
        logits = guesser()(input_ids=ids, attention_mask=torch.ones_like(ids))["output"]
        best = [(*SPECIAL, *WORDS)[token] for token in logits[0, place].topk(6).indices]
        assert options == [token for token in best if token.isalpha()]


def test_words_of_several_tokens_get_the_nearest_words() -> None:
    table = guesser().tensor("table.weight").detach()
    near = torch.nn.functional.normalize(table, dim=1)
    words = [token for token in WORDS if token.isalpha()]
    (found,) = Augmenter(tokenizer(), guesser(), Augmentation(candidates=3)).candidates("unreal")
    alike = near @ (near[IDS["un"]] + near[IDS["##real"]])
    assert found[1] == sorted(words, key=lambda word: -float(alike[IDS[word]]))[:3]
    plain = Augmenter(tokenizer(masks=False), guesser(), Augmentation(candidates=3))
    ((_, nearest),) = plain.candidates("cat")
    alike = near @ near[IDS["cat"]]
    words.remove("cat")
    assert not plain.predicts
    assert nearest == sorted(words, key=lambda word: -float(alike[IDS[word]]))[:3]


def test_copies_keep_label_pair_and_all_else_of_the_text() -> None:
    examples = Examples("drawn", ("The cat, sees!", "dog"), ("bird", "dog eats"), (1, 0))
    settings = Augmentation(copies=6, probability=0.5, seed=3)
    found = Augmenter(tokenizer(), guesser(), settings).augment(examples)
    assert found == Augmenter(tokenizer(), guesser(), settings).augment(examples)
    assert found.pairs is not None
    assert found.labels is not None
    rows = list(zip(found.texts, found.pairs, found.labels, strict=True))
    assert len(rows) == len(set(rows)) > 6
    assert rows[0] == ("The cat, sees!", "bird", 1)
    for text, pair, label in rows:
        given = ("The cat, sees!", "bird") if label else ("dog", "dog eats")
        assert (text == given[0]) or (pair == given[1])  # one of the two at a time
        if label:
            assert text.startswith("The ")
            assert text.endswith("!")
            assert ", " in text


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="copies=0: expected at least 1"):
        Augmentation(copies=0)
    with pytest.raises(DataError, match=r"probability=1.5: expected a share above 0"):
        Augmentation(probability=1.5)
    with pytest.raises(DataError, match="does not tell where its tokens stand"):
        Augmenter(object(), guesser())


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": len(IDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data.csv").write_text("id,text,label\n4,the cat sees,good\n9,dog,bad\n")
    out = tmp_path / "more.jsonl"
    command = ["augment", str(tmp_path / "model"), "--data", str(tmp_path / "data.csv")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(out), "--copies", "4"])
    assert ended.value.code == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {(str(row["id"]), row["label"]) for row in rows} == {("4", "good"), ("9", "bad")}
    assert rows[0]["text"] == "the cat sees"
    assert len(rows) > 4
    told = " ".join(capsys.readouterr().out.split())
    assert f"2 rows became {len(rows)} by a head for masked tokens" in told
    (tmp_path / "words.conll").write_text("the O\ncat B-X\nsees O\n")
    with pytest.raises(SystemExit) as ended:
        main([*command[:-1], str(tmp_path / "words.conll"), "--out", str(tmp_path / "w.jsonl")])
    assert ended.value.code == 0
    found = read_table(tmp_path / "w.jsonl")
    assert found.column("tokens")[0] == ["the", "cat", "sees"]
    assert len(found) > 1
    assert {len(words) for words in found.column("tokens")} == {3}  # type: ignore[arg-type]  # lists
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "more.csv")])
    assert ended.value.code == 2

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    older = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    monkeypatch.setattr(Augmenter, "variants", interrupt)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(out), "--overwrite"])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip().endswith("the same command begins anew")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == older
