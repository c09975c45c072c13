"""How many tokens a model takes, read off its Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefx.errors import DataError

__all__ = ["check_length", "most_tokens"]

# RoBERTa counts positions from behind the padding token's id, as do those made from its code.
_OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


def most_tokens(config: Mapping[str, Any]) -> int | None:
    """Return for how many tokens the model has positions; None when there is no such limit."""
    limit = config.get("max_position_embeddings")
    kind = config.get("position_embedding_type")
    if not isinstance(limit, int) or kind not in (None, "absolute"):
        return None
    offset = config.get("model_type") in _OFFSET_POSITIONS
    return limit - int(config.get("pad_token_id") or 0) - 1 if offset else limit


def check_length(config: Mapping[str, Any], tokens: int, option: str = "max_length") -> None:
    """Refuse sequences that are longer than the model has positions for.

    Args:
        config: Hugging Face configuration; an empty one allows any length.
        tokens: Length of the longest sequence.
        option: What to shorten it by, for the hint.

    Raises:
        DataError: ``tokens`` is more than the model has.
    """
    limit = most_tokens(config)
    if limit is not None and tokens > limit:
        raise DataError(
            f"a sequence of {tokens} tokens; the model has positions for {limit}",
            who="tokens",
            hint=f"shorten it: {option} {limit} or less",
        )
