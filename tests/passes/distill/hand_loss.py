"""The terms of the distillation loss by hand, on what eager Hugging Face models return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Seen", "hand_terms", "masked_mean"]


@dataclass
class Seen:
    """What one model shows of itself.

    Attributes:
        logits: [batch, classes].
        hidden: Embedding output, then each layer's output, [batch, sequence, width].
        scores: Of each layer, before softmax, [batch, heads, sequence, sequence].
        values: Of each layer, [batch, heads, sequence, head size].
    """

    logits: Tensor
    hidden: list[Tensor]
    scores: list[Tensor]
    values: list[Tensor]


def masked_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum()


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """As in Prune OFA: T^2 KL, batchmean."""
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.softmax(teacher / temperature, -1),
        reduction="batchmean",
    )


def unmasked(scores: Tensor) -> Tensor:
    """As in SparseBERT."""
    return torch.where(scores <= -1e2, torch.zeros_like(scores), scores)


def kl_rows(student: Tensor, teacher: Tensor) -> Tensor:
    p = F.softmax(teacher, -1)
    rows = p * (F.log_softmax(teacher, -1) - F.log_softmax(student, -1))
    return torch.where(p > 0, rows, torch.zeros_like(rows)).sum(-1)


def related(values: Tensor, tokens: Tensor | None) -> Tensor:
    product: Tensor = values @ values.transpose(-1, -2) / values.shape[-1] ** 0.5
    if tokens is None:
        return product
    return product.masked_fill(tokens[:, None, None, :] == 0, float("-inf"))


def hand_terms(
    student: Seen,
    teacher: Seen,
    labels: Tensor,
    tokens: Tensor | None,
    pairs: list[tuple[int, int]],
    temperature: float,
) -> dict[str, Tensor]:
    """Every term; ``tokens`` is the attention mask as float, None to count padding."""
    both = None if tokens is None else tokens[:, :, None] * tokens[:, None, :]
    found = {
        "logits": soft_targets(student.logits, teacher.logits, temperature),
        "labels": F.cross_entropy(student.logits, labels),
        "embedding": masked_mean((student.hidden[0] - teacher.hidden[0]).square().mean(-1), tokens),
        "cosine": masked_mean(
            1 - F.cosine_similarity(student.hidden[-1], teacher.hidden[-1], dim=-1), tokens
        ),
    }
    sums: dict[str, list[Tensor]] = {}
    for low, high in pairs:
        ours, theirs = student.hidden[low + 1], teacher.hidden[high + 1]
        parts = {
            "hidden": masked_mean((ours - theirs).square().mean(-1), tokens),
            "cls": F.mse_loss(F.normalize(ours[:, 0], dim=-1), F.normalize(theirs[:, 0], dim=-1)),
            "scores": masked_mean(
                (unmasked(student.scores[low]) - unmasked(teacher.scores[high])).square().mean(1),
                both,
            ),
            "probabilities": masked_mean(
                kl_rows(student.scores[low], teacher.scores[high]).mean(1), tokens
            ),
            "value_relation": masked_mean(
                kl_rows(
                    related(student.values[low], tokens), related(teacher.values[high], tokens)
                ).mean(1),
                tokens,
            ),
        }
        for name, part in parts.items():
            sums.setdefault(name, []).append(part)
    cls = torch.stack(sums.pop("cls")).mean()  # BERT-PKD's code averages over layers
    return {**found, "cls": cls, **{name: torch.stack(each).sum() for name, each in sums.items()}}
