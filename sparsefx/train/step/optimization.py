"""What a training step is made of: the loss against labels, the parameters, the optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.errors import TrainingError, did_you_mean
from sparsefx.masks import mask_scores
from sparsefx.problem import Kind
from sparsefx.program import Program
from sparsefx.recipe import Training
from sparsefx.train.data.batches import UNLABELLED, known_labels

__all__ = ["flush_tiny", "freeze", "label_loss", "make_optimizer", "trained_parameters"]

_TINY = {"exp_avg": 1e-30, "exp_avg_sq": 1e-36}


def label_loss(kind: Kind, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss over the labels of a batch, in fp32; 0 when there are none.

    Args:
        kind: Cross-entropy for classification, of texts or of words; of each class by itself for
            multi-label; squared error for regression.
        logits: Of shape (batch, outputs), or (batch, tokens, outputs) where words have labels.
        labels: Of shape (batch,): classes, or values; (batch, outputs): 0 or 1; or (batch,
            tokens): classes. See :func:`known_labels`.
    """
    known = known_labels(labels)
    if kind == "multi-label":
        # Zero where nothing is known: with NaN, the gradient would be NaN in spite of the weight.
        total = F.binary_cross_entropy_with_logits(
            logits.float(), labels.nan_to_num(), weight=known.float(), reduction="sum"
        )
        return total / known.sum().clamp(min=1)
    if kind == "regression":
        values = logits.float().reshape(-1)
        # Its own value is the target of what has none: with NaN, its gradient would be NaN too.
        targets = torch.where(known, labels.float(), values)
        total = F.mse_loss(values, targets, reduction="sum")
    else:
        rows = logits.float().flatten(0, -2)
        total = F.cross_entropy(rows, labels.flatten(), ignore_index=UNLABELLED, reduction="sum")
    return total / known.sum().clamp(min=1)


def freeze(program: Program, patterns: Iterable[str]) -> list[nn.Parameter]:
    """Stop the training of all parameters whose name contains one of ``patterns``; return them.

    Raises:
        TrainingError: A pattern fits no trainable parameter.
    """
    named = {n: p for n, p in program.module.named_parameters() if p.requires_grad}
    frozen = []
    for pattern in patterns:
        matches = [parameter for name, parameter in named.items() if re.search(pattern, name)]
        if not matches:
            raise TrainingError(
                f"freeze: no trainable parameter has a name that contains {pattern!r}",
                who="session",
                hint=did_you_mean(pattern, {part for name in named for part in name.split(".")}),
            )
        frozen += matches
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def trained_parameters(program: Program) -> list[tuple[str, nn.Parameter]]:
    """Return what is trained, in an order that does not depend on how the Program was made.

    Raises:
        TrainingError: Nothing is: every parameter is frozen.
    """
    named = program.module.named_parameters()
    found = sorted((name, parameter) for name, parameter in named if parameter.requires_grad)
    if not found:
        raise TrainingError(
            "every parameter is frozen", who="session", hint="freeze fewer, or drop the training"
        )
    return found


def make_optimizer(
    program: Program, trained: Iterable[tuple[str, nn.Parameter]], settings: Training
) -> torch.optim.Optimizer:
    """Return a fused AdamW; weight decay is for matrices alone, and for no scores of masks."""
    options = settings.optimizer
    scores = mask_scores(program)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": options.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in trained:
        groups[parameter.dim() <= 1 or name in scores]["params"].append(parameter)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=options.betas,
        eps=options.epsilon,
        fused=True,
    )


@torch.no_grad()
def flush_tiny(optimizer: torch.optim.Optimizer) -> None:
    """Set vanishing moments to zero.

    A pruned weight has no gradient, so its moments shrink by a constant factor each step and end
    as subnormal numbers, with which a step of the optimizer takes 1.7 times as long on a CPU. The
    update that moments of this size give is below what fp32 weights can hold.
    """
    for state in optimizer.state.values():
        for key, tiny in _TINY.items():
            state[key].masked_fill_(state[key].abs() < tiny, 0.0)
