"""Texts of which tokens are missing: cut ones are told, those of which nothing is left refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sparsefx.errors import DataError
from sparsefx.train.data.examples import Examples

__all__ = ["refuse_lost", "tell_cut"]

logger = logging.getLogger(__name__)


def tell_cut(
    tokenizer: Any, examples: Examples, tokens: Sequence[Sequence[int]], max_length: int
) -> None:
    """Warn of how many texts were cut to ``max_length`` tokens, and how long the longest one is.

    Args:
        tokenizer: A transformers tokenizer.
        examples: Sentences or pairs.
        tokens: What it made of them, truncated.
        max_length: Longest sequence, special tokens included.
    """
    full = [place for place, ids in enumerate(tokens) if len(ids) >= max_length]
    if not full:
        return
    pairs = examples.pairs
    whole = tokenizer(
        [examples.texts[place] for place in full],
        None if pairs is None else [pairs[place] for place in full],
        truncation=False,
        padding=False,
        verbose=False,  # it would say that models cannot take so many
    )
    lengths = [len(ids) for ids in whole["input_ids"] if len(ids) > max_length]
    if lengths:
        logger.warning(
            "%s: %d of %d texts are cut to max_length %d tokens; the longest has %d",
            *(examples.origin, len(lengths), len(examples), max_length, max(lengths)),
        )


def refuse_lost(examples: Examples, tokens: Sequence[Sequence[int]]) -> None:
    """Refuse texts without a token: to a model they would be padding alone.

    Args:
        examples: Sentences or pairs.
        tokens: What a tokenizer made of them.

    Raises:
        DataError: With the number of such texts, and the first of them.
    """
    lost = [text for text, ids in zip(examples.texts, tokens, strict=True) if not len(ids)]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(examples)} texts have no token, the first is {lost[0]!r:.80}",
            who="encode",
            where=examples.origin,
            hint="the tokenizer knows none of their characters: leave these texts out, or take the "
            "tokenizer that the model was trained with",
        )
