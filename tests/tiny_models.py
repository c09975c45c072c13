"""Tiny models of every architecture that capture takes, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

VOCABULARY = 100
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 16,
}
_MODERN: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_BERTS: dict[str, Any] = {
    "bert-cls": BertForSequenceClassification,
    "bert-mlm": BertForMaskedLM,
    "bert-qa": BertForQuestionAnswering,
    "bert-tok": BertForTokenClassification,
}
_OTHERS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "distilbert": (
        DistilBertForSequenceClassification,
        lambda: DistilBertConfig(
            dim=64, n_layers=2, n_heads=4, hidden_dim=128, vocab_size=VOCABULARY
        ),
    ),
    "roberta": (
        RobertaForSequenceClassification,
        lambda: RobertaConfig(**_SIZES, pad_token_id=1),
    ),
    "electra": (
        ElectraForSequenceClassification,
        lambda: ElectraConfig(**_SIZES, embedding_size=32),
    ),
    "mpnet": (MPNetForSequenceClassification, lambda: MPNetConfig(**_SIZES)),
    "deberta": (
        DebertaV2ForSequenceClassification,
        lambda: DebertaV2Config(**_SIZES, **_DEBERTA),
    ),
    "modernbert": (
        ModernBertForSequenceClassification,
        lambda: ModernBertConfig(
            **_SIZES, pad_token_id=0, attention_dropout=0.1, mlp_dropout=0.1, **_MODERN
        ),
    ),
    "albert": (
        AlbertForSequenceClassification,
        lambda: AlbertConfig(**_SIZES, embedding_size=32),
    ),
}
EAGER_ONLY = frozenset({"mpnet", "deberta"})
ARCHITECTURES = (*_BERTS, *_OTHERS, "handwritten")


class HandwrittenEncoder(nn.Module):
    """A post-LN encoder of plain nn modules, with a classification head."""

    def __init__(self, hidden: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, hidden)
        self.places = nn.Embedding(128, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.blocks = nn.ModuleList(HandwrittenBlock(hidden, heads) for _ in range(layers))
        self.score = nn.Linear(hidden, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits of shape (batch, 2)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.norm(self.words(input_ids) + self.places(places))
        bias = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -10000.0
        for block in self.blocks:
            hidden = block(hidden, bias)
        scores: Tensor = self.score(hidden[:, 0])
        return scores


class HandwrittenBlock(nn.Module):
    """Self-attention with explicit scores, then a GELU feed-forward."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return a tensor shaped as ``x`` (batch, sequence, hidden)."""
        batch, length, hidden = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-1, -2) / (hidden // self.heads) ** 0.5 + bias
        mixed = self.drop(scores.softmax(-1)) @ v
        x = self.norm1(x + self.drop(self.o(mixed.transpose(1, 2).reshape(batch, length, hidden))))
        changed: Tensor = self.norm2(x + self.drop(self.down(nn.functional.gelu(self.up(x)))))
        return changed


def tiny(architecture: str, attention: str = "sdpa", seed: int = 0) -> nn.Module:
    """Return a tiny model in eval mode; ``attention`` is ``sdpa`` or ``eager``."""
    torch.manual_seed(seed)
    if architecture == "handwritten":
        return HandwrittenEncoder().eval()
    if architecture in _BERTS:
        cls: Any = _BERTS[architecture]
        config: Any = BertConfig(**_SIZES)
    else:
        cls, make = _OTHERS[architecture]
        config = make()
    config._attn_implementation = "eager" if architecture in EAGER_ONLY else attention
    model: nn.Module = cls(config)
    return model.eval()


def small_bert(cls: Any = BertForSequenceClassification, **settings: Any) -> Any:
    """Return a BERT of width 16 in eval mode, for tests that :func:`tiny` is too large for.

    Args:
        cls: A BERT class of transformers.
        settings: What its configuration says otherwise.
    """
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "type_vocab_size": 1,
        "architectures": [cls.__name__],
    }
    return cls(BertConfig(**{**sizes, **settings})).eval()


def example_batch(batch: int = 2, length: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Return random token ids, and a mask in which the last sequence is padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY - 5, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}
