from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sparsefx.errors import DataError
from sparsefx.huggingface import load_tokenizer
from sparsefx.train.data.assets import minilm_folder
from sparsefx.train.data.batches import (
    UNLABELLED,
    Batches,
    Encoded,
    Position,
    encode,
    evaluation_batches,
    known_labels,
)
from sparsefx.train.data.examples import Examples
from tests.train import tiny_run


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(minilm_folder())


def _data(count: int = 103) -> Encoded:
    lengths = np.random.default_rng(0).integers(3, 40, count)
    tokens = tuple(np.arange(1, length + 1) for length in lengths)
    return Encoded(tokens, None, torch.arange(count), pad=0)


def test_tokens_are_truncated_and_not_padded(tokenizer: Any) -> None:
    examples = Examples("o", ("a film", "word " * 50), ("so", "b " * 50), labels=(1, 0))
    coded = encode(tokenizer, examples, max_length=16)
    assert coded.lengths.tolist() == [6, 16]
    assert coded.types is not None
    assert coded.types[0].tolist() == [0, 0, 0, 0, 1, 1]
    batch = coded.collate([0, 1])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 16),
        "attention_mask": (2, 16),
        "token_type_ids": (2, 16),
        "labels": (2,),
    }
    assert batch["attention_mask"].sum(1).tolist() == [6, 16]
    assert batch["labels"].tolist() == [1, 0]


def test_texts_that_are_cut_are_told(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    texts = ("a film", "word " * 14, "word " * 15, "word " * 50)
    encode(tokenizer, Examples("mine.csv", texts), max_length=16)
    told = "mine.csv: 2 of 4 texts are cut to max_length 16 tokens; the longest has 52"
    assert [record.getMessage() for record in caplog.records] == [told]
    caplog.clear()
    encode(tokenizer, Examples("o", texts[:2]), max_length=16)
    assert not caplog.records
    encode(tokenizer, Examples("o", texts[:2], texts[1:3]), max_length=16)
    assert "2 of 2 texts are cut to max_length 16 tokens; the longest has 32" in caplog.text


def test_every_example_once_an_epoch_and_little_padding() -> None:
    data = _data(1000)
    stream = Batches(data, 16, seed=1)
    batches = [next(stream) for _ in range(len(stream))]
    assert sorted(torch.cat([b["labels"] for b in batches]).tolist()) == list(range(1000))
    tokens = sum(int(b["attention_mask"].sum()) for b in batches)
    assert tokens > 0.93 * sum(b["input_ids"].numel() for b in batches)
    lengths = [b["input_ids"].shape[1] for b in batches]
    assert lengths != sorted(lengths)


@pytest.mark.parametrize("stop", [0, 1, 6, 7, 20])
def test_a_restored_position_goes_on_alike(stop: int) -> None:
    stream = Batches(_data(), 16, seed=5)
    for _ in range(stop):
        next(stream)
    state = stream.state_dict()
    ahead = [next(stream)["labels"] for _ in range(9)]
    other = Batches(_data(), 16, seed=99)
    other.load_state_dict(state)
    assert all(torch.equal(next(other)["labels"], labels) for labels in ahead)


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        stream = Batches(_data(), 16, seed=seed)
        stream.restore(Position(seed, epoch))
        return [int(value) for value in next(stream)["labels"]]

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1) != first(1, 0)


def test_evaluation_covers_all_rows() -> None:
    seen = np.concatenate([rows for rows, _ in evaluation_batches(_data(), 10)])
    assert sorted(seen.tolist()) == list(range(103))


def test_unlabelled_text_joins_labelled() -> None:
    labelled, texts = _data(3), Encoded((np.arange(4),), None, None, pad=0)
    joined = labelled.joined(texts).labels
    assert isinstance(joined, torch.Tensor)
    assert joined.tolist() == [0, 1, 2, UNLABELLED]
    scores = Encoded(labelled.tokens, None, torch.rand(3), pad=0)
    values = scores.joined(texts).labels
    assert isinstance(values, torch.Tensor)
    assert known_labels(values).tolist() == [True, True, True, False]
    assert texts.joined(texts).labels is None
    both = scores.joined(scores).labels
    assert isinstance(both, torch.Tensor)
    assert both.shape == (6,)


def test_a_tokenizer_of_ones_own_is_named() -> None:
    class Words:
        pad_token_id = 0

        def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    with pytest.raises(
        DataError, match=r"Words is no tokenizer of transformers: .*\n  hint: PreTr"
    ):
        encode(Words(), Examples("o", ("a b",)), 8)


def test_a_tokenizer_without_padding_token_is_named(tmp_path: Path) -> None:
    tiny_run.tokenizer().save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    found = json.loads(settings.read_text())
    del found["pad_token"]
    settings.write_text(json.dumps(found))
    with pytest.raises(DataError, match="no padding token") as caught:
        encode(load_tokenizer(str(tmp_path)), Examples("data.csv", ("a b",)), 8)
    assert caught.value.where == str(tmp_path)
    told = re.search(r'"pad_token": "[^"]+"', caught.value.hint)
    assert told
    settings.write_text(json.dumps({**found, **json.loads(f"{{{told[0]}}}")}))
    assert encode(load_tokenizer(str(tmp_path)), Examples("data.csv", ("a b",)), 8).pad == 0


def test_a_text_that_would_be_padding_alone_is_refused() -> None:
    core = Tokenizer(models.BPE({"[PAD]": 0, "a": 1, "b": 2}, []))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    letters = fast(tokenizer_object=core, pad_token="[PAD]")
    with pytest.raises(DataError, match=r"1 of 3 texts .*, the first is '! \?'") as caught:
        encode(letters, Examples("data.csv", ("a b", "! ?", "b")), 8)
    assert caught.value.where == "data.csv"
    assert encode(letters, Examples("data.csv", ("a b", "b !")), 8).lengths.tolist() == [2, 1]


def test_errors(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="there are no examples"):
        encode(tokenizer, Examples("o", ()), 16)
    with pytest.raises(DataError, match="leaves nothing of a text: 2 special tokens") as caught:
        encode(tokenizer, Examples("o", ("a text",)), 2)
    assert "3 or more, in the data of the recipe or by --max-length" in str(caught.value)
    with pytest.raises(DataError, match="leaves nothing of a text: 3 special tokens"):
        encode(tokenizer, Examples("o", ("a",), pairs=("b",)), 4)
    with pytest.raises(DataError, match="no batches of 0 can be drawn from 103 examples"):
        Batches(_data(), 0, seed=0)
    stream = Batches(_data(), 16, seed=0)
    with pytest.raises(DataError, match="batch 7 is not one of the 7 of an epoch"):
        stream.restore(Position(0, 0, 7))
