"""TinyBERT's augmentation: labelled texts again, with some words replaced by others that fit there.

For each word, candidates are what a masked-language model predicts in its place. Words of several
tokens, and all words where the model has no head for masked tokens, get the nearest words of the
model's own embedding table instead; the paper takes GloVe's. Then each copy of a text replaces each
word by one of its candidates with a probability; labels stay (Jiao et al. 2020, section 4.2 and
algorithm 1; constants from the released code).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparsefx.errors import DataError
from sparsefx.program import Program
from sparsefx.train.data.examples import Examples

__all__ = ["STOP_WORDS", "Augmentation", "Augmenter"]

_ENGLISH = """
a about above after again against ain all am an and any are aren as at be because been before
being below between both but by can couldn d did didn do does doesn doing don down during each few
for from further had hadn has hasn have haven having he her here hers herself him himself his how
i if in into is isn it its itself just ll m ma me mightn more most mustn my myself needn no nor
not now o of off on once only or other our ours ourselves out over own re s same shan she should
shouldn so some such t than that the their theirs them themselves then there these they this those
through to too under until up ve very was wasn we were weren what when where which while who whom
why will with won wouldn y you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_ENGLISH.split())
"""English words that stay as they are."""

_WHO = "augment"
_WORD = re.compile(r"[^\W\d_]+")
_MARKS = ("Ġ", "▁")  # before the tokens that begin a word, in byte-level BPE and SentencePiece


@dataclass(frozen=True)
class Augmentation:
    """How texts are varied; the defaults are those of the paper.

    Attributes:
        copies: Copies of each text that are tried, of which equal ones count once. The released
            code takes 30 for CoLA, MRPC, RTE and STS-B, 20 for SST-2 and QNLI, 10 for MNLI and QQP.
        probability: With which each word of a copy is replaced.
        candidates: Words to choose from.
        seed: Of the choices.
        stop_words: Words, in lower case, that stay.
    """

    copies: int = 20
    probability: float = 0.4
    candidates: int = 15
    seed: int = 0
    stop_words: frozenset[str] = field(default=STOP_WORDS, repr=False)

    def __post_init__(self) -> None:
        for name in ("copies", "candidates"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"{name}={getattr(self, name)}: expected at least 1", who=_WHO, where=name
                )
        if not 0.0 < self.probability <= 1.0:
            raise DataError(
                f"probability={self.probability}: expected a share above 0, at most 1",
                who=_WHO,
                where="probability",
            )


