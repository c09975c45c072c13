"""Labels of words: which token of a sequence stands for which word of its text."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.errors import DataError
from sparsefx.train.data.examples import Examples

__all__ = ["UNLABELLED", "Ints", "check_offsets", "labels_of_tokens", "stacked"]

logger = logging.getLogger(__name__)
_WHO = "words"
UNLABELLED = -100
"""The class index that torch.nn.functional.cross_entropy ignores; a value that is not known is NaN.
"""
Ints = NDArray[np.int64]
Spans = Sequence[tuple[int, int]]


def check_offsets(tokenizer: Any, examples: Examples) -> None:
    """Refuse a tokenizer that does not tell which characters a token comes from.

    Raises:
        DataError: It is written in Python alone.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"words have labels, and {type(tokenizer).__name__} does not tell which token begins a "
            "word",
            who="encode",
            where=examples.origin,
            hint="load it with AutoTokenizer: most models have a fast tokenizer too",
        )


def labels_of_tokens(examples: Examples, offsets: Sequence[Spans]) -> tuple[Ints, ...]:
    """Return the label of every token: the first of each word has that of the word.

    Further tokens of a word and special ones are ``UNLABELLED``, as is usual for BERT (Devlin et
    al. 2019, section 5.3). Words of which no token is left are told: a text was cut, or the
    tokenizer knows none of their characters.

    Args:
        examples: Texts whose words, which one blank separates, have labels.
        offsets: Of each text, the characters (begin, end) of every token.

    Raises:
        DataError: No word is left.
    """
    found, words, left = [], 0, 0
    for text, labels, spans in zip(examples.texts, examples.labels or (), offsets, strict=True):
        assert isinstance(labels, tuple)  # per_word
        places = _first_tokens(text, spans)
        row = np.full(len(spans), UNLABELLED, dtype=np.int64)
        for word, token in places.items():
            row[token] = labels[word]
        found.append(row)
        words, left = words + len(labels), left + len(places)
    if not left:
        why = "no token of any word is left"
        raise DataError(why, who=_WHO, where=examples.origin, hint="set a larger max_length")
    if left < words:
        logger.warning(
            "%s: %d of %d words have no token, as they lie behind max_length or the tokenizer "
            "drops them; they count neither in training nor in the score",
            *(examples.origin, words - left, words),
        )
    return tuple(found)


def _first_tokens(text: str, spans: Spans) -> dict[int, int]:
    """Return word -> its first token.

    A token belongs to the word of its last character: some tokenizers count the blank before it.

    >>> _first_tokens("a bcd", [(0, 0), (0, 1), (1, 3), (3, 5), (0, 0)])
    {0: 1, 1: 2}
    """
    starts = [0, *accumulate(len(word) + 1 for word in text.split(" "))]
    found: dict[int, int] = {}
    for token, (begin, end) in enumerate(spans):
        if end > begin:
            found.setdefault(bisect_right(starts, end - 1) - 1, token)
    return found


def stacked(rows: Sequence[NDArray[Any]], fill: float) -> NDArray[Any]:
    """Return arrays of shapes (words, ...) as one, of shape (rows, most words, ...).

    >>> stacked([np.array([1, 2]), np.array([3])], -100)
    array([[   1,    2],
           [   3, -100]])
    """
    most = max(map(len, rows))
    found = np.full((len(rows), most, *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
