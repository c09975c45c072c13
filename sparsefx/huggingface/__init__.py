"""Hugging Face models: from a name or folder to a Program, and back to a plain folder."""

from sparsefx.huggingface.pretrained import (
    capture_pretrained,
    capture_tokens,
    from_transformers,
    load_pretrained,
    load_tokenizer,
    plain_weights,
    save_pretrained,
)

__all__ = [
    "capture_pretrained",
    "capture_tokens",
    "from_transformers",
    "load_pretrained",
    "load_tokenizer",
    "plain_weights",
    "save_pretrained",
]
