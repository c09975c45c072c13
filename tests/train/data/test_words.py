"""Labels of words reach the first token of each word, whatever the tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sparsefx.errors import DataError
from sparsefx.train.data.batches import encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import Task
from sparsefx.train.data.words import UNLABELLED
from tests.train import tiny_run

SENTENCES = ("The rain in Spain", "stays mainly", "in the plain , said Ann")


def examples(texts: tuple[str, ...] = SENTENCES) -> Examples:
    """Each word has its place in its text as label."""
    return Examples("drawn", texts, labels=tuple(tuple(range(len(t.split(" ")))) for t in texts))


def byte_level() -> Any:
    """Like RoBERTa's: a blank belongs to the token behind it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet)
    )
    return core


def metaspace() -> Any:
    """Like XLM-RoBERTa's: a mark stands for the blank, at times as a token of its own."""
    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("in", -2.0), *LETTERS], 0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return core


LETTERS = [(each, -3.0) for each in sorted({c for text in SENTENCES for c in text} - {" "})]


def word_piece() -> Any:
    """Like BERT's: lower case, and signs apart."""
    pieces = ["[UNK]", "[PAD]", *sorted({c for text in SENTENCES for c in text.lower()})]
    pieces += [f"##{piece}" for piece in pieces[2:]]
    core = Tokenizer(models.WordPiece({p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return core


@pytest.mark.parametrize("made", [byte_level, metaspace, word_piece])
def test_the_first_token_of_each_word_has_its_label(made: Any) -> None:
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=made(), pad_token="[PAD]")
    coded = encode(tokenizer, examples(), 64)
    assert isinstance(coded.labels, tuple)
    for text, labels, tokens in zip(SENTENCES, coded.labels, coded.tokens, strict=True):
        assert len(labels) == len(tokens) >= len(text.split(" "))
        assert labels[labels != UNLABELLED].tolist() == list(range(len(text.split(" "))))
    offsets = tokenizer(SENTENCES[0], return_offsets_mapping=True)["offset_mapping"]
    third = int(np.flatnonzero(coded.labels[0] == 2)[0])
    assert offsets[third][0] in (8, 9)  # of "in", or of the blank before it


def test_batches_hold_labels_of_tokens_beside_texts_without() -> None:
    coded = encode(tiny_run.tokenizer(), examples(("a b", "c d e")), 16)
    plain = encode(tiny_run.tokenizer(), Examples("plain", ("a b c d",)), 16)
    batch = coded.joined(plain).collate([0, 2, 1])
    none = UNLABELLED
    assert batch["labels"].tolist() == [
        [none, 0, 1, none, none, none],
        [none] * 6,
        [none, 0, 1, 2, none, none],
    ]
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([4, 6, 5]))
    held = coded.scored_labels()
    assert held is not None
    assert held.tolist() == [[0, 1, none], [0, 1, 2]]


def test_words_without_a_token_are_told(caplog: pytest.LogCaptureFixture) -> None:
    coded = encode(tiny_run.tokenizer(), examples(("a b c d e", "f")), 5)
    assert "2 of 6 words have no token" in caplog.text
    held = coded.scored_labels()
    assert held is not None
    assert held.shape == (2, 3)
    with pytest.raises(DataError, match="no token of any word is left"):
        encode(tiny_run.tokenizer(), examples(("\u00a0",)), 16)  # the tokenizer drops it


def test_a_tokenizer_that_tells_no_characters_is_refused() -> None:
    tokenizer = tiny_run.tokenizer()

    class Slow(type(tokenizer)):  # type: ignore[misc]
        is_fast = False

    tokenizer.__class__ = Slow
    with pytest.raises(DataError, match=r"Slow does not tell which token begins a word"):
        encode(tokenizer, examples(), 16)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (((0, 1),), "labels\\[0\\] are 2 for 3 words"),
        (((0, 1, 0.5),), "each class is 0.0 or 1.0"),
        ((1, (0, 1, 2)), "labels\\[1\\] is \\(0, 1, 2\\), and labels\\[0\\] is 1"),
        (((),), "is \\(\\), not numbers"),
        (((1.0, 0.0), (1.0,)), "of another length than labels\\[0\\]"),
    ],
)
def test_labels_of_other_forms_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Examples("by hand", ("a b c",) * len(labels), labels=labels)


@pytest.mark.parametrize(
    ("kind", "label", "told"),
    [
        ("multi-label", (0, 1), r"the class index \(int\) of each word"),
        ("token-classification", (0.0, 1.0), r"not the class index \(int\) of each word"),
        ("token-classification", 1, "not the class index"),
        ("classification", (0.0, 1.0), "a tuple"),
        ("regression", (0.0, 1.0), "a tuple"),
        ("multi-label", 1, "not a tuple"),
        ("multi-label", (0.0, 1.0, 0.0), "of another length than the 2 classes"),
    ],
)
def test_labels_of_another_kind_than_the_task_are_refused(kind: Any, label: Any, told: str) -> None:
    found = Examples("by hand", ("a b",), labels=(label,))
    with pytest.raises(DataError, match=f"the task is {kind}, and labels.* {told}"):
        Task("task", kind, ("x", "y"), "accuracy", {"train": found})


def test_truth_values_say_which_classes_a_text_has() -> None:
    found = Examples("by hand", ("a b",), labels=((True, False),))
    Task("task", "multi-label", ("x", "y"), "f1_micro", {"train": found})
    coded = encode(tiny_run.tokenizer(), found, 8)
    assert isinstance(coded.labels, torch.Tensor)
    assert coded.labels.tolist() == [[1.0, 0.0]]


def test_pairs_have_no_labels_of_words() -> None:
    with pytest.raises(DataError, match="labels of words are for single texts"):
        Examples("by hand", ("a b",), ("c",), ((0, 1),))