class Augmenter:
    """Makes variants of texts.

    Args:
        tokenizer: Of the model, a fast one.
        program: The model; with an output of logits for tokens where it has such a head.
        settings: See :class:`Augmentation`.
        max_length: Longest sequence in tokens; words behind it stay.
        batch_size: Masked words that the model sees together.

    Raises:
        DataError: The tokenizer knows no places of tokens, or the model has an unknown input.
    """

    def __init__(
        self,
        tokenizer: Any,
        program: Program,
        settings: Augmentation | None = None,
        *,
        max_length: int = 128,
        batch_size: int = 32,
    ) -> None:
        from sparsefx.passes.pretrain.vocabulary import masked_lm_output, token_table

        if not getattr(tokenizer, "is_fast", False):
            raise DataError("the tokenizer does not tell where its tokens stand in a text",
                            who=_WHO, hint="load a fast tokenizer (tokenizer.json)")  # fmt: skip
        self._settings = settings or Augmentation()
        self._tokenizer = tokenizer
        self._program = program.eval()
        self._max_length, self._batch_size = max_length, batch_size
        tokens, table = token_table(program, who=_WHO)
        self._tokens = str(tokens.target)
        self._check_inputs()
        rows = program.tensor(table).detach().float()
        self._vectors = torch.nn.functional.normalize(rows, dim=1)
        self._words = _whole_words(tokenizer, len(rows))
        self._barred = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        self._barred[list(self._words)] = False
        mask: int | None = getattr(tokenizer, "mask_token_id", None)
        self._output = None if mask is None else masked_lm_output(program)
        self._mask = mask or 0
        self._random = random.Random(self._settings.seed)

    @property
    def predicts(self) -> bool:
        """Whether candidates come from a head for masked tokens, where words are single tokens."""
        return self._output is not None

    def augment(self, examples: Examples) -> Examples:
        """Return texts or pairs with their variants, each with the label that it is made from.

        Of a pair, each sentence is varied beside the other as it was.
        """
        rows, texts, pairs = [], [], []
        for row, text in enumerate(examples.texts):
            second = None if examples.pairs is None else examples.pairs[row]
            for first, other in ((text, second), *self.variants(text, second)):
                rows.append(row)
                texts.append(first)
                pairs.append(other)
        kept = examples.select(rows)
        varied = None if examples.pairs is None else tuple(str(pair) for pair in pairs)
        return replace(kept, texts=tuple(texts), pairs=varied)

    def variants(self, text: str, pair: str | None = None) -> list[tuple[str, str | None]]:
        """Return new forms of an example, without the example itself."""
        found: list[tuple[str, str | None]] = [(new, pair) for new in self._varied(text)]
        if pair is not None:
            found += [(text, new) for new in self._varied(pair)]
        return found

    def candidates(self, text: str) -> list[tuple[re.Match[str], list[str]]]:
        """Return the words of a text that may be replaced, with what may stand there instead."""
        found = self._tokenizer(
            text, truncation=True, max_length=self._max_length, return_offsets_mapping=True
        )
        ids = torch.tensor(found["input_ids"])
        words = [
            word
            for word in _WORD.finditer(text)
            if word.group().lower() not in self._settings.stop_words
        ]
        places = [_covering(word, found["offset_mapping"]) for word in words]
        single = [at[0] for at in places if len(at) == 1] if self.predicts else []
        predicted = dict(zip(single, self._predicted(ids, single), strict=True))
        return [
            (word, predicted[at[0]] if at[0] in predicted else self._nearest(ids[at]))
            for word, at in zip(words, places, strict=True)
            if at
        ]

    def _varied(self, text: str) -> Iterator[str]:
        words = [(word, options) for word, options in self.candidates(text) if options]
        seen = {text}
        for _ in range(self._settings.copies):
            new, end = "", 0
            for word, options in words:
                chosen = self._random.choice(options)
                replaced = self._random.random() < self._settings.probability
                new += text[end : word.start()] + (chosen if replaced else word.group())
                end = word.end()
            new += text[end:]
            if new not in seen:
                seen.add(new)
                yield new

    @torch.no_grad()
    def _predicted(self, ids: Tensor, places: Sequence[int]) -> list[list[str]]:
        """Return what the model predicts at each place when it alone is masked."""
        found: list[list[str]] = []
        for start in range(0, len(places), self._batch_size):
            some = torch.tensor(places[start : start + self._batch_size])
            rows = torch.arange(len(some))
            masked = ids.repeat(len(some), 1)
            masked[rows, some] = self._mask
            logits = self._program(**self._inputs(masked))[str(self._output)]
            best = logits[rows, some].topk(min(self._settings.candidates, logits.shape[-1]))
            found += [self._words_of(row) for row in best.indices.tolist()]
        return found

    @torch.no_grad()
    def _nearest(self, ids: Tensor) -> list[str]:
        """Return the words whose vectors point where the mean of these tokens' does."""
        alike = self._vectors @ self._vectors[ids.to(self._vectors.device)].mean(0)
        alike = alike.masked_fill(self._barred, -torch.inf)
        if len(ids) == 1:
            alike[ids] = -torch.inf
        count = min(self._settings.candidates, int(torch.isfinite(alike).sum()))
        return self._words_of(alike.topk(count).indices.tolist())

    def _words_of(self, tokens: Sequence[int]) -> list[str]:
        """Return those tokens that are whole words."""
        return [self._words[token] for token in tokens if token in self._words]

    def _inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Return all inputs for texts of one length."""
        ids = ids.to(self._vectors.device)
        known = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return {
            name: ids if name == self._tokens else known[name]
            for name in self._program.signature.input_names
        }

    def _check_inputs(self) -> None:
        known = {self._tokens, "attention_mask", "token_type_ids"}
        unknown = sorted(set(self._program.signature.input_names) - known)
        if unknown:
            raise DataError(
                f"the model has the inputs {', '.join(unknown)}, which texts do not give",
                who=_WHO,
                hint="take the model before passes that add inputs",
            )


def _covering(word: re.Match[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the tokens that lie in a word."""
    return [
        place
        for place, (start, end) in enumerate(offsets)
        if start < end and start < word.end() and end > word.start()
    ]


def _whole_words(tokenizer: Any, rows: int) -> dict[int, str]:
    """Return the tokens that are whole words, letters alone, by id."""
    special = set(tokenizer.all_special_ids)
    count = min(rows, len(tokenizer))
    tokens = tokenizer.convert_ids_to_tokens(list(range(count)))
    marked = any(str(token).startswith(_MARKS) for token in tokens)
    found = {}
    for token, text in enumerate(tokens):
        if token in special or (marked and not text.startswith(_MARKS)):
            continue
        word = text[1:] if marked else text
        if _WORD.fullmatch(word):
            found[token] = word
    return found
