"""Small students and teachers, and what an eager model shows of itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.passes.distill.terms import TERMS
from tests.passes.distill.hand_loss import Seen
from tests.tiny_models import example_batch

ALL = ",".join(f"{term}=1.0" for term in TERMS)
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "attn_implementation": "eager",
}


@cache
def model(seed: int = 0, **changed: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(**{**SIZES, "initializer_range": 0.2, "num_labels": 3, **changed})
    made: Any = BertForSequenceClassification(config)
    found: BertForSequenceClassification = made.eval()
    return found


def batch() -> dict[str, Tensor]:
    given = example_batch(3, 9)
    given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    given["token_type_ids"][:, 4:] = 1
    return given


@cache
def program_of(seed: int = 0, **changed: Any) -> Program:
    # Fixed sizes: shapes are inferred much faster; dynamic ones are tested per architecture.
    return sparsefx.capture(model(seed, **changed), batch(), dynamic=False)


def distilled(text: str, student: Program | None = None, teacher: Program | None = None) -> Program:
    return Pipeline.parse(text).run(
        student or program_of(), programs={"teacher": teacher or program_of(1)}
    )


def look(found: BertForSequenceClassification, given: dict[str, Tensor]) -> Seen:
    """Run an eager model and return what the terms compare."""
    scores: list[Tensor] = []
    values: list[Tensor] = []
    bias = (1 - given["attention_mask"].float())[:, None, None, :] * -1e9

    def hook(attention: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        q, k, v = (
            part(states).unflatten(-1, (4, -1)).transpose(1, 2)
            for part in (attention.query, attention.key, attention.value)
        )
        scores.append(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias)
        values.append(v)

    layers: Any = found.bert.encoder.layer
    handles = [
        layer.attention.self.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers
    ]
    result = found(**given, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return Seen(result.logits, list(result.hidden_states), scores, values)
